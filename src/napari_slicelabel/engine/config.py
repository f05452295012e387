"""What to do: one frozen model per method, in which every parameter is declared once."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, Self, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from napari_slicelabel.data.reading import parse_json
from napari_slicelabel.engine.pieces import NO_STOPS, WHOLE, range_bounds, read_range, read_stops
from napari_slicelabel.errors import InputError

# Annotations are evaluated by pydantic when the class is made: no `from __future__ import annotations` here.

LEAST_FOR_CALIBRATION = 3
"""Annotated slices that it takes to hold some out, and to measure on them how sure one may be."""

Devices = Annotated[
    int,
    Field(
        ge=1,
        le=64,
        json_schema_extra={"step": 1},
        description="GPUs to train on, each with a batch of its own in every step; with device=cpu processes.",
    ),
]
"""The parameter of the methods that train a network (`training.train`)."""


class MethodConfig(BaseModel):
    """Parameters that every method has; a method adds its own.

    A field is the only place where a parameter is described: type, bounds, step, default and help are read from it by
    the form, the command line and the documentation. Numbers carry ``json_schema_extra={"step": ...}``. No field is
    optional: where the program may choose, a literal such as ``"auto"`` says so.

    Attributes
    ----------
    PRESETS : mapping of str to mapping
        Named sets of values. ``default`` is what the fields say.
    SIMPLE : tuple of str
        The parameters that most people need, in the order of a form; it shows the others on demand.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    PRESETS: ClassVar[Mapping[str, Mapping[str, object]]] = {"default": {}}
    SIMPLE: ClassVar[tuple[str, ...]] = ("axis", "range")

    preset: str = Field("default", description="Named set of values; single parameters override it.")
    axis: Literal["auto", "z", "y", "x"] = Field(
        "auto", description="Axis that the slices are perpendicular to; auto: the one with most annotated slices."
    )
    range: str = Field(WHOLE, description="Slices to fill: all, or a:b for a up to and without b.")
    stops: str = Field(
        NO_STOPS,
        description="Slices that labels do not pass, with commas between them; what lies beyond is filled only from"
        " slices painted there.",
    )
    volumes: str = Field("all", description="Volumes to fill: all, or names with commas between them.")
    seed: int = Field(
        0,
        ge=0,
        le=2**31 - 1,
        json_schema_extra={"step": 1},
        description="Same seed, device and number of threads: same labels.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where networks run; auto: the GPU if there is one."
    )

    @field_validator("preset")
    @classmethod
    def _preset_exists(cls, value: str) -> str:
        if value not in cls.PRESETS:
            raise ValueError(f"expected one of {', '.join(cls.PRESETS)}")
        return value

    @field_validator("range")
    @classmethod
    def _range_is_readable(cls, value: str) -> str:
        read_range(value)
        return value

    @field_validator("stops")
    @classmethod
    def _stops_are_readable(cls, value: str) -> str:
        read_stops(value)
        return value

    @property
    def in_3d(self) -> bool:
        """Whether a run of it needs networks in 3D."""
        return False

    def bounds(self, depth: int) -> tuple[int, int]:
        """Return first slice and one past the last slice of `range` in a stack of `depth` slices.

        Raises
        ------
        InputError
            The range reaches outside the stack.
        """
        return range_bounds(self.range, depth, "the volume")

    def stop_slices(self, depth: int) -> tuple[int, ...]:
        """Return the slices of `stops`, sorted, in a stack of `depth` slices.

        Raises
        ------
        InputError
            One lies outside the stack.
        """
        found = read_stops(self.stops)
        if found and found[-1] >= depth:
            raise InputError(f"stops={self.stops}: there are {depth} slices, 0 to {depth - 1}")
        return found

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> Self:
        """Return a config from a preset and single values, which may be text from the command line.

        Parameters
        ----------
        values : mapping of str to object
            Parameter names and values. A value given as text is read as the type of its field; where that is a
            sequence, ``1,2,3`` and ``[1, 2, 3]`` both do.

        Returns
        -------
        MethodConfig
            The preset's values, overridden by `values`.

        Raises
        ------
        InputError
            A parameter, preset or value that does not exist or does not fit; names what would.
        """
        for name in values:
            if name not in cls.model_fields:
                raise InputError(unknown("parameter", name, cls.model_fields))
        preset = str(values.get("preset", "default"))
        if preset not in cls.PRESETS:
            raise InputError(unknown("preset", preset, cls.PRESETS))
        read = {name: _read_text(value, cls.model_fields[name].annotation) for name, value in values.items()}
        try:
            return cls.model_validate({**cls.PRESETS[preset], **read})
        except ValidationError as error:
            raise InputError(_one_line(error)) from error


def build_config(method: str, values: Mapping[str, object]) -> MethodConfig:
    """Return the config of a method: its preset first, then single values.

    Parameters
    ----------
    method : str
        Name of a method.
    values : mapping of str to object
        See `MethodConfig.from_values`.

    Returns
    -------
    MethodConfig
        An instance of the method's own config class.

    Raises
    ------
    InputError
        Unknown method or parameter (with the closest that exists), or a value out of bounds.

    Examples
    --------
    >>> build_config("interpolate", {"mode": "nearest", "seed": "3"}).seed
    3
    """
    from napari_slicelabel.engine.methods import METHODS  # the methods' configs are made from this module

    if method not in METHODS:
        raise InputError(unknown("method", method, METHODS))
    return METHODS[method].config.from_values(values)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return a one-line message for a name that does not exist: the closest one, and all that do."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(names) or 'none'}"


def _read_text(value: object, annotation: object) -> object:
    # pydantic turns "3" into 3 and "true" into True by itself; only sequences need help
    if not isinstance(value, str) or get_origin(annotation) not in (tuple, list, dict):
        return value
    if value.lstrip().startswith(("[", "{")):
        try:
            return parse_json(value)
        except ValueError as error:
            raise InputError(f"{value!r} is not valid JSON: {error}") from error
    return [part.strip() for part in value.split(",") if part.strip()]


def _one_line(error: ValidationError) -> str:
    return "; ".join(_one_problem(problem) for problem in error.errors())


def _one_problem(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"]) or "config"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name}={problem['input']}: {message[:1].lower()}{message[1:]}"
