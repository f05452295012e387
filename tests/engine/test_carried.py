"""What chains bring to a slice, and how far they are believed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from napari_slicelabel.engine.carried import Carried, mixed, places, share_of_upper, trust

SHAPE = 12, 10
CPU = torch.device("cpu")


def chain(channel: int, *, moved: tuple[int, int] = (0, 0), doubt: float = 0.0) -> Carried:
    """Return a chain that says the same class everywhere (three channels), and that all has moved so far."""
    labels = torch.zeros(4, *SHAPE)
    labels[channel] = 1
    return Carried(labels, torch.full(SHAPE, doubt), moved_by(*moved))


def moved_by(rows: float, columns: float) -> Tensor:
    return places(*SHAPE) + torch.tensor([rows, columns])[:, None, None]


def inside(values: Tensor, margin: int = 4) -> Tensor:
    return values[..., margin:-margin, margin:-margin]


@given(st.integers(0, 2**32 - 1))
def test_packing_keeps_shares_and_places(seed: int) -> None:
    rng = np.random.default_rng(seed)
    carried = Carried(
        torch.from_numpy(rng.random((4, *SHAPE), np.float32)),
        torch.from_numpy(rng.random(SHAPE, np.float32)),
        places(*SHAPE) + torch.from_numpy(rng.uniform(-60, 60, (2, *SHAPE)).astype(np.float32)),
    )
    again = Carried.unpacked(carried.packed(), CPU)
    np.testing.assert_allclose(again.labels, carried.labels, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(again.doubt, carried.doubt, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(again.origin, carried.origin, atol=0.251)
    assert all(tensor.dtype == torch.float32 for tensor in again)


def test_what_moved_too_far_stays_at_the_farthest_place() -> None:
    far = Carried.unpacked(chain(0, moved=(500, -500)).packed(), CPU)
    moved = far.origin - places(*SHAPE)
    assert (moved[0] == 63.5).all()
    assert (moved[1] == -64).all()


def test_ways_that_agree_there_and_back_are_believed() -> None:
    """The slice lies two rows on from where the chain from below began, and one short of the other annotated slice."""
    below, above = chain(1, moved=(-2, 0)), chain(2, moved=(1, 0))
    # from one annotated slice to the other the whole has moved by three rows
    assert (inside(trust(below, above, moved_by(3, 0))) == 1).all()
    assert (inside(trust(above, below, moved_by(-3, 0))) == 1).all()


def test_the_farther_apart_the_less_is_believed() -> None:
    below, above = chain(1), chain(2)
    found = [float(inside(trust(below, above, moved_by(0, error))).max()) for error in range(5)]
    assert found[0] == 1
    assert found == sorted(found, reverse=True)
    assert found[1] == pytest.approx(0.5)


def test_the_way_that_does_not_agree_loses() -> None:
    """Both sides say something else in the middle of a gap; that from below went astray on its left half."""
    ends = [places(*SHAPE), places(*SHAPE)]
    ends[1][:, :, :5] += 6
    probability = mixed(chain(1), chain(2), ends, 0.5)
    assert probability.shape == (3, *SHAPE)
    np.testing.assert_allclose(probability.sum(0), 1, atol=1e-5)
    assert (probability[2, :, :5] > 0.9).all()
    np.testing.assert_allclose(probability[1, :, 5:], probability[2, :, 5:], atol=1e-5)


def test_doubt_on_one_side_leaves_the_word_to_the_other() -> None:
    ends = [places(*SHAPE), places(*SHAPE)]
    probability = mixed(chain(1, doubt=1.0), chain(2), ends, 0.5)
    assert (probability.argmax(0) == 2).all()
    both = mixed(chain(1, doubt=1.0), chain(2, doubt=1.0), ends, 0.5)
    # nothing explains it from either side: all classes nearly alike
    assert (both.amax(0) < 0.5).all()


@given(way=st.floats(0.01, 0.99), lost=st.tuples(st.floats(0.02, 1), st.floats(0.02, 1)))
def test_the_side_that_lost_more_counts_less(way: float, lost: tuple[float, float]) -> None:
    share = share_of_upper(way, *lost)
    assert 0 < share < 1
    assert share == pytest.approx(1 - share_of_upper(1 - way, *reversed(lost)))
    assert (share >= way - 1e-9) == (lost[0] >= lost[1]) or share == pytest.approx(way)
    assert share_of_upper(way, 0.3, 0.3) == pytest.approx(way)
