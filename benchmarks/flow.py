"""Correspondence flow from one annotated slice, beside what it has to beat: ``python -m benchmarks.flow``.

One structure at a time, as in S4: everything else is background. The annotated slice is drawn within 3 of the one with
the largest area; what is scored is the whole rest of the volume, far beyond both ends of the structure. Nothing is told
where it ends. The tables go to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from skimage.registration import optical_flow_tvl1
from skimage.transform import warp

from benchmarks.document import read_results, spread, write_section
from benchmarks.jobs import measure_all
from benchmarks.runs import VOLUMES, open_pair, whole
from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.events import Finished
from napari_slicelabel.engine.run import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MEASURE = "benchmarks.flow:measure"
NEAR = 3

# The published presets at a size for CPUs: our encoder at half of the pixels, and fewer steps.
_COMPACT: dict[str, object] = {"encoder": "compact", "stride": "2", "crop_px": 96}

ARMS: dict[str, tuple[str, dict[str, object]]] = {
    "nearest copy": ("interpolate", {"mode": "nearest"}),
    "registration": ("registration", {}),
    "sli2vol": ("flow", {"preset": "sli2vol"}),
    "GEIG": ("flow", {"preset": "sli2vol+", "guide": "off"}),
    "PL": ("flow", {"preset": "sli2vol+", "guide": "pseudo", "profile": "edges"}),
    "refined PL": ("flow", {"preset": "sli2vol+", "profile": "edges"}),
    "sli2vol+": ("flow", {"preset": "sli2vol+"}),
    "sli2vol, compact": ("flow", {"preset": "sli2vol", **_COMPACT, "iterations": 120}),
    "sli2vol+, compact": (
        "flow",
        {"preset": "sli2vol+", **_COMPACT, "iterations": 60, "guide_iterations": 60, "refine_iterations": 60},
    ),
    "default": ("flow", {}),
}

TABLE = ("nearest copy", "registration", "sli2vol", "sli2vol+", "default")

TASKS: dict[str, tuple[int, ...]] = {
    "med_itksnap_mricrop": (1, 2, 3, 4, 5, 6, 7, 8),
    "abide_crop": (1, 3, 5, 7),
    "med_spine_t1": (1,),
}


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
    folder: Path, image: NDArray[np.generic], mask: NDArray[np.bool_], start: int, order: tuple[str, dict[str, object]]
) -> NDArray[np.bool_]:
    """Return what a method of ours makes of one annotated slice; runs of an earlier project in `folder` are there."""
    np.save(folder / "image.npy", image)
    earlier = sorted(folder.glob("*.slicelabel"))
    project = Project.create(
        folder / f"{len(earlier)}.slicelabel",
        [folder / "image.npy"],
        voxel_size=(1.0, 1.0, 1.0),
        unit="mm",
        classes=["structure"],
    )
    if earlier:
        # what is learned does not depend on the structure: it is taken over
        shutil.copytree(earlier[-1] / "runs", project.path / "runs", dirs_exist_ok=True)
    name = project.names[0]
    project.annotation(name).write_slice(SliceRef("z", start), mask.astype(np.uint8), complete=True)
    ends = [event for event in run(project, build_config(*order)) if isinstance(event, Finished)]
    store = run_store(project, project.run_folder(ends[0].run_id), "prediction", name, "z")
    return np.stack([store.read(z) for z in range(len(image))]) > 0


def measure(
    volume: str,
    arm: str,
    seed: int,
    settings: dict[str, object] | None = None,
    structures: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return Dice and seconds of one arm for the structures of a dev volume, or some of them."""
    image, truth = (whole(part) for part in open_pair(VOLUMES[volume]))
    method, chosen = ARMS[arm]
    more = {} if method == "interpolate" else {"seed": seed, "device": "cpu", **(settings or {})}
    scores, seconds, waited = {}, [], []
    with tempfile.TemporaryDirectory() as folder:
        for structure in structures or TASKS[volume]:
            inside = truth == structure
            start = annotated_slice(inside, seed)
            began, started = time.process_time(), time.perf_counter()
            if method == "registration":
                low, high = np.percentile(image, (0.5, 99.5))
                found = registered(((image - low) / (high - low)).astype(np.float32), inside[start], start)
            else:
                found = propagated(Path(folder), image, inside[start], start, (method, {**chosen, **more}))
            seconds.append(time.process_time() - began)
            waited.append(time.perf_counter() - started)
            scores[structure] = {
                "slice": start,
                "dice": dice(found, inside, start),
                "size": float(found.sum() / inside.sum()),
            }
    return {
        "volume": volume,
        "arm": arm,
        "seed": seed,
        "settings": settings or {},
        "structures": scores,
        "first_cpu_s": round(seconds[0], 1),
        "cpu_s": round(float(np.mean(seconds[1:] or seconds)), 1),
        "first_s": round(waited[0], 1),
        "s": round(float(np.mean(waited[1:] or waited)), 1),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    arms = [arm for arm in ARMS if any(result["arm"] == arm for result in results)]
    scores: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for structure, score in result["structures"].items():
            scores[result["volume"], structure][result["arm"]].append(score["dice"])
    lines = [f"| volume | structure | {' | '.join(arms)} |", "|---|---" + "|---" * len(arms) + "|"]
    for (volume, structure), row in sorted(scores.items()):
        lines.append(f"| {volume} | {structure} | {' | '.join(spread(row[arm]) for arm in arms)} |")
    means = [np.mean([score for row in scores.values() for score in row[arm]]) for arm in arms]
    lines.append(f"| mean | | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    for key, name in (("first_cpu_s", "CPU s, first structure"), ("cpu_s", "CPU s, further ones")):
        seconds = [np.mean([result[key] for result in results if result["arm"] == arm]) for arm in arms]
        lines.append(f"| {name} | | {' | '.join(f'{mean:.0f}' for mean in seconds)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--arms", nargs="+", default=TABLE, choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sli2vol-iterations", type=int, default=400, help="training steps of preset sli2vol")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--results", type=Path, default=Path("flow.jsonl"))
    parser.add_argument("--section", default="flow", help="of docs/benchmarks.md, which the table goes to")
    parser.add_argument("--no-table", action="store_true", help="leave docs/benchmarks.md alone")
    arguments = parser.parse_args()
    have = {
        (r["volume"], r["arm"], r["seed"], int(s)) for r in read_results(arguments.results) for s in r["structures"]
    }
    orders = []
    for seed, arm, volume in product(range(arguments.seeds), arguments.arms, arguments.volumes):
        if missing := [s for s in TASKS[volume] if (volume, arm, seed, s) not in have]:
            settings = {"iterations": arguments.sli2vol_iterations} if arm == "sli2vol" else {}
            settings["device"] = arguments.device
            orders.append({"volume": volume, "arm": arm, "seed": seed, "settings": settings, "structures": missing})
    measure_all(MEASURE, orders, arguments)
    if not arguments.no_table:
        write_section(arguments.section, table(read_results(arguments.results)))


if __name__ == "__main__":
    main()
