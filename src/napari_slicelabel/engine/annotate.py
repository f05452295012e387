"""Take slices of an existing label volume over as human annotation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.classes import MAX_CLASS, NOT_PAINTED, PAINTED_BACKGROUND, LabelClass, default_color
from napari_slicelabel.data.project import Project
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine.events import Event, Progress
from napari_slicelabel.engine.placing import on_image
from napari_slicelabel.errors import InputError

_MASK = 255


def copy_slices(
    project: Project,
    volume: str,
    labels: Volume,
    refs: Sequence[SliceRef],
    *,
    force: bool = False,
    add_classes: bool = False,
) -> Iterator[Event]:
    """Copy slices of a label volume into the annotation, as painted by a human and complete.

    Parameters
    ----------
    project : Project
        The project. It gets one class per label value found when it has none yet.
    volume : str
        Name of the volume that is annotated.
    labels : Volume
        Labels of the same shape: 0 = background, 1 to 254 = class. 255 is the class of a mask that holds nothing else
        but 0; beside classes 255 and -1 stand for unknown.
    refs : sequence of SliceRef
        Which slices.
    force : bool
        Whether annotation that differs may be replaced.
    add_classes : bool
        Whether label values without a class make new classes, also when the project has some.

    Yields
    ------
    Event
        Progress of the check, then of the writing. Nothing is written before everything was checked.

    Raises
    ------
    InputError
        Another shape, no slice, a slice that does not exist or is painted in another way, label values above 254
        (instances), values that are no class, or nothing but background.
    StorageError
        The project cannot be written.
    """
    labels = on_image(labels, project.volume(volume))
    if not refs:
        raise InputError("no slice was chosen; name at least one")
    found: set[int] = set()
    for ref in refs:
        found.update(np.unique(_read(labels, ref)).tolist())
    meaning = _Meaning.of(found, labels.name, project)
    for done, ref in enumerate(refs, start=1):
        if not force:
            _refuse_conflict(project, volume, ref, *meaning.apply(_read(labels, ref)))
        yield Progress("check", done, len(refs), str(ref))
    _ensure_classes(project, meaning.classes, add=add_classes)
    for done, ref in enumerate(refs, start=1):
        plane, known = meaning.apply(_read(labels, ref))
        if not known.all():
            # not complete then: there background is what was painted so
            plane = np.where(plane == NOT_PAINTED, PAINTED_BACKGROUND, plane)
            plane[~known] = NOT_PAINTED
        project.annotation(volume).write_slice(ref, plane.astype(np.uint8), complete=bool(known.all()))
        yield Progress("annotate", done, len(refs), str(ref))


@dataclass(frozen=True)
class _Meaning:
    """What the values of label files stand for.

    Attributes
    ----------
    classes : frozenset of int
        The classes that occur.
    mask : int
        The class that 255 stands for in a mask of 0 and 255; 0 in other files.
    unknown : tuple of int
        Values of voxels that nobody has labelled.
    """

    classes: frozenset[int]
    mask: int = 0
    unknown: tuple[int, ...] = ()

    @classmethod
    def of(cls, values: set[int], name: str, project: Project) -> "_Meaning":
        """Return the meaning of all values that occur; InputError for instances."""
        if values <= {0, _MASK} and _MASK in values:
            ids = [label_class.id for label_class in project.classes]
            mask = ids[0] if len(ids) == 1 else 1
            return cls(frozenset({mask}), mask=mask)
        unknown = tuple(sorted(values & {-1, _MASK}))
        classes = values - {NOT_PAINTED, *unknown}
        if classes and (min(classes) < 0 or max(classes) > MAX_CLASS):
            raise InputError(
                f"labels {name} hold values from {min(values)} to {max(values)}; classes are 1 to {MAX_CLASS} and "
                "background is 0, so turn instances into classes first"
            )
        return cls(frozenset(classes), unknown=unknown)

    def apply(self, plane: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
        """Return the classes of a plane, and where they are known."""
        known = ~np.isin(plane, self.unknown)
        if self.mask:
            plane = np.where(plane == _MASK, self.mask, plane)
        return np.where(known, plane, NOT_PAINTED), known


def _refuse_conflict(
    project: Project, volume: str, ref: SliceRef, plane: NDArray[np.integer], given: NDArray[np.bool_]
) -> None:
    """Refuse to change what is painted, in the slice itself or in those of another axis that cross it.

    What is painted as the labels have it is no conflict: a command that was killed goes on where it is given again.
    """
    annotation = project.annotation(volume)
    known = annotation.supervision(ref)
    differing = int(np.count_nonzero(known.known & given & (known.target != plane)))
    if differing:
        where = "already" if ref.index in annotation.annotated(ref.axis) else "along another axis"
        raise InputError(
            f"slice {ref}: {differing} voxels painted {where} have other labels; use --force to replace them"
        )


def _read(labels: Volume, ref: SliceRef) -> NDArray[np.integer]:
    plane: NDArray[np.integer] = labels.read_slice(ref)[0, 0]
    return plane


def _ensure_classes(project: Project, values: frozenset[int], *, add: bool) -> None:
    known = {label_class.id for label_class in project.classes}
    if not known and not values:
        raise InputError("the chosen slices hold nothing but background; choose slices with labels")
    missing = sorted(values - known)
    if known and missing and not add:
        raise InputError(
            f"label values {_few(missing)} are no classes of the project "
            f"(it has {', '.join(f'{c.id} {c.name}' for c in project.classes)}); use --add-classes to add them"
        )
    if missing:
        names = {c.name for c in project.classes}
        added = [
            LabelClass(id=value, name=_free_name(f"label {value}", names), color=default_color(value))
            for value in missing
        ]
        project.set_classes([*project.classes, *added])


def _few(values: Sequence[int], count: int = 8) -> str:
    rest = f" and {len(values) - count} more" if len(values) > count else ""
    return ", ".join(map(str, values[:count])) + rest


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "'"
    return name
