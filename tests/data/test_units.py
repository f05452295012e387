import math

import pytest

from napari_slicelabel.data.units import Grid, parse_unit, resolve_grid, stated_sizes
from napari_slicelabel.errors import InputError


@pytest.mark.parametrize(
    ("name", "metre"),
    [
        ("reference frame", None), ("px", None), ("", None), ("dm", 0.1), ("foot", 0.3048), ("in", 0.0254),
        ("Inches", 0.0254), ("yard", 0.9144), ("\u03bcm", 1e-6), ("\\u00B5m", 1e-6), ("\u212b", 1e-10), ("Mm", 1e6),
        ("mm", 1e-3), ("picometre", 1e-12), ("hectometers", 100.0),
    ],
)  # fmt: skip
def test_units_that_files_state(name: str, metre: float | None) -> None:
    unit, factor = parse_unit(name)
    if metre is None:
        assert (unit, factor) == ("pixel", 1.0)
    else:
        ours = {"nanometer": 1e-9, "micrometer": 1e-6, "millimeter": 1e-3}[unit]
        assert factor * ours == pytest.approx(metre)


def test_the_user_comes_before_any_look_at_the_file() -> None:
    odd = {"z": ("NaN", "parsec"), "y": (0, "reference frame"), "x": (-1, "furlong")}
    assert resolve_grid(odd, (2, 0.5, 0.5), "um") == Grid((2, 0.5, 0.5), "micrometer", "user", False)
    with pytest.raises(InputError, match="three positive"):
        resolve_grid({}, (2, 0, 0.5), "um")


@pytest.mark.parametrize("z", [(0, "um"), ("NaN", "um"), (math.inf, "um"), (1, "pixel"), (None, ""), ("thick", "um")])
def test_an_axis_without_a_size_is_assumed_and_said(z: tuple[object, str]) -> None:
    grid = resolve_grid({"z": z, "y": (0.5, "um"), "x": (0.5, "um")})
    assert (grid.voxel_size, grid.unit, grid.as_in_file) == ((0.5, 0.5, 0.5), "micrometer", False)
    assert "along z" in grid.notes[0]


def test_each_axis_has_its_own_unit() -> None:
    grid = resolve_grid({"z": ("0,05", "um"), "y": (4, "nm"), "x": (-0.004, "micron")})
    assert (grid.voxel_size, grid.unit, grid.notes) == ((0.05, 0.004, 0.004), "micrometer", ())
    assert resolve_grid(dict.fromkeys("zyx", (2, "px")), unit="nm").voxel_size == (2, 2, 2)
    assert resolve_grid({"z": (1, "furlong")}).notes[0].startswith("unit 'furlong'")


@pytest.mark.parametrize(
    ("value", "unit", "sizes"),
    [
        ("30 nm", "nm", (30, 30, 30)), ("0.03,0.006,0.006", "um", (0.03, 0.006, 0.006)),
        (b"[4, 4, 4]", "um", (4, 4, 4)),
        ([1, 2, 3], "um", (1, 2, 3)), (7.5, "um", (7.5, 7.5, 7.5)), ([1, 2], "um", None), ("unknown", "um", None),
    ],
)  # fmt: skip
def test_sizes_in_attributes(value: object, unit: str, sizes: tuple[float, ...] | None) -> None:
    expected = {} if sizes is None else {a: (s, unit) for a, s in zip("zyx", sizes, strict=True)}
    assert stated_sizes(value, "um") == expected
