"""The Object Estimation Guided Correspondence Flow Network: slices are compared by image and by pseudo-labels (S4).

After Sli2Vol+ (An et al., 2025). Beside the encoder of the image a light one sees what a slice is estimated to show;
the features of both are put behind one another, for queries and for keys alike. Paper and released code differ in how;
see docs/algorithms.md for which of them is followed in what.
"""

# No `from __future__ import annotations`: pydantic reads the annotations when the class is made.
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from napari_slicelabel.engine.correspondence import CorrespondenceConfig, CorrespondenceNetwork
from napari_slicelabel.engine.fit import autocast
from napari_slicelabel.engine.interpolation import class_distances
from napari_slicelabel.engine.losses import IGNORE

if TYPE_CHECKING:
    from numpy.typing import NDArray

GUIDE = "guide."
"""What the names of the weights of the second encoder begin with; the others are those of the image alone."""

RADIUS_PX = 16.0
"""Signed distances are cut there: further inside or outside of an object all places are alike."""

_GUIDE_FEATURES = 64
_WIDTH = 32


class GuidedConfig(CorrespondenceConfig):
    """What a `GuidedNetwork` is made of."""

    guides: int = Field(ge=1, description="Channels of pseudo-labels, one per class.")


class GuidedNetwork(CorrespondenceNetwork):
    """Features of slices from their image and from their pseudo-labels.

    The input of `features` is (b, image channels + guides, h, w): intensities, and what `guide_distances` returns. The
    result is (b, 128, h / stride, w / stride): 64 features of the image as in `CorrespondenceNetwork`, then 64 of the
    pseudo-labels. Those are 0 for a slice without pseudo-labels, all of whose distances are 0: as products of features
    are sums over both halves, the image alone then decides, and at the scale that it has in training.

    Parameters
    ----------
    config : GuidedConfig
        What it is made of.
    """

    def __init__(self, config: GuidedConfig) -> None:
        super().__init__(config)
        self._parts = (config.image_channels, config.guides)
        self.guide = _GuideEncoder(config.guides, config.stride)

    def features(self, x: Tensor) -> Tensor:
        """Return the features of slices with their pseudo-labels; see the class."""
        image, distances = x.split(self._parts, 1)
        with autocast(x.device):
            found: Tensor = self.guide(distances)
        found = found.float()
        if not self.config.is_published:
            found = functional.normalize(found, dim=1)
        given = (distances != 0).flatten(1).any(1)
        return torch.cat([super().features(image), found * given[:, None, None, None]], 1)


class _GuideEncoder(nn.Sequential):
    """Three convolutions, without a norm: distances have a scale, and their mean says how much object a slice shows."""

    def __init__(self, guides: int, stride: int) -> None:
        first, second = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[stride]
        super().__init__(
            nn.Conv2d(guides, _WIDTH, 5, first, 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(_WIDTH, _GUIDE_FEATURES, 3, second, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(_GUIDE_FEATURES, _GUIDE_FEATURES, 1),
        )


def guide_distances(channels: "NDArray[np.uint8]", classes: int) -> "NDArray[np.float32]":
    """Return pseudo-labels of a slice as the network sees them.

    Parameters
    ----------
    channels : ndarray of shape (h, w), uint8
        0 = background, 1 and up = classes, 255 = unknown.
    classes : int
        How many there are.

    Returns
    -------
    ndarray of shape (classes, h, w), float32
        Of each class the signed distance to its border, positive inside, cut at `RADIUS_PX` and divided by it; 0 where
        the label is unknown. An edge profile, which the released code makes of pseudo-labels, is the same inside and
        outside of an object; a distance says which side it is. One channel per class, not one for all objects:
        neighbouring classes have to be told apart, too.

    Examples
    --------
    >>> guide_distances(np.array([[0, 0, 1, 255]], np.uint8), 1) * 16
    array([[[-2., -1.,  1.,  0.]]], dtype=float32)
    """
    found = class_distances(channels, range(1, 1 + classes), (1.0, 1.0), radius=RADIUS_PX)[1:]
    found /= np.float32(RADIUS_PX)
    found[:, channels == IGNORE] = 0
    return found


def without_some_guides(seen: Tensor, image_channels: int, share: float, rng: np.random.Generator) -> Tensor:
    """Return what a network is trained on with some pseudo-labels taken away, so that the image alone will do.

    Parameters
    ----------
    seen : Tensor of shape (b, n, image channels + guides, h, w)
        Slices that are compared with one another along n.
    image_channels : int
        These stay.
    share : float
        Probability of a sample to lose the pseudo-labels of all its slices.
    rng : numpy.random.Generator
        Draws the samples.

    Returns
    -------
    Tensor of the shape of `seen`
    """
    kept = torch.from_numpy(rng.random(len(seen)) >= share).to(seen)
    guides = seen[:, :, image_channels:] * kept[:, None, None, None, None]
    return torch.cat([seen[:, :, :image_channels], guides], 2)


def image_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that a `CorrespondenceNetwork` has, of those of a `GuidedNetwork`."""
    return {name: value for name, value in tensors.items() if not name.startswith(GUIDE)}


def guide_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the encoder of pseudo-labels; none of a `CorrespondenceNetwork`."""
    return {name: value for name, value in tensors.items() if name.startswith(GUIDE)}
