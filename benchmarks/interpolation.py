"""Masks interpolated between annotated slices, as in Table 5 of S3: ``python -m benchmarks.interpolation``.

Evenly spaced slices are annotated, from 5 to 80 per cent of all. The score is the mean over the classes of the IoU over
all slices that were not annotated and lie between annotated ones, which is where S3 interpolates.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.document import read_results, spread, write_section
from benchmarks.jobs import measure_all
from benchmarks.runs import VOLUMES, make_project, open_pair
from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.events import Finished
from napari_slicelabel.engine.run import run

DENSITIES = (5, 10, 20, 40, 80)
ARMS: dict[str, tuple[str, dict[str, object]]] = {
    "nearest": ("interpolate", {"mode": "nearest"}),
    "distance": ("interpolate", {}),
    "flow": ("flow", {"device": "cpu"}),
}


def measure(volume: str, density: int, arm: str, seed: int) -> dict[str, Any]:
    """Return the IoU of one way to interpolate at one density, in per cent of the slices."""
    image, truth = open_pair(VOLUMES[volume])
    depth = truth.shape[0]
    annotated = np.unique(np.linspace(0, depth - 1, max(2, round(depth * density / 100))).round().astype(int)).tolist()
    method, settings = ARMS[arm]
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder), image, truth, tuple(annotated))
        began = time.process_time()
        events = list(run(project, build_config(method, {**settings, "seed": seed})))
        seconds = time.process_time() - began
        assert isinstance(events[-1], Finished)
        store = run_store(project, project.run_folder(events[-1].run_id), "prediction", project.names[0], "z")
        between = [z for z in range(depth) if z not in annotated]
        found = np.stack([store.read(z) for z in between])
        wanted = np.stack([truth.read_slice(SliceRef("z", z))[0, 0] for z in between])
    classes = [value for value in np.unique(wanted) if value]
    ious = [
        np.count_nonzero((found == value) & (wanted == value)) / np.count_nonzero((found == value) | (wanted == value))
        for value in classes
    ]
    return {
        "volume": volume,
        "density": density,
        "arm": arm,
        "seed": seed,
        "annotated": len(annotated),
        "iou": float(np.mean(ious)),
        "cpu_seconds": round(seconds, 1),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    groups: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        groups[result["volume"], result["arm"]][result["density"]].append(result["iou"])
    lines = [
        f"| volume | interpolated by | {' | '.join(f'{density} %' for density in DENSITIES)} |",
        "|---|---" + "|---" * len(DENSITIES) + "|",
    ]
    for (volume, arm), row in sorted(groups.items(), key=lambda item: (item[0][0], list(ARMS).index(item[0][1]))):
        lines.append(f"| {volume} | {arm} | {' | '.join(spread(row[density]) for density in DENSITIES)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", nargs="+", default=["med_itksnap_mricrop", "abide_crop", "med_spine_t1"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=1, help="of flow; the others have none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--results", type=Path, default=Path("interpolation.jsonl"))
    arguments = parser.parse_args()
    have = {(r["volume"], r["density"], r["arm"], r["seed"]) for r in read_results(arguments.results)}
    orders = [
        {"volume": volume, "density": density, "arm": arm, "seed": seed}
        for arm, volume, density in product(arguments.arms, arguments.volumes, DENSITIES)
        for seed in range(arguments.seeds if arm == "flow" else 1)
        if (volume, density, arm, seed) not in have
    ]
    measure_all("benchmarks.interpolation:measure", orders, arguments)
    write_section("interpolation", table(read_results(arguments.results)))


if __name__ == "__main__":
    main()
