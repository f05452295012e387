"""Losses that look only at what is known."""

import torch
from torch import Tensor
from torch.nn import functional

IGNORE = 255


def masked_losses(logits: Tensor, target: Tensor, weight: Tensor, *, dice_weight: float = 1.0) -> Tensor:
    """Return cross-entropy plus soft Dice over the known pixels of a batch.

    Parameters
    ----------
    logits : Tensor of shape (b, c, h, w) or (b, c, d, h, w), float32
        Channel 0 is background.
    target : Tensor of shape (b, h, w) or (b, d, h, w), uint8
        Channel numbers; 255 = unknown.
    weight : Tensor of shape (b,) or that of `target`, float32
        Weight of each sample, or of each voxel: 1 for human labels.
    dice_weight : float
        0 leaves the cross-entropy alone.

    Returns
    -------
    Tensor
        A scalar; 0 with gradient where nothing is known.

    Notes
    -----
    Dice is pooled over the batch and averaged over the foreground classes that occur in it: a class that is absent from
    the crops would only be pushed to zero (the trap of empty-class Dice).
    """
    known = target != IGNORE
    labels = torch.where(known, target, torch.zeros_like(target)).long()
    pixel_weight = known * (weight if weight.ndim == target.ndim else weight.view(-1, *[1] * (target.ndim - 1)))
    total = pixel_weight.sum().clamp(min=1.0)
    loss = (functional.cross_entropy(logits, labels, reduction="none") * pixel_weight).sum() / total
    if dice_weight == 0:
        return loss
    probability = logits.softmax(1)
    truth = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(probability.dtype)
    spread = pixel_weight[:, None]
    over = (0, *range(2, logits.ndim))
    overlap = (probability * truth * spread).sum(over)
    sizes = ((probability + truth) * spread).sum(over)
    present = (truth * spread).sum(over) > 0
    present[0] = False
    scores = 1 - (2 * overlap + 1) / (sizes + 1)
    # without a branch on the value: it would wait for the GPU
    return loss + dice_weight * (scores * present).sum() / present.sum().clamp(min=1)
