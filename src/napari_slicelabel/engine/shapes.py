"""What the labelled neighbours of a slice say about shapes: the geometric side of propagation.

Geometry and appearance are complementary. The distance to the shapes of neighbouring labelled slices goes into the
network as further input, and the network is trained on annotated slices whose own shape is mixed with the one
interpolated from the *other* annotated slices: from how far geometry is off it learns how far to trust it.
Classes whose place in one slice says nothing about the next are left out (`positional_classes`).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from napari_slicelabel.engine.interpolation import blend, class_distances

if TYPE_CHECKING:
    from numpy.typing import NDArray

RADIUS_PX = 16.0
"""Signed distances are cut there and divided by it."""

POSITIONAL_AUC = 0.72
"""A class is positional from this area under the curve on. Chosen on the dev volumes: see docs/benchmarks.md."""

# What one pair may be off by; a class of a single pair is lost for good if it is wrongly left out.
_DOUBT = 0.1

_SAMPLE_PIXELS = 20_000
_KEPT_PLANES = 4


class Shapes:
    """Signed distances of the classes in labelled slices of one volume, and between them.

    Parameters
    ----------
    anchors : sequence of int
        The labelled slices, any order.
    read : callable
        Returns the labels of an anchor, shape (h, w), uint8.
    classes : sequence of int
        Label values whose shape is wanted; one channel each.
    spacing : tuple of 2 float
        Distance between pixels along h and w.

    Notes
    -----
    The distances of a few anchors stay in memory, as float16.
    """

    def __init__(
        self,
        anchors: Sequence[int],
        read: "Callable[[int], NDArray[np.uint8]]",
        classes: Sequence[int],
        spacing: tuple[float, float],
    ) -> None:
        self.anchors = tuple(sorted(anchors))
        self.classes = tuple(classes)
        self._read = read
        self._spacing = spacing
        self._kept: OrderedDict[int, NDArray[np.float16]] = OrderedDict()

    def at(self, anchor: int) -> "NDArray[np.float16]":
        """Return the distances at an anchor, shape (classes, h, w), -1 to 1, positive inside."""
        if anchor not in self._kept:
            radius = RADIUS_PX * (self._spacing[0] + self._spacing[1]) / 2
            distances = class_distances(self._read(anchor), self.classes, self._spacing, radius=radius)
            self._kept[anchor] = (distances[1:] / np.float32(radius)).astype(np.float16)
            while len(self._kept) > _KEPT_PLANES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(anchor)
        return self._kept[anchor]

    def around(self, index: int, without: Sequence[int] = ()) -> "NDArray[np.float16] | None":
        """Return the distances expected at a slice from its neighbours.

        Parameters
        ----------
        index : int
            The slice; its own labels are not used.
        without : sequence of int
            Further anchors that are not used.

        Returns
        -------
        ndarray of shape (classes, h, w), float16, or None
            Linear between the nearest anchor on each side; a copy of the nearest one outside. None without anchors.
        """
        anchors = [anchor for anchor in self.anchors if anchor != index and anchor not in without]
        below = [anchor for anchor in anchors if anchor < index]
        above = [anchor for anchor in anchors if anchor > index]
        if not anchors:
            return None
        if not below or not above:
            return self.at(below[-1] if below else above[0])
        lower, upper = below[-1], above[0]
        weight = (index - lower) / (upper - lower)
        mixed = blend(self.at(lower).astype(np.float32), self.at(upper).astype(np.float32), weight)
        return mixed.astype(np.float16)


def positional_classes(sources: Sequence[Shapes], rng: np.random.Generator) -> tuple[int, ...]:
    """Return the classes whose shape in one annotated slice helps to find them in the next.

    Parameters
    ----------
    sources : sequence of Shapes
        One per volume, over the human's complete slices and all classes.
    rng : numpy.random.Generator
        Draws the pixels that are looked at.

    Returns
    -------
    tuple of int
        Label values. A class is left out when, over the pairs of consecutive annotated slices that both hold it, the
        distance to it in one slice ranks its pixels in the other with an area under the curve below `POSITIONAL_AUC`:
        membranes and scattered particles are everywhere near each other. Few pairs count in favour of a class, and
        one of which no such pair exists stays in. Empty when no volume has two anchors.
    """
    if not any(len(source.anchors) > 1 for source in sources):
        return ()
    classes = sources[0].classes
    return tuple(value for channel, value in enumerate(classes) if _is_positional(sources, channel, rng))


def _is_positional(sources: Sequence[Shapes], channel: int, rng: np.random.Generator) -> bool:
    distances, inside = [], []
    for source in sources:
        for first, second in zip(source.anchors, source.anchors[1:], strict=False):
            planes = source.at(first)[channel], source.at(second)[channel]
            if not all((plane > 0).any() for plane in planes):
                continue
            pick = rng.integers(planes[0].size, size=min(_SAMPLE_PIXELS, planes[0].size))
            for here, there in (planes, planes[::-1]):
                distances.append(here.ravel()[pick].astype(np.float32))
                inside.append(there.ravel()[pick] > 0)
    if not inside:
        return True
    area = _area_under_curve(np.concatenate(distances), np.concatenate(inside))
    pairs = len(inside) / 2
    return area is None or area + _DOUBT / math.sqrt(pairs) >= POSITIONAL_AUC


def _area_under_curve(score: "NDArray[np.float32]", positive: "NDArray[np.bool_]") -> float | None:
    hits = int(np.count_nonzero(positive))
    misses = positive.size - hits
    if hits == 0 or misses == 0:
        return None
    ranks = rankdata(score)
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))
