"""Unpacking compressed files that cannot be read in part into temporary files on disk.

The arrays of a compressed ``.npz`` and of a ``.nii.gz`` are one stream each: to read the last slice everything before
it must be unpacked. Keeping that in RAM would break the promise that a volume is never loaded whole, so it is unpacked
once, block by block, into a folder beside the other temporary files (``TMPDIR`` chooses the disk) and memory-mapped
from there.
The folder is removed when the program exits. What a killed program left behind is removed by the next one.
"""

import atexit
import hashlib
import os
import shutil
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from gzip import GzipFile
from pathlib import Path
from typing import IO

from napari_slicelabel.data.files import replacing, storage_errors
from napari_slicelabel.errors import InputError

_PREFIX = "napari-slicelabel-"
_BLOCK_BYTES = 4 * 2**20
_lock = threading.Lock()
_folders: dict[int, Path] = {}


def spilled(
    path: Path, member: str, suffix: str, open_stream: Callable[[], AbstractContextManager[IO[bytes] | GzipFile]]
) -> Path:
    """Return a temporary file with the unpacked content of a stream; unpacks it when that was not done yet.

    Parameters
    ----------
    path : Path
        The packed file. The copy is made anew when its size or time of change differs.
    member : str
        Which part of it.
    suffix : str
        Ending of the temporary file.
    open_stream : callable
        Opens the unpacked stream.

    Returns
    -------
    Path
        Valid until the program exits.

    Raises
    ------
    InputError
        The packed file is damaged.
    StorageError
        The disk for temporary files is full.
    """
    stat = path.stat()
    key = f"{path.resolve()}\0{member}\0{stat.st_size}\0{stat.st_mtime_ns}"
    target = _folder() / f"{hashlib.sha1(key.encode(), usedforsecurity=False).hexdigest()}{suffix}"
    with _lock:
        if not target.exists():
            with (
                open_stream() as stream,
                storage_errors(target, f"unpack {path.name} to"),
                replacing(target) as temporary,
                temporary.open("wb") as file,
            ):
                for block in _blocks(stream, path):
                    file.write(block)
    return target


def _blocks(stream: IO[bytes] | GzipFile, path: Path) -> Iterator[bytes]:
    """Yield the content block by block. What goes wrong here is the fault of the packed file, not of the storage."""
    try:
        while block := stream.read(_BLOCK_BYTES):
            yield block
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be unpacked: {error}; is it damaged?") from error


def _folder() -> Path:
    """Return the folder of this process, made when first asked for."""
    with _lock:
        # by process: a forked child must not remove what its parent still uses
        pid = os.getpid()
        if pid not in _folders:
            parent = Path(tempfile.gettempdir())
            _remove_abandoned(parent)
            with storage_errors(parent):
                folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{pid}-", dir=parent))
            _folders[pid] = folder
            atexit.register(_remove_own, pid, folder)
        return _folders[pid]


def _remove_own(pid: int, folder: Path) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove what processes that no longer live left behind."""
    if os.name != "posix":
        # there, asking whether a process lives would end it
        return
    for folder in parent.glob(f"{_PREFIX}[0-9]*-*"):
        try:
            os.kill(int(folder.name.removeprefix(_PREFIX).split("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, OSError, OverflowError):
            # no number of ours, or the process of another user: it lives
            continue
