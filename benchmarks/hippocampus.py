"""S1 as published on many small volumes with one annotated slice each: ``python -m benchmarks.hippocampus``.

30 hippocampi with their central slice annotated are trained on together, 10 others are labelled by the model without
any annotation. Arms: preset ``paper``; the same network trained on the central slices alone, for the same number of
steps; preset ``default``; and method ``flow``, which labels no image without annotation. The table goes to
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import defaultdict
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.document import read_results, spread, write_section
from benchmarks.jobs import measure_all
from benchmarks.runs import DATA
from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.evaluate import evaluate
from napari_slicelabel.engine.events import Finished
from napari_slicelabel.engine.pieces import pieces
from napari_slicelabel.engine.regions import front_rounds
from napari_slicelabel.engine.run import run

SOURCE = DATA / "med_hippocampus_40.npz"
TRAINED = 30
BATCH = 16
FIRST_STEPS = 1000


def split(seed: int) -> tuple[list[str], list[str]]:
    """Return the cases to train on and the cases to test on."""
    with np.load(SOURCE) as file:
        cases = sorted(name.removeprefix("image_") for name in file.files if name.startswith("image_"))
    order = [cases[number] for number in np.random.default_rng(seed).permutation(len(cases))]
    return order[:TRAINED], order[TRAINED:]


def paper_steps(depths: list[int], round_epochs: int) -> int:
    """Return how many steps preset ``paper`` trains on volumes of these depths, one central slice each."""
    fronts = [front_rounds(pieces(range(depth), [depth // 2]), rounds=0, step=1) for depth in depths]
    planes, steps = len(depths), FIRST_STEPS
    for slices in zip_longest(*fronts, fillvalue=()):
        planes += sum(map(len, slices))
        steps += round_epochs * math.ceil(planes / BATCH)
    return steps


def settings(arm: str, depths: list[int], round_epochs: int) -> dict[str, object]:
    """Return the parameters of an arm."""
    if arm in ("default", "flow"):
        return {}
    paper: dict[str, object] = {"preset": "paper", "round_epochs": round_epochs}
    if arm == "central slices only":
        paper.update(step=0, rounds=0, iterations=paper_steps(depths, round_epochs))
    return paper


def measure(arm: str, seed: int, round_epochs: int) -> dict[str, Any]:
    """Return the scores of one arm with one seed."""
    trained, tested = split(seed)
    method = "flow" if arm == "flow" else "self-label"
    if method == "flow":
        tested = []
    with np.load(SOURCE) as file, tempfile.TemporaryDirectory() as folder:
        truths = {case: file[f"labels_{case}"] for case in (*trained, *tested)}
        project = Project.create(
            Path(folder) / "hippocampi.slicelabel",
            [f"{SOURCE}::image_{case}" for case in (*trained, *tested)],
            names=[*trained, *tested],
            voxel_size=(1.0, 1.0, 1.0),
            unit="mm",
            classes=["anterior", "posterior"],
        )
        for case in trained:
            middle = len(truths[case]) // 2
            project.annotation(case).write_slice(SliceRef("z", middle), truths[case][middle], complete=True)
        chosen = settings(arm, [len(truths[case]) for case in trained], round_epochs)
        config = build_config(method, {**chosen, "seed": seed})
        began = time.process_time()
        rounds: set[str] = set()
        for event in run(project, config):
            if isinstance(event, Finished):
                run_id = event.run_id
            elif getattr(event, "stage", "").endswith("learn"):
                rounds.add(event.stage)
        seconds = time.process_time() - began
        scores = {
            case: evaluate(
                project,
                truth=Volume.from_array(truth, name=case, voxel_size=(1.0, 1.0, 1.0), unit="mm"),
                run_id=run_id,
                volume=case,
            )
            for case, truth in truths.items()
        }
    found = {
        case: {
            "dice": score["mean_dice"],
            "hd95": [value["hd95"] for value in score["classes"].values()],
        }
        for case, score in scores.items()
    }
    return {
        "arm": arm,
        "seed": seed,
        "cpu_seconds": round(seconds, 1),
        "rounds": len(rounds),
        "trained": {case: found[case] for case in trained},
        "tested": {case: found[case] for case in tested},
    }


def means(cases: dict[str, dict[str, Any]]) -> tuple[float, float, int]:
    """Return mean Dice, mean HD95 in mm where it is defined, and for how many structures it is not."""
    distances = [distance for case in cases.values() for distance in case["hd95"]]
    defined = [distance for distance in distances if distance is not None]
    return (
        float(np.mean([case["dice"] for case in cases.values()])),
        float(np.mean(defined)) if defined else float("nan"),
        len(distances) - len(defined),
    )


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    arms: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        arms[result["arm"]].append(result)
    lines = [
        "| arm | seeds | volumes | Dice | HD95, mm | structures without HD95 | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, group in arms.items():
        for part in filter(group[0].get, ("trained", "tested")):
            numbers = [means(result[part]) for result in group]
            lines.append(
                f"| {arm} | {len(group)} | {len(group[0][part])} {part} | {spread(n[0] for n in numbers)}"
                f" | {spread((n[1] for n in numbers), digits=1)} | {sum(n[2] for n in numbers)}"
                f" | {np.mean([result['cpu_seconds'] for result in group]):.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=["central slices only", "paper", "default", "flow"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--round-epochs", type=int, default=20, help="of the paper's arms, which have 20")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--results", type=Path, default=Path("hippocampus.jsonl"))
    arguments = parser.parse_args()
    have = {(result["arm"], result["seed"]) for result in read_results(arguments.results)}
    todo = [(arm, seed) for seed, arm in product(range(arguments.seeds), arguments.arms) if (arm, seed) not in have]
    orders = [{"arm": arm, "seed": seed, "round_epochs": arguments.round_epochs} for arm, seed in todo]
    measure_all("benchmarks.hippocampus:measure", orders, arguments)
    write_section("hippocampus", table(read_results(arguments.results)))


if __name__ == "__main__":
    main()
