"""How long a stamp of the brush and a change of slice take on a lazy volume of 4096 x 4096 x 1024 voxels.

``python -m benchmarks.paint [DEPTH HEIGHT WIDTH]`` prints a table and, for the whole size, writes it into
docs/benchmarks.md: 95th percentiles in milliseconds along each axis, through napari's own layers, while what was
painted is being saved. The image under the labels is none, a dask array that computes its blocks, or an OME-Zarr on
disk as the plugin opens it. A change of slice is timed for the labels alone (image hidden), with the image in napari's
plain slicing, and with the image in its asynchronous slicing; in brackets what the calling thread computed of it,
without waiting for a core. No window is needed; nothing is drawn.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from napari.components import ViewerModel
from napari.settings import get_settings

from benchmarks.document import write_section
from napari_slicelabel.data.annotation import Annotation
from napari_slicelabel.data.boxes import AXES, SliceRef
from napari_slicelabel.data.formats import open_volume
from napari_slicelabel.data.ngff import create_label_image
from napari_slicelabel.gui.layers import add_labels, look_at
from napari_slicelabel.gui.paint import PaintStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from napari_slicelabel.data.boxes import Axis

    Shape = tuple[int, int, int]

WHOLE: Shape = (1024, 4096, 4096)
BLOCK: Shape = (32, 256, 256)
STAMPS, MOVES, IMAGE_MOVES, BRUSH = 300, 60, 3, 40


def main() -> None:
    """Measure, print, and write down."""
    shape = (*map(int, sys.argv[1:4]),) or WHOLE
    assert len(shape) == 3
    lines = [
        "| image | axis | stamp | change of slice | with the image | with the image, async |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for kind, axis in product(IMAGES, AXES):
        with tempfile.TemporaryDirectory() as folder:
            lines.append(row(Path(folder), kind, shape, axis))
        print(lines[-1], flush=True)
    if shape == WHOLE:
        write_section("painting", "\n".join(lines))


def no_image(_folder: Path, shape: Shape) -> Any:
    """Return an image that costs nothing."""
    return np.broadcast_to(np.uint8(0), shape)


def computed(_folder: Path, shape: Shape) -> Any:
    """Return a dask array that computes a block whenever a slice needs it."""
    blocks = [-(-n // c) for n, c in zip(shape, BLOCK, strict=True)]
    chunks = tuple((c,) * n for n, c in zip(blocks, BLOCK, strict=True))
    whole = da.map_blocks(_noise, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    return whole[tuple(slice(n) for n in shape)]


def stored(folder: Path, shape: Shape) -> Any:
    """Return an OME-Zarr as the plugin opens it. All chunks are there; on disk they share the bytes of the first."""
    array = create_label_image(folder / "image.ome.zarr", shape, chunks=BLOCK, name="image")
    array[tuple(slice(0, n) for n in BLOCK)] = _noise()
    root = folder / "image.ome.zarr" / "0" / "c"
    for place in product(*(range(-(-n // c)) for n, c in zip(shape, BLOCK, strict=True))):
        file = root.joinpath(*map(str, place))
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            os.link(root / "0" / "0" / "0", file)
    return open_volume(folder / "image.ome.zarr").as_dask()


IMAGES: dict[str, Callable[[Path, Shape], Any]] = {"none": no_image, "dask": computed, "OME-Zarr": stored}


def _noise(block_info: object = None) -> NDArray[np.uint8]:
    # 4 bits of noise pack to half, as images do
    return np.random.default_rng(0).integers(0, 16, BLOCK, np.uint8) * 16


def row(folder: Path, kind: str, shape: Shape, axis: Axis) -> str:
    """Return one line of the table."""
    store = PaintStore(Annotation(folder / "annotation.zarr", shape))
    viewer = ViewerModel()
    image = viewer.add_image(IMAGES[kind](folder, shape), contrast_limits=(0, 255), visible=False, cache=False)
    layer = add_labels(viewer, store, "image", image, (), {})
    number, depth = AXES.index(axis), shape[AXES.index(axis)]
    rng = np.random.default_rng(0)
    look_at(viewer, layer, SliceRef(axis, depth // 2))
    store.axis = axis
    layer.brush_size = BRUSH

    def stamp() -> None:
        place = [depth // 2 if n == number else int(rng.integers(BRUSH, shape[n] - BRUSH)) for n in range(3)]
        layer.paint(place, 1 + int(rng.integers(3)))

    def move() -> None:
        look_at(viewer, layer, SliceRef(axis, int(rng.integers(depth))))

    figures = [p95(stamp, STAMPS), p95(move, MOVES)]
    if kind != "none":
        image.visible = True
        figures.append(p95(move, IMAGE_MOVES))
        with async_slicing():
            figures.append(p95(move, IMAGE_MOVES))
            viewer._layer_slicer.wait_until_idle(timeout=120)  # noqa: SLF001
    assert store.close()
    cells = figures + ["-"] * (4 - len(figures))
    return f"| {kind} | {axis} | " + " | ".join(cells) + " |"


@contextmanager
def async_slicing() -> Iterator[None]:
    """Let napari read slices in a thread of its own."""
    settings = get_settings().experimental
    settings.async_ = True
    try:
        yield
    finally:
        settings.async_ = False


def p95(work: Callable[[], None], count: int) -> str:
    """Return the 95th percentile of the milliseconds that `work` takes, and of those that its thread computes."""
    took = []
    for _ in range(count):
        began, busy = time.perf_counter(), time.thread_time()
        work()
        took.append((time.perf_counter() - began, time.thread_time() - busy))
    whole, own = 1000 * np.quantile(took, 0.95, axis=0)
    return f"{whole:.1f} ({own:.1f})"


if __name__ == "__main__":
    main()
