"""What runs wrote, as an array that a layer shows while it is being written."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.data.boxes import AXES, Axis, Box, SliceRef
from napari_slicelabel.data.classes import PAINTED_BACKGROUND
from napari_slicelabel.engine.stores import PLANE_CHUNK
from napari_slicelabel.errors import SliceLabelError
from napari_slicelabel.gui.loading import Loader
from napari_slicelabel.gui.virtual import LARGEST_READ, VirtualArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from napari_slicelabel.engine.stores import SliceStore

    Hidden = Mapping[Axis, frozenset[int]]

_KEPT_BYTES = 96 * 2**20
_CHUNKS_AT_ONCE = 4
# Planes that are put together at once: what that takes besides the result stays small.
_SLAB = 16


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One label array of one run, and which slices along the run's axis it has written, bool of shape (n,)."""

    store: SliceStore
    axis: Axis
    written: NDArray[np.bool_]


class ResultArray(VirtualArray):
    """A label array of runs, read plane by plane: of every voxel what the first source says that has written its slice.

    Zero where none has. Other runs are shown by `show`: the layer keeps its array. A plane that would take long to read
    is read in the background when it is to be drawn, and the one shown before stays until then.

    Parameters
    ----------
    shape : tuple of int
        (z, y, x).
    loaded : callable
        Called from any thread when a plane was read that the layer should now show.
    failed : callable
        Called from any thread with the error of a plane that cannot be read.

    Attributes
    ----------
    dtype : numpy.dtype
        uint8.
    """

    what = "the result"

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        loaded: Callable[[], None] = lambda: None,
        failed: Callable[[SliceLabelError], None] = lambda _: None,
    ) -> None:
        super().__init__(shape)
        self._sources: tuple[Source, ...] = ()
        self._against: tuple[Source, ...] = ()
        self._hidden: Hidden = {}
        self._preview: dict[SliceRef, NDArray[np.uint8]] = {}
        self._planes: OrderedDict[SliceRef, NDArray[np.uint8]] = OrderedDict()
        self._stale: set[SliceRef] = set()
        self._lock = threading.RLock()
        self._failed = failed
        self._loader = Loader(lambda _: loaded(), failed)

    def __repr__(self) -> str:
        """Return shape and sources on one line."""
        folders = ", ".join(str(source.store.folder) for source in self._sources) or "empty"
        return f"<ResultArray zyx {self.shape} {folders}>"

    def show(self, sources: Sequence[Source], against: Sequence[Source] = ()) -> None:
        """Read from other sources from now on; of those the first one that has a slice counts.

        Parameters
        ----------
        sources : sequence of Source
            None for an empty array.
        against : sequence of Source
            With these only voxels are shown that differ: with the label that `sources` give them, or as painted
            background where that is background.
        """
        with self._lock:
            was_difference, self._against = bool(self._against), tuple(against)
            self._sources = tuple(sources)
            # planes that take long to read stay until the new ones come, unless they mean something else
            if not sources or was_difference or against:
                self._planes.clear()
            self._stale = set(self._planes)

    def changed(self, indices: Iterable[int]) -> None:
        """Take note of slices (along its axis) that the first source has written."""
        with self._lock:
            if not self._sources:
                return
            first = self._sources[0]
            for index in indices:
                first.written[index] = True
                self._planes.pop(SliceRef(first.axis, index), None)
            self._stale |= {ref for ref in self._planes if ref.axis != first.axis}

    def preview(self, planes: Mapping[SliceRef, NDArray[np.uint8]]) -> None:
        """Show these planes in place of what is on disk; an empty mapping ends it."""
        with self._lock:
            self._preview = dict(planes)

    def hide(self, slices: Hidden) -> None:
        """Draw nothing in some slices, by axis, also where they cross others; whoever asks for values gets them."""
        with self._lock:
            self._hidden = dict(slices)

    def close(self) -> None:
        """End the thread that reads."""
        self._loader.close()

    def read_plane(self, ref: SliceRef) -> NDArray[np.uint8]:
        """Return one plane as it is on disk, shape (h, w)."""
        return _composed(ref.box(self.shape), self._sources).squeeze(ref.axis_number)

    def _read(self, box: Box) -> NDArray[np.uint8]:
        values = np.empty(box.shape, np.uint8)
        for slab in _slabs(box):
            part = slice(slab.start[0] - box.start[0], slab.stop[0] - box.start[0])
            values[part] = self._shown(slab)
        with self._lock:
            preview = list(self._preview.items())
        for ref, plane in preview:
            common = ref.box(self.shape).intersect(box)
            if common.size:
                inside = tuple(
                    slice(a - o, b - o) for a, b, o in zip(common.start, common.stop, box.start, strict=True)
                )
                values[inside] = np.expand_dims(plane, ref.axis_number)[_lying(common, ref)]
        return values

    def _drawn(self, box: Box) -> NDArray[np.uint8]:
        if box.size > LARGEST_READ:
            return np.zeros((1, 1, 1), np.uint8)
        thin = [SliceRef(axis, box.start[n]) for n, axis in enumerate(AXES) if box.shape[n] == 1]
        whole = next((ref for ref in thin if ref.box(self.shape) == box), None)
        try:
            if whole is None:
                return self._read(box)
            return self._without_hidden(np.expand_dims(self._plane(whole), whole.axis_number), whole)
        except SliceLabelError as error:
            self._failed(error)
            return np.zeros(box.shape, np.uint8)

    def _without_hidden(self, values: NDArray[np.uint8], ref: SliceRef) -> NDArray[np.uint8]:
        """Return a plane, shape (z, y, x), without what is hidden."""
        with self._lock:
            hidden = {} if ref in self._preview else self._hidden
        if not any(hidden.values()):
            return values
        if ref.index in hidden.get(ref.axis, ()):
            return np.zeros_like(values)
        values = values.copy()
        for number, axis in enumerate(AXES):
            if axis != ref.axis:
                np.moveaxis(values, number, 0)[sorted(hidden.get(axis, ()))] = 0
        return values

    def _shown(self, box: Box) -> NDArray[np.uint8]:
        with self._lock:
            sources, against = self._sources, self._against
        values = _composed(box, sources)
        if not against:
            return values
        shown = np.where(values == 0, np.uint8(PAINTED_BACKGROUND), values)
        return np.where(values != _composed(box, against), shown, np.uint8(0))

    def _plane(self, ref: SliceRef) -> NDArray[np.uint8]:
        with self._lock:
            if ref in self._preview:
                return self._preview[ref]
            known, sources = self._planes.get(ref), self._sources
            if known is not None and ref not in self._stale:
                return known
            if self._chunks(ref) <= _CHUNKS_AT_ONCE:
                self._stale.discard(ref)
                return self._keep(ref, self._shown(ref.box(self.shape)).squeeze(ref.axis_number), sources)
            self._loader.request(ref, lambda: self._load(ref, sources))
            return (
                known if known is not None else np.zeros(ref.box(self.shape).shape, np.uint8).squeeze(ref.axis_number)
            )

    def _load(self, ref: SliceRef, sources: tuple[Source, ...]) -> None:
        with self._lock:
            # before reading: what is written meanwhile makes it stale again
            self._stale.discard(ref)
        self._keep(ref, self._shown(ref.box(self.shape)).squeeze(ref.axis_number), sources)

    def _keep(self, ref: SliceRef, values: NDArray[np.uint8], sources: tuple[Source, ...]) -> NDArray[np.uint8]:
        with self._lock:
            if sources is self._sources:
                self._planes[ref] = values
                self._planes.move_to_end(ref)
                while len(self._planes) > 1 and sum(p.nbytes for p in self._planes.values()) > _KEPT_BYTES:
                    self._planes.popitem(last=False)
            return values

    def _chunks(self, ref: SliceRef) -> int:
        """Return how many chunks a plane touches, at most."""
        return sum(_chunks_of(self.shape, ref, sources) for sources in (self._sources, self._against))


