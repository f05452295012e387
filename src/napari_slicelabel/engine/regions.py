"""What of a volume a human labelled, what the machine did, what is unknown; and how the labelled region grows.

One mechanism for fronts (S1: slices, which grow along the axis of the run) and for subvolumes (S2: boxes, which grow in
all directions): a `Region` grows from boxes, and a slice is a box that fills its plane.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import ndimage

from napari_slicelabel.data.boxes import AXES, Axis, Box, SliceRef
from napari_slicelabel.data.classes import PAINTED_BACKGROUND
from napari_slicelabel.engine.blocks import along
from napari_slicelabel.engine.confidence import sample_known
from napari_slicelabel.engine.context import Slot
from napari_slicelabel.engine.losses import IGNORE
from napari_slicelabel.engine.pieces import Piece
from napari_slicelabel.engine.shapes import Shapes, positional_classes
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.engine.confidence import Labelled
    from napari_slicelabel.engine.context import RunContext

Rule = Literal["two-sided", "one-sided", "all", "quantile"]

# Larger grids of box corners are not looked at.
_MOST_CELLS = 2**24


@dataclass(frozen=True, slots=True)
class Seed:
    """Where a region grows from.

    Attributes
    ----------
    box : Box
        What a human labelled, (d, h, w): along the axis of the run, then in the plane.
    limits : Box
        What it may grow to: the piece that it lies in.
    """

    box: Box
    limits: Box


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a volume that has labels, as it grows from round to round.

    Attributes
    ----------
    seeds : tuple of Seed
        Where it begins.
    step : tuple of 3 int
        By how many voxels it grows in a round, along d, h and w.
    """

    seeds: tuple[Seed, ...]
    step: tuple[int, int, int]

    def boxes(self, rounds: int) -> tuple[Box, ...]:
        """Return the boxes whose union is the region after `rounds` rounds; 0 = the seeds."""
        margin = tuple(rounds * step for step in self.step)
        grown = (seed.limits.intersect(seed.box.grow(margin)) for seed in self.seeds)
        return tuple(box for box in grown if box.size)

    def planes(self, rounds: int) -> frozenset[int]:
        """Return the planes of which something is in the region after `rounds` rounds."""
        return frozenset(np.flatnonzero(self.first_rounds() <= rounds).tolist())

    def first_rounds(self) -> "NDArray[np.float64]":
        """Return of each plane, up to the last one of the limits, after how many rounds something of it is inside.

        Returns
        -------
        ndarray of shape (planes,), float64
            0 for the planes of seeds; infinite for those that are never reached.
        """
        found = np.full(max((seed.limits.stop[0] for seed in self.seeds), default=0), np.inf)
        for seed in self.seeds:
            start, stop = seed.limits.start[0], seed.limits.stop[0]
            planes = np.arange(start, stop)
            gap = np.maximum(seed.box.start[0] - planes, planes - (seed.box.stop[0] - 1)).clip(min=0)
            np.minimum(found[start:stop], np.ceil(gap / self.step[0]), out=found[start:stop])
        return found

    def inside(self, index: int, shape: tuple[int, int], rounds: int) -> "NDArray[np.bool_]":
        """Return which pixels of a plane (h, w) are in the region after `rounds` rounds."""
        mask = np.zeros(shape, bool)
        for box in self.boxes(rounds):
            if box.start[0] <= index < box.stop[0]:
                mask[box.slices[1:]] = True
        return mask

    def is_full(self, rounds: int) -> bool:
        """Return whether the region fills everything that it may grow to."""
        return _covers(self.boxes(rounds), {seed.limits for seed in self.seeds})

    def rounds_to_fill(self) -> int:
        """Return after how many rounds it is full."""
        distances = (
            abs(edge - limit)
            for seed in self.seeds
            for edges, limits in ((seed.box.start, seed.limits.start), (seed.box.stop, seed.limits.stop))
            for edge, limit in zip(edges, limits, strict=True)
        )
        most = max(distances, default=0)
        return next(count for count in range(most + 1) if self.is_full(count))


def physical_step(step: int, spacing: Sequence[float]) -> tuple[int, int, int]:
    """Return a growth step along each axis, of the same physical length and at least 1 voxel.

    Parameters
    ----------
    step : int
        In voxels of the finest axis.
    spacing : sequence of 3 float
        Distance between voxels along each axis.

    Examples
    --------
    >>> physical_step(8, (40, 10, 10))
    (2, 8, 8)
    """
    d, h, w = (max(1, round(step * min(spacing) / distance)) for distance in spacing)
    return d, h, w


