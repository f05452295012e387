"""Every slice of a stack as a small picture: what slices are compared by, and what lists show."""

import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.files import storage_errors, write_text
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
_AT_ONCE = 256

# A missing section, a fold, a slice from elsewhere: so many robust deviations below what neighbours usually agree.
_OUTLIER = 8.0
_LEAST_FALL = 0.2


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

    def unusable(self) -> dict[int, str]:
        """Return the slices that should not be proposed, and why.

        Returns
        -------
        dict of int to str
            ``empty``: one value everywhere. ``unlike its neighbours``: it correlates with the slices on both sides far
            less than they correlate with each other, as a missing section, a fold or a scratch does.
        """
        length, step, over = self._contrast()
        found = {int(index): "empty" for index in np.flatnonzero(length == 0)}
        if len(length) < 5:
            return found
        # of slice j: the better of its two neighbours, against how well these agree without it
        fall = over - np.maximum(step[:-1], step[1:])
        middle = float(np.median(fall))
        usual = 1.4826 * float(np.median(np.abs(fall - middle)))
        for number in np.flatnonzero(fall > max(middle + _OUTLIER * usual, _LEAST_FALL)):
            found.setdefault(int(number) + 1, "unlike its neighbours")
        return found

    def _contrast(self) -> "tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]":
        """Return the contrast of each slice, and its correlation with the next one and with the one after that."""
        count = len(self.pictures)
        parts = []
        for first in range(0, count, _AT_ONCE):
            flat = self.pictures[first : first + _AT_ONCE + 2].reshape(min(_AT_ONCE + 2, count - first), -1)
            centred = flat - flat.mean(1, keepdims=True, dtype=np.float32)
            length = np.linalg.norm(centred, axis=1)
            unit = centred / np.maximum(length, 1e-6)[:, None]
            step, over = (np.einsum("nd,nd->n", unit[:-n], unit[n:]) for n in (1, 2))
            parts.append([values[:_AT_ONCE] for values in (length, step, over)])
        length, step, over = (np.concatenate(values) for values in zip(*parts, strict=True))
        return length, step, over


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
        pictures[index] = _small(volume, SliceRef(stack.axis, index))
        if (index + 1) % _SAVE_EVERY == 0 or index + 1 == stack.depth:
            with storage_errors(file):
                pictures.flush()
            write_text(note, json.dumps({**facts, "done": index + 1}))
        yield Progress(stage, index + 1, stack.depth)
    with storage_errors(file, "read"):
        return Thumbnails(stack, np.load(file, mmap_mode="r"), str(facts["source"]))


def _small(volume: "Volume", ref: SliceRef) -> "NDArray[np.uint8]":
    scale = volume.intensity()
    low, high = (np.asarray(values, np.float32)[:, None, None] for values in (scale.low, scale.high))
    plane = volume.read_slice(ref)[:, 0].astype(np.float32)
    shares = np.clip((plane - low) / np.maximum(high - low, np.float32(1e-12)), 0, 1)
    small = functional.interpolate(torch.from_numpy(shares)[None], (SIDE_PX, SIDE_PX), mode="area")[0].numpy()
    picture: NDArray[np.uint8] = np.rint(255 * small).astype(np.uint8)
    return picture


def _fingerprint(volume: "Volume") -> str:
    """Return what tells whether the image is still the one that was looked at."""
    path = Path(volume.source.split("::")[0])
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    return f"{volume.source}|{volume.shape}|{volume.dtype}|{changed}"


def _done(note: Path, file: Path, facts: dict[str, object]) -> int:
    """Return how many thumbnails are on disk and right."""
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    if not file.is_file() or {key: known.get(key) for key in facts} != facts:
        return 0
    return int(known.get("done", 0))
