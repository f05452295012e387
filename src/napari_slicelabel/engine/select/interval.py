"""Equally spaced slices: what people do without help."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from napari_slicelabel.data.boxes import SliceRef
    from napari_slicelabel.engine.select.candidates import Candidates


def interval(candidates: "Candidates", budget: int, rng: "np.random.Generator") -> list[tuple[str, "SliceRef"]]:
    """Return equally spaced slices, those first that lie farthest from all before them.

    Parameters
    ----------
    candidates : Candidates
        The stacks. Each gets a share of the budget in proportion to its free slices.
    budget : int
        How many slices, at most as many as there are.
    rng : numpy.random.Generator
        Not used: the answer is always the same.

    Returns
    -------
    list of (str, SliceRef)
        Of the stacks in turn, so that every volume has its first slice early.

    Notes
    -----
    A stack of D slices with a share of K is cut into K equal parts, of which the middles are taken. A middle that is
    not free (annotated, skipped, damaged) gives way to the nearest free slice, the lower one of two.
    """
    shares = equal_shares([len(stack.free) for stack in candidates.stacks], budget)
    queues = [
        [stack.ref(index) for index in _spread(_middles(stack.indices, stack.free, share))]
        for stack, share in zip(candidates.stacks, shares, strict=True)
    ]
    turns = max(shares)
    return [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)]


def equal_shares(sizes: Sequence[int], budget: int) -> list[int]:
    """Return whole numbers that add up to `budget`, in proportion to `sizes`; largest remainders round up."""
    exact = [budget * size / sum(sizes) for size in sizes]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda k: shares[k] - exact[k])
    for k in by_remainder[: budget - sum(shares)]:
        shares[k] += 1
    return shares


def _middles(span: range, free: Sequence[int], share: int) -> list[int]:
    left = set(free)
    chosen = []
    for part in range(share):
        middle = span.start + (2 * part + 1) * len(span) // (2 * share)
        index = min(left, key=lambda other: (abs(other - middle), other))
        left.remove(index)
        chosen.append(index)
    return sorted(chosen)


def _spread(indices: Sequence[int]) -> list[int]:
    """Return the numbers reordered: the middle one, then always the one farthest from all before it."""
    if not indices:
        return []
    order = [indices[len(indices) // 2]]
    left = [index for index in indices if index != order[0]]
    while left:
        farthest = max(left, key=lambda index: min(abs(index - other) for other in order))
        order.append(farthest)
        left.remove(farthest)
    return order
