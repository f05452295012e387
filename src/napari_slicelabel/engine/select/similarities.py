"""How much slices look alike: cosines of feature vectors in whole numbers, computed where they are asked for."""

from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.engine.select.threads import Buffer
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.integer] | slice

NORM = 4000
"""Length of a feature vector after rounding to whole numbers. A product of two is then below 2**24, so that float32
holds it, and every partial sum of it, exactly: no order of summation and no library changes a gain, and ties are ties.
"""

FULL = float(NORM) ** 2
"""The similarity of a slice to itself."""

MOST_DIMENSIONS = 8192
"""Of a feature vector: beyond that, rounding could make one longer than 2**12."""


_AT_ONCE = 1024


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

    Attributes
    ----------
    rows : ndarray of shape (n, d), float32
        The features as whole numbers, each row about `NORM` long.

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
        self.rows: NDArray[np.float32] = np.zeros(features.shape, np.float32)
        for first in range(0, len(features), _AT_ONCE):
            wide = features[first : first + _AT_ONCE].astype(np.float64)
            length = np.linalg.norm(wide, axis=1, keepdims=True)
            self.rows[first : first + _AT_ONCE] = np.rint(wide / np.where(length > 0, length, 1) * NORM)
        self._gathered, self._found = Buffer(), Buffer()
        self._positions = None if positions is None or reach <= 0 else np.asarray(positions, np.float64)
        self._stacks = np.zeros(len(features), np.int64) if stacks is None else np.asarray(stacks)
        self._reach = reach

    def __len__(self) -> int:
        return len(self.rows)

    def between(self, one: "Numbers", other: "Numbers") -> "NDArray[np.float32]":
        """Return the similarities of some slices to others, shape (len(one), len(other)).

        Returns
        -------
        ndarray of float32
            Whole numbers, 0 to about `FULL`; the caller may overwrite it.
        """
        found = self.products(one, other)
        np.maximum(found, 0, out=found)
        return found

    def products(self, one: "Numbers", other: "Numbers") -> "NDArray[np.float32]":
        """Return the same, but numbers below 0 as they are."""
        return self._near(self.rows[one] @ self.rows[other].T, one, other)

    def next_products(self, one: "NDArray[np.intp]", other: "NDArray[np.intp]") -> "NDArray[np.float32]":
        """Return the same, in memory that the next call from this thread uses again."""
        gathered = self._gathered.array(len(other), self.rows.shape[1])
        # numbers are known to be right; any other mode takes a copy of its own first
        np.take(self.rows, other, axis=0, out=gathered, mode="clip")
        found = self._found.array(len(one), len(other))
        return self._near(np.matmul(self.rows[one], gathered.T, out=found), one, other)

    def _near(self, found: "NDArray[np.float32]", one: "Numbers", other: "Numbers") -> "NDArray[np.float32]":
        """Return products with the factor of positions."""
        if self._positions is not None:
            apart = self._positions[one][:, None] - self._positions[other][None]
            near = np.exp(-np.square(apart) / (2 * self._reach**2))
            near[self._stacks[one][:, None] != self._stacks[other][None]] = 1.0
            found = np.rint(found * near).astype(np.float32)
        return found

    def to_all(self, indices: "Numbers") -> "NDArray[np.float32]":
        """Return the similarities of some slices to all, shape (len(indices), n); see `between`."""
        return self.between(indices, slice(None))
