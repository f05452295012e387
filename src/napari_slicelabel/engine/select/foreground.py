"""Where to paint next: far from painted slices, where a finished run is unsure of the foreground that it found."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.engine.context import refuse_lost, run_store
from napari_slicelabel.engine.events import Metric, Progress
from napari_slicelabel.engine.record import RunRecord
from napari_slicelabel.engine.select.condition import Inspection, check_budget
from napari_slicelabel.engine.select.request import Choice, Request
from napari_slicelabel.errors import InputError, MissingFileError, StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.select.candidates import Stack
    from napari_slicelabel.engine.select.request import Slice
    from napari_slicelabel.engine.stores import SliceStore

NOISE = 0.1
"""Standard deviation of the logarithm of a score."""

_NOTHING = 1e-6
"""Doubt about a slice without foreground: such slices come last, the farthest first."""


def foreground(request: Request) -> Generator[Progress | Metric, None, Choice]:
    """Choose slices by doubt about the predicted foreground times the distance to the nearest painted slice.

    Parameters
    ----------
    request : Request
        Every stack needs a finished run along its axis; the newest counts.

    Yields
    ------
    Progress
        After each slice.

    Returns
    -------
    Choice
        The notes say which runs were read, and which slices were skipped as damaged.

    Raises
    ------
    InputError
        A stack without a finished run, or with slices that its run did not fill.
    StorageError
        A damaged run.

    Notes
    -----
    Doubt is the mean over the predicted classes of the mean entropy of their pixels, in bits: a small class counts as
    much as a large one. The confidence c of a pixel gives the entropy of "right or not", ``-c log2 c - (1 - c) log2
    (1 - c)``, and 1 below one half. If a run of another method has filled the stack too, the share of the union of both
    foregrounds in which they differ is added. After each pick the distances are those to it too, so that picks keep
    apart. Scores are multiplied by ``exp(0.1 g)``, g normal: of slices about equally doubtful not always the same.

    The first factor is what ClaSP-PE queries (arXiv 2601.13677), which beat foreground-aware random choice where others
    did not (arXiv 2511.19183); the second keeps the choice from crowding, as interpolation needs.
    """
    notes = []
    stacks = []
    for stack in request.candidates.stacks:
        runs = _runs(request.project, stack)
        notes.append(f"{stack.volume} {stack.axis}: doubt of run {' and '.join(run.record.run_id for run in runs)}")
        score = yield from _doubt(request.project, stack, runs)
        score *= np.exp(NOISE * request.rng.normal(size=len(score)))
        stacks.append(_Scored(stack, score, _distances(stack)))
    chosen: list[Slice] = []
    inspection = Inspection(request)
    left = request.candidates.count
    while len(chosen) < request.budget:
        check_budget(request.budget, left)
        best = max(stacks, key=_Scored.top)
        index = best.next()
        bad = yield from inspection.damaged([best.stack.ref(index)])
        if bad:
            best.drop(index)
            left -= 1
        else:
            best.take(index)
            chosen.append(best.stack.ref(index))
    return Choice(chosen, notes=(*notes, *inspection.notes()))


@dataclass
class _Scored:
    """A stack with the doubt about each slice and its distance to the nearest painted or chosen one."""

    stack: "Stack"
    doubt: "NDArray[np.float64]"
    distance: "NDArray[np.float64]"

    def __post_init__(self) -> None:
        self._open = np.zeros(self.stack.depth, bool)
        self._open[list(self.stack.free)] = True

    def _values(self) -> "NDArray[np.float64]":
        values: NDArray[np.float64] = np.where(self._open, self.doubt * self.distance, -1.0)
        return values

    def top(self) -> float:
        return float(self._values().max())

    def next(self) -> int:
        """Return the slice with the highest score, the first of several."""
        return int(self._values().argmax())

    def drop(self, index: int) -> None:
        """Do not propose a slice."""
        self._open[index] = False

    def take(self, index: int) -> None:
        """Count a slice as painted."""
        self.drop(index)
        self.distance = np.minimum(self.distance, np.abs(np.arange(self.stack.depth) - index))


@dataclass(frozen=True)
class _Run:
    record: RunRecord
    prediction: "SliceStore"
    confidence: "SliceStore"


def _runs(project: "Project", stack: "Stack") -> list[_Run]:
    """Return the newest finished run that filled a stack, and the newest of another method if there is one."""
    found: list[RunRecord] = []
    for run_id in sorted(project.run_ids(), reverse=True):
        try:
            record = RunRecord.load(project.run_folder(run_id))
        except (MissingFileError, StorageError):
            continue  # killed before it began, or damaged: it says nothing about these slices
        fits = record.outcome == "finished" and record.axis == stack.axis and stack.volume in record.spans
        if fits and record.method not in {other.method for other in found}:
            found.append(record)
    if not found:
        raise InputError(
            f"foreground needs a finished run of {stack.volume} along {stack.axis}, and there is none; paint the slices"
            " that interval proposes and start one, or choose the axis of a run that has finished"
        )
    span = range(*found[0].spans[stack.volume])
    beyond = [index for index in stack.free if index not in span]
    if beyond:
        raise InputError(
            f"run {found[0].run_id} filled the slices {span.start}:{span.stop} of {stack.volume}, not slice"
            f" {beyond[0]}; give range={span.start}:{span.stop}, or start a run of all slices"
        )
    whole = [record for record in found if range(*record.spans[stack.volume]) == span]
    for record in whole[:2]:
        refuse_lost(project, record, stack.volume)
    return [
        _Run(
            record,
            *(
                run_store(project, project.run_folder(record.run_id), kind, stack.volume, stack.axis)
                for kind in ("prediction", "confidence")
            ),
        )
        for record in whole[:2]
    ]


def _doubt(
    project: "Project", stack: "Stack", runs: Sequence[_Run]
) -> Generator[Progress | Metric, None, "NDArray[np.float64]"]:
    doubt = np.full(stack.depth, _NOTHING)
    for number, index in enumerate(stack.free, 1):
        labels = runs[0].prediction.read(index)
        found = class_entropy(labels, runs[0].confidence.read(index))
        if len(runs) > 1:
            found += disagreement(labels, runs[1].prediction.read(index))
        doubt[index] += found
        yield Progress(f"read doubt about {stack.volume} {stack.axis}", number, len(stack.free))
    return doubt


def class_entropy(labels: "NDArray[np.uint8]", confidence: "NDArray[np.uint8]") -> float:
    """Return the mean over classes of the mean entropy of their pixels, 0 to 1; 0 without foreground.

    Parameters
    ----------
    labels : ndarray of shape (h, w), uint8
        0 = background, other values = classes.
    confidence : ndarray of shape (h, w), uint8
        Probability that the label is right, 255 = 1.

    Examples
    --------
    >>> import numpy as np
    >>> class_entropy(np.array([[0, 1, 1, 2]], np.uint8), np.array([[0, 255, 255, 128]], np.uint8)).__round__(2)
    0.5
    """
    values = np.unique(labels)
    means = [float(_ENTROPY[confidence[labels == value]].mean()) for value in values if value]
    return float(np.mean(means)) if means else 0.0


def disagreement(one: "NDArray[np.uint8]", other: "NDArray[np.uint8]") -> float:
    """Return the share of the union of two foregrounds in which the labels differ, 0 to 1; 0 without foreground.

    Examples
    --------
    >>> import numpy as np
    >>> disagreement(np.array([[0, 1, 1, 2]], np.uint8), np.array([[0, 1, 2, 0]], np.uint8)).__round__(2)
    0.67
    """
    union = (one > 0) | (other > 0)
    return float((one != other)[union].mean()) if union.any() else 0.0


def _entropies() -> "NDArray[np.float64]":
    sure = np.clip(np.arange(256) / 255, 0.5, 1)
    unsure = np.maximum(1 - sure, 1e-12)
    entropies: NDArray[np.float64] = -sure * np.log2(sure) - unsure * np.log2(unsure)
    return entropies


_ENTROPY = _entropies()


def _distances(stack: "Stack") -> "NDArray[np.float64]":
    """Return the distance of each slice to the nearest painted one; the depth where none is."""
    places = np.arange(stack.depth)
    distance = np.full(stack.depth, float(stack.depth))
    for index in stack.annotated:
        distance = np.minimum(distance, np.abs(places - index))
    return distance
