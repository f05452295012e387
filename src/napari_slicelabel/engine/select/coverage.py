"""Representative slices: greedy max cover by facility location, exact and lazy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

NORM = 4000
"""Length of a feature vector after rounding to whole numbers. A product of two is then below 2**24, so that float32
holds it, and every partial sum of it, exactly: no order of summation and no library changes a gain, and ties are ties.
"""

MOST_DIMENSIONS = 8192
"""Of a feature vector: beyond that, rounding could make one longer than 2**12."""

_BLOCK = 64
"""Candidates that are looked at together: one matrix product instead of many."""

_GROUPS = 24
"""Of slices, for the bounds of gains."""

_FULL = float(NORM) ** 2


@dataclass(frozen=True)
class Cover:
    """Slices that stand for all slices.

    Attributes
    ----------
    order : tuple of int
        The picks, best first.
    gains : tuple of float
        What each pick adds to `coverage`, never more than the one before it where all cost the same.
    coverage : tuple of float
        Mean over all slices of the similarity to the most similar of those picked so far or annotated before, 0 to 1.
    start : float
        Coverage by what was annotated before.
    represented_by : ndarray of shape (n,), int64
        For each slice the annotated slice or pick that is most similar to it, the earliest of several; -1 = none is
        similar at all.
    """

    order: tuple[int, ...]
    gains: tuple[float, ...]
    coverage: tuple[float, ...]
    start: float
    represented_by: "NDArray[np.int64]"


class Similarities:
    """Cosine similarity of slices, computed where it is asked for.

    Parameters
    ----------
    features : ndarray of shape (n, d), float
        One row per slice. Rows of zeros are similar to nothing, not even to themselves.
    positions : ndarray of shape (n,), float, optional
        Where the slices lie. With `reach`, similarity is multiplied by ``exp(-distance**2 / (2 reach**2))``.
    stacks : ndarray of shape (n,), int, optional
        Which stack a slice belongs to; positions of different stacks do not compare, and the factor is 1.
    reach : float
        Same unit as `positions`; 0 = positions do not count.

    Raises
    ------
    InputError
        Not a matrix, no rows, too many columns, or values that are not finite.

    Notes
    -----
    Negative similarities count as 0: a slice is never covered less than by nothing.
    """

    def __init__(
        self,
        features: "NDArray[np.floating]",
        *,
        positions: "NDArray[np.floating] | None" = None,
        stacks: "NDArray[np.integer] | None" = None,
        reach: float = 0.0,
    ) -> None:
        if features.ndim != 2 or len(features) == 0 or not 1 <= features.shape[1] <= MOST_DIMENSIONS:
            raise InputError(
                f"features of shape {features.shape}: expected a row per slice with 1 to {MOST_DIMENSIONS} columns"
            )
        if not np.isfinite(features).all():
            raise InputError("features hold values that are no numbers; the network that made them went astray")
        length = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
        scaled = np.divide(features, length, out=np.zeros(features.shape), where=length > 0)
        self._rows = np.rint(scaled * NORM).astype(np.float32)
        self._positions = None if positions is None or reach <= 0 else np.asarray(positions, np.float64)
        self._stacks = np.zeros(len(features), np.int64) if stacks is None else np.asarray(stacks)
        self._reach = reach

    def __len__(self) -> int:
        return len(self._rows)

    def to_all(self, indices: "NDArray[np.integer]") -> "NDArray[np.float32]":
        """Return similarities of some slices to all, shape (len(indices), n), float32: whole numbers, 0 to `NORM`²."""
        found: NDArray[np.float32] = self._rows[indices] @ self._rows.T
        np.maximum(found, 0, out=found)
        if self._positions is not None:
            apart = self._positions[indices][:, None] - self._positions[None]
            near = np.exp(-np.square(apart) / (2 * self._reach**2))
            near[self._stacks[indices][:, None] != self._stacks[None]] = 1.0
            found = np.rint(found * near).astype(np.float32)
        return found

    def bounds(self) -> "GainBounds":
        """Return what bounds gains without looking at every pair."""
        return GainBounds(self._rows)


class GainBounds:
    """Upper bounds of the gains of all slices, far cheaper than the gains.

    With x = sim - best, a gain is the sum over slices of max(x, 0) = (x + abs(x)) / 2, and the sum of abs(x) over a
    group of m slices is at most the root of m times the sum of x², by Cauchy and Schwarz. Sums of x and of x² over a
    group need only the group's mean and second moment. Groups are runs of consecutive slices: those look alike, and
    the bound is tight where x hardly varies. A position factor, at most 1, only makes gains smaller.

    Parameters
    ----------
    rows : ndarray of shape (n, d), float32
        Feature vectors.
    """

    def __init__(self, rows: "NDArray[np.float32]") -> None:
        self._rows = rows.astype(np.float64)
        edges = np.linspace(0, len(rows), min(_GROUPS, len(rows)) + 1).round().astype(int)
        self._groups = [slice(int(a), int(b)) for a, b in pairwise(edges)]
        self._sizes = np.diff(edges).astype(np.float64)
        self._sums = self._rows @ np.stack([self._rows[group].sum(0) for group in self._groups], 1)
        self._squares = np.empty_like(self._sums)
        for number, group in enumerate(self._groups):
            part = self._rows[group]
            if len(part) < part.shape[1]:
                self._squares[:, number] = np.square(self._rows @ part.T).sum(1)
            else:
                self._squares[:, number] = np.einsum("nd,nd->n", self._rows @ (part.T @ part), self._rows)

    def gains(self, best: "NDArray[np.float32]") -> "NDArray[np.float64]":
        """Return for each slice a number that its gain over `best`, shape (n,), cannot exceed."""
        wide = best.astype(np.float64)
        means = np.stack([self._rows[group].T @ wide[group] for group in self._groups], 1)
        first = np.array([wide[group].sum() for group in self._groups])
        second = np.array([np.square(wide[group]).sum() for group in self._groups])
        # what rounding may have cost, a thousand times over
        slack = 1e-12 * (self._squares + second)
        spread = np.maximum(self._squares - 2 * (self._rows @ means) + second, 0) + slack
        bound: NDArray[np.float64] = (self._sums - first + np.sqrt(self._sizes * spread)).sum(1) / 2
        return bound


def greedy_cover(
    similarities: Similarities,
    budget: int,
    *,
    annotated: Sequence[int] = (),
    candidates: Iterable[int] | None = None,
    costs: "NDArray[np.floating] | None" = None,
) -> Cover:
    """Return the slices that greedily maximise ``F(S) = sum_j max_{i in S} sim(i, j)``.

    Parameters
    ----------
    similarities : Similarities
        Of all slices to be covered.
    budget : int
        How many slices to pick; fewer come back when there are fewer candidates.
    annotated : sequence of int
        Slices that are painted already: they cover, and are not picked.
    candidates : iterable of int, optional
        Slices that may be picked; by default all.
    costs : ndarray of shape (n,), float, optional
        What painting each slice costs, all above 0; the gain per cost decides then.

    Returns
    -------
    Cover
        At equal gain the slice with the lower number comes first.

    Raises
    ------
    InputError
        A slice that does not exist, or costs that do not fit.

    Notes
    -----
    After Zheng et al., AAAI 2020 (S5), whose greedy search is within 1 - 1/e of the optimum because F is monotone and
    submodular (Nemhauser et al. 1978). Lazy as in Minoux 1978: a gain measured earlier bounds the gain now, so only
    slices whose bound is on top are measured again, a block at a time; `GainBounds` gives the first bounds, and tighter
    ones as slices get covered. The picks are those of the plain search, always; memory holds one block of similarities.
    """
    count = len(similarities)
    free = _free(count, annotated, candidates)
    weight = _checked_costs(costs, count)
    best = np.zeros(count, np.float32)
    owner = np.full(count, -1, np.int64)
    for index in dict.fromkeys(annotated):
        _cover(similarities, index, best, owner)
    bounds = similarities.bounds()
    bound = np.where(free, np.inf, -np.inf)
    start = _coverage(best)
    order: list[int] = []
    gains, coverage = [], []
    for _ in range(min(budget, int(free.sum()))):
        bound = np.minimum(bound, bounds.gains(best) / weight)
        pick = _next(similarities, best, bound, weight)
        _cover(similarities, pick, best, owner)
        bound[pick] = -np.inf
        order.append(pick)
        coverage.append(_coverage(best))
        gains.append(coverage[-1] - (coverage[-2] if len(coverage) > 1 else start))
    return Cover(tuple(order), tuple(gains), tuple(coverage), start, owner)


def _next(
    similarities: Similarities,
    best: "NDArray[np.float32]",
    bound: "NDArray[np.float64]",
    weight: "NDArray[np.float64]",
) -> int:
    """Return the slice with the largest gain, the lowest of several; tightens `bound` where it had to look."""
    gain, pick = -np.inf, -1
    looked = np.zeros(len(bound), bool)
    while True:
        # whoever might still be as good; at equal gain a lower number wins, so equality must be looked at
        waiting = np.flatnonzero(~looked & (bound >= gain) & np.isfinite(bound))
        if not len(waiting):
            return pick
        if len(waiting) > _BLOCK:
            waiting = waiting[np.argpartition(-bound[waiting], _BLOCK)[:_BLOCK]]
        found = np.maximum(similarities.to_all(waiting) - best, 0).sum(1, dtype=np.float64) / weight[waiting]
        bound[waiting], looked[waiting] = found, True
        top = float(found.max())
        first = int(waiting[found == top].min())
        if top > gain or (top == gain and first < pick):
            gain, pick = top, first


def _cover(similarities: Similarities, index: int, best: "NDArray[np.float32]", owner: "NDArray[np.int64]") -> None:
    found = similarities.to_all(np.array([index]))[0]
    better = found > best
    best[better], owner[better] = found[better], index


def _coverage(best: "NDArray[np.float32]") -> float:
    return min(1.0, float(best.sum(dtype=np.float64)) / (_FULL * len(best)))


def _free(count: int, annotated: Sequence[int], candidates: Iterable[int] | None) -> "NDArray[np.bool_]":
    free = np.zeros(count, bool)
    wanted = list(range(count) if candidates is None else candidates)
    for index in (*wanted, *annotated):
        if not 0 <= index < count:
            raise InputError(f"slice {index}: there are features of {count} slices, 0 to {count - 1}")
    free[wanted] = True
    free[list(annotated)] = False
    return free


def _checked_costs(costs: "NDArray[np.floating] | None", count: int) -> "NDArray[np.float64]":
    if costs is None:
        return np.ones(count)
    weight = np.asarray(costs, np.float64)
    if weight.shape != (count,) or not (np.isfinite(weight).all() and (weight > 0).all()):
        raise InputError(f"costs of shape {weight.shape}: expected {count} numbers above 0")
    return weight