def smallest_step(seeds: Sequence[Seed], spacing: Sequence[float], rounds: int) -> int:
    """Return the smallest step, in voxels of the finest axis, with which a region is full after `rounds` rounds.

    Examples
    --------
    >>> seed = Seed(Box((4, 0, 0), (5, 3, 3)), Box((0, 0, 0), (10, 3, 3)))
    >>> smallest_step([seed], (1, 1, 1), rounds=2)
    3
    """
    low, high = 1, 1
    while not Region(tuple(seeds), physical_step(high, spacing)).is_full(rounds):
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        if Region(tuple(seeds), physical_step(middle, spacing)).is_full(rounds):
            high = middle
        else:
            low = middle + 1
    return low


def find_seeds(piece: Piece, known: "Callable[[int], NDArray[np.bool_]]", shape: tuple[int, int]) -> tuple[Seed, ...]:
    """Return the boxes that a human labelled in a piece: whole slices, subvolumes, or what lies around strokes.

    Parameters
    ----------
    piece : Piece
        Its annotated slices are looked at.
    known : callable
        Returns which pixels of an annotated slice are known, shape (h, w).
    shape : tuple of 2 int
        Height and width of a slice.

    Returns
    -------
    tuple of Seed
        Connected known pixels of a slice make a box, boxes of consecutive slices that overlap are joined. An annotated
        stop slice at the end of the piece is a seed outside of its limits.
    """
    limits = Box((piece.slices.start, 0, 0), (piece.slices.stop, *shape))
    finished: list[Box] = []
    growing: list[Box] = []
    before = None
    for index in piece.anchors:
        found = [Box((index, *box.start), (index + 1, *box.stop)) for box in _rectangles(known(index))]
        if before is None or index != before + 1:
            finished, growing = [*finished, *growing], []
        growing, ended = _joined(growing, found, index)
        finished += ended
        before = index
    return tuple(Seed(box, limits) for box in (*finished, *growing))


def _rectangles(mask: "NDArray[np.bool_]") -> Iterator[Box]:
    if mask.all():
        yield Box.whole(mask.shape)
        return
    for place in ndimage.find_objects(ndimage.label(mask)[0]):
        yield Box(tuple(part.start for part in place), tuple(part.stop for part in place))


def _joined(growing: list[Box], found: list[Box], index: int) -> tuple[list[Box], list[Box]]:
    """Return the boxes that reach slice `index`, and those that end before it."""
    left = list(growing)
    result = []
    for box in found:
        for other in [other for other in left if _overlap(box.slices[1:], other.slices[1:])]:
            left.remove(other)
            box = Box(
                tuple(min(a, b) for a, b in zip(box.start, other.start, strict=True)),
                tuple(max(a, b) for a, b in zip(box.stop, other.stop, strict=True)),
            )
        result.append(box)
    return result, left


def _overlap(first: tuple[slice, ...], second: tuple[slice, ...]) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(first, second, strict=True))


def _covers(boxes: Sequence[Box], wanted: Iterable[Box]) -> bool:
    """Return whether the union of boxes holds each of the wanted ones, on the grid that their corners span."""
    wanted = list(wanted)
    if not wanted:
        return True
    edges = [
        np.unique([edge for box in (*boxes, *wanted) for edge in (box.start[axis], box.stop[axis])])
        for axis in range(3)
    ]
    if math.prod(map(len, edges)) > _MOST_CELLS:
        # hundreds of strokes: a bound, which one box that holds all of it gives
        return all(any(box.contains(whole) for box in boxes) for whole in wanted)
    filled = np.zeros([len(edge) - 1 for edge in edges], bool)

    def cells(box: Box) -> tuple[slice, ...]:
        return tuple(
            slice(*np.searchsorted(edge, (a, b))) for edge, a, b in zip(edges, box.start, box.stop, strict=True)
        )

    for box in boxes:
        filled[cells(box)] = True
    return all(bool(filled[cells(whole)].all()) for whole in wanted)


def front_rounds(stack: Sequence[Piece], rounds: int, step: int) -> tuple[tuple[int, ...], ...]:
    """Return the slices that each round labels, from the annotated ones outwards.

    Parameters
    ----------
    stack : sequence of Piece
        The slices to label.
    rounds : int
        Rounds until everything is reached; 0 = as many as it takes.
    step : int
        Slices per front and round; 0 = as few as `rounds` allows. What `rounds` leaves out is reached by no round.

    Returns
    -------
    tuple of tuple of int
        Every slice that is not annotated at most once, nearest first.

    Examples
    --------
    >>> from napari_slicelabel.engine.pieces import pieces
    >>> front_rounds(pieces(range(10), [2, 8]), rounds=0, step=1)
    ((1, 3, 7, 9), (0, 4, 6), (5,))
    >>> front_rounds(pieces(range(10), [2, 8]), rounds=2, step=0)
    ((0, 1, 3, 4, 6, 7, 9), (5,))
    """
    distance = [piece.distance(index) for piece in stack for index in piece.slices if index not in piece.anchors]
    if not distance:
        return ()
    furthest = max(distance)
    step = step or math.ceil(furthest / (rounds or furthest))
    region = Region(tuple(_fronts(stack)), (step, 0, 0))
    count = min(rounds or furthest, math.ceil(furthest / step))
    first = region.first_rounds()
    first[[anchor for piece in stack for anchor in piece.anchors if anchor < len(first)]] = 0
    return tuple(tuple(np.flatnonzero(first == number + 1).tolist()) for number in range(count))


