"""What a human painted: `Annotation`, a sparse label store on disk.

Reading this module needs two facts. The voxels lie in a zarr array of which only touched chunks exist. Which slices
are painted and which are complete lies in project.json, written after the chunks; that status is the truth, so a
slice that no status knows is not even looked for on disk.
"""

# No `from __future__ import annotations`: pydantic reads the annotations when the class is made.
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike as NumpyArrayLike
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from napari_slicelabel.data.boxes import AXES, Axis, Box, SliceRef
from napari_slicelabel.data.classes import NOT_PAINTED, PAINTED_BACKGROUND
from napari_slicelabel.data.files import storage_errors
from napari_slicelabel.data.ngff import create_label_image
from napari_slicelabel.errors import InputError, StorageError

if TYPE_CHECKING:
    import zarr

# Measured on 1024 x 4096 x 4096, writing one densely painted slice along z / y / x, seconds on 2 busy cores:
#   (1, 256, 256) 0.2 / 9.6 / 8.7    (8, 256, 256) 0.5 / 6.3 / 7.0    (16, 256, 256) 1.0 / 4.3 / 3.2
#   (32, 128, 128) 2.2 / 2.1 / 1.9   (16, 128, 128) 1.8 / 2.9 / 3.4
# The cost is per file, not per byte. People paint along z mostly, and y or x in the anisotropic or isotropic rest, so z
# must be quick and the others bearable. A stroke of 256 x 256 takes 13 ms.
CHUNKS = (16, 256, 256)
_WRITERS = 4  # threads; a slice of 4096 x 4096 takes 1.3 s so, 1.6 s with one


