"""How long a stamp of the brush and a change of slice take on a lazy volume of 4096 x 4096 x 1024 voxels.

``python benchmarks/paint.py [DEPTH HEIGHT WIDTH]`` prints a table: median and 95th percentile in milliseconds, along
each axis, through napari's own Labels layer over the planes in memory, while they are being saved. No window is needed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from napari.components import ViewerModel

from napari_slicelabel.data.annotation import Annotation
from napari_slicelabel.data.boxes import AXES, SliceRef
from napari_slicelabel.gui.layers import label_colors, look_at
from napari_slicelabel.gui.paint import PaintStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_slicelabel.data.boxes import Axis

STAMPS, MOVES, BRUSH = 150, 40, 40


def main() -> None:
    """Measure and print."""
    shape = tuple(int(word) for word in sys.argv[1:4]) or (1024, 4096, 4096)
    assert len(shape) == 3
    print(f"| axis | stamp median | stamp p95 | slice change median | slice change p95 |  (ms, {shape})")
    print("|---|---|---|---|---|")
    for axis in AXES:
        with tempfile.TemporaryDirectory() as folder:
            print(row(Path(folder) / "annotation.zarr", shape, axis))


def row(folder: Path, shape: tuple[int, int, int], axis: Axis) -> str:
    """Return one line of the table."""
    store = PaintStore(Annotation(folder, shape))
    viewer = ViewerModel()
    layer = viewer.add_labels(store, colormap=label_colors(()), cache=False)
    depth = shape[AXES.index(axis)]
    rng = np.random.default_rng(0)
    look_at(viewer, layer, SliceRef(axis, depth // 2))
    store.axis = axis
    layer.brush_size = BRUSH
    sides = [n for n in range(3) if n != AXES.index(axis)]

    def stamp() -> None:
        place = [0, 0, 0]
        place[AXES.index(axis)] = depth // 2
        for n in sides:
            place[n] = int(rng.integers(BRUSH, shape[n] - BRUSH))
        layer.paint(place, 1 + int(rng.integers(3)))

    def move() -> None:
        look_at(viewer, layer, SliceRef(axis, int(rng.integers(depth))))

    stamps, moves = timed(stamp, STAMPS), timed(move, MOVES)
    assert store.close()
    return f"| {axis} | " + " | ".join(f"{value:.1f}" for value in (*stamps, *moves)) + " |"


def timed(work: Callable[[], None], count: int) -> tuple[float, float]:
    """Return median and 95th percentile of the milliseconds that `work` takes."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took), statistics.quantiles(took, n=20)[-1]


if __name__ == "__main__":
    main()
