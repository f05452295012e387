"""Correspondence between slices: which place of one slice a place of another one looks like (S4).

After Sli2Vol (Yeung et al., MICCAI 2021; released code pakheiyeung/Sli2Vol) and Sli2Vol+ (An et al., 2025). A network
turns slices into features; a place takes its label from the places around it in a labelled slice, weighted by how alike
their features are. The network is trained without labels: with the right weights one slice can be put together from the
intensities of another.
"""

# No `from __future__ import annotations`: pydantic reads the annotations when the class is made.
import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from napari_slicelabel.engine.fit import autocast
from napari_slicelabel.engine.instance_norm import InstanceNorm

# Of 8-bit intensities, which the released code works on.
_BYTES = 255.0
_FEATURES = 64
_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
_RADII = (1, 2, 3)
# Features along the side of a tile of queries.
_TILE = 8
# Of the products of features on a GPU, in memory.
_PRODUCTS_BYTES = 256 * 2**20
# Added to the product of features where there is no slice. Not infinity: rows that lie wholly outside must not be nan.
_NEVER = -1e4


class CorrespondenceConfig(BaseModel):
    """What a `CorrespondenceNetwork` is made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_channels: int = Field(1, ge=1)
    encoder: Literal["compact", "resnet"] = "compact"
    profile: Literal["edges", "gradients"] = "gradients"
    stride: Literal[1, 2, 4] = Field(4, description="Pixels per feature along h and w.")
    radius: int = Field(6, ge=1, le=32, description="How far a place is looked for, in features.")
    reach: float = Field(1.25, gt=0, description="Standard deviation of how far a place moves, in features.")
    soften: float = Field(
        2.0, ge=1, description="Factor on the learned temperature when labels are carried, not when it is learned."
    )
    noise: float = Field(0.005, gt=0, description="Standard deviation of the noise, in units of the intensity range.")

    @property
    def is_published(self) -> bool:
        """Whether features are compared as in the released code: plain products, and zeros around the slice."""
        return self.encoder == "resnet"


class CorrespondenceNetwork(nn.Module):
    """Features of slices, and what one slice says of another.

    Parameters
    ----------
    config : CorrespondenceConfig
        What it is made of.

    Notes
    -----
    ``resnet`` is the network of the released code: residual blocks at stride 1, 64 features, products of features as
    they come. ``compact`` works at `stride`, its features have length 1, products are divided by a learned
    temperature, places outside of the slice weigh nothing, and far ones less than near ones: a Gaussian of width
    ``reach``. Learned from intensities alone, both come out too trusting: structures that look alike are taken for one
    another over the whole window.
    """

    def __init__(self, config: CorrespondenceConfig) -> None:
        super().__init__()
        self.config = config
        planes = _profile_planes(config)
        self.encoder: nn.Module = (
            _ResNet(planes) if config.encoder == "resnet" else _CompactEncoder(planes, config.stride)
        )
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.07)))

    def features(self, x: Tensor) -> Tensor:
        """Return the features of slices.

        Parameters
        ----------
        x : Tensor of shape (b, c, h, w), float32
            Intensities, 0 to 1 over the robust range of the volume; h and w multiples of the stride.

        Returns
        -------
        Tensor of shape (b, 64, h / stride, w / stride), float32
        """
        if self.config.profile == "edges":
            seen = edge_profile(x * _BYTES)
        else:
            seen = torch.cat([gradient_profile(x, self.config.noise), 4 * x - 2], 1)
        if not (self.training or seen.is_cuda):
            seen = seen.contiguous(memory_format=torch.channels_last)  # the encoder is 1.3 times as fast on CPUs
        with autocast(x.device):
            found: Tensor = self.encoder(seen)
        found = found.float().contiguous()
        return found if self.config.is_published else functional.normalize(found, dim=1)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what slices take over from others: a place takes the values of the places that look like it.

        Parameters
        ----------
        query : Tensor of shape (b, d, h, w)
            Features of the slices that want values.
        keys : Tensor of shape (b, n, d, h, w)
            Features of n other slices for each.
        values : Tensor of shape (b, n, c, h * stride, w * stride)
            Intensities or class probabilities of the others.

        Returns
        -------
        Tensor of shape (b, c, h * stride, w * stride)
            Sums of `values` over a window of ``2 * radius + 1`` squared features in each of the n slices, with the
            softmax of the products of features as weights (S4, local affinity). Whole patches of ``stride`` times
            ``stride`` pixels are taken over, so that what is finer than a feature stays.

        Notes
        -----
        Queries go in tiles of 8 x 8. One matrix product compares a tile with all places that any of its windows
        reaches, 20 x 20 for a radius of 6, and what is outside of a window is masked: 2.4 times as many products as
        needed, at many times the speed of going through the offsets. Windows are never laid out in memory.
        """
        b, n, d, h, w = keys.shape
        radius, stride = self.config.radius, self.config.stride
        rows, columns = -(-h // _TILE), -(-w // _TILE)
        grown = (0, columns * _TILE - w, 0, rows * _TILE - h)
        # the last feature is 1 inside of a slice: ours never looks outside
        inside = keys.new_full((1,), 0.0 if self.config.is_published else _NEVER)
        ahead = functional.pad(query, grown).unfold(2, _TILE, _TILE).unfold(3, _TILE, _TILE)
        ahead = torch.cat([ahead, ahead.new_ones(b, 1, *ahead.shape[2:])], 1)
        ahead = ahead.permute(0, 2, 3, 4, 5, 1).flatten(3, 4)
        if not self.config.is_published:
            temperature = self.log_temperature.exp() * (1.0 if self.training else self.config.soften)
            scale = torch.cat([(1 / temperature).expand(d), inside.new_ones(1)])
            ahead = ahead * scale
        around = functional.pad(keys, (radius,) * 4)
        border = functional.pad(inside.new_zeros(1, 1, 1, h, w), (radius,) * 4, value=float(inside))
        around = torch.cat([around, border.expand(b, n, -1, -1, -1)], 2)
        patches = functional.pixel_unshuffle(values.flatten(0, 1), stride).unflatten(0, (b, n))
        patches = functional.pad(patches, (radius,) * 4)
        bias = self._bias(keys.device).repeat(1, n)
        bands = []
        step = _rows_at_once(keys.device, bias.nbytes * b * columns)
        for row in range(0, rows, step):
            queries = ahead[:, row : row + step].flatten(0, 2)
            here = slice(row * _TILE, min(row + step, rows) * _TILE + 2 * radius)
            key, value = (_blocks(planes[..., here, :], columns, radius) for planes in (around, patches))
            shares = torch.baddbmm(bias.expand(len(key), -1, -1), queries, key.transpose(1, 2)).softmax(-1)
            bands.append((shares @ value).unflatten(0, (b, -1, columns)).unflatten(3, (_TILE, _TILE)))
        taken = torch.cat(bands, 1).permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)[..., :h, :w]
        return functional.pixel_shuffle(taken, stride)

    def _bias(self, device: torch.device) -> Tensor:
        """Return what is added to the products of a tile, (64, places around it): minus infinity beyond the window."""
        radius = self.config.radius
        here = torch.arange(_TILE, device=device)
        there = torch.arange(_TILE + 2 * radius, device=device) - radius
        step = (there - here[:, None]).abs()
        far = (step**2)[:, None, :, None] + (step**2)[None, :, None, :]
        bias = torch.zeros(far.shape, device=device)
        if not self.config.is_published:
            bias = -far / (2 * self.config.reach**2)
        near = (step <= radius)[:, None, :, None] & (step <= radius)[None, :, None, :]
        return bias.masked_fill(~near, -math.inf).flatten(2).flatten(0, 1)


