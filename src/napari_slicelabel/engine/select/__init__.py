"""Which slices to paint: an explicit table of selectors, and the ranking that they make."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from napari_slicelabel.data.boxes import AXES, Axis, SliceRef
from napari_slicelabel.engine.config import unknown
from napari_slicelabel.engine.select.candidates import Candidates
from napari_slicelabel.engine.select.interval import interval
from napari_slicelabel.engine.select.random import random
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from napari_slicelabel.data.project import Project


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


@dataclass(frozen=True)
class Selector:
    """One way to choose slices.

    Attributes
    ----------
    name : str
        What the user types.
    title : str
        One line for lists and forms.
    choose : callable
        Takes the candidates, the budget and a generator; returns that many different candidates, best first.
    """

    name: str
    title: str
    choose: Callable[[Candidates, int, np.random.Generator], Sequence[tuple[str, SliceRef]]]


_ALL = (
    Selector("interval", "Equally spaced slices", interval),
    Selector("random", "Slices drawn at random", random),
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
    name: str = "",
) -> Ranking:
    """Choose slices to paint, save the ranking in the project, and return it.

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
        For methods that draw at random.
    volumes : sequence of str
        Names; none for all.
    name : str
        Name to keep the ranking under; by default that of the method. A ranking of that name is replaced.

    Returns
    -------
    Ranking
        `budget` different slices.

    Raises
    ------
    InputError
        Unknown method, axis or volume, or a budget that is not between 1 and the number of slices left.
    StorageError
        Disk full, no permission.
    """
    if method not in SELECTORS:
        raise InputError(unknown("selection method", method, SELECTORS))
    if axis not in (*AXES, "all"):
        raise InputError(f"axis {axis!r}: expected z, y, x or all")
    names = tuple(dict.fromkeys(volumes)) or project.names
    candidates = Candidates.of(project, names, AXES if axis == "all" else (axis,))
    if not 1 <= budget <= candidates.count:
        raise InputError(f"budget {budget}: there are {candidates.count} slices to choose from; give 1 to that many")
    chosen = SELECTORS[method].choose(candidates, budget, np.random.default_rng(seed))
    ranking = Ranking(
        name=name or method,
        method=method,
        axis=axis,
        budget=budget,
        seed=seed,
        volumes=names,
        order=tuple(RankedSlice(volume=volume, axis=ref.axis, index=ref.index) for volume, ref in chosen),
    )
    project.save_ranking(ranking.name, ranking.model_dump(mode="json"))
    return ranking


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
