"""What a human painted: `Annotation`, a sparse label store on disk.

Reading this module needs three facts. The voxels lie in a zarr array of which only touched chunks exist. Which slices
are painted and which are complete, and which chunks must be there, lies beside it in ``<volume>.json`` (`status`); that
is the truth, so a slice that no status knows is not even looked for on disk. Chunks and status of one write take their
places together (`staging`), under a lock that other programs respect (`locks`).
"""

# No `from __future__ import annotations`: pydantic reads the annotations when the class is made.
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike as NumpyArrayLike
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from napari_slicelabel.data.boxes import AXES, Axis, Box, SliceRef
from napari_slicelabel.data.classes import NOT_PAINTED, PAINTED_BACKGROUND
from napari_slicelabel.data.files import make_folder, own_path, replacing, storage_errors, sweep
from napari_slicelabel.data.locks import locked
from napari_slicelabel.data.ngff import create_label_image
from napari_slicelabel.data.reading import read_bytes
from napari_slicelabel.data.staging import apply_stage, emptied_by, finish_stage, is_chunk
from napari_slicelabel.data.status import AnnotationFile, SliceIndices, SliceStatus, StatusStore
from napari_slicelabel.errors import BusyError, InputError, StorageError

if TYPE_CHECKING:
    import zarr

    from napari_slicelabel.data.zarr_stores import StagedStore

# Measured on 1024 x 4096 x 4096, writing one densely painted slice along z / y / x, seconds on 2 busy cores:
#   (1, 256, 256) 0.2 / 9.6 / 8.7    (8, 256, 256) 0.5 / 6.3 / 7.0    (16, 256, 256) 1.0 / 4.3 / 3.2
#   (32, 128, 128) 2.2 / 2.1 / 1.9   (16, 128, 128) 1.8 / 2.9 / 3.4
# The cost is per file, not per byte. People paint along z mostly, and y or x in the anisotropic or isotropic rest, so z
# must be quick and the others bearable. A stroke of 256 x 256 takes 13 ms.
CHUNKS = (16, 256, 256)
_WRITERS = 4  # threads; a slice of 4096 x 4096 takes 1.3 s so, 1.6 s with one


@dataclass(frozen=True, slots=True)
class Supervision:
    """What a slice teaches.

    Attributes
    ----------
    target : ndarray of shape (h, w), uint8
        0 = background, 1 to 254 = class. 0 where not known.
    known : ndarray of shape (h, w), bool
        Where a loss may look: painted, or the slice is complete, or a complete slice of another axis crosses there.
    """

    target: NDArray[np.uint8]
    known: NDArray[np.bool_]


