"""A run in the background: a thread iterates it, the window hears of it at most ten times a second."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Self

from qtpy.QtCore import QObject, QTimer, Signal

from napari_slicelabel.engine.events import Event, Finished, Metric, Progress, SliceDone, Started
from napari_slicelabel.engine.run import nowhere, resume_config, run
from napari_slicelabel.errors import SliceLabelError
from napari_slicelabel.gui import garbage
from napari_slicelabel.gui.background import be_nice, import_networks

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import TracebackType

    from napari_slicelabel.data.boxes import Axis, SliceRef
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.config import MethodConfig
    from napari_slicelabel.engine.work import Work

    InView = Callable[[], tuple[str, SliceRef] | None]

Phase = Literal[
    "idle", "starting", "running", "paused", "stopping", "cancelling", "finished", "stopped", "cancelled", "failed"
]

REDRAW_MS = 100
"""The window is told no more often than this."""

_MOST_POINTS = 400


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run is.

    Attributes
    ----------
    phase : str
        ``idle`` before the first run; the last four say how it ended.
    run_id, method : str
        Empty until it has started.
    axis : {"z", "y", "x"}
        The slices are perpendicular to it.
    slices : int
        How many it is to write.
    written : int
        How many different ones it has written, by this part of the run.
    stage, message : str
        What it is doing.
    done, total : int
        How far that stage is.
    steps, predictions : int
        Training steps and predicted slices so far, for the time left.
    seconds : float
        Since this part began, without pauses.
    left_s : float or None
        A guess at the time left.
    loss : tuple of (int, float)
        The curve so far, thinned out.
    held_out : tuple of (int, float)
        Dice of annotated slices that were held out.
    error, traceback : str
        Why it failed; the second is empty where the first says it all.
    """

    phase: Phase = "idle"
    run_id: str = ""
    method: str = ""
    axis: Axis = "z"
    slices: int = 0
    written: int = 0
    stage: str = ""
    message: str = ""
    done: int = 0
    total: int = 0
    steps: int = 0
    predictions: int = 0
    seconds: float = 0.0
    left_s: float | None = None
    loss: tuple[tuple[int, float], ...] = ()
    held_out: tuple[tuple[int, float], ...] = ()
    error: str = ""
    traceback: str = ""

    @property
    def active(self) -> bool:
        """Whether a thread is at work."""
        return self.phase in ("starting", "running", "paused", "stopping", "cancelling")


@dataclass
class _Ended:
    """How the thread ended: a context that keeps the error instead of raising it into nowhere."""

    error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        return True


@dataclass
class _Pace:
    """How long steps and predictions take in this run, and what is left of them."""

    steps: int
    predictions: int
    step_s: float
    prediction_s: float
    _last: float = field(default_factory=time.monotonic)

    def step(self, when: float) -> None:
        self.steps -= 1
        self.step_s = self._mixed(self.step_s, when)

    def prediction(self, when: float) -> None:
        self.predictions -= 1
        self.prediction_s = self._mixed(self.prediction_s, when)

    def left(self) -> float:
        return max(0, self.steps) * self.step_s + max(0, self.predictions) * self.prediction_s

    def _mixed(self, before: float, when: float) -> float:
        # a pause, or reading planes to learn from, is no step: what takes far longer than the last ones counts little
        took, self._last = when - self._last, when
        return before + 0.1 * (min(took, 5 * before + 1) - before)


