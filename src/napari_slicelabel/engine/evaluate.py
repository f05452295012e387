"""A run against the truth, over the voxels that no human settled."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_slicelabel.data.boxes import AXES, Box, SliceRef
from napari_slicelabel.data.classes import MAX_CLASS
from napari_slicelabel.data.formats import open_labels
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine.context import refuse_lost, run_store
from napari_slicelabel.engine.events import SliceDone
from napari_slicelabel.engine.label_values import LabelValues
from napari_slicelabel.engine.metrics import (
    MOST_VOXELS,
    Calibration,
    Confusion,
    InstanceScores,
    SurfaceDistances,
    instance_scores,
    instances_from_membrane,
    mean,
    spearman,
    surface_distances,
)
from napari_slicelabel.engine.placing import on_image
from napari_slicelabel.engine.record import JOURNAL_NAME, RunRecord, newest_finished, read_events
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.stores import SliceStore

# A class with such a word in its name is what separates the instances of a truth that numbers them.
_MEMBRANE_WORDS = ("membrane", "boundary", "border")


def evaluate(
    project: "Project", *, truth: Volume | str | Path, run_id: str | None = None, volume: str | None = None
) -> dict[str, Any]:
    """Score the labels of a run against the truth.

    Parameters
    ----------
    project : Project
        The project of the run.
    truth : Volume, str or Path
        Labels of the volume's shape, opened or to be opened by `open_labels`: 0 = background and the ids of the
        project's classes. Or instances: any numbers, when the project has a class with membrane, boundary or border in
        its name.
    run_id : str, optional
        Which run; by default the newest that finished.
    volume : str, optional
        Which volume; needed where the run has several.

    Returns
    -------
    dict
        JSON can hold it. None stands for what is not defined.

        ``mean_dice`` is the primary number: the mean over the foreground classes of the Dice of all unannotated slices
        together. ``mean_slice_dice`` is the mean over slices. ``classes`` holds dice, iou, hd95 and assd of each
        class (lengths in ``unit``, with a ``note`` where there are none), ``by_distance`` the mean Dice by distance
        in slices to the nearest annotated one; nothing for a volume that has none. ``confidence`` holds Spearman's
        correlation of expected and true Dice over slices, the expected calibration error of the voxels' confidence
        (over all, and over those predicted or truly foreground), and the mean of expected - true Dice. ``instances``
        replaces the classes where the truth numbers them: means over slices of adapted Rand error and variation of
        information.

    Raises
    ------
    InputError
        Unknown run or volume, truth of another shape, label values that are no class, or nothing to score.
    MissingFileError, StorageError
        A file of the run is missing or damaged.

    Notes
    -----
    Voxels that the truth calls unknown (255 or -1 beside classes) do not count. A truth of 0 and 255 is a mask.
    Slices that a human painted or completed before the run ended do not count, nor do single voxels that one settled in
    other slices. Slices that the run did not write count as the background that is on disk; ``not_predicted`` says how
    many. A class that is in neither prediction nor truth does not count; one in only one of them has Dice 0 and no
    surface distance. Surface distances start in unannotated slices and end on the surfaces of the whole span. They
    are left out, with a note, where a class's bounding box exceeds `metrics.MOST_VOXELS`.
    """
    subject = _subject(project, truth, run_id or newest_finished(project), volume)
    if subject.has_instances:
        return _report_instances(subject, _membrane(subject))
    return _report_classes(subject, _count(subject))


@dataclass(frozen=True)
class _Subject:
    """What is scored."""

    project: "Project"
    record: RunRecord
    volume: str
    truth: Volume
    prediction: "SliceStore"
    confidence: "SliceStore"
    rows: dict[int, SliceDone]

    @cached_property
    def values(self) -> tuple[int, ...]:
        """All label values of the truth in the span, sorted."""
        found: set[int] = set()
        for index in self.span:
            found.update(np.unique(self.true_slice(index)).tolist())
        return tuple(sorted(found))

    @cached_property
    def meaning(self) -> LabelValues:
        """Classes and unknown among the values of the truth; where it numbers instances all values stay."""
        declared = self.project.classes
        try:
            meaning = LabelValues.of(set(self.values), self.truth.name, declared)
        except InputError:
            return LabelValues(frozenset(self.values) - {0})
        return LabelValues(frozenset(self.values) - {0}) if meaning.added else meaning

    @property
    def has_instances(self) -> bool:
        """Whether the truth holds values that are no class."""
        return bool(self.meaning.classes - set(self.classes))

    def true_classes(self, index: int) -> "tuple[NDArray[np.uint8], NDArray[np.bool_]]":
        """Return the classes of a slice of the truth, and where they are known."""
        classes, known = self.meaning.apply(self.true_slice(index))
        return classes.astype(np.uint8), known

    @cached_property
    def classes(self) -> dict[int, str]:
        """Names of the classes by label value: the project's, or the truth's own values when it declares none."""
        declared = {label_class.id: label_class.name for label_class in self.project.classes}
        return declared or {value: f"class {value}" for value in sorted(self.meaning.classes) if 0 < value <= MAX_CLASS}

    @property
    def annotated(self) -> tuple[int, ...]:
        return self.record.annotated[self.volume]

    @cached_property
    def span(self) -> tuple[int, ...]:
        return self.record.slices(self.volume)

    @property
    def scored(self) -> list[int]:
        human = set(self.annotated)
        return [index for index in self.span if index not in human]

    def ref(self, index: int) -> SliceRef:
        return SliceRef(self.record.axis, index)

    def true_slice(self, index: int) -> "NDArray[Any]":
        labels: NDArray[Any] = self.truth.read_slice(self.ref(index))[0, 0]
        return labels

    def distance(self, index: int) -> int:
        return min(abs(index - other) for other in self.annotated)

    def head(self) -> dict[str, Any]:
        """Return the part of the report that says what was scored."""
        return {
            "run": self.record.run_id,
            "method": self.record.method,
            "volume": self.volume,
            "axis": self.record.axis,
            "slices": len(self.scored),
            "annotated": len(self.annotated),
            "not_predicted": sum(index not in self.rows for index in self.scored),
        }


@dataclass
class _Tally:
    """What one pass over the slices adds up."""

    pooled: Confusion = field(default_factory=Confusion)
    slices: dict[int, Confusion] = field(default_factory=dict)
    expected: list[float] = field(default_factory=list)
    true: list[float] = field(default_factory=list)
    everywhere: Calibration = field(default_factory=Calibration)
    foreground: Calibration = field(default_factory=Calibration)
    bounds: dict[int, Box] = field(default_factory=dict)


def _subject(project: "Project", truth: Volume | str | Path, run_id: str, volume: str | None) -> _Subject:
    folder = project.run_folder(run_id)
    record = RunRecord.load(folder)
    names = tuple(record.spans)
    if volume is None and len(names) > 1:
        raise InputError(f"run {run_id} has the volumes {', '.join(names)}; say which one the truth belongs to")
    name = volume or names[0]
    if name not in names:
        raise InputError(f"run {run_id} has no volume {name!r}; it has {', '.join(names)}")
    labels = truth if isinstance(truth, Volume) else open_labels(truth)
    shape = project.volume(name).shape
    if labels.shape != shape:
        raise InputError(
            f"the truth {labels.name} has shape {labels.shape}, volume {name} has {shape}; they must agree"
        )
    labels = on_image(labels, project.volume(name))
    rows = {
        event.index: event
        for event in read_events(folder / JOURNAL_NAME)
        if isinstance(event, SliceDone) and event.volume == name
    }
    refuse_lost(project, record, name)
    prediction, confidence = (
        run_store(project, folder, kind, name, record.axis) for kind in ("prediction", "confidence")
    )
    subject = _Subject(project, record, name, labels, prediction, confidence, rows)
    if not subject.scored:
        raise InputError(f"run {run_id} filled no slice of {name} that was not annotated; there is nothing to score")
    return subject


def _membrane(subject: _Subject) -> int:
    for value, name in subject.classes.items():
        if any(word in name.lower() for word in _MEMBRANE_WORDS):
            return value
    extra = [value for value in subject.values if value and value not in subject.classes]
    some = ", ".join(map(str, extra[:8])) + (", ..." if len(extra) > 8 else "")
    known = ", ".join(f"{value} {name}" for value, name in subject.classes.items()) or "none"
    raise InputError(
        f"the truth {subject.truth.name} holds {some}, which are no class of the project ({known}); relabel it, or, if"
        " it numbers instances, have a class named membrane"
    )


def _count(subject: _Subject) -> _Tally:
    tally = _Tally()
    human = set(subject.annotated)
    annotation = subject.project.annotation(subject.volume)
    for index in subject.span:
        truth, given = subject.true_classes(index)
        prediction = np.where(given, subject.prediction.read(index), 0)
        _grow_bounds(tally.bounds, subject, index, prediction, truth)
        if index not in human:
            free = given & ~annotation.supervision(subject.ref(index)).known
            sure = subject.confidence.read(index)
            _count_slice(tally, subject, index, (prediction[free], truth[free], sure[free]))
    return tally


def _count_slice(
    tally: _Tally,
    subject: _Subject,
    index: int,
    voxels: tuple["NDArray[np.uint8]", "NDArray[np.uint8]", "NDArray[np.uint8]"],
) -> None:
    prediction, truth, sure = voxels
    confusion = Confusion.of(prediction, truth)
    tally.pooled += confusion
    tally.slices[index] = confusion
    dice = confusion.mean_dice(tuple(subject.classes))
    if dice is not None and index in subject.rows:
        tally.expected.append(subject.rows[index].confidence)
        tally.true.append(dice)
    right = prediction == truth
    relevant = (prediction != 0) | (truth != 0)
    tally.everywhere += Calibration.of(sure, right)
    tally.foreground += Calibration.of(sure[relevant], right[relevant])


def _grow_bounds(
    bounds: dict[int, Box], subject: _Subject, index: int, prediction: "NDArray[np.uint8]", truth: "NDArray[np.uint8]"
) -> None:
    """Grow each class's bounding box (z, y, x) by what one slice holds."""
    for value in subject.classes:
        rows, columns = (
            np.flatnonzero(((prediction == value) | (truth == value)).any(axis=axis)).tolist() for axis in (1, 0)
        )
        if rows:
            start, stop = [rows[0], columns[0]], [rows[-1] + 1, columns[-1] + 1]
            start.insert(AXES.index(subject.record.axis), index)
            stop.insert(AXES.index(subject.record.axis), index + 1)
            old = bounds.get(value, Box(tuple(start), tuple(stop)))
            bounds[value] = Box(tuple(map(min, old.start, start)), tuple(map(max, old.stop, stop)))


