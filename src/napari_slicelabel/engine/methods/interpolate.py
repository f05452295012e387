"""Signed-distance interpolation between annotated slices. Looks at no image: instant preview, and the floor to beat.

The shape-based interpolation of Raya and Udupa (IEEE Transactions on Medical Imaging 9(1), 1990), for several classes
at once and with a calibrated confidence.
"""

# No `from __future__ import annotations`: pydantic reads the annotations of the config when the class is made.
from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit

from napari_slicelabel.data.boxes import AXES, SliceRef
from napari_slicelabel.engine.config import MethodConfig
from napari_slicelabel.engine.context import Slot
from napari_slicelabel.engine.events import Event, Metric, Progress
from napari_slicelabel.engine.interpolation import LABEL_RADIUS_PX, TopTwo, blend, class_distances, top_two
from napari_slicelabel.engine.work import Stack, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.engine.context import RunContext

NAME = "interpolate"

# More held-out slices hardly move one parameter; on large slices each costs two distance transforms per class.
MOST_HELD_OUT = 8

# Distances count up to here for the confidence. Measured on five volumes, expected minus true Dice: 12 px too
# sure (+.10 on average), 64 px too unsure on small objects (-.26 at worst), 24 px between -.11 and +.08.
LONGEST_PX = 24.0

# Ratios of margin to distance beyond these say "on the border" and "certain".
_POSITIVE = np.geomspace(1e-3, 1e3, 128)
_RATIO_EDGES = np.concatenate([-_POSITIVE[::-1], _POSITIVE])
_SLOPE_BOUNDS = (0.02, 50.0)


# Of 1e6 pixels and one class on one CPU core; for the plan.
_SECONDS = 0.25


class InterpolateConfig(MethodConfig):
    """Parameters of `propagate`."""

    PRESETS: ClassVar = {"default": {}, "nearest": {"mode": "nearest"}}
    SIMPLE: ClassVar = ("mode", "axis", "range")

    mode: Literal["distance", "nearest"] = Field(
        "distance",
        description="distance: blend the signed distances of the two nearest annotated slices; "
        "nearest: copy the nearest one.",
    )
    radius_px: float = Field(
        LABEL_RADIUS_PX,
        ge=1.0,
        le=LONGEST_PX,
        json_schema_extra={"step": 1.0},
        description="Distances are cut there, in pixels. An object painted in one of two slices shrinks away from that "
        "one: the smaller the radius, the further it reaches.",
    )
    slope: float = Field(
        1.0,
        ge=0.05,
        le=20.0,
        json_schema_extra={"step": 0.05},
        description="How far borders shift in the slice per unit of depth. For the confidence only, and only with "
        "fewer than three annotated slices; with more it is measured.",
    )


class Neighbours(NamedTuple):
    """Where a slice lies among the annotated ones.

    `lower` and `upper` are the nearest annotated slices on the two sides; the same one twice before the first and after
    the last. `weight` is 0 at `lower` and 1 at `upper`. `gap` counts slices: the two distances combined like parallel
    resistors, ``1 / (1 / below + 1 / above)``; on the outside the distance to the nearest one.
    """

    lower: int
    upper: int
    weight: float
    gap: float


def neighbours(index: int, annotated: Sequence[int]) -> Neighbours:
    """Return where slice `index` lies among `annotated`, which is sorted and not empty.

    Examples
    --------
    >>> neighbours(4, [2, 10])
    Neighbours(lower=2, upper=10, weight=0.25, gap=1.5)
    >>> neighbours(0, [2, 10])
    Neighbours(lower=2, upper=2, weight=0.0, gap=2.0)
    """
    position = bisect_left(annotated, index)
    upper = annotated[min(position, len(annotated) - 1)]
    if upper == index or position == 0 or position == len(annotated):
        return Neighbours(upper, upper, 0.0, float(abs(upper - index)))
    lower = annotated[position - 1]
    below, above = index - lower, upper - index
    return Neighbours(lower, upper, below / (below + above), below * above / (below + above))


