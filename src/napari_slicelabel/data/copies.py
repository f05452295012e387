"""Comparing images by their voxels, and copying into a project what lies in no file."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.data.boxes import Box
from napari_slicelabel.data.files import replacing, storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from napari_slicelabel.data.volume import Volume

_WHOLE_BYTES = 64 * 2**20
# beyond that a block at both ends, and some between, of every axis
_BLOCK = (4, 128, 128)
_PLACES = 4


def same_voxels(first: Volume, second: Volume) -> bool:
    """Return whether two volumes hold the same: all of it up to 64 MB, else 64 blocks from corner to corner."""
    if (first.shape, first.channels) != (second.shape, second.channels):
        return False
    return all(np.array_equal(first.read(box), second.read(box), equal_nan=True) for box in _sample_boxes(first))


def _sample_boxes(volume: Volume) -> Iterator[Box]:
    """Yield the boxes to compare, none of them large."""
    if volume.nbytes <= _WHOLE_BYTES:
        yield Box.whole(volume.shape)
        return
    edges = [min(n, block) for n, block in zip(volume.shape, _BLOCK, strict=True)]
    starts = [np.linspace(0, n - edge, _PLACES).astype(int) for n, edge in zip(volume.shape, edges, strict=True)]
    for corner in product(*({int(at) for at in line} for line in starts)):
        yield Box(corner, tuple(at + edge for at, edge in zip(corner, edges, strict=True)))


def write_copy(volume: Volume, path: Path) -> str:
    """Write all values of a volume to a .npy file, a few planes at a time; return the axes of the file.

    Raises
    ------
    StorageError
        Disk full, read-only folder.
    """
    axes = "zyx" if volume.channels == 1 else "zcyx"
    depth, height, width = volume.shape
    shape = (depth, height, width) if volume.channels == 1 else (depth, volume.channels, height, width)
    with storage_errors(path), replacing(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_2_0(
            file, {"descr": np.lib.format.dtype_to_descr(volume.dtype), "fortran_order": False, "shape": shape}
        )
        for z in range(depth):
            block = volume.read(Box((z, 0, 0), (z + 1, height, width)))
            file.write(np.ascontiguousarray(block[:, 0]).tobytes())
    return axes
