"""Training crops for 3D networks, cut from labelled blocks of volumes that are read lazily."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from napari_slicelabel.data.boxes import Box
from napari_slicelabel.engine.augment import Augmentation, random_grids, vary_intensity
from napari_slicelabel.engine.devices import on_device
from napari_slicelabel.engine.losses import IGNORE
from napari_slicelabel.engine.sampling import Batch
from napari_slicelabel.engine.shapes import between

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = (64, 512, 512)
"""Volumes larger than this are read in parts, so that a fixed memory can hold parts of many."""

# A window is cut larger than the crop by this factor, where there is as much: what rotation and zoom can reach.
_REACH = 1.35
# Positions kept per class and block to centre crops on.
_MOST_POSITIONS = 4096


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a volume that a network may learn from.

    Attributes
    ----------
    volume : str
        Which one.
    box : Box
        Where, (d, h, w).
    image : ndarray of shape (c, d, h, w), float16
        Intensities, coordinates, and whatever else is given for the whole volume.
    targets : ndarray of shape (n, d, h, w), uint8
        Output channel numbers; 255 = unknown. Several where there are several sets of pseudo-labels to choose from;
        what a human painted is the same in all.
    human : ndarray of shape (d, h, w), bool
        Where a human painted it.
    """

    volume: str
    box: Box
    image: "NDArray[np.float16]"
    targets: "NDArray[np.uint8]"
    human: "NDArray[np.bool_]"

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.image.nbytes + self.targets.nbytes + self.human.nbytes


@dataclass(frozen=True, slots=True)
class BlockSampling:
    """How crops are drawn.

    Attributes
    ----------
    crop : tuple of 3 int
        Size of a crop, multiples of the network's stride.
    foreground : float
        Share of the crops that are centred on a class, each class as often as the others.
    human : float
        Least share of the crops that are centred on what a human painted, once there are pseudo-labels.
    pseudo_weight : float
        Weight of a voxel that no human painted.
    shape_mix : tuple of 2 float
        As in `SamplingConfig`, for crops that are centred on an annotated slice.
    shape_dropout : float
        Share of the crops without shapes, from which the network learns to do without.
    augmentation : Augmentation
        How crops are varied: geometry in the plane, and along the axis of the run by mirroring.
    """

    crop: tuple[int, int, int]
    foreground: float
    human: float
    pseudo_weight: float
    shape_mix: tuple[float, float]
    shape_dropout: float
    augmentation: Augmentation


class ShapesOf:
    """What `BlockPool` asks for the shapes of labelled slices; this one knows of none.

    Attributes
    ----------
    classes : int
        Channels of a block of shapes.
    """

    classes = 0

    def read(self, volume: str, box: Box, without: Collection[int] = ()) -> "NDArray[np.float16]":
        """Return the shapes in a block, (classes, d, h, w), without those of some slices."""
        return np.zeros((0, *box.shape), np.float16)

    def anchors(self, volume: str) -> Collection[int]:
        """Return the slices whose own shapes are known."""
        return ()


