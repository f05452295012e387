"""Dice of the methods on the dev volumes: ``python -m benchmarks.quality``.

Each run is a process of its own, so that its peak memory is its own. Results are appended to a file of JSON lines; a
run that is in it already is not repeated, so that a long table can be made in pieces. The table goes to
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.document import read_results, spread, write_section
from benchmarks.jobs import apart, collect
from benchmarks.runs import MEASURE
from napari_slicelabel.engine.methods.self_label import SelfLabelConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKED = ("em_vnc_sstem", "med_mni152_tissue", "med_itksnap_mricrop", "med_abide_subcortical", "em_fib25_medulla")

# The annotated slices alone, the same network, the same number of steps: what self-labelling must beat.
DEFAULT = SelfLabelConfig()
STEPS = DEFAULT.iterations + DEFAULT.rounds * DEFAULT.round_iterations
ARMS: dict[str, tuple[str, dict[str, object]]] = {
    "interpolate": ("interpolate", {}),
    "annotated only": (
        "self-label",
        {"shapes": "off", "rounds": 0, "iterations": STEPS, "calibrate": "off", "transfer_iterations": 0},
    ),
    "self-label, flow=off": ("self-label", {"transfer_iterations": 0, "flow": "off"}),
    "self-label": ("self-label", {"transfer_iterations": 0}),
    "flow": ("flow", {}),
    "gradual-3d, flow=off": ("gradual-3d", {"flow": "off"}),
    "gradual-3d": ("gradual-3d", {}),
    "self-train, flow=off": ("self-train", {"flow": "off"}),
    "self-train": ("self-train", {}),
    # as on a CPU, for runs on a GPU
    "self-label, batch=8": ("self-label", {"transfer_iterations": 0, "batch": 8}),
    "gradual-3d, batch=2": ("gradual-3d", {"batch": 2}),
    "self-train, batch=2": ("self-train", {"batch": 2, "plane_batch": 8}),
}


@dataclass(frozen=True)
class Job:
    """One run."""

    volume: str
    every: int
    arm: str
    seed: int

    def key(self) -> tuple[str, int, str, int]:
        """Return what tells it from others."""
        return self.volume, self.every, self.arm, self.seed


def default_interval(volume: str) -> int:
    """Return the interval that the issue of the foundation asks for: 5 on the 20 sections, 10 elsewhere."""
    return 5 if volume == "em_vnc_sstem" else 10


def jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    """Yield the runs that were asked for."""
    for seed, volume, arm in product(range(arguments.seeds), arguments.volumes, arguments.arms):
        if arm == "interpolate" and seed:
            continue
        for interval in arguments.every or (default_interval(volume),):
            yield Job(volume, interval, arm, seed)


def run_job(job: Job, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the result of a run in a process of its own."""
    method, settings = ARMS[job.arm]
    if method != "interpolate":
        settings = {**settings, "device": arguments.device}
    order = {"name": job.volume, "interval": job.every, "method": method, "settings": settings, "seed": job.seed}
    return {**apart(MEASURE, order, arguments.threads), "arm": job.arm}


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        groups[result["volume"], result["every"], result["arm"]].append(result)
    on_gpu = any(result["gpu_mb"] for result in results)
    lines = [
        "| volume | every | method | seeds | Dice | Spearman | calibration error | expected - true |"
        + (" s | peak MB | of the GPU |" if on_gpu else " CPU s | peak MB |"),
        "|---|---|---|---|---|---|---|---|---|---|" + "---|" * on_gpu,
    ]
    for (volume, interval, arm), group in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1])):
        confidence = [result["confidence"] for result in group]
        lines.append(
            f"| {volume} | {interval or 'one slice'} | {arm} | {len(group)} | {spread(r['dice'] for r in group)}"
            f" | {spread(c['spearman'] for c in confidence)}"
            f" | {spread(c['calibration_error_foreground'] for c in confidence)}"
            f" | {spread(c['gap'] for c in confidence)}"
            f" | {np.mean([r['seconds' if on_gpu else 'cpu_seconds'] for r in group]):.0f}"
            f" | {max(r['peak_mb'] for r in group)} |" + f" {max(r['gpu_mb'] for r in group)} |" * on_gpu
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", nargs="+", default=list(CHECKED))
    parser.add_argument("--every", nargs="+", type=int, help="0 = one slice; by default 5 on em_vnc, 10 elsewhere")
    usual = [arm for arm in ARMS if "batch" not in arm]
    parser.add_argument("--arms", nargs="+", default=usual, choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", type=Path, default=Path("quality.jsonl"))
    parser.add_argument("--no-table", action="store_true", help="leave docs/benchmarks.md alone")
    arguments = parser.parse_args()
    have = {(r["volume"], r["every"], r["arm"], r["seed"]) for r in read_results(arguments.results)}
    todo = [job for job in jobs(arguments) if job.key() not in have]
    collect([partial(run_job, job, arguments) for job in todo], arguments.results, arguments.parallel)
    if not arguments.no_table:
        section = "quality cuda" if arguments.device == "cuda" else "quality"
        write_section(section, table(read_results(arguments.results)))


if __name__ == "__main__":
    main()
