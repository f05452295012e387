"""Probabilities that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from napari_slicelabel.engine.confidence import (
    Calibration,
    HeldOut,
    calibrate,
    expected_dice,
    fit_share,
    label,
    mean_dice,
    pooled,
    true_dice,
    with_temperature,
)
from napari_slicelabel.engine.predict import Band

SCORES = arrays(np.float32, (3, 17), elements=st.floats(-8, 8, width=32))


def probabilities(scores: np.ndarray) -> np.ndarray:
    powered = np.exp(scores - scores.max(0))
    return (powered / powered.sum(0)).astype(np.float32)


@given(SCORES, st.floats(1, 8))
def test_a_temperature_takes_certainty_and_no_label(scores: np.ndarray, temperature: float) -> None:
    before = probabilities(scores)
    after = with_temperature(before, temperature)
    np.testing.assert_allclose(after.sum(0), 1, atol=1e-5)
    assert (after.max(0) <= before.max(0) + 1e-5).all()
    first, second = np.sort(before, 0)[:-3:-1]
    clear = first > second + 1e-4
    np.testing.assert_array_equal(after.argmax(0)[clear], before.argmax(0)[clear])


@given(SCORES, SCORES, st.floats(0, 1))
def test_the_pool_lies_between_the_two_and_takes_them_in_any_order(
    one: np.ndarray, other: np.ndarray, share: float
) -> None:
    one, other = probabilities(one), probabilities(other)
    found = pooled(one, other, share)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(found, pooled(other, one, 1 - share), atol=1e-4)
    # what neither doubts nobody doubts
    agreed = one.argmax(0) == other.argmax(0)
    np.testing.assert_array_equal(found.argmax(0)[agreed], one.argmax(0)[agreed])


def test_the_pool_of_one_is_that_one_and_nobody_can_rule_anything_out() -> None:
    sure, other = (np.array(values, np.float32)[:, None] for values in ([0.8, 0.2], [0.4, 0.6]))
    np.testing.assert_allclose(pooled(sure, other, 0), sure, atol=1e-6)
    np.testing.assert_allclose(pooled(sure, other, 1), other, atol=1e-6)
    # sqrt(.8 * .4) : sqrt(.2 * .6)
    np.testing.assert_allclose(pooled(sure, other, 0.5)[0], 0.32**0.5 / (0.32**0.5 + 0.12**0.5), atol=1e-6)
    never = np.array([[1.0], [0.0]], np.float32)
    assert pooled(never, np.array([[1e-6], [1.0]], np.float32), 0.5)[1] == pytest.approx(0.5, abs=1e-3)


def two_labellers(seed: int, knowing: float, other: float) -> tuple[list[HeldOut], list[HeldOut]]:
    """Return what two labellers say of three slices: the truth, drowned in as much noise as they do not know."""
    rng = np.random.default_rng(seed)
    found: tuple[list[HeldOut], list[HeldOut]] = ([], [])
    for _ in range(3):
        target = rng.integers(0, 3, 4000).astype(np.uint8)
        for said, knows in zip(found, (knowing, other), strict=True):
            scores = knows * np.eye(3)[target].T + rng.normal(size=(3, len(target)))
            said.append(HeldOut(probabilities(scores.astype(np.float32)), target, 5))
    return found


def surprise(one: list[HeldOut], other: list[HeldOut], share: float) -> float:
    """Return how unlikely the pool makes the truth, at the temperature that suits it best."""
    both = [
        a._replace(probability=pooled(a.probability, b.probability, share)) for a, b in zip(one, other, strict=True)
    ]
    temperature = calibrate(both, 1.0, final=True).temperature
    tempered = [with_temperature(slice_.probability, temperature) for slice_ in both]
    right = [np.take_along_axis(p, slice_.target[None], 0) for p, slice_ in zip(tempered, both, strict=True)]
    return float(-np.mean(np.log(right)))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000), st.floats(0.2, 3), st.floats(0.2, 3))
def test_the_share_is_that_which_makes_the_truth_most_likely(seed: int, knowing: float, other: float) -> None:
    one, two = two_labellers(seed, knowing, other)
    share = fit_share(one, two)
    assert surprise(one, two, share) <= min(surprise(one, two, tried) for tried in np.linspace(0, 1, 11)) + 1e-3
    assert fit_share(two, one) == pytest.approx(1 - share, abs=0.02)


def test_who_knows_nothing_has_no_share_however_sure() -> None:
    knows, guesses = two_labellers(0, 3.0, 0.0)
    background = np.array([[0.998], [0.001], [0.001]], np.float32)
    certain = [slice_._replace(probability=np.repeat(background, 4000, 1)) for slice_ in knows]
    for nothing in (guesses, certain):
        assert fit_share(knows, nothing) < 0.05
        assert fit_share(nothing, knows) > 0.95


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.floats(1.5, 4))
def test_calibration_finds_by_how_much_a_network_is_too_sure(seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    honest = probabilities(rng.normal(0, 1.5, (3, 40_000)))
    truth = (honest.cumsum(0) < rng.random(honest.shape[1])).sum(0).clip(max=2).astype(np.uint8)
    boasting = honest**factor / (honest**factor).sum(0)
    found = calibrate([HeldOut(boasting.astype(np.float32), truth, distance=4)], usual_area=1000)
    assert found.temperature == pytest.approx(factor, rel=0.05)
    # then its expected Dice needs no correction
    assert found.shift == pytest.approx(0, abs=0.1)
    assert found.reference == 4


def test_modesty_is_corrected_only_where_it_is_that_of_what_labels_in_the_end() -> None:
    """The networks that label held-out slices trained for less long than the one that is used."""
    probability = np.full((2, 1000), 0.4, np.float32)
    probability[0] = 0.6
    held_out = [HeldOut(probability, np.zeros(1000, np.uint8), 3)]
    assert calibrate(held_out, 10).temperature == pytest.approx(1, abs=1e-3)
    final = calibrate(held_out, 10, final=True)
    assert final.temperature == pytest.approx(0.25, abs=1e-3)
    # no surer than at the lowest temperature, however far away
    assert final.temperature_at(100) == 0.25


def test_few_held_out_slices_shift_the_expected_dice_less() -> None:
    probability = np.full((2, 1000), 0.3, np.float32)
    probability[1] = 0.7
    # half of what was predicted is wrong
    wrong = HeldOut(probability, np.repeat([0, 1], 500).astype(np.uint8), 5)
    shifts = [calibrate([wrong] * count, 500).shift for count in (1, 4, 36)]
    assert 0 > shifts[0] > shifts[1] > shifts[2]
    assert shifts[0] / shifts[2] == pytest.approx((1 / 5) / (36 / 40), rel=1e-3)
    empty = HeldOut(probability[::-1], np.zeros(1000, np.uint8), 5)
    # where even slices that lie far away are better than expected, all others are
    right = HeldOut(probability, np.ones(1000, np.uint8), 5)
    better = [calibrate([right] * count, 500).shift for count in (1, 36)]
    assert better[0] > 0
    assert better[0] == pytest.approx(better[1])
    # of slices without a class there is no Dice
    assert calibrate([wrong, empty, empty], 500).shift == pytest.approx(calibrate([wrong], 500).shift, abs=0.2)


def test_corrections_grow_with_the_distance_and_end_at_twice_that_of_held_out_slices() -> None:
    calibration = Calibration(temperature=2.0, shift=-1.0, reference=5)
    assert [calibration.temperature_at(d) for d in (0, 5, 10, 50)] == [1, 2, 3, 3]
    assert calibration.corrected(0.5, 0) == pytest.approx(0.5)
    scores = [calibration.corrected(0.9, d) for d in (0, 2, 5, 10, 50)]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] == scores[-2]
    assert calibration.distance(3) == 3
    assert calibration.distance(None) == 10


def test_expected_dice_is_that_of_truths_drawn_from_the_probabilities() -> None:
    rng = np.random.default_rng(0)
    probability = probabilities(rng.normal(0, 2, (3, 60, 60)).astype(np.float32))
    found = label([Band(slice(0, 60), probability)], (60, 60), 2, 1.0, usual_area=1000)
    drawn = []
    for _ in range(30):
        truth = (probability.cumsum(0) < rng.random((60, 60))).sum(0).clip(max=2).astype(np.uint8)
        drawn.append(true_dice(found.channels, truth))
    assert found.expected == pytest.approx(np.mean([score for score in drawn if score is not None]), abs=0.01)
    np.testing.assert_array_equal(found.channels, probability.argmax(0))
    np.testing.assert_allclose(found.confidence, probability.max(0))


def test_where_nothing_is_predicted_the_score_falls_with_what_may_be_there() -> None:
    nothing, much = (expected_dice(np.zeros(2), np.zeros(2), np.full(2, mass), 100) for mass in (0.0, 50.0))
    assert nothing == 1
    assert much == pytest.approx(0.5)


def test_slices_without_any_class_do_not_count() -> None:
    empty = HeldOut(np.array([[0.9] * 4, [0.1] * 4], np.float32), np.zeros(4, np.uint8), 1)
    right = HeldOut(np.array([[0.1] * 4, [0.9] * 4], np.float32), np.ones(4, np.uint8), 1)
    assert mean_dice([empty, right]) == 1
    assert mean_dice([empty]) == 0
