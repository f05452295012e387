"""A project: a folder that says which volumes exist, what was painted in them, and where the runs lie.

`ProjectFile` and what it holds are the specification of ``project.json``.
"""

# No `from __future__ import annotations`: pydantic reads the annotations when the class is made.
import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from napari_slicelabel.data.annotation import CHUNKS, Annotation
from napari_slicelabel.data.classes import LabelClass, default_color, make_classes
from napari_slicelabel.data.copies import write_copy
from napari_slicelabel.data.files import (
    Stamp,
    guard,
    make_folder,
    remove,
    replacing,
    stamp,
    storage_errors,
    sweep,
    write_text,
)
from napari_slicelabel.data.fingerprint import fingerprint
from napari_slicelabel.data.formats import open_volume, split_source
from napari_slicelabel.data.locks import locked
from napari_slicelabel.data.ngff import create_label_image, image_label
from napari_slicelabel.data.reading import parse_json, read_bytes, read_json
from napari_slicelabel.data.status import NOTHING_PAINTED, SliceIndices, SliceStatus
from napari_slicelabel.data.units import Unit
from napari_slicelabel.data.volume import NanRule, Origin, Volume
from napari_slicelabel.errors import InputError, MissingFileError, SliceLabelError

FORMAT_VERSION = 2
"""Version 1 kept the status of the slices in ``project.json``; it opens, and the first write makes it version 2."""
SUFFIX = ".slicelabel"
"""Ending of a project folder by custom. Not ``.zarr``, which other napari readers claim."""

_IMAGES = "images"
_log = logging.getLogger(__name__)

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
    origins: dict[str, Origin] = Field(default={}, description="whose word axes and voxel_size are")
    nan: NanRule = Field(default="background", description="how values that are not finite are read")
    fingerprint: str = Field(default="", description="digest of shape and sampled voxels; empty in older projects")
    status: SliceStatus | None = Field(
        default=None, description="of format version 1 only: painted and complete slices, now in annotation/<name>.json"
    )

    @model_validator(mode="after")
    def _inside(self) -> Self:
        """Check that the slices of the status exist."""
        problem = self.status.beyond(self.shape) if self.status else ""
        if problem:
            raise ValueError(f"volume {self.name}: {problem}")
        return self


