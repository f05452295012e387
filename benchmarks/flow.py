"""Correspondence flow from one annotated slice, beside what it has to beat: ``python -m benchmarks.flow``.

One structure at a time, as in S4: everything else is background. The annotated slice is drawn within 3 of the one with
the largest area; what is scored is the whole rest of the volume, far beyond both ends of the structure. Nothing is told
where it ends. The tables go to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from skimage.registration import optical_flow_tvl1
from skimage.transform import warp

from benchmarks.document import read_results, spread, write_section
from benchmarks.jobs import apart, collect
from benchmarks.runs import VOLUMES, open_pair
from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.events import Finished
from napari_slicelabel.engine.run import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MEASURE = "benchmarks.flow:measure"
NEAR = 3

ARMS: dict[str, tuple[str, dict[str, object]]] = {
    "nearest copy": ("interpolate", {"mode": "nearest"}),
    "registration": ("registration", {}),
    "sli2vol": ("flow", {"preset": "sli2vol"}),
    "GEIG": ("flow", {"preset": "sli2vol+", "guide": "off"}),
    "PL": ("flow", {"preset": "sli2vol+", "guide": "pseudo", "profile": "edges"}),
    "refined PL": ("flow", {"preset": "sli2vol+", "profile": "edges"}),
    "sli2vol+": ("flow", {"preset": "sli2vol+"}),
    "default": ("flow", {}),
}

TASKS: dict[str, tuple[int, ...]] = {
    "med_itksnap_mricrop": (1, 2, 3, 4, 5, 6, 7, 8),
    "abide_crop": (1, 3, 5, 7),
    "med_spine_t1": (1,),
}


@dataclass(frozen=True)
class Job:
    """One run."""

    volume: str
    structure: int
    arm: str
    seed: int

    def key(self) -> tuple[str, int, str, int]:
        """Return what tells it from others."""
        return self.volume, self.structure, self.arm, self.seed


def annotated_slice(truth: NDArray[np.bool_], seed: int) -> int:
    """Return a slice within `NEAR` of the one with the largest area that shows the structure."""
    areas = truth.reshape(len(truth), -1).sum(1)
    largest = int(areas.argmax())
    near = [z for z in range(max(0, largest - NEAR), min(len(truth), largest + NEAR + 1)) if areas[z]]
    return near[int(np.random.default_rng(seed).integers(len(near)))]


def dice(found: NDArray[np.bool_], truth: NDArray[np.bool_], without: int) -> float:
    """Return the Dice of all slices but one."""
    rest = np.arange(len(truth)) != without
    return float(2 * (found & truth)[rest].sum() / (found[rest].sum() + truth[rest].sum()))


def registered(image: NDArray[np.float32], mask: NDArray[np.bool_], start: int) -> NDArray[np.bool_]:
    """Return a mask carried through a stack by dense registration of neighbouring slices (TV-L1, scikit-image)."""
    found = np.zeros(image.shape, bool)
    found[start] = mask
    rows, columns = np.indices(mask.shape)
    for order in (range(start + 1, len(image)), range(start - 1, -1, -1)):
        carried, before = mask.astype(np.float32), start
        for z in order:
            down, right = optical_flow_tvl1(image[z], image[before])
            carried = warp(carried, np.array([rows + down, columns + right]), order=1, mode="edge")
            found[z], before = carried >= 0.5, z
    return found


def propagated(
    image: NDArray[np.generic], mask: NDArray[np.bool_], start: int, method: str, settings: dict[str, object]
) -> NDArray[np.bool_]:
    """Return what a method of ours makes of one annotated slice."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "image.npy", image)
        project = Project.create(
            Path(folder) / "bench.slicelabel",
            [Path(folder) / "image.npy"],
            voxel_size=(1.0, 1.0, 1.0),
            unit="mm",
            classes=["structure"],
        )
        name = project.names[0]
        project.annotation(name).write_slice(SliceRef("z", start), mask.astype(np.uint8), complete=True)
        ends = [event for event in run(project, build_config(method, settings)) if isinstance(event, Finished)]
        store = run_store(project, project.run_folder(ends[0].run_id), "prediction", name, "z")
        return np.stack([store.read(z) for z in range(len(image))]) > 0


def measure(
    volume: str, structure: int, arm: str, seed: int, settings: dict[str, object] | None = None
) -> dict[str, Any]:
    """Return Dice and seconds of one arm for one structure of a dev volume."""
    image, truth = (
        np.stack([part.read_slice(SliceRef("z", z))[0, 0] for z in range(part.shape[0])])
        for part in open_pair(VOLUMES[volume])
    )
    inside = truth == structure
    start = annotated_slice(inside, seed)
    method, chosen = ARMS[arm]
    began = time.process_time()
    if method == "registration":
        low, high = np.percentile(image, (0.5, 99.5))
        found = registered(((image - low) / (high - low)).astype(np.float32), inside[start], start)
    else:
        more = {} if method == "interpolate" else {"seed": seed, "device": "cpu"}
        found = propagated(image, inside[start], start, method, {**chosen, **more, **(settings or {})})
    return {
        "volume": volume,
        "structure": structure,
        "arm": arm,
        "seed": seed,
        "settings": settings or {},
        "slice": start,
        "dice": dice(found, inside, start),
        "volume_ratio": float(found.sum() / inside.sum()),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    """Yield the runs that were asked for."""
    for seed, volume, arm in product(range(arguments.seeds), arguments.volumes, arguments.arms):
        for structure in TASKS[volume]:
            yield Job(volume, structure, arm, seed)


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    arms = [arm for arm in ARMS if any(result["arm"] == arm for result in results)]
    cells: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        cells[result["volume"], result["structure"], result["arm"]].append(result)
    lines = [f"| volume | structure | {' | '.join(arms)} |", "|---|---" + "|---" * len(arms) + "|"]
    for volume, structure in sorted({(volume, structure) for volume, structure, _ in cells}):
        scores = [spread(result["dice"] for result in cells[volume, structure, arm]) for arm in arms]
        lines.append(f"| {volume} | {structure} | {' | '.join(scores)} |")
    for what, digits in (("dice", 3), ("cpu_seconds", 0)):
        means = [np.mean([result[what] for result in results if result["arm"] == arm]) for arm in arms]
        lines.append(f"| mean | {what.replace('_', ' ')} | {' | '.join(f'{mean:.{digits}f}' for mean in means)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--results", type=Path, default=Path("flow.jsonl"))
    parser.add_argument("--no-table", action="store_true", help="leave docs/benchmarks.md alone")
    arguments = parser.parse_args()
    have = {(r["volume"], r["structure"], r["arm"], r["seed"]) for r in read_results(arguments.results)}
    todo = [job for job in jobs(arguments) if job.key() not in have]
    collect(
        [partial(apart, MEASURE, vars(job), arguments.threads) for job in todo], arguments.results, arguments.parallel
    )
    if not arguments.no_table:
        write_section("flow", table(read_results(arguments.results)))


if __name__ == "__main__":
    main()
