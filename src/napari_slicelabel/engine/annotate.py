"""Take slices of an existing label volume over as human annotation."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.classes import NOT_PAINTED, PAINTED_BACKGROUND, LabelClass, default_color
from napari_slicelabel.data.project import Project
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine.events import Event, Progress
from napari_slicelabel.engine.label_values import LabelValues, colour_codes
from napari_slicelabel.engine.placing import on_image
from napari_slicelabel.errors import InputError


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
        Labels of the same shape, or one section, shape (1, h, w), for the one slice that is named: 0 = background,
        1 to 254 = class. 255 is the class of a mask that holds nothing else but 0; beside classes 255 and -1 stand for
        unknown. Three or four channels are colours, one for each class.
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
    if not refs:
        raise InputError("no slice was chosen; name at least one")
    image = project.volume(volume)
    for ref in refs:
        ref.box(image.shape)
    is_section = labels.shape[0] == 1 and labels.shape != image.shape
    if is_section:
        _check_section(labels, image, refs)
    elif labels.channels == 1 or labels.shape != image.shape:
        labels = on_image(labels, image)

    def read(ref: SliceRef) -> NDArray[np.integer]:
        picture: NDArray[np.integer] = labels.read_slice(SliceRef("z", 0) if is_section else ref)[:, 0]
        return colour_codes(picture) if labels.channels > 1 else picture[0]

    values: set[int] = set()
    for ref in refs:
        values.update(np.unique(read(ref)).tolist())
    explain = LabelValues.of_colours if labels.channels > 1 else LabelValues.of
    meaning = explain(values, labels.name, project.classes, add=add_classes)
    for done, ref in enumerate(refs, start=1):
        if not force:
            _refuse_conflict(project, volume, ref, *meaning.apply(read(ref)))
        yield Progress("check", done, len(refs), str(ref))
    if meaning.added:
        project.set_classes([*project.classes, *meaning.added])
        add_classes = True
    _ensure_classes(project, meaning.classes, add=add_classes)
    for done, ref in enumerate(refs, start=1):
        plane, known = meaning.apply(read(ref))
        if not known.all():
            # not complete then: there background is what was painted so
            plane = np.where(plane == NOT_PAINTED, PAINTED_BACKGROUND, plane)
            plane[~known] = NOT_PAINTED
        project.annotation(volume).write_slice(ref, plane.astype(np.uint8), complete=bool(known.all()))
        yield Progress("annotate", done, len(refs), str(ref))


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


def _check_section(labels: Volume, image: Volume, refs: Sequence[SliceRef]) -> None:
    """Refuse a single section for several slices, or one of another size."""
    if len(refs) > 1:
        raise InputError(
            f"labels {labels.name} are one section, but {len(refs)} slices are named; name the one it is of"
        )
    if labels.shape[1:] != image.plane_shape(refs[0].axis):
        raise InputError(
            f"labels {labels.name} are a section of {labels.shape[1:]}, but slice {refs[0]} of volume {image.name} has"
            f" {image.plane_shape(refs[0].axis)}; give a section of the same size"
        )


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