class SliceIndices(BaseModel):
    """Numbers of slices, for each axis, sorted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    z: tuple[NonNegativeInt, ...] = ()
    y: tuple[NonNegativeInt, ...] = ()
    x: tuple[NonNegativeInt, ...] = ()


class SliceStatus(BaseModel):
    """Which slices a human painted, and which they declared complete. One does not imply the other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    painted: SliceIndices = Field(default=SliceIndices(), description="slices that hold paint, by the axis of painting")
    complete: SliceIndices = Field(default=SliceIndices(), description="slices in which unpainted is background")


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
    status : SliceStatus
        As the project keeps it.
    save_status : callable
        Called with the new status after the chunks are on disk.
    class_ids : callable
        Returns the label values allowed besides 0 and 255; empty allows all.

    Notes
    -----
    Safe to use from several threads of one process. A write replaces chunk files one by one, each in one step. A
    process that is killed between them leaves a note behind (``<folder>.writing``); the next one that opens the
    annotation then counts the slice as painted and not as complete, so that a human sees what was saved and checks it.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, int, int],
        *,
        status: SliceStatus | None = None,
        save_status: Callable[[SliceStatus], None] = lambda _: None,
        class_ids: Callable[[], frozenset[int]] = frozenset,
    ) -> None:
        self.shape = shape
        self._folder = folder
        self._note = folder.with_name(folder.name + ".writing")
        self._save_status = save_status
        self._class_ids = class_ids
        self._lock = threading.RLock()
        self._opened: zarr.Array[Any] | None = None
        status = status or SliceStatus()
        self._painted: dict[Axis, frozenset[int]] = {a: frozenset(getattr(status.painted, a)) for a in AXES}
        self._complete: dict[Axis, frozenset[int]] = {a: frozenset(getattr(status.complete, a)) for a in AXES}
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
        """Painted and complete slices, as project.json keeps them."""
        painted, complete = (
            SliceIndices(**{a: tuple(sorted(s[a])) for a in AXES}) for s in (self._painted, self._complete)
        )
        return SliceStatus(painted=painted, complete=complete)

    def painted(self, axis: Axis) -> tuple[int, ...]:
        """Return the slices along `axis` that hold paint put there by `write_slice`, sorted."""
        return tuple(sorted(self._painted[axis]))

    def complete(self, axis: Axis) -> tuple[int, ...]:
        """Return the slices along `axis` declared complete, sorted."""
        return tuple(sorted(self._complete[axis]))

    def annotated(self, axis: Axis) -> tuple[int, ...]:
        """Return the slices along `axis` that are painted or complete, sorted."""
        return tuple(sorted(self._painted[axis] | self._complete[axis]))

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
            A chunk is damaged; the message names its file.
        """
        if len(box.start) != 3 or not Box.whole(self.shape).contains(box):
            raise InputError(f"box from {box.start} to {box.stop}: the annotation has shape {self.shape} (z, y, x)")
        if not self._may_hold_paint(box):
            return np.zeros(box.shape, np.uint8)
        array = self._array(create=False)
        with self._chunk_errors(box):
            return np.asarray(array[box.slices], np.uint8)

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

    def write_slice(self, ref: SliceRef, labels: NumpyArrayLike, *, complete: bool | None = None) -> None:
        """Replace the labels of one slice on disk: the chunks first, then the status.

        Parameters
        ----------
        ref : SliceRef
            Which slice.
        labels : array-like of shape (h, w), integer or bool
            0 = not painted, 1 to 254 = class, 255 = background. Replaces all that the slice held, also what slices of
            other axes painted where they cross: the latest paint wins.
        complete : bool, optional
            Whether unpainted means background here. By default that stays as it is.

        Raises
        ------
        InputError
            No such slice, another shape, values that are no integers 0 to 255, or that are no class of the project.
        StorageError
            Disk full, read-only folder, damaged chunk.

        Notes
        -----
        Only chunks between the first and the last voxel that changes are written. A slice without any paint that
        is not complete counts as not annotated.
        """
        box = ref.box(self.shape)
        new = np.expand_dims(self._checked(ref, labels), ref.axis_number)
        with self._lock:
            changed = _bounding_box(new != self.read(box), box)
            if changed is None:
                self._set_status(ref, painted=bool(new.any()), complete=complete)
                return
            array = self._array(create=True)
            inner = tuple(slice(a - o, b - o) for a, b, o in zip(changed.start, changed.stop, box.start, strict=True))
            with storage_errors(self._folder):
                if self._note.exists():
                    # an earlier write broke off: what that means must be in the status before its note goes
                    self._save_status(self.status)
                self._note.write_text(json.dumps({"axis": ref.axis, "index": ref.index}))
            try:
                with self._chunk_errors(changed), storage_errors(self._folder):
                    _write_chunks(array, changed, new[inner])
                self._set_status(ref, painted=bool(new.any()), complete=complete)
            except BaseException:
                self._recover()
                raise

    def clear_slice(self, ref: SliceRef) -> None:
        """Take all paint out of one slice, also where slices of other axes cross it; it is then not complete either.

        Raises
        ------
        InputError
            No such slice.
        StorageError
            Disk full, read-only folder, damaged chunk.
        """
        box = ref.box(self.shape)
        self.write_slice(ref, np.zeros(box.shape, np.uint8).squeeze(ref.axis_number), complete=False)

    def set_complete(self, ref: SliceRef, complete: bool) -> None:
        """Declare one slice complete (unpainted is background there), or take that back. Writes the status only.

        Raises
        ------
        InputError
            No such slice.
        StorageError
            Disk full, read-only folder.
        """
        ref.box(self.shape)
        with self._lock:
            self._set_status(ref, painted=ref.index in self._painted[ref.axis], complete=complete)

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
        if ref.index in self._complete[ref.axis]:
            known[:] = True
        # a complete slice along another axis crosses this one in a row (its axis is h) or in a column (w)
        for position, axis in enumerate(a for a in AXES if a != ref.axis):
            lines = list(self._complete[axis])
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

    def _may_hold_paint(self, box: Box) -> bool:
        """Return whether any painted slice passes through the box."""
        return any(
            any(a <= index < b for index in self._painted[axis])
            for axis, a, b in zip(AXES, box.start, box.stop, strict=True)
        )

    def _set_status(self, ref: SliceRef, *, painted: bool, complete: bool | None) -> None:
        """Change the status of one slice and save it; when that fails the old one stays."""
        before = self._painted, self._complete
        self._painted = _with_member(self._painted, ref, painted)
        if complete is not None:
            self._complete = _with_member(self._complete, ref, complete)
        noted = self._note.exists()
        if before == (self._painted, self._complete) and not noted:
            return
        try:
            self._save_status(self.status)
        except BaseException:
            self._painted, self._complete = before
            raise
        if noted:
            # what the note stands for is in the status now; left behind it would undo a later "complete"
            with storage_errors(self._folder):
                self._note.unlink(missing_ok=True)

    def _recover(self) -> None:
        """Take up a write that broke off; see the notes of the class."""
        try:
            text = self._note.read_text()
        except OSError:
            return
        try:
            ref = SliceRef(**json.loads(text))
            ref.box(self.shape)
        except (ValueError, TypeError):
            # killed while the note itself was written: no chunk was touched yet
            return
        # kept in memory only: the next save writes it, and a read-only project opens too
        self._painted = _with_member(self._painted, ref, True)
        self._complete = _with_member(self._complete, ref, False)

    def _array(self, *, create: bool) -> "zarr.Array[Any]":
        """Return the zarr array, opened once."""
        import zarr

        with self._lock:
            if self._opened is not None:
                return self._opened
            try:
                if create and not self._folder.exists():
                    with storage_errors(self._folder, "create"):
                        self._opened = create_label_image(
                            self._folder, self.shape, chunks=CHUNKS, name=self._folder.stem
                        )
                else:
                    self._opened = zarr.open_array(self._folder / "0", mode="r+")
            except (OSError, ValueError, KeyError, TypeError) as error:
                if isinstance(error, StorageError):
                    raise
                raise StorageError(
                    f"{self._folder}: the annotation cannot be opened ({_one_line(error)}); restore it from a copy"
                ) from error
            if self._opened.shape != self.shape:
                raise StorageError(
                    f"{self._folder}: the annotation has shape {self._opened.shape}, the volume {self.shape};"
                    " they do not belong together"
                )
            return self._opened

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
        for tile in _split_at_chunks(box, array.chunks):
            try:
                array[tile.slices]
            except (OSError, RuntimeError, ValueError, EOFError):
                number = tuple(a // c for a, c in zip(tile.start, array.chunks, strict=True))
                return self._folder / "0" / array.metadata.encode_chunk_key(number)
        return None


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


def _with_member(sets: dict[Axis, frozenset[int]], ref: SliceRef, member: bool) -> dict[Axis, frozenset[int]]:
    """Return the sets with one slice put in or taken out."""
    one = frozenset({ref.index})
    return {**sets, ref.axis: sets[ref.axis] | one if member else sets[ref.axis] - one}


def _split_at_chunks(box: Box, chunks: Sequence[int]) -> Iterator[Box]:
    """Yield the part of the box in each chunk that it touches."""
    first = tuple(a // c * c for a, c in zip(box.start, chunks, strict=True))
    for chunk in Box(first, box.stop).tiles(chunks):
        yield chunk.intersect(box)


def _write_chunks(array: "zarr.Array[Any]", box: Box, labels: NDArray[np.uint8]) -> None:
    """Write `labels` into the box; no write is under way any more when this returns or raises.

    One assignment to the whole box raises at the first chunk that fails while zarr goes on with the others: what comes
    late of it would replace what is saved next.
    """

    def write(part: Box) -> None:
        inner = tuple(slice(a - o, b - o) for a, b, o in zip(part.start, part.stop, box.start, strict=True))
        array[part.slices] = labels[inner]

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
