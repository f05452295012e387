"""What each slice would add to the coverage: upper bounds that are cheap, and gains that are exact.

Coverage of a set S is ``F(S) = sum_j max_{i in S} sim(i, j)``. With ``best_j`` the maximum so far, slice i gains
``sum_j max(sim(i, j) - best_j, 0)``: a row of similarities, n times d multiplications. `Gains` knows of every slice a
number that its gain cannot exceed, and lowers it by the cheapest means there is:

- a slice that was never measured is bounded by what groups of neighbours can give it (`GroupBounds`);
- a slice that was measured some picks ago has lost what these picks took, exactly, which is a matter of the slices that
  have become better covered since, and of no others;
- slices that are certainly better covered than by the slice measured are left out (`Reach`), most of them in the end.
"""

from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.engine.select.similarities import FULL, NORM, Similarities

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor

    from numpy.typing import NDArray

    Columns = Callable[[NDArray[np.intp]], NDArray[np.intp]]

_GROUP = 64
"""Slices of a group, at least: consecutive ones look alike."""

_MOST_GROUPS = 128

_NEAR = 32
"""Slices of a group for `Reach`, at least."""

_KEPT = 2**26
"""Numbers that `Reach` keeps, at most: 256 MB."""

_CHUNK = 64
"""Slices, neighbours where possible, that are compared with others by one matrix product."""

_COLUMNS = 4096
"""The others of one product, whose 1 MB stays in the cache while its sum is taken."""

_SPAN = 2048
"""Slices that count as neighbours where gains are lowered."""

_FEW = 256
"""Candidates up to which gains are measured without bounding them first."""

_BOUNDED = 512
"""Slices whose gains are bounded together, in one thread."""

_ROUNDS_KEPT = 64
"""Picks of which the coverage is remembered: 5 MB for 20,000 slices. What was measured earlier is measured anew."""


