"""Values of label files: which are classes, which stand for unknown, and which need numbers of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from napari_slicelabel.data.classes import MAX_CLASS, NOT_PAINTED, LabelClass, default_color
from napari_slicelabel.errors import InputError

_MASK = 255
_UNKNOWN = frozenset({-1, _MASK})


@dataclass(frozen=True)
class LabelValues:
    """Meaning of the values of a label file.

    Attributes
    ----------
    classes : frozenset of int
        The classes that occur.
    unknown : tuple of int
        Values of voxels that nobody has labelled.
    numbers : mapping of int to int
        Values that are not the number of their class, and that number.
    added : tuple of LabelClass
        Classes that the values bring with them, beside those of the project.
    """

    classes: frozenset[int]
    unknown: tuple[int, ...] = ()
    numbers: dict[int, int] = field(default_factory=dict)
    added: tuple[LabelClass, ...] = ()

    @classmethod
    def of(cls, values: set[int], name: str, known: Sequence[LabelClass], *, add: bool = False) -> "LabelValues":
        """Return the meaning of all values that occur.

        Parameters
        ----------
        values : set of int
            All of them. 0 and 255 alone are a mask; beside classes 255 and -1 stand for unknown.
        name : str
            Of the labels, for the message.
        known : sequence of LabelClass
            The classes of the project.
        add : bool
            Whether values above 254 get the numbers of new classes.

        Returns
        -------
        LabelValues
            What each value stands for.

        Raises
        ------
        InputError
            Negative values, or more values than there are classes (instances).
        """
        if values <= {NOT_PAINTED, _MASK} and _MASK in values:
            mask = known[0].id if len(known) == 1 else 1
            return cls(frozenset({mask}), numbers={_MASK: mask})
        unknown = tuple(sorted(values & _UNKNOWN))
        classes = values - {NOT_PAINTED, *unknown}
        high = sorted(value for value in classes if value > MAX_CLASS)
        free = [n for n in range(1, MAX_CLASS + 1) if n not in classes and n not in {c.id for c in known}]
        if (classes and min(classes) < 0) or len(high) > len(free):
            raise InputError(
                f"labels {name} hold {len(classes)} values from {min(values)} to {max(values)}; classes are 1 to"
                f" {MAX_CLASS} and background is 0, so turn instances into classes first"
            )
        if high and known and not add:
            raise InputError(
                f"labels {name} hold the values {_few(high)}, above the {MAX_CLASS} of a class; use --add-classes to"
                " make a class with a free number for each"
            )
        numbers = dict(zip(high, free, strict=False))
        names = {c.name for c in known}
        added = tuple(_new_class(number, f"label {value}", names) for value, number in numbers.items())
        return cls(frozenset((classes - set(high)) | set(numbers.values())), unknown, numbers, added)

    @classmethod
    def of_colours(cls, codes: set[int], name: str, known: Sequence[LabelClass], *, add: bool = False) -> "LabelValues":
        """Return the meaning of colours, as `colour_codes` gives them; black is background.

        Raises
        ------
        InputError
            Colours that no class of the project has, unless it has no classes or `add` makes new ones; or too many.
        """
        ids = {int(c.color[1:], 16): c.id for c in known}
        missing = sorted(codes - ids.keys() - {0})
        free = [n for n in range(1, MAX_CLASS + 1) if n not in set(ids.values())]
        if len(missing) > len(free):
            raise InputError(
                f"labels {name} hold {len(codes)} colours, as a photograph does; expected one for each class"
            )
        if missing and known and not add:
            listed = ", ".join(f"#{code:06x}" for code in missing[:8])
            table = ", ".join(f"{c.color} {c.name}" for c in known)
            raise InputError(
                f"labels {name} hold the colours {listed}, which no class has ({table}); use --add-classes to add them"
            )
        names = {c.name for c in known}
        added = tuple(
            _new_class(number, f"colour {code:06x}", names, f"#{code:06x}")
            for code, number in zip(missing, free, strict=False)
        )
        numbers = {**ids, **dict(zip(missing, free, strict=False))}
        return cls(frozenset(numbers[code] for code in codes if code), numbers=numbers, added=added)

    def apply(self, plane: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
        """Return the classes of a plane, and where they are known."""
        known = ~np.isin(plane, self.unknown)
        classes = np.where(known, plane, NOT_PAINTED)
        for value, number in self.numbers.items():
            classes[plane == value] = number
        return classes, known


def colour_codes(picture: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return colours as numbers, 0xRRGGBB, of a picture of shape (3 or 4, h, w); transparent ones are 0."""
    red, green, blue = picture[:3].astype(np.int64)
    codes = red << 16 | green << 8 | blue
    return np.where(picture[3] == 0, 0, codes) if len(picture) == 4 else codes


def _new_class(number: int, name: str, taken: set[str], color: str = "") -> LabelClass:
    while name in taken:
        name += "'"
    taken.add(name)
    return LabelClass(id=number, name=name, color=color or default_color(number))


def _few(values: Sequence[int], count: int = 8) -> str:
    rest = f" and {len(values) - count} more" if len(values) > count else ""
    return ", ".join(map(str, values[:count])) + rest
