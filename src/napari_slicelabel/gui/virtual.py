"""What our arrays for layers have in common: they look like a volume, and are never in memory as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from napari_slicelabel.data.boxes import Box

if TYPE_CHECKING:
    from collections.abc import Sequence


class VirtualArray:
    """What a layer asks of an array besides its values, and nothing by which somebody could load it by accident.

    Parameters
    ----------
    shape : tuple of int
        (z, y, x).

    Attributes
    ----------
    what : str
        Its name in the message to whoever wants all of it.
    dtype : numpy.dtype
        uint8.
    """

    ndim = 3
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    what: ClassVar[str] = "the volume"

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def __array__(self, *_: object, **__: object) -> NoReturn:
        """Refuse: the whole volume may not fit into memory."""
        raise TypeError(f"{self.what} is not loaded as a whole; index it with a slice, such as data[12, :, :]")

    @property
    def size(self) -> int:
        """Number of voxels."""
        z, y, x = self.shape
        return z * y * x

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels, were they in memory."""
        return self.size

    def __len__(self) -> int:
        """Return the number of slices along z."""
        return self.shape[0]


def basic_index(key: Any, shape: Sequence[int]) -> tuple[Box, tuple[Any, ...]]:
    """Return the box that a key of ints and slices touches, and the key relative to that box."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(shape) - len(parts) + 1)
    parts += [slice(None)] * (len(shape) - len(parts))
    if len(parts) != len(shape):
        raise IndexError(f"too many indices: the array has {len(shape)} axes")
    start, stop, inside = [], [], []
    for part, n in zip(parts, shape, strict=True):
        chosen = range(n)[part if isinstance(part, slice) else slice(_index(part, n), _index(part, n) + 1)]
        start.append(min(chosen, default=0))
        stop.append(max(chosen, default=-1) + 1)
        step = chosen.step
        inside.append(slice(None, None, step) if isinstance(part, slice) else 0)
    return Box(tuple(start), tuple(stop)), tuple(inside)


def _index(part: Any, n: int) -> int:
    index = int(part)
    if not -n <= index < n:
        raise IndexError(f"index {index}: the axis has {n} slices")
    return index % n