def _report_distances(subject: _Subject, tally: _Tally) -> list[dict[str, Any]]:
    if not subject.annotated:
        return []
    by_distance: dict[int, list[Confusion]] = defaultdict(list)
    for index, confusion in tally.slices.items():
        by_distance[subject.distance(index)].append(confusion)
    ids = tuple(subject.classes)
    return [
        {"distance": distance, "slices": len(many), "mean_dice": sum(many, Confusion()).mean_dice(ids)}
        for distance, many in sorted(by_distance.items())
    ]


def _report_classes(subject: _Subject, tally: _Tally) -> dict[str, Any]:
    ids = tuple(subject.classes)
    surfaces = {value: _surface(subject, value, tally.bounds.get(value)) for value in ids}
    return {
        **subject.head(),
        "mean_dice": tally.pooled.mean_dice(ids),
        "mean_iou": tally.pooled.mean_iou(ids),
        "mean_hd95": mean([surface.hd95 for surface in surfaces.values()]),
        "mean_assd": mean([surface.assd for surface in surfaces.values()]),
        "mean_slice_dice": mean([confusion.mean_dice(ids) for confusion in tally.slices.values()]),
        "unit": subject.project.volume(subject.volume).unit,
        "classes": {
            subject.classes[value]: {
                "id": value,
                "dice": tally.pooled.dice(value),
                "iou": tally.pooled.iou(value),
                "hd95": surfaces[value].hd95,
                "assd": surfaces[value].assd,
                "note": surfaces[value].reason,
            }
            for value in ids
        },
        "by_distance": _report_distances(subject, tally),
        "confidence": _report_confidence(tally),
    }


