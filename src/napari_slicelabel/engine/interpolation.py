"""Signed distances of the classes of a slice, and what lies between two slices."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt

if TYPE_CHECKING:
    from numpy.typing import NDArray


LABEL_RADIUS_PX = 4.0
"""Distances that decide labels are cut there, in pixels; see the parameter ``radius_px`` of ``interpolate``."""


def class_distances(
    target: "NDArray[np.uint8]", classes: Sequence[int], spacing: tuple[float, float], *, radius: float
) -> "NDArray[np.float32]":
    """Return the signed distance of each pixel to the border of background and of each class.

    Parameters
    ----------
    target : ndarray of shape (h, w), uint8
        0 = background, other values = classes. Values that are not in `classes` count as none of them.
    classes : sequence of int
        Label values, in the order of the channels after the first.
    spacing : tuple of 2 float
        Distance between pixels along h and w, in any unit of length.
    radius : float
        Distances are cut at ±radius, same unit as `spacing`. Larger than 0.

    Returns
    -------
    ndarray of shape (1 + number of classes, h, w), float32
        Channel 0 is background, channel k + 1 is ``classes[k]``. Positive inside: the distance to the nearest pixel
        outside; negative outside: minus the distance to the nearest pixel inside; both between pixel centres, so that
        the border lies halfway between the two. A class that is absent is -radius everywhere, one that fills the slice
        +radius. The border of the slice is no border of a class.

    Notes
    -----
    Each class is computed inside its bounding box grown by `radius` only, which is exact because of the cut.

    Examples
    --------
    >>> import numpy as np
    >>> target = np.array([[0, 0, 1, 1, 1, 0]], np.uint8)
    >>> class_distances(target, [1], (1, 1), radius=9)[1]
    array([[-2., -1.,  1.,  2.,  1., -1.]], dtype=float32)
    """
    foreground = target != 0
    border = _signed_distance(foreground, spacing, radius)
    planes = [-border]
    for value in classes:
        inside = target == value
        # the usual case of a single class needs one transform, not two
        planes.append(border if np.array_equal(inside, foreground) else _signed_distance(inside, spacing, radius))
    return np.stack(planes)


def blend(lower: "NDArray[np.float32]", upper: "NDArray[np.float32]", weight: float) -> "NDArray[np.float32]":
    """Return the distances between two slices.

    Parameters
    ----------
    lower, upper : ndarray, float32
        Distances at the two slices, same shape.
    weight : float
        0 = at `lower`, 1 = at `upper`; in between the share of the way.

    Returns
    -------
    ndarray, float32
        ``(1 - weight) * lower + weight * upper``, the shape of the two.
    """
    return (np.float32(1 - weight) * lower + np.float32(weight) * upper).astype(np.float32, copy=False)


class TopTwo(NamedTuple):
    """The best and the second best channel of each pixel, as channel numbers, and by how much the best one leads.

    All of shape (h, w); `best` and `second` uint8, `margin` float32 and at least 0.
    """

    best: "NDArray[np.uint8]"
    second: "NDArray[np.uint8]"
    margin: "NDArray[np.float32]"


def top_two(scores: "NDArray[np.float32]") -> TopTwo:
    """Return the two highest channels of each pixel.

    Parameters
    ----------
    scores : ndarray of shape (c, h, w), float32
        At least two channels, at most 255.

    Returns
    -------
    TopTwo
        Where channels tie, the lowest number is the best: background before classes.
    """
    best = np.zeros(scores.shape[1:], np.uint8)
    second = np.ones(scores.shape[1:], np.uint8)
    first_score = scores[0].copy()
    second_score = np.full(scores.shape[1:], -np.inf, np.float32)
    for channel in range(1, len(scores)):
        score = scores[channel]
        leads = score > first_score
        follows = ~leads & (score > second_score)
        second = np.where(leads, best, np.where(follows, np.uint8(channel), second))
        second_score = np.where(leads, first_score, np.where(follows, score, second_score))
        best = np.where(leads, np.uint8(channel), best)
        first_score = np.maximum(first_score, score)
    return TopTwo(best, second, first_score - second_score)


def _signed_distance(inside: "NDArray[np.bool_]", spacing: tuple[float, float], radius: float) -> "NDArray[np.float32]":
    distances = np.full(inside.shape, -radius, np.float32)
    if not inside.any():
        return distances
    if inside.all():
        return -distances
    window = tuple(_grown(np.any(inside, axis=1 - axis), math.ceil(radius / spacing[axis])) for axis in (0, 1))
    crop = inside[window]
    signed = distance_transform_edt(crop, sampling=spacing) - distance_transform_edt(~crop, sampling=spacing)
    distances[window] = np.clip(signed, -radius, radius)
    return distances


def _grown(hits: "NDArray[np.bool_]", margin: int) -> slice:
    found = np.flatnonzero(hits)
    return slice(max(0, int(found[0]) - margin), int(found[-1]) + 1 + margin)
