"""The slices that may be proposed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from napari_slicelabel.data.boxes import AXES, Axis, SliceRef
from napari_slicelabel.engine.select.options import NO_OPTIONS, SelectOptions

if TYPE_CHECKING:
    from napari_slicelabel.data.project import Project


@dataclass(frozen=True, slots=True)
class Stack:
    """The slices of one volume along one axis.

    Attributes
    ----------
    volume : str
        Name of the volume.
    axis : {"z", "y", "x"}
        Axis that the slices are perpendicular to.
    depth : int
        How many slices there are.
    free : tuple of int
        Those that may be proposed: inside `span`, neither annotated nor skipped, sorted.
    span : tuple of int, optional
        First slice, and one past the last, of those that are to be covered; by default all.
    annotated : frozenset of int
        Those that somebody annotated.
    """

    volume: str
    axis: Axis
    depth: int
    free: tuple[int, ...]
    span: tuple[int, int] | None = None
    annotated: frozenset[int] = frozenset()

    @property
    def indices(self) -> range:
        """The slices that are to be covered."""
        return range(*(self.span or (0, self.depth)))

    def ref(self, index: int) -> tuple[str, SliceRef]:
        """Return volume and slice."""
        return self.volume, SliceRef(self.axis, index)


@dataclass(frozen=True, slots=True)
class Candidates:
    """All stacks to choose from."""

    stacks: tuple[Stack, ...]

    @classmethod
    def of(
        cls, project: "Project", volumes: Sequence[str], axes: Sequence[Axis], options: SelectOptions = NO_OPTIONS
    ) -> Self:
        """Return the stacks of some volumes of a project along some axes.

        Raises
        ------
        InputError
            Unknown volume, or a range that reaches outside a stack.
        """
        stacks = []
        for name in volumes:
            shape, annotation = project.record(name).shape, project.annotation(name)
            for axis in axes:
                depth, taken = shape[AXES.index(axis)], frozenset(annotation.annotated(axis))
                span = options.bounds(depth, f"{name} along {axis}")
                left_out = taken | options.skipped(name, axis)
                free = tuple(index for index in range(*span) if index not in left_out)
                stacks.append(Stack(name, axis, depth, free, span, taken))
        return cls(tuple(stacks))

    def without(self, slices: Collection[tuple[str, SliceRef]]) -> Self:
        """Return the same stacks, some slices of which may not be proposed any more."""
        return type(self)(
            tuple(
                replace(stack, free=tuple(index for index in stack.free if stack.ref(index) not in slices))
                for stack in self.stacks
            )
        )

    @property
    def count(self) -> int:
        """How many slices may be proposed."""
        return sum(len(stack.free) for stack in self.stacks)
