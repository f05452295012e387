"""Runs that wait for the window, so that no test has to be quicker than they are."""

from __future__ import annotations

import threading
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from napari_slicelabel.gui import worker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import pytest
    from pytestqt.qtbot import QtBot

    from napari_slicelabel.engine.events import Event

PATIENCE_S = 240
"""No wait ends before a test is ended as hanging: a busy machine is no fault."""


def make_patient(qtbot: QtBot) -> QtBot:
    """Let all waits of pytest-qt last as long as a test may, unless they say otherwise."""
    for name in ("waitUntil", "waitSignal", "waitSignals", "waitExposed", "waitActive"):
        setattr(qtbot, name, partial(getattr(qtbot, name), timeout=1000 * PATIENCE_S))
    return qtbot


class Gate:
    """Holds every run of the windows after an event of a kind, until it is opened or the run is told to stop.

    Attributes
    ----------
    reached : bool
        Whether a run has come to it.
    events : int
        How many events runs have yielded.
    """

    def __init__(self, closes_after: Callable[[Event], bool]) -> None:
        self.events = 0
        self._closes_after = closes_after
        self._reached, self._opened = threading.Event(), threading.Event()

    @property
    def reached(self) -> bool:
        return self._reached.is_set()

    def open(self) -> None:
        """Let runs go on, also those to come."""
        self._opened.set()

    def held(self, run: Callable[..., Generator[Event]]) -> Callable[..., Generator[Event]]:
        """Return `run` with this gate in it."""

        def through_gate(*args: Any, stop: Callable[[], bool], **more: Any) -> Generator[Event]:
            with closing(run(*args, stop=stop, **more)) as events:
                for event in events:
                    self.events += 1
                    yield event
                    if self._closes_after(event):
                        self._reached.set()
                        while not (self._opened.wait(0.02) or stop()):
                            pass

        return through_gate


def put_gate(monkeypatch: pytest.MonkeyPatch, closes_after: Callable[[Event], bool]) -> Gate:
    """Let runs of the windows come to a gate."""
    gate = Gate(closes_after)
    monkeypatch.setattr(worker, "run", gate.held(worker.run))
    return gate