def propagate(context: "RunContext", config: InterpolateConfig) -> Iterator[Event]:
    """Fill the slices between annotated ones, one by one.

    Parameters
    ----------
    context : RunContext
        The run.
    config : InterpolateConfig
        The parameters.

    Yields
    ------
    Event
        `Progress` and one `Metric` ("slope") per volume, then a `SliceDone` for each slice.

    Raises
    ------
    InputError
        A volume has no annotated slice, or none with a class in it.

    Notes
    -----
    Between two annotated slices the signed distances of background and of each class are blended linearly by distance
    along the axis; the largest wins, background where it ties. Before the first and after the last annotated slice the
    nearest one is copied. In a slice that is painted but not complete unpainted pixels count as background here: a
    shape needs an outside.

    For the labels distances are cut at ``radius_px``, otherwise an object that one of the two slices lacks would vanish
    at once. The confidence looks at the uncut ones: a pixel whose label leads the next best by ``margin`` has
    ``1 / (1 + exp(-ratio / slope))`` with ``ratio = margin / (2 * gap)``. For two classes that is the distance to the
    border in the slice over the distance to the evidence across slices (see `Neighbours`), both in the volume's unit;
    it is negative, and the confidence below one half, where the uncut distances speak for another label. ``slope`` is
    how far a border shifts in the slice per unit of depth. With three or more annotated slices it is the one that makes
    held-out inner slices, each interpolated from its neighbours, most likely; their larger gaps need no correction,
    since the gap is in the ratio.

    At most two slices of distances are in memory.
    """
    context.need_annotated("interpolate from")
    context.need_classes()
    digest = context.annotation_digest()
    state = context.load_state()
    fresh = state is None or state[1].get("annotation") != digest
    slopes: dict[str, float] = {}
    for name in context.volumes:
        planes = _Planes(context, name, config)
        slopes[name] = yield from _measure_slope(planes, config)
        if context.stop():
            return
    # after this a resume may keep what the journal lists: it was made from the same paint with the same slope
    context.save_state({}, {"annotation": digest, "slopes": dict(slopes)})
    for name in context.volumes:
        done = frozenset[int]() if fresh else context.done(name)
        yield from _fill(context, name, config, slopes[name], done)


def work(stacks: Sequence[Stack], classes: int, config: InterpolateConfig) -> Work:
    """Return how much `propagate` has to do."""
    pixels = max(stack.pixels for stack in stacks)
    predictions = sum(stack.slices for stack in stacks)
    return Work(
        rounds=0,
        steps=0,
        predictions=predictions,
        step_s=0.0,
        prediction_s=pixels / 1e6 * _SECONDS * (1 + classes),
        memory_bytes=200 * 2**20 + 60 * pixels,
    )


def expected_dice(
    labels: "NDArray[np.uint8]",
    runner_up: "NDArray[np.uint8]",
    confidence: "NDArray[np.float32]",
    classes: Sequence[int],
    usual_area: float,
) -> float:
    """Return the Dice that a slice would have if each pixel were right with its confidence.

    Parameters
    ----------
    labels : ndarray of shape (h, w), uint8
        The predicted label values, 0 = background.
    runner_up : ndarray of shape (h, w), uint8
        The label that a pixel has when the prediction is wrong.
    confidence : ndarray of shape (h, w), float32
        Probability that the prediction is right, 0 to 1.
    classes : sequence of int
        Label values of the classes.
    usual_area : float
        Foreground pixels of an annotated slice, on average. For a slice in which nothing is predicted: its score is
        ``usual_area / (usual_area + expected number of missed pixels)``, since Dice says nothing there.

    Returns
    -------
    float
        0 to 1, the mean over the classes that are predicted somewhere in the slice.
    """
    scores = []
    for value in classes:
        predicted = labels == value
        if predicted.any():
            hits = float(confidence[predicted].sum(dtype=np.float64))
            missed = float((1 - confidence[runner_up == value]).sum(dtype=np.float64))
            scores.append(2 * hits / (np.count_nonzero(predicted) + hits + missed))
    if scores:
        return float(np.mean(scores))
    missed = float((1 - confidence[runner_up != 0]).sum(dtype=np.float64))
    return max(usual_area, 1.0) / (max(usual_area, 1.0) + missed)


def fit_slope(ratios: "NDArray[np.float64]", right: "NDArray[np.float64]", wrong: "NDArray[np.float64]") -> float:
    """Return the slope that makes the counts most likely.

    Parameters
    ----------
    ratios : ndarray of shape (n,), float64
        Margin over distance, as in `propagate`.
    right, wrong : ndarray of shape (n,), float64
        How many pixels of that ratio were predicted rightly and wrongly.

    Returns
    -------
    float
        Between 0.02 and 50.
    """

    def surprise(log_slope: float) -> float:
        scaled = ratios / np.exp(log_slope)
        return -float(right @ log_expit(scaled) + wrong @ log_expit(-scaled))

    low, high = np.log(_SLOPE_BOUNDS)
    return float(np.exp(minimize_scalar(surprise, bounds=(low, high), method="bounded").x))


