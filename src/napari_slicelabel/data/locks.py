"""Locks between processes, held by the operating system: a lock ends with its process, however that dies."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from napari_slicelabel.data.files import open_own, storage_errors
from napari_slicelabel.errors import BusyError

_PATIENCE_S = 60.0
_POLL_S = 0.002


@contextmanager
def locked(path: Path, timeout_s: float = _PATIENCE_S) -> Iterator[None]:
    """Hold a lock for the block: no other process, and no other thread of this one, holds it at the same time.

    Parameters
    ----------
    path : Path
        The lock file, empty; made when it is not there. It stays, and means nothing by itself.
    timeout_s : float
        How long to wait for who holds it.

    Raises
    ------
    BusyError
        Somebody else held it all the time.
    StorageError
        The file cannot be made: read-only folder, disk full, a link.

    Notes
    -----
    Some network file systems know no locks: there the block runs without one.
    """
    deadline = time.monotonic() + timeout_s
    file = _acquired(path)
    while file is None:
        if time.monotonic() >= deadline:
            raise BusyError(
                f"another program has been writing to {path.parent} for {timeout_s:.0f} s; end it, or try again later"
            )
        time.sleep(_POLL_S)
        file = _acquired(path)
    with file:
        yield


def _acquired(path: Path) -> IO[Any] | None:
    """Return the lock file, open and locked, or None while somebody else has it."""
    with storage_errors(path, "lock"):
        file = open_own(path, "ab")
        try:
            if _try_lock(file) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            # somebody removed the file between the two steps: the next try makes it anew
            pass
        except BaseException:
            file.close()
            raise
        file.close()
        return None


if sys.platform == "win32":  # pragma: no cover

    def _try_lock(file: IO[Any]) -> bool:
        import msvcrt

        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:

    def _try_lock(file: IO[Any]) -> bool:
        import errno
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                raise
        return True