def _report_confidence(tally: _Tally) -> dict[str, Any]:
    differences = [expected - true for expected, true in zip(tally.expected, tally.true, strict=True)]
    return {
        "slices": len(tally.true),
        "spearman": spearman(tally.expected, tally.true),
        "gap": mean(differences),
        "calibration_error": tally.everywhere.error(),
        "calibration_error_foreground": tally.foreground.error(),
        "voxel_gap_foreground": tally.foreground.gap(),
    }


def _surface(subject: _Subject, value: int, box: Box | None) -> SurfaceDistances:
    if box is None:
        return SurfaceDistances(None, None, "absent in prediction and truth")
    if box.size > MOST_VOXELS:
        return SurfaceDistances(None, None, f"left out: its bounding box has {box.size} voxels, above {MOST_VOXELS}")
    number = AXES.index(subject.record.axis)
    counted = np.isin(np.arange(box.start[number], box.stop[number]), subject.scored)
    truth, given = subject.meaning.apply(subject.truth.read(box)[0])
    return surface_distances(
        (subject.prediction.read_box(box) == value) & given,
        truth == value,
        subject.project.volume(subject.volume).voxel_size,
        counted=counted.reshape([-1 if axis == number else 1 for axis in range(3)]),
    )


def _report_instances(subject: _Subject, membrane: int) -> dict[str, Any]:
    found: list[InstanceScores] = []
    for index in subject.scored:
        instances = instances_from_membrane(subject.prediction.read(index), membrane)
        scores = instance_scores(instances, subject.true_slice(index))
        if scores is not None:
            found.append(scores)
    names = ("rand_error", "split", "merge")
    return {
        **subject.head(),
        "mean_dice": None,
        "instances": {
            "membrane": subject.classes[membrane],
            "slices": len(found),
            **{name: mean([getattr(scores, name) for scores in found]) for name in names},
        },
    }
