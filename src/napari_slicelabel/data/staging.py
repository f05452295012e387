"""Chunks of a zarr array that are written beside it first, and take their places together.

A write goes to a folder with a temporary name; renaming that folder is the moment from which the write counts.
Then its files are renamed into their places, the status last. Whoever finds the folder goes on with that, so a kill
at any step leaves all of a write or nothing, and a full disk, which fails before the renaming, changes nothing.
"""

import json
import os
import re
from pathlib import Path

from napari_slicelabel.data.files import discard, own_path, write_text
from napari_slicelabel.data.reading import read_json
from napari_slicelabel.errors import StorageError

_STATUS = "status.json"
_EMPTIED = "emptied.json"


def finish_stage(folder: Path, emptied: set[str], status: str) -> None:
    """Write into a folder of staged chunks what else belongs to the write.

    Parameters
    ----------
    folder : Path
        Holds the staged chunks.
    emptied : set of str
        Keys of the chunks to remove.
    status : str
        New content of the status file.

    Raises
    ------
    StorageError
        Disk full.
    """
    if emptied:
        write_text(folder / _EMPTIED, json.dumps(sorted(emptied)))
    write_text(folder / _STATUS, status)


def apply_stage(pending: Path, array: Path, status: Path) -> None:
    """Bring a write that counts into place: chunks, then the status; then its folder goes. May be broken off anywhere.

    Parameters
    ----------
    pending : Path
        The folder with what was staged.
    array : Path
        Folder of the zarr array.
    status : Path
        The status file.

    Raises
    ------
    OSError
        As the file system says; a second call goes on.
    StorageError
        A link on the way, or what was staged is damaged.
    """
    if own_path(pending / _STATUS).exists():
        # chunks lie there under their keys with `.` for `/`; one folder, since a second one takes as long as a chunk
        for chunk in sorted(pending.glob("c.*")):
            os.replace(own_path(chunk), _place(array, chunk.name.replace(".", "/")))
        for key in emptied_by(pending):
            _place(array, key).unlink(missing_ok=True)
        os.replace(pending / _STATUS, own_path(status))
    discard(pending)


def emptied_by(pending: Path) -> list[str]:
    """Return the keys of the chunks that a write takes away; none once it is in place.

    Raises
    ------
    StorageError
        The list is damaged.
    """
    path = pending / _EMPTIED
    try:
        keys = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (ValueError, OSError) as error:
        raise StorageError(f"{path} is damaged ({error}); remove {pending} to go on without that write") from error
    return [key for key in keys if is_chunk(key)] if isinstance(keys, list) else []


def is_chunk(key: object) -> bool:
    """Return whether a text is the key of a chunk of a 3D array, such as ``c/0/1/2``."""
    return isinstance(key, str) and re.fullmatch(r"c(/\d{1,9}){3}", key) is not None


def _place(array: Path, key: str) -> Path:
    """Return the file of a chunk. Names come from the disk, and must not lead elsewhere."""
    if not is_chunk(key):
        raise StorageError(f"{array}: a write that broke off holds {key!r}, which is no chunk; remove that file")
    return own_path(array / key)
