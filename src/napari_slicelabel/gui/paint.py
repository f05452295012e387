"""What lies between a Labels layer and the annotation on disk: painted planes in memory, saved behind the painter.

napari asks the array of a Labels layer for ``[0]`` at every stamp and reads and writes small boxes of it. A zarr array
answers the first in up to two seconds; `PaintStore` answers both from planes in memory. A thread writes each plane
to the annotation soon after the stroke.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_slicelabel.data.annotation import CHUNKS
from napari_slicelabel.data.boxes import AXES, Axis, Box, SliceRef
from napari_slicelabel.data.classes import NOT_PAINTED, PAINTED_BACKGROUND
from napari_slicelabel.errors import InputError, SliceLabelError
from napari_slicelabel.gui.loading import Loader
from napari_slicelabel.gui.virtual import LARGEST_READ, VirtualArray, is_points, key_within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from napari_slicelabel.data.annotation import Annotation

SAVE_AFTER_S = 0.3
"""A plane is saved once nobody painted in it for this long, ..."""
SAVE_WITHIN_S = 0.7
"""... and at the latest so long after the first stroke that is not saved yet."""

_RETRY_S = 3.0
# how often to look whether another program has painted
_LOOK_S = 1.0
_MEMORY_BYTES = 512 * 2**20
_MOST_PLANES = 256
# Planes that touch no more chunks than this are read at once, others in the background. 1 MB a chunk, 1 to 2 ms each.
_CHUNKS_AT_ONCE = 9


@dataclass(frozen=True, slots=True)
class SaveState:
    """How far saving is: planes not on disk yet, and why the last try failed (empty: it did not)."""

    unsaved: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One plane before and after an operation, packed (empty: its voxels stay); and whether it was complete."""

    ref: SliceRef
    before: bytes
    after: bytes
    shape: tuple[int, int]
    complete_before: bool
    complete_after: bool


@dataclass(slots=True)
class _Plane:
    values: NDArray[np.uint8]
    first_change: float = 0.0
    last_change: float = 0.0
    dirty: bool = False
    saving: bool = False
    # where it was painted since it was saved
    box: Box | None = None
    # where voxels were changed here that are not saved yet, and where those that are being saved
    painted: NDArray[np.bool_] | None = None
    going: NDArray[np.bool_] | None = None

    @property
    def unsaved(self) -> bool:
        return self.dirty or self.saving


