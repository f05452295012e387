"""Networks that learn what the slices of a stack look like, without any label."""

import json
import math
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_slicelabel.data.files import remove
from napari_slicelabel.engine.events import Metric, Progress
from napari_slicelabel.engine.state import load_state, save_state
from napari_slicelabel.errors import InputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

T = TypeVar("T")

SAVE_EVERY_S = 20.0
"""Seconds of a training that a kill may cost."""

_BATCH = 32
_WINDOW = 50
_LEAST_FALL = 0.01


class ConvAutoencoder(nn.Module):
    """The auto-encoder of S5 in small: convolutions, a fully connected layer whose output is the feature, and back.

    Zheng et al. freeze the convolutions of VGG-19 with ImageNet weights; here all is trained from scratch, which needs
    no download.

    Parameters
    ----------
    channels : int
        Of the pictures.
    width : int
        Filters at half resolution.
    features : int
        Length of the feature vector.
    """

    side = 64

    def __init__(self, channels: int, width: int = 16, features: int = 128) -> None:
        super().__init__()
        sizes = (channels, width, 2 * width, 4 * width, 4 * width)
        self.down = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(4, b), nn.GELU())
                for a, b in pairwise(sizes)
            )
        )
        self._inner = (sizes[-1], self.side // 16, self.side // 16)
        flat = math.prod(self._inner)
        self.encode = nn.Linear(flat, features)
        self.decode = nn.Linear(features, flat)
        back = (*sizes[:0:-1], width)
        self.up = nn.Sequential(
            *(
                nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(4, b), nn.GELU())
                for a, b in pairwise(back)
            ),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def features(self, x: Tensor) -> Tensor:
        """Return the feature vectors of pictures (b, c, side, side)."""
        encoded: Tensor = self.encode(self.down(x).flatten(1))
        return encoded

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the pictures made again; nothing is drawn."""
        again = self.up(self.decode(self.features(x)).unflatten(1, self._inner))
        return functional.mse_loss(again, x)


class MaskedAutoencoder(nn.Module):
    """A masked auto-encoder (He et al. 2022), as the features of S3: three quarters of the patches are hidden.

    A vision transformer sees the others; a thin decoder guesses the hidden patches, each normalised. The feature is
    the mean over the patches of a picture of which nothing is hidden.

    Parameters
    ----------
    channels : int
        Of the pictures.
    width : int
        Of the encoder's tokens, which is the length of the feature vector.
    depth : int
        Blocks of the encoder.
    """

    side = 96
    patch = 12
    hidden = 0.75

    def __init__(self, channels: int, width: int = 192, depth: int = 4) -> None:
        super().__init__()
        self._tokens = (self.side // self.patch) ** 2
        pixels = channels * self.patch**2
        thin = width // 2
        self.embed = nn.Linear(pixels, width)
        self.places = nn.Parameter(_sines(self._tokens, width), requires_grad=False)
        self.encoder = nn.TransformerEncoder(_block(width), depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.narrow = nn.Linear(width, thin)
        self.unseen = nn.Parameter(torch.zeros(thin))
        self.thin_places = nn.Parameter(_sines(self._tokens, thin), requires_grad=False)
        self.decoder = nn.TransformerEncoder(_block(thin), 1, nn.LayerNorm(thin), enable_nested_tensor=False)
        self.guess = nn.Linear(thin, pixels)

    def features(self, x: Tensor) -> Tensor:
        """Return the feature vectors of pictures (b, c, side, side)."""
        tokens: Tensor = self.encoder(self.embed(self._patches(x)) + self.places)
        return tokens.mean(1)

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the hidden patches, each normalised; `generator` (CPU) draws which."""
        patches = self._patches(x)
        count, seen = len(x), round(self._tokens * (1 - self.hidden))
        order = torch.rand(count, self._tokens, generator=generator).argsort(1).to(x.device)
        kept, lost = order[:, :seen], order[:, seen:]
        tokens = self.embed(patches) + self.places
        encoded = self.narrow(self.encoder(_take(tokens, kept)))
        everything = self.unseen.expand(count, self._tokens, -1).to(encoded.dtype)
        everything = everything.scatter(1, kept[..., None].expand_as(encoded), encoded) + self.thin_places
        guessed = _take(self.guess(self.decoder(everything)), lost)
        wanted = _take(patches, lost)
        spread, mean = torch.std_mean(wanted, -1, keepdim=True)
        return functional.mse_loss(guessed, (wanted - mean) / (spread + 1e-3))

    def _patches(self, x: Tensor) -> Tensor:
        return functional.unfold(x, self.patch, stride=self.patch).transpose(1, 2)


def seeded(build: "Callable[[], T]", rng: np.random.Generator) -> "T":
    """Return what `build` makes, with weights that follow `rng` and without a trace in torch's own generator."""
    with torch.random.fork_rng():
        torch.manual_seed(int(rng.integers(2**31)))
        return build()


def learn_features(
    network: ConvAutoencoder | MaskedAutoencoder,
    pictures: "Callable[[NDArray[np.intp]], Tensor]",
    count: int,
    *,
    steps: int,
    device: torch.device,
    rng: np.random.Generator,
    unfinished: Path | None = None,
) -> Generator[Progress | Metric, None, "NDArray[np.float32]"]:
    """Train an auto-encoder until it gets no better, and return the features of all pictures.

    Parameters
    ----------
    network : ConvAutoencoder or MaskedAutoencoder
        Trained in place.
    pictures : callable
        Returns the pictures of some numbers as the network takes them, on `device`.
    count : int
        How many pictures there are.
    steps : int
        At most. Training ends when the loss of 50 steps is not a hundredth below that of the 50 before.
    device : torch.device
        Where.
    rng : numpy.random.Generator
        Draws batches and masks.
    unfinished : Path, optional
        Folder that keeps a training for as long as it goes on, written every 20 seconds. One that is there goes on, and
        ends as if it had never been interrupted. By default nothing is kept.

    Yields
    ------
    Progress, Metric
        While it trains and while it looks at all pictures.

    Returns
    -------
    ndarray of shape (count, d), float32

    Raises
    ------
    InputError
        The loss is no number.
    StorageError
        The folder cannot be written.
    """
    network.to(device).train()
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    optimizer = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), 1e-3, weight_decay=0.01)
    training = _Training(network, optimizer, rng, generator)
    if unfinished is not None:
        training.load(unfinished)
    losses, saved = training.losses, time.monotonic()
    for step in range(len(losses) + 1, steps + 1):
        if _ended(losses):
            break
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, step / 20)
        loss = network.loss(pictures(rng.integers(count, size=min(_BATCH, count))), generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise InputError(f"the auto-encoder went astray: its loss is {losses[-1]}; use features=intensity")
        yield Progress("learn what slices look like", step, steps)
        if step % 10 == 0:
            yield Metric("loss", losses[-1], step)
        if unfinished is not None and time.monotonic() - saved >= SAVE_EVERY_S:
            training.save(unfinished)
            saved = time.monotonic()
    network.eval()
    found = []
    for first in range(0, count, 4 * _BATCH):
        numbers = np.arange(first, min(count, first + 4 * _BATCH))
        with torch.inference_mode():
            found.append(network.features(pictures(numbers)).float().cpu().numpy())
        yield Progress("compare", int(numbers[-1]) + 1, count)
    return np.concatenate(found)


@dataclass(frozen=True)
class _Training:
    """All that a training needs to go on."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    rng: np.random.Generator
    generator: torch.Generator
    losses: list[float] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Replace what the folder holds."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
        tensors["generator"] = self.generator.get_state()
        drawn = json.loads(json.dumps(self.rng.bit_generator.state))
        save_state(folder, tensors, {"losses": list(self.losses), "rng": drawn})

    def load(self, folder: Path) -> None:
        """Go on where a training was, if the folder holds one; a damaged one is begun again."""
        try:
            state = load_state(folder)
        except StorageError:
            state = None
            remove(folder)
        if state is None:
            return
        tensors, extra = state
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                moments.setdefault(int(number), {})[key] = value
        network = {
            name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")
        }
        self.network.load_state_dict(network)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.generator.set_state(tensors["generator"])
        drawn: Any = extra["rng"]
        losses: Any = extra["losses"]
        self.rng.bit_generator.state = drawn
        self.losses[:] = losses


def _ended(losses: list[float]) -> bool:
    """Return whether the last 50 steps brought next to nothing."""
    if len(losses) < 3 * _WINDOW or len(losses) % _WINDOW:
        return False
    now, before = np.mean(losses[-_WINDOW:]), np.mean(losses[-2 * _WINDOW : -_WINDOW])
    return bool(now > (1 - _LEAST_FALL) * before)


def _block(width: int) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        width, width // 32, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def _take(tokens: Tensor, which: Tensor) -> Tensor:
    return tokens.gather(1, which[..., None].expand(-1, -1, tokens.shape[-1]))


def _sines(count: int, width: int) -> Tensor:
    """Return fixed sine and cosine embeddings of places on a square grid."""
    side = math.isqrt(count)
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(-1, 2)
    rates = 1 / 100 ** (torch.arange(width // 4) / (width // 4))
    angles = (places[..., None] * rates).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], 1)
