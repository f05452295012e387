"""Max cover: the lazy search against the plain one, and what theory promises."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from napari_slicelabel.engine.select.coverage import Cover, best_cover, greedy_cover
from napari_slicelabel.engine.select.exchange import Chosen
from napari_slicelabel.engine.select.gains import Gains, GroupBounds, Reach
from napari_slicelabel.engine.select.similarities import NORM, Similarities
from napari_slicelabel.engine.select.threads import one_product_each
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FULL = NORM**2

# few different values: ties, rows of zeros and rows that are alike are common
features = st.tuples(st.integers(1, 40), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]))
)


def matrix(similarities: Similarities) -> NDArray[np.int64]:
    return similarities.to_all(np.arange(len(similarities))).astype(np.int64)


def plain(sims: NDArray[np.int64], budget: int, annotated: tuple[int, ...] = ()) -> list[int]:
    """Greedy search as the paper writes it, in whole numbers."""
    best = np.zeros(len(sims), np.int64)
    for index in annotated:
        best = np.maximum(best, sims[index])
    picked: list[int] = []
    while len(picked) < min(budget, len(sims) - len(set(annotated))):
        gains = {i: np.maximum(sims[i] - best, 0).sum() for i in range(len(sims)) if i not in (*picked, *annotated)}
        pick = min(gains, key=lambda i: (-gains[i], i))
        best = np.maximum(best, sims[pick])
        picked.append(pick)
    return picked


def value(sims: NDArray[np.int64], chosen: tuple[int, ...]) -> int:
    return int(sims[list(chosen)].max(0).sum()) if chosen else 0


@given(features, st.data())
def test_the_picks_are_those_of_the_plain_search(rows: NDArray[np.float32], data: st.DataObject) -> None:
    similarities = Similarities(rows)
    annotated = tuple(data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=3)))
    budget = data.draw(st.integers(0, len(rows) + 2))
    cover = greedy_cover(similarities, budget, annotated=annotated)
    assert list(cover.order) == plain(matrix(similarities), budget, annotated)


@pytest.mark.parametrize("reach", [0.0, 15.0])
def test_the_picks_are_those_of_the_plain_search_on_a_long_stack(reach: float) -> None:
    rng = np.random.default_rng(0)
    rows = np.cumsum(rng.normal(size=(700, 24)), 0) + rng.normal(size=(700, 24))
    similarities = Similarities(rows, positions=np.arange(700.0), reach=reach)
    assert list(greedy_cover(similarities, 12).order) == plain(matrix(similarities), 12)


@given(features)
def test_gains_never_rise_and_add_up(rows: NDArray[np.float32]) -> None:
    similarities = Similarities(rows)
    cover = greedy_cover(similarities, len(rows), annotated=(0,))
    assert all(a >= b - 1e-12 for a, b in zip(cover.gains, cover.gains[1:], strict=False))
    assert all(a <= b for a, b in zip(cover.coverage, cover.coverage[1:], strict=False))
    assert cover.start + sum(cover.gains) == pytest.approx((*cover.coverage, cover.start)[len(cover.order) - 1])
    assert len(cover.order) == len(rows) - 1
    assert 0 not in cover.order


def covered_by(sims: NDArray[np.int64], chosen: set[int]) -> NDArray[np.float32]:
    best = sims[sorted(chosen)].max(0) if chosen else np.zeros(len(sims), np.int64)
    return best.astype(np.float32)


@given(features, st.data())
def test_bounds_of_groups_hold(rows: NDArray[np.float32], data: st.DataObject) -> None:
    similarities = Similarities(rows)
    sims = matrix(similarities)
    best = covered_by(sims, data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=4)))
    with one_product_each() as pool:
        bounds = GroupBounds(similarities.rows, pool)
    bounds.update(best)
    assert (bounds.gains(np.arange(len(rows))) >= np.maximum(sims - best, 0).sum(1)).all()


@given(features, st.data())
def test_nothing_out_of_reach_is_more_similar(rows: NDArray[np.float32], data: st.DataObject) -> None:
    similarities = Similarities(rows)
    sims = matrix(similarities)
    level = covered_by(sims, data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=4)))
    some = np.array(sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1, max_size=4))))
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    with one_product_each() as pool:
        columns = Reach(similarities.rows, pool).above(level, wanted)(some)
    assert wanted[columns].all()
    beyond = np.setdiff1d(np.flatnonzero(wanted), columns)
    assert (sims[some][:, beyond] <= level[beyond]).all()


def test_reach_leaves_most_of_a_long_stack_alone() -> None:
    angle = np.linspace(0, np.pi, 2000)
    similarities = Similarities(np.stack([np.cos(angle), np.sin(angle)], 1))
    level = similarities.to_all(np.arange(0, 2000, 200)).max(0)
    with one_product_each() as pool:
        columns = Reach(similarities.rows, pool).above(level, np.ones(2000, bool))(np.arange(30))
    assert len(columns) < 0.2 * 2000


def test_bounds_hold_while_slices_are_picked() -> None:
    """Lowered by what was covered since, never measured again: never below the gain, and in the end the gain itself."""
    rng = np.random.default_rng(0)
    similarities = Similarities(np.cumsum(rng.normal(size=(300, 24)), 0) + rng.normal(size=(300, 24)))
    sims, best = matrix(similarities), np.zeros(300, np.float32)
    everything = np.arange(300)
    with one_product_each() as pool:
        search = Gains(similarities, np.ones(300, bool), best, pool)
        search.measure(everything)
        for pick in greedy_cover(similarities, 100).order:
            best = np.maximum(best, sims[pick]).astype(np.float32)
            search.cover(best)
            if pick % 3 == 0:
                search.refresh(everything[: 2 * pick + 1])
            gains = np.maximum(sims - best, 0).sum(1)
            assert (search.bound >= gains).all()
        search.refresh(everything)
        assert (search.bound == gains).all()


def test_a_long_stack_is_not_compared_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where slices change slowly far less than all pairs are looked at."""
    angle = np.linspace(0, np.pi, 4000)
    looked: list[int] = []
    near = Similarities._near

    def counting(self: Similarities, found: NDArray[np.float32], *numbers: object) -> NDArray[np.float32]:
        looked.append(found.size)
        return near(self, found, *numbers)  # type: ignore[arg-type]

    # every product goes through it
    monkeypatch.setattr(Similarities, "_near", counting)
    greedy_cover(Similarities(np.stack([np.cos(angle), np.sin(angle)], 1)), 10)
    assert 4000 < sum(looked) < 0.3 * 4000**2


