"""Labels brought onto their image: the same shape is not enough, they must lie in the same place."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_slicelabel.data.boxes import Box
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.errors import InputError

_TOLERANCE = 0.1  # of a voxel


class Mirrored:
    """A volume of one channel as an array (z, y, x) that is read the other way round along some axes.

    Attributes
    ----------
    shape : tuple of int
        Of the volume.
    dtype : numpy.dtype
        The same.
    """

    def __init__(self, volume: Volume, axes: tuple[int, ...]) -> None:
        self._volume, self._axes = volume, axes
        self.shape, self.dtype = volume.shape, volume.dtype

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Return the block that a tuple of three slices names, as `Volume` asks for it."""
        bounds = [part.indices(length)[:2] for part, length in zip(index, self.shape, strict=True)]
        for axis in self._axes:
            start, stop = bounds[axis]
            bounds[axis] = self.shape[axis] - stop, self.shape[axis] - start
        starts, stops = zip(*bounds, strict=True)
        return np.flip(self._volume.read(Box(starts, stops))[0], self._axes)


def on_image(labels: Volume, image: Volume) -> Volume:
    """Return labels as they lie on an image.

    Parameters
    ----------
    labels : Volume
        Labels. Stored the other way round along an axis they are turned.
    image : Volume
        Where they must lie.

    Returns
    -------
    Volume
        Of the shape of the image, voxel on voxel. Where one of the two files states no place, the shape decides.

    Raises
    ------
    InputError
        Another shape or several channels, or another place.
    """
    if labels.shape != image.shape or labels.channels != 1:
        channels = f" with {labels.channels} channels" if labels.channels != 1 else ""
        raise InputError(
            f"labels {labels.name} have shape {labels.shape}{channels}, but volume {image.name} has {image.shape}"
            " (z, y, x); give labels of the same shape"
        )
    if labels.affine is None or image.affine is None:
        return labels
    mirrored = _mirrored_axes(np.linalg.solve(image.affine, labels.affine), image.shape)
    if mirrored is None:
        offset = np.round(labels.affine[:3, 3] - image.affine[:3, 3], 3).tolist()
        raise InputError(
            f"labels {labels.name} lie elsewhere than volume {image.name}: their affine differs, the origin by {offset}"
            " mm in x, y, z; resample them onto the image"
        )
    if not mirrored:
        return labels
    return Volume(
        Mirrored(labels, mirrored),
        name=labels.name,
        source=labels.source,
        voxel_size=labels.voxel_size,
        unit=labels.unit,
        affine=image.affine,
    )


def _mirrored_axes(step: NDArray[np.floating], shape: tuple[int, int, int]) -> tuple[int, ...] | None:
    """Return along which of z, y, x labels run the other way, None if they lie on other voxels.

    Parameters
    ----------
    step : ndarray of shape (4, 4), float64
        From indices (x, y, z) of the labels to those of the image.
    shape : tuple of int
        (z, y, x) of both.
    """
    lengths = np.array(shape[::-1])
    signs = np.sign(np.diag(step)[:3])
    expected = np.diag([*signs, 1.0])
    expected[:3, 3] = np.where(signs < 0, lengths - 1, 0)
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*(lengths - 1), 1]
    if not np.abs(corners @ (step - expected).T).max() < _TOLERANCE:
        return None
    return tuple(sorted(2 - int(axis) for axis in np.flatnonzero(signs < 0)))
