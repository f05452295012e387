"""How the labelled region grows, for slices and for boxes, and what of a volume is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_slicelabel.data.boxes import Box, SliceRef
from napari_slicelabel.engine.pieces import pieces
from napari_slicelabel.engine.regions import Region, Seed, find_seeds, front_rounds, physical_step, smallest_step

if TYPE_CHECKING:
    from napari_slicelabel.data.project import Project

WHOLE = Box((0, 0, 0), (12, 8, 8))


def test_a_box_grows_in_all_directions_and_not_beyond_its_limits() -> None:
    region = Region((Seed(Box((5, 3, 3), (7, 5, 5)), WHOLE),), (2, 1, 1))
    assert region.boxes(0) == (Box((5, 3, 3), (7, 5, 5)),)
    assert region.boxes(1) == (Box((3, 2, 2), (9, 6, 6)),)
    assert region.boxes(9) == (WHOLE,)
    assert sorted(region.planes(1)) == [3, 4, 5, 6, 7, 8]
    assert np.count_nonzero(region.inside(3, (8, 8), 1)) == 16
    assert not region.inside(2, (8, 8), 1).any()
    assert [region.is_full(rounds) for rounds in range(5)] == [False, False, False, True, True]
    assert region.rounds_to_fill() == 3


def test_seeds_fill_their_limits_together() -> None:
    halves = (Seed(Box((0, 0, 0), (12, 8, 3)), WHOLE), Seed(Box((0, 0, 5), (12, 8, 8)), WHOLE))
    assert Region(halves, (1, 1, 1)).rounds_to_fill() == 1
    assert not Region(halves[:1], (1, 1, 1)).is_full(1)


def test_where_nothing_is_known_nothing_grows() -> None:
    (piece,) = pieces(range(12), [3])
    assert find_seeds(piece, lambda _: np.zeros((8, 8), bool), (8, 8)) == ()
    region = Region((), physical_step(smallest_step((), (1, 1, 1), 3), (1, 1, 1)))
    assert region.rounds_to_fill() == 0
    assert region.planes(5) == frozenset()


def test_the_furthest_corner_counts() -> None:
    seeds = (Seed(Box((9, 3, 3), (10, 4, 4)), WHOLE), Seed(Box((4, 0, 7), (5, 1, 8)), WHOLE))
    region = Region(seeds, (1, 1, 1))
    needed = region.rounds_to_fill()
    masks = [np.stack([region.inside(index, (8, 8), rounds) for index in range(12)]) for rounds in range(needed + 1)]
    assert [bool(mask.all()) for mask in masks] == [False] * needed + [True]


@given(
    annotated=st.sets(st.integers(0, 19), min_size=1, max_size=4),
    step=st.integers(1, 5),
    stop=st.integers(0, 19),
)
def test_whole_slices_as_boxes_grow_like_fronts(annotated: set[int], step: int, stop: int) -> None:
    stack = pieces(range(20), sorted(annotated), [stop])
    seeds = [seed for piece in stack for seed in find_seeds(piece, lambda _: np.ones((3, 4), bool), (3, 4))]
    region = Region(tuple(seeds), (step, step, step))
    for number, planes in enumerate(front_rounds(stack, 0, step)):
        assert set(planes) == region.planes(number + 1) - region.planes(number) - annotated


@pytest.mark.parametrize(("spacing", "rounds"), [((1, 1, 1), 3), ((4, 1, 1), 2), ((1, 1, 2), 5)])
def test_the_smallest_step_is_enough_and_a_smaller_one_is_not(spacing: tuple[float, ...], rounds: int) -> None:
    seeds = (Seed(Box((5, 3, 3), (7, 5, 5)), WHOLE),)
    step = smallest_step(seeds, spacing, rounds)
    assert Region(seeds, physical_step(step, spacing)).is_full(rounds)
    assert step == 1 or not Region(seeds, physical_step(step - 1, spacing)).is_full(rounds)


def test_a_step_is_as_long_along_every_axis() -> None:
    assert physical_step(8, (1, 1, 1)) == (8, 8, 8)
    assert physical_step(8, (4, 0.5, 0.5)) == (1, 8, 8)
    assert physical_step(3, (40, 4, 4)) == (1, 3, 3)  # never 0


def test_seeds_are_what_was_painted() -> None:
    """Two subvolumes at the same depth, one of them longer, and a whole slice further up."""
    known = np.zeros((12, 8, 8), bool)
    known[2:5, 1:3, 1:3] = True
    known[2:4, 5:8, 4:8] = True
    known[9] = True
    (piece,) = pieces(range(12), [2, 3, 4, 9])
    found = find_seeds(piece, lambda index: known[index], (8, 8))
    assert {seed.box for seed in found} == {
        Box((2, 1, 1), (5, 3, 3)),
        Box((2, 5, 4), (4, 8, 8)),
        Box((9, 0, 0), (10, 8, 8)),
    }
    assert {seed.limits for seed in found} == {WHOLE}


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_a_block_of_human_labels_is_what_slices_say(project: Project, axis: str) -> None:
    """Complete slices along two axes, and strokes in a third slice."""
    from napari_slicelabel.engine.config import build_config
    from napari_slicelabel.engine.regions import Known
    from napari_slicelabel.engine.run import run

    annotation, rng = project.annotation("tiny"), np.random.default_rng(0)
    annotation.write_slice(SliceRef("z", 5), rng.integers(0, 3, (64, 64)).astype(np.uint8), complete=True)
    annotation.write_slice(SliceRef("x", 9), rng.integers(0, 3, (16, 64)).astype(np.uint8), complete=True)
    strokes = np.zeros((16, 64), np.uint8)
    strokes[3:9, 20:30], strokes[10:12, 2:40] = 2, 255
    annotation.write_slice(SliceRef("y", 30), strokes)
    for _ in run(project, build_config("interpolate", {"axis": axis})):
        break

    class Context:
        def __init__(self) -> None:
            self.axis, self.volumes, self.class_ids = axis, ("tiny",), (1, 2)

        def need_classes(self) -> None: ...

        def annotated(self, name: str) -> tuple[int, ...]:
            return project.annotation(name).annotated(axis)  # type: ignore[arg-type]

        def annotation(self, name: str) -> object:
            return project.annotation(name)

    known = Known(Context())  # type: ignore[arg-type]
    depth = (16, 64, 64)["zyx".index(axis)]
    planes = [known.human_plane("tiny", axis, index) for index in range(depth)]  # type: ignore[arg-type]
    whole = np.stack(planes)
    np.testing.assert_array_equal(known.human_block("tiny", Box.whole(whole.shape)), whole)
    part = Box((2, 3, 5), (12, 16, 40))
    np.testing.assert_array_equal(known.human_block("tiny", part), whole[part.slices])
    assert (whole == 255).any()
    assert {0, 1, 2} <= set(np.unique(whole).tolist())