# -- exchanges ------------------------------------------------------------------------------------------------------


@given(features, st.data())
def test_exchanges_never_lose(rows: NDArray[np.float32], data: st.DataObject) -> None:
    similarities = Similarities(rows)
    sims = matrix(similarities)
    annotated = tuple(data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=2)))
    free = [index for index in range(len(rows)) if index not in annotated]
    budget = data.draw(st.integers(0, len(rows)))
    other = data.draw(st.permutations(free))[:budget]
    cover = best_cover(similarities, budget, annotated=annotated, others=[other])
    greedy = greedy_cover(similarities, budget, annotated=annotated)
    found = value(sims, (*annotated, *cover.order))
    assert found >= value(sims, (*annotated, *greedy.order))
    assert found >= value(sims, (*annotated, *other))
    assert len(set(cover.order)) == len(cover.order) == min(budget, len(free))
    assert not set(cover.order) & set(annotated)
    assert all(a >= b - 1e-12 for a, b in zip(cover.gains, cover.gains[1:], strict=False))
    if cover.order:
        assert cover.coverage[-1] == pytest.approx(min(1, found / (FULL * len(rows))))


@pytest.mark.parametrize("budget", [1, 2, 3, 4])
def test_close_to_the_optimum(budget: int) -> None:
    """On small stacks that wander, that have scenes, and that are noise."""
    rng = np.random.default_rng(budget)
    for trial in range(12):
        noise = rng.normal(size=(16, 6))
        rows = (np.cumsum(noise, 0), np.repeat(noise[:4], 4, 0) + 0.3 * noise, noise)[trial % 3]
        similarities = Similarities(rows - rows.mean(0))
        sims = matrix(similarities)
        optimum = max(value(sims, chosen) for chosen in combinations(range(16), budget))
        assert value(sims, best_cover(similarities, budget).order) >= 0.95 * optimum


