"""Writing files so that a kill at any moment leaves the old file or the new one, and errors in one line."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from napari_slicelabel.errors import SliceLabelError, StorageError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and try again",
    errno.EDQUOT: "the disk quota is used up; free some space and try again",
    errno.EACCES: "no permission to write there; choose another folder or change its permissions",
    errno.EPERM: "no permission to write there; choose another folder or change its permissions",
    errno.EROFS: "the file system is read-only; choose another folder",
}


@contextmanager
def storage_errors(path: Path | str, action: str = "write") -> Iterator[None]:
    """Turn an `OSError` of the block into a `StorageError` of one line.

    Parameters
    ----------
    path : Path or str
        What the block writes or reads; named in the message.
    action : str
        The verb for the message.

    Raises
    ------
    StorageError
        In place of any `OSError` that is not yet an error of this package.
    """
    try:
        yield
    except SliceLabelError:
        raise
    except OSError as error:
        reason = _REASONS.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__
        raise StorageError(f"cannot {action} {path}: {reason}") from error


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step: temporary name, fsync, rename.

    Parameters
    ----------
    path : Path
        The file; its folder must exist.
    text : str
        The whole new content, written as UTF-8.

    Raises
    ------
    StorageError
        Disk full, no permission. The old file is then unchanged.
    """
    with storage_errors(path), replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the block a temporary name beside `path`; rename it to `path` at the end, or remove it on any error.

    Parameters
    ----------
    path : Path
        Final name of a file or of a folder. What is there is replaced.

    Yields
    ------
    Path
        The name to write to. It keeps the suffixes of `path`, which many libraries go by.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.part.{path.name}")
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            # a folder cannot be renamed over a folder: step aside first, so that the gap is two renames long
            old = path.with_name(f".{uuid.uuid4().hex[:8]}.old.{path.name}")
            path.rename(old)
            temporary.rename(path)
            remove(old)
        else:
            temporary.replace(path)
    except BaseException:
        remove(temporary)
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there; what cannot be removed stays."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with storage_errors(path, "remove"):
            path.unlink(missing_ok=True)