def _fronts(stack: Sequence[Piece]) -> Iterator[Seed]:
    for piece in stack:
        limits = Box((piece.slices.start, 0, 0), (piece.slices.stop, 1, 1))
        for anchor in piece.anchors:
            yield Seed(Box((anchor, 0, 0), (anchor + 1, 1, 1)), limits)


def accepted(labelled: "Labelled", rule: Rule, theta: float) -> "NDArray[np.uint8]":
    """Return the pseudo-labels of a predicted slice as channel numbers, 255 = ignore.

    Parameters
    ----------
    labelled : Labelled
        The slice.
    rule : {"all", "one-sided", "two-sided", "quantile"}
        all: every pixel as predicted. one-sided (S1's): confident pixels of a class keep it, all else is background.
        two-sided: what is not confident is ignored. quantile: of every class and of background the more confident
        share `theta`.
    theta : float
        From which confidence on a pixel is confident; a share with ``quantile``.

    Returns
    -------
    ndarray of shape (h, w), uint8
    """
    channels, confident = labelled.channels, labelled.confidence >= theta
    if rule == "all":
        return channels
    if rule == "one-sided":
        return np.where(confident, channels, np.uint8(0))
    if rule == "quantile":
        confident = np.zeros(channels.shape, bool)
        for channel in np.unique(channels):
            inside = channels == channel
            confident |= inside & (labelled.confidence >= np.quantile(labelled.confidence[inside], 1 - theta))
    return np.where(confident, channels, np.uint8(IGNORE))


