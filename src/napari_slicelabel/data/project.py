"""A project: a folder that says which volumes exist, what was painted in them, and where the runs lie.

`ProjectFile` and what it holds are the specification of ``project.json``.
"""

# No `from __future__ import annotations`: pydantic reads the annotations when the class is made.
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from napari_slicelabel.data.annotation import CHUNKS, Annotation, SliceIndices, SliceStatus
from napari_slicelabel.data.boxes import AXES
from napari_slicelabel.data.classes import LabelClass, default_color, make_classes
from napari_slicelabel.data.files import guard, make_folder, remove, replacing, storage_errors, write_text
from napari_slicelabel.data.formats import open_volume
from napari_slicelabel.data.ngff import create_label_image, image_label
from napari_slicelabel.data.volume import Unit, Volume
from napari_slicelabel.errors import InputError, MissingFileError, SliceLabelError

FORMAT_VERSION = 1
SUFFIX = ".slicelabel"
"""Ending of a project folder by custom. Not ``.zarr``, which other napari readers claim."""

VolumeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$", max_length=100)]


class VolumeRecord(BaseModel):
    """One volume of a project, as ``project.json`` keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: VolumeName = Field(description="unique; also the name of its files")
    source: str = Field(description="the image, relative to the project folder if possible; ::array as in open_volume")
    absolute_source: str = Field(description="the same, absolute: tried when the project moved and the image did not")
    level: int = Field(default=0, ge=0, description="resolution level of an OME-Zarr or TIFF pyramid, 0 = finest")
    axes: str = Field(pattern=r"^[tczyx]{3,5}$", description="one letter for each axis of the stored array")
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(description="z, y, x")
    voxel_size: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(description="z, y, x, in unit")
    unit: Unit = "pixel"
    status: SliceStatus = Field(default=SliceStatus(), description="painted and complete slices, for each axis")

    @model_validator(mode="after")
    def _inside(self) -> Self:
        """Check that the slices of the status exist."""
        for axis, length in zip(AXES, self.shape, strict=True):
            for indices in (self.status.painted, self.status.complete):
                if max(getattr(indices, axis), default=0) >= length:
                    raise ValueError(f"volume {self.name}: a slice beyond the end of axis {axis} ({length} slices)")
        return self


class ProjectFile(BaseModel):
    """The content of ``project.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    volumes: tuple[VolumeRecord, ...]
    classes: tuple[LabelClass, ...] = Field(default=(), description="empty: any label value 1 to 254 is allowed")

    @model_validator(mode="after")
    def _unique(self) -> Self:
        """Check that names and ids differ."""
        names = [v.name for v in self.volumes]
        if len(set(names)) != len(names):
            raise ValueError("two volumes have the same name")
        make_classes(self.classes)
        return self


