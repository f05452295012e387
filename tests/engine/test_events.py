from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest

from napari_slicelabel.engine.events import (
    Event,
    Finished,
    Metric,
    Progress,
    RegionWritten,
    SliceDone,
    Started,
    from_json,
    to_json,
)
from napari_slicelabel.errors import InputError

EVENTS: tuple[Event, ...] = (
    Started("r1", "interpolate", "/p/runs/r1", ("a", "b"), "y", 12),
    Progress("fit", 3, 10, 'half "way"\n'),
    Metric("loss", 0.1, 7),
    SliceDone("a", "z", 4, 1 / 3, "round 2"),
    RegionWritten("a", (0, 1, 2), (3, 4, 5)),
    Finished("r1", "stopped", 1.5, {"slices": 3, "mean_confidence": 0.5, "note": "x"}),
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_round_trip(event: Event) -> None:
    text = to_json(event)
    assert "\n" not in text
    assert from_json(text) == event
    assert type(from_json(text)) is type(event)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"event": "Nothing"}', '{"event": "Metric", "name": "a"}', '{"event": "Started", "run_id"'],
)
def test_what_is_no_event(text: str) -> None:
    with pytest.raises(InputError, match="not an event"):
        from_json(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_floats_are_finite(value: float) -> None:
    with pytest.raises(ValueError, match="loss"):
        Metric("loss", value, 0)
    with pytest.raises(ValueError, match="z3"):
        SliceDone("a", "z", 3, value, "m")
    with pytest.raises(ValueError, match="mean"):
        Finished("r", "finished", 0.0, {"mean": value})


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        EVENTS[1].done = 4  # type: ignore[misc, union-attr]