def test_greedy_search_is_caught_where_exchanges_are_not() -> None:
    """The slice in the middle is worth most alone, and is in the way of the two that cover everything."""
    angle = np.radians([0, 10, 20, 45, 70, 80, 90])
    similarities = Similarities(np.stack([np.cos(angle), np.sin(angle)], 1))
    assert 3 in greedy_cover(similarities, 2).order
    sims = matrix(similarities)
    optimum = max(combinations(range(7), 2), key=lambda chosen: value(sims, chosen))
    assert 3 not in optimum
    assert value(sims, best_cover(similarities, 2).order) == value(sims, optimum)


@given(features, st.data())
def test_exchanges_know_what_the_second_best_is(rows: NDArray[np.float32], data: st.DataObject) -> None:
    """What is kept from one exchange to the next is what a fresh start would find."""
    similarities = Similarities(rows)
    count = len(rows)
    covered = covered_by(matrix(similarities), data.draw(st.sets(st.integers(0, count - 1), max_size=2)))
    start = data.draw(st.permutations(range(count)))[: data.draw(st.integers(1, count))]
    weight = np.ones(count)
    state = Chosen(similarities, list(start), covered, weight, float(len(start)))
    for index in data.draw(st.permutations(range(count))):
        before = state.coverage
        took = state.take(index, similarities.to_all(np.array([index]))[0])
        fresh = Chosen(similarities, list(state.indices), covered, weight, float(len(start)))
        np.testing.assert_array_equal(state.best, fresh.best)
        np.testing.assert_array_equal(state.second, fresh.second)
        np.testing.assert_array_equal(state.missed, fresh.missed)
        assert (state.coverage > before) == took


@given(features, st.data())
def test_with_costs_it_covers_no_less_and_costs_no_more_than_others(
    rows: NDArray[np.float32], data: st.DataObject
) -> None:
    similarities = Similarities(rows)
    costs = np.array(data.draw(st.lists(st.sampled_from([1.0, 2.0, 6.0]), min_size=len(rows), max_size=len(rows))))
    budget = data.draw(st.integers(1, len(rows)))
    other = data.draw(st.permutations(range(len(rows))))[:budget]
    cover = best_cover(similarities, budget, costs=costs, others=[other])
    sims = matrix(similarities)
    assert len(set(cover.order)) == budget
    assert costs[list(cover.order)].sum() <= costs[other].sum()
    assert value(sims, cover.order) >= value(sims, tuple(other))


def test_dear_slices_are_left_out_where_nothing_else_sets_a_limit() -> None:
    angle = np.radians([0, 10, 20, 45, 70, 80, 90])
    similarities = Similarities(np.stack([np.cos(angle), np.sin(angle)], 1))
    costs = np.array([3.0, 3, 3, 1, 3, 3, 3])
    assert 3 in best_cover(similarities, 2, costs=costs).order
    # two dear ones cover more, and may be had where others cost as much
    assert 3 not in best_cover(similarities, 2, costs=costs, others=[(0, 6)]).order


def test_long_stacks_exchange_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_slicelabel.engine.select.exchange._POOL", 50 * 400)
    rng = np.random.default_rng(0)
    similarities = Similarities(np.cumsum(rng.normal(size=(400, 8)), 0))
    spread = tuple(range(20, 400, 40))
    cover = best_cover(similarities, 10, others=[spread])
    sims = matrix(similarities)
    assert value(sims, cover.order) >= max(value(sims, spread), value(sims, greedy_cover(similarities, 10).order))


def test_without_memory_for_exchanges_the_best_start_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_slicelabel.engine.select.exchange._CHOSEN", 5)
    angle = np.radians([0, 10, 20, 45, 70, 80, 90])
    similarities = Similarities(np.stack([np.cos(angle), np.sin(angle)], 1))
    assert sorted(best_cover(similarities, 2, others=[(1, 5)]).order) == [1, 5]
    assert 3 in best_cover(similarities, 2, others=[(0, 2)]).order


# -- what theory promises -------------------------------------------------------------------------------------------


@given(st.data())
def test_it_is_never_worse_than_theory_allows(data: st.DataObject) -> None:
    rows = data.draw(arrays(np.float32, (8, 3), elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])))
    similarities = Similarities(rows)
    sims = matrix(similarities)
    budget = data.draw(st.integers(1, 4))
    found = value(sims, greedy_cover(similarities, budget).order)
    optimum = max(value(sims, chosen) for chosen in combinations(range(8), budget))
    assert found >= (1 - 1 / np.e) * optimum


