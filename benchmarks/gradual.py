"""IoU after each round of gradual learning, for some annotated subvolumes: ``python -m benchmarks.gradual``.

The figure of S2 (Engster 2025): med_mni152_tissue, brain against the rest or its two tissues; n random cubes that do
not overlap are annotated, each as large a share of the volume as 80³ is of 192 x 256 x 256. Every third voxel on a CPU,
the whole volume with ``--device cuda``.
Results are appended to a file of JSON lines; a run that is in it already is not repeated. The table goes to
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.document import read_results, spread, write_section
from benchmarks.jobs import measure_all
from benchmarks.runs import DATA
from napari_slicelabel.data.boxes import Box, SliceRef
from napari_slicelabel.data.classes import PAINTED_BACKGROUND
from napari_slicelabel.data.project import Project
from napari_slicelabel.engine.blocks import BlockPredictor, BlockReader
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.events import Event, Metric, Progress
from napari_slicelabel.engine.networks import load_model
from napari_slicelabel.engine.run import run
from napari_slicelabel.engine.state import load_state
from napari_slicelabel.engine.volume_networks import VolumeNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

PAPER_SHARE = 80**3 / (192 * 256 * 256)
# Every how many-th voxel is taken. The cubes are 18 or 55 voxels wide instead of 80, the step is as much smaller, and
# so are crops, as far as the network's levels allow.
THINNED = {"cpu": 3, "cuda": 1}
SETTINGS: dict[str, dict[str, object]] = {
    "cpu": {"levels": 4, "crop_px": 32, "crop_depth": 32, "step": 2, "iterations": 300, "round_iterations": 60},
    "cuda": {"crop_px": 48, "crop_depth": 48, "step": 6, "iterations": 1000, "round_iterations": 150},
}
PAPER = {2: "0.30 -> 0.58", 3: "0.41 -> 0.63", 10: "0.55 -> 0.76"}
CLASSES = {"brain": ["brain"], "tissue": ["grey matter", "white matter"]}


@dataclass(frozen=True)
class Job:
    """One run."""

    target: str
    cubes: int
    seed: int


def random_cubes(shape: tuple[int, ...], count: int, rng: np.random.Generator) -> list[Box]:
    """Return boxes that do not overlap, at random."""
    side = round((PAPER_SHARE * np.prod(shape)) ** (1 / 3))
    found: list[Box] = []
    tried = 0
    while len(found) < count:
        if (tried := tried + 1) % 1000 == 0:
            found = []  # they lie so that no further one fits
        start = tuple(int(rng.integers(n - side + 1)) for n in shape)
        box = Box(start, tuple(a + side for a in start))
        if not any(box.intersect(other).size for other in found):
            found.append(box)
    return found


def annotated(
    folder: Path, image: NDArray[np.uint8], truth: NDArray[np.uint8], boxes: list[Box], classes: list[str]
) -> Project:
    """Return a project in which the boxes are annotated, background too."""
    np.save(folder / "image.npy", image)
    project = Project.create(folder / "bench.slicelabel", [folder / "image.npy"], classes=classes)
    known = np.zeros(truth.shape, bool)
    for box in boxes:
        known[box.slices] = True
    painted = np.where(known, np.where(truth == 0, PAINTED_BACKGROUND, truth), 0).astype(np.uint8)
    for index in np.flatnonzero(known.any((1, 2))):
        project.annotation("image").write_slice(SliceRef("z", int(index)), painted[index])
    return project


def weights_by_round(project: Project, events: Iterator[Event]) -> Iterator[tuple[dict[str, Tensor], dict[str, float]]]:
    """Yield the weights after the fit and after each round, with what the round told, as the run goes on."""
    told: dict[str, float] = {}
    stage = ""
    for event in events:
        if isinstance(event, Metric):
            told[event.name] = event.value
        elif isinstance(event, Progress) and event.stage != stage:
            # a new stage begins: the state on disk is that at the end of the last one
            if stage == "fit" or stage.endswith(": learn"):
                state = load_state(project.run_folder(project.run_ids()[-1]) / "state")
                assert state is not None
                yield {name: value for name, value in state[0].items() if name.startswith("network.")}, dict(told)
            stage = event.stage


def iou(
    network: VolumeNetwork, project: Project, truth: NDArray[np.uint8], known: NDArray[np.bool_], device: str
) -> float:
    """Return the IoU in the whole volume outside of what was annotated, its mean over the classes."""
    reader, config = BlockReader(project.volume("image"), "z"), network.config
    with tempfile.TemporaryDirectory() as folder:
        predictor = BlockPredictor(
            network,
            reader.read,
            reader.shape,
            int(truth.max()) + 1,
            tile=config.tile,
            stride=config.stride,
            device=torch.device(device),
            scratch=Path(folder) / "sums",
        )
        labels = np.empty(truth.shape, np.uint8)
        for index in range(len(labels)):
            list(predictor.prepare(index))
            labels[index] = np.concatenate([band.probability.argmax(0) for band in predictor.bands(index)])
    found, there = labels[~known], truth[~known]
    return float(
        np.mean(
            [
                ((found == label) & (there == label)).sum() / ((found == label) | (there == label)).sum()
                for label in range(1, int(truth.max()) + 1)
            ]
        )
    )


def measure(target: str, cubes: int, seed: int, device: str = "cpu") -> dict[str, Any]:
    """Return the IoU after the fit and after each round, with so many cubes."""
    every = (slice(None, None, THINNED[device]),) * 3
    with np.load(DATA / "med_mni152_tissue.npz") as arrays:
        image, labels = (arrays[name][every] for name in ("image", "labels"))
    truth = (labels > 0).astype(np.uint8) if target == "brain" else labels
    boxes = random_cubes(truth.shape, cubes, np.random.default_rng(seed))
    known = np.zeros(truth.shape, bool)
    for box in boxes:
        known[box.slices] = True
    with tempfile.TemporaryDirectory() as folder:
        project = annotated(Path(folder), image, truth, boxes, CLASSES[target])
        settings = {"preset": "paper", "device": device, "seed": seed, **SETTINGS[device]}
        events = run(project, build_config("gradual-3d", settings))
        rounds = list(weights_by_round(project, events))
        network, _ = load_model(project.run_folder(project.run_ids()[-1]) / "model")
        assert isinstance(network, VolumeNetwork)
        network.to(device)
        scores = []
        for weights, _told in rounds:
            network.load_state_dict({name.removeprefix("network."): value for name, value in weights.items()})
            scores.append(iou(network, project, truth, known, device))
    return {
        "target": target,
        "cubes": cubes,
        "seed": seed,
        "annotated": float(known.mean()),
        "iou": scores,
        "coverage": [told.get("coverage", float(known.mean())) for _, told in rounds],
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table: mean and spread over the seeds."""
    most = max(len(result["iou"]) for result in results)
    rounds = " | ".join(["fit", *(f"round {n}" for n in range(1, most))])
    lines = [
        f"| target | cubes | annotated | seeds | {rounds} | paper |",
        f"|---|---|---|---|{'---|' * most}---|",
    ]
    for target, count in sorted({(r["target"], r["cubes"]) for r in results}):
        runs = [r for r in results if (r["target"], r["cubes"]) == (target, count)]
        scores = [spread([r["iou"][n] for r in runs if n < len(r["iou"])]) for n in range(most)]
        lines.append(
            f"| {target} | {count} | {np.mean([r['annotated'] for r in runs]):.0%} | {len(runs)}"
            f" | {' | '.join(scores)} | {PAPER.get(count, '')} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(CLASSES), choices=CLASSES)
    parser.add_argument("--cubes", nargs="+", type=int, default=[2, 3, 10])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", choices=tuple(THINNED), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--results", type=Path, default=Path("gradual.jsonl"))
    parser.add_argument("--no-table", action="store_true", help="leave docs/benchmarks.md alone")
    arguments = parser.parse_args()
    have = {Job(r["target"], r["cubes"], r["seed"]) for r in read_results(arguments.results)}
    todo = [Job(*each) for each in product(arguments.targets, arguments.cubes, range(arguments.seeds))]
    place = {"device": arguments.device}
    orders = [{**asdict(job), **place} for job in todo if job not in have]
    measure_all("benchmarks.gradual:measure", orders, arguments)
    if not arguments.no_table:
        section = "gradual cuda" if arguments.device == "cuda" else "gradual"
        write_section(section, table(read_results(arguments.results)))


if __name__ == "__main__":
    main()
