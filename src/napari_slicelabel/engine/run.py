"""The one loop that drives every method, and the one end that every run comes to."""

import os
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from napari_slicelabel.data.boxes import AXES, Axis, SliceRef
from napari_slicelabel.data.files import open_own, remove, storage_errors, sweep
from napari_slicelabel.engine.config import MethodConfig, build_config, unknown
from napari_slicelabel.engine.context import RunContext, needs_review, refuse_lost
from napari_slicelabel.engine.devices import resolve_device
from napari_slicelabel.engine.events import Event, Finished, Metric, Outcome, SliceDone, Started
from napari_slicelabel.engine.methods import METHODS, Method, method_of
from napari_slicelabel.engine.record import (
    JOURNAL_NAME,
    Journal,
    RunRecord,
    new_run_folder,
    read_events,
    run_lock,
    versions,
)
from napari_slicelabel.engine.state import GlobalState, seed_everything
from napari_slicelabel.errors import DeviceError, InputError

if TYPE_CHECKING:
    from napari_slicelabel.data.project import Project

LOCK_NAME = "run.lock"

# Written at the start and removed at the end, so that on a full disk the end of the story still finds room.
_RESERVE_NAME = ".reserve"
_RESERVE_BYTES = 1 << 16


def never() -> bool:
    """Answer False: a run that nobody stops."""
    return False


def nowhere() -> None:
    """Answer None: a run that nobody watches."""


def run(
    project: "Project",
    config: MethodConfig | None = None,
    *,
    resume: str | None = None,
    stop: Callable[[], bool] = never,
    in_view: Callable[[], tuple[str, SliceRef] | None] = nowhere,
) -> Generator[Event, None, None]:
    """Fill the volumes of a project, yielding events.

    Parameters
    ----------
    project : Project
        Its annotation is read and never written.
    config : MethodConfig, optional
        What to do; its class says which method. Left out with `resume`.
    resume : str, optional
        Id of an earlier run to go on with: method, config, axis and slices come from its run.json. A config given as
        well must be the same but for `device`.
    stop : callable
        Asked between units of work. Once it returns True the method ends early and keeps what there is.
    in_view : callable
        Asked before each slice: volume and slice that somebody looks at. If it is still to do, it comes next. Which
        slice comes first changes no label.

    Yields
    ------
    Event
        `Started` first, `Finished` last.

    Raises
    ------
    InputError
        No annotated slices, a range outside the volume, an unknown volume or run.
    DeviceError
        ``device=cuda`` without a GPU, or the GPU's memory is full.
    BusyError
        A run already goes in this project.
    StorageError
        Disk full, no permission, damaged files.
    MissingFileError
        A volume's file is not there.

    Notes
    -----
    Nothing happens before the first ``next``. ``close()`` cancels: the slices written so far stay, with the outcome
    ``cancelled``. A failure is an exception; the journal then ends with its traceback and the outcome ``failed``.

    Global settings of torch and the random generators belong to the run only while it works: they are swapped at
    every yield and restored at the end.

    To go on with a finished run yields `Started` and `Finished` and changes nothing.
    """
    with run_lock(project.path / LOCK_NAME):
        session = _begin(project, config, resume, stop, in_view)
        yield from session.events()
    # outside of the lock: who stops iterating here may start the next run at once
    yield session.finished


def delete_run(project: "Project", run_id: str) -> None:
    """Remove a run from the disk, all of it or nothing: its folder is renamed first.

    Raises
    ------
    InputError
        No such run.
    BusyError
        A run goes in this project, which may be this one, or read from it.
    StorageError
        It cannot be removed.
    """
    folder = project.run_folder(run_id)
    with run_lock(project.path / LOCK_NAME):
        remove(folder)


def resume_config(project: "Project", run_id: str) -> MethodConfig:
    """Return the config of an earlier run.

    Raises
    ------
    InputError
        No such run, or its method or parameters do not exist in this version.
    MissingFileError, StorageError
        Its run.json is missing or damaged.
    """
    record = RunRecord.load(project.run_folder(run_id))
    return build_config(record.method, record.config)


