"""Representative slices: those that together look most like all slices (S5, S3)."""

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.engine.devices import resolve_device
from napari_slicelabel.engine.events import Metric, Progress
from napari_slicelabel.engine.select.candidates import Candidates
from napari_slicelabel.engine.select.coverage import best_cover
from napari_slicelabel.engine.select.features import FEATURES
from napari_slicelabel.engine.select.interval import interval
from napari_slicelabel.engine.select.request import Choice, Request
from napari_slicelabel.engine.select.similarities import Similarities
from napari_slicelabel.engine.select.thumbnails import Thumbnails, make_thumbnails
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def representative(request: Request, features: str = "") -> Generator[Progress | Metric, None, Choice]:
    """Choose slices by greedy max cover in feature space; see `greedy_cover`.

    Parameters
    ----------
    request : Request
        What to choose from. Annotated slices cover, empty and damaged ones neither cover nor are proposed.
    features : str
        A name in `FEATURES`; by default that of the request.

    Yields
    ------
    Progress, Metric
        While slices are read and features learned.

    Returns
    -------
    Choice
        With coverage, and what each pick stands for.

    Raises
    ------
    InputError
        Volumes that differ in channels, or fewer usable slices than the budget.

    Notes
    -----
    Feature vectors are compared after their mean over all slices was taken off: what all slices share tells nothing,
    and cosines near 1 throughout would hide the differences.
    """
    provider = FEATURES[features or request.features]
    stacks: list[Thumbnails] = []
    for stack in request.candidates.stacks:
        thumbnails = yield from make_thumbnails(request.project, stack)
        stacks += [thumbnails]
    _check_channels(stacks)
    rows = yield from provider.compute(stacks, resolve_device(request.device), request.rng)
    refs = [thumbnails.stack.ref(index) for thumbnails in stacks for index in range(thumbnails.stack.depth)]
    notes, usable = _usable(stacks)
    annotated, free = _states(request.candidates, usable)
    if len(free) < request.budget:
        raise InputError(
            f"budget {request.budget}: only {len(free)} slices are neither annotated nor empty nor damaged; give at"
            " most that many"
        )
    numbers = np.flatnonzero(usable)
    place = {int(number): row for row, number in enumerate(numbers)}
    rows = rows[numbers]
    cover = best_cover(
        Similarities(rows - rows.mean(0)),
        request.budget,
        annotated=[place[number] for number in annotated],
        candidates=[place[number] for number in free],
        others=[[place[number] for number in _equally_spaced(request, free)]],
    )
    picks = [int(numbers[row]) for row in cover.order]
    return Choice(
        slices=tuple(refs[pick] for pick in picks),
        features=provider.name,
        coverage=cover.coverage,
        stands_for=tuple(
            tuple(refs[int(numbers[row])] for row in np.flatnonzero(cover.represented_by == pick))
            for pick in cover.order
        ),
        notes=notes,
    )


def _equally_spaced(request: Request, free: list[int]) -> list[int]:
    """Return the numbers of the slices that `interval` would take among those that may be proposed."""
    wanted, stacks, first = set(free), [], 0
    starts: dict[tuple[str, str], int] = {}
    for stack in request.candidates.stacks:
        starts[stack.volume, stack.axis] = first
        stacks.append(replace(stack, free=tuple(index for index in stack.free if first + index in wanted)))
        first += stack.depth
    chosen = interval(Candidates(tuple(stacks)), request.budget, request.rng)
    return [starts[volume, ref.axis] + ref.index for volume, ref in chosen]


def _check_channels(stacks: list[Thumbnails]) -> None:
    channels = sorted({thumbnails.pictures.shape[1] for thumbnails in stacks})
    if len(channels) > 1:
        raise InputError(f"the volumes have {channels} channels and cannot be compared; choose volumes one by one")


def _usable(stacks: list[Thumbnails]) -> tuple[tuple[str, ...], "NDArray[np.bool_]"]:
    notes, usable = [], []
    for thumbnails in stacks:
        found = thumbnails.unusable()
        usable.append(~np.isin(np.arange(thumbnails.stack.depth), list(found)))
        for reason in sorted(set(found.values())):
            which = [index for index, why in found.items() if why == reason]
            shown = ", ".join(map(str, which[:10])) + (", ..." if len(which) > 10 else "")
            notes.append(f"{thumbnails.stack.volume} {thumbnails.stack.axis}: skipped {shown} ({reason})")
    return tuple(notes), np.concatenate(usable)


def _states(candidates: Candidates, usable: "NDArray[np.bool_]") -> tuple[list[int], list[int]]:
    """Return the numbers of the annotated slices and of those that may be proposed."""
    annotated: list[int] = []
    free: list[int] = []
    first = 0
    for stack in candidates.stacks:
        open_ones = set(stack.free)
        for index in range(stack.depth):
            if usable[first + index]:
                (free if index in open_ones else annotated).append(first + index)
        first += stack.depth
    return annotated, free
