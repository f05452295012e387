"""Label arrays of a run, written one slice at a time."""

import math
import shutil
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from napari_slicelabel.data.boxes import AXES, Axis, Box, SliceRef
from napari_slicelabel.data.files import make_folder, remove, replacing, storage_errors
from napari_slicelabel.data.ngff import create_label_image
from napari_slicelabel.data.zarr_stores import open_own_array
from napari_slicelabel.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from napari_slicelabel.data.classes import LabelClass
    from napari_slicelabel.data.volume import Volume

# Fewer, larger files than the annotation's: a slice is always written whole. 1024 x 1024 labels pack into a few kB.
PLANE_CHUNK = 1024
# what zarr and its codecs raise on damaged files
_DAMAGE = (RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError)
_EVERY_CHUNK = "every_written_chunk_exists"


class SliceStore:
    """A uint8 array on disk with the shape of a volume, of which whole slices are read and written.

    Parameters
    ----------
    folder : Path
        The OME-Zarr label image. Created by the first write.
    volume : Volume
        Gives shape, voxel size and name.
    axis : {"z", "y", "x"}
        Slices are perpendicular to it.
    fill : int
        What a slice holds that was never written.
    classes : sequence of LabelClass
        For the metadata; empty for what is no label, such as confidence.
    chunk : tuple of 2 int
        Slices in a chunk, and its height and width. With more than one slice, those that are written one by one are
        packed again each time.

    Notes
    -----
    Each chunk file is replaced in one step, so that a killed process leaves whole chunks. Several chunks of one slice
    can be of different age then; the journal, written after them, says which slices are whole.
    """

    def __init__(
        self,
        folder: Path,
        volume: "Volume",
        axis: Axis,
        *,
        fill: int = 0,
        classes: Sequence["LabelClass"] = (),
        chunk: tuple[int, int] = (1, PLANE_CHUNK),
    ) -> None:
        self.folder = folder
        self._volume = volume
        self._axis: Axis = axis
        self._fill = fill
        self._classes = tuple(classes)
        self._chunk = chunk
        self._array: zarr.Array[Any] | None = None

    @property
    def exists(self) -> bool:
        """Whether anything was written yet."""
        return self.folder.is_dir()

    def read(self, index: int) -> "NDArray[np.uint8]":
        """Return slice `index`, shape (h, w), uint8; the fill value where nothing was written.

        Raises
        ------
        StorageError
            A chunk is damaged.
        """
        if not self.exists:
            return np.full(self._volume.plane_shape(self._axis), self._fill, np.uint8)
        with self.errors("read"):
            return np.asarray(self.array()[self._key(index)], np.uint8).squeeze(AXES.index(self._axis))

    def read_box(self, box: Box) -> "NDArray[np.uint8]":
        """Return a block, shape (z, y, x), uint8; the fill value where nothing was written.

        Raises
        ------
        StorageError
            A chunk is damaged.
        """
        if not self.exists:
            return np.full(box.shape, self._fill, np.uint8)
        with self.errors("read"):
            return np.asarray(self.array()[box.slices], np.uint8)

    def array(self) -> "zarr.Array[Any]":
        """Return the array on disk, shape (z, y, x).

        Raises
        ------
        StorageError
            Nothing was written, or its metadata are damaged.
        """
        if self._array is None:
            # a chunk of nothing but the fill value is written, too: what was never written is told from what is lost
            with self.errors("open"), zarr.config.set({"array.write_empty_chunks": True}):
                array = open_own_array(self.folder / "0")
                if array.shape != self._volume.shape or array.dtype != np.uint8:
                    raise ValueError(f"{array.dtype} of shape {array.shape}, the volume has {self._volume.shape}")
            self._array = array
        return self._array

    def refuse_lost(self, indices: Iterable[int]) -> None:
        """Raise `StorageError` if a chunk is not there of slices that were written.

        Parameters
        ----------
        indices : iterable of int
            The slices that somebody knows to be written.
        """
        if not self.array().attrs.get(_EVERY_CHUNK):
            return
        for index in indices:
            for key in self._chunk_keys(index):
                path = self.folder / "0" / key
                if not path.is_file():
                    raise StorageError(
                        f"{path} is lost, a part of slice {self._axis}{index} that the run had written; restore it from"
                        " a copy, or start a new run"
                    )

    def lazy(self) -> "LazyLabels":
        """Return the array as something to slice, which raises `StorageError` where a chunk is damaged."""
        return LazyLabels(self)

    def create(self) -> None:
        """Make it, if it is not there: for those who write from several processes, before they do.

        Raises
        ------
        StorageError
            Disk full, no permission.
        """
        with self.errors("write"):
            if not self.exists:
                self._create()

    def write(self, index: int, values: "NDArray[np.uint8]") -> None:
        """Replace slice `index` by `values` of shape (h, w).

        Raises
        ------
        StorageError
            Disk full, no permission.
        """
        self.create()
        with self.errors("write"):
            self.array()[self._key(index)] = np.expand_dims(values, AXES.index(self._axis))

    def take(self, other: "SliceStore", index: int) -> None:
        """Make slice `index` what it is in another store of the same volume and axis.

        Its chunks are copied as they are packed, in a tenth of the time that reading and writing them takes.

        Raises
        ------
        StorageError
            Disk full, no permission, or the other store is damaged.
        """
        self.create()
        array = self.array()
        if not other.exists or other.array().chunks != array.chunks or array.chunks[AXES.index(self._axis)] != 1:
            self.write(index, other.read(index))
            return
        with self.errors("write"):
            for key in self._chunk_keys(index):
                _take_file(other.folder / "0" / key, self.folder / "0" / key)

    def write_box(self, box: Box, values: "NDArray[np.uint8]") -> None:
        """Replace a block by `values` of shape (z, y, x). Processes that write at once must share no chunk.

        Raises
        ------
        StorageError
            Disk full, no permission.
        """
        self.create()
        with self.errors("write"):
            self.array()[box.slices] = values

    def _key(self, index: int) -> tuple[slice, ...]:
        return SliceRef(self._axis, index).box(self._volume.shape).slices

    def _chunk_keys(self, index: int) -> "Iterator[str]":
        """Yield the names of the files that hold slice `index`."""
        array = self.array()
        grid = [range(math.ceil(n / chunk)) for n, chunk in zip(array.shape, array.chunks, strict=True)]
        along = AXES.index(self._axis)
        place = index // array.chunks[along]
        grid[along] = range(place, place + 1)
        return (array.metadata.encode_chunk_key(numbers) for numbers in product(*grid))

    def _create(self) -> None:
        make_folder(self.folder.parent)
        thickness, side = self._chunk
        chunks = tuple(thickness if axis == self._axis else side for axis in AXES)
        with replacing(self.folder) as temporary:
            array = create_label_image(
                temporary,
                self._volume.shape,
                chunks=chunks,
                name=self.folder.stem,
                voxel_size=self._volume.voxel_size,
                unit=self._volume.unit,
                classes=self._classes,
                fill_value=self._fill,
            )
            array.attrs[_EVERY_CHUNK] = True

    @contextmanager
    def errors(self, action: str) -> "Iterator[None]":
        """Turn what storage and codecs raise in the block into a `StorageError`."""
        with storage_errors(self.folder, action):
            try:
                yield
            except _DAMAGE as error:
                detail = " ".join(str(error).split())[:200] or type(error).__name__
                raise StorageError(f"{self.folder}: damaged ({detail}); start a new run") from error


class LazyLabels:
    """A store as an array (z, y, x) that is read when it is sliced.

    Attributes
    ----------
    shape, dtype, chunks
        As zarr has them.
    """

    def __init__(self, store: SliceStore) -> None:
        array = store.array()
        self.shape: tuple[int, ...] = array.shape
        self.dtype, self.chunks = array.dtype, array.chunks
        self._store = store

    def __getitem__(self, index: Any) -> "NDArray[np.uint8]":
        """Return the part that ints and slices name.

        Raises
        ------
        StorageError
            A chunk is damaged.
        """
        with self._store.errors("read"):
            return np.asarray(self._store.array()[index], np.uint8)


def _take_file(source: Path, target: Path) -> None:
    """Replace a file by a copy of another one in one step, or remove it where there is no other."""
    if not source.exists():
        remove(target)
        return
    make_folder(target.parent)
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
