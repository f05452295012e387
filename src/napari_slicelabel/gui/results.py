"""What a run writes, as an array that a layer shows while it is being written."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_slicelabel.data.boxes import AXES, Axis, Box, SliceRef
from napari_slicelabel.engine.stores import PLANE_CHUNK, SliceStore
from napari_slicelabel.gui.loading import Loader
from napari_slicelabel.gui.virtual import VirtualArray, basic_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from napari_slicelabel.errors import SliceLabelError

_LARGEST_BOX = 256 * 2**20
_KEPT_BYTES = 96 * 2**20
_CHUNKS_AT_ONCE = 4


class ResultArray(VirtualArray):
    """One label array of a run, read plane by plane; zero where nothing was written, or where there is no run yet.

    Another run is shown by `show`: the layer keeps its array. A plane that would take long to read is read in the
    background, and the one shown before stays until then.

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
        self._store: SliceStore | None = None
        self._axis: Axis = "z"
        self._preview: dict[SliceRef, NDArray[np.uint8]] = {}
        self._planes: OrderedDict[SliceRef, NDArray[np.uint8]] = OrderedDict()
        self._stale: set[SliceRef] = set()
        self._lock = threading.RLock()
        self._loader = Loader(lambda _: loaded(), failed)

    def __repr__(self) -> str:
        """Return shape and source on one line."""
        return f"<ResultArray zyx {self.shape} {self._store.folder if self._store else 'empty'}>"

    def __getitem__(self, key: Any) -> Any:
        """Return the part that ints and slices name; a single int gives something with the dtype of a plane."""
        if isinstance(key, int | np.integer):
            return np.broadcast_to(self.dtype.type(0), self.shape[1:])
        box, inside = basic_index(key, self.shape)
        return self._read(box)[inside]

    def show(self, store: SliceStore | None, axis: Axis = "z") -> None:
        """Read from another store from now on; None for an empty array."""
        with self._lock:
            self._store, self._axis = store, axis
            self._planes.clear()
            self._stale.clear()

    def changed(self, indices: Iterable[int]) -> None:
        """Forget what is known of slices (along the run's axis) that were written."""
        with self._lock:
            for index in indices:
                self._planes.pop(SliceRef(self._axis, index), None)
            self._stale |= {ref for ref in self._planes if ref.axis != self._axis}

    def preview(self, planes: Mapping[SliceRef, NDArray[np.uint8]]) -> None:
        """Show these planes in place of what is on disk; an empty mapping ends it."""
        with self._lock:
            self._preview = dict(planes)

    def close(self) -> None:
        """End the thread that reads."""
        self._loader.close()

    def read_plane(self, ref: SliceRef) -> NDArray[np.uint8]:
        """Return one plane as it is on disk, shape (h, w)."""
        store = self._store
        if store is None or not store.exists:
            return self._empty(ref)
        return store.read_box(ref.box(self.shape)).squeeze(ref.axis_number)

    def _read(self, box: Box) -> NDArray[np.uint8]:
        thin = [axis for axis, n in zip(AXES, box.shape, strict=True) if n == 1]
        refs = [SliceRef(axis, box.start[AXES.index(axis)]) for axis in thin]
        whole = next((ref for ref in refs if ref.box(self.shape) == box), None)
        if whole is not None:
            return np.expand_dims(self._plane(whole), whole.axis_number)
        if box.size > _LARGEST_BOX:
            return np.zeros((1, 1, 1), np.uint8)
        if self._store is None or not self._store.exists:
            return np.zeros(box.shape, np.uint8)
        return self._store.read_box(box)

    def _plane(self, ref: SliceRef) -> NDArray[np.uint8]:
        with self._lock:
            if ref in self._preview:
                return self._preview[ref]
            known = self._planes.get(ref)
            if known is not None and ref not in self._stale:
                return known
            if self._store is None or not self._store.exists:
                return self._empty(ref)
            if self._chunks(ref) <= _CHUNKS_AT_ONCE:
                self._stale.discard(ref)
                return self._keep(ref, self.read_plane(ref), self._store)
            store = self._store
            self._loader.request(ref, lambda: self._load(ref, store))
            return known if known is not None else self._empty(ref)

    def _load(self, ref: SliceRef, store: SliceStore) -> None:
        with self._lock:
            # before reading: what is written meanwhile makes it stale again
            self._stale.discard(ref)
        self._keep(ref, store.read_box(ref.box(self.shape)).squeeze(ref.axis_number), store)

    def _keep(self, ref: SliceRef, values: NDArray[np.uint8], store: SliceStore) -> NDArray[np.uint8]:
        with self._lock:
            if store is self._store:
                self._planes[ref] = values
                self._planes.move_to_end(ref)
                while len(self._planes) > 1 and sum(p.nbytes for p in self._planes.values()) > _KEPT_BYTES:
                    self._planes.popitem(last=False)
            return values

    def _empty(self, ref: SliceRef) -> NDArray[np.uint8]:
        return np.zeros(ref.box(self.shape).shape, np.uint8).squeeze(ref.axis_number)

    def _chunks(self, ref: SliceRef) -> int:
        """Return how many chunks a plane touches."""
        count = 1
        for axis, n in zip(AXES, self.shape, strict=True):
            if axis != ref.axis:
                count *= n if axis == self._axis else -(-n // PLANE_CHUNK)
        return count
