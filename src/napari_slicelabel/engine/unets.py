"""U-Nets that segmentation-models-pytorch does not have: the default one, on its decoder, and the one of S1.

The default encoder is a plain convolutional one whose first stage works at full resolution: encoders made for
photographs begin with a stride of 2 and lose membranes that are two pixels thick.
"""

from collections.abc import Sequence

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn
from torch.nn import functional

from napari_slicelabel.engine.networks import OUTPUT_STRIDE


class ConvBlock(nn.Sequential):
    """Two 3x3 convolutions, each with instance norm and a leaky ReLU.

    Instance norm keeps no running statistics, so it is as sound for one painted slice as for a thousand.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                nn.InstanceNorm2d(out_channels, affine=True),
                nn.LeakyReLU(0.01, inplace=True),
            ]
        super().__init__(*layers)


class PlainEncoder(nn.Module):
    """Five `ConvBlock` with max-pooling between them: strides 1, 2, 4, 8, 16."""

    output_stride = OUTPUT_STRIDE

    def __init__(self, in_channels: int, filters: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = (in_channels, *filters)
        self.stages = nn.ModuleList(
            ConvBlock(before, after) for before, after in zip(self.out_channels, filters, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the input and the features of every stage, as smp's decoders want them."""
        features = [x]
        for number, stage in enumerate(self.stages):
            x = stage(functional.max_pool2d(x, 2) if number else x)
            features.append(x)
        return features


class PlainUnet(smp.base.SegmentationModel):  # type: ignore[misc]
    """smp's U-Net decoder on `PlainEncoder`, with a skip connection at full resolution."""

    requires_divisible_input_shape = True

    def __init__(self, in_channels: int, filters: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.encoder = PlainEncoder(in_channels, filters)
        self.decoder = UnetDecoder(
            encoder_channels=self.encoder.out_channels,
            decoder_channels=tuple(filters[-2::-1]),
            n_blocks=len(filters) - 1,
            use_norm={"type": "instancenorm", "affine": True},
        )
        self.segmentation_head = smp.base.SegmentationHead(filters[0], out_channels, kernel_size=1)
        self.classification_head = None
        self.initialize()


class AndersonUnet(nn.Module):
    """The U-Net of S1 as its authors released it (muanderson/Incremental2D-SelfLabel3D).

    Filters 8-16-32-64-128, two 3x3 convolutions with ReLU per level, no normalisation, spatial dropout 0.5 at the
    bottleneck, nearest up-sampling with a 2x2 convolution, concatenation. Two outputs with softmax stand for their one
    output with sigmoid, which is the same function.
    """

    def __init__(self, in_channels: int, filters: Sequence[int], out_channels: int) -> None:
        super().__init__()
        before = (in_channels, *filters)
        self.down = nn.ModuleList(self._double(a, b) for a, b in zip(before, filters, strict=False))
        pairs = list(zip(filters[:0:-1], filters[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.Conv2d(a, b, 2) for a, b in pairs)
        self.merge = nn.ModuleList(self._double(2 * b, b) for _, b in pairs)
        self.dropout = nn.Dropout2d(0.5)
        self.head = nn.Conv2d(filters[0], out_channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    @staticmethod
    def _double(before: int, after: int) -> nn.Sequential:
        first, second = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of `x`, shape (b, c, h, w), with h and w multiples of `OUTPUT_STRIDE`."""
        skips = []
        for number, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if number else x)
            skips.append(x)
        x = self.dropout(skips.pop())
        for up, merge in zip(self.up, self.merge, strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            # a 2x2 convolution of the same size pads on one side, as TensorFlow does
            x = functional.relu(up(functional.pad(x, (0, 1, 0, 1))))
            x = merge(torch.cat([skips.pop(), x], 1))
        logits: Tensor = self.head(x)
        return logits
