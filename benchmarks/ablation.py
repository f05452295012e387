"""What each choice of ``self-label`` is worth: ``python -m benchmarks.ablation``.

One choice at a time is changed from the default, on two small volumes, without calibration. The table goes to
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.document import read_results, spread, write_section
from benchmarks.jobs import apart, collect
from benchmarks.quality import STEPS, default_interval
from benchmarks.runs import MEASURE, VOLUMES

if TYPE_CHECKING:
    from collections.abc import Mapping

SMALL = ("med_itksnap_mricrop", "vnc_corner")

# every row trains for the same number of steps in all
ROWS: Mapping[str, Mapping[str, object]] = {
    "default": {},
    "no rounds: annotated slices alone, with shapes": {"rounds": 0, "iterations": STEPS},
    "one round": {"rounds": 1, "round_iterations": 90},
    "six rounds": {"rounds": 6, "round_iterations": 15},
    "one slice per front and round (step k = 1)": {"rounds": 3, "step": 1},
    "two-sided, theta 0.6": {"accept": "two-sided", "theta": 0.6},
    "two-sided, theta 0.8 (ignore band)": {"accept": "two-sided", "theta": 0.8},
    "two-sided, theta 0.95": {"accept": "two-sided", "theta": 0.95},
    "one-sided, theta 0.8 (the paper's)": {"accept": "one-sided", "theta": 0.8},
    "quantile, the surer 80 % of each class": {"accept": "quantile", "theta": 0.8},
    "old pseudo-labels are kept": {"refresh": False},
    "pseudo-labels weigh 1": {"pseudo_weight": 1.0},
    "half of the crops are human": {"human_share": 0.5},
    "pseudo-labels weigh 1, a quarter of the crops is human": {"pseudo_weight": 1.0, "human_share": 0.25},
    "2.5D: 1 slice": {"in_slices": "1"},
    "2.5D: 5 slices": {"in_slices": "5"},
    "mask interpolation (S3's)": {"interpolation": "distance"},
    "no shapes, mask interpolation": {"shapes": "off", "interpolation": "distance"},
    "no shapes": {"shapes": "off"},
    "shapes of all classes": {"shapes": "on"},
    "flips on": {"flips": "on"},
    "flips off": {"flips": "off"},
    "coordinates": {"coordinates": "on"},
    "shapes mixed .6 to 1": {"shape_mix_low": 0.6, "shape_mix_high": 1.0},
}


def run_row(row: str, volume: str, seed: int, threads: int) -> dict[str, Any]:
    """Return the result of a row on a volume."""
    settings = {**ROWS[row], "calibrate": "off", "transfer_iterations": 0}
    interval = default_interval(VOLUMES[volume].name)
    order = {"name": volume, "interval": interval, "method": "self-label", "settings": settings, "seed": seed}
    return {**apart(MEASURE, order, threads), "row": row}


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    volumes = list(dict.fromkeys(result["volume"] for result in results))
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        groups[result["row"], result["volume"]].append(result)
    head = ["", *(f"{name}, every {default_interval(VOLUMES[name].name)}" for name in volumes), "CPU s"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in ROWS:
        cells = [spread(result["dice"] for result in groups[row, volume]) for volume in volumes]
        seconds = [result["cpu_seconds"] for volume in volumes for result in groups[row, volume]]
        if seconds:
            lines.append(f"| {row} | {' | '.join(cells)} | {np.mean(seconds):.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", nargs="+", default=list(SMALL), choices=list(VOLUMES))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--results", type=Path, default=Path("ablation.jsonl"))
    arguments = parser.parse_args()
    have = {(result["row"], result["volume"], result["seed"]) for result in read_results(arguments.results)}
    wanted = product(arguments.rows, arguments.volumes, range(arguments.seeds))
    jobs = [partial(run_row, *one, arguments.threads) for one in wanted if one not in have]
    collect(jobs, arguments.results, arguments.parallel)
    write_section("ablation", table(read_results(arguments.results)))


if __name__ == "__main__":
    main()
