"""DenseVoxNet (Yu et al., MICCAI 2017), as its authors released it, and the Y-shaped one of S5 with two inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

GROWTH = 12
UNITS = 12
DROPOUT = 0.2
AUXILIARY_WEIGHT = 0.33
"""Of the auxiliary loss beside the main one."""

_STEM = 16
_FIRST = _STEM + GROWTH * UNITS
_SECOND = _FIRST + GROWTH * UNITS


class DenseBlock(nn.Module):
    """Units of batch norm, ReLU, 3x3x3 convolution and dropout, each fed with the outputs of all before it."""

    def __init__(self, in_channels: int, units: int, growth: int = GROWTH) -> None:
        super().__init__()
        self.units = nn.ModuleList(_unit(in_channels + number * growth, growth, 3) for number in range(units))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with what the units have added, concatenated."""
        for unit in self.units:
            x = torch.cat([x, unit(x)], 1)
        return x


class DenseVoxNet(nn.Module):
    """A dense network for volumes with one stem per input.

    With one input, as in the released ``DenseVoxNet/deploy.prototxt`` (yulequan/HeartSeg): convolution 3³ with stride 2
    to 16 channels; dense block of 12 units, growth 12, to 160; transition (1³ convolution to 160, max-pooling); dense
    block to 304; 1³ convolution to 304; transposed convolutions 4³ with stride 2 to 128 and to 64, each with a ReLU; 1³
    convolution to the classes. The auxiliary classifier sees the transition.

    With two inputs (S5, Zheng et al., AAAI 2020; their figure could not be had, so this is our reading): each has its
    own stem and its own dense block of 6 units, to 88 channels; both are concatenated in front of the transition.

    Parameters
    ----------
    in_channels : sequence of int
        Channels of each input. An input tensor holds them one after the other.
    out_channels : int
        Classes and background.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.in_channels = tuple(in_channels)
        units = UNITS // len(self.in_channels)
        self.stems = nn.ModuleList(
            nn.Conv3d(channels, _STEM, 3, stride=2, padding=1, bias=False) for channels in self.in_channels
        )
        self.branches = nn.ModuleList(DenseBlock(_STEM, units) for _ in self.in_channels)
        self.transition = _unit(len(self.in_channels) * (_STEM + units * GROWTH), _FIRST, 1)
        self.pool = nn.MaxPool3d(2)
        self.block = DenseBlock(_FIRST, UNITS)
        self.bottom = nn.Sequential(nn.BatchNorm3d(_SECOND), nn.ReLU(), nn.Conv3d(_SECOND, _SECOND, 1, bias=False))
        self.up = nn.Sequential(
            nn.ConvTranspose3d(_SECOND, 128, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose3d(128, 64, 4, stride=2, padding=1),
            nn.ReLU(),
        )
        self.classifier = nn.Conv3d(64, out_channels, 1)
        self.auxiliary = nn.Conv3d(_FIRST, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Parameters
        ----------
        x : Tensor of shape (b, sum of in_channels, d, h, w)
            Sizes multiples of 4.

        Returns
        -------
        Tensor of shape (b, out_channels, d, h, w)
        """
        return self.with_auxiliary(x)[0]

    def with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, and those of the auxiliary classifier at the same size."""
        parts = x.split(self.in_channels, 1)
        branches = [branch(stem(part)) for part, stem, branch in zip(parts, self.stems, self.branches, strict=True)]
        first = self.transition(torch.cat(branches, 1))
        second = self.bottom(self.block(self.pool(first)))
        logits = self.classifier(self.up(second))
        # a fixed trilinear transposed convolution in the release: the same function, without weights
        auxiliary = functional.interpolate(
            self.auxiliary(first).float(), scale_factor=2.0, mode="trilinear", align_corners=False
        )
        return logits, auxiliary


def _unit(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm3d(in_channels),
        nn.ReLU(),
        nn.Conv3d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.Dropout(DROPOUT),
    )
