from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_slicelabel.data.boxes import AXES, Box, SliceRef
from napari_slicelabel.errors import InputError

POINTS = st.tuples(*[st.integers(-6, 12)] * 3)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    a, b = draw(POINTS), draw(POINTS)
    return Box(tuple(map(min, a, b)), tuple(map(max, a, b)))


def voxels(box: Box) -> set[tuple[int, ...]]:
    return {(*map(int, np.add(i, box.start)),) for i in np.ndindex(*box.shape)}


@settings(deadline=None, max_examples=60)
@given(boxes(), st.tuples(*[st.integers(1, 7)] * 3))
def test_tiles_cover_every_voxel_exactly_once(box: Box, size: tuple[int, int, int]) -> None:
    seen = np.zeros(box.shape, int)
    for tile in box.tiles(size):
        assert box.contains(tile)
        assert all(a <= b for a, b in zip(tile.shape, size, strict=True))
        seen[tuple(slice(a - o, b - o) for a, b, o in zip(tile.start, tile.stop, box.start, strict=True))] += 1
    assert (seen == 1).all()


@settings(deadline=None, max_examples=60)
@given(boxes(), boxes())
def test_intersection_is_that_of_the_voxels(a: Box, b: Box) -> None:
    assert voxels(a.intersect(b)) == voxels(a) & voxels(b)
    assert a.contains(b) == (voxels(b) <= voxels(a))


@settings(deadline=None, max_examples=60)
@given(boxes(), st.integers(0, 4))
def test_growing_and_clipping(box: Box, margin: int) -> None:
    grown = box.grow(margin)
    assert grown.shape == tuple(n + 2 * margin for n in box.shape)
    assert voxels(grown.clip((5, 6, 7))) == voxels(grown) & voxels(Box.whole((5, 6, 7)))


@pytest.mark.parametrize("axis", AXES)
def test_a_slice_is_a_box_of_thickness_one(axis: str) -> None:
    shape = (4, 5, 6)
    ref = SliceRef(axis, 3)  # type: ignore[arg-type]
    box = ref.box(shape)
    assert box.shape[ref.axis_number] == 1
    assert box.size == 4 * 5 * 6 // shape[ref.axis_number]
    assert str(ref) == f"{axis}3"


def test_slices_sort_by_axis_then_index() -> None:
    assert sorted([SliceRef("z", 2), SliceRef("x", 9), SliceRef("z", 1)])[1:] == [SliceRef("z", 1), SliceRef("z", 2)]


@pytest.mark.parametrize(
    "bad",
    [
        lambda: SliceRef("q", 0),  # type: ignore[arg-type]
        lambda: SliceRef("z", -1),
        lambda: SliceRef("z", 4).box((4, 5, 6)),
        lambda: Box((0, 0), (1,)),
        lambda: Box((3,), (2,)),
        lambda: list(Box((0, 0), (4, 4)).tiles((0, 1))),
        lambda: list(Box((0, 0), (4, 4)).tiles((1,))),
    ],
)
def test_nonsense_is_refused(bad: object) -> None:
    with pytest.raises(InputError):
        bad()  # type: ignore[operator]
