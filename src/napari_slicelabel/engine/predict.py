"""Predicting a slice: whole when it is small, in blended tiles when it is large."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from napari_slicelabel.engine.fit import autocast, memory_format
from napari_slicelabel.errors import DeviceError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.engine.networks import SliceNetwork

T = TypeVar("T")

TILE_PX = 1024
OVERLAP_PX = 96
_SMALLEST_TILE_PX = 128
_MIRRORS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


class Band(NamedTuple):
    """Rows of a slice, finished: `probability` has shape (classes + 1, rows, w), float32, and sums to 1."""

    rows: slice
    probability: "NDArray[np.float32]"


class Tiling(NamedTuple):
    """Tiles along one axis: evenly spread, so that the last one is no special case."""

    starts: tuple[int, ...]
    size: int

    @classmethod
    def over(cls, length: int, tile: int, overlap: int) -> "Tiling":
        """Return tiles of at most `tile` that cover `length`, overlapping by at least `overlap` where more than one."""
        if length <= tile:
            return cls((0,), length)
        count = math.ceil((length - overlap) / (tile - overlap))
        return cls(tuple(round(number * (length - tile) / (count - 1)) for number in range(count)), tile)

    def touching(self, first: int, end: int) -> list[int]:
        """Return the numbers of the tiles that hold anything of ``first .. end``."""
        return [number for number, start in enumerate(self.starts) if start < end and start + self.size > first]

    def ramp(self, number: int) -> "NDArray[np.float32]":
        """Return the weight of tile `number` along it: 1 in the middle, falling linearly where it meets a neighbour."""
        position = np.arange(self.size, dtype=np.float32) + 0.5
        weight = np.ones(self.size, np.float32)
        if number > 0:
            shared = self.starts[number - 1] + self.size - self.starts[number]
            weight = np.minimum(weight, position / shared)
        if number + 1 < len(self.starts):
            shared = self.starts[number] + self.size - self.starts[number + 1]
            weight = np.minimum(weight, (self.size - position) / shared)
        return weight


def predict_bands(
    network: "SliceNetwork",
    read: "Callable[[slice, slice], NDArray[np.float16]]",
    shape: tuple[int, int],
    device: torch.device,
    *,
    tile: int = TILE_PX,
    overlap: int = OVERLAP_PX,
    mirror: bool = True,
) -> Iterator[Band]:
    """Yield the class probabilities of a slice from top to bottom.

    Parameters
    ----------
    network : SliceNetwork
        In evaluation mode, on `device`.
    read : callable
        Takes rows and columns, returns the input there, shape (in_channels, h, w), float16.
    shape : tuple of 2 int
        Height and width of the slice.
    device : torch.device
        Where the network runs.
    tile, overlap : int
        Largest tile, and least overlap between two, in pixels.
    mirror : bool
        False: without the mirror images that the network's config may ask for; four times as fast.

    Yields
    ------
    Band
        Together they are the slice; memory holds one row of tiles.
    """
    down, across = Tiling.over(shape[0], tile, overlap), Tiling.over(shape[1], tile, overlap)
    carried: NDArray[np.float32] | None = None
    for row, top in enumerate(down.starts):
        rows = slice(top, top + down.size)
        total = np.zeros((1 + len(network.config.classes), down.size, shape[1]), np.float32)
        for column, left in enumerate(across.starts):
            columns = slice(left, left + across.size)
            weight = down.ramp(row)[:, None] * across.ramp(column)[None]
            total[:, :, columns] += predict_tile(network, read(rows, columns), device, mirror=mirror) * weight
        if carried is not None:
            total[:, : carried.shape[1]] += carried
        # rows that no later tile touches are finished
        end = down.starts[row + 1] if row + 1 < len(down.starts) else top + down.size
        done, carried = total[:, : end - top], total[:, end - top :]
        yield Band(slice(top, end), done / done.sum(0, keepdims=True))


def with_smaller_tiles(work: "Callable[[int], T]", device: torch.device) -> "T":
    """Return ``work(tile)``, with half the tile for as long as the GPU's memory is full.

    Raises
    ------
    DeviceError
        It is full even with tiles of 128 pixels.
    """
    tile = TILE_PX
    while True:
        try:
            return work(tile)
        except torch.OutOfMemoryError as error:
            if tile <= _SMALLEST_TILE_PX:
                raise DeviceError(
                    f"the memory of {device} is full even with tiles of {tile} pixels; close other programs that use"
                    " the GPU, or use device=cpu"
                ) from error
        torch.cuda.empty_cache()
        tile //= 2


@torch.inference_mode()
def predict_tile(
    network: "SliceNetwork", x: "NDArray[np.float16]", device: torch.device, *, mirror: bool = True
) -> "NDArray[np.float32]":
    """Return class probabilities of a tile.

    Parameters
    ----------
    network : SliceNetwork
        In evaluation mode.
    x : ndarray of shape (in_channels, h, w), float16
        Any height and width.
    device : torch.device
        Where the network is.
    mirror : bool
        As in `predict_bands`.

    Returns
    -------
    ndarray of shape (classes + 1, h, w), float32
        With ``mirror`` in the network's config the mean over four mirror images.
    """
    height, width = x.shape[1:]
    pad = (0, -width % network.stride, 0, -height % network.stride)
    tensor: Tensor = torch.from_numpy(x).to(device).float()[None]
    if any(pad):
        tensor = functional.pad(tensor, pad, mode="replicate")
    # one after the other: four times the memory would be needed at once
    total = torch.zeros((), device=device)
    for dims in _MIRRORS if network.config.mirror and mirror else _MIRRORS[:1]:
        with autocast(device):
            logits = network(tensor.flip(dims).contiguous(memory_format=memory_format(device, predicting=True)))
        total = total + logits.softmax(1).flip(dims)
    probability: NDArray[np.float32] = total[0, :, :height, :width].cpu().numpy()
    probability /= probability.sum(0, keepdims=True)
    return finite(probability)


def finite(probability: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Return the probabilities of a tile as they are; InputError where the network gave no numbers."""
    if not np.isfinite(probability).all():
        raise InputError(
            "the network gives values that are no finite numbers: it is damaged, or did not learn; run the method again"
        )
    return probability
