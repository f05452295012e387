"""What the strip under the canvas shows: plain data, and what of it a pixel column gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class SliceStatus:
    """What is true of a slice, as bits: several may be."""

    # bare numbers and no IntFlag: numpy takes those for int64, and `status[3] |= ...` on uint8 would raise
    NONE: Final = 0
    PARTLY: Final = 1
    COMPLETE: Final = 2
    PROPOSED: Final = 4
    PREDICTED: Final = 8
    REVIEWED: Final = 16
    STALE: Final = 32


WORDS = {
    SliceStatus.COMPLETE: "painted, complete",
    SliceStatus.PARTLY: "painted, not complete",
    SliceStatus.PROPOSED: "proposed",
    SliceStatus.PREDICTED: "predicted",
    SliceStatus.REVIEWED: "reviewed",
    SliceStatus.STALE: "stale (painted since)",
}


class Label(IntEnum):
    """What the upper lane shows; the higher one wins a pixel column."""

    PAINTED = 0
    CHECKED = 1
    MACHINE = 2
    MISSING = 3
    OUTDATED = 4


class Mark(IntEnum):
    """What the lower lane shows; the higher one wins a pixel column."""

    BLANK = 0
    DONE = 1
    BEGUN = 2
    TO_DO = 3


def _label_rank(status: int) -> Label:
    if status & SliceStatus.COMPLETE and status & SliceStatus.REVIEWED:
        return Label.CHECKED
    if status & SliceStatus.COMPLETE:
        return Label.PAINTED
    if status & SliceStatus.STALE:
        return Label.OUTDATED
    if status & SliceStatus.REVIEWED:
        return Label.CHECKED
    return Label.MACHINE if status & SliceStatus.PREDICTED else Label.MISSING


def _mark_rank(status: int) -> Mark:
    if status & SliceStatus.COMPLETE:
        return Mark.DONE
    if status & SliceStatus.PARTLY:
        return Mark.BEGUN
    return Mark.TO_DO if status & SliceStatus.PROPOSED else Mark.BLANK


LABEL_RANKS = np.array([_label_rank(status) for status in range(64)], np.uint8)
MARK_RANKS = np.array([_mark_rank(status) for status in range(64)], np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class StripSnapshot:
    """What the strip shows.

    Attributes
    ----------
    axis : str
        Name of the axis, for the words.
    status : ndarray of shape (n,), uint8
        `SliceStatus` of each slice.
    confidence : ndarray of shape (n,), float
        Expected Dice of each slice, 0 to 1; nan where there is none.
    current : int
        The slice on the canvas.
    span : tuple of int, optional
        First slice of the range to work on, and one past its last; None for all.
    stops : frozenset of int
        Slices that propagation must not pass.
    origins : sequence of str
        Who labelled each slice (``human``, ``round 3``); empty if not known.
    """

    axis: str
    status: NDArray[np.uint8]
    confidence: NDArray[np.floating]
    current: int = 0
    span: tuple[int, int] | None = None
    stops: frozenset[int] = field(default_factory=frozenset)
    origins: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.status.ndim != 1 or self.status.shape != self.confidence.shape:
            raise ValueError(f"status {self.status.shape} and confidence {self.confidence.shape} must be one per slice")

    @property
    def depth(self) -> int:
        """How many slices there are."""
        return len(self.status)

    @property
    def start(self) -> int:
        """First slice of the range."""
        return self.span[0] if self.span else 0

    @property
    def stop(self) -> int:
        """One past the last slice of the range."""
        return self.span[1] if self.span else self.depth

    def describe(self, first: int, last: int) -> str:
        """Return in words what the slices from `first` to `last`, both included, are."""
        status, confidence = self.status[first : last + 1], self.confidence[first : last + 1]
        known = confidence[np.isfinite(confidence)]
        if first == last:
            parts = [words for flag, words in WORDS.items() if status[0] & flag] or ["no labels"]
            if self.origins and self.origins[first]:
                parts.append(f"by {self.origins[first]}")
            if len(known):
                parts.append(f"expected Dice {known[0]:.2f}")
            if first in self.stops:
                parts.append("stop")
            return f"{self.axis} {first}: {', '.join(parts)}"
        parts = [f"{count} {words}" for flag, words in WORDS.items() if (count := int(np.count_nonzero(status & flag)))]
        if len(known):
            parts.append(f"expected Dice {known.min():.2f} to {known.max():.2f}")
        return f"{self.axis} {first}-{last}: {', '.join(parts) or 'no labels'}"


class Columns(NamedTuple):
    """What the pixel columns of the strip show, all of length w.

    `labels` and `marks` are the highest ranks among the slices of a column; `mean` and `low` the mean and the least
    expected Dice among them, nan where none has one.
    """

    labels: NDArray[np.uint8]
    marks: NDArray[np.uint8]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]


def columns(snapshot: StripSnapshot, width: int) -> Columns:
    """Return what each of `width` pixel columns shows; columns show the same slice where there are more of them."""
    starts = np.arange(width) * snapshot.depth // width
    # where a start is repeated, reduceat returns the one element: what a column narrower than a slice needs
    labels = np.maximum.reduceat(LABEL_RANKS[snapshot.status & 63], starts)
    marks = np.maximum.reduceat(MARK_RANKS[snapshot.status & 63], starts)
    confidence = snapshot.confidence.astype(np.float64)
    known = np.isfinite(confidence)
    count = np.add.reduceat(known.astype(np.float64), starts)
    total = np.add.reduceat(np.where(known, confidence, 0.0), starts)
    mean = np.divide(total, count, out=np.full(width, np.nan), where=count > 0)
    return Columns(labels, marks, mean, np.fmin.reduceat(confidence, starts))
