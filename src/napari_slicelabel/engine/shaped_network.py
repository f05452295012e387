"""What the 2D and the 3D network have in common: the shapes of labelled neighbours, which they see and start from."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from napari_slicelabel.engine.instance_norm import with_instance_norm


class ShapedNetwork(nn.Module):
    """A network whose last input channels may be the shapes of some classes.

    The logit of a class whose shape is given starts as the signed distance times a learnable slope: before any training
    the network reproduces shape interpolation, and it learns what the image says beyond that.

    Parameters
    ----------
    base : Module
        Makes logits of all channels.
    classes : sequence of int
        Those of the output, behind background.
    shape_classes : sequence of int
        Those whose shapes are given.
    """

    def __init__(self, base: nn.Module, classes: Sequence[int], shape_classes: Sequence[int]) -> None:
        super().__init__()
        self.base = with_instance_norm(base)
        channels = [1 + classes.index(value) for value in shape_classes]
        # a tensor made in `forward` would be copied, and a GPU waited for, at every step
        self._shape_channels: Tensor
        self.register_buffer("_shape_channels", torch.tensor(channels, dtype=torch.int64), persistent=False)
        # half a logit per pixel from the border at the default radius of 16 pixels
        self.slope = nn.Parameter(torch.tensor(8.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Parameters
        ----------
        x : Tensor of shape (b, in_channels, h, w) or (b, in_channels, d, h, w)
            Channels as in the network's config; sizes multiples of its stride.

        Returns
        -------
        Tensor of shape (b, 1 + classes, h, w) or (b, 1 + classes, d, h, w), float32
            Channel 0 is background.
        """
        logits: Tensor = self.base(x).float()
        if not len(self._shape_channels):
            return logits
        shape = x[:, -len(self._shape_channels) :].float() * self.slope
        return logits.index_add(1, self._shape_channels, shape)
