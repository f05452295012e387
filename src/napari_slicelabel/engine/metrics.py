"""How good labels are: overlap, surface distances, instances, calibration.

Everything that can be is counted slice by slice and added up, so that no score needs a volume in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.ndimage import label as connected_components
from scipy.spatial import KDTree
from scipy.stats import spearmanr
from skimage.metrics import adapted_rand_error, variation_of_information
from skimage.segmentation import expand_labels

from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_VOXELS = 1 << 25
"""Surface distances are left out for a class whose bounding box is larger: minutes and gigabytes, for one number."""


@dataclass(frozen=True)
class Confusion:
    """Counts of pixels per label value; add them up over slices.

    Attributes
    ----------
    hits : ndarray of shape (256,), int64
        Pixels where prediction and truth have this value.
    predicted, true : ndarray of shape (256,), int64
        Pixels that have this value in the prediction, and in the truth.
    """

    hits: "NDArray[np.int64]" = field(default_factory=lambda: np.zeros(256, np.int64))
    predicted: "NDArray[np.int64]" = field(default_factory=lambda: np.zeros(256, np.int64))
    true: "NDArray[np.int64]" = field(default_factory=lambda: np.zeros(256, np.int64))

    @classmethod
    def of(cls, prediction: "NDArray[np.uint8]", truth: "NDArray[np.uint8]") -> Self:
        """Return the counts of two arrays of the same shape, uint8."""
        return cls(
            _count(prediction[prediction == truth]),
            _count(prediction),
            _count(truth),
        )

    def __add__(self, other: Self) -> "Confusion":
        """Return the counts of both."""
        return Confusion(self.hits + other.hits, self.predicted + other.predicted, self.true + other.true)

    def dice(self, value: int) -> float | None:
        """Return 2 x hits / (predicted + true); None for a value that is in neither, 0 for one in only one of them."""
        total = int(self.predicted[value] + self.true[value])
        return 2 * int(self.hits[value]) / total if total else None

    def iou(self, value: int) -> float | None:
        """Return hits / (predicted or true); None for a value that is in neither, 0 for one in only one of them."""
        union = int(self.predicted[value] + self.true[value] - self.hits[value])
        return int(self.hits[value]) / union if union else None

    def mean_dice(self, values: Sequence[int]) -> float | None:
        """Return the mean Dice of those `values` that are in prediction or truth; None when none is."""
        return mean([self.dice(value) for value in values])

    def mean_iou(self, values: Sequence[int]) -> float | None:
        """Return the mean IoU of those `values` that are in prediction or truth; None when none is."""
        return mean([self.iou(value) for value in values])


@dataclass(frozen=True, slots=True)
class SurfaceDistances:
    """Distances between two surfaces, in the unit of the spacing; None where there is nothing to measure, and why.

    Attributes
    ----------
    hd95 : float or None
        The larger of the two directions' 95th percentiles.
    assd : float or None
        Mean over the surface voxels of both.
    reason : str
        Why the two are None; otherwise empty.
    """

    hd95: float | None
    assd: float | None
    reason: str = ""


def surface_distances(
    prediction: "NDArray[np.bool_]",
    truth: "NDArray[np.bool_]",
    spacing: Sequence[float],
    *,
    counted: "NDArray[np.bool_] | None" = None,
) -> SurfaceDistances:
    """Return the 95 % Hausdorff and the average symmetric surface distance of two masks.

    Parameters
    ----------
    prediction, truth : ndarray of any shape, bool
        Best cut to their common bounding box. Outside of the array counts as outside of the mask.
    spacing : sequence of float
        Distance between voxels along each axis, in any unit.
    counted : ndarray of bool, optional
        Broadcasts to the masks: surface voxels elsewhere do not count as starting points, only as targets.

    Returns
    -------
    SurfaceDistances
        None when one of the masks is empty: the distance to nothing is no number.

    Notes
    -----
    The surface of a mask is what one erosion with the 6-neighbourhood takes off, and distances go from voxel centre to
    the nearest voxel centre: the same definition, and the same numbers, as MONAI's ``compute_hausdorff_distance`` and
    ``compute_average_surface_distance(symmetric=True)``, whose import alone takes ten seconds.
    """
    if not prediction.any() or not truth.any():
        which = [name for name, mask in (("prediction", prediction), ("truth", truth)) if not mask.any()]
        return SurfaceDistances(None, None, f"absent in {' and '.join(which)}")
    ours, theirs = _surface(prediction), _surface(truth)
    starts = np.broadcast_to(True if counted is None else counted, prediction.shape)
    there = _distances(ours & starts, theirs, spacing)
    back = _distances(theirs & starts, ours, spacing)
    both = np.concatenate([there, back])
    if not len(both):
        return SurfaceDistances(None, None, "no surface in the slices that count")
    hd95 = max(float(np.percentile(side, 95)) for side in (there, back) if len(side))
    return SurfaceDistances(hd95, float(both.mean()))


def instances_from_membrane(prediction: "NDArray[np.uint8]", membrane: int) -> "NDArray[np.int32]":
    """Return instances from a prediction of their membranes.

    Parameters
    ----------
    prediction : ndarray of shape (h, w) or (z, y, x), uint8
        Label values.
    membrane : int
        The label value of membranes.

    Returns
    -------
    ndarray of the same shape, int32
        Numbers from 1 for each connected component (4- or 6-neighbourhood) of what is no membrane. Membrane voxels get
        the number of the nearest component, as the reference segmentations of EM challenges have it; 0 only when all
        is membrane.
    """
    components, _ = connected_components(prediction != membrane)
    grown: NDArray[np.int32] = expand_labels(components, distance=float(sum(prediction.shape))).astype(np.int32)
    return grown


@dataclass(frozen=True, slots=True)
class InstanceScores:
    """How well instances agree. Truth 0 (membrane or background) is left out.

    Attributes
    ----------
    rand_error : float
        Adapted Rand error, 1 - F score of pixel pairs; 0 is perfect.
    split, merge : float
        The two parts of the variation of information, in bits; 0 is perfect.
    """

    rand_error: float
    split: float
    merge: float


def instance_scores(prediction: "NDArray[np.integer[Any]]", truth: "NDArray[np.integer[Any]]") -> InstanceScores | None:
    """Return the scores of instances against the truth, two arrays of the same shape; None when the truth is all 0."""
    if not truth.any():
        return None
    rand_error, _, _ = adapted_rand_error(truth, prediction, ignore_labels=(0,))
    # of the pair, the first is H(prediction | truth): one true object in several pieces
    split, merge = variation_of_information(truth, prediction, ignore_labels=(0,))
    return InstanceScores(float(rand_error), float(split), float(merge))


@dataclass(frozen=True)
class Calibration:
    """Counts of voxels by confidence, to compare how sure the labels are with how often they are right.

    Attributes
    ----------
    total, right : ndarray of shape (256,), int64
        Voxels of that confidence (0 to 255), and those among them with the right label.
    """

    total: "NDArray[np.int64]" = field(default_factory=lambda: np.zeros(256, np.int64))
    right: "NDArray[np.int64]" = field(default_factory=lambda: np.zeros(256, np.int64))

    @classmethod
    def of(cls, confidence: "NDArray[np.uint8]", right: "NDArray[np.bool_]") -> Self:
        """Return the counts of two arrays of the same shape."""
        return cls(_count(confidence), _count(confidence[right]))

    def __add__(self, other: Self) -> "Calibration":
        """Return the counts of both."""
        return Calibration(self.total + other.total, self.right + other.right)

    def error(self, bins: int = 15) -> float | None:
        """Return the expected calibration error; None when nothing was counted.

        Parameters
        ----------
        bins : int
            Equal widths between 0 and 1.

        Returns
        -------
        float or None
            Mean of |confidence - share that is right| over the bins, weighted by voxels (Guo et al., ICML 2017).
        """
        everything = int(self.total.sum())
        if not everything:
            return None
        values = np.arange(256) / 255
        bin_of = np.minimum((values * bins).astype(int), bins - 1)
        gaps = np.bincount(bin_of, values * self.total - self.right, bins)
        return float(np.abs(gaps).sum() / everything)

    def gap(self) -> float | None:
        """Return mean confidence minus the share that is right: above 0 is too sure; None when nothing was counted."""
        everything = int(self.total.sum())
        if not everything:
            return None
        return float((np.arange(256) / 255 * self.total - self.right).sum() / everything)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; None with fewer than three pairs, or when either is constant."""
    if len(first) != len(second):
        raise InputError(f"{len(first)} and {len(second)} values; a correlation needs pairs")
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are there; None when none is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _count(values: "NDArray[np.uint8]") -> "NDArray[np.int64]":
    return np.bincount(values.ravel(), minlength=256).astype(np.int64)


def _surface(mask: "NDArray[np.bool_]") -> "NDArray[np.bool_]":
    return mask & ~np.asarray(binary_erosion(mask), np.bool_)


def _distances(
    starts: "NDArray[np.bool_]", targets: "NDArray[np.bool_]", spacing: Sequence[float]
) -> "NDArray[np.float64]":
    if not starts.any():
        return np.zeros(0)
    scale = np.asarray(spacing, np.float64)
    distances, _ = KDTree(np.argwhere(targets) * scale, leafsize=32).query(np.argwhere(starts) * scale)
    return np.asarray(distances, np.float64)
