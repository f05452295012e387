"""Reading small files that a disk may have damaged, or anybody may have put there: never without an end."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import IO, Any

MOST_BYTES = 64 * 2**20
"""No file that is read whole (records, tables, settings) comes near."""


def open_file(path: Path) -> IO[bytes]:
    """Open a file to be read.

    Parameters
    ----------
    path : Path
        The file. A pipe or a device only if it stands below /dev, as ``/dev/stdin`` does.

    Returns
    -------
    file
        To be closed by the caller.

    Raises
    ------
    OSError
        As `open` raises it; and where it is no file.
    """
    # a pipe that nobody writes to would keep `open` waiting
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        if not str(path).startswith("/dev/"):
            file.close()
            raise OSError(errno.EINVAL, "it is no file")
        os.set_blocking(descriptor, True)
    return file


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a file of moderate size.

    Parameters
    ----------
    path : Path
        As `open_file` takes it.
    most : int
        The most bytes it may hold.

    Returns
    -------
    bytes
        All of them.

    Raises
    ------
    OSError
        As `open_file` raises it; and where it holds more.
    """
    with open_file(path) as file:
        status = os.fstat(file.fileno())
        # for a device the size says nothing
        content = file.read(1 + (min(status.st_size, most) if stat.S_ISREG(status.st_mode) else most))
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it holds more than {most // 2**20} MB")
    return content


def read_text(path: Path) -> str:
    """Return a text file of moderate size; OSError as `read_bytes`, ValueError where it is not UTF-8."""
    return read_bytes(path).decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """Return what JSON holds; ValueError for all that is none, also for what is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: Path) -> Any:
    """Return what a file of JSON holds; OSError as `read_bytes`, ValueError where it is none."""
    return parse_json(read_bytes(path))
