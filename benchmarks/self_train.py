"""What self-training adds to a sparse 3D network, budget by budget: ``python -m benchmarks.self_train``.

The figure of S5 (Zheng et al., AAAI 2020) at a smaller size. A volume is cut in two across z. Of the first half one
slice in k is annotated (s_k), at equal intervals or representative (RA); the second half is another volume, of which
nothing is annotated, and is what is scored. One run gives three scores: of the labels of its 3D network, which learned
from the annotated slices alone, of the result, and of the model that it leaves for other images, which sees no sets of
pseudo-labels; the rest of the first half is scored in the same way but for the last. Full
supervision is the same 3D network with every slice of the first half annotated. Of em_fib25_medulla the second half's
cells are scored, too: those that the membranes leave, plane by plane (Rand F-score). Volumes whose classes are not in
both halves are not cut: all that is not annotated counts, and there is no full supervision. Results are appended to a
file of JSON lines; a run that is in it already is not repeated. The table goes to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from skimage.measure import label
from skimage.metrics import adapted_rand_error
from skimage.segmentation import expand_labels

from benchmarks.document import read_results, write_section
from benchmarks.jobs import apart, collect
from benchmarks.runs import VOLUMES, every, make_project, open_pair, whole
from napari_slicelabel.data.boxes import Box
from napari_slicelabel.data.formats import open_labels
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine.apply import apply
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

SELECTORS = ("interval", "representative")
FULL = 1
"""The budget at which every slice is annotated."""

CUT = ("mni152_coarse", "fib25_small", "med_mni152_tissue", "em_fib25_medulla")
INSTANCES = {"fib25_small": "labels", "em_fib25_medulla": "labels"}
FULL_SETTINGS = {"trial": "off", "plane_iterations": 1, "random_iterations": 0, "nearest_iterations": 0}
"""Only the 3D network of such a run counts."""


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


def rand(found: NDArray[np.uint8], truth: NDArray[np.uint8], cells: NDArray[np.integer]) -> float:
    """Return the Rand F-score of the cells that membranes leave, off the true membranes; mean over planes.

    Predicted membranes belong to the nearest of the cells that they leave.
    """
    scores = []
    for membrane, wanted, cell in zip(found, truth, cells, strict=True):
        left = expand_labels(label(membrane == 0, connectivity=1), distance=max(membrane.shape))
        scores.append(1 - adapted_rand_error(np.where(wanted == 0, cell, 0), left)[0])
    return float(np.mean(scores))


def chosen(image: Volume, truth: Volume, budget: int, selector: str, seed: int, device: str) -> tuple[int, ...]:
    """Return one slice in ``budget``."""
    if budget == FULL or selector == "interval":
        return every(budget, truth.shape[0])
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder), image, truth, ())
        ranking = rank(project, selector, len(every(budget, truth.shape[0])), seed=seed, device=device)
        return tuple(sorted(place.index for place in ranking.order))


def halves(volume: Volume) -> tuple[Volume, Volume]:
    """Return what lies below and above the middle of z."""
    planes = whole(volume)
    middle = len(planes) // 2
    size = {"voxel_size": volume.voxel_size, "unit": volume.unit}
    return tuple(  # type: ignore[return-value]
        Volume.from_array(part, name=name, **size)
        for name, part in (("learned", planes[:middle]), ("scored", planes[middle:]))
    )


def measure(volume: str, budget: int, selector: str, settings: Mapping[str, object], seed: int) -> dict[str, Any]:
    """Return the scores of one run, of its 3D network and of its result."""
    image, truth = open_pair(VOLUMES[volume])
    began, started = time.process_time(), time.perf_counter()
    others, truths = [], [truth]
    if volume in CUT:
        image, other = halves(image)
        truths = list(halves(truth))
        others = [other]
    device = str(settings.get("device", "cpu"))
    slices = chosen(image, truths[0], budget, selector, seed, device)
    sparse: list[NDArray[np.uint8]] = []
    result: list[NDArray[np.uint8]] = []
    by_model: NDArray[np.uint8] | None = None
    told: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder), image, truths[0], slices, others)
        full = FULL_SETTINGS if budget == FULL else {}
        config = build_config("self-train", {**settings, **full, "device": device, "seed": seed})
        stage = ""
        with closing(run(project, config)) as events:
            for event in events:
                if isinstance(event, Metric):
                    told[event.name] = event.value
                elif isinstance(event, Progress) and event.stage != stage:
                    if stage == "label in 3D":
                        sparse = [labels_of_set(project, name) for name in project.names]
                        if budget == FULL:
                            break
                    stage = event.stage
        if budget != FULL:
            for name, wanted in zip(project.names, truths, strict=True):
                store = run_store(project, project.run_folder(project.run_ids()[-1]), "prediction", name, "z")
                result.append(np.stack([store.read(index) for index in range(wanted.shape[0])]))
            # where the trial chose the 3D network there is no set of it: the result is its own
            sparse = sparse or result
            if others:
                model = project.run_folder(project.run_ids()[-1]) / "model"
                by_model = applied(model, others[-1], Path(folder), device)
    found = {key: labels for key, labels in (("sparse", sparse), ("self_training", result)) if labels}
    wanted = whole(truths[-1])
    scores: dict[str, Any] = {}
    rest = [index for index in range(truths[0].shape[0]) if index not in slices]
    if rest:
        inside = whole(truths[0])[rest]
        scores["inside"] = {key: dice(labels[0][rest], inside) for key, labels in found.items()}
    if others:
        scores.update({key: dice(labels[-1], wanted) for key, labels in found.items()})
    else:
        scores.update(scores["inside"])
    if by_model is not None:
        scores["model"] = dice(by_model, wanted)
    if volume in INSTANCES:
        cells = whole(halves(open_pair(replace(VOLUMES[volume], labels=INSTANCES[volume]))[1])[1])
        scores["rand"] = {key: rand(labels[-1], wanted, cells) for key, labels in found.items()}
    return {
        "volume": volume,
        "budget": budget,
        "selector": selector,
        "seed": seed,
        "annotated": len(slices),
        "cpu_seconds": round(time.process_time() - began, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "told": told,
        **scores,
    }


def applied(model: Path, image: Volume, folder: Path, device: str) -> NDArray[np.uint8]:
    """Return what the model of a run makes of another image."""
    for _ in apply(model, image, folder / "applied.tif", device=device):
        pass
    return whole(open_labels(folder / "applied.tif"))


def labels_of_set(project: Project, name: str) -> NDArray[np.uint8]:
    """Return the label values that the 3D network gave in a run that is going on."""
    path = project.run_folder(project.run_ids()[-1]) / "sets" / VOLUME_SET / "labels" / f"{name}.zarr"
    volume = project.volume(name)
    channels = SliceStore(path, volume, "z").read_box(Box.whole(volume.shape))
    values = np.array([0, *(label_class.id for label_class in project.classes)], np.uint8)
    return values[channels]


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table; the gap is that between sparse and full supervision."""
    full = {(r["volume"], r["seed"]): r["sparse"] for r in results if r["budget"] == FULL}
    lines = [
        "| volume | budget | slices | chosen by | seed | the rest of the first half | sparse 3D | + self-training"
        " | of the gap | its model alone | Rand F | CPU s |",
        f"|{'---|' * 12}",
    ]
    for r in sorted(results, key=lambda r: (r["volume"], r["budget"] == FULL, r["budget"], r["selector"], r["seed"])):
        top = full.get((r["volume"], r["seed"]))
        cells = [r["volume"], "full" if r["budget"] == FULL else f"s{r['budget']}", r["annotated"], r["selector"]]
        inside = " -> ".join(map(_share, r["inside"].values())) if "inside" in r else "-"
        cells += [r["seed"], inside, _share(r["sparse"]), _share(r.get("self_training"))]
        gap = None if top is None or r["budget"] == FULL else (r["self_training"] - r["sparse"]) / (top - r["sparse"])
        cells += ["-" if gap is None else f"{gap:.0%}", _share(r.get("model"))]
        cells.append(" -> ".join(map(_share, r["rand"].values())) if "rand" in r else "-")
        lines.append(f"| {' | '.join(map(str, [*cells, round(r['cpu_seconds'])]))} |")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".removeprefix("0")


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", nargs="+", default=[*CUT[:2], "med_itksnap_mricrop"], choices=list(VOLUMES))
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
    todo = [*product(range(arguments.seeds), arguments.volumes, arguments.budgets, arguments.selectors)]
    todo += [
        (seed, volume, FULL, "interval")
        for seed in range(arguments.seeds)
        for volume in arguments.volumes
        if volume in CUT
    ]
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
        section = "self-train cuda" if settings.get("device") == "cuda" else "self-train"
        write_section(section, table(read_results(arguments.results)))


if __name__ == "__main__":
    main()
