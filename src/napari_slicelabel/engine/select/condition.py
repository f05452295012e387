"""Slices that nobody should be asked to paint: empty ones, and those unlike their neighbours."""

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.engine.events import Progress
from napari_slicelabel.engine.select.thumbnails import small_picture
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.data.boxes import Axis
    from napari_slicelabel.engine.select.candidates import Stack
    from napari_slicelabel.engine.select.request import Request, Slice

EMPTY = "empty"
UNLIKE = "unlike its neighbours"

_SIDES = ((1, 1), (1, 2), (2, 1))
"""Slices before and after one: two damaged slices in a row have a good one next to them on one side only."""

_SHALLOW = 5
"""With fewer slices there is no telling what is usual."""

# A missing section, a fold, a slice from elsewhere: so many robust deviations below what neighbours usually agree.
_OUTLIER = 8.0
_LEAST_FALL = 0.2
_SAMPLE = 33

_REMEMBERED = 8
_SHOWN = 10


class Condition:
    """What is wrong with the slices of a stack, of which as few are looked at as the question needs.

    Parameters
    ----------
    depth : int
        How many slices the stack has.
    picture : callable
        Returns the thumbnail of a slice, shape (c, h, w), uint8.
    """

    def __init__(self, depth: int, picture: "Callable[[int], NDArray[np.uint8]]") -> None:
        self._depth, self._picture = depth, picture
        self._contrast = lru_cache(_REMEMBERED)(self._measure)

    def problem(self, index: int) -> str:
        """Return what is wrong with a slice.

        Returns
        -------
        str
            ``empty``: one value everywhere. ``unlike its neighbours``: it correlates with slices on both sides far
            less than they correlate with each other, as a missing section, a fold or a scratch does; two such slices
            in a row are found too. The empty string: nothing.

        Notes
        -----
        Correlations must fall by 0.2, and by 8 robust deviations more than they do at 33 places spread over the stack.
        These are looked at only when something fell by 0.2. The first and the last slice have one side and are not
        compared.
        """
        if not self._contrast(index).any():
            return EMPTY
        if self._depth < _SHALLOW or not 0 < index < self._depth - 1:
            return ""
        fall = self._fall(index)
        return UNLIKE if fall > _LEAST_FALL and fall > self._usual else ""

    def _measure(self, index: int) -> "NDArray[np.float32]":
        """Return the picture less its mean, of length 1; zeros if it is empty."""
        flat = self._picture(index).astype(np.float32).ravel()
        flat -= flat.mean()
        length = np.linalg.norm(flat)
        return flat / length if length > 0 else np.zeros_like(flat)

    def _fall(self, index: int) -> float:
        """Return how much better slices on both sides agree with each other than the more similar one with this."""
        falls = []
        for before, after in _SIDES:
            if index - before >= 0 and index + after < self._depth:
                one, this, other = map(self._contrast, (index - before, index, index + after))
                falls.append(float(one @ other) - max(float(one @ this), float(this @ other)))
        return max(falls)

    @cached_property
    def _usual(self) -> float:
        """What a fall must exceed in this stack."""
        places = np.unique(np.linspace(1, self._depth - 2, _SAMPLE).round().astype(int))
        falls = np.array([self._fall(index) for index in places.tolist()])
        middle = float(np.median(falls))
        return middle + _OUTLIER * 1.4826 * float(np.median(np.abs(falls - middle)))


class Inspection:
    """Looks at slices that a selector chose, before they are proposed.

    Parameters
    ----------
    request : Request
        Project and options; with ``damaged=keep`` nothing is looked at.
    """

    def __init__(self, request: "Request") -> None:
        self._request = request
        self._conditions: dict[tuple[str, str], Condition] = {}
        self._found: dict[Slice, str] = {}

    def damaged(self, chosen: "Sequence[Slice]") -> "Generator[Progress, None, frozenset[Slice]]":
        """Return those of some slices that should not be proposed; reads them and their neighbours, once.

        Yields
        ------
        Progress
            Before each slice that is read.

        Raises
        ------
        InputError
            The image holds NaN, or is constant.
        StorageError
            The image cannot be read.
        """
        if self._request.options.damaged == "keep":
            return frozenset()
        unseen = [item for item in chosen if item not in self._found]
        for number, (volume, ref) in enumerate(unseen):
            yield Progress("check slices", number, len(unseen))
            self._found[volume, ref] = self._condition(volume, ref.axis).problem(ref.index)
        return frozenset(item for item in chosen if self._found[item])

    def _condition(self, volume: str, axis: "Axis") -> Condition:
        """Return the condition of a stack; what was looked at is remembered."""
        if (volume, axis) not in self._conditions:
            image = self._request.project.volume(volume)
            self._conditions[volume, axis] = Condition(
                image.depth(axis), lambda index: small_picture(image, SliceRef(axis, index))
            )
        return self._conditions[volume, axis]

    def notes(self) -> tuple[str, ...]:
        """Return what was skipped, for people."""
        notes: list[str] = []
        for stack in self._request.candidates.stacks:
            bad = {
                ref.index: problem
                for (volume, ref), problem in self._found.items()
                if problem and (volume, ref.axis) == (stack.volume, stack.axis)
            }
            notes += skipped_notes(stack, bad)
        return tuple(notes)


def skipped_notes(stack: "Stack", problems: Mapping[int, str]) -> list[str]:
    """Return which slices of a stack were skipped, a line for each of the reasons."""
    notes = []
    for reason in sorted(set(problems.values())):
        which = sorted(index for index, problem in problems.items() if problem == reason)
        shown = ", ".join(map(str, which[:_SHOWN])) + (f", ... ({len(which)} in all)" if len(which) > _SHOWN else "")
        notes.append(f"{stack.volume} {stack.axis}: skipped {shown} ({reason})")
    return notes


def check_budget(budget: int, count: int) -> None:
    """Raise InputError where fewer slices can be proposed than wanted."""
    if count < budget:
        raise InputError(
            f"budget {budget}: only {count} slices are neither annotated, skipped, empty nor damaged; give at most"
            " that many, or damaged=keep"
        )
