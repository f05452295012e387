"""Every slice of a stack as a small picture: what slices are compared by, and what lists show."""

import json
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.files import storage_errors, write_text
from napari_slicelabel.data.reading import read_json
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
    with storage_errors(folder, "create"):
        folder.mkdir(parents=True, exist_ok=True)
    done = _done(note, file, facts)
    shape = (stack.depth, volume.channels, SIDE_PX, SIDE_PX)
    with storage_errors(file):
        pictures = np.lib.format.open_memmap(file, mode="r+" if done else "w+", dtype=np.uint8, shape=shape)
    stage = f"look at {stack.volume} {stack.axis}"
    for index in range(done, stack.depth):
        pictures[index] = small_picture(volume, SliceRef(stack.axis, index))
        if (index + 1) % _SAVE_EVERY == 0 or index + 1 == stack.depth:
            with storage_errors(file):
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


def _done(note: Path, file: Path, facts: dict[str, object]) -> int:
    """Return how many thumbnails are on disk and right."""
    try:
        known = read_json(note)
        right = {key: known[key] for key in facts} == facts
        done = int(known["done"])
        stored = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, EOFError):
        return 0
    shape = (facts["slices"], facts["channels"], SIDE_PX, SIDE_PX)
    fits = right and stored.dtype == np.uint8 and stored.shape == shape
    return done if fits and 0 < done <= stored.shape[0] else 0