class GroupBounds:
    """Upper bounds of gains without a look at any pair of slices.

    With x = sim - best, a gain is the sum of max(x, 0) = (x + abs(x)) / 2, and the sum of abs(x) over a group of m
    slices is at most the root of m times the sum of x², by Cauchy and Schwarz. The sum of x over a group needs the mean
    of the group's feature vectors. The sum of squares about the mean has three parts: that of sim is at most the
    largest eigenvalue of the group's scatter matrix times the squared length of the slice's vector, that of best is
    known, and the mixed one is a product with one more vector per group. A position factor, at most 1, only makes gains
    smaller.

    Parameters
    ----------
    rows : ndarray of shape (n, d), float32
        Feature vectors.
    pool : ThreadPoolExecutor
        Where products are computed; see `one_product_each`.
    """

    def __init__(self, rows: "NDArray[np.float32]", pool: "ThreadPoolExecutor") -> None:
        self._rows = rows
        self._lengths = np.square(rows, dtype=np.float64).sum(1)
        self._starts = np.arange(0, len(rows), max(_GROUP, -(-len(rows) // _MOST_GROUPS)))
        self._sizes = np.diff(np.append(self._starts, len(rows)))
        self._means = np.add.reduceat(rows, self._starts, axis=0, dtype=np.float64) / self._sizes[:, None]
        self._scatter = np.array(list(pool.map(self._largest, range(len(self._starts)))))
        self._level = self._squares = np.zeros(len(self._starts))
        self._mixed = np.zeros(self._means.shape)

    def _part(self, number: int) -> slice:
        return slice(int(self._starts[number]), int(self._starts[number] + self._sizes[number]))

    def _largest(self, number: int) -> float:
        """Return the largest eigenvalue of a group's scatter matrix, from whichever product is the smaller."""
        around = self._rows[self._part(number)] - self._means[number]
        product = around @ around.T if len(around) < around.shape[1] else around.T @ around
        return float(np.linalg.eigvalsh(product)[-1])

    def update(self, best: "NDArray[np.float32]") -> None:
        """Take note of how well every slice is covered, shape (n,)."""
        wide = best.astype(np.float64)
        self._level = np.add.reduceat(wide, self._starts) / self._sizes
        around = wide - np.repeat(self._level, self._sizes)
        self._squares = np.add.reduceat(around * around, self._starts)
        for number in range(len(self._starts)):
            # less the mean of the vectors, which the deviations of a group, adding up to 0, do not see
            self._mixed[number] = around[self._part(number)] @ self._rows[self._part(number)]

    def gains(self, indices: "NDArray[np.intp]") -> "NDArray[np.float64]":
        """Return for some slices numbers that their gains over the coverage noted last cannot exceed."""
        rows = self._rows[indices].astype(np.float64)
        mean = rows @ self._means.T - self._level
        squares = self._lengths[indices][:, None] * self._scatter + self._squares
        # what rounding may have cost, a thousand times over
        slack = 1e-12 * (squares + FULL**2)
        spread = np.maximum(squares - 2 * (rows @ self._mixed.T), 0) + slack
        bound: NDArray[np.float64] = (self._sizes * (mean + np.sqrt(mean * mean + spread / self._sizes))).sum(1) / 2
        return bound


class Reach:
    """Which slices some slices can be more similar to than a given similarity, without a look at any pair.

    ``x · y <= x · mean + |x| radius`` for all y of a group of neighbours, by Cauchy and Schwarz. The right-hand side is
    kept for all slices and groups.

    Parameters
    ----------
    rows : ndarray of shape (n, d), float32
        Feature vectors.
    pool : ThreadPoolExecutor
        Where products are computed; see `one_product_each`.
    """

    def __init__(self, rows: "NDArray[np.float32]", pool: "ThreadPoolExecutor") -> None:
        self._starts = np.arange(0, len(rows), max(_NEAR, -(-(len(rows) ** 2) // _KEPT)))
        self._sizes = np.diff(np.append(self._starts, len(rows)))
        means = np.add.reduceat(rows, self._starts, axis=0) / self._sizes[:, None].astype(np.float32)
        apart = np.linalg.norm(rows - np.repeat(means, self._sizes, axis=0), axis=1)
        # far above what float32 may have cost, far below what makes a difference
        radius = np.maximum.reduceat(apart, self._starts) + np.float32(1e-3 * NORM)
        self._highest = np.empty((len(rows), len(self._starts)), np.float32)

        def fill(first: int) -> None:
            part = slice(first, first + _BOUNDED)
            np.matmul(rows[part], means.T, out=self._highest[part])
            self._highest[part] += np.linalg.norm(rows[part], axis=1)[:, None] * radius

        list(pool.map(fill, range(0, len(rows), _BOUNDED)))

    def above(self, level: "NDArray[np.float32]", wanted: "NDArray[np.bool_]") -> "Columns":
        """Return a function that tells which slices some slices may be more similar to than a level.

        Parameters
        ----------
        level : ndarray of shape (n,), float32
            A similarity for each slice.
        wanted : ndarray of shape (n,), bool
            The slices to tell of.

        Returns
        -------
        callable
            Takes numbers of slices; returns those of the wanted slices that one of them may reach.
        """
        lowest = np.minimum.reduceat(np.where(wanted, level, np.float32(np.inf)), self._starts)

        def columns(indices: "NDArray[np.intp]") -> "NDArray[np.intp]":
            near = self._highest[indices].max(0) > lowest
            return np.flatnonzero(np.repeat(near, self._sizes) & wanted)

        return columns


class Gains:
    """What slices gain, bounded from above and measured where that matters.

    Parameters
    ----------
    similarities : Similarities
        Of all slices.
    free : ndarray of shape (n,), bool
        Slices that may be picked.
    best : ndarray of shape (n,), float32
        How well each slice is covered at the start.
    pool : ThreadPoolExecutor
        Where products are computed; see `one_product_each`.

    Attributes
    ----------
    bound : ndarray of shape (n,), float64
        No gain exceeds its bound; -inf of a slice that is out.
    """

    def __init__(
        self,
        similarities: Similarities,
        free: "NDArray[np.bool_]",
        best: "NDArray[np.float32]",
        pool: "ThreadPoolExecutor",
    ) -> None:
        self._similarities, self._pool = similarities, pool
        # of few slices all are measured at once: what groups can tell would cost more
        many = free.sum() > _FEW
        self._groups = GroupBounds(similarities.rows, pool) if many else None
        self._reach = Reach(similarities.rows, pool) if many else None
        self._since: dict[int, Columns] = {}
        self._history = np.empty((_ROUNDS_KEPT, len(free)), np.float32)
        self._now = -1
        self.bound = np.where(free, np.inf, -np.inf)
        # the round as of which a bound is that of a measured gain; -1 = never measured, or too long ago
        self._measured = np.full(len(free), -1)
        # the round in which the bound was brought up to date
        self._fresh = np.full(len(free), -1)
        self.cover(best)

    def cover(self, best: "NDArray[np.float32]") -> None:
        """Take note of how well every slice is covered now; never less than before."""
        self._now += 1
        self._since.clear()
        self._history[self._now % _ROUNDS_KEPT] = best
        self._measured[self._measured <= self._now - _ROUNDS_KEPT] = -1
        if self._groups is not None and ((self._measured < 0) & (self.bound > -np.inf)).any():
            self._groups.update(best)

    def drop(self, index: int) -> None:
        """Take a slice out: it was picked."""
        self.bound[index] = -np.inf

    def is_fresh(self, indices: "NDArray[np.intp]") -> "NDArray[np.bool_]":
        """Return of which slices the bound is as low as it gets without measuring them in full."""
        fresh: NDArray[np.bool_] = self._fresh[indices] == self._now
        return fresh

    def is_measured(self, indices: "NDArray[np.intp]") -> "NDArray[np.bool_]":
        """Return of which slices the bound is the exact gain: what was lowered lost exactly what was taken from it."""
        measured: NDArray[np.bool_] = self._measured[indices] == self._now
        return measured

    def refresh(self, indices: "NDArray[np.intp]") -> None:
        """Lower the bounds of some slices by what has been covered since."""
        known = self._measured[indices] >= 0
        list(self._pool.map(self._bound, _chunks(indices[~known], _BOUNDED)))
        # neighbours that were measured in the same rounds together: they reach the same others
        some = indices[known]
        block = some // (_SPAN if self._reach else len(self.bound))
        order = np.lexsort((self._measured[some], block))
        parts = np.split(some[order], np.flatnonzero(np.diff(block[order])) + 1)
        list(self._pool.map(self._lower, [chunk for part in parts for chunk in _chunks(part, _CHUNK)]))
        self._fresh[indices] = self._now

    def _bound(self, indices: "NDArray[np.intp]") -> None:
        """Bound the gains of some slices by what groups can give them."""
        if self._groups is not None:
            self.bound[indices] = np.minimum(self.bound[indices], self._groups.gains(indices))

    def _lower(self, some: "NDArray[np.intp]") -> None:
        """Subtract from what slices gained when they were measured, oldest first, what has been taken since."""
        rounds, which = np.unique(self._measured[some], return_inverse=True)
        now = self._history[self._now % _ROUNDS_KEPT]
        columns = self._better_since(int(rounds[0]))(some)
        taken = np.zeros(len(some))
        for part in _chunks(columns, _COLUMNS):
            # between what it was and what it is: what the slice cannot give any more
            found = self._similarities.next_products(some, part)
            before = self._history[(rounds % _ROUNDS_KEPT)[:, None], part]
            np.minimum(found, now[part], out=found)
            np.maximum(found, before[which], out=found)
            taken += found.sum(1, dtype=np.float64) - before.sum(1, dtype=np.float64)[which]
        self.bound[some] -= taken
        self._measured[some] = self._now

    def _better_since(self, number: int) -> "Columns":
        """Return what tells which slices, of those better covered since a round, some slices may reach."""
        if number not in self._since:
            before, now = self._history[number % _ROUNDS_KEPT], self._history[self._now % _ROUNDS_KEPT]
            self._since[number] = self._above(before, now > before)
        return self._since[number]

    def _above(self, level: "NDArray[np.float32]", wanted: "NDArray[np.bool_]") -> "Columns":
        if self._reach is not None:
            return self._reach.above(level, wanted)
        columns = np.flatnonzero(wanted)
        return lambda _some: columns

    def measure(self, indices: "NDArray[np.intp]") -> None:
        """Make the bounds of some slices their exact gains."""
        best = self._history[self._now % _ROUNDS_KEPT]
        columns_of = self._above(best, np.ones(len(best), bool))

        def measure(some: "NDArray[np.intp]") -> None:
            columns = columns_of(some)
            covered = np.zeros(len(some))
            for part in _chunks(columns, _COLUMNS):
                found = self._similarities.next_products(some, part)
                np.maximum(found, best[part], out=found)
                covered += found.sum(1, dtype=np.float64)
            self.bound[some] = covered - best[columns].sum(dtype=np.float64)
            self._measured[some] = self._fresh[some] = self._now

        list(self._pool.map(measure, _chunks(np.sort(indices[~self.is_measured(indices)]), _CHUNK)))


def _chunks(indices: "NDArray[np.intp]", size: int) -> "list[NDArray[np.intp]]":
    return [indices[first : first + size] for first in range(0, len(indices), size)]
