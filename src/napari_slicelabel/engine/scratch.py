"""Arrays that last as long as a stage of a run: in memory when they are small, in the run's folder when not."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zarr

from napari_slicelabel.data.files import storage_errors

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_IN_MEMORY = 512 * 2**20
"""Bytes of an array that is still kept in memory."""

_CHUNK_PX = 512


class Scratch:
    """An array of planes (n, c, h, w), zero until it is written.

    Parameters
    ----------
    path : Path
        Where it may lie; its name ends in ``.part.<something>``, so that a resume sweeps what a kill has left.
    shape : tuple of 4 int
        Planes, channels, height, width.
    dtype : dtype
        Of its values.
    most_in_memory : int
        Bytes from which on it lies on disk.

    Raises
    ------
    StorageError
        Disk full, no permission.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: Any, *, most_in_memory: int = MOST_IN_MEMORY) -> None:
        self._path = path
        self.on_disk = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize > most_in_memory
        self._array: Any
        if self.on_disk:
            chunks = (1, shape[1], min(shape[2], _CHUNK_PX), min(shape[3], _CHUNK_PX))
            with storage_errors(path):
                # chunks that hold nothing but zeros have no file: what was released takes no room
                self._array = zarr.create_array(path, shape=tuple(shape), chunks=chunks, dtype=dtype, overwrite=True)
        else:
            self._array = np.zeros(tuple(shape), dtype)

    def read(self, plane: int, rows: slice = slice(None), columns: slice = slice(None)) -> "NDArray[Any]":
        """Return a part of a plane, shape (c, h, w)."""
        with storage_errors(self._path, "read"):
            return np.asarray(self._array[plane, :, rows, columns])

    def write(
        self, plane: int, values: "NDArray[Any]", rows: slice = slice(None), columns: slice = slice(None)
    ) -> None:
        """Replace a part of a plane by `values` of shape (c, h, w)."""
        with storage_errors(self._path):
            self._array[plane, :, rows, columns] = values

    def release(self, plane: int) -> None:
        """Give the room of a plane back; it is zero again."""
        with storage_errors(self._path):
            self._array[plane] = 0

    def close(self) -> None:
        """Remove it."""
        self._array = None
        if self.on_disk:
            shutil.rmtree(self._path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
