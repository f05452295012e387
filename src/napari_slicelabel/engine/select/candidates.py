"""The slices that may be proposed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from napari_slicelabel.data.boxes import AXES, Axis, SliceRef

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
        Those that nobody annotated, sorted.
    """

    volume: str
    axis: Axis
    depth: int
    free: tuple[int, ...]

    def ref(self, index: int) -> tuple[str, SliceRef]:
        """Return volume and slice."""
        return self.volume, SliceRef(self.axis, index)


@dataclass(frozen=True, slots=True)
class Candidates:
    """All stacks to choose from."""

    stacks: tuple[Stack, ...]

    @classmethod
    def of(cls, project: "Project", volumes: Sequence[str], axes: Sequence[Axis]) -> Self:
        """Return the stacks of some volumes of a project along some axes.

        Raises
        ------
        InputError
            Unknown volume.
        """
        stacks = []
        for name in volumes:
            shape, annotation = project.record(name).shape, project.annotation(name)
            for axis in axes:
                depth, taken = shape[AXES.index(axis)], set(annotation.annotated(axis))
                free = tuple(index for index in range(depth) if index not in taken)
                stacks.append(Stack(name, axis, depth, free))
        return cls(tuple(stacks))

    @property
    def count(self) -> int:
        """How many slices may be proposed."""
        return sum(len(stack.free) for stack in self.stacks)