def _begin(
    project: "Project",
    config: MethodConfig | None,
    resume: str | None,
    stop: Callable[[], bool],
    in_view: Callable[[], tuple[str, SliceRef] | None],
) -> "_Session":
    """Check everything that can be checked, then create or reopen the run's folder."""
    if resume is None:
        if config is None:
            raise InputError("a run needs a config (see build_config) or the id of a run to resume")
        record = _new_record(project, config)
        folder = new_run_folder(project.runs_folder, record.method)
        record = record.model_copy(update={"run_id": folder.name})
    else:
        folder = project.run_folder(resume)
        record = RunRecord.load(folder)
        config = _same_config(build_config(record.method, record.config), config)
        record = _continued(project, record)
        for name in record.spans:
            refuse_lost(project, record, name)
    device = resolve_device(config.device)
    return _Session(project, config, folder, record, METHODS[record.method], device, stop, in_view)


def _new_record(project: "Project", config: MethodConfig) -> RunRecord:
    method = method_of(config)
    device = resolve_device(config.device)
    names = _volume_names(project, config)
    axis = _axis(project, config, names)
    spans = {name: config.bounds(project.volume(name).depth(axis)) for name in names}
    stops = config.stop_slices(max(project.volume(name).depth(axis) for name in names))
    gpu = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return RunRecord(
        run_id="",
        method=method.name,
        config=config.model_dump(mode="json"),
        seed=config.seed,
        device=f"{device}{gpu}",
        axis=axis,
        spans=spans,
        stops=stops,
        annotated=_annotated(project, axis, spans),
        versions=versions(),
        started=datetime.now(UTC),
    )


def _volume_names(project: "Project", config: MethodConfig) -> tuple[str, ...]:
    if config.volumes == "all":
        return project.names
    names = dict.fromkeys(part.strip() for part in config.volumes.split(",") if part.strip())
    for name in names:
        if name not in project.names:
            raise InputError(unknown("volume", name, project.names))
    if not names:
        raise InputError(f"volumes={config.volumes!r} names no volume; known: {', '.join(project.names)}")
    return tuple(names)


def _axis(project: "Project", config: MethodConfig, names: Iterable[str]) -> Axis:
    if config.axis != "auto":
        return config.axis
    counts = {axis: sum(len(project.annotation(name).annotated(axis)) for name in names) for axis in AXES}
    return max(AXES, key=lambda axis: counts[axis])  # max keeps the first of equals: z before y before x


def _same_config(recorded: MethodConfig, given: MethodConfig | None) -> MethodConfig:
    if given is None:
        return recorded
    if type(given) is not type(recorded) or given.model_copy(update={"device": recorded.device}) != recorded:
        raise InputError("a run goes on with the config that it began with; leave the config out, or start a new run")
    return given


def _continued(project: "Project", record: RunRecord) -> RunRecord:
    """Check that the slices of a run still exist, and take note of what was painted since."""
    for name, (_, stop) in record.spans.items():
        if project.volume(name).depth(record.axis) < stop:
            raise InputError(
                f"run {record.run_id} fills {name} up to slice {stop - 1} along {record.axis}, which the volume no"
                " longer has; start a new run"
            )
    if record.outcome == "finished":
        return record
    return record.model_copy(update={"annotated": _annotated(project, record.axis, record.spans)})