@dataclass
class _Planes:
    """The distances of the annotated slices of one volume, of which the last two stay in memory."""

    context: "RunContext"
    volume: str
    config: InterpolateConfig
    _kept: dict[int, "NDArray[np.float32]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spacing = dict(zip(AXES, self.context.volume(self.volume).voxel_size, strict=True))
        self.depth_spacing = spacing.pop(self.context.axis)
        h, w = spacing.values()
        self._spacing = (h, w)
        self._pixel = (h + w) / 2
        self._cut = self.config.radius_px * self._pixel

    def distances(self, index: int) -> "NDArray[np.float32]":
        """Return the distances at an annotated slice."""
        if index not in self._kept:
            while len(self._kept) > 1:
                del self._kept[next(iter(self._kept))]
            self._kept[index] = class_distances(
                self.target(index), self.context.class_ids, self._spacing, radius=LONGEST_PX * self._pixel
            )
        return self._kept[index]

    def target(self, index: int) -> "NDArray[np.uint8]":
        """Return the labels at an annotated slice; background where nobody painted."""
        return self.context.annotation(self.volume).supervision(SliceRef(self.context.axis, index)).target

    def between(self, place: Neighbours) -> TopTwo:
        """Return the channels of the labels at a place between two annotated slices, and what speaks against them.

        The labels come from distances cut at ``radius_px``, or from the nearest slice; `second` and `margin` from the
        uncut ones, so that the margin is negative where those would have decided otherwise.
        """
        uncut = self._blended(place)
        if self.config.mode == "nearest":
            best = top_two(self.distances(place.upper if place.weight > 0.5 else place.lower)).best
        else:
            best = top_two(self._blended(place, self._cut)).best
        likely = top_two(uncut)
        behind = np.take_along_axis(uncut, best[np.newaxis], 0)[0] - uncut.max(axis=0)
        agrees = best == likely.best
        second = np.where(agrees, likely.second, likely.best)
        return TopTwo(best, second, np.where(agrees, likely.margin, behind))

    def _blended(self, place: Neighbours, cut: float = np.inf) -> "NDArray[np.float32]":
        lower, upper = (np.clip(self.distances(index), -cut, cut) for index in (place.lower, place.upper))
        return blend(lower, upper, place.weight)

    def ratio(self, winners: TopTwo, gap: float) -> "NDArray[np.float32]":
        """Return the margin over twice the distance to the evidence."""
        # inside an annotated slice the unpainted pixels are as uncertain as those of the next slice
        return winners.margin / np.float32(2 * max(gap, 1.0) * self.depth_spacing)


def _measure_slope(planes: _Planes, config: InterpolateConfig) -> Generator[Event, None, float]:
    """Yield progress and return the slope that held-out slices speak for."""
    # each inner anchor of a piece, beside the others that may speak for it
    inner = {
        index: [other for other in piece.anchors if other != index]
        for piece in planes.context.pieces(planes.volume)
        for index in piece.anchors[1:-1]
    }
    step = max(1, -(-len(inner) // MOST_HELD_OUT))
    held_out = sorted(inner)[::step]
    right = np.zeros(len(_RATIO_EDGES) - 1)
    wrong = np.zeros_like(right)
    for number, index in enumerate(held_out, 1):
        if planes.context.stop():
            break
        yield Progress("calibrate", number, len(held_out), f"{planes.volume} {planes.context.axis}{index}")
        more_right, more_wrong = _held_out(planes, index, inner[index])
        right += more_right
        wrong += more_wrong
    slope = config.slope
    if right.any() or wrong.any():
        slope = fit_slope((_RATIO_EDGES[:-1] + _RATIO_EDGES[1:]) / 2, right, wrong)
    yield Metric("slope", slope, planes.context.volumes.index(planes.volume))
    return slope


def _held_out(
    planes: _Planes, index: int, others: Sequence[int]
) -> tuple["NDArray[np.float64]", "NDArray[np.float64]"]:
    """Return, per bin of the ratio, how many known pixels of a held-out slice come out rightly and wrongly."""
    place = neighbours(index, others)
    winners = planes.between(place)
    supervision = planes.context.annotation(planes.volume).supervision(SliceRef(planes.context.axis, index))
    values = _label_values(planes.context)
    is_right = values[winners.best] == supervision.target
    ratio = np.clip(planes.ratio(winners, place.gap), _RATIO_EDGES[0], _RATIO_EDGES[-1])
    right, _ = np.histogram(ratio[supervision.known & is_right], _RATIO_EDGES)
    wrong, _ = np.histogram(ratio[supervision.known & ~is_right], _RATIO_EDGES)
    return right.astype(np.float64), wrong.astype(np.float64)


def _fill(
    context: "RunContext", name: str, config: InterpolateConfig, slope: float, done: frozenset[int]
) -> Iterator[Event]:
    planes = _Planes(context, name, config)
    values = _label_values(context)
    usual_area = float(np.mean([np.count_nonzero(planes.target(index)) for index in context.annotated(name)]))
    todo = [Slot(name, index) for index in context.slices(name) if index not in done]
    for slot in context.in_view_first(todo):
        if context.stop():
            return
        index = slot.index
        piece = context.piece(name, index)
        assert piece is not None, "a volume without annotated slices was refused"
        place = neighbours(index, piece.anchors)
        winners = planes.between(place)
        confidence = expit(planes.ratio(winners, place.gap) / np.float32(slope))
        labels = values[winners.best]
        score = expected_dice(labels, values[winners.second], confidence, context.class_ids, usual_area)
        as_bytes = np.rint(confidence * 255).astype(np.uint8)
        yield context.write_slice(name, index, labels, as_bytes, provenance=NAME, score=score)


def _label_values(context: "RunContext") -> "NDArray[np.uint8]":
    """Return the label value of each channel: background, then the classes."""
    return np.array([0, *context.class_ids], np.uint8)
