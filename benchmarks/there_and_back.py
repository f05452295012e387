"""How well labels come back tells how well they arrive: ``python -m benchmarks.there_and_back``.

Flow carries the labels of an annotated slice some slices away and back again. Side by side: the Dice with which they
return, which takes no truth, and the Dice that they had at the far end. The table goes to docs/algorithms.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch

from benchmarks.document import REPOSITORY, spread, write_section
from benchmarks.runs import VOLUMES, make_project, open_pair, whole
from napari_slicelabel.engine.confidence import true_dice
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import Slot
from napari_slicelabel.engine.flow import Flow
from napari_slicelabel.engine.run import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari_slicelabel.engine.events import Event

DISTANCES = (2, 5, 10, 15, 20)
STARTS = {
    "abide_crop": (34,),
    "med_itksnap_mricrop": (19, 40),
    "mni152_coarse": (40,),
    "fib25_small": (40,),
    "vnc_small": (10,),
}


def measure(name: str, starts: tuple[int, ...], seed: int = 0) -> dict[int, tuple[float, float]]:
    """Return, by distance, the mean Dice of labels that came back and of labels at the far end."""
    image, truth = open_pair(VOLUMES[name])
    labels = whole(truth)
    channels = np.searchsorted(np.unique(labels), labels).astype(np.uint8)
    found: dict[int, list[tuple[float, float]]] = {distance: [] for distance in DISTANCES}

    def go(flow: Flow) -> Iterator[Event]:
        yield from flow.learn()
        (volume,) = flow.context.volumes
        for start in starts:
            for distance, step in ((d, s) for d in DISTANCES for s in (1, -1) if 0 <= start + s * d < len(labels)):
                away = [start + step * number for number in range(1, distance + 1)]
                back = [*reversed(away[:-1]), start]
                arrived: Any = None
                for index, carried in flow.carrier.chain(volume, start, iter([*away, *back])):
                    if index == away[-1]:
                        arrived = true_dice(carried.explained().argmax(0).numpy(), channels[index])
                returned = flow.carrier.dice(carried, Slot(volume, start))
                if arrived is not None and returned is not None:
                    found[distance].append((returned, arrived))

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Flow, "run", go):
        project = make_project(Path(folder), image, truth, starts)
        list(run(project, build_config("flow", {"device": "cpu", "seed": seed})))
    return {distance: tuple(np.mean(pairs, 0).tolist()) for distance, pairs in found.items() if pairs}


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = [
        f"| returned, arrived after | {' | '.join(f'{distance} slices' for distance in DISTANCES)} |",
        "|---|" + "---|" * len(DISTANCES),
    ]
    for name, starts in STARTS.items():
        pairs = measure(name, starts)
        cells = [", ".join(spread([score]) for score in pairs[d]) if d in pairs else "" for d in DISTANCES]
        lines.append(f"| {name}, from {' and '.join(map(str, starts))} | {' | '.join(cells)} |")
    write_section("there and back", "\n".join(lines), REPOSITORY / "docs" / "algorithms.md")


if __name__ == "__main__":
    main()
