"""What a run tells whoever iterates it: a closed union of small frozen records, and their form in the journal.

No event holds an array. Who wants pixels reads them from the run's folder, where they were written before the event.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from napari_slicelabel.data.boxes import Axis
from napari_slicelabel.data.reading import parse_json
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Generator

T = TypeVar("T")

Outcome = Literal["finished", "stopped", "cancelled", "failed"]
"""How a run ended: by itself; asked to keep what there is; closed from outside; by an exception."""


@dataclass(frozen=True, slots=True)
class Started:
    """A run begins, or goes on after a resume. Always the first event.

    Attributes
    ----------
    run_id : str
        Name of the run's folder.
    method : str
        Name of the method.
    folder : str
        Absolute path of the run's folder.
    volumes : tuple of str
        The volumes that are filled, in order.
    axis : {"z", "y", "x"}
        The axis that the slices are perpendicular to.
    slices : int
        How many slices the run is to write, over all volumes, human ones included.
    """

    run_id: str
    method: str
    folder: str
    volumes: tuple[str, ...]
    axis: Axis
    slices: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one stage is: `done` of `total` units; `message` is for people."""

    stage: str
    done: int
    total: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number worth a curve, such as a loss, at `step`."""

    name: str
    value: float
    step: int

    def __post_init__(self) -> None:
        _finite(self.value, f"metric {self.name!r}")


@dataclass(frozen=True, slots=True)
class SliceDone:
    """A slice is on disk.

    Attributes
    ----------
    volume : str
        Name of the volume.
    axis : {"z", "y", "x"}
        The axis of the run.
    index : int
        Position along that axis.
    confidence : float
        Expected Dice of the slice, 0 to 1.
    provenance : str
        ``human``, ``round 3``, or the method's name.
    """

    volume: str
    axis: Axis
    index: int
    confidence: float
    provenance: str

    def __post_init__(self) -> None:
        _finite(self.confidence, f"confidence of {self.volume} {self.axis}{self.index}")


@dataclass(frozen=True, slots=True)
class RegionWritten:
    """A block of the prediction changed: voxels (z, y, x) from `start`, `stop` excluded."""

    volume: str
    start: tuple[int, int, int]
    stop: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over. Always the last event.

    Attributes
    ----------
    run_id : str
        Name of the run's folder.
    outcome : {"finished", "stopped", "cancelled", "failed"}
        How it ended. Whoever iterates sees the first two; the others stand in the journal only, because a closed
        generator cannot yield and a failure is an exception.
    seconds : float
        Wall time since the first start, resumed parts added up.
    summary : mapping of str to int, float or str
        A few numbers for people: slices written, slices that need review, mean confidence.
    """

    run_id: str
    outcome: Outcome
    seconds: float
    summary: Mapping[str, int | float | str]

    def __post_init__(self) -> None:
        _finite(self.seconds, "seconds")
        for name, value in self.summary.items():
            if isinstance(value, float):
                _finite(value, f"summary {name!r}")


Event = Started | Progress | Metric | SliceDone | RegionWritten | Finished

_ADAPTERS: dict[str, TypeAdapter[Event]] = {kind.__name__: TypeAdapter(kind) for kind in get_args(Event)}


def to_json(event: Event) -> str:
    """Return the event as one line of JSON, its kind under ``event``.

    Examples
    --------
    >>> to_json(Progress("fit", 3, 10))
    '{"event": "Progress", "stage": "fit", "done": 3, "total": 10, "message": ""}'
    """
    return json.dumps({"event": type(event).__name__, **asdict(event)}, allow_nan=False)


def from_json(text: str) -> Event:
    """Return the event that `to_json` wrote.

    Parameters
    ----------
    text : str
        One line of JSON.

    Returns
    -------
    Event
        Equal to the one that was written.

    Raises
    ------
    InputError
        Not JSON, not an event, or fields that do not fit.
    """
    try:
        fields = parse_json(text)
        return _ADAPTERS[fields.pop("event")].validate_python(fields)
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise InputError(f"not an event: {text[:80]!r}; expected a line of events.jsonl") from error


def _finite(value: float, what: str) -> None:
    # json.dumps would refuse it later, far from the line that made it
    if not math.isfinite(value):
        raise ValueError(f"{what} is {value}; an event holds finite numbers only")


def drain(steps: "Generator[object, None, T]") -> "T":
    """Go through a generator and return what it returns; what it yields is dropped."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
