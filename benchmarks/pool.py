"""What flow should count beside a network: ``python -m benchmarks.pool``.

*self-label* is run as it is; what its network and flow say of every slice is also pooled with every share from 0 to 1.
The table goes to docs/algorithms.md.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.document import REPOSITORY, read_results, spread, write_section
from benchmarks.jobs import measure_all
from benchmarks.runs import VOLUMES, every, open_pair, whole
from benchmarks.runs import measure as measured
from napari_slicelabel.engine.confidence import pooled
from napari_slicelabel.engine.flow_share import FlowShare
from napari_slicelabel.engine.methods import self_label
from napari_slicelabel.engine.predict import Band

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping

    from napari_slicelabel.engine.confidence import HeldOut
    from napari_slicelabel.engine.context import Slot
    from napari_slicelabel.engine.events import Event

SHARES = tuple(round(0.1 * number, 1) for number in range(11))
RESULTS = REPOSITORY / "benchmarks" / "results" / "pool.jsonl"
# So little that no label depends on it, but flow is asked.
_NEXT_TO_NOTHING = 1e-6


class Watched(FlowShare):
    """Flow that counts overlaps of the pool with the truth, for every share."""

    truth: np.ndarray[Any, Any]
    annotated: tuple[int, ...]
    overlaps: dict[tuple[float, int], np.ndarray[Any, Any]]
    said: tuple[float, float]

    def _weighed(self, found: Mapping[Slot, HeldOut]) -> Generator[Event, None, list[HeldOut]]:
        both = yield from super()._weighed(found)
        type(self).said = self.share, self.next_to
        self.share, self.next_to = (share or _NEXT_TO_NOTHING for share in self.said)
        return both

    def added(self, bands: Iterable[Band], slot: Slot) -> Iterator[Band]:
        for rows, probability in bands:
            if slot.index in self.annotated:
                yield from super().added([Band(rows, probability)], slot)
                continue
            (nothing,), (everything,) = (self._pooled(Band(rows, probability), slot, share) for share in (0.0, 1.0))
            truth = self.truth[slot.index, rows]
            for share in SHARES:
                best = pooled(nothing.probability, everything.probability, share).argmax(0)
                for channel in range(1, len(probability)):
                    here, there = best == channel, truth == channel
                    counts = np.array([np.count_nonzero(here & there), here.sum() + there.sum()])
                    self.overlaps[share, channel] = self.overlaps.get((share, channel), 0) + counts
            yield from super().added([Band(rows, probability)], slot)

    def _pooled(self, band: Band, slot: Slot, share: float) -> Iterator[Band]:
        kept = self.share, self.next_to
        self.share = self.next_to = share or _NEXT_TO_NOTHING
        yield from super().added([band], slot)
        self.share, self.next_to = kept


def measure(name: str, interval: int, seed: int) -> dict[str, Any]:
    """Return Dice by share, and what held-out slices said, of one run on one dev volume."""
    _, labels = open_pair(VOLUMES[name])
    truth = whole(labels)
    annotated = every(interval, len(truth))
    Watched.truth, Watched.annotated = np.searchsorted(np.unique(truth), truth), annotated
    Watched.overlaps, Watched.said = {}, (0.0, 0.0)
    self_label.FlowShare = Watched  # type: ignore[misc]
    result = measured(name, interval, "self-label", {"transfer_iterations": 0, "device": "cpu"}, seed)
    dice = {
        share: float(np.mean([2 * both / total for (s, _), (both, total) in Watched.overlaps.items() if s == share]))
        for share in SHARES
    }
    told = {key: result["told"][f"held_out_dice_{key}"] for key in ("network", "flow")}
    return {
        "volume": name,
        "every": interval,
        "seed": seed,
        "annotated": len(annotated),
        "dice": [dice[share] for share in SHARES],
        "held_out": told,
        "share": Watched.said[0],
        "next_to": Watched.said[1],
        "result": result["dice"],
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    shown = SHARES[::2]
    lines = [
        f"| volume, every | annotated | held out: network, flow | {' | '.join(f'share {share:g}' for share in shown)}"
        " | best | share by held-out slices | Dice |",
        "|---|---|---|" + "---|" * (len(shown) + 3),
    ]
    for row in sorted(results, key=lambda row: (row["volume"], row["every"], row["seed"])):
        said = f"{row['share']:.2f}"
        if row.get("next_to", row["share"]) != row["share"]:
            said += f", next to annotated ones {row['next_to']:.2f}"
        dice = dict(zip(SHARES, row["dice"], strict=True))
        held_out = ", ".join(spread([row["held_out"][name]]) for name in ("network", "flow"))
        lines.append(
            f"| {row['volume']}, {row['every']} | {row['annotated']} | {held_out}"
            f" | {' | '.join(spread([dice[share]]) for share in shown)} | {max(SHARES, key=dice.__getitem__):g}"
            f" | {said} | {spread([row['result']])} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", nargs="+", default=["med_itksnap_mricrop"], choices=list(VOLUMES))
    parser.add_argument("--every", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    have = {(row["volume"], row["every"], row["seed"]) for row in read_results(arguments.results)}
    runs = [run for run in product(arguments.volumes, arguments.every, range(arguments.seeds)) if run not in have]
    orders = [{"name": name, "interval": interval, "seed": seed} for name, interval, seed in runs]
    measure_all("benchmarks.pool:measure", orders, arguments)
    write_section("pool", table(read_results(arguments.results)), REPOSITORY / "docs" / "algorithms.md")


if __name__ == "__main__":
    main()
