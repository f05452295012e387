"""The runs of a project as the window shows them: of every slice the newest labels, or one run alone."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import numpy as np

from napari_slicelabel.data.boxes import AXES, Axis
from napari_slicelabel.data.files import write_text
from napari_slicelabel.engine.context import HUMAN, run_store
from napari_slicelabel.engine.events import SliceDone, from_json
from napari_slicelabel.engine.record import JOURNAL_NAME, RunRecord
from napari_slicelabel.errors import SliceLabelError
from napari_slicelabel.gui.results import Source
from napari_slicelabel.gui.state import RunFacts, ScoreBook

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project

_REVIEW_NAME = "review.json"
_SLICE_DONE = json.dumps({"event": SliceDone.__name__})[:-1].encode()


@dataclass(eq=False)
class ShelfRun:
    """What a run has written to the volume, and what the user said of it.

    Attributes
    ----------
    record : RunRecord
        As on disk when it was read.
    folder : Path
        Of the run.
    confidence : ndarray of shape (n,), float64
        Expected Dice of its slices; nan for those that it has not written.
    origins : list of str
        Who labelled them.
    annotated : frozenset of int
        The annotated slices that it went by.
    accepted, flagged, corrected : set of int
        Slices that the user accepted, flagged, and took to correct.
    resumed : str
        When it last went on, in ISO format; empty if it never did.
    is_unsaved : bool
        Whether the user has decided something since it was read.
    """

    record: RunRecord
    folder: Path
    confidence: NDArray[np.float64]
    origins: list[str]
    annotated: frozenset[int]
    accepted: set[int] = field(default_factory=set)
    flagged: set[int] = field(default_factory=set)
    corrected: set[int] = field(default_factory=set)
    resumed: str = ""
    is_unsaved: bool = False

    @property
    def run_id(self) -> str:
        """Its id."""
        return self.record.run_id

    @property
    def age(self) -> tuple[str, str]:
        """Sorts runs by when they last began."""
        started = self.record.started
        moment = started.astimezone(UTC) if started.tzinfo else started.replace(tzinfo=UTC)
        return max(moment.isoformat(), self.resumed), self.run_id

    @property
    def written(self) -> NDArray[np.bool_]:
        """Which slices it has written."""
        return np.isfinite(self.confidence)

    @property
    def mean(self) -> float | None:
        """Mean expected Dice of the slices that a machine labelled."""
        predicted = self.written & np.array([origin != HUMAN for origin in self.origins], bool)
        return float(self.confidence[predicted].mean()) if predicted.any() else None

    def put(self, index: int, confidence: float, origin: str) -> None:
        """Take note of a slice that was written."""
        if index < len(self.origins):
            self.confidence[index], self.origins[index] = confidence, origin

    def decide(self, index: int, what: Literal["accepted", "flagged", "corrected"], is_so: bool) -> None:
        """Take note of what the user says of a slice."""
        slices: set[int] = getattr(self, what)
        (slices.add if is_so else slices.discard)(index)
        self.is_unsaved = True

    def facts(self, volume: str) -> RunFacts:
        """Return what the list of runs says of it."""
        record = self.record
        return RunFacts(
            record.run_id,
            record.method,
            record.outcome,
            record.error,
            record.measured,
            started=record.started,
            axis=record.axis,
            slices=len(record.slices(volume)) if volume in record.spans else 0,
            written=int(self.written.sum()),
            mean_confidence=self.mean,
            volumes=tuple(record.spans),
        )

    def save_review(self) -> None:
        """Write what the user said of it.

        Raises
        ------
        StorageError
            Disk full, no permission.
        """
        said = {
            "accepted": sorted(self.accepted),
            "flagged": sorted(self.flagged),
            "corrected": sorted(self.corrected),
            "resumed": self.resumed,
        }
        write_text(self.folder / _REVIEW_NAME, json.dumps(said) + "\n")


def read_run(project: Project, run_id: str, volume: str) -> ShelfRun:
    """Return a run as it is on disk.

    Raises
    ------
    InputError, MissingFileError, StorageError
        No such run, or a damaged one.
    """
    folder = project.run_folder(run_id)
    record = RunRecord.load(folder)
    depth = project.record(volume).shape[AXES.index(record.axis)]
    annotated = frozenset(record.annotated.get(volume, ()))
    run = ShelfRun(record, folder, np.full(depth, np.nan), [""] * depth, annotated)
    for event in _slices_done(folder / JOURNAL_NAME):
        if event.volume == volume:
            run.put(event.index, event.confidence, event.provenance)
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        said = json.loads((folder / _REVIEW_NAME).read_text("utf-8"))
        run.accepted, run.flagged = set(map(int, said["accepted"])), set(map(int, said["flagged"]))
        run.corrected, run.resumed = set(map(int, said.get("corrected", ()))), str(said.get("resumed", ""))
    return run


def read_runs(project: Project, volume: str) -> tuple[list[ShelfRun], tuple[RunFacts, ...]]:
    """Return the runs that can be read, and what the list of runs says of all of them; the oldest first."""
    runs: list[ShelfRun] = []
    damaged: list[RunFacts] = []
    for run_id in project.run_ids():
        try:
            runs.append(read_run(project, run_id, volume))
        except SliceLabelError as error:
            damaged.append(RunFacts(run_id, "?", "damaged", str(error)))
    runs.sort(key=lambda run: run.age)
    return runs, (*damaged, *(run.facts(volume) for run in runs))


class Shelf:
    """The runs that are there, and which of them are to be seen.

    Parameters
    ----------
    project : Project
        The project.
    volume : str
        The volume that is labelled.

    Attributes
    ----------
    runs : list of ShelfRun
        Oldest first.
    alone : str
        The run that is shown alone; empty: of every slice the newest labels.
    compared : str
        The run whose differences from that are shown; empty for none.
    """

    def __init__(self, project: Project, volume: str) -> None:
        self._project = project
        self._volume = volume
        self.runs: list[ShelfRun] = []
        self.alone = ""
        self.compared = ""
        self.owners: list[ShelfRun | None] = []

    def take(self, runs: Sequence[ShelfRun], live: str = "") -> None:
        """Replace all runs but the one that goes on: of that more may be known than was on disk when it was read."""
        known = self.find(live)
        self.runs = [known if known is not None and run.run_id == live else run for run in runs]
        ids = {run.run_id for run in runs}
        self.alone = self.alone if self.alone in ids else ""
        self.compared = self.compared if self.compared in ids else ""

    def begin(self, run: ShelfRun) -> None:
        """Put a run that has begun, or goes on, on top, and show of every slice the newest labels."""
        self.runs = [*(other for other in self.runs if other.run_id != run.run_id), run]
        self.alone = self.compared = ""

    def drop(self, run_id: str) -> None:
        """Take a run away."""
        self.take([run for run in self.runs if run.run_id != run_id])

    def find(self, run_id: str) -> ShelfRun | None:
        """Return a run; None where there is none of that id, or it is damaged."""
        return next((run for run in self.runs if run.run_id == run_id), None)

    @property
    def shown(self) -> list[ShelfRun]:
        """The runs that are seen, the newest first."""
        return [
            run for run in reversed(self.runs) if run.written.any() and (not self.alone or run.run_id == self.alone)
        ]

    def sources(self, role: str) -> list[Source]:
        """Return the arrays of the runs that are seen; of role ``prediction`` or ``confidence``."""
        return [self._source(run, role) for run in self.shown]

    def others(self) -> list[Source]:
        """Return the labels of the run to compare with."""
        run = self.find(self.compared)
        return [self._source(run, "prediction")] if run is not None else []

    def _source(self, run: ShelfRun, role: str) -> Source:
        axis = run.record.axis
        return Source(run_store(self._project, run.folder, role, self._volume, axis), axis, run.written.copy())

    def book(self) -> ScoreBook | None:
        """Return the scores of what is seen, along the axis of the newest run, and take note whose slices they are.

        A slice that is filled from a run along another axis has the mean of that run.
        """
        shown = self.shown
        if not shown:
            self.owners = []
            return None
        axis, depth = shown[0].record.axis, len(shown[0].origins)
        book = ScoreBook(axis, depth, shown[0].annotated)
        self.owners = [None] * depth
        for run in shown:
            along, mean = run.record.axis == axis, float(np.nanmean(run.confidence))
            # paint along one axis says nothing about slices of another run along another one
            base = None if run is shown[0] else (run.annotated if along else book.annotated)
            elsewhere = f"{run.record.method} along {run.record.axis}"
            for index in self._free(run, axis):
                self.owners[index] = run
                score, origin = (float(run.confidence[index]), run.origins[index]) if along else (mean, elsewhere)
                book.put(index, score, origin, base)
        return book

    def _free(self, run: ShelfRun, axis: Axis) -> list[int]:
        """Return the slices along `axis` that a run fills and no newer one does."""
        free = [index for index, owner in enumerate(self.owners) if owner is None]
        return [index for index in free if run.written[index]] if run.record.axis == axis else free

    def said(self, what: str) -> frozenset[int]:
        """Return the slices that the user ``accepted``, ``flagged`` or ``corrected``, of those that are seen."""
        return frozenset(i for i, owner in enumerate(self.owners) if owner is not None and i in getattr(owner, what))

    def review(self, index: int) -> ShelfRun | None:
        """Return the run whose labels a slice shows."""
        return self.owners[index] if index < len(self.owners) else None

    def wrote(self, run_id: str, events: Iterable[SliceDone]) -> bool:
        """Take note of slices that a run has written; return whether others are to be seen now."""
        run = self.find(run_id)
        if run is None:
            return False
        is_first = not run.written.any()
        for event in events:
            run.put(event.index, event.confidence, event.provenance)
            if not is_first and not self.alone and event.index < len(self.owners):
                self.owners[event.index] = run
        return is_first and self.alone in ("", run_id)


def now() -> str:
    """Return the time, as `ShelfRun.resumed` keeps it."""
    return datetime.now(UTC).isoformat()


def _slices_done(path: Path) -> Iterator[SliceDone]:
    """Yield the slices that a journal tells of; all other lines are not even looked at."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if line.startswith(_SLICE_DONE) and line.endswith(b"\n"):
                event = from_json(line.decode("utf-8", "replace"))
                if isinstance(event, SliceDone):
                    yield event


def export_choice(runs: Sequence[RunFacts], alone: str) -> RunFacts | None:
    """Return the run that is exported unless somebody says another one: that shown alone, or the newest finished one.

    Where none has finished, the newest with labels.
    """
    able = [run for run in reversed(runs) if run.written]
    preferred = (run for run in able if run.run_id == alone)
    finished = (run for run in able if run.outcome == "finished")
    return next(preferred, None) or next(finished, None) or next(iter(able), None)


def label_of(run: RunFacts, running: str = "") -> str:
    """Return a run in a few words: method, time and how far it came."""
    when = "" if run.started is None else f" {run.started.astimezone():%d %b %H:%M}"
    extent = f", {run.written} of {run.slices} slices" if run.slices else ""
    return f"{run.method}{when}{extent}{'' if run.outcome == 'finished' else f', {outcome_word(run, running)}'}"


def outcome_word(run: RunFacts, running: str = "") -> str:
    """Return how a run ended; one that says it is running and is not at work here was killed."""
    return "killed" if run.outcome == "running" and run.run_id != running else run.outcome


def by_id(runs: Sequence[RunFacts]) -> Mapping[str, RunFacts]:
    """Return runs by their id."""
    return {run.run_id: run for run in runs}
