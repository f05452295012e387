"""What a run says beforehand of how long it will take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.methods import METHODS
from napari_slicelabel.engine.plan import plan
from napari_slicelabel.engine.work import LEAST_PREDICTION_S, LEAST_STEP_S

if TYPE_CHECKING:
    from napari_slicelabel.data.project import Project


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one."""
    for module in ("devices", "plan", "flow", "volume_learning", "methods.self_label", "methods.self_train"):
        monkeypatch.setattr(f"napari_slicelabel.engine.{module}.on_gpu", lambda device: device != "cpu")


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_is_quicker_but_not_than_what_is_beside_it(painted: Project, method: str) -> None:
    """Slices of 64 x 64 pixels: a GPU does nothing but wait."""
    slow, quick = (plan(painted, build_config(method, {"device": device})).work for device in ("cpu", "cuda"))
    assert (slow.steps, slow.predictions) == (quick.steps, quick.predictions)
    if method == "interpolate":
        assert quick == slow
        return
    assert quick.step_s >= LEAST_STEP_S
    assert quick.prediction_s >= LEAST_PREDICTION_S
    assert quick.step_s <= max(slow.step_s, LEAST_STEP_S)


@pytest.mark.parametrize("method", METHODS)
def test_a_processor_without_bfloat16_takes_longer(
    painted: Project, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    seconds = []
    for dtype in (torch.bfloat16, torch.float32):
        monkeypatch.setattr("napari_slicelabel.engine.plan.working_dtype", lambda device, dtype=dtype: dtype)
        seconds.append(plan(painted, build_config(method, {"device": "cpu"})).work.seconds)
    assert seconds[1] == pytest.approx(seconds[0] * (1 if method == "interpolate" else 3))
