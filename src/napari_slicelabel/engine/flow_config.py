"""Parameters of correspondence flow."""

# No `from __future__ import annotations`: pydantic reads the annotations of the config when the class is made.
from typing import ClassVar, Literal

from pydantic import Field

from napari_slicelabel.engine.config import MethodConfig


class FlowShareConfig(MethodConfig):
    """Parameters of methods that hold annotated slices out to see how well they label, and that hear flow, too."""

    calibrate: Literal["auto", "off"] = Field(
        "auto", description="Calibrate confidence on held-out annotated slices where there are at least 3."
    )
    flow: Literal["auto", "off"] = Field(
        "auto",
        description="Whether what correspondence flow carries counts beside what the network says; auto: as much as"
        " held-out slices speak for; with too few of these the network learns from it, too. Needs calibrate.",
    )
    flow_iterations: int = Field(
        60, ge=0, le=1_000_000, json_schema_extra={"step": 50}, description="Training steps of the flow."
    )


# What Sli2Vol and Sli2Vol+ have in common, after the released code.
_PUBLISHED: dict[str, object] = {
    "encoder": "resnet",
    "stride": "1",
    "iterations": 400,
    "batch": 5,
    "crop_px": 256,
    "gap_low": 2,
    "gap_high": 4,
    "learning_rate": 1e-4,
    "contrast": "off",
    "masks": "hard",
    "sides": "nearest",
    "references": 1,
    "anchor": "off",
    "shapes": 0.0,
    "align": "off",
    "damaged": "keep",
    "verify": "on",
    "calibrate": "off",
}


class FlowConfig(MethodConfig):
    """Parameters of `propagate`."""

    PRESETS: ClassVar = {
        "default": {},
        "sli2vol": {**_PUBLISHED, "profile": "edges"},
        "sli2vol+": {
            **_PUBLISHED,
            "profile": "gradients",
            "weight_decay": 0.005,
            "guide": "refined",
            "guide_iterations": 400,
            "refine_iterations": 300,
        },
    }
    SIMPLE: ClassVar = ("iterations", "axis", "range", "device")

    encoder: Literal["compact", "resnet"] = Field("compact", description="resnet is that of the paper, at full size.")
    profile: Literal["gradients", "edges"] = Field(
        "gradients", description="What the network sees: second differences and intensity, or the edges of the paper."
    )
    stride: Literal["auto", "1", "2", "4"] = Field(
        "auto",
        description="Pixels per feature; auto: 1 for slices of up to 128 x 128 pixels, 2 up to 320 x 320, 4 beyond.",
    )
    radius: int = Field(
        6, ge=1, le=32, json_schema_extra={"step": 1}, description="How far a place is looked for, in features."
    )
    reach: float = Field(
        2.5,
        ge=0.1,
        le=100.0,
        json_schema_extra={"step": 0.5},
        description="How far things move from one slice to the next, in distances between slices (standard deviation).",
    )
    soften: float = Field(
        2.0,
        ge=1.0,
        le=10.0,
        json_schema_extra={"step": 0.25},
        description="How much less labels trust in likeness than intensities do in training.",
    )
    iterations: int = Field(
        60, ge=0, le=1_000_000, json_schema_extra={"step": 50}, description="Training steps on the unlabelled slices."
    )
    batch: int = Field(4, ge=1, le=512, json_schema_extra={"step": 1}, description="Pairs of crops per step.")
    crop_px: int = Field(
        96, ge=32, le=1024, multiple_of=16, json_schema_extra={"step": 16}, description="Largest crop to train on."
    )
    gap_low: int = Field(
        1, ge=1, le=64, json_schema_extra={"step": 1}, description="Least distance of slices to train on, in slices."
    )
    gap_high: int = Field(4, ge=1, le=64, json_schema_extra={"step": 1}, description="And the largest.")
    sampling: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        json_schema_extra={"step": 0.05},
        description="Scheduled sampling: share of the steps in which a slice is put together from one that was itself"
        " put together; it grows from 0 to this at the end of training.",
    )
    learning_rate: float = Field(
        1e-3, ge=1e-6, le=1.0, json_schema_extra={"step": 1e-6}, description="Of Adam, constant."
    )
    weight_decay: float = Field(
        0.0, ge=0.0, le=1.0, json_schema_extra={"step": 0.001}, description="More than 0 makes it AdamW."
    )
    contrast: Literal["on", "off"] = Field("on", description="Vary the contrast of what the network is trained on.")
    references: int = Field(
        1, ge=0, le=8, json_schema_extra={"step": 1}, description="Labelled neighbours that a slice takes labels from."
    )
    anchor: Literal["on", "off"] = Field(
        "off", description="Whether a slice also takes labels from the annotated slice itself."
    )
    masks: Literal["soft", "hard"] = Field("soft", description="Whether probabilities are carried, or decisions.")
    sharpen: float = Field(
        1.0, ge=0.1, le=1.0, json_schema_extra={"step": 0.05}, description="Temperature of soft labels at every slice."
    )
    sides: Literal["both", "nearest"] = Field(
        "both", description="Whether labels come from the annotated slices on both sides, or from the nearer one."
    )
    shapes: float = Field(
        0.2, ge=0.0, le=1.0, json_schema_extra={"step": 0.05}, description="Share of interpolated shapes in the result."
    )
    verify: Literal["on", "off"] = Field(
        "off",
        description="Check of the paper: a pixel keeps its label where its intensity is that of the object before.",
    )
    calibrate: Literal["auto", "off"] = Field(
        "auto", description="Calibrate confidence on annotated slices that are held out, where there are at least 3."
    )
    align: Literal["on", "off"] = Field(
        "on", description="Whether a slice that lies elsewhere as a whole is shifted back before it is compared."
    )
    damaged: Literal["skip", "keep"] = Field(
        "skip",
        description="What to do with a slice that nothing before it explains: skip takes its labels from around it.",
    )
    reuse: Literal["on", "off"] = Field(
        "on",
        description="Take over from the last run of the same kind what still holds: the network, and all gaps whose"
        " annotated slices are as they were.",
    )
    guide: Literal["off", "pseudo", "refined"] = Field(
        "off",
        description="Carry labels twice: the second time slices are compared by what the first time gave, too; refined:"
        " after a 3D network has learned from it.",
    )
    guide_iterations: int = Field(
        100,
        ge=1,
        le=1_000_000,
        json_schema_extra={"step": 50},
        description="Training steps of the network that is guided; it begins with what was learned of the image.",
    )
    guide_dropout: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        json_schema_extra={"step": 0.05},
        description="Share of the crops without a guide, by which the network learns to do without.",
    )
    guide_carry: Literal["on", "off"] = Field(
        "on", description="Whether labels are carried with the guide; off: it has only taught, as in the paper."
    )
    refine_iterations: int = Field(
        150, ge=1, le=1_000_000, json_schema_extra={"step": 50}, description="Training steps of the 3D network."
    )
    refine_width: int = Field(
        16, ge=4, le=64, multiple_of=4, json_schema_extra={"step": 4}, description="Channels of its first level."
    )
    model: str = Field(
        "",
        description="Run id, or folder `model` of a run, whose correspondence network is used as it is; empty: train.",
    )
    cache_mb: int = Field(
        512, ge=16, le=1_000_000, json_schema_extra={"step": 16}, description="Memory for features, in MiB."
    )

    @property
    def in_3d(self) -> bool:
        """Whether a run of it needs networks in 3D."""
        return self.guide == "refined"
