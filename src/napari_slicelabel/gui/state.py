"""What is to be seen, as one frozen value computed from what there is. No Qt, no napari, nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from napari_slicelabel.data.boxes import AXES, Axis, SliceRef
from napari_slicelabel.engine.context import HUMAN, REVIEW_BELOW

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from numpy.typing import NDArray

    from napari_slicelabel.data.classes import LabelClass
    from napari_slicelabel.engine.plan import RunPlan
    from napari_slicelabel.gui.paint import SaveState
    from napari_slicelabel.gui.worker import RunState

Step = Literal["open", "select", "paint", "propagate", "running", "review"]
"""The section of the workflow whose turn it is."""

SliceState = Literal["proposed", "painting", "complete", "skipped"]

# A correction repairs its neighbours less and less; this far away half of it is left.
_REACH = 4.0


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What a run says of the slices of the volume. Compared by identity: a new one for every change.

    Attributes
    ----------
    axis : {"z", "y", "x"}
        The slices are perpendicular to it.
    confidence : ndarray of shape (n,), float64
        Expected Dice; nan for a slice that the run has not written.
    human : ndarray of shape (n,), bool
        Which slices a human settled.
    origins : tuple of str
        ``human``, ``round 3``, ...; empty for a slice that the run has not written.
    annotated : frozenset of int
        The annotated slices that the run went by.
    earlier : tuple of (frozenset of int, frozenset of int)
        Slices that show the labels of earlier runs, and the annotated slices that those went by.
    """

    axis: Axis
    confidence: NDArray[np.float64]
    human: NDArray[np.bool_]
    origins: tuple[str, ...]
    annotated: frozenset[int] = frozenset()
    earlier: tuple[tuple[frozenset[int], frozenset[int]], ...] = ()


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run in the project.

    Attributes
    ----------
    run_id, method, error : str
        Its id, its method, and why it failed.
    outcome : str
        ``running`` and none at work here means that it was killed; ``damaged`` that it cannot be read.
    measured : bool
        Whether it measured on painted slices how sure it may be.
    started : datetime, optional
        When.
    axis : {"z", "y", "x"}
        Its slices are perpendicular to it.
    slices, written : int
        How many of the volume it was to write, and has written.
    mean_confidence : float, optional
        Mean expected Dice of what it predicted there.
    volumes : tuple of str
        The volumes that it labels.
    """

    run_id: str
    method: str
    outcome: str
    error: str = ""
    measured: bool = True
    started: datetime | None = None
    axis: Axis = "z"
    slices: int = 0
    written: int = 0
    mean_confidence: float | None = None
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProjectFacts:
    """What the project holds of one volume.

    Attributes
    ----------
    path, volume : str
        Folder, and name of the volume.
    volumes : tuple of str
        All that the project has.
    shape, voxel_size, unit
        Of the volume; z, y, x.
    classes : tuple of LabelClass
        Sorted by id.
    painted, complete : mapping of axis to frozenset of int
        As on the screen, saved or not.
    order : tuple of SliceRef
        Proposed slices, the first is worth most.
    coverage : tuple of float
        How well the slices up to each of them represent all; empty where nobody measured it.
    skipped : frozenset of SliceRef
        Proposals that the user does not want.
    saving : SaveState
        How far autosave is.
    runs : tuple of RunFacts
        Oldest first.
    shown_run : str
        The newest run whose labels are on the screen; empty for none.
    alone : str
        The run that is shown alone; empty: of every slice the newest labels.
    compared : str
        The run whose differences from that are shown; empty for none.
    scores : Scores, optional
        Of what is shown.
    accepted, flagged : frozenset of int
        Slices (along the axis of that run) that the user accepted, and flagged.
    edited : frozenset of int
        Slices painted since that run read them.
    span : tuple of (int, int), optional
        The slices that the next run is to fill, the second number excluded; None for all.
    stops : frozenset of int
        Slices that its labels are not to pass.
    """

    path: str
    volume: str
    shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float]
    unit: str
    classes: tuple[LabelClass, ...]
    painted: Mapping[Axis, frozenset[int]]
    complete: Mapping[Axis, frozenset[int]]
    saving: SaveState
    order: tuple[SliceRef, ...] = ()
    coverage: tuple[float, ...] = ()
    skipped: frozenset[SliceRef] = frozenset()
    runs: tuple[RunFacts, ...] = ()
    shown_run: str = ""
    alone: str = ""
    compared: str = ""
    scores: Scores | None = None
    accepted: frozenset[int] = frozenset()
    flagged: frozenset[int] = frozenset()
    edited: frozenset[int] = frozenset()
    volumes: tuple[str, ...] = ()
    span: tuple[int, int] | None = None
    stops: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Choosing:
    """How far the choice of slices is: what it does, and how much of that is done."""

    stage: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What the viewer shows, and is busy with.

    Attributes
    ----------
    images : tuple of str
        Names of image layers that labelling could begin on.
    image, labels, prediction, confidence : bool
        Which of our layers are there.
    current : SliceRef, optional
        The slice on the canvas; None in 3D, or where the view is no plane of the volume.
    blank : bool
        Whether that slice is known to hold no paint.
    selected : int
        The label to paint with.
    preview : int
        How many slices a preview shows; 0 for none.
    choosing : Choosing, optional
        Slices to paint are being chosen.
    """

    images: tuple[str, ...] = ()
    image: bool = False
    labels: bool = False
    prediction: bool = False
    confidence: bool = False
    current: SliceRef | None = None
    blank: bool = False
    selected: int = 1
    preview: int = 0
    choosing: Choosing | None = None


