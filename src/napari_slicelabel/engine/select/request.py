"""What a selector is asked, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_slicelabel.engine.select.options import NO_OPTIONS, SelectOptions

if TYPE_CHECKING:
    import numpy as np

    from napari_slicelabel.data.boxes import SliceRef
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.select.candidates import Candidates

    Slice = tuple[str, SliceRef]


@dataclass(frozen=True)
class Request:
    """Choose `budget` slices.

    Attributes
    ----------
    project : Project
        Whose images may be looked at, and which keeps what was found.
    candidates : Candidates
        What to choose from.
    budget : int
        At most as many as there are candidates.
    rng : numpy.random.Generator
        For everything that is drawn.
    features : str
        A name in `FEATURES`, for selectors that compare slices.
    device : {"auto", "cpu", "cuda"}
        Where networks are trained.
    seed : int
        That of `rng`, for what is kept and found again.
    options : SelectOptions
        The rest.
    """

    project: "Project"
    candidates: "Candidates"
    budget: int
    rng: "np.random.Generator"
    features: str
    device: str
    seed: int = 0
    options: SelectOptions = NO_OPTIONS


@dataclass(frozen=True)
class Choice:
    """The slices, best first.

    Attributes
    ----------
    slices : sequence of (str, SliceRef)
        As many different ones as were asked for.
    features : str
        What slices were compared by; empty: they were not.
    coverage : sequence of float
        How well the slices up to each one represent all, 0 to 1; empty: not measured.
    stands_for : sequence of sequences of (str, SliceRef)
        For each slice those that it represents.
    notes : sequence of str
        What the user should know, such as slices that were skipped.
    """

    slices: "Sequence[Slice]"
    features: str = ""
    coverage: Sequence[float] = ()
    stands_for: "Sequence[Sequence[Slice]]" = ()
    notes: Sequence[str] = ()
