"""Make a choice of slices better by exchanging one of them for another, as long as that helps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.engine.select.similarities import Similarities

if TYPE_CHECKING:
    from numpy.typing import NDArray

_POOL = 2**22
"""Similarities between the slices that may come in and all slices: they are computed anew in every pass."""

_CHOSEN = 2**25
"""Similarities between the chosen slices and all slices: 128 MB."""

_PASSES = 10

_AT_ONCE = 64


def can_exchange(count: int, budget: int) -> bool:
    """Return whether exchanges among `count` slices fit into memory: up to 33 million slices times picks."""
    return count * budget <= _CHOSEN


def exchange(
    similarities: Similarities,
    chosen: Sequence[int],
    covered: "NDArray[np.float32]",
    free: "NDArray[np.intp]",
    weight: "NDArray[np.float64]",
    limit: float,
) -> tuple[float, Sequence[int]]:
    """Return coverage and choice after exchanges.

    Parameters
    ----------
    similarities : Similarities
        Of all n slices.
    chosen : sequence of int
        The choice to improve, k different slices.
    covered : ndarray of shape (n,), float32
        How well annotated slices cover each slice.
    free : ndarray of int
        Slices that may be chosen, sorted.
    weight : ndarray of shape (n,), float64
        What each slice costs.
    limit : float
        What the choice may cost in all, at least what it costs as given.

    Returns
    -------
    coverage : float
        Sum over all slices of the similarity to the most similar of those chosen or annotated.
    chosen : list of int
        As many as were given.

    Notes
    -----
    Candidates come in one after the other. With candidate i and without the chosen s the coverage grows by
    ``sum_j max(sim(i, j) - best_j, 0)``, less, over the slices that s covers best, what the better of i and the second
    best leaves uncovered: one pass over a row of similarities finds the s that is missed least (Schubert and Rousseeuw,
    FastPAM, 2021). If the difference is above 0 they are exchanged at once. It ends after a pass without an exchange,
    or after ten. All numbers are whole: there is no doubt about a sign.

    Where all candidates have more than 4 million similarities, which is above 2048 slices, only so many candidates
    come in, evenly spread: in long stacks neighbours look alike.
    """
    most = max(1, _POOL // len(covered))
    pool = free if len(free) <= most else free[np.linspace(0, len(free) - 1, most).round().astype(np.intp)]
    state = Chosen(similarities, list(chosen), covered, weight, limit)
    for _ in range(_PASSES):
        changed = False
        for first in range(0, len(pool), _AT_ONCE):
            block = pool[first : first + _AT_ONCE]
            for index, row in zip(block.tolist(), similarities.to_all(block), strict=True):
                changed |= state.take(index, row)
        if not changed:
            break
    return state.coverage, state.indices


class Chosen:
    """A choice, and what each of its slices is worth in it.

    Parameters
    ----------
    similarities, chosen, covered, weight, limit
        As for `exchange`.

    Attributes
    ----------
    indices : list of int
        The choice.
    best, second : ndarray of shape (n,), float32
        For each slice how similar the most similar of the choice is, and the second, annotated slices among them.
    missed : ndarray of shape (k,), float64
        What the coverage would lose without each slice of the choice.
    """

    def __init__(
        self,
        similarities: Similarities,
        chosen: list[int],
        covered: "NDArray[np.float32]",
        weight: "NDArray[np.float64]",
        limit: float,
    ) -> None:
        self.indices = chosen
        self._covered, self._weight, self._limit = covered, weight, limit
        self._rows = similarities.to_all(np.array(chosen))
        self._owner = np.empty(len(covered), np.intp)
        self.best, self.second = covered.copy(), covered.copy()
        self._refresh(np.arange(len(covered)))

    def _refresh(self, columns: "NDArray[np.intp]") -> None:
        """Find the best and the second best of some slices; owner k = only annotated slices are as similar."""
        rows, covered = self._rows[:, columns], self._covered[columns]
        places = np.arange(len(columns))
        owner = rows.argmax(0)
        best = rows[owner, places]
        rows[owner, places] = -1
        self.second[columns] = np.maximum(rows.max(0), covered)
        owner[covered >= best] = len(self.indices)
        self._owner[columns] = owner
        self.best[columns] = np.maximum(best, covered)
        missed = (self.best - self.second).astype(np.float64)
        self.missed = np.bincount(self._owner, missed, len(self.indices) + 1)[:-1]

    @property
    def coverage(self) -> float:
        """Sum over all slices of the similarity to the most similar of the choice, or annotated one."""
        return float(self.best.sum(dtype=np.float64))

    def take(self, index: int, row: "NDArray[np.float32]") -> bool:
        """Exchange a chosen slice for `index`, whose similarities are `row`, if coverage grows by that."""
        if index in self.indices:
            return False
        # elsewhere it neither adds to the best nor takes the place of the second
        columns = np.flatnonzero(row > self.second)
        here, best = row[columns], self.best[columns]
        gain = float(np.maximum(here - best, 0).sum(dtype=np.float64))
        if gain == 0:
            return False
        kept = np.minimum(here, best) - self.second[columns]
        lost = self.missed - np.bincount(self._owner[columns], kept, len(self.indices) + 1)[:-1]
        costs = self._weight[self.indices]
        lost[costs.sum() - costs + self._weight[index] > self._limit] = np.inf
        leaving = int(lost.argmin())
        if gain <= lost[leaving]:
            return False
        before = self._rows[leaving]
        # where it was the best or the second, and where the new one is: the others stay as they are
        concerned = np.flatnonzero((before >= self.second) | (row > self.second))
        self.indices[leaving] = index
        self._rows[leaving] = row
        self._refresh(concerned)
        return True
