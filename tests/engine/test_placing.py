from __future__ import annotations

import numpy as np
import pytest

from napari_slicelabel.data.boxes import Box, SliceRef
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine.placing import on_image
from napari_slicelabel.errors import InputError

AFFINE = np.array([[0.5, 0, 0, -12], [0, 0.5, 0, -10], [0, 0, 3, 5], [0, 0, 0, 1.0]])
LABELS = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)


def placed(array: np.ndarray, affine: np.ndarray | None) -> Volume:
    return Volume(array, name="labels", affine=affine)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_labels_that_are_stored_the_other_way_round_are_turned(axes: tuple[int, ...]) -> None:
    turn = np.eye(4)
    for axis in axes:
        turn[2 - axis, 2 - axis], turn[2 - axis, 3] = -1, LABELS.shape[axis] - 1
    stored = placed(np.flip(LABELS, axes), AFFINE @ turn)
    labels = on_image(stored, placed(LABELS, AFFINE))
    np.testing.assert_array_equal(labels.read(Box.whole(labels.shape))[0], LABELS)
    np.testing.assert_array_equal(labels.read_slice(SliceRef("y", 1))[0, 0], LABELS[:, 1])


@pytest.mark.parametrize("change", [(0, 3, 0.5), (2, 3, 9), (0, 1, 0.2), (1, 1, 0.1)], ids=str)
def test_labels_that_lie_elsewhere_are_refused(change: tuple[int, int, float]) -> None:
    row, column, by = change
    elsewhere = AFFINE.copy()
    elsewhere[row, column] += by
    with pytest.raises(InputError, match="affine differs"):
        on_image(placed(LABELS, elsewhere), placed(LABELS, AFFINE))


def test_where_one_file_states_no_place_the_shape_decides() -> None:
    for one, other in ((None, AFFINE), (AFFINE, None), (None, None)):
        labels = placed(LABELS, one)
        assert on_image(labels, placed(LABELS, other)) is labels
    with pytest.raises(InputError, match="give labels of the same shape"):
        on_image(placed(LABELS[:2], None), placed(LABELS, None))
