"""What slices are compared by: an explicit table of providers of feature vectors."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from napari_slicelabel.engine.events import Metric, Progress
from napari_slicelabel.engine.select.autoencoders import ConvAutoencoder, MaskedAutoencoder, learn_features, seeded
from napari_slicelabel.engine.select.options import SelectOptions
from napari_slicelabel.engine.select.pretrained import Encoder, load_encoder, weights_file
from napari_slicelabel.engine.select.thumbnails import Thumbnails

if TYPE_CHECKING:
    from numpy.typing import NDArray

Steps = Generator[Progress | Metric, None, "NDArray[np.float32]"]

MOST_STEPS = 600
"""Of training an auto-encoder."""

_INTENSITY_PX = 32
_AT_ONCE = 512
_FEW = 16


@dataclass(frozen=True)
class Features:
    """One way to describe slices by numbers.

    Attributes
    ----------
    name : str
        What the user types.
    title : str
        One line for lists and forms.
    compute : callable
        Takes the thumbnails of all stacks, a device, a generator, options, and a folder (or None) for a training that
        goes on after an interruption; a generator of progress that returns a row per slice, stack after stack.
    depends : callable
        Takes a seed and options; returns what the features depend on besides the slices.
    kept : bool
        Whether they are worth a file.
    """

    name: str
    title: str
    compute: Callable[[Sequence[Thumbnails], torch.device, np.random.Generator, SelectOptions, Path | None], Steps]
    depends: Callable[[int, SelectOptions], dict[str, Any]]
    kept: bool = True


class _Pictures:
    """The thumbnails of several stacks under running numbers, standardised, of the side that a network takes."""

    def __init__(self, stacks: Sequence[Thumbnails], side: int, device: torch.device) -> None:
        self._stacks = stacks
        self._starts = np.cumsum([0, *(len(stack.pictures) for stack in stacks)])
        self._side, self._device = side, device
        sample = self.raw(np.unique(np.linspace(0, len(self) - 1, min(len(self), 256)).astype(np.intp)))
        self._std, self._mean = torch.std_mean(sample)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __call__(self, numbers: "NDArray[np.intp]") -> Tensor:
        return (self.raw(numbers) - self._mean) / (self._std + 1e-6)

    def raw(self, numbers: "NDArray[np.intp]") -> Tensor:
        """Return pictures from 0 to 1, not standardised."""
        stacks = np.searchsorted(self._starts, numbers, side="right") - 1
        pictures = np.stack(
            [self._stacks[k].pictures[n - self._starts[k]] for k, n in zip(stacks, numbers, strict=True)]
        )
        tensor = torch.from_numpy(pictures).to(self._device).float() / 255
        return functional.interpolate(tensor, (self._side, self._side), mode="area")


def _intensity(
    stacks: Sequence[Thumbnails],
    device: torch.device,
    rng: np.random.Generator,
    options: SelectOptions,
    unfinished: Path | None,
) -> Steps:
    """Yield progress and return the pixels of 32 x 32 px pictures."""
    pictures = _Pictures(stacks, _INTENSITY_PX, device)
    found = []
    for first in range(0, len(pictures), _AT_ONCE):
        numbers = np.arange(first, min(len(pictures), first + _AT_ONCE))
        found.append(pictures(numbers).flatten(1).cpu().numpy())
        yield Progress("compare", int(numbers[-1]) + 1, len(pictures))
    return np.concatenate(found)


def _autoencoder(
    stacks: Sequence[Thumbnails],
    device: torch.device,
    rng: np.random.Generator,
    options: SelectOptions,
    unfinished: Path | None,
) -> Steps:
    pictures = _Pictures(stacks, ConvAutoencoder.side, device)
    network = seeded(lambda: ConvAutoencoder(stacks[0].pictures.shape[1]), rng)
    return (
        yield from learn_features(
            network, pictures, len(pictures), steps=MOST_STEPS, device=device, rng=rng, unfinished=unfinished
        )
    )


def _mae(
    stacks: Sequence[Thumbnails],
    device: torch.device,
    rng: np.random.Generator,
    options: SelectOptions,
    unfinished: Path | None,
) -> Steps:
    pictures = _Pictures(stacks, MaskedAutoencoder.side, device)
    network = seeded(lambda: MaskedAutoencoder(stacks[0].pictures.shape[1]), rng)
    return (
        yield from learn_features(
            network, pictures, len(pictures), steps=MOST_STEPS, device=device, rng=rng, unfinished=unfinished
        )
    )


def _pretrained(
    stacks: Sequence[Thumbnails],
    device: torch.device,
    rng: np.random.Generator,
    options: SelectOptions,
    unfinished: Path | None,
) -> Steps:
    encoder = load_encoder(options)
    encoder.network.to(device)
    pictures = _Pictures(stacks, Encoder.side, device)
    found = []
    for first in range(0, len(pictures), _FEW):
        numbers = np.arange(first, min(len(pictures), first + _FEW))
        with torch.inference_mode():
            found.append(encoder.features(pictures.raw(numbers)).float().cpu().numpy())
        yield Progress("compare", int(numbers[-1]) + 1, len(pictures))
    return np.concatenate(found)


def _learned(seed: int, options: SelectOptions) -> dict[str, Any]:
    return {"seed": seed, "steps": MOST_STEPS}


def _weights(seed: int, options: SelectOptions) -> dict[str, Any]:
    file = weights_file(options)
    stamp = [] if file is None else [str(file), file.stat().st_size, file.stat().st_mtime_ns]
    return {"encoder": options.encoder, "weights": options.weights, "file": stamp}


_ALL = (
    Features("autoencoder", "Convolutional auto-encoder, trained on these slices (S5)", _autoencoder, _learned),
    Features("mae", "Masked auto-encoder, trained on these slices (S3)", _mae, _learned),
    Features("pretrained", "Frozen encoder trained on photographs, weights by explicit choice", _pretrained, _weights),
    Features(
        "intensity", "Small pictures of the slices: the fast baseline", _intensity, lambda seed, options: {}, kept=False
    ),
)

FEATURES: Mapping[str, Features] = {features.name: features for features in _ALL}
