"""Every slice of a stack as a small picture: what slices are compared by, and what lists show."""

import json
import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.files import make_folder, open_own, storage_errors, sweep, write_text
from napari_slicelabel.data.reading import open_file, read_json
from napari_slicelabel.engine.events import Progress
from napari_slicelabel.engine.select.candidates import Stack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project
    from napari_slicelabel.data.volume import Volume

SIDE_PX = 96
"""Height and width of a thumbnail, whatever the shape of the slices."""

_VERSION = 1
_SAVE_EVERY = 64


@dataclass(frozen=True)
class Thumbnails:
    """The slices of a stack, small.

    Attributes
    ----------
    stack : Stack
        Which slices.
    pictures : ndarray of shape (n, c, SIDE_PX, SIDE_PX), uint8
        From the robust minimum (0) to the robust maximum (255) of the volume; mapped from disk.
    fingerprint : str
        What tells whether the image is still the one that they were made of.
    """

    stack: Stack
    pictures: "NDArray[np.uint8]"
    fingerprint: str


def make_thumbnails(project: "Project", stack: Stack) -> Generator[Progress, None, Thumbnails]:
    """Read a stack once, slice by slice, and keep its thumbnails in the project.

    Parameters
    ----------
    project : Project
        Keeps them in ``selection/thumbnails``; what is there from before is used, also a part of it.
    stack : Stack
        Which slices.

    Yields
    ------
    Progress
        After each slice.

    Returns
    -------
    Thumbnails

    Raises
    ------
    InputError
        The image holds NaN, or is constant.
    StorageError
        The image cannot be read, or the disk is full.
    """
    volume = project.volume(stack.volume)
    folder = project.path / "selection" / "thumbnails"
    file, note = (folder / f"{stack.volume}-{stack.axis}{suffix}" for suffix in (".npy", ".json"))
    facts = {"version": _VERSION, "source": _fingerprint(volume), "slices": stack.depth, "channels": volume.channels}
    make_folder(folder)
    sweep(folder)
    shape = (stack.depth, volume.channels, SIDE_PX, SIDE_PX)
    done = _done(note, file, facts, shape)
    stage = f"look at {stack.volume} {stack.axis}"
    # written as a file: a memory map of blocks that a full disk does not have would end the process
    with storage_errors(file), _open_at(file, done, shape) as pictures:
        for index in range(done, stack.depth):
            pictures.write(small_picture(volume, SliceRef(stack.axis, index)).tobytes())
            if (index + 1) % _SAVE_EVERY == 0 or index + 1 == stack.depth:
                pictures.flush()
                write_text(note, json.dumps({**facts, "done": index + 1}))
            yield Progress(stage, index + 1, stack.depth)
    with storage_errors(file, "read"):
        return Thumbnails(stack, np.load(file, mmap_mode="r"), str(facts["source"]))


def small_picture(volume: "Volume", ref: SliceRef) -> "NDArray[np.uint8]":
    """Return the thumbnail of a slice, shape (c, SIDE_PX, SIDE_PX).

    Raises
    ------
    InputError
        The image holds NaN, or is constant.
    StorageError
        The image cannot be read.
    """
    scale = volume.intensity()
    low, high = (np.asarray(values, np.float32)[:, None, None] for values in (scale.low, scale.high))
    plane = volume.read_slice(ref)[:, 0].astype(np.float32)
    shares = np.clip((plane - low) / np.maximum(high - low, np.float32(1e-12)), 0, 1)
    rows, columns = map(_means, shares.shape[1:])
    picture: NDArray[np.uint8] = np.rint(255 * (rows @ shares @ columns.T)).astype(np.uint8)
    return picture


@lru_cache(8)
def _means(size: int) -> "NDArray[np.float32]":
    """Return the matrix, shape (SIDE_PX, size), that brings `size` pixels to SIDE_PX means over all that each touches.

    A product with it, not torch's pooling, which does the same: who wants equal intervals need not wait for torch.
    """
    places, numbers = np.arange(size), np.arange(SIDE_PX)[:, None]
    touched = (places >= numbers * size // SIDE_PX) & (places < -(-(numbers + 1) * size // SIDE_PX))
    means: NDArray[np.float32] = (touched / touched.sum(1, keepdims=True)).astype(np.float32)
    return means


def _fingerprint(volume: "Volume") -> str:
    """Return what tells whether the image is still the one that was looked at."""
    path = Path(volume.source.split("::")[0])
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    return f"{volume.source}|{volume.shape}|{volume.dtype}|{changed}"


def _done(note: Path, file: Path, facts: dict[str, object], shape: tuple[int, ...]) -> int:
    """Return how many thumbnails are on disk and right."""
    try:
        known = read_json(note)
        right = {key: known[key] for key in facts} == facts
        done = int(known["done"])
        enough = file.stat().st_size >= _offset(file, shape) + done * math.prod(shape[1:])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, EOFError):
        return 0
    return done if right and enough and 0 < done <= shape[0] else 0


def _offset(file: Path, shape: tuple[int, ...]) -> int:
    """Return where the values of a .npy file begin; ValueError if it holds others than these."""
    with open_file(file) as opened:
        if np.lib.format.read_magic(opened) != (1, 0):
            raise ValueError("not of version 1.0")
        found, fortran, dtype = np.lib.format.read_array_header_1_0(opened)
        if found != shape or fortran or dtype != np.uint8:
            raise ValueError(f"{dtype} of shape {found}")
        return opened.tell()


def _open_at(file: Path, done: int, shape: tuple[int, ...]) -> IO[bytes]:
    """Open a .npy file to be written behind the first `done` pictures; a new one if there is none."""
    if done:
        opened = open_own(file, "r+b")
        opened.seek(_offset(file, shape) + done * math.prod(shape[1:]))
        return opened
    opened = open_own(file, "wb")
    np.lib.format.write_array_header_1_0(opened, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return opened
