"""Several labellings of the same volumes side by side on disk, for the time of a run, and their mean."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.data.boxes import AXES, Axis, Box
from napari_slicelabel.data.files import make_folder, remove, write_text
from napari_slicelabel.data.reading import read_text
from napari_slicelabel.engine.blocks import BlockReader, along
from napari_slicelabel.engine.stores import SliceStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_slicelabel.data.volume import Volume
    from napari_slicelabel.engine.confidence import Labelled
    from napari_slicelabel.engine.context import RunContext

_COMPLETE = "complete"
# Planes go to the disk, and come from it, so many at a time: a plane that lies across a set is in all of its chunks.
_MOST_PLANES, _SLAB_BYTES, _CHUNK_PX = 16, 64 * 2**20, 256


class LabelSets:
    """Labels with their confidence, some sets of them for each volume of a run.

    Parameters
    ----------
    context : RunContext
        The run; the sets lie in its folder until `remove`.

    Notes
    -----
    A set that has the name of an axis was labelled plane by plane along it, any other one along the axis of the run.
    The last planes that were written are in memory until others follow, the set is finished, or something is read.
    """

    def __init__(self, context: "RunContext") -> None:
        self._context = context
        self._folder = context.folder / "sets"
        self._slabs: dict[tuple[str, str, str], _Slabs] = {}
        # what was read last, of labels and of confidence
        self._last: dict[str, tuple[tuple[tuple[str, ...], str, range], NDArray[np.uint8]]] = {}

    def write(self, which: str, volume: str, index: int, labelled: "Labelled") -> None:
        """Put a plane into a set.

        Raises
        ------
        StorageError
            Disk full, no permission.
        """
        self._last.clear()
        sure = np.rint(labelled.confidence * 255).astype(np.uint8)
        for kind, values in (("labels", labelled.channels), ("confidence", sure)):
            self._slabs_of(kind, which, volume).write(index, values)

    def labels(self, which: "Sequence[str]", volume: str, box: Box) -> "NDArray[np.uint8]":
        """Return the channel numbers of some sets in a box (d, h, w), the axis of the run first: (sets, d, h, w)."""
        return self._read("labels", which, volume, box)

    def confidence(self, which: "Sequence[str]", volume: str, box: Box) -> "NDArray[np.uint8]":
        """Return the confidence of some sets in a box, times 255; 0 where nothing was written."""
        return self._read("confidence", which, volume, box)

    def finish(self, which: str, made_from: str) -> None:
        """Note on the disk that all of a set is written, and from what: any text."""
        self._flush()
        path = self._folder / which / _COMPLETE
        make_folder(path.parent)
        write_text(path, made_from)

    def is_finished(self, which: str, made_from: str) -> bool:
        """Return whether all of a set is on the disk, and made from that."""
        path = self._folder / which / _COMPLETE
        try:
            return read_text(path) == made_from
        except (OSError, ValueError):
            return False

    def remove(self) -> None:
        """Remove all sets from the disk; killed meanwhile, all of them are there or none is."""
        self._slabs.clear()
        self._last.clear()
        remove(self._folder)

    def _read(self, kind: str, which: "Sequence[str]", volume: str, box: Box) -> "NDArray[np.uint8]":
        if box.shape[0] > 1:
            return self._from_disk(kind, which, volume, box)
        depth, *plane = BlockReader(self._context.volume(volume), self._context.axis).shape
        index, count = box.start[0], _planes_at_once(len(which) * math.prod(plane))
        if count == 1:
            return self._from_disk(kind, which, volume, box)
        first = index // count * count
        key = (tuple(which), volume, range(first, min(first + count, depth)))
        if kind not in self._last or self._last[kind][0] != key:
            slab = Box((first, 0, 0), (key[2].stop, *plane))
            self._last[kind] = (key, self._from_disk(kind, which, volume, slab))
        return self._last[kind][1][:, index - first : index - first + 1, *box.slices[1:]]

    def _from_disk(self, kind: str, which: "Sequence[str]", volume: str, box: Box) -> "NDArray[np.uint8]":
        self._flush()
        axis = self._context.axis
        return np.stack([_read_along(axis, self._slabs_of(kind, name, volume).store, box) for name in which])

    def _flush(self) -> None:
        for slabs in self._slabs.values():
            slabs.flush()

    def _slabs_of(self, kind: str, which: str, volume: str) -> "_Slabs":
        if (kind, which, volume) not in self._slabs:
            axis: Axis = which if which in AXES else self._context.axis
            path = self._folder / which / kind / f"{volume}.zarr"
            make_folder(path.parent)
            self._slabs[kind, which, volume] = _Slabs(path, self._context.volume(volume), axis)
        return self._slabs[kind, which, volume]


class _Slabs:
    """A store that is written plane by plane, and goes to the disk a few planes at a time."""

    def __init__(self, path: Path, volume: "Volume", axis: Axis) -> None:
        self._axis: Axis = axis
        self._shape = BlockReader(volume, axis).shape
        self._count = _planes_at_once(math.prod(self._shape[1:]))
        self.store = SliceStore(path, volume, axis, chunk=(self._count, _CHUNK_PX))
        self._box: Box | None = None
        self._planes = np.empty((0, 0, 0), np.uint8)

    def write(self, index: int, values: "NDArray[np.uint8]") -> None:
        """Replace a plane."""
        if self._box is None or not self._box.start[0] <= index < self._box.stop[0]:
            self.flush()
            first = index // self._count * self._count
            self._box = Box((first, 0, 0), (min(first + self._count, self._shape[0]), *self._shape[1:]))
            self._planes = np.array(_read_along(self._axis, self.store, self._box))
        self._planes[index - self._box.start[0]] = values

    def flush(self) -> None:
        """Put the planes in memory on the disk."""
        if self._box is not None:
            self.store.write_box(along(self._axis, self._box), np.moveaxis(self._planes, 0, AXES.index(self._axis)))
            self._box = None


def _read_along(axis: Axis, store: SliceStore, box: Box) -> "NDArray[np.uint8]":
    """Return a box (d, h, w), the axis first, of a store."""
    return np.moveaxis(store.read_box(along(axis, box)), AXES.index(axis), 0)


def _planes_at_once(plane_bytes: int) -> int:
    return max(1, min(_MOST_PLANES, _SLAB_BYTES // plane_bytes))


def averaged(
    labels: "NDArray[np.uint8]", sure: "NDArray[np.uint8] | None", channels: int, *, variance: bool
) -> "NDArray[np.float16]":
    """Return the mean of several sets of labels.

    Parameters
    ----------
    labels : ndarray of shape (n, d, h, w), uint8
        Channel numbers.
    sure : ndarray of shape (n, d, h, w), uint8, or None
        Their confidence times 255; what is missing to 1 is shared by the other channels. None: all are certain.
    channels : int
        Classes and background.
    variance : bool
        Whether a last channel holds the variance over the sets, summed over the channels: 0 where they agree.

    Returns
    -------
    ndarray of shape (channels [+ 1], d, h, w), float16

    Examples
    --------
    >>> import numpy as np
    >>> sets = np.array([[[[0, 1]]], [[[1, 1]]]], np.uint8)
    >>> averaged(sets, None, 2, variance=True)[:, 0, 0].tolist()
    [[0.5, 0.0], [0.5, 1.0], [0.5, 0.0]]
    """
    top = np.ones(labels.shape, np.float32) if sure is None else sure.astype(np.float32) / 255
    rest = (1 - top) / max(1, channels - 1)
    found = np.zeros((channels + variance, *labels.shape[1:]), np.float16)
    for channel in range(channels):
        share = np.where(labels == channel, top, rest)
        found[channel] = share.mean(0)
        if variance:
            found[channels] += share.var(0).astype(np.float16)
    return found