@given(features, st.randoms(use_true_random=False))
def test_order_of_the_slices_changes_nothing_but_ties(rows: NDArray[np.float32], random: object) -> None:
    permutation = np.random.default_rng(random.randrange(2**32)).permutation(len(rows))  # type: ignore[attr-defined]
    budget = min(5, len(rows))
    straight = greedy_cover(Similarities(rows), budget)
    shuffled = greedy_cover(Similarities(rows[permutation]), budget)
    if straight.coverage != shuffled.coverage:  # only a tie may have sent them different ways
        sims, best = matrix(Similarities(rows)), np.zeros(len(rows), np.int64)
        tied = False
        for pick in straight.order:
            gains = np.maximum(sims - best, 0).sum(1)
            tied |= bool((gains == gains[pick]).sum() > 1)
            best = np.maximum(best, sims[pick])
        assert tied


def test_each_slice_is_stood_for_by_what_is_most_like_it() -> None:
    rows = np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.1], [0, 0, 0]])
    cover = greedy_cover(Similarities(rows), 2)
    assert cover.order[0] == 1
    assert cover.represented_by.tolist() == [1, 1, cover.order[1], cover.order[1], -1]
    assert 0.75 < cover.coverage[-1] < 0.8  # the empty slice is like nothing


def test_annotated_slices_cover_and_are_not_picked() -> None:
    rows = np.repeat(np.eye(3), 4, axis=0)
    cover = greedy_cover(Similarities(rows), 2, annotated=(1, 6))
    assert cover.start == pytest.approx(2 / 3)
    assert cover.order[0] == 8
    assert cover.coverage == pytest.approx((1.0, 1.0))


def test_only_candidates_are_picked_but_everything_is_covered() -> None:
    rows = np.repeat(np.eye(2), [5, 3], axis=0)
    cover = greedy_cover(Similarities(rows), 9, candidates=(2, 6))
    assert cover.order == (2, 6)
    assert cover.coverage == pytest.approx((5 / 8, 1.0))


def test_costs_turn_the_balance() -> None:
    rows = np.repeat(np.eye(2), [5, 3], axis=0)
    costs = np.where(np.arange(8) < 5, 4.0, 1.0)
    assert greedy_cover(Similarities(rows), 1).order == (0,)
    assert greedy_cover(Similarities(rows), 1, costs=costs).order == (5,)


def test_positions_keep_picks_apart() -> None:
    rows = np.ones((40, 2))
    order = greedy_cover(Similarities(rows, positions=np.arange(40.0), reach=5.0), 4).order
    assert min(abs(a - b) for a, b in combinations(order, 2)) >= 6
    stacks = np.repeat([0, 1], 20)
    apart = Similarities(rows, positions=np.tile(np.arange(20.0), 2), stacks=stacks, reach=2.0)
    np.testing.assert_array_equal(apart.to_all(np.array([0]))[0, 20:], FULL_OF_ONES)


FULL_OF_ONES = np.full(20, np.float32(round(NORM / np.sqrt(2)) ** 2 * 2))


def test_the_same_on_every_machine() -> None:
    """Products of rounded features are whole numbers that float32 holds: any order of summation gives them."""
    rng = np.random.default_rng(0)
    similarities = Similarities(rng.normal(size=(50, 4000)))
    rows = similarities.rows.astype(np.int64)
    np.testing.assert_array_equal(matrix(similarities), np.maximum(rows @ rows.T, 0))
    assert matrix(similarities).max() < 2**24


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        (np.zeros((0, 3)), "features of shape"),
        (np.zeros(3), "features of shape"),
        (np.zeros((3, 0)), "features of shape"),
        (np.array([[np.nan, 1.0]]), "no numbers"),
    ],
)
def test_bad_features(rows: NDArray[np.float64], word: str) -> None:
    with pytest.raises(InputError, match=word):
        Similarities(rows)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"annotated": (7,)}, "slice 7"),
        ({"candidates": (-1,)}, "slice -1"),
        ({"costs": np.zeros(3)}, "costs"),
        ({"costs": np.ones(2)}, "costs"),
    ],
)
def test_bad_orders(options: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        greedy_cover(Similarities(np.eye(3)), 1, **options)  # type: ignore[arg-type]


def test_nothing_to_pick() -> None:
    cover = greedy_cover(Similarities(np.eye(2)), 3, annotated=(0, 1))
    assert isinstance(cover, Cover)
    assert (cover.order, cover.start) == ((), 1.0)