def _annotated(project: "Project", axis: Axis, spans: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    found = {
        name: tuple(index for index in project.annotation(name).annotated(axis) if start <= index < stop)
        for name, (start, stop) in spans.items()
    }
    if not any(found.values()):
        where = ", ".join(f"{name} {axis}{start} to {axis}{stop - 1}" for name, (start, stop) in spans.items())
        raise InputError(
            f"no annotated slices in {where}; paint at least one there, or copy some in with `slicelabel annotate`"
        )
    return found


@dataclass
class _Session:
    """One part of a run, from its first event to its end."""

    project: "Project"
    config: MethodConfig
    folder: Path
    record: RunRecord
    method: Method
    device: torch.device
    stop: Callable[[], bool]
    in_view: Callable[[], tuple[str, SliceRef] | None]
    finished: Finished = field(init=False)

    def __post_init__(self) -> None:
        self._begun = time.monotonic()
        self._before = self.record.seconds
        self._stopped = False
        self._metrics: dict[str, float] = {}
        _sweep(self.folder)
        path = self.folder / JOURNAL_NAME
        earlier = [event for event in read_events(path) if isinstance(event, SliceDone)]
        self._journal = Journal(path)
        self._context = RunContext(
            self.project, self.config, self.folder, self.record, self.device, self._ask, earlier, self.in_view
        )

    def events(self) -> Iterator[Event]:
        """Yield all events but `Finished`, and end the run whatever happens."""
        if self.record.outcome == "finished":
            self._journal.close()
            self.finished = Finished(self.record.run_id, "finished", self.record.seconds, self._summary())
            yield self._started()
            return
        outcome: Outcome = "failed"
        error: BaseException | None = None
        try:
            with _device_errors():
                yield from self._work()
            outcome = "stopped" if self._stopped else "finished"
        except (GeneratorExit, KeyboardInterrupt) as closing:
            outcome, error = "cancelled", closing
            raise
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._end(outcome, error)

    def _work(self) -> Iterator[Event]:
        reserve = self.folder / _RESERVE_NAME
        with open_own(reserve, "wb") as file, storage_errors(reserve):
            file.write(b"\xff" * _RESERVE_BYTES)
        self.record = self.record.model_copy(update={"outcome": "running", "error": ""})
        self.record.save(self.folder)
        yield self._journalled(self._started())
        for event in _isolated(self.method.propagate(self._context, self.config), self.config.seed, self.device):
            yield self._journalled(event)

    def _started(self) -> Started:
        record = self.record
        total = sum(len(record.slices(name)) for name in record.spans)
        return Started(record.run_id, record.method, str(self.folder), tuple(record.spans), record.axis, total)

    def _journalled(self, event: Event) -> Event:
        if isinstance(event, Metric):
            self._metrics[event.name] = event.value
        self._journal.write(event)
        return event

    def _ask(self) -> bool:
        # a run is "stopped" only if its method heard so: a wish after the last question changes nothing
        self._stopped = self._stopped or self.stop()
        return self._stopped

    def _end(self, outcome: Outcome, error: BaseException | None) -> None:
        """Write down how it ended. Each step is tried whatever became of the others."""
        seconds = self._before + time.monotonic() - self._begun
        summary = self._summary()
        self.finished = Finished(self.record.run_id, outcome, round(seconds, 3), summary)
        line = _one_line(error) if outcome == "failed" and error is not None else ""
        scores = {**self.record.scores, **self._metrics, **_numbers(summary)}
        self.record = self.record.model_copy(
            update={"outcome": outcome, "error": line, "seconds": round(seconds, 3), "scores": scores}
        )
        with suppress(OSError):
            (self.folder / _RESERVE_NAME).unlink(missing_ok=True)
        # the record comes after what it speaks for: a run that is finished is not looked at again
        steps: list[Callable[[], None]] = [self._context.save_slices, lambda: self.record.save(self.folder)]
        if line and error is not None:
            text = "".join(traceback.format_exception(error))
            steps.append(lambda: self._journal.note(text))
        steps += [lambda: self._journal.write(self.finished), self._journal.close]
        problems = [problem for step in steps if (problem := _tried(step)) is not None]
        if problems and error is None:
            # the voxels are there, but what says so is not: that is no finished run
            self.record = self.record.model_copy(update={"outcome": "failed", "error": _one_line(problems[0])})
            _tried(lambda: self.record.save(self.folder))
            raise problems[0]

    def _summary(self) -> Mapping[str, int | float | str]:
        rows = self._context.rows()
        predicted = [row.confidence for row in rows if row.provenance != "human"]
        return {
            "slices": len(rows),
            "needs_review": sum(needs_review(row) for row in rows),
            "mean_confidence": round(sum(predicted) / len(predicted), 6) if predicted else 1.0,
        }


def _isolated(events: Iterator[Event], seed: int, device: torch.device) -> Iterator[Event]:
    """Yield `events`, giving the method its own global state while it works and the caller's back at each yield."""
    outside = GlobalState.capture()
    try:
        seed_everything(seed, device)
        while (event := next(events, None)) is not None:
            inside = GlobalState.capture()
            outside.apply()
            try:
                yield event
            finally:
                outside = GlobalState.capture()
            inside.apply()
    finally:
        if isinstance(events, Generator):
            events.close()
        outside.apply()


@contextmanager
def _device_errors() -> Iterator[None]:
    """Turn what torch raises when the GPU's memory is full into a `DeviceError`."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceError(
            "the GPU's memory is full; close what else uses it, choose smaller crops or batches, or device=cpu"
        ) from error


def _sweep(folder: Path) -> None:
    """Remove what a killed part of the run left half-written; the run's lock is held."""
    for scratch in folder.glob(".*.part.zarr"):
        remove(scratch)
    for place, _, _ in os.walk(folder):
        sweep(Path(place), alone=True)


def _tried(step: Callable[[], None]) -> Exception | None:
    try:
        step()
    except (OSError, ValueError) as problem:
        return problem
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
