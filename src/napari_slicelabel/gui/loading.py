"""Reading in the background what would keep the window waiting."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from napari_slicelabel.errors import SliceLabelError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

# Who scrolls on does not want what scrolled by.
_MOST_WAITING = 3


class Loader:
    """A thread that works off requests, the latest first; of those that wait only the last few are kept.

    Parameters
    ----------
    loaded : callable
        Called in that thread with the key of each request that is done.
    failed : callable
        Called in that thread with the error of one that failed.
    """

    def __init__(self, loaded: Callable[[Hashable], None], failed: Callable[[SliceLabelError], None]) -> None:
        self._loaded = loaded
        self._failed = failed
        self._waiting: OrderedDict[Hashable, Callable[[], None]] = OrderedDict()
        self._busy: Hashable = None
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def request(self, key: Hashable, work: Callable[[], None]) -> None:
        """Have `work` done soon, unless the same key is being worked on."""
        with self._wake:
            if self._closed or key == self._busy:
                return
            self._waiting[key] = work
            self._waiting.move_to_end(key)
            while len(self._waiting) > _MOST_WAITING:
                self._waiting.popitem(last=False)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="slicelabel-load", daemon=True)
                self._thread.start()
            self._wake.notify()

    def close(self) -> None:
        """Finish what is being read and end the thread."""
        with self._wake:
            self._closed = True
            self._waiting.clear()
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10)

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not self._waiting:
                    if self._closed:
                        return
                    self._wake.wait()
                key, work = self._waiting.popitem(last=True)
                self._busy = key
            try:
                work()
            except SliceLabelError as error:
                self._failed(error)
            except Exception as error:  # noqa: BLE001 - the thread must live on: others wait for what it reads
                self._failed(StorageError(f"cannot read: {type(error).__name__}: {' '.join(str(error).split())}"))
            else:
                self._loaded(key)
            finally:
                with self._wake:
                    self._busy = None
