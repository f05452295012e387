"""Volumes as 3D networks see them: blocks with the axis of the run first, and predictions from overlapping tiles."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from napari_slicelabel.data.boxes import AXES, Box
from napari_slicelabel.engine.fit import autocast, memory_format, working_dtype
from napari_slicelabel.engine.planes import normalised
from napari_slicelabel.engine.predict import Band, Tiling, finite
from napari_slicelabel.engine.scratch import Scratch
from napari_slicelabel.engine.shapes import between
from napari_slicelabel.errors import DeviceError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from napari_slicelabel.data.boxes import Axis
    from napari_slicelabel.data.volume import Volume
    from napari_slicelabel.engine.shapes import Shapes

# Weighted probabilities are summed as whole numbers: then no order of tiles changes a result. 4096 leaves room for the
# eight tiles that may meet in a voxel, each weighing at most 2.
_ONE = 4096
_BAND_ROWS = 256
_SMALLEST_TILE_PX = 32
_LEAST_DEPTH = 4
_OVERLAP = 0.25
_MIRRORS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


def along(axis: "Axis", box: Box) -> Box:
    """Return a box (d, h, w), with the axis of the run first, as (z, y, x)."""
    number = AXES.index(axis)
    start, stop = list(box.start[1:]), list(box.stop[1:])
    start.insert(number, box.start[0])
    stop.insert(number, box.stop[0])
    return Box(tuple(start), tuple(stop))


@dataclass(frozen=True)
class BlockReader:
    """Reads what a 3D network sees of the image of a volume.

    Attributes
    ----------
    volume : Volume
        Read lazily.
    axis : {"z", "y", "x"}
        The axis of the run.
    coordinates : bool
        Whether the position in the volume is wanted as well.
    """

    volume: "Volume"
    axis: "Axis"
    coordinates: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Depth along the axis of the run, height and width."""
        return self.volume.depth(self.axis), *self.volume.plane_shape(self.axis)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxels along (d, h, w)."""
        spacing = list(self.volume.voxel_size)
        depth = spacing.pop(AXES.index(self.axis))
        return depth, spacing[0], spacing[1]

    def read(self, box: Box) -> "NDArray[np.float16]":
        """Return a block, shape (channels [+ 3], d, h, w), float16; see `normalised`.

        Raises
        ------
        InputError
            Values that are NaN or infinite.
        """
        block = np.moveaxis(self.volume.read(along(self.axis, box)), 1 + AXES.index(self.axis), 0)
        image = np.moveaxis(normalised(self.volume, self.axis, box.start[0], block), 0, 1)
        if not self.coordinates:
            return np.ascontiguousarray(image)
        places = [
            np.linspace(-1, 1, n).astype(np.float16)[part] if n > 1 else np.zeros(1, np.float16)
            for n, part in zip(self.shape, box.slices, strict=True)
        ]
        return np.concatenate([image, np.stack(np.meshgrid(*places, indexing="ij"))])


class ShapeBlocks:
    """The shapes of labelled slices, and between them, as blocks.

    Parameters
    ----------
    shapes : Shapes
        Of one volume.
    beyond : callable
        Returns the anchors that do not speak for a slice.
    shape : tuple of 3 int
        Of the volume, (d, h, w).
    scratch : Path
        Where the distances at the anchors may lie; they are computed once.
    """

    def __init__(
        self,
        shapes: "Shapes",
        beyond: "Callable[[int], Collection[int]]",
        shape: tuple[int, int, int],
        scratch: Path,
    ) -> None:
        self.anchors = shapes.anchors
        self._classes, self._depth = len(shapes.classes), shape[0]
        self._beyond = beyond
        self._place = {anchor: number for number, anchor in enumerate(self.anchors)}
        self._kept = Scratch(scratch, (max(1, len(self.anchors)), len(shapes.classes), *shape[1:]), np.float16)
        for anchor, number in self._place.items():
            self._kept.write(number, shapes.at(anchor))

    def read(self, box: Box, without: Collection[int] = ()) -> "NDArray[np.float16]":
        """Return the signed distances that labelled slices tell of a block.

        Parameters
        ----------
        box : Box
            (d, h, w).
        without : collection of int
            Anchors that are not used, not even for themselves.

        Returns
        -------
        ndarray of shape (classes, d, h, w), float16
            At an anchor its own; elsewhere as `Shapes.around`; 0 where nothing speaks for or against a class.
        """
        found = np.zeros((self._classes, *box.shape), np.float16)
        planes: dict[int, NDArray[np.float16]] = {}

        def at(anchor: int) -> "NDArray[np.float16]":
            if anchor not in planes:
                planes[anchor] = self._kept.read(self._place[anchor], *box.slices[1:])
            return planes[anchor]

        for number, index in enumerate(range(box.start[0], box.stop[0])):
            ends = self._ends(index, {*without, *self._beyond(index)})
            if ends is None:
                continue
            lower, upper = ends
            if lower == upper:
                found[:, number] = at(lower)
            else:
                found[:, number] = between(at(lower), at(upper), (index - lower) / (upper - lower))
        return found

    def _ends(self, index: int, without: Collection[int]) -> tuple[int, int] | None:
        if index in self._place and index not in without:
            return index, index
        left = [anchor for anchor in self.anchors if anchor not in without]
        lower, upper = [a for a in left if a < index], [a for a in left if a > index]
        if not left:
            return None
        return (lower or upper[:1])[-1], (upper or lower[-1:])[0]

    def __getstate__(self) -> dict[str, object]:
        """Return what a process of another device needs: a table in the place of the function."""
        table = {index: frozenset(self._beyond(index)) for index in range(self._depth)}
        return {**self.__dict__, "_beyond": table.__getitem__}

    def close(self) -> None:
        """Give the room back."""
        self._kept.close()


class BlockPredictor:
    """The class probabilities of a volume, from overlapping 3D tiles, one plane at a time and in any order.

    Parameters
    ----------
    network : Module
        Takes (b, c, d, h, w), returns logits; in evaluation mode, on `device`.
    read : callable
        Takes a box (d, h, w), returns the input there, float16.
    shape : tuple of 3 int
        Of the volume.
    channels : int
        Classes and background.
    tile, stride : tuple of 3 int
        Largest tile; what its sizes are padded to multiples of.
    device : torch.device
        Where the network runs.
    scratch : Path
        Where sums may lie that are too large for memory.
    mirror : bool
        Whether to predict the mean over four mirror images in the plane.
    wanted : callable
        Says of a box whether anything in it is asked for; other tiles are left out.
    window : Box, optional
        The part (d, h, w) that is asked for, by default all. It changes which tiles are predicted, and no result.
    in_order : bool
        Promises that planes are asked for from the first to the last, each released before the next, though some may
        be left out: sums are kept of as many planes as a tile has.

    Notes
    -----
    Tiles overlap by a quarter and are blended linearly. Their sums lie in a `Scratch`: memory does not grow with the
    volume. Without `in_order` planes can be asked for in any order; it changes no result.
    """

    def __init__(
        self,
        network: "nn.Module",
        read: "Callable[[Box], NDArray[np.float16]]",
        shape: tuple[int, int, int],
        channels: int,
        *,
        tile: tuple[int, int, int],
        stride: tuple[int, int, int],
        device: torch.device,
        scratch: Path,
        mirror: bool = False,
        wanted: Callable[[Box], bool] = lambda _: True,
        window: Box | None = None,
        in_order: bool = False,
    ) -> None:
        self._network, self._read, self._wanted = network, read, wanted
        self._shape, self._channels = shape, channels
        self._window = window or Box.whole(shape)
        self._in_order = in_order
        self._tile, self._stride = tile, stride
        self._device, self._mirror = device, mirror
        self._path = scratch
        self._begin()

    def _begin(self) -> None:
        self._tilings = [tiling(length, tile) for length, tile in zip(self._shape, self._tile, strict=True)]
        self._done: set[tuple[int, int, int]] = set()
        depth, height, width = self._window.shape
        # in order, no tile reaches further from the plane that is asked for than it is deep
        self._kept = min(depth, self._tilings[0].size) if self._in_order else depth
        self._sums = Scratch(self._path, (self._kept, self._channels, height, width), np.uint16)
        self._front = self._window.start[0]

    def prepare(self, index: int) -> Iterator[tuple[int, int]]:
        """Predict the tiles that a plane lies in, yielding in between how many of how many are done.

        Raises
        ------
        DeviceError
            The GPU's memory is full even with small tiles.
        """
        if self._in_order:
            # what lies before is not asked for again, and its place is needed for what comes
            for passed in range(max(self._front, index - self._kept), index):
                self.release(passed)
        at_once = 2 if _goes_in_pairs(self._device) else 1
        while True:
            todo = [numbers for numbers in self._numbers(index) if numbers not in self._done]
            try:
                for first in range(0, len(todo), at_once):
                    together = todo[first : first + at_once]
                    self._add(together, index if self._in_order else 0)
                    self._done.update(together)
                    yield first + len(together), len(todo)
            except torch.OutOfMemoryError as error:
                self._shrink(error)
            else:
                return

    def bands(self, index: int) -> Iterator[Band]:
        """Yield the probabilities of a plane from top to bottom, once it is prepared; 0 where nothing was asked for.

        Rows are counted from the top of the window.
        """
        height = self._window.shape[1]
        for top in range(0, height, _BAND_ROWS):
            rows = slice(top, min(height, top + _BAND_ROWS))
            sums = self._sums.read(self._place(index), rows).astype(np.float32)
            yield Band(rows, sums / np.maximum(sums.sum(0, keepdims=True), 1))

    def release(self, index: int) -> None:
        """Forget a plane that is not asked for again."""
        self._sums.release(self._place(index))
        self._front = max(self._front, index + 1)

    def close(self) -> None:
        """Give the room back."""
        self._sums.close()

    def _place(self, index: int) -> int:
        """Return where the sums of a plane lie."""
        return (index - self._window.start[0]) % self._kept

    def _numbers(self, index: int) -> Iterator[tuple[int, int, int]]:
        wanted = [(index, index + 1), *zip(self._window.start[1:], self._window.stop[1:], strict=True)]
        touching = (tiling.touching(*span) for tiling, span in zip(self._tilings, wanted, strict=True))
        for deep, down, across in product(*touching):
            numbers = (deep, down, across)
            if self._wanted(self._box(numbers)):
                yield numbers

    def _box(self, numbers: tuple[int, int, int]) -> Box:
        start = tuple(tiling.starts[number] for tiling, number in zip(self._tilings, numbers, strict=True))
        return Box(start, tuple(a + tiling.size for a, tiling in zip(start, self._tilings, strict=True)))

    def _add(self, tiles: Sequence[tuple[int, int, int]], first: int) -> None:
        """Predict some tiles, and add what they say of the window from plane `first` on."""
        blocks = np.stack([self._read(self._box(numbers)) for numbers in tiles])
        found = predict_blocks(self._network, blocks, self._device, stride=self._stride, mirror=self._mirror)
        for numbers, probability in zip(tiles, found, strict=True):
            self._add_one(numbers, probability, first)

    def _add_one(self, numbers: tuple[int, int, int], probability: "NDArray[np.float32]", first: int) -> None:
        box = self._box(numbers)
        deep, down, across = (tiling.ramp(n) for tiling, n in zip(self._tilings, numbers, strict=True))
        weight = _ONE * down[:, None] * across[None]
        inside = box.intersect(self._window)
        _, down_own, across_own = _within(inside, box).slices
        weight = weight[down_own, across_own]
        _, rows, columns = _within(inside, self._window).slices
        for index in range(max(first, inside.start[0]), inside.stop[0]):
            depth, place = index - box.start[0], self._place(index)
            values = np.rint(probability[:, depth, down_own, across_own] * (weight * deep[depth])).astype(np.uint16)
            self._sums.write(place, self._sums.read(place, rows, columns) + values, rows, columns)

    def _shrink(self, error: torch.OutOfMemoryError) -> None:
        """Begin again with tiles of half the height and width."""
        deep, height, width = self._tile
        if max(height, width) <= _SMALLEST_TILE_PX:
            raise DeviceError(
                f"the memory of {self._device} is full even with tiles of {self._tile} voxels; close other programs"
                " that use the GPU, or use device=cpu"
            ) from error
        torch.cuda.empty_cache()
        self._sums.close()
        self._tile = (deep, max(_SMALLEST_TILE_PX, height // 2), max(_SMALLEST_TILE_PX, width // 2))
        self._begin()


def tiling(length: int, tile: int) -> Tiling:
    """Return the tiles of at most `tile` along an axis: they overlap by a quarter."""
    return Tiling.over(length, tile, max(1, round(_OVERLAP * tile)))


def _within(box: Box, outer: Box) -> Box:
    """Return a box as it is counted from the corner of another one."""
    start, stop = (tuple(a - b for a, b in zip(end, outer.start, strict=True)) for end in (box.start, box.stop))
    return Box(start, stop)


def _goes_in_pairs(device: torch.device) -> bool:
    """Return whether blocks are predicted two at a time.

    Of a single float32 block on a CPU, torch (2.14, ``ConvParams::use_mkldnn``) convolves layers whose channels x depth
    x height is at most 20,480 in plain loops. A pair goes through oneDNN: an eighth of the time for each.
    """
    return device.type == "cpu" and working_dtype(device) == torch.float32


@torch.inference_mode()
def predict_blocks(
    network: "nn.Module",
    x: "NDArray[np.float16]",
    device: torch.device,
    *,
    stride: tuple[int, int, int],
    mirror: bool = False,
) -> "NDArray[np.float32]":
    """Return the class probabilities of some blocks; what a block gets does not depend on the others.

    Parameters
    ----------
    network : Module
        In evaluation mode.
    x : ndarray of shape (b, in_channels, d, h, w), float16
        Of any size.
    device : torch.device
        Where the network is.
    stride : tuple of 3 int
        What sizes are padded to multiples of.
    mirror : bool
        As in `BlockPredictor`.

    Returns
    -------
    ndarray of shape (b, classes + 1, d, h, w), float32
    """
    count, size = len(x), x.shape[2:]
    missing = [-n % s for n, s in zip(size, stride, strict=True)]
    tensor: Tensor = torch.from_numpy(x).to(device).float()
    if any(missing):
        tensor = functional.pad(tensor, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")
    if count == 1 and _goes_in_pairs(device):
        # twice the same takes a quarter of the time that one takes alone
        tensor = tensor.expand(2, *tensor.shape[1:])
    total = torch.zeros((), device=device)
    for dims in _MIRRORS if mirror else _MIRRORS[:1]:
        with autocast(device):
            logits = network(tensor.flip(dims).contiguous(memory_format=memory_format(device, 3, predicting=True)))
        total = total + logits.float().softmax(1).flip(dims)
    probability: NDArray[np.float32] = total[:count, :, : size[0], : size[1], : size[2]].cpu().numpy()
    probability /= probability.sum(1, keepdims=True)
    return finite(probability)


def crop_size(size: Sequence[int], stride: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the size of crops to train on: multiples of a stride, with at least 4 features along the depth.

    torch 2.15 computes the weight gradient of 3x3x3 convolutions in bfloat16 on CPUs wrongly (also as NaN) where the
    depth is 2.
    """
    d, h, w = (math.ceil(n / s) * s for n, s in zip(size, stride, strict=True))
    return max(d, _LEAST_DEPTH * stride[0]), h, w
