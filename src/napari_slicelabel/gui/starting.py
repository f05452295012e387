"""From an image in the viewer to a project on disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_slicelabel.data.files import replacing, storage_errors
from napari_slicelabel.data.formats import open_volume
from napari_slicelabel.data.project import SUFFIX, Project
from napari_slicelabel.data.volume import parse_unit
from napari_slicelabel.errors import InputError, SliceLabelError
from napari_slicelabel.gui.layers import KEY, voxel_edges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_slicelabel.data.classes import LabelClass

DEFAULT_CLASS = "object"
_FOLDER = "napari-slicelabel"


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
        One letter for each axis of `data`.
    voxel_size : tuple of 3 float
        Along z, y, x.
    unit : str
        Of the voxel size.
    """

    name: str
    data: Any
    source: str
    axes: str
    voxel_size: tuple[float, float, float]
    unit: str

    @classmethod
    def of(cls, layer: Any) -> ImageFacts:
        """Return the facts of a napari image layer.

        Raises
        ------
        InputError
            Not a 3D image, or one that is still being downloaded.
        """
        if layer.metadata.get(KEY, {}).get("loading"):
            raise InputError(f"{layer.name} is still being downloaded; start when all of its slices are there")
        data = layer.data[0] if layer.multiscale else layer.data
        axes = {3: "zyx", 4: "czyx"}.get(len(data.shape), "")
        if layer.rgb and len(data.shape) == 4:
            axes = "zyxc"
        if not axes or (layer.rgb and axes == "zyx"):
            raise InputError(f"{layer.name}: the image has shape {tuple(data.shape)}; expected a stack (z, y, x)")
        # an affine may stretch the voxels too; 12 digits, since turning leaves a rest behind the last of them
        z, y, x = (float(f"{edge:.12g}") for edge in voxel_edges(layer))
        try:
            unit, factor = parse_unit(str(layer.units[-1]))
        except InputError:
            unit, factor = "pixel", 1.0
        source = str(layer.source.path or "")
        return cls(layer.name, data, source, axes, (z * factor, y * factor, x * factor), unit)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        lengths = dict(zip(self.axes, self.data.shape, strict=True))
        return int(lengths["z"]), int(lengths["y"]), int(lengths["x"])

    @property
    def is_calibrated(self) -> bool:
        """Whether the viewer knows a voxel size."""
        return self.unit != "pixel" or self.voxel_size != (1.0, 1.0, 1.0)


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
    An image that lies in a file stays there. Any other is copied, plane by plane, to a file beside the project: a run
    reads the image from disk.
    """
    if folder.exists():
        project = Project.open(folder)
        for name in project.names:
            if project.record(name).shape == facts.shape:
                return project, name
        raise InputError(f"{folder}: this project has no image of shape {facts.shape}; choose another folder")
    with storage_errors(folder.parent, "create"):
        folder.parent.mkdir(parents=True, exist_ok=True)
    source, options = _source(facts, folder)
    project = Project.create(
        folder, [source], names=[_plain(facts.name)], classes=list(classes) or [DEFAULT_CLASS], **options
    )
    return project, project.names[0]


def add_to_project(project: Project, facts: ImageFacts) -> str:
    """Take another image into a project, and return its name there; an image in no file is copied beside the project.

    Raises
    ------
    InputError
        The image does not fit.
    StorageError
        Disk full, read-only folder.
    """
    source, options = _source(facts, project.path)
    name, number = _plain(facts.name), 2
    while name in project.names:
        name, number = f"{_plain(facts.name)}_{number}", number + 1
    return project.add_volume(source, name=name, **options).name


def _source(facts: ImageFacts, folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the file of an image, and how a project is to read it."""
    options: dict[str, Any] = {"voxel_size": facts.voxel_size, "unit": facts.unit} if facts.is_calibrated else {}
    source = _usable_source(facts)
    if source is None:
        source, options["axes"] = _copied(facts, folder), facts.axes
    return source, options


def _usable_source(facts: ImageFacts) -> str | None:
    """Return the file of the image where our reader finds the same stack in it."""
    if not facts.source:
        return None
    try:
        volume = open_volume(facts.source)
    except SliceLabelError:
        return None
    return facts.source if volume.shape == facts.shape else None


def _copied(facts: ImageFacts, folder: Path) -> str:
    path = folder.with_name(f"{folder.name.removesuffix(SUFFIX)}_image.npy")
    number = 2
    while path.exists():
        path = folder.with_name(f"{folder.name.removesuffix(SUFFIX)}_image_{number}.npy")
        number += 1
    with storage_errors(path), replacing(path) as temporary:
        dtype = np.dtype(facts.data.dtype)
        target = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.uint8 if dtype.kind == "b" else dtype, shape=tuple(facts.data.shape)
        )
        for index in range(facts.data.shape[0]):
            target[index] = np.asarray(facts.data[index])
        target.flush()
        del target
    return str(path)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", name).strip("._+-")[:90] or "volume"
