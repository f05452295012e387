"""Correspondence learned on some volumes and used on others: ``python -m benchmarks.flow_transfer``.

30 hippocampi of med_hippocampus_40 to learn from, 10 others to label, one annotated slice in each, as in S4. The whole
hippocampus is one structure. The annotated slice is drawn within 3 of the one with the largest area.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.flow import ARMS, annotated_slice, dice
from benchmarks.hippocampus import SOURCE, split
from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.events import Finished
from napari_slicelabel.engine.run import run


def made(folder: Path, name: str, truths: dict[str, np.ndarray], seed: int) -> Project:
    """Return a project with one annotated slice in each volume."""
    project = Project.create(
        folder / f"{name}.slicelabel",
        [f"{SOURCE}::image_{case}" for case in truths],
        names=list(truths),
        voxel_size=(1.0, 1.0, 1.0),
        unit="mm",
        classes=["hippocampus"],
    )
    for case, truth in truths.items():
        z = annotated_slice(truth, seed)
        project.annotation(case).write_slice(SliceRef("z", z), truth[z].astype(np.uint8), complete=True)
    return project


def scores(project: Project, truths: dict[str, np.ndarray], settings: dict[str, object], seed: int) -> list[float]:
    """Run, and return the Dice of each volume without its annotated slice."""
    config = build_config("flow", {"device": "cpu", **settings, "seed": seed})
    run_id = next(event.run_id for event in run(project, config) if isinstance(event, Finished))
    found = []
    for case, truth in truths.items():
        store = run_store(project, project.run_folder(run_id), "prediction", case, "z")
        labels = np.stack([store.read(z) for z in range(len(truth))]) > 0
        found.append(dice(labels, truth, annotated_slice(truth, seed)))
    return found


def measure(arm: str, seed: int, settings: dict[str, object]) -> dict[str, Any]:
    """Return the Dice of one arm on the volumes that it learned from, and on the others."""
    began = time.process_time()
    with np.load(SOURCE) as file, tempfile.TemporaryDirectory() as folder:
        trained, tested = ({case: file[f"labels_{case}"] > 0 for case in cases} for cases in split(seed))
        source, target = made(Path(folder), "source", trained, seed), made(Path(folder), "target", tested, seed)
        chosen = {**ARMS[arm][1], **settings}
        learned = scores(source, trained, chosen, seed)
        model = str(source.run_folder(source.run_ids()[-1]) / "model")
        used = scores(target, tested, {**chosen, "model": model}, seed)
    return {
        "benchmark": "flow_transfer",
        "arm": arm,
        "seed": seed,
        "settings": settings,
        "trained": float(np.mean(learned)),
        "tested": float(np.mean(used)),
        "each": [round(score, 4) for score in used],
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def main() -> None:
    """Measure, and append a line of JSON for each arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=["sli2vol", "PL", "refined PL", "GEIG", "sli2vol+"], choices=ARMS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="parameters of flow, for all arms")
    parser.add_argument("--results", type=Path, default=Path("flow_transfer.jsonl"))
    arguments = parser.parse_args()
    settings: dict[str, object] = dict(pair.split("=", 1) for pair in arguments.set)
    for arm in arguments.arms:
        result = measure(arm, arguments.seed, settings)
        with arguments.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
