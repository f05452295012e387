"""The classes of a project: `LabelClass`, and the colours they get."""

# No `from __future__ import annotations`: pydantic reads the annotations when the class is made.
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from napari_slicelabel.errors import InputError

# Okabe and Ito's palette without black (told apart with every common colour blindness, and on grey images), then
# the strong colours of Glasbey's that keep their distance from those. Class n always gets colour n.
PALETTE: tuple[str, ...] = (
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#cc79a7",
    "#f0e442",
    "#0072b2",
    "#d55e00",
    "#9467bd",
    "#7fff00",
    "#00ffff",
    "#ff00ff",
    "#a0522d",
    "#ffb6c1",
    "#2e8b57",
    "#7b68ee",
    "#bdb76b",
    "#dc143c",
    "#40e0d0",
    "#8a2be2",
    "#ffdead",
)

NOT_PAINTED = 0
"""Label value of a voxel that nobody painted."""
PAINTED_BACKGROUND = 255
"""Label value of a voxel painted as background on purpose."""
MAX_CLASS = 254
"""Largest label value of a class."""

ClassName = Annotated[str, Field(min_length=1, max_length=100)]
ClassColor = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]


class LabelClass(BaseModel):
    """One class of the segmentation.

    Attributes
    ----------
    id : int
        Its label value, 1 to 254.
    name : str
        As the user calls it.
    color : str
        "#rrggbb".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int = Field(ge=1, le=MAX_CLASS, description="label value")
    name: ClassName = Field(description="as the user calls it")
    color: ClassColor = Field(description="#rrggbb")

    @property
    def rgba(self) -> tuple[int, int, int, int]:
        """The colour as four numbers 0 to 255, opaque."""
        return int(self.color[1:3], 16), int(self.color[3:5], 16), int(self.color[5:7], 16), 255


def default_color(class_id: int) -> str:
    """Return the colour that a class gets unless the user picks one: "#rrggbb", the same for the same id."""
    return PALETTE[(class_id - 1) % len(PALETTE)]


def make_classes(classes: Sequence[LabelClass | str]) -> tuple[LabelClass, ...]:
    """Return classes in the order of their ids; a bare name gets the next free id and the default colour.

    Parameters
    ----------
    classes : sequence of LabelClass or str
        May mix both.

    Returns
    -------
    tuple of LabelClass
        Sorted by id.

    Raises
    ------
    InputError
        An id or a name twice, an empty name, or more than 254 classes.

    Examples
    --------
    >>> [(c.id, c.name) for c in make_classes(["mito", "membrane"])]
    [(1, 'mito'), (2, 'membrane')]
    """
    taken = {c.id for c in classes if isinstance(c, LabelClass)}
    free = (i for i in range(1, MAX_CLASS + 1) if i not in taken)
    made: list[LabelClass] = []
    for item in classes:
        if isinstance(item, LabelClass):
            made.append(item)
            continue
        number = next(free, None)
        if number is None or not 0 < len(item) <= 100:
            raise InputError(f"class {item!r}: expected at most {MAX_CLASS} classes with names of 1 to 100 letters")
        made.append(LabelClass(id=number, name=item, color=default_color(number)))
    for what, values in (("id", [str(c.id) for c in made]), ("name", [c.name for c in made])):
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise InputError(f"classes: {what} {', '.join(twice)} is given twice; each {what} must differ")
    return tuple(sorted(made, key=lambda c: c.id))
