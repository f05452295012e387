"""Shapes between two painted slices, for a preview."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.data.boxes import AXES, SliceRef
from napari_slicelabel.data.classes import NOT_PAINTED, PAINTED_BACKGROUND
from napari_slicelabel.engine.interpolation import LABEL_RADIUS_PX, blend, class_distances, top_two

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_slicelabel.gui.paint import PaintStore

_MOST_BYTES = 256 * 2**20


def between(
    store: PaintStore, ref: SliceRef, annotated: Sequence[int], voxel_size: tuple[float, float, float]
) -> dict[SliceRef, NDArray[np.uint8]]:
    """Return the shapes in the slices between the two annotated ones around `ref`.

    Parameters
    ----------
    store : PaintStore
        What is painted.
    ref : SliceRef
        A slice between two annotated ones, or one of them: then the gap behind it counts.
    annotated : sequence of int
        Annotated slices along the same axis, sorted.
    voxel_size : tuple of 3 float
        Along z, y, x.

    Returns
    -------
    dict of SliceRef to ndarray of shape (h, w), uint8
        Label values, 0 where no shape is; empty where there is no slice on both sides. At most 256 MB: of a wider gap
        the slices nearest to `ref`.
    """
    below = [index for index in annotated if index <= ref.index]
    above = [index for index in annotated if index > ref.index]
    if not below or not above or above[0] - below[-1] < 2:
        return {}
    low, high = below[-1], above[0]
    lower, upper = (_shape(store, SliceRef(ref.axis, index)) for index in (low, high))
    classes = sorted((set(np.unique(lower).tolist()) | set(np.unique(upper).tolist())) - {0})
    spacing = tuple(size for axis, size in zip(AXES, voxel_size, strict=True) if axis != ref.axis)
    radius = LABEL_RADIUS_PX * sum(spacing) / 2
    before, after = (
        class_distances(shape, classes, (spacing[0], spacing[1]), radius=radius) for shape in (lower, upper)
    )
    values = np.array([0, *classes], np.uint8)
    count = max(1, _MOST_BYTES // lower.nbytes)
    nearest = sorted(range(low + 1, high), key=lambda index: abs(index - ref.index))[:count]
    return {
        SliceRef(ref.axis, index): values[top_two(blend(before, after, (index - low) / (high - low))).best]
        for index in sorted(nearest)
    }


def _shape(store: PaintStore, ref: SliceRef) -> NDArray[np.uint8]:
    values = store.read_plane(ref)
    values[values == PAINTED_BACKGROUND] = NOT_PAINTED
    return values
