"""What a chain of correspondences brings from an annotated slice to others, and how two chains are weighed.

All of it is tensors, which stay on the device that compares slices.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.ndimage import binary_closing, binary_dilation, binary_fill_holes
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

KEPT_DOUBT = 0.95
"""Share of a doubt that is left one slice further on."""

# Of the probability of a pixel that nothing explains, what is spread over all channels.
_MOST_DOUBT = 0.8
_LEAST_SHARE = 1e-4
# Pixels by which places may differ, there and back, for half of the trust. Places are kept to half a pixel.
_USUAL_ERROR_PX = 1.0
_STEPS_PER_PX, _MIDDLE = 2, 128


class Carried(NamedTuple):
    """What a chain brings to a slice.

    Attributes
    ----------
    labels : Tensor of shape (channels + 1, h, w), float32
        Probabilities of the channels, and of what the annotation left unknown.
    doubt : Tensor of shape (h, w), float32
        0 to 1: how far no slice on the way explains the intensities.
    origin : Tensor of shape (2, h, w), float32
        Row and column in the annotated slice that a pixel comes from.
    """

    labels: Tensor
    doubt: Tensor
    origin: Tensor

    @classmethod
    def start(cls, labels: Tensor) -> "Carried":
        """Return what an annotated slice brings to itself."""
        shape = labels.shape[1:]
        return cls(labels, labels.new_zeros(shape), places(*shape, device=labels.device))

    def planes(self) -> Tensor:
        """Return all of it above one another, (channels + 4, h, w)."""
        return torch.cat([self.labels, self.doubt[None], self.origin])

    def packed(self) -> "NDArray[np.uint8]":
        """Return it in a byte per value, in memory: origins to half a pixel, up to 63 pixels away."""
        moved = self.origin - places(*self.doubt.shape, device=self.doubt.device)
        shares = torch.cat([self.labels, self.doubt[None]])
        steps = (moved * _STEPS_PER_PX + _MIDDLE).clamp(0, 255)
        packed: NDArray[np.uint8] = torch.cat([shares * 255, steps]).round().to(torch.uint8).cpu().numpy()
        return packed

    @classmethod
    def unpacked(cls, packed: "NDArray[np.uint8]", device: torch.device) -> "Carried":
        """Return what was packed, on a device."""
        planes = torch.from_numpy(packed).to(device).float()
        shares = planes[:-2] / 255
        moved = (planes[-2:] - _MIDDLE) / _STEPS_PER_PX
        return cls(shares[:-1], shares[-1], moved + places(*packed.shape[1:], device=device))

    def explained(self) -> Tensor:
        """Return class probabilities (channels, h, w): the less a pixel is explained, the more they are alike."""
        known = without_unknown(self.labels)
        return known + _MOST_DOUBT * self.doubt * (1 / len(known) - known)


def places(h: int, w: int, *, device: torch.device | None = None) -> Tensor:
    """Return row and column of every pixel, (2, h, w), float32."""
    axes = (torch.arange(size, dtype=torch.float32, device=device) for size in (h, w))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def without_unknown(labels: Tensor) -> Tensor:
    """Return probabilities of the channels that sum to 1; all alike where nothing at all is known."""
    known = labels[:-1].clamp(min=0) + _LEAST_SHARE
    return known / known.sum(0, keepdim=True)


def trust(chain: Carried, other: Carried, back: Tensor) -> Tensor:
    """Return how far to believe a chain at each pixel of a slice: forward-backward consistency.

    Parameters
    ----------
    chain : Carried
        What it brings to the slice.
    other : Carried
        What the chain from the other end of the gap brings to it.
    back : Tensor of shape (2, h, w), float32
        Origins of the other chain in the annotated slice where this chain begins.

    Returns
    -------
    Tensor of shape (h, w), float32
        Above 0, up to 1. A pixel that is followed to where this chain begins, and from there along the other chain,
        should come out where the other chain itself says that it comes from: in between lies this chain's way, there
        and back. What is in doubt is trusted less.
    """
    h, w = chain.doubt.shape
    rows, columns = (axis.round().clamp(0, size - 1).long() for axis, size in zip(chain.origin, (h, w), strict=True))
    error = (other.origin - back[:, rows, columns]).square().sum(0)
    return (1 - KEPT_DOUBT * chain.doubt) / (1 + error / _USUAL_ERROR_PX**2)


def mixed(below: Carried, above: Carried, ends: "Sequence[Tensor]", share: float) -> Tensor:
    """Return class probabilities of a slice in a gap from what two chains bring to it.

    Parameters
    ----------
    below, above : Carried
        What comes from the annotated slice below, and from that above.
    ends : sequence of two Tensor of shape (2, h, w), float32
        Origins of the chain from below in the annotated slice above, and the reverse.
    share : float
        Weight of the chain from above where both are trusted alike, between 0 and 1.

    Returns
    -------
    Tensor of shape (channels, h, w), float32
        Each chain weighs as much as it is to be trusted at a pixel, see `trust`.
    """
    from_below = (1 - share) * trust(below, above, ends[1])
    from_above = share * trust(above, below, ends[0])
    weight = from_above / (from_below + from_above)
    labels, doubt = (torch.lerp(one, other, weight) for one, other in zip(below[:2], above[:2], strict=True))
    return Carried(labels, doubt, below.origin).explained()


def share_of_upper(way: float, lost_by_lower: float, lost_by_upper: float) -> float:
    """Return the weight of the chain from above at a share of the way up: the inverse of what it has lost so far.

    A chain is taken to lose evenly on its way; with equal losses that is the share of the way.
    """
    lower, upper = lost_by_lower * way, lost_by_upper * (1 - way)
    return lower / (lower + upper)


def verified(
    found: "NDArray[np.integer]",
    mask: "NDArray[np.integer]",
    image: "NDArray[np.float32]",
    before: "NDArray[np.float32]",
    classes: int,
) -> "NDArray[np.uint8]":
    """Return carried labels without the pixels that look like the surroundings (the verification module of Sli2Vol).

    Parameters
    ----------
    found : ndarray of shape (h, w), int
        Carried labels, 0 = background.
    mask : ndarray of shape (h, w), int
        Labels of the slice before.
    image, before : ndarray of shape (c, h, w), float32
        Intensities of this slice and of the one before.
    classes : int
        How many there are.

    Returns
    -------
    ndarray of shape (h, w), uint8
        Of every class the pixels whose intensity is nearer to the mean in `mask` than to the mean in a ring of 5 pixels
        around it; then holes are filled, and gaps of up to 4 pixels closed. As in the released code.
    """
    checked = np.zeros(found.shape, np.uint8)
    for value in range(1, classes + 1):
        inside = mask == value
        ring = binary_dilation(inside, iterations=5) & ~inside
        if not inside.any() or not ring.any():
            checked[found == value] = value
            continue
        within, around = (
            np.square(image - before[:, region].mean(1)[:, None, None]).sum(0) for region in (inside, ring)
        )
        kept = binary_fill_holes((within < around) & (found == value))
        kept = binary_fill_holes(binary_closing(kept, iterations=2))
        checked[kept] = value
    return checked