class Project:
    """A project folder. Make one with `Project.create`, open one with `Project.open`.

    Safe to use from several threads of one process. Two processes that write into one project at the same time are
    not foreseen: the later save wins.

    Attributes
    ----------
    path : Path
        The folder, absolute.
    """

    def __init__(self, path: Path, file: ProjectFile) -> None:
        self.path = path
        self._file = file
        self._lock = threading.RLock()
        self._volumes: dict[str, Volume] = {}
        self._annotations: dict[str, Annotation] = {}
        guard(path)

    def __repr__(self) -> str:
        """Return folder, volumes and classes on one line."""
        return f"<Project {self.path.name!r}, volumes: {', '.join(self.names)}; {len(self.classes)} classes>"

    @classmethod
    def create(
        cls,
        path: str | Path,
        images: str | Path | Sequence[str | Path],
        *,
        names: Sequence[str] | None = None,
        axes: str | None = None,
        voxel_size: Sequence[float] | None = None,
        unit: str | None = None,
        level: int = 0,
        classes: Sequence[LabelClass | str] = (),
    ) -> Self:
        """Create a project folder and return the project.

        Parameters
        ----------
        path : str or Path
            The folder to create. It appears complete or not at all.
        images : sequence of str or Path
            One or more images, anything that `open_volume` opens. They stay where they are and are never changed.
        names : sequence of str, optional
            One for each image. By default the file stems, or the array after ``::``, made unique.
        axes, voxel_size, unit, level : optional
            As in `open_volume`, for all images; by default what each file says.
        classes : sequence of LabelClass or str
            A bare name gets the next free id and a colour.

        Returns
        -------
        Project
            Ready to use.

        Raises
        ------
        InputError
            The folder exists, no image, an image that cannot be used, names or classes given twice.
        MissingFileError
            An image is not there.
        StorageError
            The folder cannot be written.
        """
        folder = Path(path).expanduser().absolute()
        if folder.exists():
            raise InputError(f"{folder} already exists; open that project, or choose another name")
        sources = [images] if isinstance(images, (str, Path)) else list(images)
        if not sources:
            raise InputError("a project needs at least one image")
        if names is not None and len(names) != len(sources):
            raise InputError(f"{len(names)} names for {len(sources)} images; expected one name for each image")
        table = make_classes(classes)
        records: list[VolumeRecord] = []
        volumes: dict[str, Volume] = {}
        for number, source in enumerate(sources):
            volume = open_volume(source, axes=axes, voxel_size=voxel_size, unit=unit, level=level)
            record = _record(volume, folder, names[number] if names else None, [r.name for r in records], level)
            volume.name = record.name
            volumes[record.name] = volume
            records.append(record)
        with storage_errors(folder, "create"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder) as temporary:
                temporary.mkdir()
                for name in ("annotation", "selection", "runs"):
                    (temporary / name).mkdir()
                project = cls(temporary, ProjectFile(volumes=tuple(records), classes=table))
                for name in volumes:
                    project._create_store(name)
                project.save()
        project.path = folder
        guard(folder)
        project._volumes.update(volumes)
        return project

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a project folder. Images are opened when they are first asked for.

        Parameters
        ----------
        path : str or Path
            The folder.

        Returns
        -------
        Project
            As last saved.

        Raises
        ------
        MissingFileError
            No such folder.
        InputError
            The folder is no project, its ``project.json`` is damaged, or is of another format version.
        """
        folder = Path(path).expanduser().absolute()
        file = folder / "project.json"
        if not folder.exists():
            raise MissingFileError(f"{folder}: no such folder; create a project first (slicelabel new)")
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{folder} is no project: it has no project.json") from error
        except OSError as error:
            raise MissingFileError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
        except ValueError as error:
            raise InputError(f"{file} is damaged ({error}); restore it from a copy") from error
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise InputError(
                f"{file}: format version {version!r}; this program reads version {FORMAT_VERSION}."
                " Update napari-slicelabel if the project was made by a newer one"
            )
        try:
            return cls(folder, ProjectFile.model_validate(data))
        except ValidationError as error:
            raise InputError(f"{file} is damaged ({_first(error)}); restore it from a copy") from error

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the volumes, in the order they were added."""
        return tuple(v.name for v in self._file.volumes)

    @property
    def classes(self) -> tuple[LabelClass, ...]:
        """The classes, sorted by id. Empty: any label value from 1 to 254 may be painted."""
        return self._file.classes

    @property
    def file(self) -> ProjectFile:
        """The content of ``project.json`` as it is now."""
        return self._file

    def record(self, name: str) -> VolumeRecord:
        """Return what ``project.json`` says of a volume, without opening the image; InputError for an unknown name."""
        for record in self._file.volumes:
            if record.name == name:
                return record
        raise InputError(f"volume {name!r}: this project has {', '.join(self.names)}")

    def volume(self, name: str) -> Volume:
        """Return a volume. Opened once.

        Parameters
        ----------
        name : str
            One of `names`.

        Returns
        -------
        Volume
            Its `name` is the name in the project.

        Raises
        ------
        InputError
            Unknown name, or the image is no longer of the shape that was annotated.
        MissingFileError
            The image is not there or cannot be opened.
        """
        with self._lock:
            record = self.record(name)
            if name not in self._volumes:
                self._volumes[name] = self._open_volume(record)
            return self._volumes[name]

    def annotation(self, name: str) -> Annotation:
        """Return the annotation of a volume. Always the same object; works without the image too.

        Raises
        ------
        InputError
            Unknown name.
        """
        with self._lock:
            record = self.record(name)
            if name not in self._annotations:
                self._annotations[name] = Annotation(
                    self._store(name),
                    record.shape,
                    status=record.status,
                    save_status=lambda status: self._save_status(name, status),
                    class_ids=lambda: frozenset(c.id for c in self.classes),
                )
            return self._annotations[name]

    def set_classes(self, classes: Sequence[LabelClass | str]) -> None:
        """Replace the classes and save.

        Parameters
        ----------
        classes : sequence of LabelClass or str
            A bare name that a class of the project has keeps its id and colour; a new name gets the next free id.

        Raises
        ------
        InputError
            An id or a name twice.
        StorageError
            Disk full, read-only folder.

        Notes
        -----
        Voxels that were painted with a class that is taken out keep their value.
        """
        with self._lock:
            known = {c.name: c for c in self.classes}
            table = make_classes([known.get(c, c) if isinstance(c, str) else c for c in classes])
            self._replace(classes=table)
            for name in self.names:
                self._write_colors(name)

    def add_volume(
        self,
        image: str | Path,
        *,
        name: str | None = None,
        axes: str | None = None,
        voxel_size: Sequence[float] | None = None,
        unit: str | None = None,
        level: int = 0,
    ) -> Volume:
        """Add an image to the project, save, and return its volume.

        Parameters
        ----------
        image : str or Path
            Anything that `open_volume` opens.
        name : str, optional
            By default the file stem or the array after ``::``, made unique.
        axes, voxel_size, unit, level : optional
            As in `open_volume`.

        Returns
        -------
        Volume
            The new volume.

        Raises
        ------
        InputError
            An image that cannot be used, or a name that is taken.
        MissingFileError
            The image is not there.
        StorageError
            Disk full, read-only folder.
        """
        with self._lock:
            volume = open_volume(image, axes=axes, voxel_size=voxel_size, unit=unit, level=level)
            record = _record(volume, self.path, name, self.names, level)
            # what an earlier attempt left behind that never reached project.json
            remove(self._store(record.name))
            volume.name = record.name
            self._create_store(record.name, record)
            self._replace(volumes=(*self._file.volumes, record))
            self._volumes[record.name] = volume
            return volume

    def save(self) -> None:
        """Write ``project.json`` in one step: a kill at any moment leaves the old file or the new one.

        Raises
        ------
        StorageError
            Disk full, read-only folder. The old file is unchanged then.
        """
        with self._lock:
            write_text(self.path / "project.json", self._file.model_dump_json(indent=1) + "\n")

    @property
    def runs_folder(self) -> Path:
        """The folder with one folder for each run."""
        return self.path / "runs"

    def run_ids(self) -> tuple[str, ...]:
        """Return the ids of the runs, sorted."""
        try:
            return tuple(sorted(p.name for p in self.runs_folder.iterdir() if p.is_dir() and p.name[0] != "."))
        except FileNotFoundError:
            return ()

    def run_folder(self, run_id: str) -> Path:
        """Return the folder of a run; InputError, which names the known runs, when there is none of that id."""
        known = self.run_ids()
        if run_id not in known:
            raise InputError(f"run {run_id!r}: this project has {', '.join(known) or 'no runs yet'}")
        return self.runs_folder / run_id

    def ranking_names(self) -> tuple[str, ...]:
        """Return the names of the saved rankings, sorted."""
        return tuple(sorted(p.stem for p in (self.path / "selection").glob("[!.]*.json")))

    def save_ranking(self, name: str, ranking: Mapping[str, Any]) -> None:
        """Write a ranking of slices to ``selection/<name>.json``, replacing one of that name.

        Parameters
        ----------
        name : str
            Letters, digits and ``_ . + -``.
        ranking : mapping
            Anything that JSON can hold.

        Raises
        ------
        InputError
            A name that is no file name, or values that JSON cannot hold.
        StorageError
            Disk full, read-only folder.
        """
        file = self._ranking_file(name)
        try:
            text = json.dumps(dict(ranking), indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"ranking {name!r} cannot be saved as JSON: {error}") from error
        make_folder(file.parent)
        write_text(file, text + "\n")

    def ranking(self, name: str) -> dict[str, Any]:
        """Return a saved ranking.

        Raises
        ------
        InputError
            No ranking of that name (the message lists those there are), or its file is damaged.
        """
        file = self._ranking_file(name)
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            known = ", ".join(self.ranking_names()) or "none yet"
            raise InputError(f"ranking {name!r}: this project has {known}") from error
        except ValueError as error:
            raise InputError(f"{file} is damaged ({error}); make the ranking again") from error
        if not isinstance(data, dict):
            raise InputError(f"{file} is no ranking; make it again")
        return data

    def _ranking_file(self, name: str) -> Path:
        return self.path / "selection" / f"{_checked_name(name, 'ranking')}.json"

    def _store(self, name: str) -> Path:
        return self.path / "annotation" / f"{name}.zarr"

    def _create_store(self, name: str, record: VolumeRecord | None = None) -> None:
        record = record or self.record(name)
        with storage_errors(self._store(name), "create"):
            create_label_image(
                self._store(name),
                record.shape,
                chunks=CHUNKS,
                name=name,
                voxel_size=record.voxel_size,
                unit=record.unit,
                classes=self.classes,
            )

    def _write_colors(self, name: str) -> None:
        """Bring the classes into the metadata of a label image, so that other viewers show the same colours."""
        import zarr

        with storage_errors(self._store(name)):
            try:
                group = zarr.open_group(self._store(name), mode="r+")
            except FileNotFoundError:
                # the first write creates it
                return
            ome = dict(_mapping(group.attrs.get("ome")))
            group.attrs["ome"] = {**ome, "image-label": image_label(self.classes)}

    def _save_status(self, name: str, status: SliceStatus) -> None:
        with self._lock:
            self._replace(
                volumes=tuple(
                    v.model_copy(update={"status": status}) if v.name == name else v for v in self._file.volumes
                )
            )

    def _replace(self, **changes: object) -> None:
        """Save with some fields replaced; when saving fails the project stays as it was."""
        before = self._file
        self._file = before.model_copy(update=changes)
        try:
            self.save()
        except BaseException:
            self._file = before
            raise

    def _open_volume(self, record: VolumeRecord) -> Volume:
        tried = dict.fromkeys((_resolved(record.source, self.path), record.absolute_source))
        failure: SliceLabelError | None = None
        for source in tried:
            try:
                volume = open_volume(
                    source,
                    axes=record.axes,
                    voxel_size=record.voxel_size,
                    unit=record.unit,
                    level=record.level,
                    name=record.name,
                )
            except MissingFileError as error:
                failure = failure or error
                continue
            except SliceLabelError as error:
                raise MissingFileError(
                    f"the image of volume {record.name!r} can no longer be opened: {error}."
                    " Restore the file; what was painted is safe"
                ) from error
            if volume.shape != record.shape:
                raise InputError(
                    f"{source}: the image now has shape {volume.shape}, but volume {record.name!r} was annotated with"
                    f" {record.shape}; put the original image back, or start a new project"
                )
            return volume
        raise MissingFileError(
            f"the image of volume {record.name!r} is missing: {' and '.join(tried)}; put it back there,"
            f" or edit `source` in {self.path / 'project.json'}; what was painted is safe"
        ) from failure