class ProjectFile(BaseModel):
    """The content of ``project.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1, 2] = 2
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

    @property
    def text(self) -> str:
        """What the file holds."""
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"


class Project:
    """A project folder. Make one with `Project.create`, open one with `Project.open`.

    Safe to use from several threads and several programs: what is changed is read again under a lock first, so that
    the classes and volumes that others added stay. `refresh` takes over what they changed.

    Attributes
    ----------
    path : Path
        The folder, absolute.
    """

    def __init__(self, path: Path, file: ProjectFile) -> None:
        self.path = path
        self._file = file
        self._lock = threading.RLock()
        # of the file alone: opening an image takes long
        self._file_lock = threading.RLock()
        self._stamp: Stamp | None = None
        self._text: bytes | None = None
        self._volumes: dict[str, Volume] = {}
        self._fingerprints: dict[str, str] = {}
        self._annotations: dict[str, Annotation] = {}

    def __repr__(self) -> str:
        """Return folder, volumes and classes on one line."""
        return f"<Project {self.path.name!r}, volumes: {', '.join(self.names)}; {len(self.classes)} classes>"

    @classmethod
    def create(
        cls,
        path: str | Path,
        images: str | Path | Volume | Sequence[str | Path | Volume],
        *,
        names: Sequence[str] | None = None,
        axes: str | None = None,
        voxel_size: Sequence[float] | None = None,
        unit: str | None = None,
        level: int = 0,
        nan: NanRule = "background",
        classes: Sequence[LabelClass | str] = (),
    ) -> Self:
        """Create a project folder and return the project.

        Parameters
        ----------
        path : str or Path
            The folder to create. It appears complete or not at all.
        images : sequence of str, Path or Volume
            One or more images, anything that `open_volume` opens. They stay where they are and are never changed. A
            `Volume` is copied into the project, as ``images/<name>.npy``.
        names : sequence of str, optional
            One for each image. By default the file stems, or the array after ``::``, made unique.
        axes, voxel_size, unit, level, nan : optional
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
        sources = [images] if isinstance(images, (str, Path, Volume)) else list(images)
        if not sources:
            raise InputError("a project needs at least one image")
        if names is not None and len(names) != len(sources):
            raise InputError(f"{len(names)} names for {len(sources)} images; expected one name for each image")
        table = make_classes(classes)
        records: list[VolumeRecord] = []
        volumes: dict[str, Volume] = {}
        copied: dict[str, Volume] = {}
        for number, source in enumerate(sources):
            name, taken = names[number] if names else None, [r.name for r in records]
            if isinstance(source, Volume):
                source.intensity()
                record = _copied_record(source, folder, name, taken)
                copied[record.name] = source
            else:
                volume = open_volume(source, axes=axes, voxel_size=voxel_size, unit=unit, level=level, nan=nan)
                volume.intensity()
                record = _record(volume, folder, name, taken, level)
                volume.name = record.name
                volumes[record.name] = volume
            records.append(record)
        with storage_errors(folder, "create"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            sweep(folder.parent)
            with replacing(folder) as temporary:
                temporary.mkdir()
                for name in ("annotation", "selection", "runs"):
                    (temporary / name).mkdir()
                project = cls(temporary, ProjectFile(volumes=tuple(records), classes=table))
                for record in records:
                    project._create_store(record.name)
                for name, volume in copied.items():
                    make_folder(temporary / _IMAGES)
                    write_copy(volume, temporary / _IMAGES / f"{name}.npy")
                write_text(project._json, project.file.text)
        project.path = folder
        guard(folder)
        project.refresh()
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
        if not folder.exists():
            raise MissingFileError(f"{folder}: no such folder; create a project first (slicelabel new)")
        project = cls(folder, ProjectFile(volumes=()))
        project._reread()
        guard(folder)
        for place in (folder, folder / "annotation", folder / "selection"):
            sweep(place)
        return project

    def refresh(self) -> bool:
        """Take over what other programs changed in ``project.json``; return whether it was replaced.

        That is a question of microseconds where it was not. A project that was moved away stays as it was.

        Raises
        ------
        InputError
            The file is damaged.
        """
        with self._file_lock:
            if stamp(self._json) in (None, self._stamp):
                return False
            self._reread()
            return True

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the volumes, in the order they were added."""
        return tuple(v.name for v in self._file.volumes)

    @property
    def classes(self) -> tuple[LabelClass, ...]:
        """The classes, sorted by id, as last read. Empty: any label value from 1 to 254 may be painted."""
        return self._file.classes

    @property
    def file(self) -> ProjectFile:
        """The content of ``project.json`` as last read."""
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
        StorageError
            What says which slices are painted is damaged or missing.
        """
        with self._lock:
            record = self.record(name)
            if name not in self._annotations:
                self._annotations[name] = Annotation(
                    self._store(name),
                    record.shape,
                    begun=True,
                    older=lambda: self._older_status(name),
                    prepare=self._migrate,
                    class_ids=self._class_ids,
                )
            return self._annotations[name]

    def set_classes(self, classes: Sequence[LabelClass | str], *, base: Sequence[LabelClass] | None = None) -> None:
        """Replace the classes and save. Classes that another program added or changed in the meantime stay.

        Parameters
        ----------
        classes : sequence of LabelClass or str
            A bare name that a class of the project has keeps its id and colour; a new name gets the next free id.
        base : sequence of LabelClass, optional
            The classes that the change started from; by default the ones last read.

        Raises
        ------
        InputError
            An id or a name twice, also together with what another program added.
        StorageError
            Disk full, read-only folder.

        Notes
        -----
        Voxels that were painted with a class that is taken out keep their value.
        """
        start = self.classes if base is None else tuple(base)
        with self._changing():
            known = {c.name: c for c in (*start, *self.classes)}
            given = [known.get(c, c) if isinstance(c, str) else c for c in classes]
            self._replace(classes=_merged_classes(start, given, self.classes))
            for name in self.names:
                self._write_colors(name)

    def add_volume(
        self,
        image: str | Path | Volume,
        *,
        name: str | None = None,
        axes: str | None = None,
        voxel_size: Sequence[float] | None = None,
        unit: str | None = None,
        level: int = 0,
        nan: NanRule = "background",
    ) -> Volume:
        """Add an image to the project, save, and return its volume.

        Parameters
        ----------
        image : str, Path or Volume
            Anything that `open_volume` opens; a `Volume` is copied into the project.
        name : str, optional
            By default the file stem or the array after ``::``, made unique.
        axes, voxel_size, unit, level, nan : optional
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
        if isinstance(image, Volume):
            return self._add_copy(image, name)
        volume = open_volume(image, axes=axes, voxel_size=voxel_size, unit=unit, level=level, nan=nan)
        volume.intensity()
        with self._changing():
            record = _record(volume, self.path, name, (*self.names, *self._painted_before()), level)
            # what an earlier attempt left behind that never reached project.json
            remove(self._store(record.name))
            volume.name = record.name
            self._create_store(record.name, record)
            self._replace(volumes=(*self._file.volumes, record))
        with self._lock:
            self._volumes[record.name] = volume
        return volume

    def remove_volume(self, name: str) -> None:
        """Take a volume out of the project and save. Nothing is deleted: image, paint and runs stay where they are.

        Parameters
        ----------
        name : str
            One of `names`. An image that is added later under this name gets another one, so that paint is not mixed.

        Raises
        ------
        InputError
            Unknown name, or the only volume.
        StorageError
            Disk full, read-only folder.
        """
        with self._changing():
            self.record(name)
            if len(self.names) == 1:
                raise InputError(f"volume {name!r} is the only one of this project; close the project instead")
            self._replace(volumes=tuple(v for v in self._file.volumes if v.name != name))
        with self._lock:
            self._volumes.pop(name, None)
            self._annotations.pop(name, None)

    def _add_copy(self, volume: Volume, name: str | None) -> Volume:
        """Copy a volume into the project, and add the copy."""
        volume.intensity()
        record = _copied_record(volume, self.path, name, (*self.names, *self._painted_before()))
        file = self.path / _IMAGES / f"{record.name}.npy"
        make_folder(file.parent)
        axes = write_copy(volume, file)
        return self.add_volume(file, name=record.name, axes=axes, voxel_size=volume.voxel_size, unit=volume.unit)

    def save(self) -> None:
        """Write ``project.json`` in one step: a kill at any moment leaves the old file or the new one.

        Raises
        ------
        StorageError
            Disk full, read-only folder. The old file is unchanged then.
        """
        with self._changing():
            self._replace()

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
            data = read_json(file)
        except FileNotFoundError as error:
            known = ", ".join(self.ranking_names()) or "none yet"
            raise InputError(f"ranking {name!r}: this project has {known}") from error
        except (ValueError, OSError) as error:
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
            with replacing(self._store(name)) as temporary:
                create_label_image(
                    temporary,
                    record.shape,
                    chunks=CHUNKS,
                    name=name,
                    voxel_size=record.voxel_size,
                    unit=record.unit,
                    classes=self.classes,
                )
            write_text(self._status_file(name), NOTHING_PAINTED)

    def _write_colors(self, name: str) -> None:
        """Bring the classes into the metadata of a label image, so that other viewers show the same colours."""
        import zarr

        from napari_slicelabel.data.zarr_stores import OwnStore

        with storage_errors(self._store(name)):
            # the project's lock is held
            sweep(self._store(name), alone=True)
            try:
                group = zarr.open_group(OwnStore(self._store(name)), mode="r+")
            except FileNotFoundError:
                # the first write creates it
                return
            ome = dict(_mapping(group.attrs.get("ome")))
            group.attrs["ome"] = {**ome, "image-label": image_label(self.classes)}

    @property
    def _json(self) -> Path:
        return self.path / "project.json"

    def _status_file(self, name: str) -> Path:
        return self.path / "annotation" / f"{name}.json"

    def _painted_before(self) -> tuple[str, ...]:
        """Return the names under which something was painted: also of volumes that are no longer in the project."""
        files = (self.path / "annotation").glob("[!.]*.json")
        return tuple(file.stem for file in files if file.read_text(encoding="utf-8") != NOTHING_PAINTED)

    def _class_ids(self) -> frozenset[int]:
        self.refresh()
        return frozenset(c.id for c in self.classes)

    def _older_status(self, name: str) -> SliceStatus | None:
        """Return the status that a project of format version 1 keeps in ``project.json``."""
        if self._file.format_version == 1:
            self.refresh()
        return (self.record(name).status or SliceStatus()) if self._file.format_version == 1 else None

    def _migrate(self) -> None:
        """Make a project of format version 1 one of version 2."""
        if self._file.format_version == 1:
            with self._changing():
                pass

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Let nobody else change ``project.json`` during the block, which begins with the file as it is now."""
        with self._file_lock, locked(self.path / "project.lock"):
            self._reread()
            if self._file.format_version == 1:
                self._write_status_files()
            yield

    def _write_status_files(self) -> None:
        """Move the status of the slices out of ``project.json``, of which a copy stays.

        Killed before the last step, the project is still one of version 1, whose status files nobody looks at.
        """
        copy, number = self.path / "project.json.v1", 1
        text = self._json.read_text(encoding="utf-8")
        while copy.exists() and copy.read_text(encoding="utf-8") != text:
            copy, number = self.path / f"project.json.v1.{number}", number + 1
        write_text(copy, text)
        for record in self._file.volumes:
            self.annotation(record.name).begin(record.status or SliceStatus())
        volumes = tuple(record.model_copy(update={"status": None}) for record in self._file.volumes)
        self._replace(format_version=FORMAT_VERSION, volumes=volumes)

    def _replace(self, **changes: object) -> None:
        """Save with some fields replaced; when saving fails the project stays as it was. Call inside `_changing`."""
        file = self._with_fingerprints(self._file.model_copy(update=changes))
        write_text(self._json, file.text)
        self._file, self._text, self._stamp = file, file.text.encode(), stamp(self._json)

    def _with_fingerprints(self, file: ProjectFile) -> ProjectFile:
        """Return the content with the digests of images that were opened since it was read."""
        volumes = tuple(
            v if v.fingerprint else v.model_copy(update={"fingerprint": self._fingerprints.get(v.name, "")})
            for v in file.volumes
        )
        return file.model_copy(update={"volumes": volumes})

    def _reread(self) -> None:
        """Read ``project.json``; InputError when it is damaged or not there."""
        with self._file_lock:
            before = stamp(self._json)
            try:
                text = read_bytes(self._json)
            except FileNotFoundError as error:
                raise InputError(f"{self.path} is no project: it has no project.json") from error
            except OSError as error:
                raise MissingFileError(
                    f"{self._json}: cannot be read ({error.strerror}); check its permissions"
                ) from error
            if text != self._text:
                self._file = _parsed(self._json, text)
            self._text, self._stamp = text, before

    def _open_volume(self, record: VolumeRecord) -> Volume:
        tried = dict.fromkeys((_resolved(record.source, self.path), record.absolute_source))
        failures: list[SliceLabelError] = []
        others: list[str] = []
        for source in tried:
            try:
                volume = _opened(record, source)
            except MissingFileError as error:
                failures.append(error)
                continue
            except SliceLabelError as error:
                raise MissingFileError(
                    f"the image of volume {record.name!r} can no longer be opened: {error}."
                    " Restore the file; what was painted is safe"
                ) from error
            difference = self._difference(record, volume)
            if not difference:
                if others:
                    _log.warning("%s; %s is read instead", others[0], source)
                return volume
            others.append(f"{source}: the image now {difference} than the one that volume {record.name!r} was made of")
        if others:
            raise InputError(
                f"{others[0]}; put the original image back, or start a new project. What was painted is safe"
            )
        raise MissingFileError(
            f"the image of volume {record.name!r} is missing: {' and '.join(tried)}; put it back there,"
            f" or edit `source` in {self.path / 'project.json'}; what was painted is safe"
        ) from failures[0]

    def _difference(self, record: VolumeRecord, volume: Volume) -> str:
        """Return in words how an image differs from the one that was annotated; "" for the same."""
        if volume.shape != record.shape:
            return f"has shape {volume.shape}, another one ({record.shape})"
        digest = fingerprint(volume)
        if record.fingerprint and digest != record.fingerprint:
            return "has other values"
        # of an older project: kept with what is saved next
        self._fingerprints[record.name] = digest
        return ""


def _opened(record: VolumeRecord, source: str) -> Volume:
    """Return the image of a record from a place; MissingFileError where it is not there."""
    file, member = split_source(source)
    volume = open_volume(
        f"{file}::{member}" if member else file,
        axes=record.axes,
        voxel_size=record.voxel_size,
        unit=record.unit,
        level=record.level,
        name=record.name,
        nan=record.nan,
    )
    volume.origins = record.origins or volume.origins
    return volume


def _parsed(path: Path, text: bytes) -> ProjectFile:
    try:
        data = parse_json(text)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); restore it from a copy") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version not in (1, FORMAT_VERSION):
        raise InputError(
            f"{path}: format version {version!r}; this program reads versions 1 to {FORMAT_VERSION}."
            " Update napari-slicelabel if the project was made by a newer one"
        )
    try:
        return ProjectFile.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path} is damaged ({_first(error)}); restore it from a copy") from error


