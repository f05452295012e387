"""From an image in the viewer to a project on disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_slicelabel.data.copies import same_voxels
from napari_slicelabel.data.files import storage_errors
from napari_slicelabel.data.formats import open_volume, stated_axes
from napari_slicelabel.data.project import SUFFIX, Project
from napari_slicelabel.data.units import parse_unit
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.errors import InputError, SliceLabelError
from napari_slicelabel.gui.layers import KEY, voxel_edges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_slicelabel.data.classes import LabelClass

DEFAULT_CLASS = "object"
_FOLDER = "napari-slicelabel"


_MEANINGS = {"channel": "c", "channels": "c", "time": "t", "plane": "z", "slice": "z", "depth": "z"}


class OtherImageError(InputError):
    """The folder is the project of another image.

    Attributes
    ----------
    free : Path
        A folder that this image could have.
    """

    def __init__(self, folder: Path) -> None:
        self.free = free_folder(folder)
        super().__init__(
            f"{folder} labels another image; start in {self.free.name} (it is filled in), or open the image of that"
            " project"
        )


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image layer shows, read in the window's thread.

    Attributes
    ----------
    name : str
        Of the layer.
    data : array-like
        The finest level, never computed here.
    source : str
        The file that it was read from; empty for none.
    axes : str
        One letter for each axis of `data`; empty where the layer does not say. See `settled`.
    edges : tuple of float
        Lengths of a voxel along each axis of `data`.
    unit : str
        Of `edges`.
    """

    name: str
    data: Any
    source: str
    axes: str
    edges: tuple[float, ...]
    unit: str

    @classmethod
    def of(cls, layer: Any, axes: str = "") -> ImageFacts:
        """Return the facts of a napari image layer, whose axes may be given.

        Raises
        ------
        InputError
            Not a 3D image, or one that is still being downloaded.
        """
        if layer.metadata.get(KEY, {}).get("loading"):
            raise InputError(f"{layer.name} is still being downloaded; start when all of its slices are there")
        data = layer.data[0] if layer.multiscale else layer.data
        if layer.ndim < 3:
            raise InputError(f"{layer.name}: the image has shape {tuple(data.shape)}; expected a stack (z, y, x)")
        try:
            unit, factor = parse_unit(str(layer.units[-1]))
        except InputError:
            unit, factor = "pixel", 1.0
        # an affine may stretch the voxels too; 12 digits, since turning leaves a rest behind the last of them
        edges = tuple(float(f"{edge:.12g}") * factor for edge in voxel_edges(layer))
        if layer.rgb:
            edges += (1.0,)
        stated = axes or _stated_by(layer)
        return cls(layer.name, data, str(layer.source.path or ""), stated, edges, unit)

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Along z, y, x."""
        lengths = dict(zip(self.axes, self.edges, strict=True))
        return lengths["z"], lengths["y"], lengths["x"]

    @property
    def is_calibrated(self) -> bool:
        """Whether the viewer knows a voxel size."""
        return self.unit != "pixel" or self.voxel_size != (1.0, 1.0, 1.0)

    @property
    def is_shown_as_read(self) -> bool:
        """Whether the last axes of the layer are z, y, x, so that a layer with these lies on top of it."""
        return self.axes.removesuffix("c").endswith("zyx")

    def volume(self) -> Volume:
        """Return what the layer shows as a volume.

        Raises
        ------
        InputError
            Axes that do not fit, several time points.
        """
        lengths = dict(zip(self.axes, self.data.shape, strict=True))
        if lengths.get("t", 1) > 1:
            raise InputError(
                f"{self.name}: {lengths['t']} time points; expected one: take one time out of it in napari"
                " (layer.data[0]), or split the stack along time"
            )
        return Volume.from_array(self.data, name=self.name, axes=self.axes, voxel_size=self.voxel_size, unit=self.unit)


def possible_axes(facts: ImageFacts) -> tuple[str, ...]:
    """Return what the axes of an image may be: one answer where that is certain. May open the file of the image."""
    if facts.axes:
        return (facts.axes,)
    shape = tuple(facts.data.shape)
    stated = _stated_by_file(facts.source, shape)
    if stated:
        return (stated,)
    if len(shape) == 3:
        return ("zyx",)
    # axes of length 1 before the last three mean nothing
    if len(shape) in (4, 5) and all(n == 1 for n in shape[:-3]):
        return ("tczyx"[-len(shape) :],)
    return {4: ("zcyx", "czyx", "tzyx"), 5: ("tzcyx", "tczyx")}.get(len(shape), ())


def settled(facts: ImageFacts) -> ImageFacts:
    """Return the facts with axes; InputError where these are not certain."""
    answers = possible_axes(facts)
    if len(answers) != 1:
        shape = " x ".join(map(str, facts.data.shape))
        raise InputError(
            f"{facts.name}: the meaning of its axes ({shape}) is not certain; expected one of"
            f" {', '.join(answers) or 'three to five axes'}: choose it in the section Volume, or set layer.axis_labels"
        )
    return replace(facts, axes=answers[0])


def described_axes(axes: str, shape: Sequence[int]) -> str:
    """Return axes in words.

    Examples
    --------
    >>> described_axes("zcyx", (12, 2, 40, 48))
    '12 slices, 2 channels, 40 x 48'
    """
    lengths = dict(zip(axes, shape, strict=True))
    parts = [
        f"{lengths[a]} {word}" for a, word in (("z", "slices"), ("c", "channels"), ("t", "time points")) if a in lengths
    ]
    return ", ".join([*parts, f"{lengths['y']} x {lengths['x']}"])


def _stated_by(layer: Any) -> str:
    """Return the axes that the labels of a layer name; empty where they are napari's own."""
    labels = [str(label).strip().lower() for label in layer.axis_labels]
    letters = "".join(_MEANINGS.get(label, label) for label in labels) + ("c" if layer.rgb else "")
    if all(_MEANINGS.get(label, label) in "tczyx" and label for label in labels) and set("zyx") <= set(letters):
        return letters
    return {3: "zyxc", 4: "tzyxc"}.get(layer.ndim, "") if layer.rgb else ""


