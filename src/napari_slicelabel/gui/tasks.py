"""Short jobs in the background, one after the other, whose results come back to the window's thread."""

from __future__ import annotations

import threading
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Signal

from napari_slicelabel.errors import SliceLabelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class _Job:
    """A job; as a context it keeps the error that ends its work."""

    def __init__(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.work = work
        self.done = done
        self.result: Any = None
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        return True


class Tasks(QObject):
    """Jobs in a thread of their own, in the order they were given.

    Attributes
    ----------
    failed : Signal(str, str)
        A job failed: one line, and the traceback where that line does not say it all.
    """

    failed = Signal(str, str)
    _over = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._waiting: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = 0
        self._closed = False
        # queued, since it is emitted in the other thread: what it calls runs in this one
        self._over.connect(self._finish)

    @property
    def busy(self) -> bool:
        """Whether a job waits or is at work, or its result has not arrived yet."""
        return self._busy > 0

    def start(self, work: Callable[[], Any], done: Callable[[Any], None] = lambda _: None) -> None:
        """Do `work` in the background, then call `done` with its result in the window's thread."""
        with self._wake:
            if self._closed:
                return
            self._busy += 1
            self._waiting.append(_Job(work, done))
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="slicelabel-tasks", daemon=True)
                self._thread.start()
            self._wake.notify()

    def close(self, timeout_s: float = 20.0) -> None:
        """Finish the job at work, forget those that wait, and end the thread."""
        with self._wake:
            self._closed = True
            self._waiting.clear()
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not self._waiting:
                    if self._closed:
                        return
                    self._wake.wait()
                job = self._waiting.popleft()
            with job:
                job.result = job.work()
            if self._closed:
                return
            self._over.emit(job)

    def _finish(self, job: _Job) -> None:
        self._busy -= 1
        if self._closed:
            return
        if job.error is None:
            job.done(job.result)
            return
        line = " ".join(str(job.error).split()) or type(job.error).__name__
        whole = "" if isinstance(job.error, SliceLabelError) else "".join(traceback.format_exception(job.error))
        self.failed.emit(line, whole)
