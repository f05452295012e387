"""Representative slices: max cover by facility location, greedy, then improved by exchanges."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.engine.select.exchange import can_exchange, exchange
from napari_slicelabel.engine.select.gains import Gains
from napari_slicelabel.engine.select.similarities import FULL, Similarities
from napari_slicelabel.engine.select.threads import one_product_each
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MEASURED, _MOST_MEASURED = 32, 1024
"""Slices that are measured together: few to begin with, of which one is likely to win, then `_TIMES` as many."""

_LOWERED, _MOST_LOWERED = 128, 4096
"""Slices whose bounds are lowered together: the gain of one of the first rules most others out."""

_TIMES = 8


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


def best_cover(
    similarities: Similarities,
    budget: int,
    *,
    annotated: Sequence[int] = (),
    candidates: Iterable[int] | None = None,
    costs: "NDArray[np.floating] | None" = None,
    others: Iterable[Sequence[int]] = (),
) -> Cover:
    """Return the slices that cover best of all that were tried: greedy ones, and others, all improved by exchanges.

    Parameters
    ----------
    similarities, budget, annotated, candidates, costs
        As for `greedy_cover`.
    others : iterable of sequences of int
        Other choices to start from, such as equal intervals. Those that are not `budget` different candidates are
        passed over.

    Returns
    -------
    Cover
        Covers at least as well as every one of `others`, and costs no more than the dearest of them; without others, no
        more than the greedy pick. Covers at least as well as the greedy pick where that does not cost more. In the
        order in which greedy search takes the slices chosen, so that every part of the list, from its beginning, is
        good too; a shorter list of its own may be better.

    Raises
    ------
    InputError
        As `greedy_cover`.

    Notes
    -----
    Greedy search looks one pick ahead and can be caught: the first pick, alone in the middle, is in the way of the
    next two. Exchanges (Teitz and Bart 1968) put that right; see `exchange`. Between equals the greedy start wins.
    Where exchanges would not fit into memory (`can_exchange`) the best start is taken as it is. With costs there are
    two greedy starts, by gain per cost and by gain: each alone can be arbitrarily bad (Leskovec et al. 2007).
    """
    count = len(similarities)
    free = _free(count, annotated, candidates)
    weight = _checked_costs(costs, count)
    open_slices = np.flatnonzero(free)
    greedy = greedy_cover(similarities, budget, annotated=annotated, candidates=open_slices, costs=costs)
    if not greedy.order:
        return greedy
    fitting = [
        tuple(other)
        for other in others
        if len(set(other)) == len(other) == len(greedy.order) and free[list(other)].all()
    ]
    starts = [greedy.order]
    if costs is not None:
        starts.append(greedy_cover(similarities, budget, annotated=annotated, candidates=open_slices).order)
    limit = max(float(weight[list(start)].sum()) for start in (fitting or starts[:1]))
    starts = [start for start in (*starts, *fitting) if weight[list(start)].sum() <= limit]
    covered = _covered(similarities, annotated, np.zeros(count, np.float32))
    if can_exchange(count, len(greedy.order)):
        with one_product_each() as pool:
            found = list(
                pool.map(lambda start: exchange(similarities, start, covered, open_slices, weight, limit), starts)
            )
    else:
        found = [(float(_covered(similarities, start, covered).sum(dtype=np.float64)), start) for start in starts]
    _, chosen = max(found, key=lambda result: result[0])
    return greedy_cover(similarities, budget, annotated=annotated, candidates=chosen, costs=costs)


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
    submodular (Nemhauser et al. 1978). Lazy as in Minoux 1978: an earlier gain bounds the gain now, so that only slices
    whose bound is on top are measured; see `Gains`. The picks are those of the plain search, always. Memory: a block of
    similarities, the features, and the coverage of every slice after each of the last picks.
    """
    count = len(similarities)
    free = _free(count, annotated, candidates)
    weight = _checked_costs(costs, count)
    best = np.zeros(count, np.float32)
    owner = np.full(count, -1, np.int64)
    for index in dict.fromkeys(annotated):
        _cover(similarities, index, best, owner)
    start = _coverage(best)
    order: list[int] = []
    gains, coverage = [], []
    with one_product_each() as pool:
        search = Gains(similarities, free, best, pool)
        for _ in range(min(budget, int(free.sum()))):
            pick = _next(search, weight)
            _cover(similarities, pick, best, owner)
            search.drop(pick)
            search.cover(best)
            order.append(pick)
            coverage.append(_coverage(best))
            gains.append(coverage[-1] - (coverage[-2] if len(coverage) > 1 else start))
    return Cover(tuple(order), tuple(gains), tuple(coverage), start, owner)


def _next(search: Gains, weight: "NDArray[np.float64]") -> int:
    """Return the slice with the largest gain, the lowest of several."""
    gain, pick = -np.inf, -1
    measured = np.zeros(len(weight), bool)
    at_once, lowered = _MEASURED, _LOWERED
    while True:
        bound = search.bound / weight
        # whoever might still be as good; at equal gain a lower number wins, so equality must be looked at
        waiting = np.flatnonzero(~measured & (bound >= gain) & (bound > -np.inf))
        if not len(waiting):
            return pick
        some = _highest(waiting, bound, at_once)
        if search.is_fresh(some).all():
            search.measure(some)
            at_once = min(_TIMES * at_once, _MOST_MEASURED)
        else:
            stale = waiting[~search.is_fresh(waiting)]
            some = _highest(stale, bound, lowered)
            search.refresh(some)
            lowered = min(_TIMES * lowered, _MOST_LOWERED)
            some = some[search.is_measured(some)]
        if len(some):
            measured[some] = True
            found = search.bound[some] / weight[some]
            largest = float(found.max())
            first = int(some[found == largest].min())
            if largest > gain or (largest == gain and first < pick):
                gain, pick = largest, first


def _highest(indices: "NDArray[np.intp]", bound: "NDArray[np.float64]", count: int) -> "NDArray[np.intp]":
    """Return the `count` slices with the highest bounds, the first of equal ones, and all whose bounds are infinite."""
    among = bound[indices]
    count = max(count, int(np.isinf(among).sum()))
    if len(indices) <= count:
        return indices
    lowest = np.partition(among, -count)[-count]
    chosen = among > lowest
    chosen[np.flatnonzero(among == lowest)[: count - int(chosen.sum())]] = True
    found: NDArray[np.intp] = indices[chosen]
    return found


def _cover(similarities: Similarities, index: int, best: "NDArray[np.float32]", owner: "NDArray[np.int64]") -> None:
    found = similarities.to_all(np.array([index]))[0]
    better = found > best
    best[better], owner[better] = found[better], index


def _covered(similarities: Similarities, indices: Iterable[int], start: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Return how well some slices cover each slice, given how well it is covered already."""
    best = start.copy()
    for index in dict.fromkeys(indices):
        np.maximum(best, similarities.to_all(np.array([index]))[0], out=best)
    return best


def _coverage(best: "NDArray[np.float32]") -> float:
    return min(1.0, float(best.sum(dtype=np.float64)) / (FULL * len(best)))


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