def _stated_by_file(source: str, shape: tuple[int, ...]) -> str:
    """Return the axes that a file states of an array of this shape, or of one without its axes of length 1."""
    if not source:
        return ""
    try:
        axes, stored = stated_axes(source)
    except SliceLabelError:
        return ""
    if not axes:
        return ""
    if stored == shape:
        return axes
    short = [(letter, n) for letter, n in zip(axes, stored, strict=True) if n > 1]
    return "".join(letter for letter, _ in short) if tuple(n for _, n in short) == shape else ""


def suggested_folder(name: str, source: str) -> Path:
    """Return where the project of an image would go: beside the file, or else into the user's home."""
    if source:
        file = Path(source.partition("::")[0]).absolute()
        if file.exists() and os.access(file.parent, os.W_OK):
            return file.parent / f"{_plain(file.name.split('.')[0])}{SUFFIX}"
    return Path.home() / _FOLDER / f"{_plain(name)}{SUFFIX}"


def start_project(facts: ImageFacts, folder: Path, classes: Sequence[LabelClass | str] = ()) -> tuple[Project, str]:
    """Return the project in `folder` with the image in it, and the volume's name; created if it is not there.

    Parameters
    ----------
    facts : ImageFacts
        The image.
    folder : Path
        Where the project is or is to be.
    classes : sequence of LabelClass or str
        Of a new project; one called "object" by default.

    Returns
    -------
    tuple of (Project, str)
        Ready to label.

    Raises
    ------
    InputError
        There is something else in the folder, or a project without such an image.
    StorageError
        The folder cannot be written.

    Notes
    -----
    An image that lies in a file stays there. Any other, and one that is not what its file holds, is copied into the
    project: a run reads the image from disk.
    """
    facts = settled(facts)
    shown = facts.volume()
    if folder.exists():
        project = Project.open(folder)
        return project, _volume_of(project, shown)
    with storage_errors(folder.parent, "create"):
        folder.parent.mkdir(parents=True, exist_ok=True)
    source, options = _source(facts, shown)
    table = list(classes) or [DEFAULT_CLASS]
    project = Project.create(folder, [source], names=[_plain(facts.name)], classes=table, **options)
    return project, project.names[0]


def add_to_project(project: Project, facts: ImageFacts) -> str:
    """Take another image into a project, and return its name; what is in no file as it is shown is copied there.

    Raises
    ------
    InputError
        The image does not fit.
    StorageError
        Disk full, read-only folder.
    """
    facts = settled(facts)
    source, options = _source(facts, facts.volume())
    name, number = _plain(facts.name), 2
    while name in project.names:
        name, number = f"{_plain(facts.name)}_{number}", number + 1
    return project.add_volume(source, name=name, **options).name


def free_folder(folder: Path) -> Path:
    """Return a project folder beside another one that is not there yet."""
    stem, number = folder.name.removesuffix(SUFFIX), 2
    while (free := folder.with_name(f"{stem}_{number}{SUFFIX}")).exists():
        number += 1
    return free


def _volume_of(project: Project, shown: Volume) -> str:
    """Return the volume of a project that is this image; OtherImageError where none is."""
    for name in project.names:
        if project.record(name).shape == shown.shape and same_voxels(project.volume(name), shown):
            return name
    raise OtherImageError(project.path)


def _source(facts: ImageFacts, shown: Volume) -> tuple[str | Volume, dict[str, Any]]:
    """Return the file of an image where it is what the layer shows, else that; and how a project is to read it."""
    if facts.source:
        options: dict[str, Any] = {"voxel_size": facts.voxel_size, "unit": facts.unit} if facts.is_calibrated else {}
        try:
            if same_voxels(open_volume(facts.source), shown):
                return facts.source, options
        except SliceLabelError:
            # not ours to open: it was another reader that did
            pass
    return shown, {}


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", name).strip("._+-")[:90] or "volume"
