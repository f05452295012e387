"""Where zarr writes inside a project: no link is followed, and chunks of the annotation are staged first."""

import asyncio
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import LocalStore, WrapperStore

from napari_slicelabel.data.files import make_folder, own_path

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class PlainStore(WrapperStore[LocalStore]):
    """A zarr store in a folder that reads files only, never what has no end or never comes.

    Parameters
    ----------
    store : Path or LocalStore
        The folder.
    """

    def __init__(self, store: Path | LocalStore) -> None:
        super().__init__(LocalStore(store, read_only=True) if isinstance(store, Path) else store)

    async def get(
        self, key: str, prototype: "BufferPrototype", byte_range: "ByteRequest | None" = None
    ) -> "Buffer | None":
        """Return what a file holds, or None where there is none; OSError for a folder, a pipe or a device."""
        _refuse_no_file(self._store.root / key)
        return await super().get(key, prototype, byte_range)


class OwnStore(PlainStore):
    """A zarr store in a folder in which no link is followed for writing.

    Parameters
    ----------
    store : Path or LocalStore
        The folder, which must be there.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    """

    def __init__(self, store: Path | LocalStore) -> None:
        folder = store if isinstance(store, Path) else store.root
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} does not exist")
        super().__init__(LocalStore(store) if isinstance(store, Path) else store)
        self.folder = folder

    async def set(self, key: str, value: "Buffer") -> None:
        """Replace the file of `key` in one step."""
        await super().set(self._own(key), value)

    async def set_if_not_exists(self, key: str, value: "Buffer") -> None:
        """Write the file of `key` where there is none."""
        await super().set_if_not_exists(self._own(key), value)

    async def delete(self, key: str) -> None:
        """Remove the file of `key`."""
        await super().delete(self._own(key))

    async def delete_dir(self, prefix: str) -> None:
        """Remove a folder."""
        await super().delete_dir(self._own(prefix))

    def _own(self, key: str) -> str:
        own_path(self.folder / key)
        return key


class StagedStore(OwnStore):
    """A zarr store that reads where the array lies and writes to a folder beside it.

    Attributes
    ----------
    written, emptied : set of str
        Keys of the chunks that were written since `stage`, and of those that hold nothing any more.
    """

    def __init__(self, store: Path | LocalStore) -> None:
        super().__init__(store)
        self._staging: Path | None = None
        self.written: set[str] = set()
        self.emptied: set[str] = set()

    def stage(self, folder: Path) -> None:
        """Write to an empty folder from now on."""
        self._staging, self.written, self.emptied = folder, set(), set()

    async def set(self, key: str, value: "Buffer") -> None:
        """Write one chunk beside the array."""
        assert self._staging is not None, "nothing is staged"
        # what cannot be put into its place must fail now, not once the write counts
        make_folder((self.folder / self._own(key)).parent)
        self.written.add(key)
        await asyncio.to_thread((self._staging / key.replace("/", ".")).write_bytes, value.to_bytes())

    async def delete(self, key: str) -> None:
        """Take note that one chunk holds nothing any more."""
        self.emptied.add(self._own(key))


def _refuse_no_file(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"{path} is no file")


def open_own_array(folder: Path) -> "zarr.Array[Any]":
    """Open an array for writing, in which no link is followed inside a project.

    Parameters
    ----------
    folder : Path
        Of the array, not of its group.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError
        As zarr does when there is none or its metadata are damaged.
    """
    return zarr.open_array(OwnStore(folder), mode="r+")
