"""What the command line shows: JSON on stdout, progress and words on stderr, and how it is interrupted."""

import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Generator

    from napari_slicelabel.engine.events import Event

_SECONDS_BETWEEN_LINES = 5.0


class Interrupted(Exception):
    """The user stopped a run; what it had accepted is on disk."""

    def __init__(self, run_id: str | None) -> None:
        super().__init__(run_id)
        self.run_id = run_id


def emit(payload: object) -> None:
    """Write the one JSON document of a command to stdout."""
    text = json.dumps(plain(payload), indent=2, allow_nan=False, ensure_ascii=False)
    # A list of numbers takes one line. Text in JSON holds no line break, so only the layout changes.
    text = re.sub(r"\[\n[^][{}]*?\n *\]", lambda found: "[" + re.sub(r"\n *", " ", found[0][1:-1]).strip() + "]", text)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Write one line to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def plain(value: object) -> object:
    """Return `value` as JSON knows it: numbers that JSON lacks (NaN, infinity) become null, paths become text."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    # numpy's numbers and arrays turn into Python's by `tolist`, without numpy being named here.
    convert = getattr(value, "tolist", None)
    if convert is not None:
        return plain(convert())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Display(Protocol):
    """Shows how far a stage is."""

    def update(self, stage: str, done: int, total: int, message: str) -> None:
        """Say that `done` of `total` steps of `stage` are over."""


class _Bars:
    """One bar with the time left for each stage, on a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, stage: str, done: int, total: int, message: str) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, message="")
        task = self._tasks[stage]
        if done < self._progress.tasks[self._progress.task_ids.index(task)].completed:
            self._progress.reset(task)
        self._progress.update(task, completed=done, total=total, message=message)


class _Lines:
    """A plain line every few seconds, where stderr is a file or a pipe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage = ""
        self._began = self._last = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, stage: str, done: int, total: int, message: str) -> None:
        now = self._clock()
        if stage != self._stage:
            self._stage, self._began, self._last = stage, now, -math.inf
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        left = (
            f", {(now - self._began) / done * (total - done):.0f} s left"
            if now - self._began > 1 and 0 < done < total
            else ""
        )
        say(f"{stage}: {done}/{total}{left}{f', {message}' if message else ''}")


def display() -> AbstractContextManager[Display]:
    """Return bars on a terminal, else plain lines."""
    return _Bars() if sys.stderr.isatty() else _Lines()


class StopRequest:
    """Whether the user asked to stop; see `interruptible`."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        """Return the answer, as the `stop` of a run does."""
        return self.asked


class _Numbers:
    """The metrics of the stage that goes on; those that its progress never showed get a line when it is over."""

    def __init__(self) -> None:
        self._stage, self._shown = "", True
        self._values: dict[str, float] = {}

    def add(self, name: str, value: float) -> None:
        self._values[name] = value
        self._shown = False

    def at(self, stage: str) -> str:
        """Return what to show beside the progress of a stage."""
        if stage != self._stage:
            # what came before there was a stage belongs to the first
            if self._stage:
                self.close()
            self._stage = stage
        self._shown = True
        return str(self)

    def close(self) -> None:
        """The stage is over."""
        if not self._shown:
            say(f"{self._stage}: {self}")
        self._values.clear()
        self._shown = True

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.3g}" for name, value in self._values.items())


@contextmanager
def interruptible(request: StopRequest) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request that is answered in a safe place; a second stops at once.

    An exception thrown into the middle of a write could leave half a slice.
    """
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may set handlers; a caller elsewhere closes the run itself.
        yield
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True
        # Not through sys.stderr: the signal may have come while it was being written to.
        os.write(2, b"Stopping after this step; again to stop at once.\n")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(events: "Iterator[Event]", stop: StopRequest | None = None) -> "Iterator[Event]":
    """Pass the events of a run on while showing them on stderr.

    Parameters
    ----------
    events : iterator of Event
        A run. It is closed in any case, also when the consumer stops early.
    stop : StopRequest, optional
        What the run itself asks whether to stop. Such a run ends by itself, with its training steps kept; any other is
        closed at the event that comes next.

    Yields
    ------
    Event
        Every event of the run.

    Raises
    ------
    Interrupted
        SIGINT or SIGTERM arrived before the run had finished.
    """
    from napari_slicelabel.engine.events import Finished, Metric, Started
    from napari_slicelabel.engine.events import Progress as ProgressEvent

    run_id: str | None = None
    numbers = _Numbers()
    request = StopRequest() if stop is None else stop
    with interruptible(request), _closing(events), display() as screen:
        try:
            for event in events:
                if isinstance(event, Started):
                    run_id = event.run_id
                    say(f"run {run_id} ({event.method})")
                elif isinstance(event, Metric):
                    numbers.add(event.name, event.value)
                elif isinstance(event, ProgressEvent):
                    shown = numbers.at(event.stage)
                    screen.update(event.stage, event.done, event.total, event.message or shown)
                elif isinstance(event, Finished):
                    numbers.close()
                    if event.outcome == "stopped":
                        raise Interrupted(run_id)
                yield event
                if request.asked and stop is None and not isinstance(event, Finished):
                    raise Interrupted(run_id)
        except KeyboardInterrupt:
            raise Interrupted(run_id) from None


def _closing(events: "Iterator[Event]") -> "AbstractContextManager[Generator[Event]]":
    # A run is a generator; Iterator is what its signature promises.
    return closing(events)  # type: ignore[arg-type]
