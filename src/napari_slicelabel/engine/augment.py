"""Random variation of training crops, for a whole batch at once and on its device.

Geometry is one sampling grid per crop, so that cutting, flipping, rotating, zooming and bending image, labels and
distances costs one interpolation; kornia and monai would interpolate once per transform and know no crop positions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from napari_slicelabel.engine.devices import on_device

# Distance between the nodes of the elastic field, in pixels.
_ELASTIC_STEP = 24


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far crops are varied.

    Attributes
    ----------
    flips : bool
        Mirror along both axes, and swap them where the crop is square: rotations by 90 degrees. Destroys tasks in
        which left and right are classes of their own.
    rotation : float
        Largest angle in radians.
    zoom : float
        Largest natural logarithm of the scale.
    elastic_px : float
        Largest standard deviation of the elastic displacement, in pixels.
    intensity : float
        Strength of contrast, brightness, gamma and noise; 0 = off.
    """

    flips: bool = True
    rotation: float = 0.26
    zoom: float = 0.2
    elastic_px: float = 4.0
    intensity: float = 1.0


NO_AUGMENTATION = Augmentation(flips=False, rotation=0.0, zoom=0.0, elastic_px=0.0, intensity=0.0)


def random_grids(
    augmentation: Augmentation,
    crop: tuple[int, int],
    window: tuple[int, ...],
    centres: NDArray[np.float64],
    rng: np.random.Generator,
    device: torch.device,
) -> Tensor:
    """Return one sampling grid per crop, for ``grid_sample`` with ``align_corners=False``.

    Parameters
    ----------
    augmentation : Augmentation
        How far to vary.
    crop : tuple of 2 int
        Height and width of the crop.
    window : tuple of 2 int
        Height and width of the window that the crop is taken from.
    centres : ndarray of shape (b, 2), float64
        Centre of each crop in its window, in pixels (h, w).
    rng : numpy.random.Generator
        Draws the transforms.
    device : torch.device
        Where the grids are made: few numbers go there, many come of them.

    Returns
    -------
    Tensor of shape (b, crop h, crop w, 2), float32
        Positions (w, h) from -1 to 1 over the window.
    """
    count, (height, width) = len(centres), crop
    flips = rng.random((count, 3)) < 0.5
    angles = rng.uniform(-1, 1, count) * augmentation.rotation * (rng.random(count) < 0.7)
    scales = np.exp(rng.uniform(-1, 1, count) * augmentation.zoom)
    cos, sin = np.cos(angles) * scales, np.sin(angles) * scales
    turns = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    if augmentation.flips:
        if height == width:
            turns = np.where(flips[:, 2, None, None], turns[:, :, ::-1], turns)
        turns *= np.where(flips[:, None, :2], -1.0, 1.0)
    affine = np.concatenate([turns, centres[:, :, None]], 2).astype(np.float32)
    down, right, centre = on_device(torch.from_numpy(affine), device)[..., None, None].unbind(2)
    rows, columns = (torch.arange(size, device=device) - (size - 1) / 2 for size in crop)
    positions = down * rows[:, None] + right * columns + centre
    if augmentation.elastic_px > 0:
        nodes = on_device(_elastic_nodes(count, crop, augmentation.elastic_px, rng), device)
        positions = positions + functional.interpolate(nodes, size=crop, mode="bicubic", align_corners=False)
    # centres count pixel edges, grid_sample pixel centres
    axes = [position * 2 / size - 1 for position, size in zip(positions.unbind(1), window, strict=True)]
    return torch.stack(axes[::-1], -1)


def _elastic_nodes(count: int, crop: tuple[int, int], largest_px: float, rng: np.random.Generator) -> Tensor:
    nodes = [max(3, size // _ELASTIC_STEP) for size in crop]
    strength = rng.uniform(0, largest_px, count) * (rng.random(count) < 0.5)
    field = rng.standard_normal((count, 2, *nodes)) * strength[:, None, None, None]
    return torch.from_numpy(field.astype(np.float32))


def vary_intensity(images: Tensor, augmentation: Augmentation, rng: np.random.Generator) -> Tensor:
    """Return images of shape (b, c, h, w) with other contrast, brightness and gamma, and with noise.

    Each of the three happens to a part of the crops; noise comes from torch's generator of the device.
    """
    if augmentation.intensity == 0:
        return images
    count = len(images)

    def drawn(low: float, high: float, share: float, neutral: float) -> Tensor:
        values = np.where(rng.random(count) < share, rng.uniform(low, high, count), neutral)
        return on_device(torch.from_numpy(values.astype(np.float32)), images.device)[:, None, None, None]

    strength = augmentation.intensity
    gain = drawn(1 - 0.25 * strength, 1 + 0.3 * strength, 0.5, 1.0)
    shift = drawn(-0.3 * strength, 0.3 * strength, 0.5, 0.0)
    gamma = torch.exp(drawn(-0.4 * strength, 0.4 * strength, 0.3, 0.0))
    noise = drawn(0.0, 0.2 * strength, 0.3, 0.0)
    images = images * gain + shift
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    extent = (high - low).clamp(min=1e-6)
    images = ((images - low) / extent).clamp(min=0) ** gamma * extent + low
    return images + torch.randn_like(images) * noise
