"""Training crops: supervised planes stay on the device, where batches are cut and augmented."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from napari_slicelabel.engine.augment import Augmentation, random_grids, vary_intensity
from napari_slicelabel.engine.devices import on_device
from napari_slicelabel.engine.losses import IGNORE

# Planes larger than this are cut, so that the pool's budget can hold parts of many planes rather than few whole ones.
TILE_PX = 1024

# A window is cut larger than the crop by this factor: what rotation and zoom can reach.
_REACH = 1.35

# Positions kept per class and patch to centre crops on.
_MOST_POSITIONS = 4096


@dataclass(frozen=True, slots=True)
class Plane:
    """A slice that a network may learn from.

    Attributes
    ----------
    image : ndarray of shape (c, h, w), float16
        Normalised intensities of the neighbouring slices, and coordinates.
    target : ndarray of shape (h, w), uint8
        Output channel numbers; 255 = unknown.
    weight : float
        Of each of its pixels in the loss.
    human : bool
        Whether a human painted it.
    own : ndarray of shape (k, h, w), float16, or None
        Signed distances of the slice's own labels; None for pseudo-labels.
    around : ndarray of shape (k, h, w), float16, or None
        Signed distances expected from the other labelled slices; None without shape classes.
    """

    image: NDArray[np.float16]
    target: NDArray[np.uint8]
    weight: float
    human: bool
    own: NDArray[np.float16] | None = None
    around: NDArray[np.float16] | None = None

    def tiles(self) -> Iterator["Plane"]:
        """Yield the plane in parts of at most `TILE_PX` that hold something known."""
        height, width = self.target.shape
        for rows in _even_parts(height):
            for columns in _even_parts(width):
                if (self.target[rows, columns] != IGNORE).any():
                    yield Plane(
                        self.image[:, rows, columns],
                        self.target[rows, columns],
                        self.weight,
                        self.human,
                        None if self.own is None else self.own[:, rows, columns],
                        None if self.around is None else self.around[:, rows, columns],
                    )

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        arrays = (self.image, self.target, self.own, self.around)
        return sum(array.nbytes for array in arrays if array is not None)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step learns from: `x` (b, c, h, w) float32, `target` (b, h, w) uint8, `weight` (b,) float32.

    Of 3D crops all have a d before the h, and there is a weight for each voxel.
    """

    x: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How crops are drawn.

    Attributes
    ----------
    crop : tuple of 2 int
        Height and width of a crop, multiples of the network's stride.
    foreground : float
        Share of the crops that are centred on a class, each class as often as the others.
    human : float
        Least share of the crops that come from human slices once there are pseudo-labels.
    shape_mix : tuple of 2 float
        The shape input of a human slice is ``own + m * (around - own)`` with m uniform between these. 1 is what the
        other annotated slices say, which lie twice as far away as those of a slice to be predicted; below 1 makes the
        error as small as it will be then.
    augmentation : Augmentation
        How crops are varied.
    shape_dropout : float
        Share of the crops that show no shapes.
    """

    crop: tuple[int, int]
    foreground: float
    human: float
    shape_mix: tuple[float, float]
    augmentation: Augmentation
    shape_dropout: float = 0.0


class PlanePool:
    """Supervised planes on the device, and the batches cut from them.

    Parameters
    ----------
    planes : iterator of Plane
        At least one human plane with something known. Consumed until the budget is spent: the order is the priority.
    image_planes : int
        Leading channels that hold intensities; only those are varied in intensity.
    config : SamplingConfig
        How crops are drawn.
    device : torch.device
        Where the planes stay.
    budget_bytes : int
        Planes beyond it are not even read; the first one always is.
    rng : numpy.random.Generator
        Draws everything but noise and elastic fields, which come from torch.
    """

    def __init__(
        self,
        planes: Iterator[Plane],
        image_planes: int,
        config: SamplingConfig,
        device: torch.device,
        budget_bytes: int,
        rng: np.random.Generator,
    ) -> None:
        self.config = config
        self._image_planes = image_planes
        self._rng = rng
        self._window = tuple(math.ceil(size * _REACH) for size in config.crop)
        patches = [
            _Patch(tile, self._window, device, rng)
            for plane in _within_budget(planes, budget_bytes)
            for tile in plane.tiles()
        ]
        self._groups = [
            _Group([patch for patch in patches if patch.human]),
            _Group([patch for patch in patches if not patch.human]),
        ]

    def __len__(self) -> int:
        return sum(len(group.patches) for group in self._groups)

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of a crop."""
        return self.config.crop

    def draw(self, count: int) -> Batch:
        """Return a new batch of `count` crops on the device."""
        human, machine = self._groups
        picks = []
        for _ in range(count):
            use_human = not machine.patches or (human.patches and self._rng.random() < self.config.human)
            picks.append(self._pick(human if use_human else machine))
        windows = [patch.window(corner, self._window) for patch, corner, _ in picks]
        centres = np.array([centre for _, _, centre in picks])
        x = torch.stack([self._input(patch, window) for (patch, _, _), window in zip(picks, windows, strict=True)])
        target = torch.stack([patch.target[window] for (patch, _, _), window in zip(picks, windows, strict=True)])
        weight = on_device(torch.tensor([patch.weight for patch, _, _ in picks]), x.device)
        grids = random_grids(self.config.augmentation, self.config.crop, self._window, centres, self._rng, x.device)
        x = functional.grid_sample(x, grids, mode="bilinear", padding_mode="border", align_corners=False)
        # uint8 wraps round: 255, unknown, becomes 0, which is what grid_sample gives outside the window
        shifted = (target + 1)[:, None].float()
        shifted = functional.grid_sample(shifted, grids, mode="nearest", padding_mode="zeros", align_corners=False)
        target = shifted[:, 0].to(torch.uint8) - 1
        images = vary_intensity(x[:, : self._image_planes], self.config.augmentation, self._rng)
        x = torch.cat([images, x[:, self._image_planes :]], 1)
        return Batch(x, target, weight)

    def _pick(self, group: "_Group") -> tuple["_Patch", tuple[int, int], tuple[float, float]]:
        """Return a patch, the corner of the window in it, and the centre of the crop in the window."""
        rng = self._rng
        if group.channels and rng.random() < self.config.foreground:
            channel = group.channels[rng.integers(len(group.channels))]
            patch = group.by_channel[channel][rng.integers(len(group.by_channel[channel]))]
            positions = patch.positions[channel]
            wanted = positions[rng.integers(len(positions))] + [
                rng.integers(-size // 4, size // 4 + 1) for size in self.config.crop
            ]
        else:
            patch = group.patches[int(rng.integers(len(group.patches)))]
            wanted = np.array([rng.integers(size) for size in patch.size])
        corner, centre = [], []
        for axis in (0, 1):
            crop, window, size = self.config.crop[axis], self._window[axis], patch.size[axis]
            middle = min(max(int(wanted[axis]), crop // 2), max(size - crop // 2, crop // 2))
            if size <= crop:
                middle = size // 2
            middle += patch.offset[axis]
            start = min(max(middle - window // 2, 0), patch.target.shape[axis] - window)
            corner.append(start)
            centre.append(float(middle - start))
        return patch, (corner[0], corner[1]), (centre[0], centre[1])

    def _input(self, patch: "_Patch", window: tuple[slice, slice]) -> Tensor:
        image = patch.image[:, *window].float()
        if patch.around is None:
            return image
        shape = patch.around[:, *window].float()
        if self.config.shape_dropout and self._rng.random() < self.config.shape_dropout:
            return torch.cat([image, torch.zeros_like(shape)])
        if patch.own is not None:
            mix = self._rng.uniform(*self.config.shape_mix)
            shape = torch.lerp(patch.own[:, *window].float(), shape, mix)
        return torch.cat([image, shape])


class _Patch:
    """A tile on the device, padded so that any window around it can be cut by slicing alone."""

    def __init__(self, tile: Plane, window: tuple[int, ...], device: torch.device, rng: np.random.Generator) -> None:
        height, width = tile.target.shape
        self.size = (height, width)
        missing = [max(0, wanted - size) for wanted, size in zip(window, self.size, strict=True)]
        self.offset = (missing[0] // 2, missing[1] // 2)
        pad = (self.offset[1], missing[1] - self.offset[1], self.offset[0], missing[0] - self.offset[0])

        def moved(array: NDArray[np.float16] | None) -> Tensor | None:
            if array is None:
                return None
            tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device)
            return functional.pad(tensor[None], pad, mode="replicate")[0] if any(pad) else tensor

        image = moved(tile.image)
        assert image is not None
        self.image = image
        self.own, self.around = moved(tile.own), moved(tile.around)
        target = torch.from_numpy(np.ascontiguousarray(tile.target)).to(device)
        self.target = functional.pad(target, pad, value=IGNORE)
        self.weight, self.human = tile.weight, tile.human
        self.positions = _positions(tile.target, rng)

    def window(self, corner: tuple[int, int], size: tuple[int, ...]) -> tuple[slice, slice]:
        return slice(corner[0], corner[0] + size[0]), slice(corner[1], corner[1] + size[1])


class _Group:
    """Patches of one origin, and which of them hold which class."""

    def __init__(self, patches: Sequence[_Patch]) -> None:
        self.patches = patches
        self.by_channel: dict[int, list[_Patch]] = {}
        for patch in patches:
            for channel in patch.positions:
                self.by_channel.setdefault(channel, []).append(patch)
        self.channels = sorted(self.by_channel)


def _positions(target: NDArray[np.uint8], rng: np.random.Generator) -> dict[int, NDArray[np.int64]]:
    found = {}
    for channel in np.unique(target):
        if channel in (0, IGNORE):
            continue
        positions = np.argwhere(target == channel)
        if len(positions) > _MOST_POSITIONS:
            positions = positions[rng.choice(len(positions), _MOST_POSITIONS, replace=False)]
        found[int(channel)] = positions
    return found


def _within_budget(planes: Iterator[Plane], budget_bytes: int) -> Iterator[Plane]:
    used = 0
    for plane in planes:
        used += plane.nbytes
        if used > budget_bytes and used > plane.nbytes:
            return
        yield plane


def _even_parts(size: int) -> list[slice]:
    edges = np.linspace(0, size, max(1, math.ceil(size / TILE_PX)) + 1).round().astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(edges)]
