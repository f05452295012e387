"""Training in two processes of the CPU, as on two GPUs. They import no MONAI: that takes longer than all else."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import zarr

from napari_slicelabel.data.boxes import Box
from napari_slicelabel.engine import several_devices
from napari_slicelabel.engine.augment import NO_AUGMENTATION
from napari_slicelabel.engine.block_sampling import Block, BlockPool, BlockSampling, ShapesOf
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.densevoxnet import DenseVoxNet
from napari_slicelabel.engine.events import Metric
from napari_slicelabel.engine.fit import FitConfig, Trainer
from napari_slicelabel.engine.run import run
from napari_slicelabel.errors import DeviceError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project

pytest.importorskip("lightning_fabric")

CPU = torch.device("cpu")
CROP = (16, 16, 16)
TINY = {
    "iterations": 3,
    "rounds": 0,
    "network": "densevoxnet",
    "crop_px": 32,
    "crop_depth": 4,
    "batch": 1,
    "calibrate": "off",
    "shapes": "on",
    "device": "cpu",
}
TINY_2D = {
    "iterations": 3,
    "rounds": 0,
    "transfer_iterations": 0,
    "width": 8,
    "batch": 2,
    "crop_px": 32,
    "calibrate": "off",
    "device": "cpu",
}


@pytest.fixture
def ball_project(make_project: Callable[..., Project]) -> Project:
    grid = np.indices((12, 32, 32))
    ball = sum((g - c) ** 2 for g, c in zip(grid, (6, 16, 16), strict=True)) < 30
    return make_project({"a": np.asarray(ball, np.uint8)}, {"a": (2, 6, 9)}, classes=("ball",))


def pool(rng: np.random.Generator) -> BlockPool:
    """Has a single crop, whoever draws it."""
    image = np.random.default_rng(0).standard_normal((1, *CROP)).astype(np.float16)
    block = Block("a", Box.whole(CROP), image, (image > 0).astype(np.uint8), np.ones(CROP, bool))
    sampling = BlockSampling(CROP, 0.0, 1.0, 1.0, (1.0, 1.0), 0.0, NO_AUGMENTATION)
    return BlockPool(iter([block]), 1, ShapesOf(), sampling, CPU, 2**20, rng)


def trainer(seed: int = 0) -> Trainer[DenseVoxNet]:
    torch.manual_seed(seed)
    return Trainer(DenseVoxNet((1,), 2), FitConfig(20, ema=0.0), 1, CPU)


def labels_of(
    project: Project, method: str = "gradual-3d", **settings: object
) -> tuple[NDArray[np.uint8], list[float]]:
    """Run, and return the labels and the losses."""
    values = {**(TINY if method == "gradual-3d" else TINY_2D), **settings}
    events = list(run(project, build_config(method, values)))
    folder = project.run_folder(project.run_ids()[-1])
    assert not list(folder.glob(".devices*"))
    losses = [event.value for event in events if isinstance(event, Metric) and event.name == "loss"]
    return np.asarray(zarr.open_array(folder / "prediction" / "a.zarr" / "0", mode="r")[:]), losses


def test_the_same_seed_gives_the_same_labels_twice(ball_project: Project) -> None:
    first, losses = labels_of(ball_project, devices=2)
    second, again = labels_of(ball_project, devices=2)
    assert losses == again
    np.testing.assert_array_equal(first, second)


def test_2d_networks_learn_on_several_devices_too(ball_project: Project) -> None:
    labels, losses = labels_of(ball_project, "self-label", devices=2)
    assert losses
    assert np.isfinite(losses).all()
    # the annotated slices are what was painted, and the others were filled
    assert set(np.unique(labels)) <= {0, 1}
    assert labels[6].any()


def test_gradients_are_averaged_and_the_trainer_goes_on(tmp_path: Path) -> None:
    """Where both processes draw the same crop, two of them learn what one does: the dropout apart, which is off."""
    rng = np.random.default_rng(0)
    alone, together = trainer(), trainer()
    for made in (alone, together):
        for module in made.network.modules():
            if isinstance(module, torch.nn.modules.dropout._DropoutNd):
                module.p = 0.0
    wanted = [float(loss) for loss in alone.steps(pool(rng), 2)]
    several = several_devices.steps(together, pool(rng), 2, devices=2, rng=rng, folder=tmp_path)
    found = [float(loss) for loss in several if loss is not None]
    assert found == pytest.approx(wanted, rel=1e-3)
    assert together.step_number == 2
    assert not list(tmp_path.iterdir())
    for name, value in alone.network.named_parameters():
        torch.testing.assert_close(together.network.get_parameter(name), value, atol=2e-3, rtol=1e-2)


def test_one_device_is_the_process_itself(ball_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several_devices, "steps", None)
    assert labels_of(ball_project, devices=1)[1]


def test_who_stops_early_leaves_the_trainer_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(_device: object, _devices: int, path: str, messages: Any, _count: int) -> None:
        messages.put(0.5)
        while not (Path(path) / "stop").exists():
            time.sleep(0.01)

    monkeypatch.setattr(several_devices, "_launch", launch)
    rng, made = np.random.default_rng(0), trainer()
    before = made.state()
    several = several_devices.steps(made, pool(rng), 50, devices=2, rng=rng, folder=tmp_path)
    with closing(several):  # type: ignore[type-var]
        assert float(next(loss for loss in several if loss is not None)) == 0.5
        # while nothing ends, somebody may look up
        assert next(several) is None
    assert all(torch.equal(value, before[name]) for name, value in made.state().items())
    assert not list(tmp_path.iterdir())


def test_a_process_that_dies_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_args: object) -> None:
        raise RuntimeError("Traceback of it\nprocess 1 terminated with signal SIGKILL")

    monkeypatch.setattr(several_devices, "_launch", launch)
    rng = np.random.default_rng(0)
    with pytest.raises(DeviceError, match="a process that trained died: process 1 terminated"):
        list(several_devices.steps(trainer(), pool(rng), 2, devices=2, rng=rng, folder=tmp_path))
    assert not list(tmp_path.iterdir())


def test_too_few_gpus_and_a_missing_package_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match=r"devices=2: torch sees 1 GPU"):
        several_devices.check_devices(torch.device("cuda"), 2)
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(InputError, match=r"pip install 'napari-slicelabel\[distributed\]'"):
        several_devices.check_devices(CPU, 2)
