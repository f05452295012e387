"""Units of length, and the voxel size that follows from what a file and the user say of each axis."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from napari_slicelabel.errors import InputError

Unit = Literal["nanometer", "micrometer", "millimeter", "pixel"]
VoxelSize = tuple[float, float, float]
Stated = tuple[object, str]
"""A size along one axis as a file states it: a number, in whatever form, and the name of its unit."""

_PREFIXES = {
    "atto": ("a", 1e-18), "femto": ("f", 1e-15), "pico": ("p", 1e-12), "nano": ("n", 1e-9), "micro": ("u", 1e-6),
    "milli": ("m", 1e-3), "centi": ("c", 1e-2), "deci": ("d", 0.1), "": ("", 1.0), "deca": ("da", 10.0),
    "hecto": ("h", 100.0), "kilo": ("k", 1e3), "mega": ("Mega", 1e6), "giga": ("G", 1e9),
}  # fmt: skip
_OTHERS = {
    "angstrom": 1e-10, "inch": 0.0254, "foot": 0.3048, "yard": 0.9144, "mile": 1609.344, "thou": 2.54e-5,
    "line": 0.0254 / 12, "point": 0.0254 / 72,
}  # fmt: skip
_SIGNS = {
    "micron": "micrometer", "a": "angstrom", "å": "angstrom", "ang": "angstrom", "in": "inch", '"': "inch",
    "inches": "inch", "ft": "foot", "feet": "foot", "yd": "yard", "mi": "mile", "mil": "thou", "li": "line",
    "pt": "point",
}  # fmt: skip
_PIXELS = {"", "pixel", "voxel", "px", "none", "unknown", "null", "reference frame", "referenceframe", "arbitrary"}
_OURS: dict[Unit, float] = {"nanometer": 1e-9, "micrometer": 1e-6, "millimeter": 1e-3}


def _metres() -> dict[str, float]:
    """Return the length in metre of each name: every prefix of metre, spelled out and as a sign."""
    table = dict(_OTHERS)
    for prefix, (sign, factor) in _PREFIXES.items():
        for name in (f"{prefix}meter", f"{prefix}metre", f"{sign}m"):
            table[name] = factor
    table.update({sign: table[name] for sign, name in _SIGNS.items()})
    return table


_METRES = _metres()


def parse_unit(text: str) -> tuple[Unit, float]:
    """Return the unit that a name stands for, and the factor that brings a length to it.

    Parameters
    ----------
    text : str
        A name or a sign: nm, nanometer, um, micron, mm, angstrom, inch, pixel, ... in any case.

    Returns
    -------
    tuple of str and float
        One of the four units of a `Volume`, and the factor that lengths are to be multiplied with (0.1 for angstrom).

    Raises
    ------
    InputError
        The name is not known.

    Examples
    --------
    >>> parse_unit("um"), parse_unit("Angstrom"), parse_unit("cm")
    (('micrometer', 1.0), ('nanometer', 0.1), ('millimeter', 10.0))
    """
    name = _plain(text)
    if name in _PIXELS or name.removesuffix("s") in _PIXELS:
        return "pixel", 1.0
    metre = _METRES.get(name, _METRES.get(name.removesuffix("s")))
    if metre is None:
        raise InputError(f"unit {text!r}: expected one of {', '.join(get_args(Unit))}, or nm, um, mm, cm, m, inch")
    unit: Unit = "nanometer" if metre < 1e-6 else "micrometer" if metre < 1e-3 else "millimeter"
    return unit, float(f"{metre / _OURS[unit]:.12g}")


def _plain(text: str) -> str:
    """Return a name in lower case; the two micro signs and the two A with a ring are different letters."""
    name = text.strip().replace("\\u00b5", "u").replace("\\u00B5", "u")
    # the capital prefixes of mega (Mm) and the angstrom's own sign must not be taken for milli
    name = "Megam" if name == "Mm" else name.translate({0x3BC: "u", 0xB5: "u", 0x212B: "å", 0xC5: "å"})
    return name if name == "Megam" else " ".join(name.lower().split())


def convert_length(unit: Unit, to: Unit) -> float:
    """Return the factor that brings a length in `unit` to the unit `to`; 1 when either is the pixel."""
    if "pixel" in (unit, to):
        return 1.0
    return float(f"{_OURS[unit] / _OURS[to]:.12g}")


def check_voxel_size(voxel_size: Sequence[float], factor: float = 1.0) -> VoxelSize:
    """Return three positive lengths, each multiplied with `factor`; InputError for anything else."""
    try:
        sizes = tuple(float(s) for s in voxel_size)
    except (TypeError, ValueError):
        sizes = ()
    if len(sizes) != 3 or not all(math.isfinite(s) and s > 0 for s in sizes):
        raise InputError(f"voxel size {tuple(voxel_size)}: expected three positive numbers, for z, y and x")
    return sizes[0] * factor, sizes[1] * factor, sizes[2] * factor


@dataclass(frozen=True, slots=True)
class Grid:
    """Voxel size of a volume, and where it comes from.

    Attributes
    ----------
    voxel_size : tuple of 3 float
        Along z, y, x, in `unit`.
    unit : str
        One for all axes.
    origin : {"file", "user", "default"}
        Whose word it is; "default" where nobody says anything.
    as_in_file : bool
        Whether it is the size that the file states, in whatever unit.
    notes : tuple of str
        Sentences for the user: axes that the file says nothing usable of.
    """

    voxel_size: VoxelSize
    unit: Unit
    origin: Literal["file", "user", "default"]
    as_in_file: bool
    notes: tuple[str, ...] = ()


def resolve_grid(
    stated: Mapping[str, Stated], voxel_size: Sequence[float] | None = None, unit: str | None = None
) -> Grid:
    """Return the voxel size that follows from what the file and the user say. The user comes first.

    Parameters
    ----------
    stated : mapping
        Axis letter (z, y, x) to size and unit as the file states them; an axis may be missing.
    voxel_size : sequence of 3 float, optional
        What the user says, along z, y, x.
    unit : str, optional
        What the user says. Given alone, sizes of the file in another unit are converted.

    Returns
    -------
    Grid
        Sizes along an axis that the file says nothing usable of (none, 0, NaN, in pixels beside others in nanometer)
        are taken from the other axes, and a note says so. A negative size is a direction: its amount counts.

    Raises
    ------
    InputError
        Of the user's values only: a size that is not three positive numbers, an unknown unit.

    Examples
    --------
    >>> resolve_grid({"z": (50, "nm"), "y": (0.004, "um"), "x": (4, "nm")}).voxel_size
    (50.0, 4.0, 4.0)
    """
    sizes, file_unit, notes = _of_file(stated)
    chosen, factor = parse_unit(unit) if unit is not None else (file_unit, 1.0)
    if voxel_size is not None:
        size = check_voxel_size(voxel_size, factor)
        ratio = convert_length(file_unit, chosen)
        same = sizes is not None and all(
            math.isclose(a, b * ratio, rel_tol=1e-3) for a, b in zip(size, sizes, strict=True)
        )
        return Grid(size, chosen, "user", same)
    if sizes is None:
        return Grid(check_voxel_size((1, 1, 1), factor), chosen, "user" if unit else "default", False, notes)
    size = check_voxel_size(sizes, convert_length(file_unit, chosen) if file_unit != "pixel" else factor)
    return Grid(size, chosen, "file", not notes, notes)


def _of_file(stated: Mapping[str, Stated]) -> tuple[VoxelSize | None, Unit, tuple[str, ...]]:
    """Return the sizes that a file states, all in one unit; None without any."""
    lengths: dict[str, tuple[float, Unit]] = {}
    notes: list[str] = []
    for axis in "zyx":
        amount, name = stated.get(axis, (None, ""))
        number = as_number(amount)
        if number is None or not math.isfinite(number) or number == 0:
            continue
        try:
            unit, factor = parse_unit(name)
        except InputError:
            notes.append(
                f"unit {name!r} of axis {axis} is not known; counted as pixels, so give --voxel-size and --unit"
            )
            unit, factor = "pixel", 1.0
        lengths[axis] = (abs(number) * factor, unit)
    physical = {axis: length for axis, length in lengths.items() if length[1] != "pixel"}
    usable = physical or lengths
    if not usable:
        return None, "pixel", tuple(notes)
    # one unit for all axes: that of z, where the file states it
    unit = next(usable[axis][1] for axis in "zyx" if axis in usable)
    sizes = {axis: length * convert_length(own, unit) for axis, (length, own) in usable.items()}
    missing = [axis for axis in "zyx" if axis not in sizes]
    if missing:
        guess = next(sizes[axis] for axis in "xyz" if axis in sizes)
        sizes.update(dict.fromkeys(missing, guess))
        notes.append(
            f"the file states no voxel size along {', '.join(missing)}: {guess:g} {unit} is assumed there, as along the"
            " other axes; give --voxel-size if that is wrong"
        )
    return (float(f"{sizes['z']:.12g}"), float(f"{sizes['y']:.12g}"), float(f"{sizes['x']:.12g}")), unit, tuple(notes)


def as_number(value: object) -> float | None:
    """Return a number that a file states in whatever form, with a decimal comma too; None for what is none."""
    if isinstance(value, str):
        value = value.strip().replace(",", ".") if value.count(",") == 1 else value.strip()
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def stated_sizes(value: Any, unit: str, order: str = "zyx") -> dict[str, Stated]:
    """Return the sizes in an attribute: three numbers or one for all axes, as an array, JSON, or text with a unit.

    Parameters
    ----------
    value : object
        ``[30, 6, 6]``, ``"[0.03, 0.006, 0.006]"``, ``"0.03,0.006,0.006"``, ``"30 nm"``, ``30``.
    unit : str
        Of numbers that bring none of their own.
    order : str
        The axes that the numbers belong to.

    Returns
    -------
    dict
        Empty when the value holds no sizes.

    Examples
    --------
    >>> stated_sizes("30 nm", "um")
    {'z': (30.0, 'nm'), 'y': (30.0, 'nm'), 'x': (30.0, 'nm')}
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        words = re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[^\W\d_]+", value)
        numbers = [float(w) for w in words if as_number(w) is not None and not w.isalpha()]
        unit = next((w for w in words if w.isalpha()), unit)
    else:
        try:
            numbers = [float(v) for v in _flat(value)]
        except (TypeError, ValueError):
            return {}
    if len(numbers) == 1:
        numbers *= 3
    return {axis: (n, unit) for axis, n in zip(order, numbers, strict=True)} if len(numbers) == 3 else {}


def _flat(value: Any) -> list[Any]:
    import numpy as np

    return list(np.ravel(np.asarray(value)))
