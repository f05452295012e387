"""Networks that label volumes, built from MONAI's; and how they are kept on disk.

MONAI is imported where a network is built: it takes ten seconds and more.
"""

# No `from __future__ import annotations`: pydantic reads the annotations when the class is made.
import math
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from napari_slicelabel.engine.shaped_network import ShapedNetwork

Triple = tuple[int, int, int]
Architecture = Literal["dynunet", "unet", "densevoxnet"]

COARSE = 2.0
"""An axis whose voxels are this many times longer than the finest ones is neither convolved nor pooled along."""

DENSEVOXNET_LEVELS: tuple[tuple[Triple, ...], tuple[Triple, ...]] = (
    ((3, 3, 3), (3, 3, 3), (3, 3, 3)),
    ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
)
"""Kernels and strides of DenseVoxNet: halved twice, whatever the spacing, as published."""

_LEAST_FEATURES = 4


class VolumeNetworkConfig(BaseModel):
    """What a 3D network is made of, and what it is fed.

    The channels of the input, in order: the image; with `coordinates` the position (d, h, w), each from -1 to 1; for
    each of `shape_classes` the signed distance to the border of that class as labelled slices have it, divided by its
    radius. Volumes lie with the axis of the run first: (d, h, w).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = "dynunet"
    filters: tuple[int, ...] = Field((16, 32, 64, 96), min_length=2, max_length=16)
    kernels: tuple[Triple, ...] = Field(description="Of each level; 1 along an axis that is too coarse.")
    strides: tuple[Triple, ...] = Field(description="Of each level; the first is 1, 1, 1.")
    image_channels: int = Field(1, ge=1)
    coordinates: bool = False
    classes: tuple[int, ...] = Field(min_length=1, max_length=254, description="Label values of channels 1 and up.")
    shape_classes: tuple[int, ...] = ()
    mirror: bool = Field(False, description="Whether to predict the mean over four mirror images in the plane.")
    tile: Triple = Field(description="What it was trained on and predicts at a time, in voxels.")

    @model_validator(mode="after")
    def _levels_match(self) -> Self:
        if not len(self.filters) == len(self.kernels) == len(self.strides):
            raise ValueError("filters, kernels and strides need one entry per level each")
        if not set(self.shape_classes) <= set(self.classes):
            raise ValueError(f"shape_classes {self.shape_classes} are not all among the classes {self.classes}")
        return self

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.image_channels + 3 * self.coordinates + len(self.shape_classes)

    @property
    def stride(self) -> Triple:
        """What sizes of the input are multiples of."""
        d, h, w = (math.prod(stride[axis] for stride in self.strides) for axis in range(3))
        return d, h, w


def levels(spacing: Sequence[float], size: Sequence[int], count: int) -> tuple[tuple[Triple, ...], tuple[Triple, ...]]:
    """Return kernels and strides of the levels of a network.

    Parameters
    ----------
    spacing : sequence of 3 float
        Distance between voxels.
    size : sequence of 3 int
        Voxels that the network sees at a time.
    count : int
        How many levels.

    Returns
    -------
    tuple of (tuple of triples, tuple of triples)
        An axis is convolved along once its voxels are less than `COARSE` times as long as the finest ones, halved under
        the same condition, and as long as 4 features are left along it. An axis that cannot be halved any more stays
        fine, and the others do not wait for it; where none can be, all are convolved along.

    Examples
    --------
    >>> levels((40, 10, 10), (16, 64, 64), 4)[1]
    ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    >>> levels((10, 10, 10), (8, 64, 64), 4)[1]
    ((1, 1, 1), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    """
    now, left = list(spacing), list(size)
    kernels, strides = [], []

    def fine() -> list[bool]:
        able = [length for length, n in zip(now, left, strict=True) if n >= 2 * _LEAST_FEATURES]
        finest = min(able, default=max(now))
        return [length / finest < COARSE for length in now]

    for level in range(count):
        strides.append(
            tuple(2 if level and ok and n >= 2 * _LEAST_FEATURES else 1 for ok, n in zip(fine(), left, strict=True))
        )
        now = [length * stride for length, stride in zip(now, strides[-1], strict=True)]
        left = [n // stride for n, stride in zip(left, strides[-1], strict=True)]
        kernels.append(tuple(3 if ok else 1 for ok in fine()))
    return tuple(kernels), tuple(strides)  # type: ignore[arg-type]


class VolumeNetwork(ShapedNetwork):
    """A 3D network that labels volumes, seeing the image and, if it was built so, the shapes of labelled slices.

    Parameters
    ----------
    config : VolumeNetworkConfig
        What it is made of.
    """

    def __init__(self, config: VolumeNetworkConfig) -> None:
        super().__init__(_base(config), config.classes, config.shape_classes)
        self.config = config


def _base(config: VolumeNetworkConfig) -> nn.Module:
    out_channels = 1 + len(config.classes)
    if config.architecture == "densevoxnet":
        from napari_slicelabel.engine.densevoxnet import DenseVoxNet

        return DenseVoxNet((config.in_channels,), out_channels)
    if config.architecture == "unet":
        from monai.networks.nets.unet import UNet

        unet: nn.Module = UNet(
            3,
            config.in_channels,
            out_channels,
            channels=config.filters,
            strides=config.strides[1:],  # type: ignore[arg-type] # one per axis does as well
            num_res_units=2,
            norm="instance",
        )
        return unet
    from monai.networks.nets.dynunet import DynUNet

    network = DynUNet(
        3,
        config.in_channels,
        out_channels,
        kernel_size=config.kernels,
        strides=config.strides,
        upsample_kernel_size=config.strides[1:],
        filters=config.filters,
    )
    if config.shape_classes:
        head = network.output_block.conv.conv
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    dynunet: nn.Module = network
    return dynunet