class BlockPool:
    """Labelled blocks in memory, and the batches cut from them.

    Parameters
    ----------
    blocks : iterator of Block
        At least one with something known; consumed until the budget is spent: the order is the priority.
    image_channels : int
        Leading channels that hold intensities; only those are varied in intensity.
    shapes : ShapesOf
        Shapes of labelled slices, read for each crop.
    config : BlockSampling
        How crops are drawn.
    device : torch.device
        Where batches go.
    budget_bytes : int
        Blocks beyond it are not read; the first one always is.
    rng : numpy.random.Generator
        Draws everything but noise and elastic fields, which come from torch.
    """

    def __init__(
        self,
        blocks: Iterator[Block],
        image_channels: int,
        shapes: ShapesOf,
        config: BlockSampling,
        device: torch.device,
        budget_bytes: int,
        rng: np.random.Generator,
    ) -> None:
        self.config = config
        self._image_channels, self._shapes = image_channels, shapes
        self._device, self._rng = device, rng
        kept = []
        for block in blocks:
            kept.append(block)
            if sum(other.nbytes for other in kept) > budget_bytes:
                break
        largest = [max(sizes) for sizes in zip(*(block.box.shape[1:] for block in kept), strict=True)]
        reach = [math.ceil(size * _REACH) for size in config.crop[1:]]
        # no more than there is: what is not in the window is continued from its border
        self._window = (config.crop[0], *map(min, reach, largest))
        self._human = _Places([(block, block.human & (block.targets[0] != IGNORE)) for block in kept], rng)
        self._machine = _Places([(block, ~block.human & (block.targets[0] != IGNORE)) for block in kept], rng)

    @property
    def crop(self) -> tuple[int, int, int]:
        """Size of a crop."""
        return self.config.crop

    def draw(self, count: int) -> Batch:
        """Return a new batch of `count` crops on the device; with n > 1 sets its target is (b, n, d, h, w)."""
        rng, config = self._rng, self.config
        depth, height, width = config.crop
        crops = [self._cut() for _ in range(count)]

        def stacked(arrays: "Sequence[NDArray[np.generic]]") -> Tensor:
            return on_device(torch.stack([torch.from_numpy(array) for array in arrays]), self._device)

        x = stacked([image for image, _, _, _ in crops]).float()
        # uint8 wraps round: 255, unknown, becomes 0, which is what grid_sample gives outside the window
        shifted = stacked([targets + np.uint8(1) for _, targets, _, _ in crops])
        human = stacked([human for _, _, human, _ in crops])
        centres = np.array([centre for *_, centre in crops])
        grids = random_grids(config.augmentation, (height, width), self._window[1:], centres, rng, self._device)

        def warped(values: Tensor, mode: str, padding: str) -> Tensor:
            # the same in every plane: planes are channels of one 2D interpolation
            flat = functional.grid_sample(
                values.flatten(1, 2), grids, mode=mode, padding_mode=padding, align_corners=False
            )
            return flat.view(count, -1, depth, height, width)

        x = warped(x, "bilinear", "border")
        labels = warped(torch.cat([shifted, human[:, None]], 1).float(), "nearest", "zeros")
        targets = labels[:, :-1].to(torch.uint8) - 1
        weight = torch.where(labels[:, -1] > 0, 1.0, config.pseudo_weight)
        if config.augmentation.flips and rng.random() < 0.5:
            x, targets, weight = x.flip(2), targets.flip(2), weight.flip(1)
        images = x[:, : self._image_channels]
        varied = vary_intensity(images.flatten(1, 2), config.augmentation, rng).view_as(images)
        return Batch(torch.cat([varied, x[:, self._image_channels :]], 1), targets.squeeze(1), weight)

    def _cut(self) -> "tuple[NDArray[np.float16], NDArray[np.uint8], NDArray[np.bool_], tuple[float, ...]]":
        """Return a window around a place that is drawn: input (c, ...), targets (n, ...), who painted it, and where.

        The last are the crop's centre in the plane, in pixels of the window.
        """
        rng, config = self._rng, self.config
        use_human = not self._machine or (bool(self._human) and rng.random() < config.human)
        block, place = (self._human if use_human else self._machine).draw(config.foreground)
        start, centre = [], []
        for size, window, crop, wanted in zip(block.box.shape, self._window, config.crop, place, strict=True):
            middle = int(wanted) + int(rng.integers(-crop // 4, crop // 4 + 1))
            # the crop stays inside, and so does the window around it where the block is large enough
            middle = size // 2 if size <= crop else min(max(middle, crop // 2), size - crop // 2)
            start.append(middle - window // 2 if size < window else min(max(middle - window // 2, 0), size - window))
            centre.append(float(middle - start[-1]))
        around = Box(tuple(start), tuple(a + n for a, n in zip(start, self._window, strict=True)))
        inside = around.clip(block.box.shape)
        pads = [(b - a, d - c) for a, b, c, d in zip(around.start, inside.start, inside.stop, around.stop, strict=True)]
        image = block.image[:, *inside.slices]
        targets, human = block.targets[:, *inside.slices], block.human[inside.slices]
        if self._shapes.classes:
            box = Box(
                *(
                    tuple(a + b for a, b in zip(end, block.box.start, strict=True))
                    for end in (inside.start, inside.stop)
                )
            )
            index = int(place[0]) + block.box.start[0]
            shape, told = self._shape(block.volume, box, index if use_human else None)
            image = np.concatenate([image, shape])
            # a slice whose own shape the network is shown teaches nothing
            targets = targets.copy()
            targets[:, [plane - box.start[0] for plane in told]] = IGNORE
        if any(pad != (0, 0) for pad in pads):
            image = np.pad(image, [(0, 0), *pads], mode="edge")
            targets = np.pad(targets, [(0, 0), *pads], constant_values=IGNORE)
            human = np.pad(human, pads)
        parts = (np.ascontiguousarray(image), np.ascontiguousarray(targets), np.ascontiguousarray(human))
        return *parts, tuple(centre[1:])

    def _shape(self, volume: str, box: Box, index: int | None) -> "tuple[NDArray[np.float16], list[int]]":
        """Return the shapes that a crop is shown, and the slices that give themselves away by them."""
        rng, config = self._rng, self.config
        if rng.random() < config.shape_dropout:
            return np.zeros((self._shapes.classes, *box.shape), np.float16), []
        anchors = [anchor for anchor in self._shapes.anchors(volume) if box.start[0] <= anchor < box.stop[0]]
        shape = self._shapes.read(volume, box)
        if index in anchors:
            other = self._shapes.read(volume, box, {index})
            shape = between(shape, other, rng.uniform(*config.shape_mix))
            anchors.remove(index)
        return shape, anchors


class _Places:
    """Voxels to centre crops on."""

    def __init__(self, blocks: "Sequence[tuple[Block, NDArray[np.bool_]]]", rng: np.random.Generator) -> None:
        self._rng = rng
        self._all: list[tuple[Block, NDArray[np.int64]]] = []
        self._by_channel: dict[int, list[tuple[Block, NDArray[np.int64]]]] = {}
        for block, mask in blocks:
            flat = np.flatnonzero(mask)
            if not len(flat):
                continue
            self._all.append((block, self._some(flat)))
            channels = block.targets[0].ravel()[flat]
            for channel in np.unique(channels):
                if channel:
                    places = self._some(flat[channels == channel])
                    self._by_channel.setdefault(int(channel), []).append((block, places))

    def __bool__(self) -> bool:
        return bool(self._all)

    def draw(self, foreground: float) -> "tuple[Block, NDArray[np.intp]]":
        """Return a block and a place in it (d, h, w)."""
        rng = self._rng
        choices = self._all
        if self._by_channel and rng.random() < foreground:
            channels = sorted(self._by_channel)
            choices = self._by_channel[channels[int(rng.integers(len(channels)))]]
        block, places = choices[int(rng.integers(len(choices)))]
        return block, np.array(np.unravel_index(places[int(rng.integers(len(places)))], block.human.shape))

    def _some(self, flat: "NDArray[np.int64]") -> "NDArray[np.int64]":
        if len(flat) <= _MOST_POSITIONS:
            return flat
        return flat[self._rng.choice(len(flat), _MOST_POSITIONS, replace=False)]


def block_boxes(shape: tuple[int, int, int], planes: range) -> Iterator[Box]:
    """Yield the boxes (d, h, w) of at most `BLOCK` that cover some planes of a volume."""
    yield from Box((planes.start, 0, 0), (planes.stop, *shape[1:])).tiles(BLOCK)
