"""Where in a volume: a slice (`SliceRef`) and an axis-aligned block (`Box`)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, Self

from napari_slicelabel.errors import InputError

Axis = Literal["z", "y", "x"]
AXES: tuple[Axis, ...] = ("z", "y", "x")


@dataclass(frozen=True, slots=True, order=True)
class SliceRef:
    """One 2D section of a volume.

    Attributes
    ----------
    axis : {"z", "y", "x"}
        The axis that the section is perpendicular to.
    index : int
        Position along that axis, in voxels from 0.

    Raises
    ------
    InputError
        The axis is none of z, y, x, or the index is negative.

    Examples
    --------
    >>> ref = SliceRef("y", 12)
    >>> str(ref), ref.axis_number, ref.box((5, 20, 30)).shape
    ('y12', 1, (5, 1, 30))
    """

    axis: Axis
    index: int

    def __post_init__(self) -> None:
        """Check axis and index."""
        if self.axis not in AXES:
            raise InputError(f"axis {self.axis!r}: expected one of z, y, x")
        if self.index < 0:
            raise InputError(f"slice {self.axis}{self.index}: the index counts from 0 and cannot be negative")

    def __str__(self) -> str:
        """Return the short name, such as ``z12``."""
        return f"{self.axis}{self.index}"

    @property
    def axis_number(self) -> int:
        """0, 1 or 2 for z, y, x."""
        return AXES.index(self.axis)

    def box(self, shape: Sequence[int]) -> "Box":
        """Return the block of thickness 1 that the slice is.

        Parameters
        ----------
        shape : sequence of 3 int
            Shape (z, y, x) of the volume.

        Returns
        -------
        Box
            The whole plane at `index`.

        Raises
        ------
        InputError
            The index lies outside `shape`.
        """
        number = self.axis_number
        if self.index >= shape[number]:
            raise InputError(f"slice {self}: axis {self.axis} has {shape[number]} slices, 0 to {shape[number] - 1}")
        start, stop = [0, 0, 0], list(shape)
        start[number], stop[number] = self.index, self.index + 1
        return Box(tuple(start), tuple(stop))


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned block of voxels, ``start`` included and ``stop`` excluded.

    Any number of dimensions; a box whose stop equals its start along some axis is empty. Coordinates may be
    negative (a box grown over the border); `clip` brings it back.

    Attributes
    ----------
    start, stop : tuple of int
        First voxel, and one past the last voxel, along each axis.

    Raises
    ------
    InputError
        The two differ in length, or stop lies before start.

    Examples
    --------
    >>> box = Box((0, 0), (5, 4))
    >>> [tile.shape for tile in box.tiles((3, 4))]
    [(3, 4), (2, 4)]
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that the corners belong together."""
        if len(self.start) != len(self.stop):
            raise InputError(f"box from {self.start} to {self.stop}: both corners need the same number of axes")
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise InputError(f"box from {self.start} to {self.stop}: it ends before it begins")

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Self:
        """Return the box from the origin that covers `shape`."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels along each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index for an array. Only meaningful without negative coordinates (see `clip`)."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def clip(self, shape: Sequence[int]) -> "Box":
        """Return the part that lies inside an array of `shape`; empty when nothing does."""
        start = tuple(min(max(a, 0), n) for a, n in zip(self.start, shape, strict=True))
        stop = tuple(min(max(b, 0), n) for b, n in zip(self.stop, shape, strict=True))
        return Box(start, stop)

    def grow(self, margin: int | Sequence[int]) -> "Box":
        """Return the box with `margin` voxels more on both sides, one number or one per axis; not clipped."""
        margins = (margin,) * len(self.start) if isinstance(margin, int) else tuple(margin)
        return Box(
            tuple(a - m for a, m in zip(self.start, margins, strict=True)),
            tuple(b + m for b, m in zip(self.stop, margins, strict=True)),
        )

    def intersect(self, other: "Box") -> "Box":
        """Return the voxels in both boxes; an empty box (at a corner of this one) when there are none."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(max(s, min(a, b)) for s, a, b in zip(start, self.stop, other.stop, strict=True))
        return Box(start, stop)

    def contains(self, other: "Box") -> bool:
        """Return whether every voxel of `other` lies in this box. An empty box lies in every box."""
        return other.size == 0 or self.intersect(other) == other

    def tiles(self, size: Sequence[int]) -> Iterator["Box"]:
        """Yield boxes of at most `size` that cover every voxel exactly once, last axis fastest.

        Parameters
        ----------
        size : sequence of int
            Largest tile along each axis, in voxels, at least 1. Tiles at the end of an axis are smaller.

        Yields
        ------
        Box
            The next tile. An empty box has none.

        Raises
        ------
        InputError
            `size` has another number of axes, or a number below 1.
        """
        if len(size) != len(self.start) or min(size, default=1) < 1:
            raise InputError(f"tile size {tuple(size)}: expected {len(self.start)} numbers of at least 1")
        ranges = (range(a, b, n) for a, b, n in zip(self.start, self.stop, size, strict=True))
        for corner in product(*ranges):
            far = tuple(min(c + n, b) for c, n, b in zip(corner, size, self.stop, strict=True))
            yield Box(corner, far)
