"""What our arrays for layers have in common: they look like a volume, and are never in memory as a whole."""

from __future__ import annotations

import inspect
import operator
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from napari_slicelabel.data.boxes import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

LARGEST_READ = 256 * 2**20
"""Bytes that one read may bring into memory."""

_SLICER = "napari.layers._scalar_field._slice"
"""The module in which napari reads the plane that is to be drawn."""

# What would change an array in place would change a copy here.
_IN_PLACE = {"byteswap", "fill", "itemset", "partition", "put", "resize", "setfield", "setflags", "sort"}
_METHODS = frozenset(
    name for name in dir(np.ndarray) if name[0] != "_" and callable(getattr(np.ndarray, name)) and name not in _IN_PLACE
)


class Lazy(NDArrayOperatorsMixin):
    """What computes like an array and is read when somebody looks at its values.

    numpy's functions, its operators and the methods of its arrays work on a copy in memory.
    """

    ndim: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any] = np.dtype(np.uint8)

    def _values(self) -> NDArray[Any]:
        """Return all of it."""
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all of it as an array in memory."""
        if copy is False:
            raise ValueError(f"{self!r} is not in memory; ask for a copy")
        return self._values().astype(dtype or self.dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Compute with the values."""
        if any(isinstance(item, Lazy) for item in kwargs.get("out", ())):
            return NotImplemented
        values = [np.asarray(item) if isinstance(item, Lazy) else item for item in inputs]
        return getattr(ufunc, method)(*values, **kwargs)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., Any]:
            """Return a method of numpy's arrays, which reads the values when it is called."""
            if name not in _METHODS:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return lambda *args, **kwargs: getattr(np.asarray(self), name)(*args, **kwargs)

    @property
    def T(self) -> NDArray[Any]:
        """The values, turned around."""
        return np.asarray(self).T

    @property
    def itemsize(self) -> int:
        """Bytes of one value."""
        return self.dtype.itemsize

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all values, were they in memory."""
        return self.size * self.itemsize

    def __len__(self) -> int:
        """Return the length of the first axis."""
        return self.shape[0]


class VirtualArray(Lazy):
    """A volume as a layer wants it. Any key of numpy's is answered with the truth, up to `LARGEST_READ` at a time.

    What napari reads for drawing is an exception: a plane that takes long to read is drawn empty until it is there, so
    that nobody waits for it.

    Parameters
    ----------
    shape : tuple of int
        (z, y, x).

    Attributes
    ----------
    what : str
        Its name in the message to whoever wants too much of it.
    dtype : numpy.dtype
        uint8.
    """

    ndim = 3
    shape: tuple[int, int, int]
    what: ClassVar[str] = "the volume"

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def __getitem__(self, key: Any) -> Any:
        """Return what numpy would; of a single int a plane that is read when it is looked at."""
        if isinstance(key, int | np.integer) and not isinstance(key, bool):
            # napari asks for ``data[0]`` at every stamp, and only for its dtype
            return LazyPlane(self, _checked(key, self.shape[0]))
        box, inside = key_within(key, self.shape)
        if _asked_by(_SLICER):
            return self._drawn(box)[inside]
        return self._answer(box, inside)

    def _read(self, box: Box) -> NDArray[np.uint8]:
        """Return a box as it is; wait for it."""
        raise NotImplementedError

    def _drawn(self, box: Box) -> NDArray[np.uint8]:
        """Return a box for drawing, now; what is not in memory may be empty."""
        raise NotImplementedError

    def _values(self) -> NDArray[Any]:
        values: NDArray[Any] = self._answer(Box.whole(self.shape), (slice(None),) * 3)
        return values

    def _answer(self, box: Box, inside: tuple[Any, ...]) -> Any:
        if box.size <= LARGEST_READ:
            return self._read(box)[inside]
        if is_points(inside):
            return self._points(box, inside)
        if not any(isinstance(part, np.ndarray) for part in inside):
            return self._sampled(box, inside)
        raise self.too_large(box.size)

    def _sampled(self, box: Box, inside: tuple[Any, ...]) -> NDArray[np.uint8]:
        """Return what ints and slices with steps take out of a large box, read plane by plane."""
        parts = [part for part in inside if part is not None]
        rows, h, w = (slice(part, part + 1) if isinstance(part, int) else part for part in parts)
        chosen = range(*box.slices[0].indices(self.shape[0]))[rows]
        shape = (len(chosen), *np.broadcast_to(np.uint8(0), box.shape[1:])[h, w].shape)
        if prod(shape) > LARGEST_READ:
            raise self.too_large(prod(shape))
        values = np.empty(shape, np.uint8)
        for number, index in enumerate(chosen):
            values[number] = self._read(Box((index, *box.start[1:]), (index + 1, *box.stop[1:])))[0, h, w]
        return values[tuple(0 if isinstance(p, int) else None if p is None else slice(None) for p in inside)]

    def _points(self, box: Box, inside: tuple[Any, ...]) -> NDArray[np.uint8]:
        """Return the voxels that three arrays name, read plane by plane."""
        z, y, x = (np.asarray(part) for part in np.broadcast_arrays(*inside))
        values = np.empty(z.shape, np.uint8)
        for index in np.unique(z).tolist():
            chosen = z == index
            part, (_, h, w) = key_within((index, y[chosen], x[chosen]), box.shape)
            start, stop = (
                tuple(a + b for a, b in zip(corner, box.start, strict=True)) for corner in (part.start, part.stop)
            )
            values[chosen] = self._read(Box(start, stop))[0, h, w]
        return values

    def too_large(self, nbytes: int) -> TypeError:
        """Return the error for whoever wants more than fits."""
        return TypeError(
            f"{self.what} is not loaded as a whole: that takes {nbytes / 2**30:.1f} GB, and {LARGEST_READ / 2**30:.2f}"
            " GB is the limit; read a part, such as data[12, :, :], or write all to a file (Review & export, or"
            " File > Save as .ome.zarr)"
        )


class LazyPlane(Lazy):
    """The plane that ``data[3]`` stands for."""

    ndim = 2

    def __init__(self, source: VirtualArray, index: int) -> None:
        self._source = source
        self._index = index
        self.shape = source.shape[1:]

    def __repr__(self) -> str:
        """Return what it is a plane of."""
        return f"<plane {self._index} of {self._source!r}>"

    def _values(self) -> NDArray[Any]:
        plane: NDArray[Any] = self._source[self._index, :, :]
        return plane

    def __getitem__(self, key: Any) -> Any:
        """Return the part that a key names."""
        return self._values()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write to the volume, where that can be written to."""
        values = self._values()
        values[key] = value
        self._source[self._index, :, :] = values  # type: ignore[index]


