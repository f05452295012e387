"""How a network learns what corresponds: it puts slices together from others, without any label (S4)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from napari_slicelabel.engine.context import Slot
from napari_slicelabel.engine.correspondence import CorrespondenceNetwork, padded_to, reconstruction_loss
from napari_slicelabel.engine.devices import on_device
from napari_slicelabel.engine.guided import without_some_guides

if TYPE_CHECKING:
    from napari_slicelabel.engine.flow_config import FlowConfig
    from napari_slicelabel.engine.flow_slices import FlowSlices

_RUNS = 24


class ReconstructionTraining:
    """Training of a network on the slices of a run.

    Parameters
    ----------
    slices : FlowSlices
        Of the run; its parameters say how crops are drawn.
    network : CorrespondenceNetwork
        Is trained.
    rng : numpy.random.Generator
        Draws slices and crops.
    """

    def __init__(self, slices: "FlowSlices", network: CorrespondenceNetwork, rng: np.random.Generator) -> None:
        self._slices, self._network, self._rng = slices, network, rng
        self._config: FlowConfig = slices.config
        self._device = slices.context.device

    def steps(self, count: int) -> Iterator[Tensor]:
        """Take steps of training, yielding the loss after each; none where no piece has slices far enough apart."""
        runs = self._runs() if count else []
        if not runs:
            return
        config = self._config
        chains = min(len(run) for run in runs) > 2 * config.gap_low
        optimizer = torch.optim.AdamW(
            self._network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self._network.train()
        for number in range(1, count + 1):
            behind = 3 if chains and self._draws(config.sampling * number / count) else 2
            slices, seen = self._crops(runs, behind)
            loss = reconstruction_loss(self._network, slices, seen)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
            optimizer.step()
            yield loss.detach()

    def _draws(self, share: float) -> bool:
        return share > 0 and self._rng.random() < share

    def _runs(self) -> list[Tensor]:
        """Return some runs of consecutive slices, (n, c, h, w), as many as a fixed memory holds."""
        context, rng = self._slices.context, self._rng
        length = 1 + self._config.gap_high
        starts = [
            (name, start, min(start + length, piece.slices.stop))
            for name in context.volumes
            for piece in context.pieces(name)
            for start in range(piece.slices.start, max(piece.slices.start + 1, piece.slices.stop - length + 1))
        ]
        budget = self._config.cache_mb * 2**20
        runs = []
        for number in rng.permutation(len(starts)):
            name, start, stop = starts[number]
            if stop - start <= self._config.gap_low:
                continue
            slots = [Slot(name, index) for index in range(start, stop)]
            run = torch.stack([self._slices.seen(slot, self._slices.plane(slot), self._network) for slot in slots])
            budget -= run.nbytes
            runs.append(run)
            if budget < run.nbytes or len(runs) == _RUNS:
                break
        return runs

    def _crops(self, runs: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor]:
        """Return the same crop of `count` slices one behind the other, and what the network sees of them."""
        rng, config = self._rng, self._config
        stride = self._network.config.stride
        smallest = [min(run.shape[axis] for run in runs) for axis in (-2, -1)]
        size = [max(stride, min(config.crop_px, n) // stride * stride) for n in smallest]
        batch = []
        for _ in range(config.batch):
            run = runs[int(rng.integers(len(runs)))]
            places = self._places(len(run), count)
            y, x = (int(rng.integers(run.shape[axis] - n + 1)) for axis, n in zip((-2, -1), size, strict=True))
            crops = run[places, :, y : y + size[0], x : x + size[1]]
            turns, mirrored = int(rng.integers(4)) if size[0] == size[1] else 0, bool(rng.integers(2))
            batch.append(torch.rot90(crops.flip(-1) if mirrored else crops, turns, (-2, -1)))
        both = torch.stack([padded_to(crops, stride) for crops in batch])
        channels = self._network.config.image_channels
        slices, guides = both[:, :, :channels], both[:, :, channels:]
        seen = slices
        if config.contrast == "on":
            gamma, gain = (
                torch.from_numpy(rng.uniform(low, high, (config.batch, count, 1, 1, 1)).astype(np.float32))
                for low, high in ((0.7, 1.4), (0.8, 1.2))
            )
            seen = gain * slices.clamp_min(1e-3) ** gamma
        if guides.shape[2]:
            seen = without_some_guides(torch.cat([seen, guides], 2), channels, config.guide_dropout, rng)
        device = self._device
        return on_device(slices, device), on_device(seen, device)

    def _places(self, length: int, count: int) -> list[int]:
        """Return places in a run of slices, one behind the other in either direction, as far apart as in training."""
        rng, low, high = self._rng, self._config.gap_low, self._config.gap_high
        gaps: list[int] = []
        for later in reversed(range(count - 1)):
            gaps.append(int(rng.integers(low, min(high, length - 1 - sum(gaps) - low * later) + 1)))
        first = int(rng.integers(length - sum(gaps)))
        places = [first + sum(gaps[:number]) for number in range(count)]
        return places if rng.random() < 0.5 else places[::-1]
