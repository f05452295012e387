"""Which slices to paint: an explicit table of selectors, and the ranking that they make."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from napari_slicelabel.data.boxes import AXES, Axis, SliceRef
from napari_slicelabel.engine.config import unknown
from napari_slicelabel.engine.events import Metric, Progress, drain
from napari_slicelabel.engine.select.candidates import Candidates
from napari_slicelabel.engine.select.condition import Inspection, check_budget
from napari_slicelabel.engine.select.interval import interval
from napari_slicelabel.engine.select.options import NO_OPTIONS, SelectOptions
from napari_slicelabel.engine.select.random import random
from napari_slicelabel.engine.select.request import Choice, Request
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from napari_slicelabel.data.project import Project


DEFAULT_FEATURES = "autoencoder"

FEATURE_NAMES = ("autoencoder", "mae", "pretrained", "intensity")
"""The names in `features.FEATURES`, for whoever lists them without torch."""


class RankedSlice(BaseModel):
    """One proposal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    volume: str
    axis: Axis
    index: NonNegativeInt


class Ranking(BaseModel):
    """What ``selection/<name>.json`` holds: slices in the order in which to paint them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    name: str
    method: str
    axis: Literal["z", "y", "x", "all"]
    budget: int
    seed: int
    volumes: tuple[str, ...]
    features: str = Field(default="", description="what slices were compared by; empty: they were not")
    order: tuple[RankedSlice, ...] = Field(description="the first is worth most")
    coverage: tuple[float, ...] = Field(
        default=(), description="how well the slices up to each one represent all, 0 to 1; empty: not measured"
    )
    stands_for: tuple[tuple[RankedSlice, ...], ...] = Field(
        default=(), description="for each slice of `order` those that it represents; empty: not known"
    )
    options: SelectOptions = NO_OPTIONS
    notes: tuple[str, ...] = Field(default=(), description="such as slices that were skipped, and why")


@dataclass(frozen=True)
class Selector:
    """One way to choose slices.

    Attributes
    ----------
    name : str
        What the user types.
    title : str
        One line for lists and forms.
    known : str
        What we know of it, in plain words; docs/selection.md has the figures.
    choose : callable
        Takes a request; a generator of progress that returns a choice.
    compares : bool
        Whether it reads the image and may train a network, which takes its time.
    """

    name: str
    title: str
    known: str
    choose: Callable[[Request], Generator[Progress | Metric, None, Choice]]
    compares: bool = False


def _blind(
    function: Callable[[Candidates, int, np.random.Generator], Sequence[tuple[str, SliceRef]]],
) -> Callable[[Request], Generator[Progress | Metric, None, Choice]]:
    """Return a selector that looks at an image only to pass over damaged slices."""

    def choose(request: Request) -> Generator[Progress | Metric, None, Choice]:
        candidates, inspection = request.candidates, Inspection(request)
        while True:
            check_budget(request.budget, candidates.count)
            chosen = function(candidates, request.budget, np.random.default_rng(request.seed))
            bad = yield from inspection.damaged(chosen)
            if not bad:
                return Choice(chosen, notes=inspection.notes())
            candidates = candidates.without(bad)

    return choose


def _foreground(request: Request) -> Generator[Progress | Metric, None, Choice]:
    """Choose where a run is unsure; torch is imported when it is asked."""
    from napari_slicelabel.engine.select.foreground import foreground

    return (yield from foreground(request))


def _looking(features: str = "") -> Callable[[Request], Generator[Progress | Metric, None, Choice]]:
    """Return a selector that compares slices; torch is imported when it is asked."""

    def choose(request: Request) -> Generator[Progress | Metric, None, Choice]:
        from napari_slicelabel.engine.select.representative import representative

        return (yield from representative(request, features))

    return choose


_ALL = (
    Selector(
        "interval",
        "Equally spaced slices",
        "The default: within one volume nothing else was better throughout in our tests.",
        _blind(interval),
    ),
    Selector(
        "random",
        "Slices drawn at random",
        "Within one volume mostly worse than equal spacing in our tests.",
        _blind(random),
    ),
    Selector(
        "representative",
        "Slices that together look most like all slices (S5)",
        "Within one volume about as good as equal spacing in our tests. With few slices in each of many volumes it did"
        " better by intensities with one budget for all, and by a ready-made network.",
        _looking(),
        compares=True,
    ),
    Selector(
        "mae",
        "The same by features of a masked auto-encoder (UAL of S3)",
        "Its authors found it no better than equal spacing. In our tests neither within one volume nor with many slices"
        " in each; with one to three slices in each of several volumes, spread evenly, it was ahead. It is slow.",
        _looking("mae"),
        compares=True,
    ),
    Selector(
        "foreground",
        "Slices far from painted ones where a finished run is unsure of the foreground",
        "For after a run. We have not measured how much it helps.",
        _foreground,
    ),
)

SELECTORS: Mapping[str, Selector] = {selector.name: selector for selector in _ALL}


def rank(
    project: "Project",
    method: str = "interval",
    budget: int = 5,
    axis: Literal["z", "y", "x", "all"] = "z",
    seed: int = 0,
    volumes: Sequence[str] = (),
    *,
    features: str = DEFAULT_FEATURES,
    device: str = "auto",
    name: str = "",
    options: SelectOptions = NO_OPTIONS,
) -> Ranking:
    """Choose slices to paint, save the ranking in the project, and return it; see `rank_in_steps`."""
    steps = rank_in_steps(
        project, method, budget, axis, seed, volumes, features=features, device=device, name=name, options=options
    )
    return drain(steps)


def rank_in_steps(
    project: "Project",
    method: str = "interval",
    budget: int = 5,
    axis: Literal["z", "y", "x", "all"] = "z",
    seed: int = 0,
    volumes: Sequence[str] = (),
    *,
    features: str = DEFAULT_FEATURES,
    device: str = "auto",
    name: str = "",
    options: SelectOptions = NO_OPTIONS,
) -> Generator[Progress | Metric, None, Ranking]:
    """Choose slices to paint, telling how far it is, and save the ranking in the project.

    Parameters
    ----------
    project : Project
        Annotated slices of it are never proposed.
    method : str
        A name in `SELECTORS`.
    budget : int
        How many slices, over all volumes and axes together. At least 1.
    axis : {"z", "y", "x", "all"}
        Axis that the slices are perpendicular to.
    seed : int
        For methods that draw at random or train a network.
    volumes : sequence of str
        Names; none for all.
    features : str
        A name in `FEATURES`: what ``representative`` compares slices by.
    device : {"auto", "cpu", "cuda"}
        Where networks are trained.
    name : str
        Name to keep the ranking under; by default that of the method. A ranking of that name is replaced.
    options : SelectOptions
        Range, slices to skip, position prior, cost, spread over stacks, pretrained weights.

    Yields
    ------
    Progress, Metric
        While slices are looked at and networks learn.

    Returns
    -------
    Ranking
        `budget` different slices.

    Raises
    ------
    InputError
        Unknown method, features, axis or volume, a range outside a stack, a budget that is not between 1 and the number
        of slices left, or weights or a run that a method needs and that are not there.
    DeviceError
        ``cuda``, and torch sees no GPU.
    StorageError
        Disk full, no permission, an image that cannot be read.
    """
    if method not in SELECTORS:
        raise InputError(unknown("selection method", method, SELECTORS))
    if features != DEFAULT_FEATURES:
        from napari_slicelabel.engine.select.features import FEATURES

        if features not in FEATURES:
            raise InputError(unknown("features", features, FEATURES))
    if device == "cuda":
        from napari_slicelabel.engine.devices import resolve_device

        resolve_device(device)
    if axis not in (*AXES, "all"):
        raise InputError(f"axis {axis!r}: expected z, y, x or all")
    names = tuple(dict.fromkeys(volumes)) or project.names
    candidates = Candidates.of(project, names, AXES if axis == "all" else (axis,), options)
    if not 1 <= budget <= candidates.count:
        raise InputError(f"budget {budget}: there are {candidates.count} slices to choose from; give 1 to that many")
    rng = np.random.default_rng(seed)
    request = Request(project, candidates, budget, rng, features, device, seed, options)
    choice = yield from SELECTORS[method].choose(request)
    ranking = Ranking(
        name=name or method,
        method=method,
        axis=axis,
        budget=budget,
        seed=seed,
        volumes=names,
        features=choice.features,
        order=_named(choice.slices),
        coverage=tuple(choice.coverage),
        stands_for=tuple(map(_named, choice.stands_for)),
        options=options,
        notes=tuple(choice.notes),
    )
    project.save_ranking(ranking.name, ranking.model_dump(mode="json"))
    return ranking


def _named(slices: Sequence[tuple[str, SliceRef]]) -> tuple[RankedSlice, ...]:
    return tuple(RankedSlice(volume=volume, axis=ref.axis, index=ref.index) for volume, ref in slices)


def ranked_slices(ranking: Ranking | Mapping[str, Any], volume: str | None = None) -> list[SliceRef]:
    """Return the slices of a ranking, best first.

    Parameters
    ----------
    ranking : Ranking or mapping
        As returned by `rank`, or as `Project.ranking` reads it.
    volume : str, optional
        Only those of this volume; needed where the ranking has several.

    Returns
    -------
    list of SliceRef
        In the order of the ranking.

    Raises
    ------
    InputError
        No ranking, or several volumes and none named.
    """
    try:
        checked = ranking if isinstance(ranking, Ranking) else Ranking.model_validate(ranking)
    except ValidationError as error:
        raise InputError(f"not a ranking ({error.error_count()} fields do not fit); make it again") from error
    if volume is None and len(checked.volumes) > 1:
        raise InputError(f"the ranking {checked.name} has the volumes {', '.join(checked.volumes)}; say which one")
    wanted = volume or checked.volumes[0]
    return [SliceRef(item.axis, item.index) for item in checked.order if item.volume == wanted]
