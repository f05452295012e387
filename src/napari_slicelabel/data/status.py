"""Which slices are painted and complete, as ``annotation/<volume>.json`` keeps it beside the chunks."""

# No `from __future__ import annotations`: pydantic reads the annotations when the class is made.
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from napari_slicelabel.data.boxes import AXES, Axis, SliceRef
from napari_slicelabel.data.files import Stamp, stamp, storage_errors, write_text
from napari_slicelabel.data.reading import read_bytes
from napari_slicelabel.errors import StorageError

# no side of a chunk of the annotation has fewer voxels
_THINNEST = 16


class SliceIndices(BaseModel):
    """Numbers of slices, for each axis, sorted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    z: tuple[NonNegativeInt, ...] = ()
    y: tuple[NonNegativeInt, ...] = ()
    x: tuple[NonNegativeInt, ...] = ()

    def of(self, axis: Axis) -> tuple[int, ...]:
        """Return the slices along one axis."""
        indices: tuple[int, ...] = getattr(self, axis)
        return indices

    def with_member(self, ref: SliceRef, member: bool) -> Self:
        """Return the same with one slice put in or taken out."""
        others = {index for index in self.of(ref.axis) if index != ref.index}
        return self.model_copy(update={ref.axis: tuple(sorted(others | {ref.index} if member else others))})


class SliceStatus(BaseModel):
    """Which slices a human painted, and which they declared complete. One does not imply the other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    painted: SliceIndices = Field(default=SliceIndices(), description="slices that hold paint, by the axis of painting")
    complete: SliceIndices = Field(default=SliceIndices(), description="slices in which unpainted is background")

    def beyond(self, shape: tuple[int, int, int]) -> str:
        """Return what is wrong when a slice does not exist in a volume of the given shape, else nothing."""
        for axis, length in zip(AXES, shape, strict=True):
            if max((*self.painted.of(axis), *self.complete.of(axis)), default=0) >= length:
                return f"a slice beyond the end of axis {axis} ({length} slices)"
        return ""


class AnnotationFile(BaseModel):
    """The content of ``annotation/<volume>.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    status: SliceStatus = SliceStatus()
    chunks: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] | None = Field(
        default=None,
        description="chunks that hold paint, so that their files must be there: first and last of each run."
        " Not known of what a project of format version 1 says",
    )

    @property
    def text(self) -> str:
        """What the file holds."""
        return self.model_dump_json(indent=None) + "\n"

    def with_slice(self, ref: SliceRef, *, painted: bool, complete: bool | None) -> Self:
        """Return the same with another status of one slice; what is None stays."""
        status = self.status
        changed = status.model_copy(
            update={
                "painted": status.painted.with_member(ref, painted),
                "complete": status.complete if complete is None else status.complete.with_member(ref, complete),
            }
        )
        return self.model_copy(update={"status": changed})

    def with_chunks(self, chunks: Iterable[int]) -> Self:
        """Return the same with other chunks."""
        return self.model_copy(update={"chunks": tuple(_runs(sorted(chunks)))})

    def more_chunks_than(self, shape: tuple[int, int, int]) -> str:
        """Return what is wrong when it lists more chunks than a volume has, else nothing."""
        listed = sum(last - first + 1 for first, last in self.chunks or ())
        return "more chunks than there are" if listed > math.prod(-(-length // _THINNEST) for length in shape) else ""

    def chunk_numbers(self) -> frozenset[int]:
        """Return the chunks that hold paint, by their number in C order."""
        return frozenset(number for first, last in self.chunks or () for number in range(first, last + 1))


NOTHING_PAINTED = AnnotationFile(chunks=()).text
"""The status file of a volume in which nobody has painted yet."""


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last of each run of consecutive numbers."""
    if numbers:
        ends = np.flatnonzero(np.diff(numbers) != 1)
        firsts, lasts = [0, *(ends + 1).tolist()], [*ends.tolist(), len(numbers) - 1]
        yield from ((numbers[a], numbers[b]) for a, b in zip(firsts, lasts, strict=True))


class StatusStore:
    """The status file of one volume, as it is now: read again whenever another program has replaced it.

    Parameters
    ----------
    path : Path
        The status file.
    shape : tuple of int
        (z, y, x) of the volume.
    begun : bool
        Whether the file must be there.
    older : callable
        Returns what a project of format version 1 says in place of the file, None once the project is a newer one.

    Attributes
    ----------
    content : AnnotationFile
        As last read or written.
    chunks : frozenset of int
        Of `content`.
    changes : int
        How often another program was seen to have changed it.

    Raises
    ------
    StorageError
        The file is damaged, or is not there though it must be.
    """

    def __init__(
        self, path: Path, shape: tuple[int, int, int], *, begun: bool, older: Callable[[], SliceStatus | None]
    ) -> None:
        self.path = path
        self.content = AnnotationFile(chunks=())
        self.chunks: frozenset[int] = frozenset()
        self.changes = 0
        self._shape = shape
        self._begun = begun
        self._older = older
        self._is_older = True
        # of no file: the first look reads it, or finds that it is missing
        self._stamp: Stamp | None = (0, 0, 0)
        self._text: bytes | None = None
        self._lock = threading.Lock()
        self.refresh()
        self.changes = 0

    def refresh(self) -> None:
        """Read the file again if it was replaced; that is a question of microseconds where it was not.

        Raises
        ------
        StorageError
            As when made.
        """
        # asked without the lock: the project has one of its own
        older = self._older() if self._is_older else None
        with self._lock:
            if older is not None and self._is_older:
                # whoever makes the project a newer one writes the file first
                self._begun = True
                self._take(AnnotationFile(status=older))
                return
            self._is_older = False
            if stamp(self.path) != self._stamp:
                self._read()

    def reread(self) -> None:
        """Read the file again in any case: what two programs write within one tick of the clock may look the same."""
        with self._lock:
            self._read()

    def save(self, content: AnnotationFile) -> None:
        """Replace the file, and take its content for known. Call under the lock of the annotation.

        Raises
        ------
        StorageError
            Disk full, no permission, a link. The old file is unchanged then.
        """
        with self._lock:
            write_text(self.path, content.text)
            self._own(content)

    def own(self, content: AnnotationFile) -> None:
        """Take for known what this program has just put in place itself."""
        with self._lock:
            self._own(content)

    def _own(self, content: AnnotationFile) -> None:
        changes = self.changes
        self._begun, self._is_older = True, False
        self._stamp, self._text = stamp(self.path), content.text.encode()
        self._take(content)
        self.changes = changes

    def _read(self) -> None:
        before = stamp(self.path)
        if before is None and not self._begun:
            self._stamp = None
            self._take(AnnotationFile(chunks=()))
            return
        try:
            with storage_errors(self.path, "read"):
                text = read_bytes(self.path)
        except StorageError as error:
            raise StorageError(f"{error}; it says which slices are painted: restore it from a copy") from error
        if text != self._text:
            self._take(self._parsed(text))
        self._begun, self._stamp, self._text = True, before, text

    def _parsed(self, text: bytes) -> AnnotationFile:
        try:
            content = AnnotationFile.model_validate_json(text)
            problem = content.status.beyond(self._shape) or content.more_chunks_than(self._shape)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
        if problem:
            raise StorageError(f"{self.path} is damaged ({problem}); restore it from a copy")
        return content

    def _take(self, content: AnnotationFile) -> None:
        if content != self.content:
            self.content, self.chunks = content, content.chunk_numbers()
            self.changes += 1
