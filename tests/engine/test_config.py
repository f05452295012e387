from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic import Field

from napari_slicelabel.engine.config import MethodConfig, build_config
from napari_slicelabel.engine.methods import METHODS, method_of
from napari_slicelabel.engine.methods.interpolate import InterpolateConfig
from napari_slicelabel.errors import InputError


class Many(MethodConfig):
    """A config with every kind of field."""

    PRESETS: ClassVar = {"default": {}, "paper": {"rounds": 9, "widths": (8, 16)}}

    rounds: int = Field(3, ge=1, le=10, description="rounds", json_schema_extra={"step": 1})
    flip: bool = Field(False, description="flip")
    widths: tuple[int, ...] = Field((16, 32), description="widths")


@pytest.mark.parametrize("name", METHODS)
class TestEveryConfig:
    def test_each_parameter_says_all(self, name: str) -> None:
        for key, field in METHODS[name].config.model_json_schema()["properties"].items():
            assert len(field["description"]) > 5, key
            assert "anyOf" not in field, f"{key}: no optional fields; use a literal such as auto"
            if field["type"] in ("integer", "number"):
                assert field.keys() >= {"minimum", "maximum", "step"}, key

    def test_presets_build(self, name: str) -> None:
        presets = METHODS[name].config.PRESETS
        assert presets["default"] == {}
        for preset in presets:
            assert build_config(name, {"preset": preset}).preset == preset

    def test_round_trip(self, name: str) -> None:
        for preset in METHODS[name].config.PRESETS:
            config = build_config(name, {"preset": preset, "seed": 5})
            assert build_config(name, config.model_dump(mode="json")) == config

    def test_belongs_to_its_method(self, name: str) -> None:
        assert method_of(build_config(name, {})).name == name
        assert METHODS[name].name == name


def test_text_from_the_command_line() -> None:
    config = Many.from_values({"rounds": "4", "flip": "true", "widths": "4, 8,16", "seed": "7"})
    assert (config.rounds, config.flip, config.widths, config.seed) == (4, True, (4, 8, 16), 7)
    assert Many.from_values({"widths": "[1, 2]"}).widths == (1, 2)


def test_preset_first_then_single_values() -> None:
    config = Many.from_values({"preset": "paper", "rounds": "2"})
    assert (config.rounds, config.widths) == (2, (8, 16))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"round": 3}, r"unknown parameter 'round'. Did you mean rounds\? Known: preset, axis"),
        ({"preset": "papr"}, r"unknown preset 'papr'. Did you mean paper\? Known: default, paper"),
        ({"rounds": "many"}, "rounds=many: input should be a valid integer"),
        ({"rounds": 11}, "rounds=11: .*less than or equal to 10"),
        ({"widths": "[1,"}, "not valid JSON"),
        ({"axis": "w"}, "axis=w"),
        ({"range": "5"}, "range=5: expected all, or a:b"),
        ({"range": "9:3"}, "range=9:3"),
        ({"device": "tpu"}, "device=tpu"),
    ],
)
def test_bad_values_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Many.from_values(values)
    assert "\n" not in str(caught.value)


def test_unknown_method() -> None:
    with pytest.raises(
        InputError, match=r"unknown method 'interpolat'. Did you mean interpolate\? Known: .*interpolate"
    ):
        build_config("interpolat", {})


def test_a_config_of_no_method() -> None:
    with pytest.raises(InputError, match="Many is not the config of a method"):
        method_of(Many())


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        InterpolateConfig().seed = 4  # type: ignore[misc]


def test_bounds() -> None:
    assert Many.from_values({}).bounds(9) == (0, 9)
    assert Many.from_values({"range": "2:9"}).bounds(9) == (2, 9)
    with pytest.raises(InputError, match="range=2:10: the volume has 9 slices"):
        Many.from_values({"range": "2:10"}).bounds(9)


@pytest.mark.parametrize(
    ("method", "values", "in_3d"),
    [
        ("flow", {}, False),
        ("flow", {"preset": "sli2vol+"}, True),
        ("flow", {"preset": "sli2vol+", "guide": "pseudo"}, False),
        ("self-label", {}, False),
        ("gradual-3d", {}, True),
        ("self-train", {}, True),
    ],
)
def test_a_config_says_whether_networks_in_3d_are_needed(method: str, values: dict[str, object], in_3d: bool) -> None:
    assert build_config(method, values).in_3d == in_3d


def test_a_gpu_gets_larger_batches_unless_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_slicelabel.engine.devices.on_gpu", lambda device: device != "cpu")
    for name, usual in (("self-label", 8), ("gradual-3d", 2), ("self-train", 2)):
        crops = {device: build_config(name, {"device": device}).crops for device in ("cpu", "cuda")}  # type: ignore[attr-defined]
        assert crops == {"cpu": usual, "cuda": 4 * usual}, name
        assert build_config(name, {"device": "cuda", "batch": 3}).crops == 3  # type: ignore[attr-defined]
    # what was published says how large it was
    for name, published in (("self-label", 16), ("gradual-3d", 2), ("self-train", 2)):
        assert build_config(name, {"device": "cuda", "preset": "paper"}).crops == published  # type: ignore[attr-defined]