def _record(volume: Volume, folder: Path, name: str | None, taken: Iterable[str], level: int) -> VolumeRecord:
    """Return the record of a volume that was just opened, under a free name."""
    taken = set(taken)
    if name is not None:
        if _checked_name(name, "volume") in taken:
            raise InputError(f"volume name {name!r} is given twice; each must differ")
    else:
        stem = re.sub(r"[^A-Za-z0-9_.+-]+", "_", volume.name).lstrip(".+-")[:90] or "volume"
        name, number = stem, 2
        while name in taken:
            name, number = f"{stem}_{number}", number + 1
    file, separator, member = volume.source.partition("::")
    try:
        source = Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:
        # another drive (Windows)
        source = file
    return VolumeRecord(
        name=name,
        source=source + separator + member,
        absolute_source=volume.source,
        level=level,
        axes=volume.axes,
        shape=volume.shape,
        voxel_size=volume.voxel_size,
        unit=volume.unit,
    )


def _resolved(source: str, folder: Path) -> str:
    """Return a stored source as an absolute one."""
    file, separator, member = source.partition("::")
    return os.path.normpath(folder / file) + separator + member


def _checked_name(name: str, what: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}", name):
        raise InputError(f"{what} name {name!r}: expected letters, digits, _ . + - (it becomes a file name)")
    return name


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _first(error: ValidationError) -> str:
    """Return the first thing wrong, in one line."""
    detail = error.errors()[0]
    place = ".".join(str(p) for p in detail["loc"])
    return f"{place}: {detail['msg']}" if place else str(detail["msg"])


__all__ = [
    "FORMAT_VERSION",
    "SUFFIX",
    "LabelClass",
    "Project",
    "ProjectFile",
    "SliceIndices",
    "SliceStatus",
    "VolumeRecord",
    "default_color",
]