def _rows_at_once(device: torch.device, row_bytes: int) -> int:
    """Return how many rows of tiles are compared together, where the products of one take so many bytes.

    A GPU waits for the next launch where there is little to do in one; a CPU keeps the products of a row in its cache.
    """
    return max(1, _PRODUCTS_BYTES // row_bytes) if device.type == "cuda" else 1


def _blocks(band: Tensor, columns: int, radius: int) -> Tensor:
    """Return the places around each tile of some rows, (b * tiles, n * places, c), from planes (b, n, c, y, x)."""
    size = _TILE + 2 * radius
    rows = -(-(band.shape[-2] - 2 * radius) // _TILE)
    more = (columns * _TILE + 2 * radius - band.shape[-1], rows * _TILE + 2 * radius - band.shape[-2])
    cut = functional.pad(band, (0, more[0], 0, more[1])).unfold(3, size, _TILE).unfold(4, size, _TILE)
    return cut.permute(0, 3, 4, 1, 5, 6, 2).flatten(3, 5).flatten(0, 2)


def edge_profile(images: Tensor, radius: int = 3) -> Tensor:
    """Return how every pixel differs from those around it (Sli2Vol, section 2.1).

    Parameters
    ----------
    images : Tensor of shape (b, c, h, w)
        Channels are added up.
    radius : int
        Of the window, in pixels.

    Returns
    -------
    Tensor of shape (b, (2 * radius + 1) ** 2 - 1, h, w)
        A softmax over the differences to the pixels of the window.
    """
    grey = images.sum(1, keepdim=True)
    h, w = grey.shape[-2:]
    padded = functional.pad(grey, (radius,) * 4, mode="replicate")
    around = [padded[..., y : y + h, x : x + w] for y, x in _window(radius) if (y, x) != (radius, radius)]
    return (grey - torch.cat(around, 1)).softmax(1)


def gradient_profile(images: Tensor, noise: float) -> Tensor:
    """Return second differences in four directions at three scales (Sli2Vol+, gradient-enhanced image generator).

    Parameters
    ----------
    images : Tensor of shape (b, c, h, w)
        Channels are averaged.
    noise : float
        Standard deviation of the noise, in the units of `images`.

    Returns
    -------
    Tensor of shape (b, 12, h, w)
        A softmax over directions and scales, times their number, minus 1. The paper gives neither the directions nor
        the scales. Opposite directions are the same for second differences, so there are four; differences are taken
        after smoothing, without which they carry more noise than first ones, and divided by four times the noise,
        without which the softmax is either flat or picks one channel.
    """
    grey = images.mean(1, keepdim=True)
    h, w = grey.shape[-2:]
    found = []
    for radius in _RADII:
        smooth = _smoothed(grey, 0.5 * radius)
        padded = functional.pad(smooth, (radius,) * 4, mode="replicate")
        for dy, dx in _DIRECTIONS:
            y, x = dy * radius, dx * radius
            one = padded[..., radius + y : radius + y + h, radius + x : radius + x + w]
            other = padded[..., radius - y : radius - y + h, radius - x : radius - x + w]
            found.append(one + other - 2 * smooth)
    scaled = torch.cat(found, 1) / max(4 * noise, 0.02)
    return scaled.softmax(1) * len(found) - 1


def estimate_noise(image: Tensor) -> float:
    """Return the standard deviation of the noise of slices (..., h, w), robustly: from the spread of the Laplacian."""
    middle = image[..., 1:-1, 1:-1]
    laplacian = image[..., :-2, 1:-1] + image[..., 2:, 1:-1] + image[..., 1:-1, :-2] + image[..., 1:-1, 2:] - 4 * middle
    # of white noise the Laplacian has the variance 1 + 1 + 1 + 1 + 16
    return max(1e-6, 1.4826 * float(laplacian.abs().median()) / math.sqrt(20))


def reconstruction_loss(network: CorrespondenceNetwork, slices: Tensor, seen: Tensor) -> Tensor:
    """Return how badly a slice is put together from another: the loss of S4, smooth L1 of intensities.

    Parameters
    ----------
    network : CorrespondenceNetwork
        Trained by it.
    slices : Tensor of shape (b, n, c, h, w)
        The first is put together from the second, which with n > 2 was itself put together from the third, and so on:
        what labels go through when they are carried.
    seen : Tensor of shape (b, n, c', h, w)
        What the network sees of them: contrast changed, so that it has to compare structures.

    Returns
    -------
    Tensor
        A scalar.
    """
    b, n = slices.shape[:2]
    features = network.features(seen.flatten(0, 1)).unflatten(0, (b, n))
    made = slices[:, -1]
    for number in reversed(range(n - 1)):
        made = network.attend(features[:, number], features[:, number + 1 : number + 2], made[:, None])
    return functional.smooth_l1_loss(made * _BYTES, slices[:, 0] * _BYTES)


def misalignment(query: Tensor, key: Tensor, *, gain: float = 0.05) -> tuple[int, int]:
    """Return by how much a whole slice lies elsewhere than another one.

    Parameters
    ----------
    query, key : Tensor of shape (d, h, w)
        Features of the two slices.
    gain : float
        How much more alike features must be, on average, for a shift to be believed; products of features of length 1.

    Returns
    -------
    tuple of (int, int)
        Rows and columns, in features, by which `key` must be rolled to lie on `query`: the peak of their cyclic
        cross-correlation; (0, 0) where that is not clearly higher than without a shift.
    """
    size = query.shape[-2:]
    spectrum = torch.fft.rfft2(query) * torch.fft.rfft2(key).conj()
    alike = torch.fft.irfft2(spectrum.sum(0), s=size) / (size[0] * size[1])
    peak = int(alike.argmax())
    row, column = peak // size[1], peak % size[1]
    if float(alike[row, column] - alike[0, 0]) <= gain:
        return 0, 0
    return row - size[0] * (2 * row > size[0]), column - size[1] * (2 * column > size[1])


def padded_to(x: Tensor, stride: int) -> Tensor:
    """Return slices (..., h, w) with rows and columns repeated at the end up to multiples of `stride`."""
    h, w = x.shape[-2:]
    more = (-h % stride, -w % stride)
    flat = x.reshape(-1, 1, h, w)
    grown = functional.pad(flat, (0, more[1], 0, more[0]), mode="replicate")
    return grown.reshape(*x.shape[:-2], h + more[0], w + more[1])


def _profile_planes(config: CorrespondenceConfig) -> int:
    if config.profile == "edges":
        return 48
    return len(_DIRECTIONS) * len(_RADII) + config.image_channels


def _window(radius: int) -> Iterator[tuple[int, int]]:
    size = 2 * radius + 1
    return ((y, x) for y in range(size) for x in range(size))


def _smoothed(grey: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    places = torch.arange(-reach, reach + 1, device=grey.device, dtype=grey.dtype)
    kernel = torch.exp(-(places**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = functional.pad(grey, (reach,) * 4, mode="replicate")
    rows = functional.conv2d(padded, kernel[None, None, :, None])
    return functional.conv2d(rows, kernel[None, None, None, :])


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a short cut, with a normalisation of choice."""

    def __init__(self, before: int, after: int, stride: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.long = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            norm(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            norm(after),
        )
        same = stride == 1 and before == after
        self.short = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm(after))
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.long(x) + self.short(x))


class _ResNet(nn.Sequential):
    """The encoder of the released code: ResNet-18 with 16 to 128 channels, all at stride 1; 0.8 million parameters."""

    def __init__(self, planes: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(planes, 16, 7, 1, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        before = 16
        for after in (16, 32, 64, 128):
            layers += [_Residual(before, after, 1, nn.BatchNorm2d), _Residual(after, after, 1, nn.BatchNorm2d)]
            before = after
        super().__init__(*layers, nn.Conv2d(128, _FEATURES, 3, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.normal_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)


class _CompactEncoder(nn.Sequential):
    """Two residual blocks behind a convolution that comes down to half the size at once, where the stride allows.

    Nothing but the profile is computed at full size. Instance norm, for which one slice is enough.
    """

    def __init__(self, planes: int, stride: int) -> None:
        first, second = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[stride]
        super().__init__(
            nn.Conv2d(planes, 32, 3, first, 1, bias=False),
            _norm(32),
            nn.ReLU(inplace=True),
            _Residual(32, 48, second, _norm),  # type: ignore[arg-type]
            _Residual(48, 64, 1, _norm),  # type: ignore[arg-type]
            nn.Conv2d(64, _FEATURES, 1),
        )


def _norm(channels: int) -> nn.Module:
    return InstanceNorm(nn.InstanceNorm2d(channels, affine=True))
