from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import distance_transform_edt

from napari_slicelabel.engine.interpolation import blend, class_distances, top_two
from napari_slicelabel.engine.methods.interpolate import expected_dice, fit_slope, neighbours

SQUARE = np.array(
    [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ],
    np.uint8,
)
R2, R5 = np.sqrt(2), np.sqrt(5)


def test_square_by_eye() -> None:
    background, square = class_distances(SQUARE, [1], (1, 1), radius=10)
    expected = [
        [-R2, -1, -1, -1, -R2],
        [-1, 1, 1, 1, -1],
        [-1, 1, 2, 1, -1],
        [-1, 1, 1, 1, -1],
        [-R2, -1, -1, -1, -R2],
    ]
    np.testing.assert_allclose(square, expected, rtol=1e-6)
    np.testing.assert_allclose(background, -np.array(expected), rtol=1e-6)


def test_square_with_pixels_three_times_as_high() -> None:
    _, square = class_distances(SQUARE, [1], (3, 1), radius=10)
    corner = np.sqrt(10)
    expected = [
        [-corner, -3, -3, -3, -corner],
        [-1, 1, 2, 1, -1],
        [-1, 1, 2, 1, -1],
        [-1, 1, 2, 1, -1],
        [-corner, -3, -3, -3, -corner],
    ]
    np.testing.assert_allclose(square, expected, rtol=1e-6)


def test_absent_and_filling_classes() -> None:
    full = np.full((2, 3), 4, np.uint8)
    background, absent, there = class_distances(full, [3, 4], (1, 1), radius=5)
    assert (background == -5).all()
    assert (absent == -5).all()
    assert (there == 5).all()


@given(
    arrays(np.uint8, (9, 11), elements=st.integers(0, 3)),
    st.sampled_from([(1.0, 1.0), (3.0, 1.0), (0.5, 2.0)]),
    st.floats(0.4, 30),
)
def test_bounding_box_changes_nothing(target: np.ndarray, spacing: tuple[float, float], radius: float) -> None:
    found = class_distances(target, [1, 2, 3], spacing, radius=radius)
    for channel, value in enumerate((0, 1, 2, 3)):
        inside = target == value
        if inside.any() and not inside.all():
            plain = distance_transform_edt(inside, sampling=spacing) - distance_transform_edt(~inside, sampling=spacing)
            np.testing.assert_allclose(found[channel], np.clip(plain, -radius, radius), rtol=1e-5)
    assert (np.take_along_axis(found, target[None].astype(int), 0) > 0).all()
    np.testing.assert_array_equal(top_two(found).best, target)


def test_blend_moves_a_border_halfway() -> None:
    # an edge after column 2 below and after column 6 above lies after column 4 in the middle
    lower, upper = (np.arange(9)[None] < edge for edge in (2, 6))
    planes = [class_distances(plane.astype(np.uint8), [1], (1, 1), radius=20) for plane in (lower, upper)]
    middle = top_two(blend(planes[0], planes[1], 0.5)).best
    assert middle.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0, 0]]
    quarter = top_two(blend(planes[0], planes[1], 0.25)).best
    assert quarter.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0, 0]]


def test_blend_at_its_ends() -> None:
    rng = np.random.default_rng(0)
    lower, upper = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(blend(lower, upper, 0), lower)
    np.testing.assert_array_equal(blend(lower, upper, 1), upper)


@given(arrays(np.float32, (4, 3, 5), elements=st.floats(-4, 4, width=16)))
def test_top_two_is_a_sort(scores: np.ndarray) -> None:
    found = top_two(scores)
    ordered = np.sort(scores, axis=0)
    np.testing.assert_array_equal(found.best, scores.argmax(axis=0))
    np.testing.assert_array_equal(found.margin, ordered[-1] - ordered[-2])
    assert (found.best != found.second).all()
    second = np.take_along_axis(scores, found.second[None].astype(int), 0)[0]
    np.testing.assert_array_equal(second, ordered[-2])


@pytest.mark.parametrize(
    ("index", "lower", "upper", "weight", "gap"),
    [
        (0, 3, 3, 0.0, 3.0),
        (3, 3, 3, 0.0, 0.0),
        (4, 3, 7, 0.25, 0.75),
        (5, 3, 7, 0.5, 1.0),
        (7, 7, 7, 0.0, 0.0),
        (9, 7, 7, 0.0, 2.0),
    ],
)
def test_neighbours(index: int, lower: int, upper: int, weight: float, gap: float) -> None:
    assert neighbours(index, (3, 7)) == (lower, upper, weight, gap)


class TestExpectedDice:
    def test_certain(self) -> None:
        labels = np.array([[1, 1, 0]], np.uint8)
        assert expected_dice(labels, 1 - labels, np.ones((1, 3), np.float32), [1], 5) == 1

    def test_by_hand(self) -> None:
        # 2 pixels predicted, 1.5 of them right; 0.25 missed: 2 * 1.5 / (2 + 1.5 + 0.25)
        labels = np.array([[1, 1, 0]], np.uint8)
        confidence = np.array([[1, 0.5, 0.75]], np.float32)
        assert expected_dice(labels, 1 - labels, confidence, [1], 5) == pytest.approx(0.8)

    def test_nothing_predicted(self) -> None:
        labels = np.zeros((1, 4), np.uint8)
        confidence = np.full((1, 4), 0.5, np.float32)
        assert expected_dice(labels, labels + 1, confidence, [1], 2) == pytest.approx(0.5)


def test_fit_slope_finds_the_one_that_made_the_counts() -> None:
    ratios = np.linspace(-4, 4, 81)
    share = 1 / (1 + np.exp(-ratios / 0.7))
    assert fit_slope(ratios, 1000 * share, 1000 * (1 - share)) == pytest.approx(0.7, rel=1e-3)
    assert fit_slope(ratios, share * 0 + 1, share * 0 + 1) == pytest.approx(50, rel=0.01)
