"""Writing files so that a kill at any moment leaves the old file or the new one, and errors in one line.

All that writes or removes inside a project goes through `own_path`, which follows no link: `write_text`, `replacing`,
`make_folder`, `open_own` and `remove` ask it themselves; what another library writes is asked for first. `Project`
names its folder with `guard`; paths outside of any project (exports) are as the user gave them.
"""

import errno
import os
import re
import shutil
import socket
import stat
import sys
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from napari_slicelabel.errors import SliceLabelError, StorageError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and try again",
    errno.EDQUOT: "the disk quota is used up; free some space and try again",
    errno.EACCES: "no permission to write there; choose another folder or change its permissions",
    errno.EPERM: "no permission to write there; choose another folder or change its permissions",
    errno.EROFS: "the file system is read-only; choose another folder",
}

Stamp = tuple[int, int, int]

_guarded: set[str] = set()

# .HEX.HOST-PID.part.NAME (earlier: without HOST-PID), and NAME.HEX.partial of zarr
_LEFTOVER = re.compile(r"\.[0-9a-f]{8}\.(?:(?P<host>[0-9a-f]{8})-(?P<pid>\d+)\.)?(?P<kind>part|old|gone)\.(?P<name>.+)")
_ZARR_LEFTOVER = re.compile(r".*\.[0-9a-f]{32}\.partial")
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"


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
        raise StorageError(f"cannot {action} {path}: {reason_of(error)}") from error


def reason_of(error: OSError) -> str:
    """Return in words why the operating system refused something."""
    return _REASONS.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__


def guard(root: Path) -> None:
    """Take a folder for a project: from now on `own_path` refuses every link below it. The folder may be one itself."""
    _guarded.update({os.path.abspath(root), os.path.realpath(root)})


def own_path(path: Path, action: str = "write") -> Path:
    """Return a path as it is, if what lies there belongs to the project that the path is in.

    Parameters
    ----------
    path : Path
        A file or folder, which need not exist. Outside of the folders that `guard` was told of anything may be written.
    action : str
        The verb for the message.

    Returns
    -------
    Path
        The same path.

    Raises
    ------
    StorageError
        The path, or a folder between it and the project, is a link or a device: writing would reach outside.
    """
    whole = os.path.abspath(path)
    for root in _guarded:
        if whole.startswith(root + os.sep):
            _refuse_links(root, whole, action)
    return path


def _refuse_links(root: str, whole: str, action: str) -> None:
    place = root
    for part in whole[len(root) + 1 :].split(os.sep):
        place = os.path.join(place, part)
        try:
            mode = os.lstat(place).st_mode
        except OSError:
            # what is not there is not followed; what cannot be looked at fails by itself
            return
        if stat.S_ISLNK(mode) or _is_junction(place):
            raise StorageError(
                f"cannot {action} {whole}: {place} is a link, and nothing outside of the project is written;"
                " put the file or folder that it stands for in its place"
            )
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise StorageError(f"cannot {action} {whole}: {place} is neither a file nor a folder; remove it")


if sys.platform == "win32":  # pragma: no cover

    def _is_junction(path: str) -> bool:
        return os.lstat(path).st_reparse_tag == stat.IO_REPARSE_TAG_MOUNT_POINT

else:

    def _is_junction(path: str) -> bool:
        return False


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there yet; no link is followed inside a project.

    Raises
    ------
    StorageError
        A link, disk full, no permission.
    """
    with storage_errors(path, "create"):
        own_path(path, "create").mkdir(parents=True, exist_ok=True)


def open_own(path: Path, mode: str, **options: Any) -> IO[Any]:
    """Open a file to be written in place (a lock, a journal): no link, symbolic or hard, is followed inside a project.

    Parameters
    ----------
    path : Path
        The file.
    mode : str
        As `open` takes it.
    **options
        As `open` takes them.

    Returns
    -------
    file
        To be closed by the caller.

    Raises
    ------
    StorageError
        A link or a device, disk full, no permission.
    """
    with storage_errors(path):
        own_path(path)
        if path.is_file() and path.stat().st_nlink > 1:
            # another name of it may lie outside, in a copy of the project by hard links: go on with one of our own
            with replacing(path) as temporary:
                shutil.copyfile(path, temporary)
        return path.open(mode, **options)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step: temporary name, fsync, rename. No link is followed inside a project.

    Parameters
    ----------
    path : Path
        The file; its folder must exist.
    text : str
        The whole new content, written as UTF-8.

    Raises
    ------
    StorageError
        Disk full, no permission, a link. The old file is then unchanged.
    """
    with storage_errors(path), replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def stamp(path: Path) -> Stamp | None:
    """Return what tells a file from the one that replaces it; None where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_ino, facts.st_size


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

    Raises
    ------
    StorageError
        A link on the way to `path` inside a project.
    """
    own_path(path)
    temporary = _beside(path, "part")
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            # a folder cannot be renamed over a folder: step aside first, so that the gap is two renames long
            old = _beside(path, "old")
            path.rename(old)
            temporary.rename(path)
            discard(old)
        else:
            temporary.replace(path)
    except BaseException:
        discard(temporary)
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there, so that a kill leaves all of it or nothing under this name.

    A folder is renamed first, then deleted; what cannot be deleted then is left to `sweep`. Of a link the link itself
    goes, never what it leads to.

    Raises
    ------
    StorageError
        It cannot be renamed or removed, or a folder on the way to it is a link inside a project.
    """
    own_path(path.parent, "remove")
    with storage_errors(path, "remove"):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        gone = _beside(path, "gone")
        path.rename(gone)
    discard(gone)


def sweep(folder: Path, *, alone: bool = False) -> None:
    """Remove what killed processes left in a folder: temporary names of `replacing`, `remove` and zarr.

    Parameters
    ----------
    folder : Path
        Looked at without the folders in it. One that is not there has no leftovers.
    alone : bool
        Whether the caller holds the lock under which all that is in the folder is written: then everything that is
        left over goes. Else only what was left by a process of this machine that lives no more.

    Notes
    -----
    A folder that was being replaced gets its old content back if the new one never came. What cannot be removed stays.
    """
    with suppress(OSError, StorageError):
        own_path(folder, "remove")
        for entry in list(folder.iterdir()):
            found = _LEFTOVER.fullmatch(entry.name)
            if found and (alone or not _may_live(found["host"], found["pid"])):
                _end_leftover(entry, found["kind"], folder / found["name"])
            elif alone and _ZARR_LEFTOVER.fullmatch(entry.name):
                discard(entry)


def _end_leftover(entry: Path, kind: str, name: Path) -> None:
    if kind == "old" and not os.path.lexists(name):
        entry.rename(name)
    else:
        discard(entry)


def _may_live(host: str | None, pid: str | None) -> bool:
    """Return whether the process that a temporary name tells of may still be writing."""
    if host is None or pid is None:
        return False
    return host != _HOST or process_lives(int(pid))


def process_lives(pid: int) -> bool:
    """Return whether a process of this machine with the given number may be running."""
    if sys.platform == "win32":  # pragma: no cover
        # there what a process holds open cannot be removed anyway, and signal 0 would end it
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _beside(path: Path, kind: str) -> Path:
    """Return a name of our own beside `path`; names at the limit of file systems (255 bytes) are cut in front."""
    name = path.name if kind == "old" else os.fsdecode(os.fsencode(path.name)[-210:])
    return path.with_name(f".{uuid.uuid4().hex[:8]}.{_HOST}-{os.getpid()}.{kind}.{name}")


def discard(path: Path) -> None:
    """Delete what has a temporary name; what cannot be deleted stays for `sweep`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