class PaintStore(VirtualArray):
    """The annotation of one volume as an array to paint into.

    What another program paints is shown within a second; of a plane only the voxels that were painted here are saved.

    It has what a Labels layer needs (shape, dtype, ndim, reading, writing) and nothing by which somebody could load the
    volume by accident. Planes of all three axes that are in memory agree with each other at all times.

    Parameters
    ----------
    annotation : Annotation
        Where the planes come from and go to.
    add_classes : callable
        Called (in the thread that saves) with label values that are painted and have no class yet.
    saved : callable
        Called from any thread whenever `save_state` changed.
    loaded : callable
        Called from any thread when a plane that was shown empty has been read; the layer should be refreshed.
    failed : callable
        Called from any thread with the error of a plane that cannot be read. It is shown empty, and painting in it
        raises the same: what is on disk there may be mended, but not once it is painted over.
    looked : callable
        Called about once a second from the thread that saves, to look what else other programs changed.
    memory_bytes : int
        Planes beyond this are dropped once they are on disk; until then a plane takes twice its size.
    save_after_s : float
        A plane is saved once nobody painted in it for this long, at most `SAVE_WITHIN_S` after the first stroke.

    Attributes
    ----------
    shape : tuple of int
        (z, y, x).
    dtype : numpy.dtype
        uint8.
    axis : {"z", "y", "x"}
        The axis that the viewer looks along. A stroke that is one voxel thick along several axes belongs to this one.
    """

    what = "the annotation"

    def __init__(
        self,
        annotation: Annotation,
        *,
        add_classes: Callable[[frozenset[int]], None] = lambda _: None,
        saved: Callable[[], None] = lambda: None,
        loaded: Callable[[], None] = lambda: None,
        failed: Callable[[SliceLabelError], None] = lambda _: None,
        looked: Callable[[], object] = lambda: None,
        memory_bytes: int = _MEMORY_BYTES,
        save_after_s: float = SAVE_AFTER_S,
    ) -> None:
        super().__init__(annotation.shape)
        self.axis: Axis = "z"
        self._annotation = annotation
        self._add_classes = add_classes
        self._saved = saved
        self._loaded = loaded
        self._failed = failed
        self._looked = looked
        self._memory_bytes = memory_bytes
        self._save_after_s = save_after_s
        self._planes: OrderedDict[SliceRef, _Plane] = OrderedDict()
        self._marks: dict[SliceRef, bool] = {}
        self._touched: dict[SliceRef, None] = {}
        # complete slices that paint was taken away from, until it is known which of them that emptied
        self._erased: set[SliceRef] = set()
        self._unmarked: list[Change] = []
        self._saves = 0
        self._seen = 0
        self._look_at = time.monotonic() + _LOOK_S
        self._unreadable = ""
        self._error = ""
        self._retry_at = 0.0
        self._hurry = False
        self._closed = False
        self._wake = threading.Condition(threading.RLock())
        self._loader = Loader(lambda _: self._loaded(), failed)
        self._thread = threading.Thread(target=self._save_loop, name="slicelabel-save", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        """Return shape and planes in memory on one line."""
        return f"<PaintStore zyx {self.shape}, {len(self._planes)} planes in memory>"

    def __setitem__(self, key: Any, value: Any) -> None:
        """Paint; the planes that change are saved soon after."""
        if self._closed:
            raise InputError("what is painted here is no longer saved: open the project again to paint in it")
        box, inside = key_within(key, self.shape)
        if box.size == 0:
            return
        if is_points(inside):
            self._write_points(box, inside, value)
            return
        if box.size > LARGEST_READ:
            raise self.too_large(box.size)
        block = np.empty(box.shape, np.uint8) if _fills(inside) else self._read(box)
        block[inside] = value
        for ref, part in self._planes_of(box):
            with self._wake:
                self._write_part(ref, part, block[_relative(part, box)].squeeze(ref.axis_number))

    # -- planes ---------------------------------------------------------------------------------------------------

    def read_plane(self, ref: SliceRef) -> NDArray[np.uint8]:
        """Return a copy of one plane, shape (h, w), read from disk now if it must be."""
        with self._wake:
            return self._plane(ref).values.copy()

    def write_plane(self, ref: SliceRef, values: NDArray[np.uint8]) -> None:
        """Replace one plane in memory; it is saved soon after."""
        with self._wake:
            self._write_part(ref, ref.box(self.shape), values)

    def known(self, ref: SliceRef) -> NDArray[np.bool_]:
        """Return where a human settled a plane, shape (h, w): painted, complete, or crossed by a complete slice."""
        found: NDArray[np.bool_] = self.read_plane(ref) != NOT_PAINTED
        if ref.index in self.complete(ref.axis):
            found[:] = True
        for position, axis in enumerate(a for a in AXES if a != ref.axis):
            lines = list(self.complete(axis))
            if lines:
                np.moveaxis(found, position, 0)[lines] = True
        return found

    def touched(self) -> tuple[SliceRef, ...]:
        """Return the planes that were written since the last time somebody asked, in the order of writing."""
        with self._wake:
            refs, self._touched = tuple(self._touched), {}
            return refs

    # -- status ---------------------------------------------------------------------------------------------------

    def painted(self, axis: Axis) -> frozenset[int]:
        """Return the slices along `axis` that hold paint, those not saved yet among them."""
        with self._wake:
            saved = set(self._annotation.painted(axis))
            for ref, plane in self._planes.items():
                if ref.axis == axis and plane.unsaved:
                    (saved.add if plane.values.any() else saved.discard)(ref.index)
            return frozenset(saved)

    def complete(self, axis: Axis) -> frozenset[int]:
        """Return the slices along `axis` declared complete, those not saved yet among them."""
        with self._wake:
            saved = set(self._annotation.complete(axis))
            for ref, value in self._marks.items():
                if ref.axis == axis:
                    (saved.add if value else saved.discard)(ref.index)
            return frozenset(saved)

    def set_complete(self, ref: SliceRef, complete: bool) -> None:
        """Declare a slice complete, or take that back; saved in the background like paint."""
        ref.box(self.shape)
        with self._wake:
            # what was erased before counts before: an empty slice may be complete on purpose
            self._settle()
            self._marks[ref] = complete
            self._hurry = True
            self._wake.notify_all()
        self._saved()

    # -- operations that can be undone --------------------------------------------------------------------------------

    def change(self, planes: Iterable[tuple[SliceRef, NDArray[np.uint8], bool | None]]) -> tuple[Change, ...]:
        """Replace planes, and return what it takes to go back.

        Parameters
        ----------
        planes : iterable of (SliceRef, ndarray of shape (h, w) uint8, bool or None)
            The slice, its new labels, and whether it is complete from now on (None: as it is).

        Returns
        -------
        tuple of Change
            For `undo` and `redo`. Packed: a labelled plane of 16 MB takes some 100 kB.
        """
        done: list[Change] = []
        source = iter(planes)
        try:
            while (change := self._change_next(source)) is not None:
                done += change
        except BaseException:
            self.undo(done)
            raise
        return tuple(done)

    def _change_next(self, source: Iterator[tuple[SliceRef, NDArray[np.uint8], bool | None]]) -> list[Change] | None:
        # asked for under the lock: a stroke between reading a plane and writing it would be lost
        with self._wake:
            item = next(source, None)
            if item is None:
                return None
            ref, values, complete = item
            before = self.read_plane(ref)
            self.write_plane(ref, values)
            emptied = list(self.unmarked())
            was = ref.index in self.complete(ref.axis)
            if complete is not None and complete != was:
                self.set_complete(ref, complete)
        after = was if complete is None else complete
        return [*emptied, Change(ref, _packed(before), _packed(values), (*before.shape,), was, after)]

    def mark(self, ref: SliceRef, complete: bool) -> tuple[Change, ...]:
        """Declare a slice complete, or take that back, and return what it takes to go back."""
        with self._wake:
            emptied, was = self.unmarked(), ref.index in self.complete(ref.axis)
            self.set_complete(ref, complete)
        return (*emptied, _mark(ref, was, complete))

    def unmarked(self) -> tuple[Change, ...]:
        """Return the slices that are no longer complete, since all their paint was taken away, once each.

        An empty slice that is complete teaches that all of it is background. That has to be said by somebody.
        """
        with self._wake:
            self._settle()
            marks, self._unmarked = tuple(self._unmarked), []
            return marks

    def undo(self, changes: Sequence[Change]) -> tuple[SliceRef, ...]:
        """Bring planes back to what they were before an operation, where they changed; return them."""
        for item in reversed(changes):
            self._put(item, item.after, item.before, item.complete_before)
        return tuple(dict.fromkeys(item.ref for item in changes))

    def redo(self, changes: Sequence[Change]) -> tuple[SliceRef, ...]:
        """Do an operation again; return its planes."""
        for item in changes:
            self._put(item, item.before, item.after, item.complete_after)
        return tuple(dict.fromkeys(item.ref for item in changes))

    def _put(self, item: Change, old: bytes, new: bytes, complete: bool) -> None:
        if old != new:
            was, values = _unpacked(old, item.shape), _unpacked(new, item.shape)
            with self._wake:
                # what others painted beside it in the meantime stays
                plane = self.read_plane(item.ref)
                self.write_plane(item.ref, np.where(was != values, values, plane))
        if item.complete_before != item.complete_after:
            self.set_complete(item.ref, complete)

    def _note_erased(self, part: Box, gone: NDArray[np.bool_]) -> None:
        """Take note of complete slices in which voxels of a part, shape (z, y, x), lose their paint."""
        for number, axis in enumerate(AXES):
            lines = np.flatnonzero(gone.any(axis=tuple(n for n in range(3) if n != number))) + part.start[number]
            self._erased |= {SliceRef(axis, index) for index in self.complete(axis) & set(lines.tolist())}

    def _settle(self) -> None:
        """Take the mark from complete slices that were emptied. Call with the lock held."""
        refs, self._erased = self._erased, set()
        for ref in sorted(refs):
            with suppress(SliceLabelError):
                if ref.index in self.complete(ref.axis) and not self._plane(ref).values.any():
                    self._unmarked.append(_mark(ref, True, False))
                    self._marks[ref] = False

    # -- saving -------------------------------------------------------------------------------------------------------

    @property
    def save_state(self) -> SaveState:
        """How far saving is."""
        with self._wake:
            unsaved = {ref for ref, plane in self._planes.items() if plane.unsaved} | set(self._marks)
            return SaveState(len(unsaved), self._error)

    def flush(self, timeout_s: float = 60.0) -> bool:
        """Save everything now and wait for it; return whether all is on disk."""
        deadline = time.monotonic() + timeout_s
        with self._wake:
            self._hurry, self._retry_at = True, 0.0
            self._wake.notify_all()
            while self.save_state.unsaved and time.monotonic() < deadline:
                if not self._thread.is_alive() or (self._error and self._retry_at > time.monotonic()):
                    break
                self._wake.wait(0.05)
            return self.save_state.unsaved == 0

    def close(self, timeout_s: float = 60.0) -> bool:
        """Save everything and end the threads; return whether all is on disk."""
        done = self.flush(timeout_s)
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join(timeout_s)
        self._loader.close()
        return done

    def _save_loop(self) -> None:
        while True:
            with self._wake:
                due = self._due()
                if due is None or due > 0:
                    if self._closed:
                        return
                    self._wake.wait(_LOOK_S if due is None else min(due, _LOOK_S))
                    due = self._due()
            if due is not None and due <= 0:
                self._save_next()
            elif time.monotonic() >= self._look_at:
                self._look()

    def _look(self) -> None:
        """Take over what other programs have painted since the last time."""
        self._look_at = time.monotonic() + _LOOK_S
        try:
            changes = self._annotation.changes
            if changes != self._seen:
                self._seen = changes
                self._renew_planes()
                self._loaded()
                self._saved()
            self._looked()
        except SliceLabelError as error:
            # once, not every second
            if str(error) != self._unreadable:
                self._unreadable = str(error)
                self._failed(error)
        else:
            self._unreadable = ""

    def _renew_planes(self) -> None:
        """Read again what may be shown or is being painted in, and drop the other planes in memory."""
        with self._wake:
            # planes that are being read right now are read again
            self._saves += 1
            shown = next(reversed(self._planes), None)
            for ref in [ref for ref, plane in self._planes.items() if not plane.unsaved and ref != shown]:
                del self._planes[ref]
            refs = tuple(self._planes)
        for ref in refs:
            self._renew(ref)

    def _renew(self, ref: SliceRef) -> None:
        values = self._annotation.read_slice(ref)
        with self._wake:
            plane = self._planes.get(ref)
            if plane is None:
                return
            self._overlay(ref, values)
            # what was painted here since is not on disk yet, and stays
            plane.values[...] = values if plane.painted is None else np.where(plane.painted, plane.values, values)

    def _due(self) -> float | None:
        """Return in how many seconds the next plane is to be saved; None when there is none."""
        now = time.monotonic()
        times = [
            min(plane.last_change + self._save_after_s, plane.first_change + SAVE_WITHIN_S)
            for plane in self._planes.values()
            if plane.dirty
        ]
        if self._marks:
            times.append(now)
        if not times:
            self._hurry = False
            return None
        soon = now if self._hurry else min(times)
        return max(soon, self._retry_at) - now

    def _save_next(self) -> None:
        with self._wake:
            self._settle()
            waiting = [(plane.first_change, ref) for ref, plane in self._planes.items() if plane.dirty]
            # first what takes a mark away: no kill may leave a slice both empty and complete
            dirty = {ref for _, ref in waiting}
            ref = next((ref for ref, complete in self._marks.items() if not complete and ref not in dirty), None)
            ref = ref or (min(waiting)[1] if waiting else next(iter(self._marks), None))
            if ref is None:
                return
            plane = self._planes.get(ref)
            values = box = painted = None
            if plane is not None and plane.dirty:
                values, box, painted = plane.values.copy(), plane.box, plane.painted
                plane.dirty, plane.saving, plane.box = False, True, None
                plane.painted, plane.going = None, painted
            mark = self._marks.get(ref)
        error = self._save(ref, values, box, painted, mark)
        with self._wake:
            if plane is not None and values is not None:
                plane.saving, plane.going = False, None
                if error:
                    plane.dirty, plane.box = True, ref.box(self.shape)
                    plane.painted = _either(plane.painted, painted)
                self._saves += 1
            if not error and mark is not None and self._marks.get(ref) == mark:
                del self._marks[ref]
            self._error = error
            self._retry_at = time.monotonic() + _RETRY_S if error else 0.0
            self._evict()
            self._wake.notify_all()
        self._saved()

    def _save(
        self,
        ref: SliceRef,
        values: NDArray[np.uint8] | None,
        box: Box | None,
        painted: NDArray[np.bool_] | None,
        mark: bool | None,
    ) -> str:
        """Write what was painted in one plane, and its mark; return what went wrong, or nothing."""
        try:
            if values is not None:
                part = values if box is None else values[_within(ref, box)]
                found = np.flatnonzero(np.bincount(part.ravel(), minlength=256)).tolist()
                self._add_classes(frozenset(found) - {NOT_PAINTED, PAINTED_BACKGROUND})
                self._annotation.write_slice(ref, values, complete=mark, where=painted)
            elif mark is not None:
                self._annotation.set_complete(ref, mark)
        except SliceLabelError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, a thread that dies of it saves nothing any more
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
        return ""

    # -- reading and writing of boxes ---------------------------------------------------------------------------------

    def _read(self, box: Box) -> NDArray[np.uint8]:
        """Return a copy of a box."""
        thin = [axis for axis, n in zip(AXES, box.shape, strict=True) if n == 1]
        if not thin or box.size == 0:
            return self._read_thick(box)
        with self._wake:
            ref = self._best(box, thin)
            if ref not in self._planes and self._is_blank(ref):
                # fresh zeros cost nothing until somebody writes to them
                return np.zeros(box.shape, np.uint8)
            return np.expand_dims(self._plane(ref).values[_within(ref, box)].copy(), ref.axis_number)

    def _drawn(self, box: Box) -> NDArray[np.uint8]:
        """Return a copy of a box; zeros for a plane that takes long to read, or a volume in 3D that is too large."""
        if box.size > LARGEST_READ:
            return np.zeros((1, 1, 1), np.uint8)
        thin = [axis for axis, n in zip(AXES, box.shape, strict=True) if n == 1]
        with self._wake:
            ref = self._best(box, thin) if thin else None
            if ref is not None and ref not in self._planes and not self._is_blank(ref) and not self._is_cheap(ref):
                # shown empty until it is read; a stroke in the meantime waits for it in `_plane`
                self._loader.request(ref, lambda: self._load(ref))
                return np.zeros(box.shape, np.uint8)
        try:
            return self._read(box)
        except SliceLabelError as error:
            self._failed(error)
            return np.zeros(box.shape, np.uint8)

    def _read_thick(self, box: Box) -> NDArray[np.uint8]:
        while True:
            before = self._saves
            values = self._annotation.read(box) if box.size else np.zeros(box.shape, np.uint8)
            with self._wake:
                if before != self._saves:
                    # something was saved while it was read: whether the box shows it is not known
                    continue
                for ref, plane in self._planes.items():
                    common = ref.box(self.shape).intersect(box)
                    if plane.unsaved and common.size:
                        part = np.expand_dims(plane.values[_within(ref, common)], ref.axis_number)
                        values[_relative(common, box)] = part
                return values

    def _best(self, box: Box, thin: Sequence[Axis]) -> SliceRef:
        """Return the plane to read a box from: one in memory, or else one along the axis of the viewer."""
        refs = [SliceRef(axis, box.start[AXES.index(axis)]) for axis in thin]
        whole = [ref for ref in refs if ref.box(self.shape) == box]
        if whole:
            return whole[0]
        preferred = sorted(refs, key=lambda ref: ref.axis != self.axis)
        return next((ref for ref in preferred if ref in self._planes), preferred[0])

    def _planes_of(self, box: Box) -> Iterator[tuple[SliceRef, Box]]:
        """Yield the planes that a box is written to, and which part of it each one gets."""
        thin = [axis for axis, n in zip(AXES, box.shape, strict=True) if n == 1]
        axis: Axis = self.axis if self.axis in thin or not thin else thin[0]
        number = AXES.index(axis)
        for index in range(box.start[number], box.stop[number]):
            ref = SliceRef(axis, index)
            yield ref, ref.box(self.shape).intersect(box)

    def _plane(self, ref: SliceRef) -> _Plane:
        """Return a plane, read from disk if it is not in memory. Call with the lock held."""
        if ref in self._planes:
            self._planes.move_to_end(ref)
            return self._planes[ref]
        self._load(ref)
        return self._planes[ref]

    def _load(self, ref: SliceRef) -> None:
        """Bring a plane into memory, with what planes that cross it have not saved yet."""
        while True:
            before = self._saves
            values = self._annotation.read_slice(ref)
            with self._wake:
                if ref in self._planes:
                    return
                if before != self._saves:
                    # something was saved while it was read: whether the plane shows it is not known
                    continue
                self._overlay(ref, values)
                self._planes[ref] = _Plane(values)
                self._evict()
                return

    def _overlay(self, ref: SliceRef, values: NDArray[np.uint8]) -> None:
        box = ref.box(self.shape)
        for other, plane in self._planes.items():
            if plane.unsaved and other.axis != ref.axis:
                common = box.intersect(other.box(self.shape))
                painted, inner = _either(plane.painted, plane.going), values[_within(ref, common)]
                if painted is not None:
                    line = _turned(plane.values[_within(other, common)], other, ref)
                    inner[...] = np.where(_turned(painted[_within(other, common)], other, ref), line, inner)

    def _changed(self, ref: SliceRef, part: Box) -> None:
        """Take note of a write, and bring it into the planes that cross it. Call with the lock held."""
        plane, now = self._planes[ref], time.monotonic()
        for other, crossing in self._planes.items():
            if other.axis != ref.axis and part.start[other.axis_number] <= other.index < part.stop[other.axis_number]:
                common = other.box(self.shape).intersect(part)
                crossing.values[_within(other, common)] = _turned(plane.values[_within(ref, common)], ref, other)
        if not plane.dirty:
            plane.dirty, plane.first_change = True, now
        plane.box = part if plane.box is None else _around(plane.box, part)
        plane.last_change = now
        self._touched.pop(ref, None)
        self._touched[ref] = None
        self._evict()
        self._wake.notify_all()

    def _write_points(self, box: Box, inside: tuple[Any, ...], value: Any) -> None:
        points = np.broadcast_arrays(*inside)
        flat = [part.ravel() + start for part, start in zip(points, box.start, strict=True)]
        values = np.broadcast_to(np.asarray(value), points[0].shape).ravel()
        axis = next(ref.axis for ref, _ in self._planes_of(box))
        number = AXES.index(axis)
        h, w = (flat[n] for n in range(3) if n != number)
        for index in np.unique(flat[number]).tolist():
            ref, chosen = SliceRef(axis, index), flat[number] == index
            start, stop = [index] * 3, [index + 1] * 3
            for n, line in zip([n for n in range(3) if n != number], (h[chosen], w[chosen]), strict=True):
                start[n], stop[n] = int(line.min()), int(line.max()) + 1
            part = Box(tuple(start), tuple(stop))
            with self._wake:
                new = self._plane(ref).values.copy()
                new[h[chosen], w[chosen]] = values[chosen]
                self._write_part(ref, part, new[_within(ref, part)])

    def _write_part(self, ref: SliceRef, part: Box, new: NDArray[np.uint8]) -> None:
        """Replace a part of a plane in memory, shape (h, w). Call with the lock held."""
        plane = self._plane(ref)
        inner = plane.values[_within(ref, part)]
        if plane.painted is None:
            plane.painted = np.zeros(plane.values.shape, np.bool_)
        plane.painted[_within(ref, part)] |= inner != new
        gone = (inner != NOT_PAINTED) & (new == NOT_PAINTED)
        if gone.any():
            self._note_erased(part, np.expand_dims(gone, ref.axis_number))
        inner[...] = new
        self._changed(ref, part)

    def is_blank(self, ref: SliceRef) -> bool:
        """Return whether a plane is known to hold no paint, without reading it."""
        with self._wake:
            return not self._planes[ref].values.any() if ref in self._planes else self._is_blank(ref)

    def _is_blank(self, ref: SliceRef) -> bool:
        """Return whether nobody painted in a plane that is not in memory."""
        others = [axis for axis in AXES if axis != ref.axis]
        return (
            ref.index not in self._annotation.painted(ref.axis)
            and not any(self._annotation.painted(axis) for axis in others)
            and not any(plane.unsaved for other, plane in self._planes.items() if other.axis != ref.axis)
        )

    def _is_cheap(self, ref: SliceRef) -> bool:
        chunks = 1
        for number, (n, c) in enumerate(zip(self.shape, CHUNKS, strict=True)):
            chunks *= 1 if number == ref.axis_number else -(-n // c)
        return chunks <= _CHUNKS_AT_ONCE

    def _evict(self) -> None:
        """Drop planes that are on disk, the ones used longest ago first. Call with the lock held."""
        total = sum(plane.values.nbytes for plane in self._planes.values())
        for ref in list(self._planes)[:-1]:
            if total <= self._memory_bytes and len(self._planes) <= _MOST_PLANES:
                return
            if not self._planes[ref].unsaved:
                total -= self._planes.pop(ref).values.nbytes
        if total > self._memory_bytes and not self._hurry:
            self._hurry = True
            self._wake.notify_all()


def _fills(inside: tuple[Any, ...]) -> bool:
    """Return whether a relative key names every voxel of its box."""
    return all(
        part is None or (not isinstance(part, np.ndarray) and part in (0, slice(None, None, 1))) for part in inside
    )


def _either(first: NDArray[np.bool_] | None, second: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    return first | second if first is not None and second is not None else first if second is None else second


def _mark(ref: SliceRef, before: bool, after: bool) -> Change:
    return Change(ref, b"", b"", (0, 0), before, after)


def _within(ref: SliceRef, box: Box) -> tuple[slice, ...]:
    """Return a box as an index of the plane `ref`."""
    return tuple(part for number, part in enumerate(box.slices) if number != ref.axis_number)


def _around(first: Box, second: Box) -> Box:
    """Return the smallest box that holds two others."""
    return Box(
        tuple(min(a, b) for a, b in zip(first.start, second.start, strict=True)),
        tuple(max(a, b) for a, b in zip(first.stop, second.stop, strict=True)),
    )


def _relative(part: Box, box: Box) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(part.start, part.stop, box.start, strict=True))


def _turned(values: NDArray[Any], ref: SliceRef, other: SliceRef) -> NDArray[Any]:
    """Return a line of voxels of the plane `ref` with the axes of the plane `other`, which crosses it."""
    return np.expand_dims(values, ref.axis_number).squeeze(other.axis_number)


def _packed(values: NDArray[np.uint8]) -> bytes:
    return zlib.compress(np.ascontiguousarray(values).data, 1)


def _unpacked(data: bytes, shape: tuple[int, int]) -> NDArray[np.uint8]:
    return np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape)
