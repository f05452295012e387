"""Slices as networks see them: normalised, with their neighbours, cut to any rows and columns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.data.boxes import AXES, Box
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.data.boxes import Axis
    from napari_slicelabel.data.volume import Volume
    from napari_slicelabel.engine.networks import NetworkConfig


@dataclass(frozen=True)
class PlaneReader:
    """Reads network inputs from one volume.

    Attributes
    ----------
    volume : Volume
        Read lazily.
    axis : {"z", "y", "x"}
        What the slices are perpendicular to.
    network : NetworkConfig
        Says how many neighbours, and whether coordinates are wanted.
    """

    volume: "Volume"
    axis: "Axis"
    network: "NetworkConfig"

    def read(self, index: int, rows: slice, columns: slice) -> "NDArray[np.float16]":
        """Return intensities and coordinates of a part of a slice.

        Parameters
        ----------
        index : int
            The slice.
        rows, columns : slice
            Which part, with start and stop inside the slice.

        Returns
        -------
        ndarray of shape (image planes [+ 3], h, w), float16
            Every channel of the volume for each neighbouring slice, from below to above, clipped to the robust range
            of the volume and scaled to mean 0 and standard deviation 1 of it. Beyond the ends the last slice repeats.

        Raises
        ------
        InputError
            Values that are NaN or infinite: the sample of the intensity range need not have met them.
        """
        half = self.network.in_slices // 2
        depth = self.volume.depth(self.axis)
        first, last = max(0, index - half), min(depth, index + half + 1)
        number = AXES.index(self.axis)
        start, stop = [rows.start, columns.start], [rows.stop, columns.stop]
        start.insert(number, first)
        stop.insert(number, last)
        block = np.moveaxis(self.volume.read(Box(tuple(start), tuple(stop))), 1 + number, 0)
        wanted = np.clip(np.arange(index - half, index + half + 1), first, last - 1) - first
        planes = normalised(self.volume, self.axis, first, block)[wanted].reshape(-1, *block.shape[2:])
        if not self.network.coordinates:
            return planes
        return np.concatenate([planes, self._coordinates(index, rows, columns)])

    def read_whole(self, index: int) -> "NDArray[np.float16]":
        """Return what `read` does for a whole slice."""
        height, width = self.volume.plane_shape(self.axis)
        return self.read(index, slice(0, height), slice(0, width))

    def _coordinates(self, index: int, rows: slice, columns: slice) -> "NDArray[np.float16]":
        height, width = self.volume.plane_shape(self.axis)
        h = np.linspace(-1, 1, height)[rows, None]
        w = np.linspace(-1, 1, width)[None, columns]
        depth = 2 * index / max(1, self.volume.depth(self.axis) - 1) - 1
        return np.stack(np.broadcast_arrays(h, w, np.float64(depth))).astype(np.float16)


def normalised(volume: "Volume", axis: "Axis", first: int, block: "NDArray[np.generic]") -> "NDArray[np.float16]":
    """Return slices clipped to the robust range of their volume and scaled to mean 0 and standard deviation 1 of it.

    Parameters
    ----------
    volume : Volume
        Where they come from.
    axis : {"z", "y", "x"}
        What they are perpendicular to.
    first : int
        Number of the first, for messages.
    block : ndarray of shape (n, c, h, w)
        Their values.

    Returns
    -------
    ndarray of shape (n, c, h, w), float16

    Raises
    ------
    InputError
        Values that are NaN or infinite.
    """
    if block.dtype.kind == "f" and not np.isfinite(block).all():
        raise InputError(
            f"{volume.name}: NaN or infinite values in slices {axis}{first} to {axis}{first + len(block) - 1};"
            " replace them in the image, by 0 for example, or leave these slices out with range=start:stop"
        )
    scale = volume.intensity()
    low, high, mean, std = (
        np.asarray(values, np.float32)[None, :, None, None] for values in (scale.low, scale.high, scale.mean, scale.std)
    )
    values: NDArray[np.float16] = ((np.clip(block.astype(np.float32), low, high) - mean) / std).astype(np.float16)
    return values
