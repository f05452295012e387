"""Representative slices: those that together look most like all slices (S5, S3)."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.data.boxes import AXES
from napari_slicelabel.engine.events import Metric, Progress
from napari_slicelabel.engine.select.candidates import Candidates, Stack
from napari_slicelabel.engine.select.condition import Condition, check_budget, skipped_notes
from napari_slicelabel.engine.select.coverage import Cover, best_cover
from napari_slicelabel.engine.select.feature_store import stored_features
from napari_slicelabel.engine.select.features import FEATURES
from napari_slicelabel.engine.select.interval import equal_shares, interval
from napari_slicelabel.engine.select.request import Choice, Request
from napari_slicelabel.engine.select.similarities import Similarities
from napari_slicelabel.engine.select.thumbnails import Thumbnails, make_thumbnails
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.engine.select.options import SelectOptions
    from napari_slicelabel.engine.select.request import Slice


_TELL_EVERY = 512
"""Slices that are checked between two events."""


def representative(request: Request, features: str = "") -> Generator[Progress | Metric, None, Choice]:
    """Choose slices by max cover in feature space; see `best_cover`.

    Parameters
    ----------
    request : Request
        What to choose from. Annotated slices cover. Empty and damaged ones, and those outside the range, neither cover
        nor are proposed, nor need they be covered; skipped ones are not proposed.
    features : str
        A name in `FEATURES`; by default that of the request.

    Yields
    ------
    Progress, Metric
        While slices are read and features learned.

    Returns
    -------
    Choice
        With coverage, what each pick stands for, and notes on what was skipped.

    Raises
    ------
    InputError
        Volumes that differ in channels, or fewer usable slices than the budget.

    Notes
    -----
    Feature vectors are compared after their mean over all slices was taken off: what all slices share tells nothing,
    and cosines near 1 throughout would hide the differences. Coverage is at least that of equal intervals, from which
    the search starts a second time.
    """
    provider = FEATURES[features or request.features]
    provider.depends(request.seed, request.options)  # weights that are not there: say so before all slices are read
    stacks: list[Thumbnails] = []
    for stack in request.candidates.stacks:
        thumbnails = yield from make_thumbnails(request.project, stack)
        stacks += [thumbnails]
    _check_channels(stacks)
    rows = yield from stored_features(request, provider, stacks)
    notes, slices = yield from _usable(stacks, request.options)
    check_budget(request.budget, int(slices.free.sum()))
    rows = rows[slices.number]
    parts = _parts(slices, even=request.options.spread == "even")
    shares = equal_shares([int(slices.free[part].sum()) for part in parts], request.budget)
    centred = rows - rows.mean(0)
    covers = [_cover(request, slices, centred, part, share) for part, share in zip(parts, shares, strict=True)]
    return _merged(request, slices, parts, covers, provider.name, notes)


@dataclass(frozen=True)
class _Slices:
    """The slices that count, as arrays of one length: those that are usable and in the range.

    Attributes
    ----------
    stack : ndarray of int
        Number of the stack in the request.
    index : ndarray of int
        Of the slice in its stack.
    number : ndarray of int
        Among all slices of all stacks.
    free : ndarray of bool
        Whether it may be proposed.
    annotated : ndarray of bool
        Whether it covers from the start.
    """

    stack: "NDArray[np.intp]"
    index: "NDArray[np.intp]"
    number: "NDArray[np.intp]"
    free: "NDArray[np.bool_]"
    annotated: "NDArray[np.bool_]"


def _check_channels(stacks: list[Thumbnails]) -> None:
    channels = sorted({thumbnails.pictures.shape[1] for thumbnails in stacks})
    if len(channels) > 1:
        raise InputError(f"the volumes have {channels} channels and cannot be compared; choose volumes one by one")


def _usable(
    stacks: list[Thumbnails], options: "SelectOptions"
) -> Generator[Progress, None, tuple[tuple[str, ...], _Slices]]:
    """Return notes on what is skipped, and the slices that are not."""
    notes: list[str] = []
    found, first = [], 0
    for number, thumbnails in enumerate(stacks):
        stack, free = thumbnails.stack, set(thumbnails.stack.free)
        condition = Condition(stack.depth, thumbnails.pictures.__getitem__)
        bad: dict[int, str] = {}
        for index in stack.indices if options.damaged == "skip" else ():
            if problem := condition.problem(index):
                bad[index] = problem
            if index % _TELL_EVERY == _TELL_EVERY - 1:
                yield Progress("check slices", index + 1, stack.depth)
        notes += skipped_notes(stack, bad)
        found += [
            (number, index, first + index, index in free, index in stack.annotated)
            for index in stack.indices
            if index not in bad
        ]
        first += stack.depth
    table = np.array(found, np.intp).reshape(-1, 5).T
    return tuple(notes), _Slices(*table[:3], *table[3:].astype(bool))


def _parts(slices: _Slices, *, even: bool) -> "list[NDArray[np.intp]]":
    """Return the slices that cover each other: all of them, or stack by stack."""
    if not even:
        return [np.arange(len(slices.stack))]
    return [np.flatnonzero(slices.stack == number) for number in np.unique(slices.stack)]


def _cover(
    request: Request, slices: _Slices, rows: "NDArray[np.float32]", part: "NDArray[np.intp]", share: int
) -> Cover:
    """Return the choice of `share` slices among a part of them, in numbers of that part."""
    options = request.options
    free = slices.free[part]
    similarities = Similarities(
        rows[part],
        positions=slices.index[part].astype(np.float64),
        stacks=slices.stack[part],
        reach=options.reach * len(part) / max(share, 1),
    )
    return best_cover(
        similarities,
        share,
        annotated=np.flatnonzero(slices.annotated[part]).tolist(),
        candidates=np.flatnonzero(free).tolist(),
        costs=_areas(request, slices.stack[part]) if options.cost == "area" else None,
        others=[_equally_spaced(request, slices, part, share)],
    )


def _areas(request: Request, stacks: "NDArray[np.intp]") -> "NDArray[np.float64]":
    """Return how many pixels the slices have."""
    areas = []
    for stack in request.candidates.stacks:
        shape = request.project.record(stack.volume).shape
        areas.append(float(np.prod([size for size, axis in zip(shape, AXES, strict=True) if axis != stack.axis])))
    return np.array(areas)[stacks]


def _equally_spaced(request: Request, slices: _Slices, part: "NDArray[np.intp]", share: int) -> list[int]:
    """Return what `interval` would take, in numbers of the part."""
    place = {(int(slices.stack[n]), int(slices.index[n])): k for k, n in enumerate(part)}
    numbers: dict[tuple[str, str], int] = {}
    stacks: list[Stack] = []
    for number in np.unique(slices.stack[part]):
        stack = request.candidates.stacks[number]
        chosen = (slices.stack == number) & slices.free
        numbers[stack.volume, stack.axis] = int(number)
        stacks.append(replace(stack, free=tuple(slices.index[chosen].tolist())))
    found = interval(Candidates(tuple(stacks)), share, request.rng) if share else []
    return [place[numbers[volume, ref.axis], ref.index] for volume, ref in found]


def _merged(
    request: Request,
    slices: _Slices,
    parts: "Sequence[NDArray[np.intp]]",
    covers: Sequence[Cover],
    features: str,
    notes: tuple[str, ...],
) -> Choice:
    """Return the picks of all parts in one order: always the one that covers most."""
    stacks = request.candidates.stacks

    def name(part: "NDArray[np.intp]", row: int) -> "Slice":
        stack = stacks[int(slices.stack[part[row]])]
        return stack.ref(int(slices.index[part[row]]))

    sizes = [len(part) for part in parts]
    total = sum(sizes)
    covered = sum(cover.start * size for cover, size in zip(covers, sizes, strict=True))
    turns = [0] * len(parts)
    order, coverage, stands_for = [], [], []
    for _ in range(sum(len(cover.order) for cover in covers)):
        waiting = [k for k, cover in enumerate(covers) if turns[k] < len(cover.order)]
        best = max(waiting, key=lambda k: covers[k].gains[turns[k]] * sizes[k])
        cover, part, turn = covers[best], parts[best], turns[best]
        covered += cover.gains[turn] * sizes[best]
        order.append(name(part, cover.order[turn]))
        coverage.append(cover.coverage[turn] if len(parts) == 1 else min(1.0, covered / total))
        represented = np.flatnonzero(cover.represented_by == cover.order[turn])
        stands_for.append(tuple(name(part, row) for row in represented.tolist()))
        turns[best] += 1
    return Choice(tuple(order), features, tuple(coverage), tuple(stands_for), notes)