def _merged_classes(
    base: Sequence[LabelClass], given: Sequence[LabelClass | str], now: Sequence[LabelClass]
) -> tuple[LabelClass, ...]:
    """Return the classes that are there `now` with the change from `base` to `given`; InputError where they clash."""
    before, current = {c.id: c for c in base}, {c.id: c for c in now}
    gone = before.keys() - {c.id for c in given if isinstance(c, LabelClass)}
    merged: list[LabelClass | str] = [c for c in now if c.id not in gone]
    for item in given:
        if isinstance(item, str):
            merged.append(item)
        elif before.get(item.id) != item and current.get(item.id) != item:
            if current.get(item.id) != before.get(item.id):
                raise InputError(
                    f"class {item.id} {item.name}: another program has just made it"
                    f" {current[item.id].name if item.id in current else 'go'}; look at the classes and try again"
                )
            merged = [c for c in merged if not (isinstance(c, LabelClass) and c.id == item.id)]
            merged.append(item)
    return make_classes(merged)


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
    path, member = split_source(volume.source)
    file, separator = str(path), "::" if member else ""
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
        origins=dict(volume.origins),
        nan=volume.nan,
        fingerprint=fingerprint(volume),
    )


def _copied_record(volume: Volume, folder: Path, name: str | None, taken: Iterable[str]) -> VolumeRecord:
    """Return the record of a volume whose copy lies, or will lie, in the project."""
    record = _record(volume, folder, name, taken, 0)
    file = f"{_IMAGES}/{record.name}.npy"
    axes = "zyx" if volume.channels == 1 else "zcyx"
    return record.model_copy(update={"source": file, "absolute_source": str(folder / file), "axes": axes})


def _resolved(source: str, folder: Path) -> str:
    """Return a stored source as an absolute one."""
    # a name may hold two colons, too: whatever stands behind the last folder stays as it is
    return os.path.normpath(folder / source) if "::" not in source else _resolved_member(source, folder)


def _resolved_member(source: str, folder: Path) -> str:
    path, member = split_source(folder / source)
    return os.path.normpath(path) + ("::" + member if member else "")


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