class Annotation:
    """The human labels of one volume: uint8, sparse on disk.

    0 = not painted, 1 to 254 = classes, 255 = painted as background. Get one from `Project.annotation`.

    Parameters
    ----------
    folder : Path
        The OME-Zarr label image. It is created by the first write when it does not exist.
    shape : tuple of int
        (z, y, x) of the volume.
    begun : bool
        Whether the status file must be there: it is written when a volume is added to a project.
    older : callable
        Returns what a project of format version 1 says in place of the status file, None once the project is newer.
    prepare : callable
        Called before a write, without any lock: makes an older project a newer one.
    class_ids : callable
        Returns the label values allowed besides 0 and 255; empty allows all.

    Raises
    ------
    StorageError
        The status file is damaged, or missing though it must be there.

    Notes
    -----
    Safe to use from several threads and several programs: a write takes a lock, reads again what others wrote, and
    changes only what it is asked to. What others painted is seen by the next call. A program that is killed in a write
    leaves all of the slice or nothing; what it left is put in place by the next one that opens the annotation.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, int, int],
        *,
        begun: bool = False,
        older: Callable[[], SliceStatus | None] = lambda: None,
        prepare: Callable[[], None] = lambda: None,
        class_ids: Callable[[], frozenset[int]] = frozenset,
    ) -> None:
        self.shape = shape
        self._folder = folder
        # names the folder of a write that counts and is not in place yet; in format version 1 a file
        self._pending = folder.with_name(folder.name + ".writing")
        self._lock_file = folder.with_suffix(".lock")
        self._prepare = prepare
        self._class_ids = class_ids
        self._lock = threading.RLock()
        self._opening = threading.RLock()
        self._opened: zarr.Array[Any] | None = None
        self._chunk_shape: tuple[int, ...] = tuple(max(1, min(c, n)) for c, n in zip(CHUNKS, shape, strict=True))
        self._writer: tuple[StagedStore, zarr.Array[Any]] | None = None
        self._status = StatusStore(
            folder.with_suffix(".json"), shape, begun=begun, older=lambda: self._with_note(older())
        )
        self._recover()

    def __repr__(self) -> str:
        """Return shape and number of annotated slices on one line."""
        counts = ", ".join(f"{len(self.annotated(a))} {a}" for a in AXES)
        return f"<Annotation zyx {self.shape}, slices: {counts}>"

    @property
    def folder(self) -> Path:
        """The OME-Zarr label image on disk."""
        return self._folder

    @property
    def status(self) -> SliceStatus:
        """Painted and complete slices. As last known where the file cannot be read; reading voxels says so."""
        with suppress(StorageError):
            self._status.refresh()
        return self._status.content.status

    @property
    def changes(self) -> int:
        """How often another program was seen to have painted here; looks whether one has."""
        self._status.refresh()
        return self._status.changes

    def painted(self, axis: Axis) -> tuple[int, ...]:
        """Return the slices along `axis` that hold paint put there by `write_slice`, sorted."""
        return self.status.painted.of(axis)

    def complete(self, axis: Axis) -> tuple[int, ...]:
        """Return the slices along `axis` declared complete, sorted."""
        return self.status.complete.of(axis)

    def annotated(self, axis: Axis) -> tuple[int, ...]:
        """Return the slices along `axis` that are painted or complete, sorted."""
        status = self.status
        return tuple(sorted({*status.painted.of(axis), *status.complete.of(axis)}))

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Return the labels in a box.

        Parameters
        ----------
        box : Box
            In z, y, x, inside the volume.

        Returns
        -------
        ndarray of shape (z, y, x), uint8
            0 = not painted, 1 to 254 = class, 255 = background. Nothing is read from disk where nothing is painted.

        Raises
        ------
        InputError
            The box is not 3D or reaches outside the volume.
        StorageError
            A chunk is damaged or missing; the message names its file.
        """
        if len(box.start) != 3 or not Box.whole(self.shape).contains(box):
            raise InputError(f"box from {box.start} to {box.stop}: the annotation has shape {self.shape} (z, y, x)")
        # where the status cannot be read, as last known: a folder that was moved away may come back
        return self._read(box, self.status)

    def read_slice(self, ref: SliceRef) -> NDArray[np.uint8]:
        """Return the labels of one slice.

        Parameters
        ----------
        ref : SliceRef
            Which slice.

        Returns
        -------
        ndarray of shape (h, w), uint8
            As `read`; (h, w) as in `Volume.read_slice`. What slices of other axes painted where they cross is included.

        Raises
        ------
        InputError
            No such slice.
        StorageError
            A chunk is damaged; the message names its file.
        """
        return self.read(ref.box(self.shape)).squeeze(ref.axis_number)

    def write_slice(
        self,
        ref: SliceRef,
        labels: NumpyArrayLike,
        *,
        complete: bool | None = None,
        where: NDArray[np.bool_] | None = None,
        keep: bool = False,
    ) -> None:
        """Replace the labels of one slice on disk. Voxels and status change together, or not at all.

        Parameters
        ----------
        ref : SliceRef
            Which slice.
        labels : array-like of shape (h, w), integer or bool
            0 = not painted, 1 to 254 = class, 255 = background. Replaces all that the slice held, also what slices of
            other axes painted where they cross: the latest paint wins.
        complete : bool, optional
            Whether unpainted means background here. By default that stays as it is.
        where : ndarray of shape (h, w), bool, optional
            Where to write. The other voxels keep what is on disk, which other programs may have painted in the
            meantime.
        keep : bool
            Whether voxels that are painted already stay as they are.

        Raises
        ------
        InputError
            No such slice, another shape, values that are no integers 0 to 255, or that are no class of the project.
        StorageError
            Disk full, read-only folder, damaged or missing chunk. Nothing has changed then.
        BusyError
            Another program has been writing all the time.

        Notes
        -----
        Only chunks between the first and the last voxel that changes are written. A slice without any paint that
        is not complete counts as not annotated.
        """
        box = ref.box(self.shape)
        plain = self._checked(ref, labels)
        with self._writing():
            # also where only other slices have paint: a chunk that is made anew would hide that theirs is lost
            self._refuse_missing(box)
            old = self._read(box, self._status.content.status)
            new = np.expand_dims(plain, ref.axis_number)
            if where is not None:
                new = np.where(np.expand_dims(where, ref.axis_number), new, old)
            if keep:
                new = np.where(old == NOT_PAINTED, new, old)
            content = self._status.content.with_slice(ref, painted=bool(new.any()), complete=complete)
            self._put(box, old, new, content)

    def clear_slice(self, ref: SliceRef) -> None:
        """Take all paint out of one slice, also where slices of other axes cross it; it is then not complete either.

        A slice whose chunks are missing can be given up so: it is no longer painted. What other slices had in these
        chunks stays missing, until they are cleared, too.

        Raises
        ------
        InputError
            No such slice.
        StorageError
            Disk full, read-only folder, damaged chunk.
        BusyError
            Another program has been writing all the time.
        """
        box = ref.box(self.shape)
        with self._writing():
            content = self._status.content.with_slice(ref, painted=False, complete=False)
            given_up = {
                number for number in self._missing(box) if not _refs_through(content.status, self._chunk_box(number))
            }
            if given_up:
                content = content.with_chunks(content.chunk_numbers() - given_up)
            old = self._read(box, self._status.content.status, give_up=True)
            self._put(box, old, np.zeros(box.shape, np.uint8), content)

    def set_complete(self, ref: SliceRef, complete: bool) -> None:
        """Declare one slice complete (unpainted is background there), or take that back. Writes the status only.

        Raises
        ------
        InputError
            No such slice.
        StorageError
            Disk full, read-only folder.
        BusyError
            Another program has been writing all the time.
        """
        ref.box(self.shape)
        with self._writing():
            content = self._status.content
            painted = ref.index in content.status.painted.of(ref.axis)
            self._save(content.with_slice(ref, painted=painted, complete=complete))

    def begin(self, status: SliceStatus = SliceStatus()) -> None:  # noqa: B008 - frozen
        """Write the status file of a volume that has none yet.

        Parameters
        ----------
        status : SliceStatus
            What a project of format version 1 says. The chunks are those that are there; a painted slice of which
            there is none at all is an error from now on.

        Raises
        ------
        StorageError
            Disk full, read-only folder.
        """
        make_folder(self._folder.parent)
        with self._lock, locked(self._lock_file):
            status = self._with_note(status) or status
            self._status.save(AnnotationFile(status=status).with_chunks(self._chunks_of(status)))

    def supervision(self, ref: SliceRef) -> Supervision:
        """Return what one slice teaches.

        Parameters
        ----------
        ref : SliceRef
            Any slice, painted or not.

        Returns
        -------
        Supervision
            Target and where it is known, both of shape (h, w).

        Raises
        ------
        InputError
            No such slice.
        StorageError
            A chunk is damaged.
        """
        labels = self.read_slice(ref)
        known = labels != NOT_PAINTED
        complete = self._status.content.status.complete
        if ref.index in complete.of(ref.axis):
            known[:] = True
        # a complete slice along another axis crosses this one in a row (its axis is h) or in a column (w)
        for position, axis in enumerate(a for a in AXES if a != ref.axis):
            lines = list(complete.of(axis))
            if lines:
                np.moveaxis(known, position, 0)[lines] = True
        return Supervision(np.where(labels == PAINTED_BACKGROUND, 0, labels).astype(np.uint8), known)

    def targets(self) -> "SparseTargets":
        """Return the whole annotation as a lazy label array with 255 = unknown, as `write_nnunet` takes it."""
        return SparseTargets(self)

    def _checked(self, ref: SliceRef, labels: NumpyArrayLike) -> NDArray[np.uint8]:
        """Return the labels as uint8, or raise for what cannot be stored."""
        array = np.asarray(labels)
        h, w = (n for a, n in zip(AXES, self.shape, strict=True) if a != ref.axis)
        if array.shape != (h, w):
            raise InputError(f"labels of slice {ref} have shape {array.shape}; expected ({h}, {w})")
        if array.dtype.kind not in "bui":
            raise InputError(f"labels of slice {ref} are of type {array.dtype}; expected integers")
        if array.min() < 0 or array.max() > PAINTED_BACKGROUND:
            raise InputError(f"labels of slice {ref} go from {array.min()} to {array.max()}; expected 0 to 255")
        plain = array.astype(np.uint8)
        allowed = self._class_ids()
        if allowed:
            found = np.flatnonzero(np.bincount(plain.ravel(), minlength=256))
            wrong = sorted(set(found.tolist()) - allowed - {NOT_PAINTED, PAINTED_BACKGROUND})
            if wrong:
                raise InputError(
                    f"labels of slice {ref} hold the values {wrong}, which are no class of the project"
                    f" ({', '.join(map(str, sorted(allowed)))}); add the class first"
                )
        return plain

    # -- writing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Let nobody else write during the block, which begins with the status as it is now."""
        self._prepare()
        with storage_errors(self._folder):
            # not the project: whoever moved that away would find another one in its place
            own_path(self._folder.parent).mkdir(exist_ok=True)
        with self._lock, locked(self._lock_file), storage_errors(self._folder):
            self._finish()
            self._status.reread()
            yield

    def _put(self, box: Box, old: NDArray[np.uint8], new: NDArray[np.uint8], content: AnnotationFile) -> None:
        """Write what differs between two states of a box, and the status that goes with it."""
        changed = _bounding_box(new != old, box)
        if changed is None:
            self._save(content)
            return
        store, array = self._staged()
        inner = tuple(slice(a - o, b - o) for a, b, o in zip(changed.start, changed.stop, box.start, strict=True))
        with replacing(self._pending) as stage:
            stage.mkdir()
            store.stage(stage)
            with self._chunk_errors(changed), storage_errors(self._folder):
                _write_chunks(array, changed, old[inner], new[inner])
            written, emptied = ({self._number(key) for key in keys} for keys in (store.written, store.emptied))
            content = content.with_chunks((content.chunk_numbers() | written) - emptied)
            finish_stage(stage, store.emptied, content.text)
        self._finish()
        self._status.own(content)

    def _save(self, content: AnnotationFile) -> None:
        if content != self._status.content:
            self._status.save(content)

    def _finish(self) -> None:
        """Put a write in place that counts and is not there yet. Call under the lock."""
        if not self._pending.is_dir():
            # a note of format version 1: what it stands for is in the status by now
            own_path(self._pending.parent).joinpath(self._pending.name).unlink(missing_ok=True)
            return
        apply_stage(own_path(self._pending), self._folder / "0", self._status.path)

    def _recover(self) -> None:
        """Take up a write of a killed program, unless it is one of a living program, or the project is read-only."""
        if self._pending.is_dir():
            with suppress(BusyError, StorageError, OSError), locked(self._lock_file, timeout_s=0):
                self._finish()
                self._status.reread()

    def _with_note(self, status: SliceStatus | None) -> SliceStatus | None:
        """Return the status of an older project with what its note of a write that broke off stands for.

        The slice counts as painted, so that what reached the disk is shown, and not as complete: a human must look.
        """
        if status is None or not self._pending.is_file():
            return status
        try:
            note = _Note.model_validate_json(read_bytes(self._pending))
            ref = SliceRef(note.axis, note.index)
            ref.box(self.shape)
        except (OSError, ValidationError, InputError):
            # killed while the note itself was written: no chunk was touched yet
            return status
        return AnnotationFile(status=status).with_slice(ref, painted=True, complete=False).status

    # -- chunks -------------------------------------------------------------------------------------------------------

    def _read(self, box: Box, status: SliceStatus, *, give_up: bool = False) -> NDArray[np.uint8]:
        """Return the labels in a box; missing chunks hold nothing if they are given up, else they are an error."""
        if not _refs_through(status, box, complete=False):
            return np.zeros(box.shape, np.uint8)
        array = self._array(create=False)
        with self._chunk_errors(box):
            values = np.asarray(array[box.slices], np.uint8)
        if not give_up:
            self._refuse_missing(box)
        return values

    def _refuse_missing(self, box: Box) -> None:
        """Raise for a chunk in the box that must be there and is not."""
        missing = self._missing(box)
        if not missing:
            return
        # another program may be taking it away right now: its write says so until the status does
        emptied = self._being_emptied()
        self._status.refresh()
        missing = [number for number in self._missing(box) if number not in emptied]
        if missing:
            refs = _refs_through(self._status.content.status, self._chunk_box(missing[0]), complete=False)
            raise StorageError(
                f"{self._chunk_file(missing[0])}: this part of the annotation is missing, and slices"
                f" {_few(refs)} were painted there; restore the file from a copy, or clear these slices"
            )

    def _missing(self, box: Box) -> list[int]:
        content = self._status.content
        if content.chunks is None:
            return self._missing_of_older(content.status, box)
        expected = self._status.chunks
        return [n for n in self._numbers(box) if n in expected and not self._chunk_file(n).is_file()]

    def _missing_of_older(self, status: SliceStatus, box: Box) -> list[int]:
        """Return the first chunk of each painted slice in the box of which there is none, as far as one can know."""
        missing = []
        for ref in _refs_through(status, box, complete=False):
            numbers = self._numbers(ref.box(self.shape))
            if not any(self._chunk_file(n).is_file() for n in numbers):
                missing.append(numbers[0])
        return missing

    def _chunks_of(self, status: SliceStatus) -> set[int]:
        """Return the chunks that are there, and one for each painted slice of which there is none."""
        chunks = set()
        for place, _, names in os.walk(self._folder / "0" / "c"):
            sweep(Path(place), alone=True)
            keys = ((Path(place) / name).relative_to(self._folder / "0").as_posix() for name in names)
            chunks |= {self._number(key) for key in keys if is_chunk(key)}
        return chunks | set(self._missing_of_older(status, Box.whole(self.shape)))

    def _being_emptied(self) -> set[int]:
        try:
            return {self._number(key) for key in emptied_by(self._pending)}
        except (OSError, ValueError):
            return set()

    @property
    def _grid(self) -> tuple[int, ...]:
        return tuple(math.ceil(n / c) for n, c in zip(self.shape, self._chunk_shape, strict=True))

    def _numbers(self, box: Box) -> list[int]:
        """Return the numbers of the chunks that a box touches."""
        spans = [
            range(a // c, math.ceil(b / c)) for a, b, c in zip(box.start, box.stop, self._chunk_shape, strict=True)
        ]
        return [int(np.ravel_multi_index(place, self._grid)) for place in product(*spans)]

    def _number(self, key: str) -> int:
        """Return the number of a chunk from its key, ``c/0/1/2``."""
        return int(np.ravel_multi_index(tuple(int(part) for part in key.split("/")[1:]), self._grid))

    def _place(self, number: int) -> tuple[int, ...]:
        return tuple(int(i) for i in np.unravel_index(number, self._grid))

    def _chunk_box(self, number: int) -> Box:
        start = tuple(i * c for i, c in zip(self._place(number), self._chunk_shape, strict=True))
        return Box(start, tuple(a + c for a, c in zip(start, self._chunk_shape, strict=True))).clip(self.shape)

    def _chunk_file(self, number: int) -> Path:
        return self._folder.joinpath("0", "c", *map(str, self._place(number)))

    def _array(self, *, create: bool) -> "zarr.Array[Any]":
        """Return the zarr array, opened once."""
        if self._opened is not None:
            return self._opened
        with self._opening:
            if create and not self._folder.exists():
                with storage_errors(self._folder, "create"), replacing(self._folder) as temporary:
                    create_label_image(temporary, self.shape, chunks=CHUNKS, name=self._folder.stem)
            array = self._open_array(None)
            self._chunk_shape, self._opened = array.chunks, array
            return array

    def _staged(self) -> "tuple[StagedStore, zarr.Array[Any]]":
        """Return the array as it is written to, opened once, and its store."""
        self._array(create=True)
        if self._writer is None:
            from napari_slicelabel.data.zarr_stores import StagedStore

            store = StagedStore(self._folder / "0")
            self._writer = store, self._open_array(store)
        return self._writer

    def _open_array(self, store: "StagedStore | None") -> "zarr.Array[Any]":
        import zarr

        from napari_slicelabel.data.zarr_stores import PlainStore

        try:
            array = zarr.open_array(store or PlainStore(self._folder / "0"), mode="r+" if store else "r")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise StorageError(
                f"{self._folder}: the annotation cannot be opened ({_one_line(error)}); restore it from a copy"
            ) from error
        if array.shape != self.shape:
            raise StorageError(
                f"{self._folder}: the annotation has shape {array.shape}, the volume {self.shape};"
                " they do not belong together"
            )
        return array

    @contextmanager
    def _chunk_errors(self, box: Box) -> Iterator[None]:
        """Turn a failure of the block into a StorageError that names the damaged chunk file of the box."""
        try:
            yield
        except StorageError:
            raise
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            path = self._damaged_chunk(box) or self._folder
            raise StorageError(
                f"{path}: this part of the annotation is damaged ({_one_line(error)});"
                " restore the file from a copy, or delete it and paint that part again"
            ) from error

    def _damaged_chunk(self, box: Box) -> Path | None:
        """Return the file of the first chunk in the box that cannot be read."""
        array = self._array(create=False)
        for number in self._numbers(box):
            try:
                array[self._chunk_box(number).slices]
            except (OSError, RuntimeError, ValueError, EOFError):
                return self._chunk_file(number)
        return None


class _Note(BaseModel):
    """What format version 1 left beside the chunks while it wrote them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    axis: Axis
    index: int


class SparseTargets:
    """The annotation as a lazy array: 0 = background, 1 to 254 = class, 255 = unknown.

    Attributes
    ----------
    shape : tuple of int
        (z, y, x).
    dtype : numpy.dtype
        uint8.
    """

    def __init__(self, annotation: Annotation) -> None:
        self._annotation = annotation
        self.shape = annotation.shape
        self.dtype = np.dtype(np.uint8)

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        """Return the part that a tuple of ints and slices names, as numpy would. Works plane by plane along z."""
        parts = index if isinstance(index, tuple) else (index,)
        planes = np.arange(self.shape[0])[parts[0]]
        stack: list[NDArray[np.uint8]] = [self._plane(int(z))[(*parts[1:],)] for z in np.atleast_1d(planes)]
        if planes.ndim == 0:
            return stack[0]
        if not stack:
            return np.zeros((0, *np.empty(self.shape[1:], np.uint8)[(*parts[1:],)].shape), np.uint8)
        return np.stack(stack)

    def _plane(self, z: int) -> NDArray[np.uint8]:
        supervision = self._annotation.supervision(SliceRef("z", z))
        return np.where(supervision.known, supervision.target, PAINTED_BACKGROUND).astype(np.uint8)


def _refs_through(status: SliceStatus, box: Box, *, complete: bool = True) -> list[SliceRef]:
    """Return the painted slices that pass through a box, and the complete ones if asked to."""
    refs = []
    for axis, a, b in zip(AXES, box.start, box.stop, strict=True):
        indices = {*status.painted.of(axis), *(status.complete.of(axis) if complete else ())}
        refs += [SliceRef(axis, index) for index in sorted(indices) if a <= index < b]
    return refs


def _few(refs: Sequence[SliceRef], count: int = 8) -> str:
    rest = f" and {len(refs) - count} more" if len(refs) > count else ""
    return ", ".join(map(str, refs[:count])) + rest


def _split_at_chunks(box: Box, chunks: Sequence[int]) -> Iterator[Box]:
    """Yield the part of the box in each chunk that it touches."""
    first = tuple(a // c * c for a, c in zip(box.start, chunks, strict=True))
    for chunk in Box(first, box.stop).tiles(chunks):
        yield chunk.intersect(box)


def _write_chunks(array: "zarr.Array[Any]", box: Box, old: NDArray[np.uint8], new: NDArray[np.uint8]) -> None:
    """Write the chunks of the box that change; no write is under way any more when this returns or raises.

    One assignment to the whole box raises at the first chunk that fails while zarr goes on with the others: what comes
    late of it would replace what is saved next.
    """

    def write(part: Box) -> None:
        inner = tuple(slice(a - o, b - o) for a, b, o in zip(part.start, part.stop, box.start, strict=True))
        if not np.array_equal(old[inner], new[inner]):
            array[part.slices] = new[inner]

    with ThreadPoolExecutor(_WRITERS) as pool:
        writes = [pool.submit(write, part) for part in _split_at_chunks(box, array.chunks)]
    for done in writes:
        done.result()


def _bounding_box(mask: NDArray[np.bool_], box: Box) -> Box | None:
    """Return the smallest box around the true voxels of `mask`, which lies at `box`; None when there are none."""
    if not mask.any():
        return None
    start, stop = [], []
    for axis, offset in enumerate(box.start):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        start.append(offset + int(hits[0]))
        stop.append(offset + int(hits[-1]) + 1)
    return Box(tuple(start), tuple(stop))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


__all__ = ["CHUNKS", "Annotation", "SliceIndices", "SliceStatus", "SparseTargets", "Supervision"]
