"""Which slices a run fills, and from which annotated slices each is reached: stop slices cut a stack into pieces."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NO_STOPS = "none"
WHOLE = "all"


@dataclass(frozen=True, slots=True)
class Piece:
    """Slices that are filled from the same annotated ones.

    Attributes
    ----------
    slices : range
        The slices to fill, annotated ones among them.
    anchors : tuple of int
        The annotated slices that labels may come from, sorted: those inside, and annotated stop slices at the ends.
    """

    slices: range
    anchors: tuple[int, ...]

    def distance(self, index: int) -> int:
        """Return how far away the nearest anchor is, in slices."""
        return min(abs(index - anchor) for anchor in self.anchors)


def read_range(text: str) -> tuple[int, int] | None:
    """Return the two numbers of a text such as ``10:50``; None for ``all``.

    Raises
    ------
    ValueError
        The text is something else.
    """
    if text == WHOLE:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"expected {WHOLE}, or a:b with a below b, such as 10:50")
    return int(match[1]), int(match[2])


def range_bounds(text: str, depth: int, what: str) -> tuple[int, int]:
    """Return first slice and one past the last slice that a text names in a stack of `depth` slices, called `what`.

    Raises
    ------
    InputError
        It reaches outside the stack.
    """
    start, stop = read_range(text) or (0, depth)
    if stop > depth:
        raise InputError(f"range={text}: {what} has {depth} slices, so give a:b with b at most {depth}")
    return start, stop


def read_stops(text: str) -> tuple[int, ...]:
    """Return the slices that a text such as ``12, 40`` names, sorted; none for ``none``.

    Raises
    ------
    ValueError
        The text is something else.
    """
    if text.strip() == NO_STOPS:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+", part) for part in parts):
        raise ValueError(f"expected {NO_STOPS}, or slice numbers with commas between them, such as 12, 40")
    return tuple(sorted({int(part) for part in parts}))


def write_stops(stops: Iterable[int]) -> str:
    """Return the text that `read_stops` reads."""
    return ", ".join(map(str, sorted(set(stops)))) or NO_STOPS


def pieces(span: range, annotated: Sequence[int], stops: Sequence[int] = ()) -> tuple[Piece, ...]:
    """Cut a stack where propagation must not pass.

    Parameters
    ----------
    span : range
        The slices to fill.
    annotated : sequence of int
        Those that a human painted or completed.
    stops : sequence of int
        Slices that labels do not pass. One that is annotated speaks for its neighbours on both sides, but does not
        begin a piece: beyond it nothing is filled unless there is another annotated slice.

    Returns
    -------
    tuple of Piece
        In order; every slice is in at most one. Pieces without an annotated slice of their own are left out. Annotated
        stop slices are pieces by themselves.

    Examples
    --------
    >>> [piece.slices for piece in pieces(range(10), [2, 8], stops=[4])]
    [range(0, 4), range(5, 10)]
    >>> pieces(range(10), [2, 4], stops=[4])
    (Piece(slices=range(0, 4), anchors=(2, 4)), Piece(slices=range(4, 5), anchors=(4,)))
    """
    inside = sorted(index for index in set(annotated) if index in span)
    ends = [span.start - 1, *sorted(stop for stop in set(stops) if stop in span), span.stop]
    found: list[Piece] = []
    for below, above in pairwise(ends):
        if below in inside:
            found.append(Piece(range(below, below + 1), (below,)))
        own = tuple(index for index in inside if below < index < above)
        if own:
            around = tuple(index for index in inside if below <= index <= above)
            found.append(Piece(range(below + 1, above), around))
    return tuple(found)
