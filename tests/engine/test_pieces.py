from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.pieces import pieces, read_stops, write_stops
from napari_slicelabel.engine.run import run
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from napari_slicelabel.data.project import Project

places = st.sets(st.integers(0, 40), max_size=8)


@given(start=st.integers(0, 10), length=st.integers(1, 30), annotated=places, stops=places)
def test_pieces_are_reached_without_passing_a_stop(
    start: int, length: int, annotated: set[int], stops: set[int]
) -> None:
    span = range(start, start + length)
    found = pieces(span, sorted(annotated), sorted(stops))
    filled = [index for piece in found for index in piece.slices]
    assert filled == sorted(set(filled))
    assert set(filled) <= set(span)
    assert annotated & set(span) <= set(filled)
    for piece in found:
        assert set(piece.anchors) <= annotated
        for index in piece.slices:
            for anchor in piece.anchors:
                assert not stops & set(range(min(index, anchor) + 1, max(index, anchor)))
    for index in set(span) - set(filled):
        # what is left out is a stop, or has a stop on every way to an annotated slice
        ways = [range(min(index, other), max(index, other) + 1) for other in annotated & set(span)]
        assert index in stops or all(stops & set(way) for way in ways)


@given(places)
def test_stops_are_written_as_they_are_read(stops: set[int]) -> None:
    assert read_stops(write_stops(stops)) == tuple(sorted(stops))


@pytest.mark.parametrize("text", ["3;4", "-1", "all", "3,", ""])
def test_unreadable_stops_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"stops=.*such as 12, 40"):
        build_config("interpolate", {"stops": text})


def test_a_stop_outside_of_the_volume_is_refused(painted: Project) -> None:
    with pytest.raises(InputError, match="there are 16 slices, 0 to 15"):
        list(run(painted, build_config("interpolate", {"stops": "3, 16"})))