class Known:
    """What a run knows of its volumes, in output channels: human labels, pseudo-labels, or nothing.

    Parameters
    ----------
    context : RunContext
        The run.

    Attributes
    ----------
    sources : tuple of str
        The volumes with annotated slices.
    channel : ndarray of shape (256,), uint8
        Channel number of each label value; 255 for what is no class.
    values : ndarray of shape (1 + classes,), uint8
        Label value of each channel.

    Raises
    ------
    InputError
        No class is painted.
    """

    def __init__(self, context: "RunContext") -> None:
        context.need_classes()
        self.context = context
        self.sources = tuple(name for name in context.volumes if context.annotated(name))
        self.channel = np.full(256, IGNORE, np.uint8)
        self.channel[[0, *context.class_ids]] = np.arange(1 + len(context.class_ids))
        self.values = np.array([0, *context.class_ids], np.uint8)

    def human_slots(self) -> list[Slot]:
        """Return the annotated slices of all volumes."""
        return [Slot(name, index) for name in self.sources for index in self.context.annotated(name)]

    def human(self, slot: Slot) -> "NDArray[np.uint8]":
        """Return what a human painted in a slice, as channel numbers, shape (h, w); 255 = unknown."""
        return self.human_plane(slot.volume, self.context.axis, slot.index)

    def human_plane(self, volume: str, axis: Axis, index: int) -> "NDArray[np.uint8]":
        """Return what `human` does, for a slice along any axis."""
        supervision = self.context.annotation(volume).supervision(SliceRef(axis, index))
        return np.where(supervision.known, self.channel[supervision.target], np.uint8(IGNORE))

    def pseudo(self, slot: Slot) -> "NDArray[np.uint8]":
        """Return the pseudo-labels of a slice, as channel numbers, shape (h, w); 255 = none."""
        return self.context.read_accepted(slot.volume, slot.index)

    def check_classes(self) -> None:
        """Refuse classes that no annotated slice shows.

        Raises
        ------
        InputError
            Names them.
        """
        context = self.context
        seen: set[int] = set()
        for slot in self.human_slots():
            seen |= set(np.unique(self.human(slot)).tolist())
        missing = [value for value in context.class_ids if int(self.channel[value]) not in seen]
        if missing:
            names = {label_class.id: label_class.name for label_class in context.project.classes}
            listed = ", ".join(f"{names.get(value, '?')} ({value})" for value in missing)
            raise InputError(
                f"no annotated slice along {context.axis} shows the class {listed}; paint it in at least one"
                " slice, or remove the class from the project"
            )

    def sample(self, slot: Slot, seed: int) -> "NDArray[np.bool_]":
        """Return the pixels (h, w) by which a held-out slice is judged, always the same ones."""
        return sample_known(self.human(slot), np.random.default_rng((seed, slot.index)))

    def usual_area(self) -> float:
        """Return how many pixels of a class an annotated slice shows, on average."""
        areas = [np.count_nonzero((target > 0) & (target != IGNORE)) for target in map(self.human, self.human_slots())]
        return float(np.mean(areas))

    def human_block(self, volume: str, box: Box) -> "NDArray[np.uint8]":
        """Return what a human painted in a box (d, h, w), the axis of the run first, as channel numbers; 255 = unknown.

        Complete slices of other axes count as well.
        """
        annotation, axis = self.context.annotation(volume), self.context.axis
        place = along(axis, box)
        labels = annotation.read(place)
        known = labels != 0
        for number, other in enumerate(AXES):
            first, last = place.start[number], place.stop[number]
            inside = [index - first for index in annotation.complete(other) if first <= index < last]
            np.moveaxis(known, number, 0)[inside] = True
        target = self.channel[np.where(labels == PAINTED_BACKGROUND, 0, labels)]
        return np.moveaxis(np.where(known, target, np.uint8(IGNORE)), AXES.index(axis), 0)

    def pseudo_block(self, volume: str, box: Box) -> "NDArray[np.uint8]":
        """Return the pseudo-labels of a box (d, h, w), the axis of the run first, as channel numbers; 255 = none."""
        axis = self.context.axis
        return np.moveaxis(self.context.read_accepted_box(volume, along(axis, box)), AXES.index(axis), 0)

    def shapes(self, classes: tuple[int, ...], without: Collection[Slot] = ()) -> dict[str, Shapes]:
        """Return the shapes of some classes in the annotated slices of every source, but for some slices."""
        return {name: self._shapes_of(name, classes, without) for name in self.sources}

    def _shapes_of(self, name: str, classes: tuple[int, ...], without: Collection[Slot]) -> Shapes:
        annotation, axis = self.context.annotation(name), self.context.axis
        spacing = dict(zip(AXES, self.context.volume(name).voxel_size, strict=True))
        del spacing[axis]
        height, width = spacing.values()
        # a shape needs an outside: slices in which something is unknown are no anchors
        anchors = [
            index
            for index in self.context.annotated(name)
            if Slot(name, index) not in without and annotation.supervision(SliceRef(axis, index)).known.all()
        ]
        return Shapes(
            anchors, lambda index: annotation.supervision(SliceRef(axis, index)).target, classes, (height, width)
        )

    def shape_classes(
        self, sources: Mapping[str, Shapes], setting: Literal["auto", "on", "off"], seed: int
    ) -> tuple[int, ...]:
        """Return the classes whose shapes a network sees: all, none, or those whose place tells something.

        Parameters
        ----------
        sources : mapping of str to Shapes
            Of every volume, over all classes.
        setting : {"auto", "on", "off"}
            See `positional_classes` for auto. Without two complete slices in a volume there are no shapes to see.
        seed : int
            Of the pixels that are looked at.
        """
        if setting == "off" or not any(len(source.anchors) > 1 for source in sources.values()):
            return ()
        if setting == "on":
            return self.context.class_ids
        return positional_classes(list(sources.values()), np.random.default_rng(seed))

    def beyond(self, slot: Slot) -> frozenset[int]:
        """Return the annotated slices that lie behind a stop slice."""
        piece = self.context.piece(slot.volume, slot.index)
        return frozenset(self.context.annotated(slot.volume)) - frozenset(piece.anchors) if piece else frozenset()

    def distance(self, slot: Slot) -> int | None:
        """Return how far away the nearest annotated slice is; None where none speaks for this one."""
        piece = self.context.piece(slot.volume, slot.index)
        return piece.distance(slot.index) if piece else None

    def left_out(self, slot: Slot, held_out: Collection[Slot]) -> set[int]:
        """Return the annotated slices that do not speak for a slice: held out, or behind a stop."""
        return {other.index for other in held_out if other.volume == slot.volume} | self.beyond(slot)

    def held_out_distance(self, slot: Slot, held_out: Collection[Slot]) -> int:
        """Return how far away the nearest annotated slice is that is not held out; the depth where none speaks."""
        others = set(self.context.annotated(slot.volume)) - self.left_out(slot, held_out)
        depth = self.context.volume(slot.volume).depth(self.context.axis)
        return min((abs(slot.index - index) for index in others), default=depth)
