"""All methods on small parts of all dev volumes, by how much is annotated: ``python -m benchmarks.budgets``.

Sized for a CPU without vector instructions for bfloat16: networks of half the width, crops of 48 pixels, about a third
of the training steps. Each run is a process of its own, so that its peak memory is its own. Results are appended to a
file of JSON lines; a run that is in it already is not repeated, so that the table can be made in pieces, a seed at a
time. The table goes to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.document import REPOSITORY, read_results, spread, write_section
from benchmarks.jobs import measure_all
from benchmarks.runs import MEASURE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

VOLUMES = ("vnc_tiny", "fib25_tiny", "mni152_tiny", "itksnap_tiny", "abide_tiny", "med_spine_t1")
INTERVALS = (5, 10, 20)
SEEDS = 3

_NETWORK = {"device": "cpu", "width": 8, "crop_px": 48, "fold_iterations": 40, "flow_iterations": 30}
_ROUNDS = {"iterations": 120, "round_iterations": 15}
SETTINGS: dict[str, dict[str, object]] = {
    "interpolate": {},
    "flow": {"device": "cpu", "iterations": 30, "crop_px": 48},
    "self-label": {**_NETWORK, **_ROUNDS, "transfer_iterations": 0},
    "gradual-3d": {**_NETWORK, **_ROUNDS},
    "self-train": {
        **_NETWORK,
        "iterations": 120,
        "plane_iterations": 60,
        "random_iterations": 20,
        "nearest_iterations": 20,
    },
}


def orders(seeds: int, results: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of every run without a result, a seed at a time; there is no chance in `interpolate`."""
    have = {(r["volume"], r["every"], r["method"], r["seed"]) for r in results}
    for seed, interval, volume, (method, settings) in product(range(seeds), INTERVALS, VOLUMES, SETTINGS.items()):
        if (volume, interval, method, seed) not in have and (method != "interpolate" or not seed):
            yield {"name": volume, "interval": interval, "method": method, "settings": settings, "seed": seed}


def _over_volumes(results: Iterable[dict[str, Any]]) -> list[float]:
    """Return the mean Dice over the volumes, of every seed that has them all."""
    seeds: dict[int, list[float]] = defaultdict(list)
    for result in results:
        seeds[result["seed"]].append(result["dice"])
    return [float(np.mean(dice)) for dice in seeds.values() if len(dice) == len(VOLUMES)]


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return Dice, and what it takes, as Markdown tables."""
    lines = [_row("volume", "every", *SETTINGS), "|---|---" + "|---" * len(SETTINGS) + "|"]
    for volume, interval in product(VOLUMES, INTERVALS):
        here = [r for r in results if (r["volume"], r["every"]) == (volume, interval)]
        lines.append(
            _row(volume, interval, *(spread(r["dice"] for r in here if r["method"] == name) for name in SETTINGS))
        )
    for interval in INTERVALS:
        here = [r for r in results if r["every"] == interval]
        means = [_over_volumes(r for r in here if r["method"] == name) for name in SETTINGS]
        lines.append(_row("**mean**", interval, *map(spread, means)))
    lines += ["", _row("of a run", *SETTINGS), "|---" + "|---" * len(SETTINGS) + "|"]
    runs = [[r for r in results if r["method"] == name] for name in SETTINGS]
    lines += [
        _row("runs", *map(len, runs)),
        _row("CPU s, mean", *(f"{np.mean([r['cpu_seconds'] for r in group]):.0f}" if group else "-" for group in runs)),
        _row("CPU s, most", *(f"{max((r['cpu_seconds'] for r in group), default=0):.0f}" for group in runs)),
        _row("peak MB", *(max((r["peak_mb"] for r in group), default=0) for group in runs)),
    ]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results" / "budgets.jsonl")
    parser.add_argument("--no-table", action="store_true", help="leave docs/benchmarks.md alone")
    arguments = parser.parse_args()
    measure_all(MEASURE, orders(arguments.seeds, read_results(arguments.results)), arguments)
    if not arguments.no_table:
        write_section("budgets", table(read_results(arguments.results)))


if __name__ == "__main__":
    main()
