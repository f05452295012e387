"""The meta-model of self-training (S5): it sees the image and several sets of pseudo-labels, and learns from them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_slicelabel.engine.densevoxnet import AUXILIARY_WEIGHT, DenseVoxNet
from napari_slicelabel.engine.losses import IGNORE, masked_losses
from napari_slicelabel.engine.sampling import Batch
from napari_slicelabel.engine.volume_networks import VolumeNetwork

# Where no set names a class the mean is not taken for certain.
_LEAST_MEAN = 0.01


class MetaNetwork(nn.Module):
    """A 3D network that also sees the mean of several sets of pseudo-labels, and may begin at it.

    Parameters
    ----------
    network : DenseVoxNet or VolumeNetwork
        Y-shaped, from scratch (S5), its auxiliary classifier counts while it is trained; or one that was trained on
        the annotation, see `widened`.
    mean : slice, optional
        Which channels of the input hold the mean of the sets, one for each output. It is where the meta-model begins:
        a DenseVoxNet, whose classifiers start at zero then, learns what to add to its logarithm; a trained network
        is pooled with it half and half (logarithmic opinion pool).
    """

    def __init__(self, network: DenseVoxNet | VolumeNetwork, mean: slice | None) -> None:
        super().__init__()
        self.network = network
        self._mean = mean
        if mean is not None and isinstance(network, DenseVoxNet):
            for head in (network.classifier, network.auxiliary):
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, c, d, h, w); while it is trained a tuple of those of all classifiers, for `MetaLoss`."""
        if self.training and isinstance(self.network, DenseVoxNet):
            logits = self.network.with_auxiliary(x)
        else:
            logits = (self.network(x),)
        if self._mean is not None:
            mean = x[:, self._mean].float().clamp(min=_LEAST_MEAN).log()
            if isinstance(self.network, DenseVoxNet):
                logits = tuple(part.float() + mean for part in logits)
            else:
                logits = tuple((part.log_softmax(1) + mean) / 2 for part in logits)
        return logits if self.training else logits[0]  # type: ignore[return-value]


class MetaLoss:
    """The loss of the meta-model: cross-entropy (and Dice) to one of several sets of pseudo-labels.

    Attributes
    ----------
    nearest : bool
        False: to a set drawn at random for each crop (random fitting). True: to the set with the lowest cross-entropy
        (nearest-neighbour fitting). S5.
    """

    def __init__(self, dice_weight: float, rng: np.random.Generator) -> None:
        self.nearest = False
        self._dice_weight, self._rng = dice_weight, rng

    def __call__(self, output: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the loss.

        Parameters
        ----------
        output : sequence of Tensor of shape (b, c, d, h, w)
            Logits of the classifier, and of the auxiliary one where there is one.
        batch : Batch
            Its targets (b, n, d, h, w), or (b, d, h, w) of a single set.
        """
        logits, *auxiliary = (part.float() for part in output)
        targets = batch.target if batch.target.ndim == logits.ndim else batch.target[:, None]
        target = targets[torch.arange(len(targets), device=targets.device), self._choice(logits, targets)]
        main, *others = (
            masked_losses(part, target, batch.weight, dice_weight=self._dice_weight) for part in (logits, *auxiliary)
        )
        return main + AUXILIARY_WEIGHT * sum(others)

    def _choice(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not self.nearest:
            drawn = self._rng.integers(targets.shape[1], size=len(targets))
            return torch.from_numpy(drawn).to(targets.device)
        return nearest_set(logits.detach(), targets)


def nearest_set(logits: Tensor, targets: Tensor) -> Tensor:
    """Return which set of labels is nearest to a prediction, by cross-entropy over the known voxels of each crop.

    Parameters
    ----------
    logits : Tensor of shape (b, c, d, h, w)
        The prediction.
    targets : Tensor of shape (b, n, d, h, w), uint8
        The sets; 255 = unknown.

    Returns
    -------
    Tensor of shape (b,), int64
    """
    distances = [
        functional.cross_entropy(
            logits, torch.where(target == IGNORE, -100, target.long()), reduction="none", ignore_index=-100
        )
        .flatten(1)
        .sum(1)
        / (target != IGNORE).flatten(1).sum(1).clamp(min=1)
        for target in targets.unbind(1)
    ]
    return torch.stack(distances, 1).argmin(1)


def widened(weights: Mapping[str, Tensor], network: nn.Module, first: int) -> dict[str, Tensor]:
    """Return the weights of a trained network for one that is the same, but sees further channels.

    Parameters
    ----------
    weights : mapping of str to Tensor
        Of the trained network.
    network : Module
        Where they are to go.
    first : int
        Where in the input the further channels begin. They weigh nothing.

    Returns
    -------
    dict of str to Tensor
        A state of `network`.
    """
    found = {}
    for name, wanted in network.state_dict().items():
        have = weights[name]
        if have.shape != wanted.shape:
            more = wanted.shape[1] - have.shape[1]
            parts = (have[:, :first], have.new_zeros(have.shape[0], more, *have.shape[2:]), have[:, first:])
            have = torch.cat(parts, 1)
        found[name] = have
    return found
