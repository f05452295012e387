"""What self-training adds to a sparse 3D network, budget by budget: ``python -m benchmarks.self_train``.

The figure of S5 (Zheng et al., AAAI 2020) at a smaller size. One run gives two scores on the slices that were not
annotated: of the labels of its 3D network, which learned from the annotated slices alone, and of the result. s_k means
one slice in k along z, at equal intervals or representative (RA). A volume cannot be scored on slices that were learned
from, so that full supervision is not among them. Results are appended to a file of JSON lines; a run that is in it
already is not repeated. The table goes to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.document import read_results, write_section
from benchmarks.jobs import apart, collect
from benchmarks.runs import VOLUMES, every, make_project, open_pair
from napari_slicelabel.data.boxes import Box, SliceRef
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.events import Metric, Progress
from napari_slicelabel.engine.methods.self_train import VOLUME_SET
from napari_slicelabel.engine.run import run
from napari_slicelabel.engine.select import rank
from napari_slicelabel.engine.stores import SliceStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project
    from napari_slicelabel.data.volume import Volume

SELECTORS = ("interval", "representative")


def dice(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Return the mean Dice over the classes of the truth."""
    scores = [
        2
        * np.count_nonzero((found == value) & (truth == value))
        / (np.count_nonzero(found == value) + np.count_nonzero(truth == value))
        for value in np.unique(truth)
        if value
    ]
    return float(np.mean(scores))


def chosen(image: Volume, truth: Volume, budget: int, selector: str, seed: int) -> tuple[int, ...]:
    """Return one slice in ``budget``."""
    if selector == "interval":
        return every(budget, truth.shape[0])
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder), image, truth, ())
        ranking = rank(project, selector, len(every(budget, truth.shape[0])), seed=seed, device="cpu")
        return tuple(sorted(place.index for place in ranking.order))


def measure(volume: str, budget: int, selector: str, settings: Mapping[str, object], seed: int) -> dict[str, Any]:
    """Return the scores of one run, of its 3D network and of its result."""
    image, truth = open_pair(VOLUMES[volume])
    slices = chosen(image, truth, budget, selector, seed)
    told: dict[str, float] = {}
    sparse = None
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder), image, truth, slices)
        config = build_config("self-train", {"device": "cpu", **settings, "seed": seed})
        stage = ""
        for event in run(project, config):
            if isinstance(event, Metric):
                told[event.name] = event.value
            elif isinstance(event, Progress) and event.stage != stage:
                if stage == "label in 3D":
                    sparse = labels_of_set(project)
                stage = event.stage
        store = run_store(project, project.run_folder(project.run_ids()[-1]), "prediction", project.names[0], "z")
        result = np.stack([store.read(index) for index in range(truth.shape[0])])
    left = [index for index in range(truth.shape[0]) if index not in slices]
    wanted = np.stack([truth.read_slice(SliceRef("z", index))[0, 0] for index in left]).astype(np.uint8)
    return {
        "volume": volume,
        "budget": budget,
        "selector": selector,
        "seed": seed,
        "annotated": len(slices),
        # where the trial chose the 3D network there is no set of it: the result is its own
        "sparse": dice((result if sparse is None else sparse)[left], wanted),
        "self_training": dice(result[left], wanted),
        "told": told,
    }


def labels_of_set(project: Project) -> NDArray[np.uint8]:
    """Return the label values that the 3D network gave in a run that is going on."""
    name = project.names[0]
    path = project.run_folder(project.run_ids()[-1]) / "sets" / VOLUME_SET / "labels" / f"{name}.zarr"
    volume = project.volume(name)
    channels = SliceStore(path, volume, "z").read_box(Box.whole(volume.shape))
    values = np.array([0, *(label_class.id for label_class in project.classes)], np.uint8)
    return values[channels]


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| volume | budget | slices | chosen by | seed | sparse 3D only | + self-training |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in sorted(results, key=lambda r: (r["volume"], r["budget"], r["selector"], r["seed"])):
        scores = [f"{result[name]:.3f}".removeprefix("0") for name in ("sparse", "self_training")]
        lines.append(
            f"| {result['volume']} | s{result['budget']} | {result['annotated']} | {result['selector']}"
            f" | {result['seed']} | {scores[0]} | {scores[1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", nargs="+", default=["med_itksnap_mricrop"], choices=list(VOLUMES))
    parser.add_argument("--budgets", nargs="+", type=int, default=[5, 10, 20, 40])
    parser.add_argument("--selectors", nargs="+", default=["interval"], choices=SELECTORS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="parameters of the method")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--results", type=Path, default=Path("self_train.jsonl"))
    parser.add_argument("--no-table", action="store_true", help="leave docs/benchmarks.md alone")
    arguments = parser.parse_args()
    have = {(r["volume"], r["budget"], r["selector"], r["seed"]) for r in read_results(arguments.results)}
    settings = dict(pair.split("=", 1) for pair in arguments.set)
    todo = product(range(arguments.seeds), arguments.volumes, arguments.budgets, arguments.selectors)
    jobs = [
        partial(
            apart,
            "benchmarks.self_train:measure",
            {"volume": volume, "budget": budget, "selector": selector, "settings": settings, "seed": seed},
            arguments.threads,
        )
        for seed, volume, budget, selector in todo
        if (volume, budget, selector, seed) not in have
    ]
    collect(jobs, arguments.results, arguments.parallel)
    if not arguments.no_table:
        write_section("self-train", table(read_results(arguments.results)))


if __name__ == "__main__":
    main()
