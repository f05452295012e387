"""Probabilities that mean what they say: temperature, expected Dice, and their correction with distance.

A network trained on a few slices is sure of itself everywhere. Slices that were held out of training tell how sure it
may be at their distance from the nearest annotated slice, and the correction grows linearly from none at an annotated
slice to that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit

from napari_slicelabel.engine.losses import IGNORE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from napari_slicelabel.engine.predict import Band

FOLDS = 2
"""Parts that annotated slices are held out in."""

_TEMPERATURES = (0.25, 8.0)
_SHIFTS = (-4.0, 2.0)
# A shift downwards counts as if so many slices more had needed none: held-out slices are few, and far from annotated
# ones. Where even they are better than expected, all the others are.
_UNSHIFTED = 4
_TINY = 1e-6
_LEAST_POOLED = 1e-3
_MOST_PIXELS = 200_000


@dataclass(frozen=True, slots=True)
class Calibration:
    """How to correct probabilities and expected Dice.

    Attributes
    ----------
    temperature : float
        Divides logits at distance `reference`; Guo et al., ICML 2017.
    shift : float
        Added to the logit of a slice's expected Dice at distance `reference`.
    reference : float
        Distance, in slices, of the held-out slices to the nearest annotated one.
    """

    temperature: float = 1.0
    shift: float = 0.0
    reference: float = 1.0

    def temperature_at(self, distance: float) -> float:
        """Return the temperature for a slice at a distance from the nearest annotated one."""
        return float(np.clip(1 + (self.temperature - 1) * self._share(distance), *_TEMPERATURES))

    def distance(self, nearest: int | None) -> int:
        """Return the distance to correct for, where `nearest` is that of the nearest annotated slice, if there is one.

        Of a volume without annotated slices nothing is known but that it is further away than what was measured.
        """
        return math.ceil(2 * self.reference) if nearest is None else nearest

    def corrected(self, expected: float, distance: float) -> float:
        """Return the expected Dice of a slice, corrected for its distance."""
        return float(expit(logit(np.clip(expected, _TINY, 1 - _TINY)) + self.shift * self._share(distance)))

    def _share(self, distance: float) -> float:
        return min(distance / max(self.reference, 1.0), 2.0)


class Labelled(NamedTuple):
    """A predicted slice.

    Attributes
    ----------
    channels : ndarray of shape (h, w), uint8
        The likeliest output channel; 0 = background.
    confidence : ndarray of shape (h, w), float32
        Its probability.
    expected : float
        Expected Dice of the slice, not corrected for distance.
    """

    channels: "NDArray[np.uint8]"
    confidence: "NDArray[np.float32]"
    expected: float


def label(
    bands: "Iterable[Band]", shape: tuple[int, int], classes: int, temperature: float, usual_area: float
) -> Labelled:
    """Return labels, confidence and expected Dice of a slice from its probabilities.

    Parameters
    ----------
    bands : iterable of Band
        The slice from top to bottom.
    shape : tuple of 2 int
        Height and width.
    classes : int
        Number of classes without background.
    temperature : float
        Divides the logits.
    usual_area : float
        Foreground pixels of an annotated slice, on average; see `expected_dice`.

    Returns
    -------
    Labelled
    """
    channels = np.empty(shape, np.uint8)
    confidence = np.empty(shape, np.float32)
    sums = np.zeros((3, classes + 1))
    for rows, probability in bands:
        tempered = with_temperature(probability, temperature)
        best = tempered.argmax(0)
        channels[rows], confidence[rows] = best, tempered.max(0)
        sums += _sums(tempered, best)
    hits, areas, masses = sums[:, 1:]
    return Labelled(channels, confidence, expected_dice(hits, areas, masses, usual_area))


def with_temperature(probability: "NDArray[np.float32]", temperature: float) -> "NDArray[np.float32]":
    """Return probabilities (c, ...) whose logits were divided by `temperature`."""
    if temperature == 1:
        return probability
    powered = np.power(np.maximum(probability, np.float32(_TINY)), np.float32(1 / temperature))
    tempered: NDArray[np.float32] = powered / powered.sum(0, keepdims=True)
    return tempered


def pooled(one: "NDArray[np.float32]", other: "NDArray[np.float32]", share: float) -> "NDArray[np.float32]":
    """Return what two labellings say together: the logarithmic opinion pool (Genest and Zidek 1986).

    Parameters
    ----------
    one, other : ndarray of shape (c, ...), float32
        Probabilities. None counts as less than 0.001, so that neither can rule out what the other is sure of.
    share : float
        Weight of the second, 0 to 1.

    Returns
    -------
    ndarray of shape (c, ...), float32
        ``one ** (1 - share) * other ** share``, scaled to the sum 1.
    """
    logs = [_logarithm(probability) for probability in (one, other)]
    powered = np.exp((logs[0] + np.float32(share) * (logs[1] - logs[0])).astype(np.float32))
    together: NDArray[np.float32] = powered / powered.sum(0, keepdims=True)
    return together


def fit_share(one: "Sequence[HeldOut]", other: "Sequence[HeldOut]") -> float:
    """Return the share that a second labeller should have in the pool of two.

    Parameters
    ----------
    one, other : sequence of HeldOut
        What the two say of the same pixels of the same held-out slices.

    Returns
    -------
    float
        0 to 1: ``b / (a + b)`` for the powers ``a, b >= 0`` of the two probabilities under which the true channels
        are most likely, every slice counting the same. Their sum is the inverse of a temperature, which `calibrate`
        fits anew: how sure the pool is must not decide who is right. 0 where both do harm.
    """
    slices = []
    for first, second in zip(one, other, strict=True):
        logs = np.stack([_logarithm(first.probability), _logarithm(second.probability)])
        right = np.take_along_axis(logs, first.target[None, None].astype(np.intp), 1)
        slices.append((logs, right.mean((1, 2), dtype=np.float64)))

    def surprise(powers: "NDArray[np.float64]") -> "tuple[float, NDArray[np.float64]]":
        losses, slopes = [], []
        for logs, right in slices:
            both = np.tensordot(powers.astype(np.float32), logs, 1)
            most = both.max(0)
            likely = np.exp(both - most)
            total = likely.sum(0)
            losses.append((np.log(total) + most).mean(dtype=np.float64) - powers @ right)
            slopes.append((likely / total * logs).sum(1).mean(1, dtype=np.float64) - right)
        return float(np.mean(losses)), np.mean(slopes, 0)

    # convex: a logistic regression of the true channel on two inputs
    powers = minimize(surprise, (0.5, 0.5), jac=True, bounds=((0, None), (0, None)), method="L-BFGS-B").x
    return float(powers[1] / powers.sum()) if powers.any() else 0.0


def _logarithm(probability: "NDArray[np.float32]") -> "NDArray[np.float32]":
    logs: NDArray[np.float32] = np.log(np.maximum(probability, np.float32(_LEAST_POOLED)))
    return logs


def expected_dice(
    hits: "NDArray[np.float64]", areas: "NDArray[np.float64]", masses: "NDArray[np.float64]", usual_area: float
) -> float:
    """Return the Dice that a slice would have if its probabilities were true.

    Parameters
    ----------
    hits : ndarray of shape (classes,), float64
        Summed probability of each class where it was predicted.
    areas : ndarray of shape (classes,), float64
        Pixels where it was predicted.
    masses : ndarray of shape (classes,), float64
        Summed probability of it over the slice: the area that its truth is expected to have.
    usual_area : float
        Foreground pixels of an annotated slice. Where nothing is predicted the score is
        ``usual_area / (usual_area + mass)``, since Dice says nothing there.

    Returns
    -------
    float
        0 to 1: the mean over the predicted classes of ``2 hits / (area + mass)``.
    """
    predicted = areas > 0
    if predicted.any():
        return float(np.mean(2 * hits[predicted] / (areas[predicted] + masses[predicted])))
    usual = max(usual_area, 1.0)
    return float(usual / (usual + masses.sum()))


class HeldOut(NamedTuple):
    """What a network that never saw a slice says of its known pixels, or of a sample of them.

    Attributes
    ----------
    probability : ndarray of shape (c, n), float32
        Predicted probabilities.
    target : ndarray of shape (n,), uint8
        True channels.
    distance : int
        To the nearest slice that the network learned from, in slices.
    """

    probability: "NDArray[np.float32]"
    target: "NDArray[np.uint8]"
    distance: int


def sample_known(target: "NDArray[np.uint8]", rng: np.random.Generator) -> "NDArray[np.bool_]":
    """Return a mask (h, w) of known pixels of a held-out slice: all, or a random sample that is enough to judge by."""
    known = np.flatnonzero(target != IGNORE)
    if len(known) > _MOST_PIXELS:
        known = np.sort(rng.choice(known, _MOST_PIXELS, replace=False))
    picked = np.zeros(target.shape, bool)
    picked.ravel()[known] = True
    return picked


def calibrate(
    held_out: Sequence[HeldOut], usual_area: float, *, final: bool = False, returned: bool = False
) -> Calibration:
    """Return the calibration under which held-out slices come out best.

    Parameters
    ----------
    held_out : sequence of HeldOut
        At least one.
    usual_area : float
        As for `expected_dice`, in pixels of the samples.
    final : bool
        Whether what labels held-out slices is what labels all others. Then it may turn out to be too modest, too, and
        the temperature be below 1: not where it trained for less long, and is less sure of itself for that reason.
    returned : bool
        Whether they were not held out, but carried away and back. That may show that labels get lost, but not that they
        arrive: they can also come back from where there is nothing like them. So there is no shift upwards.

    Returns
    -------
    Calibration
        The temperature makes the true channels most likely, every slice counting the same. The shift then makes the
        expected Dice of the slices closest to their true one, by least squares; downwards it is made the smaller the
        fewer show a class.
    """
    temperature = _fit_temperature(held_out, _TEMPERATURES[0] if final else 1.0)
    expected, true = [], []
    for slice_ in held_out:
        tempered = with_temperature(slice_.probability, temperature)
        channels = tempered.argmax(0)
        hits, areas, masses = _sums(tempered, channels)
        expected.append(expected_dice(hits[1:], areas[1:], masses[1:], usual_area))
        true.append(true_dice(channels, slice_.target))
    known = [(e, t) for e, t in zip(expected, true, strict=True) if t is not None]
    shift = _fit_shift([e for e, _ in known], [t for _, t in known]) if known else 0.0
    if returned:
        shift = min(shift, 0.0)
    if shift < 0:
        shift *= len(known) / (len(known) + _UNSHIFTED)
    return Calibration(temperature, shift, float(np.mean([slice_.distance for slice_ in held_out])))


def true_dice(channels: "NDArray[np.integer]", target: "NDArray[np.uint8]") -> float | None:
    """Return the mean Dice over the classes that occur in either of two label arrays; None where there are none."""
    scores = []
    for channel in np.union1d(np.unique(channels), np.unique(target)):
        if channel:
            predicted, there = channels == channel, target == channel
            overlap = np.count_nonzero(predicted & there)
            scores.append(2 * overlap / (np.count_nonzero(predicted) + np.count_nonzero(there)))
    return float(np.mean(scores)) if scores else None


def mean_dice(held_out: Sequence[HeldOut]) -> float:
    """Return the mean Dice of held-out slices, those left out that hold no class; 0 where none does."""
    scores = [true_dice(slice_.probability.argmax(0), slice_.target) for slice_ in held_out]
    return float(np.mean([score for score in scores if score is not None] or [0.0]))


def _sums(
    probability: "NDArray[np.float32]", best: "NDArray[np.integer]"
) -> tuple["NDArray[np.float64]", "NDArray[np.float64]", "NDArray[np.float64]"]:
    """Return hits, areas and masses of every channel; see `expected_dice`."""
    count = len(probability)
    top = np.take_along_axis(probability, best[None], 0)[0]
    hits: NDArray[np.float64] = np.bincount(best.ravel(), top.ravel(), count).astype(np.float64)
    areas = np.bincount(best.ravel(), minlength=count).astype(np.float64)
    masses: NDArray[np.float64] = probability.reshape(count, -1).sum(1, dtype=np.float64)
    return hits, areas, masses


def _fit_temperature(held_out: Sequence[HeldOut], lowest: float) -> float:
    def surprise(log_temperature: float) -> float:
        losses = []
        for slice_ in held_out:
            tempered = with_temperature(slice_.probability, float(np.exp(log_temperature)))
            right = np.take_along_axis(tempered, slice_.target[None].astype(np.int64), 0)
            losses.append(-np.log(np.maximum(right, _TINY)).mean())
        return float(np.mean(losses))

    low, high = np.log([lowest, _TEMPERATURES[1]])
    return float(np.exp(minimize_scalar(surprise, bounds=(low, high), method="bounded").x))


def _fit_shift(expected: Sequence[float], true: Sequence[float]) -> float:
    logits, wanted = logit(np.clip(expected, _TINY, 1 - _TINY)), np.asarray(true)

    def error(shift: float) -> float:
        return float(np.square(expit(logits + shift) - wanted).mean())

    return float(minimize_scalar(error, bounds=_SHIFTS, method="bounded").x)
