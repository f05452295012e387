"""Reading small files that a disk may have damaged, or anybody may have put there: never without an end."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 64 * 2**20
"""No file that is read whole (records, tables, settings) comes near."""


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a file of moderate size.

    Parameters
    ----------
    path : Path
        The file. A pipe or a device only if it stands below /dev, as ``/dev/stdin`` does.
    most : int
        The most bytes it may hold.

    Returns
    -------
    bytes
        All of them.

    Raises
    ------
    OSError
        As `open` raises it; and where it is no file, or holds more.
    """
    # a pipe that nobody writes to would keep `open` waiting
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            most_now = min(status.st_size, most)
        elif str(path).startswith("/dev/"):
            os.set_blocking(descriptor, True)
            most_now = most
        else:
            raise OSError(errno.EINVAL, "it is no file")
        content = file.read(most_now + 1)
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
