from __future__ import annotations

import numpy as np
import pytest

from napari_slicelabel.engine.metrics import (
    Calibration,
    Confusion,
    instance_scores,
    instances_from_membrane,
    spearman,
    surface_distances,
)
from napari_slicelabel.errors import InputError

PREDICTION = np.array([[1, 1, 0, 0], [1, 2, 2, 0]], np.uint8)
TRUTH = np.array([[1, 0, 0, 0], [1, 2, 2, 2]], np.uint8)


class TestConfusion:
    def test_by_hand(self) -> None:
        counts = Confusion.of(PREDICTION, TRUTH)
        assert counts.dice(1) == pytest.approx(4 / 5)  # 2 hits, 3 predicted, 2 true
        assert counts.iou(1) == pytest.approx(2 / 3)
        assert counts.dice(2) == pytest.approx(4 / 5)
        assert counts.mean_dice([1, 2]) == pytest.approx(0.8)

    def test_absent_classes(self) -> None:
        counts = Confusion.of(PREDICTION, TRUTH)
        assert counts.dice(3) is None
        assert counts.iou(3) is None
        assert counts.mean_dice([1, 3]) == counts.dice(1)
        assert counts.mean_dice([3]) is None
        only_one = Confusion.of(np.array([4], np.uint8), np.array([0], np.uint8))
        assert (only_one.dice(4), only_one.iou(4)) == (0, 0)

    def test_slices_add_up_to_the_volume(self) -> None:
        rng = np.random.default_rng(0)
        prediction, truth = rng.integers(0, 4, (2, 5, 6, 7), np.uint8)
        added = sum((Confusion.of(p, t) for p, t in zip(prediction, truth, strict=True)), Confusion())
        assert added.mean_iou([1, 2, 3]) == Confusion.of(prediction, truth).mean_iou([1, 2, 3])


class TestSurfaceDistances:
    def test_two_points_by_hand(self) -> None:
        prediction, truth = np.zeros((2, 5, 5), bool), np.zeros((2, 5, 5), bool)
        prediction[0, 0, 0] = truth[1, 0, 0] = True
        assert surface_distances(prediction, truth, (40, 4, 4)).hd95 == 40
        assert surface_distances(prediction, truth, (2, 4, 4)).assd == 2

    def test_shifted_bar_by_hand(self) -> None:
        # a bar of 4 pixels, and the same bar one further: each surface has one pixel at distance 1 and three at 0
        prediction, truth = np.zeros((1, 1, 6), bool), np.zeros((1, 1, 6), bool)
        prediction[..., :4] = truth[..., 1:5] = True
        found = surface_distances(prediction, truth, (1, 1, 3))
        assert found.assd == pytest.approx(3 * 2 / 8)
        assert found.hd95 == pytest.approx(np.percentile([3, 0, 0, 0], 95))

    def test_against_every_pair(self) -> None:
        rng = np.random.default_rng(1)
        prediction, truth = rng.random((2, 4, 6, 5)) > 0.6
        spacing = (3.0, 1.0, 2.0)

        def surface(mask: np.ndarray) -> np.ndarray:
            padded = np.pad(mask, 1)
            inner = mask.copy()
            for axis in range(3):
                for step in (-1, 1):
                    inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
            return np.asarray(np.argwhere(mask & ~inner) * np.array(spacing))

        ours, theirs = surface(prediction), surface(truth)
        pairs = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
        there, back = pairs.min(1), pairs.min(0)
        found = surface_distances(prediction, truth, spacing)
        assert found.assd == pytest.approx(np.concatenate([there, back]).mean())
        assert found.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))

    def test_only_counted_slices_start(self) -> None:
        prediction, truth = np.zeros((2, 1, 9), bool), np.zeros((2, 1, 9), bool)
        prediction[0, 0, 0] = truth[0, 0, 8] = True
        prediction[1, 0, 4] = truth[1, 0, 4] = True
        counted = np.array([False, True]).reshape(2, 1, 1)
        found = surface_distances(prediction, truth, (1, 1, 1), counted=counted)
        assert (found.hd95, found.assd) == (0, 0)
        nowhere = surface_distances(prediction, truth, (1, 1, 1), counted=counted & False)
        assert nowhere.assd is None
        assert nowhere.reason

    def test_absent(self) -> None:
        there, empty = np.ones((2, 2), bool), np.zeros((2, 2), bool)
        assert surface_distances(there, empty, (1, 1)).reason == "absent in truth"
        assert surface_distances(empty, there, (1, 1)).hd95 is None
        assert surface_distances(empty, empty, (1, 1)).reason == "absent in prediction and truth"


class TestInstances:
    MEMBRANE = np.array([[0, 0, 1, 0, 0], [0, 0, 1, 3, 0]], np.uint8)

    def test_components_grow_into_the_membrane(self) -> None:
        found = instances_from_membrane(self.MEMBRANE, 1)
        assert found[:, :2].max() == found[:, :2].min() == 1
        assert found[:, 3:].max() == found[:, 3:].min() == 2
        assert (found > 0).all()

    def test_all_membrane(self) -> None:
        assert not instances_from_membrane(np.ones((3, 3), np.uint8), 1).any()

    def test_perfect(self) -> None:
        truth = np.array([[7, 7, 0, 900, 900]] * 2)
        scores = instance_scores(instances_from_membrane(self.MEMBRANE, 1), truth)
        assert scores is not None
        assert (scores.rand_error, scores.split, scores.merge) == pytest.approx((0, 0, 0), abs=1e-12)

    def test_merged_and_split_by_hand(self) -> None:
        two, one = np.array([[1, 1, 2, 2]]), np.array([[5, 5, 5, 5]])
        merged, split = instance_scores(one, two), instance_scores(two, one)
        assert merged is not None
        assert split is not None
        # one bit says which half
        assert (merged.split, merged.merge) == pytest.approx((0, 1))
        assert (split.split, split.merge) == pytest.approx((1, 0))

    def test_nothing_true(self) -> None:
        assert instance_scores(np.ones((2, 2), int), np.zeros((2, 2), int)) is None


class TestCalibration:
    def test_by_hand(self) -> None:
        # four voxels at 0.8 of which two are right, four at 0.2 of which one is right
        sure = np.array([204] * 4 + [51] * 4, np.uint8)
        right = np.array([1, 1, 0, 0, 1, 0, 0, 0], bool)
        found = Calibration.of(sure, right)
        assert found.error() == pytest.approx((0.3 + 0.05) / 2)
        assert found.gap() == pytest.approx((0.3 - 0.05) / 2)

    def test_certain_and_right(self) -> None:
        found = Calibration.of(np.array([255], np.uint8), np.array([True])) + Calibration()
        assert (found.error(), found.gap()) == (0, 0)

    def test_nothing_counted(self) -> None:
        assert Calibration().error() is None
        assert Calibration().gap() is None


def test_spearman() -> None:
    assert spearman([0.1, 0.2, 0.9], [3, 4, 5]) == pytest.approx(1)
    assert spearman([0.1, 0.2, 0.9], [5, 4, 3]) == pytest.approx(-1)
    assert spearman([0.1, 0.1, 0.1], [5, 4, 3]) is None
    assert spearman([0.1, 0.2], [5, 4]) is None
    with pytest.raises(InputError, match="pairs"):
        spearman([1], [])