def key_within(key: Any, shape: Sequence[int]) -> tuple[Box, tuple[Any, ...]]:
    """Return the box that a key of numpy's touches, and the key relative to that box.

    Parameters
    ----------
    key : int, slice, ..., None, array-like of int or bool, or a tuple of them
        As numpy takes it.
    shape : sequence of int
        Of the array.

    Returns
    -------
    Box, tuple
        ``array[key]`` is ``array[box.slices][relative]``. Masks have become arrays of indices.

    Raises
    ------
    IndexError
        Too many indices, one outside of the array, or one that is no index.
    """
    start: list[int] = []
    stop: list[int] = []
    inside: list[Any] = []
    for part in _all_axes(key, shape):
        if part is None:
            inside.append(None)
            continue
        low, high, relative = _along(part, shape[len(start)])
        start.append(low)
        stop.append(high)
        inside.append(relative)
    return Box(tuple(start), tuple(stop)), tuple(inside)


def is_points(inside: tuple[Any, ...]) -> bool:
    """Return whether a relative key names voxels one by one."""
    return len(inside) == 3 and all(isinstance(part, np.ndarray) for part in inside)


def _all_axes(key: Any, shape: Sequence[int]) -> list[Any]:
    """Return one part for each axis, besides those that are None."""
    parts: list[Any] = []
    for part in key if isinstance(key, tuple) else (key,):
        is_plain = part is None or part is Ellipsis or isinstance(part, slice | int | np.integer)
        parts.append(part if is_plain and not isinstance(part, bool) else np.asarray(part))
    used = sum(_axes_of(part) for part in parts)
    dots = [number for number, part in enumerate(parts) if part is Ellipsis]
    if used > len(shape) or len(dots) > 1:
        raise IndexError(f"too many indices: the array has {len(shape)} axes")
    at = dots[0] if dots else len(parts)
    parts[at : at + len(dots)] = [slice(None)] * (len(shape) - used)
    return _without_masks(parts, shape)


def _axes_of(part: Any) -> int:
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, np.ndarray) and part.dtype == bool else 1


def _without_masks(parts: list[Any], shape: Sequence[int]) -> list[Any]:
    plain: list[Any] = []
    axis = 0
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype == bool:
            if part.ndim == 0 or part.shape != tuple(shape[axis : axis + part.ndim]):
                raise IndexError(f"a mask of shape {part.shape} does not fit an array of shape {tuple(shape)}")
            plain += np.nonzero(part)
        else:
            plain.append(part)
        axis += _axes_of(part)
    return plain


def _along(part: Any, n: int) -> tuple[int, int, Any]:
    """Return first and one past the last index that a part of a key touches, and the part relative to the first."""
    if isinstance(part, slice):
        chosen = range(n)[part]
        return min(chosen, default=0), max(chosen, default=-1) + 1, slice(None, None, chosen.step)
    if not isinstance(part, np.ndarray):
        index = _checked(part, n)
        return index, index + 1, 0
    if part.size == 0:
        return 0, 0, part.astype(np.intp)
    if part.dtype.kind not in "iu":
        raise IndexError(f"an index of type {part.dtype}; expected integers, a mask or slices")
    low, high = _checked(part.min(), n), _checked(part.max(), n)
    indices = part.astype(np.intp) % n
    low, high = int(indices.min()), int(indices.max())
    return low, high + 1, indices - low


def _asked_by(module: str) -> bool:
    """Return whether the caller of the caller is code of a module."""
    frame = inspect.currentframe()
    for _ in range(2):
        frame = frame.f_back if frame is not None else None
    return frame is not None and frame.f_globals.get("__name__") == module


def _checked(part: Any, n: int) -> int:
    index = operator.index(part)
    if not -n <= index < n:
        raise IndexError(f"index {index}: the axis has {n} slices")
    return index % n