def _chunks_of(shape: tuple[int, int, int], ref: SliceRef, sources: Sequence[Source]) -> int:
    count = 0
    for source in sources:
        if source.axis == ref.axis and source.written[ref.index]:
            return count + _chunks_across(shape, ref.axis, source)
        if source.axis != ref.axis and source.written.any():
            count += _chunks_across(shape, ref.axis, source)
    return count


def _composed(box: Box, sources: Sequence[Source]) -> NDArray[np.uint8]:
    """Return a box as the sources have it."""
    first = next((source for source in sources if _written_in(source, box).any()), None)
    if first is not None and _written_in(first, box).all() and first.store.exists:
        # mostly so, and then without masks as large as the box
        return first.store.read_box(box)
    values, free = np.zeros(box.shape, np.uint8), np.ones(box.shape, bool)
    for source in sources:
        number = AXES.index(source.axis)
        others = tuple(n for n in range(3) if n != number)
        has = _written_in(source, box)
        lines = np.flatnonzero(has & free.any(axis=others))
        if not len(lines) or not source.store.exists:
            continue
        inside = [slice(None)] * 3
        inside[number] = slice(int(lines[0]), int(lines[-1]) + 1)
        part = (*inside,)
        taken = free[part] & np.expand_dims(has[inside[number]], others)
        values[part][taken] = source.store.read_box(_part_of(box, number, inside[number]))[taken]
        free[part] &= ~taken
        if not free.any():
            break
    return values


def _written_in(source: Source, box: Box) -> NDArray[np.bool_]:
    """Return which of its slices that cross a box a source has written."""
    number = AXES.index(source.axis)
    return source.written[box.start[number] : box.stop[number]]


def _empty(ref: SliceRef, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.zeros(ref.box(shape).shape, np.uint8).squeeze(ref.axis_number)


def _relative(part: Box, box: Box) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(part.start, part.stop, box.start, strict=True))


def _chunks_across(shape: tuple[int, int, int], axis: Axis, source: Source) -> int:
    count = 1
    for other, n in zip(AXES, shape, strict=True):
        if other != axis:
            count *= n if other == source.axis else -(-n // PLANE_CHUNK)
    return count


def _slabs(box: Box) -> Iterator[Box]:
    for start in range(box.start[0], box.stop[0], _SLAB):
        yield Box((start, *box.start[1:]), (min(start + _SLAB, box.stop[0]), *box.stop[1:]))


def _part_of(box: Box, number: int, lines: slice) -> Box:
    """Return the lines of a box along one of its axes."""
    start, stop = list(box.start), list(box.stop)
    start[number], stop[number] = box.start[number] + lines.start, box.start[number] + lines.stop
    return Box(tuple(start), tuple(stop))


def _lying(box: Box, ref: SliceRef) -> tuple[slice, ...]:
    """Return the part of a plane that a box is, as an index of the plane with its own axis of length 1."""
    return tuple(slice(None) if n == ref.axis_number else part for n, part in enumerate(box.slices))