class RunWorker(QObject):
    """Runs of one project, one at a time. It belongs to the session, so that it outlives every widget.

    Parameters
    ----------
    project : Project
        What to fill.
    refresh_ms : int
        How often the window is told, not below `REDRAW_MS`.
    in_view : callable
        Returns volume and slice on the canvas, or None; called in the run's thread.

    Attributes
    ----------
    changed : Signal()
        `state` is a new one. At most ten times a second.
    slices_done : Signal(object)
        The `SliceDone` events since the last time, as a list.
    ended : Signal(object)
        The last `RunState` of a run; its thread is gone.
    """

    changed = Signal()
    slices_done = Signal(object)
    ended = Signal(object)

    def __init__(
        self, project: Project, parent: QObject | None = None, *, refresh_ms: int = REDRAW_MS, in_view: InView = nowhere
    ) -> None:
        super().__init__(parent)
        self.state = RunState()
        self._project = project
        self._in_view = in_view
        self._events: deque[tuple[float, Event]] = deque()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._cancel = threading.Event()
        self._go_on = threading.Event()
        self._go_on.set()
        self._ended = _Ended()
        self._outcome: Phase = "finished"
        self._written: set[tuple[str, int]] = set()
        self._pace: _Pace | None = None
        self._clock = 0.0
        self._timer = QTimer(self)
        self._timer.setInterval(max(REDRAW_MS, refresh_ms))
        self._timer.timeout.connect(self._drain)

    def start(
        self,
        config: MethodConfig | None,
        *,
        resume: str | None = None,
        work: Work | None = None,
    ) -> None:
        """Begin a run, or go on with one.

        Parameters
        ----------
        config : MethodConfig, optional
            What to do; None with `resume`.
        resume : str, optional
            Id of the run to go on with.
        work : Work, optional
            How much there is to do, as `plan` says; without it no time left is shown.
        """
        if self.state.active:
            return
        for flag in (self._stop, self._cancel):
            flag.clear()
        self._go_on.set()
        self._events.clear()
        self._written.clear()
        self._ended, self._outcome = _Ended(), "finished"
        self._pace = _Pace(work.steps, work.predictions, work.step_s, work.prediction_s) if work else None
        self._clock = time.monotonic()
        self.state = RunState(phase="starting", run_id=resume or "")
        garbage.spare()
        self._thread = threading.Thread(target=self._work, args=(config, resume), name="slicelabel-run", daemon=True)
        self._thread.start()
        self._timer.start()
        self.changed.emit()

    def pause(self) -> None:
        """Hold the run at its next event."""
        if self.state.phase == "running":
            self._go_on.clear()
            self._set(phase="paused")

    def go_on(self) -> None:
        """End a pause."""
        if self.state.phase == "paused":
            self._go_on.set()
            self._set(phase="running")

    def stop(self) -> None:
        """Ask the run to end early and keep what there is."""
        if self.state.active:
            self._stop.set()
            self._go_on.set()
            self._set(phase="stopping")

    def cancel(self) -> None:
        """End the run at its next event."""
        if self.state.active:
            self._cancel.set()
            self._stop.set()
            self._go_on.set()
            self._set(phase="cancelling")

    def finish(self, timeout_s: float = 20.0) -> bool:
        """Stop the run and wait for its thread; return whether it ended. For closing the viewer."""
        self.stop()
        self._cancel.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
        self._drain()
        return True

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _work(self, config: MethodConfig | None, resume: str | None) -> None:
        be_nice()
        with self._ended:
            import_networks(in_3d=(config or resume_config(self._project, resume or "")).in_3d)
            with self._run(config, resume) as events:
                self._iterate(events)

    def _run(self, config: MethodConfig | None, resume: str | None) -> closing[Generator[Event, None, None]]:
        return closing(run(self._project, config, resume=resume, stop=self._stop.is_set, in_view=self._in_view))

    def _iterate(self, events: Iterator[Event]) -> None:
        for event in events:
            self._events.append((time.monotonic(), event))
            if isinstance(event, Finished):
                return
            if not self._go_on.is_set():
                self._go_on.wait()
            if self._cancel.is_set():
                return

    # -- in the window's thread ---------------------------------------------------------------------------------------

    def _drain(self) -> None:
        alive = self._thread is not None and self._thread.is_alive()
        done: list[SliceDone] = []
        state = self.state
        loss, held_out = list(state.loss), list(state.held_out)
        while self._events:
            when, event = self._events.popleft()
            if isinstance(event, SliceDone):
                done.append(event)
                self._written.add((event.volume, event.index))
                if self._pace is not None:
                    self._pace.prediction(when)
                state = replace(state, predictions=state.predictions + 1)
            elif isinstance(event, Progress):
                state = self._progressed(state, event, when)
            elif isinstance(event, Metric):
                if event.name == "loss":
                    # each stage counts its steps anew; the curve goes on
                    loss.append((state.steps, event.value))
                elif event.name == "held_out_dice":
                    held_out.append((state.steps, event.value))
            elif isinstance(event, Started):
                state = replace(
                    state,
                    run_id=event.run_id,
                    method=event.method,
                    axis=event.axis,
                    slices=event.slices,
                    phase="running" if state.phase == "starting" else state.phase,
                )
            elif isinstance(event, Finished):
                self._outcome = event.outcome
        now = time.monotonic()
        paused = state.phase == "paused"
        self.state = replace(
            state,
            written=len(self._written),
            loss=_thinned(loss),
            held_out=tuple(held_out),
            seconds=state.seconds + (0.0 if paused else now - self._clock),
            left_s=self._pace.left() if self._pace and state.phase == "running" and state.total else None,
        )
        self._clock = now
        # first who runs, then what it wrote: a short run may bring both at once, and slices of an unknown run are lost
        self.changed.emit()
        if done:
            self.slices_done.emit(done)
        if not alive and self.state.active:
            self._end()

    def _progressed(self, state: RunState, event: Progress, when: float) -> RunState:
        # a stage that trains has no message: that names the slice of one that predicts
        steps = state.steps
        if not event.message:
            steps += 1
            if self._pace is not None:
                self._pace.step(when)
        elif event.stage == "calibrate" and self._pace is not None:
            self._pace.prediction(when)
        return replace(state, stage=event.stage, message=event.message, done=event.done, total=event.total, steps=steps)

    def _end(self) -> None:
        self._timer.stop()
        garbage.look_at_all()
        error = self._ended.error
        phase: Phase = self._outcome
        if error is not None:
            phase = "failed"
        elif self._cancel.is_set():
            phase = "cancelled"
        text = ""
        if error is not None and not isinstance(error, SliceLabelError):
            text = "".join(traceback.format_exception(error))
        line = "" if error is None else " ".join(str(error).split()) or type(error).__name__
        self.state = replace(self.state, phase=phase, error=line, traceback=text, left_s=None)
        self._thread = None
        self.changed.emit()
        self.ended.emit(self.state)

    def _set(self, *, phase: Phase) -> None:
        self.state = replace(self.state, phase=phase)
        self.changed.emit()


def _thinned(points: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    while len(points) > _MOST_POINTS:
        points = points[::2]
    return tuple(points)
