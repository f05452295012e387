"""The meta-model of self-training (S5): it sees the image and several sets of pseudo-labels, and learns from them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_slicelabel.engine.densevoxnet import AUXILIARY_WEIGHT, DenseVoxNet
from napari_slicelabel.engine.devices import on_device
from napari_slicelabel.engine.losses import IGNORE, masked_losses
from napari_slicelabel.engine.sampling import Batch
from napari_slicelabel.engine.volume_networks import VolumeNetwork

# Where no set names a class the mean is not taken for certain.
_LEAST_MEAN = 0.01


class MetaNetwork(nn.Module):
    """A 3D network that also sees several sets of pseudo-labels, and may begin at their mean.

    Parameters
    ----------
    network : DenseVoxNet or VolumeNetwork
        Y-shaped, from scratch (S5), its auxiliary classifier counts while it is trained; or one that was trained on
        the annotation, see `fitted`.
    sets : slice
        Which channels of its input tell of the sets; the first of them hold their mean, one for each output.
    outputs : int
        Classes and background.
    start_at_mean : bool
        Whether it begins at the mean: a DenseVoxNet, whose classifiers start at zero then, learns what to add to its
        logarithm; a trained network is pooled with it half and half (logarithmic opinion pool).
    dropout : float
        Share of the crops that show nothing of the sets while it is trained. What it learns from them in the others
        it also knows without them then: `network` can label images of which there are none.
    """

    def __init__(
        self,
        network: DenseVoxNet | VolumeNetwork,
        sets: slice,
        outputs: int,
        *,
        start_at_mean: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self._sets, self._dropout = sets, dropout
        self._mean = slice(sets.start, sets.start + outputs) if start_at_mean else None
        if start_at_mean and isinstance(network, DenseVoxNet):
            for head in (network.classifier, network.auxiliary):
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, c, d, h, w); while it is trained a tuple of those of all classifiers, for `MetaLoss`."""
        if not self.training:
            return self._pooled(x, self.network(x))
        shown = torch.rand(len(x), 1, 1, 1, 1, device=x.device) >= self._dropout
        seen = x.clone()
        seen[:, self._sets] *= shown
        logits = self.network.with_auxiliary(seen) if isinstance(self.network, DenseVoxNet) else (self.network(seen),)
        return tuple(  # type: ignore[return-value]
            torch.where(shown, self._pooled(x, part), part.float()) for part in logits
        )

    def _pooled(self, x: Tensor, logits: Tensor) -> Tensor:
        """Return the logits together with the mean of the sets."""
        if self._mean is None:
            return logits
        mean = x[:, self._mean].float().clamp(min=_LEAST_MEAN).log()
        if isinstance(self.network, DenseVoxNet):
            return logits.float() + mean
        return (logits.log_softmax(1) + mean) / 2


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
            return on_device(torch.from_numpy(drawn), targets.device)
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


def fitted(weights: Mapping[str, Tensor], network: nn.Module, first: int) -> dict[str, Tensor]:
    """Return the weights of a network for one that is the same, but sees more channels of the input, or fewer.

    Parameters
    ----------
    weights : mapping of str to Tensor
        Of the network that is there.
    network : Module
        Where they are to go.
    first : int
        Where in the input the channels begin that come, and weigh nothing, or go, as if they were 0.

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
            coming = have.new_zeros(len(have), max(0, more), *have.shape[2:])
            have = torch.cat([have[:, :first], coming, have[:, first + max(0, -more) :]], 1)
        found[name] = have
    return found
