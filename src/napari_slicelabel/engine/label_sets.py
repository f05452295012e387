"""Several labellings of the same volumes side by side on disk, for the time of a run, and their mean."""

import shutil
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.data.boxes import AXES, Axis, Box
from napari_slicelabel.data.files import storage_errors
from napari_slicelabel.engine.blocks import along
from napari_slicelabel.engine.stores import SliceStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_slicelabel.engine.confidence import Labelled
    from napari_slicelabel.engine.context import RunContext

_COMPLETE = "complete"


class LabelSets:
    """Labels with their confidence, some sets of them for each volume of a run.

    Parameters
    ----------
    context : RunContext
        The run; the sets lie in its folder until `remove`.

    Notes
    -----
    A set that has the name of an axis was labelled plane by plane along it, any other one along the axis of the run.
    """

    def __init__(self, context: "RunContext") -> None:
        self._context = context
        self._folder = context.folder / "sets"
        self._stores: dict[tuple[str, str, str], SliceStore] = {}

    def write(self, which: str, volume: str, index: int, labelled: "Labelled") -> None:
        """Put a plane into a set.

        Raises
        ------
        StorageError
            Disk full, no permission.
        """
        self._store("labels", which, volume).write(index, labelled.channels)
        self._store("confidence", which, volume).write(index, np.rint(labelled.confidence * 255).astype(np.uint8))

    def labels(self, which: "Sequence[str]", volume: str, box: Box) -> "NDArray[np.uint8]":
        """Return the channel numbers of some sets in a box (d, h, w), the axis of the run first: (sets, d, h, w)."""
        return self._read("labels", which, volume, box)

    def confidence(self, which: "Sequence[str]", volume: str, box: Box) -> "NDArray[np.uint8]":
        """Return the confidence of some sets in a box, times 255; 0 where nothing was written."""
        return self._read("confidence", which, volume, box)

    def finish(self, which: str, made_from: str) -> None:
        """Note on the disk that all of a set is written, and from what: any text."""
        path = self._folder / which / _COMPLETE
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made_from, encoding="utf-8")

    def is_finished(self, which: str, made_from: str) -> bool:
        """Return whether all of a set is on the disk, and made from that."""
        path = self._folder / which / _COMPLETE
        return path.exists() and path.read_text(encoding="utf-8") == made_from

    def remove(self) -> None:
        """Remove all sets from the disk."""
        self._stores.clear()
        # what is removed in part is not complete
        for note in self._folder.glob(f"*/{_COMPLETE}"):
            note.unlink()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, kind: str, which: "Sequence[str]", volume: str, box: Box) -> "NDArray[np.uint8]":
        axis = self._context.axis
        place, number = along(axis, box), AXES.index(axis)
        return np.stack([np.moveaxis(self._store(kind, name, volume).read_box(place), number, 0) for name in which])

    def _store(self, kind: str, which: str, volume: str) -> SliceStore:
        if (kind, which, volume) not in self._stores:
            axis: Axis = which if which in AXES else self._context.axis
            path = self._folder / which / kind / f"{volume}.zarr"
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            self._stores[kind, which, volume] = SliceStore(path, self._context.volume(volume), axis)
        return self._stores[kind, which, volume]


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