@dataclass(frozen=True, slots=True)
class ProposalRow:
    """A proposed slice, what became of it, and what it and all before it stand for."""

    rank: int
    ref: SliceRef
    state: SliceState
    coverage: float | None


@dataclass(frozen=True, slots=True)
class ReviewRow:
    """A slice to look at: its expected Dice, and what correcting it would add to the volume, in slices."""

    index: int
    confidence: float
    gain: float
    flagged: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the widgets show.

    Attributes
    ----------
    step : Step
        Whose turn it is.
    hint : str
        The next action, in one sentence.
    proposals : tuple of ProposalRow
        In the order of the ranking.
    next_proposal : SliceRef, optional
        The first one that is not done.
    can_run : bool
        Whether Run may be pressed.
    resumable : RunFacts, optional
        A run that was interrupted and can go on.
    queue : tuple of ReviewRow
        Slices to review, the most worthwhile first.
    reviewed : tuple of ReviewRow
        Slices that were to be reviewed and are settled.
    stale : frozenset of int
        Slices whose prediction no longer follows from what is painted.
    mean_confidence : float or None
        Of the predicted slices.
    measured : bool
        Whether the run on the screen measured on painted slices how sure it may be.
    current_complete, current_painted : bool
        Of the slice on the canvas.
    saved : str
        How far autosave is, in words.
    """

    project: ProjectFacts | None
    layers: LayerFacts
    run: RunState
    plan: RunPlan
    step: Step = "open"
    hint: str = ""
    proposals: tuple[ProposalRow, ...] = ()
    next_proposal: SliceRef | None = None
    can_run: bool = False
    resumable: RunFacts | None = None
    queue: tuple[ReviewRow, ...] = ()
    reviewed: tuple[ReviewRow, ...] = ()
    stale: frozenset[int] = frozenset()
    mean_confidence: float | None = None
    measured: bool = True
    current_complete: bool = False
    current_painted: bool = False
    saved: str = ""


def resolve(project: ProjectFacts | None, layers: LayerFacts, running: RunState, plan: RunPlan) -> Snapshot:
    """Return what is to be seen.

    Parameters
    ----------
    project : ProjectFacts, optional
        None until labelling has begun.
    layers : LayerFacts
        What the viewer shows.
    running : RunState
        The run of this window.
    plan : RunPlan
        What a run would do.

    Returns
    -------
    Snapshot
        The same for the same arguments.
    """
    if project is None:
        hint = "Choose an image and start." if layers.images else "Open an image or a project."
        return Snapshot(None, layers, running, plan, hint=hint)
    proposals = tuple(_proposals(project))
    following = next((row.ref for row in proposals if row.state in ("proposed", "painting")), None)
    resumable = _resumable(project, running)
    stale = stale_slices(project.scores, _annotated(project), project.edited) if project.scores else frozenset[int]()
    queue = review_queue(project.scores, _settled(project), project.flagged) if project.scores else ()
    step = _step(project, layers, running, following, plan)
    current = layers.current
    return Snapshot(
        project=project,
        layers=layers,
        run=running,
        plan=plan,
        step=step,
        hint=_hint(step, project, layers, running, following, queue, plan),
        proposals=proposals,
        next_proposal=following,
        can_run=not running.active and not plan.problem,
        resumable=resumable,
        queue=queue,
        reviewed=_reviewed(project) if project.scores else (),
        stale=stale,
        mean_confidence=_mean(project.scores) if project.scores else None,
        measured=all(run.measured for run in project.runs if run.run_id == project.shown_run),
        current_complete=current is not None and current.index in project.complete[current.axis],
        current_painted=current is not None and current.index in project.painted[current.axis],
        saved=_saved(project.saving),
    )


@lru_cache(maxsize=8)
def review_queue(scores: Scores, accepted: frozenset[int], flagged: frozenset[int]) -> tuple[ReviewRow, ...]:
    """Return the slices to review, by what correcting one would add.

    Parameters
    ----------
    scores : Scores
        Of the run on the screen.
    accepted, flagged : frozenset of int
        What is settled, and what the user wants to see again whatever its confidence.

    Returns
    -------
    tuple of ReviewRow
        Largest gain first. The gain of a slice is what it lacks to a Dice of 1, plus what its neighbours lack, less and
        less with distance.
    """
    lack = np.where(scores.human | ~np.isfinite(scores.confidence), 0.0, 1.0 - np.nan_to_num(scores.confidence))
    reach = min(len(lack) - 1, int(4 * _REACH))
    kernel = 0.5 ** (np.abs(np.arange(-reach, reach + 1)) / _REACH)
    gain = np.convolve(lack, kernel, mode="full")[reach : reach + len(lack)]
    predicted = np.isfinite(scores.confidence) & ~scores.human
    rows = [
        ReviewRow(index, float(scores.confidence[index]), float(gain[index]), index in flagged)
        for index in np.flatnonzero(predicted).tolist()
        if index not in accepted and (index in flagged or scores.confidence[index] < REVIEW_BELOW)
    ]
    return tuple(sorted(rows, key=lambda row: (-row.gain, row.index)))


@lru_cache(maxsize=8)
def stale_slices(scores: Scores, annotated: frozenset[int], edited: frozenset[int]) -> frozenset[int]:
    """Return the predicted slices whose nearest annotated slice is new or was edited since the run."""
    older = frozenset[int]().union(*(slices for slices, _ in scores.earlier))
    stale = _stale(scores, annotated, (annotated - scores.annotated) | (edited & annotated)) - older
    for slices, base in scores.earlier:
        stale |= _stale(scores, annotated, (annotated - base) | (edited & annotated)) & slices
    return stale


def _stale(scores: Scores, annotated: frozenset[int], fresh: frozenset[int]) -> frozenset[int]:
    """Return the predicted slices whose nearest annotated slice is one of `fresh`."""
    if not fresh:
        return frozenset()
    places = np.array(sorted(annotated))
    new = np.array([index in fresh for index in places.tolist()])
    slices = np.flatnonzero(np.isfinite(scores.confidence) & ~scores.human)
    right = np.searchsorted(places, slices).clip(0, len(places) - 1)
    left = (right - 1).clip(0)
    nearest = np.where(np.abs(places[right] - slices) <= np.abs(places[left] - slices), right, left)
    return frozenset(slices[new[nearest]].tolist()) | frozenset(fresh & set(slices.tolist()))


def _annotated(project: ProjectFacts) -> frozenset[int]:
    axis = project.scores.axis if project.scores else "z"
    return project.painted[axis] | project.complete[axis]


def _settled(project: ProjectFacts) -> frozenset[int]:
    """Return the slices that need no review: whatever the way, they are complete."""
    assert project.scores is not None
    return project.accepted | project.complete[project.scores.axis]


def _reviewed(project: ProjectFacts) -> tuple[ReviewRow, ...]:
    assert project.scores is not None
    settled = _settled(project)
    return tuple(row for row in review_queue(project.scores, frozenset(), project.flagged) if row.index in settled)


def _proposals(project: ProjectFacts) -> list[ProposalRow]:
    rows = []
    for rank, ref in enumerate(project.order, 1):
        state: SliceState = "proposed"
        if ref.index in project.complete[ref.axis]:
            state = "complete"
        elif ref in project.skipped:
            state = "skipped"
        elif ref.index in project.painted[ref.axis]:
            state = "painting"
        coverage = project.coverage[rank - 1] if len(project.coverage) >= rank else None
        rows.append(ProposalRow(rank, ref, state, coverage))
    return rows


def _resumable(project: ProjectFacts, running: RunState) -> RunFacts | None:
    if running.active or not project.runs:
        return None
    last = project.runs[-1]
    return last if last.outcome in ("running", "stopped", "cancelled", "failed") else None


def _step(
    project: ProjectFacts, layers: LayerFacts, running: RunState, following: SliceRef | None, plan: RunPlan
) -> Step:
    if running.active:
        return "running"
    if not layers.labels:
        return "paint"
    if following is not None:
        return "paint"
    if not any(project.painted[axis] | project.complete[axis] for axis in AXES):
        return "paint" if project.order else "select"
    if project.scores is not None and np.isfinite(project.scores.confidence).any():
        return "review"
    # strokes alone teach little: it is said once a slice is whole
    return "propagate" if any(project.complete[axis] for axis in AXES) else "paint"


def _hint(
    step: Step,
    project: ProjectFacts,
    layers: LayerFacts,
    running: RunState,
    following: SliceRef | None,
    queue: tuple[ReviewRow, ...],
    plan: RunPlan,
) -> str:
    if step == "running":
        return "Labels are growing. Scroll through, correct what is wrong; it is taken into account."
    if not layers.labels:
        return "The labels layer was removed. Nothing is lost: show it again to go on."
    if layers.choosing is not None and step in ("select", "paint"):
        return "Slices are being compared. You can paint in the meantime."
    if step == "select":
        return "Let the plugin propose slices to paint, or just paint in any slice."
    if step == "paint":
        if following is not None and layers.current == following:
            return f"Paint every object in slice {following}, then mark it complete (D)."
        if following is not None:
            return f"Go to the next proposed slice, {following} (N)."
        if any(project.painted[axis] for axis in AXES):
            return "Paint every object in this slice, then mark it complete (D). To go by strokes alone, press Run."
        return "Paint at least one slice."
    if step == "propagate":
        return plan.problem or "Enough is painted: press Run."
    if queue:
        return f"Review: {len(queue)} slices are doubtful. Start with the most worthwhile (J)."
    return "No slice is doubtful. Export the labels, or review any slice."


def _saved(saving: SaveState) -> str:
    if saving.error:
        return f"Not saved: {saving.error}"
    return "Saving ..." if saving.unsaved else "All saved"


def _mean(scores: Scores) -> float | None:
    predicted = scores.confidence[np.isfinite(scores.confidence) & ~scores.human]
    return float(predicted.mean()) if len(predicted) else None


@dataclass
class ScoreBook:
    """The scores of a run while it grows. `scores` makes a new frozen value only when something changed."""

    axis: Axis
    depth: int
    annotated: frozenset[int] = frozenset()
    _confidence: NDArray[np.float64] = field(init=False)
    _origins: list[str] = field(init=False)
    _made: Scores | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._confidence = np.full(self.depth, np.nan)
        self._origins = [""] * self.depth
        self._bases: dict[int, frozenset[int]] = {}

    def put(self, index: int, confidence: float, origin: str, base: frozenset[int] | None = None) -> None:
        """Take note of a slice that was written; by an earlier run that went by other annotated slices, `base`."""
        self._bases.pop(index, None)
        if base is not None:
            self._bases[index] = base
        self._confidence[index] = confidence
        self._origins[index] = origin
        self._made = None

    @property
    def scores(self) -> Scores:
        """All of them."""
        if self._made is None:
            human = np.array([origin == HUMAN for origin in self._origins])
            groups: dict[frozenset[int], set[int]] = {}
            for index, base in self._bases.items():
                groups.setdefault(base, set()).add(index)
            earlier = tuple((frozenset(indices), base) for base, indices in groups.items())
            confidence, origins = self._confidence.copy(), tuple(self._origins)
            self._made = Scores(self.axis, confidence, human, origins, self.annotated, earlier)
        return self._made
