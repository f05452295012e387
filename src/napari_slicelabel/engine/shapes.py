"""What the labelled neighbours of a slice say about shapes: the geometric side of propagation.

Geometry and appearance are complementary. The distance to the shapes of neighbouring labelled slices goes into the
network as further input, and the network is trained on annotated slices whose own shape is mixed with the one
interpolated from the *other* annotated slices: from how far geometry is off it learns how far to trust it.
Classes whose place in one slice says nothing about the next are left out (`positional_classes`).
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import rankdata

from napari_slicelabel.engine.interpolation import LABEL_RADIUS_PX, blend, class_distances, top_two

if TYPE_CHECKING:
    from numpy.typing import NDArray

RADIUS_PX = 16.0
"""Signed distances are cut there and divided by it."""

POSITIONAL_AUC = 0.75
"""A class is positional from this area under the curve on. Chosen on the dev volumes: see docs/benchmarks.md."""

# How many pairs of slices the mean over all classes counts for: a class that few pairs show is taken for like the rest.
_PRIOR_PAIRS = 2

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
        return self._with_background(anchor)[1:]

    def _with_background(self, anchor: int) -> "NDArray[np.float16]":
        if anchor not in self._kept:
            radius = RADIUS_PX * (self._spacing[0] + self._spacing[1]) / 2
            distances = class_distances(self._read(anchor), self.classes, self._spacing, radius=radius)
            self._kept[anchor] = (distances / np.float32(radius)).astype(np.float16)
            while len(self._kept) > _KEPT_PLANES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(anchor)
        return self._kept[anchor]

    def around(self, index: int, without: Collection[int] = ()) -> "NDArray[np.float16] | None":
        """Return the distances expected at a slice from its neighbours.

        Parameters
        ----------
        index : int
            The slice; its own labels are not used.
        without : collection of int
            Further anchors that are not used.

        Returns
        -------
        ndarray of shape (classes, h, w), float16, or None
            Linear between the nearest anchor on each side; a copy of the nearest one outside. None without anchors.
        """
        places = self.neighbours(index, without)
        if places is None:
            anchors = [anchor for anchor in self.anchors if anchor != index and anchor not in without]
            return self.at(min(anchors, key=lambda anchor: abs(anchor - index))) if anchors else None
        lower, upper = places
        return between(self.at(lower), self.at(upper), (index - lower) / (upper - lower))

    def neighbours(self, index: int, without: Collection[int] = ()) -> "tuple[int, int] | None":
        """Return the nearest anchors below and above a slice; None where there are not both."""
        anchors = [anchor for anchor in self.anchors if anchor != index and anchor not in without]
        below = [anchor for anchor in anchors if anchor < index]
        above = [anchor for anchor in anchors if anchor > index]
        return (below[-1], above[0]) if below and above else None

    def labels_between(self, index: int, without: Collection[int] = ()) -> "NDArray[np.uint8]":
        """Return what interpolation (Raya and Udupa 1990) says of a slice between two anchors.

        Returns
        -------
        ndarray of shape (h, w), uint8
            0 = background, k + 1 = ``classes[k]``.
        """
        places = self.neighbours(index, without)
        if places is None:
            raise ValueError(f"slice {index} does not lie between two of {self.anchors}")
        # cut as closely as `interpolate` does, or an object that one of the two lacks would vanish at once
        near = LABEL_RADIUS_PX / RADIUS_PX
        lower, upper = (np.clip(self._with_background(place).astype(np.float32), -near, near) for place in places)
        return top_two(blend(lower, upper, (index - places[0]) / (places[1] - places[0]))).best


def between(one: "NDArray[np.float16]", other: "NDArray[np.float16]", share: float) -> "NDArray[np.float16]":
    """Return ``one + share * (other - one)``, rounded once.

    By torch: numpy computes with 16-bit floats one by one, which takes thirty times as long.
    """
    mixed: NDArray[np.float16] = torch.lerp(torch.from_numpy(one), torch.from_numpy(other), share).numpy()
    return mixed


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
        membranes and scattered particles are everywhere near each other. The mean area over all classes counts like two
        pairs more, so that a class seen in one pair goes with the others. Empty when no two consecutive annotated
        slices share a class.
    """
    areas = [_area_and_pairs(sources, channel, rng) for channel in range(len(sources[0].classes))]
    known = [area for area, pairs in areas if pairs]
    if not known:
        return ()
    mean = float(np.mean(known))
    return tuple(
        value
        for value, (area, pairs) in zip(sources[0].classes, areas, strict=True)
        if (pairs * area + _PRIOR_PAIRS * mean) / (pairs + _PRIOR_PAIRS) >= POSITIONAL_AUC
    )


def _area_and_pairs(sources: Sequence[Shapes], channel: int, rng: np.random.Generator) -> tuple[float, int]:
    """Return how well the shape in one annotated slice finds the class in the next, and over how many pairs."""
    distances, inside = [], []
    for source in sources:
        for first, second in pairwise(source.anchors):
            planes = source.at(first)[channel], source.at(second)[channel]
            if not all((plane > 0).any() for plane in planes):
                continue
            pick = rng.integers(planes[0].size, size=min(_SAMPLE_PIXELS, planes[0].size))
            for here, there in (planes, planes[::-1]):
                distances.append(here.ravel()[pick].astype(np.float32))
                inside.append(there.ravel()[pick] > 0)
    area = _area_under_curve(np.concatenate(distances), np.concatenate(inside)) if inside else None
    return (0.0, 0) if area is None else (area, len(inside) // 2)


def _area_under_curve(score: "NDArray[np.float32]", positive: "NDArray[np.bool_]") -> float | None:
    hits = int(np.count_nonzero(positive))
    misses = positive.size - hits
    if hits == 0 or misses == 0:
        return None
    ranks = rankdata(score)
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))
