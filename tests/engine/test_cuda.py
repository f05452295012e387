"""On a GPU: the same answers as on the CPU, repeatable ones, and what happens when its memory is full.

The contract of the methods is run there with ``SLICELABEL_TEST_DEVICE=cuda pytest tests/engine/test_methods.py``.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.formats import open_labels, open_volume
from napari_slicelabel.engine.apply import apply
from napari_slicelabel.engine.blocks import predict_blocks
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.correspondence import CorrespondenceConfig, CorrespondenceNetwork
from napari_slicelabel.engine.evaluate import evaluate
from napari_slicelabel.engine.events import Finished
from napari_slicelabel.engine.fit import FitConfig, Trainer
from napari_slicelabel.engine.networks import NetworkConfig, SliceNetwork
from napari_slicelabel.engine.predict import predict_bands, with_smaller_tiles
from napari_slicelabel.engine.run import run
from napari_slicelabel.engine.sampling import Batch
from napari_slicelabel.engine.select import rank
from napari_slicelabel.engine.volume_networks import VolumeNetwork, VolumeNetworkConfig, levels
from napari_slicelabel.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHORT: dict[str, dict[str, object]] = {
    "flow": {"iterations": 20, "crop_px": 32, "reuse": "off"},
    "gradual-3d": {
        "iterations": 30,
        "round_iterations": 5,
        "rounds": 2,
        "fold_iterations": 10,
        "flow_iterations": 10,
        "levels": 3,
        "crop_px": 32,
    },
    "self-label": {
        "iterations": 30,
        "round_iterations": 5,
        "rounds": 2,
        "fold_iterations": 10,
        "flow_iterations": 10,
        "crop_px": 32,
    },
    "self-train": {
        "iterations": 30,
        "plane_iterations": 20,
        "random_iterations": 5,
        "nearest_iterations": 5,
        "fold_iterations": 10,
        "flow_iterations": 10,
        "levels": 3,
        "crop_px": 32,
    },
}


@contextmanager
def left(megabytes: int) -> Iterator[None]:
    """Leave this process what is in use already and so much more of the GPU's memory."""
    gc.collect()
    torch.cuda.init()
    torch.zeros(1, device=GPU)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + megabytes * 2**20) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture
def small_memory() -> Iterator[None]:
    with left(96):
        yield


def labels_of(project: Project) -> NDArray[np.uint8]:
    run_id = project.run_ids()[-1]
    store = run_store(project, project.run_folder(run_id), "prediction", "tiny", "z")
    return np.stack([store.read(index) for index in range(16)])


def assert_close(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    """Convolutions have eight bits in bfloat16: some pixels of a network of random weights differ by hundredths."""
    assert np.abs(found - wanted).mean() < 0.005
    np.testing.assert_allclose(found, wanted, atol=0.06)


def random_batch(count: int, size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 3, size, size, generator=generator)
    target = torch.randint(0, 3, (count, size, size), generator=generator).to(torch.uint8)
    return Batch(x.to(GPU), target.to(GPU), torch.ones(count, device=GPU))


class Pool:
    """Draws always the same crops."""

    crop = (256, 256)

    def __init__(self) -> None:
        self.counts: list[int] = []

    def draw(self, count: int) -> Batch:
        self.counts.append(count)
        return random_batch(count, 256)


@pytest.mark.parametrize("method", SHORT)
def test_a_run_is_repeatable(painted: Project, method: str) -> None:
    found = []
    for _ in range(2):
        list(run(painted, build_config(method, {"device": "cuda", "seed": 1, **SHORT[method]})))
        found.append(labels_of(painted))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("method", SHORT)
def test_a_run_is_as_good_as_on_the_cpu(painted: Project, labels_file: Path, method: str) -> None:
    scores = {}
    for device in ("cpu", "cuda"):
        list(run(painted, build_config(method, {"device": device, **SHORT[method]})))
        run_id = painted.run_ids()[-1]
        scores[device] = evaluate(painted, truth=open_labels(str(labels_file)), run_id=run_id)["mean_dice"]
    # other numbers, other rounding, and so few steps: not the same labels
    assert scores["cuda"] > scores["cpu"] - 0.15, scores


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 8), (33, 47), (128, 128)], ids=str)
def test_correspondence_is_that_of_the_cpu(size: tuple[int, int], stride: int) -> None:
    torch.manual_seed(0)
    network = CorrespondenceNetwork(CorrespondenceConfig(stride=stride)).eval()  # type: ignore[arg-type]
    query, keys = (torch.nn.functional.normalize(torch.randn(*n, 64, *size), dim=-3) for n in ((1,), (1, 3)))
    values = torch.rand(1, 3, 4, size[0] * stride, size[1] * stride)
    with torch.no_grad():
        wanted = network.attend(query, keys, values)
        found = network.to(GPU).attend(query.to(GPU), keys.to(GPU), values.to(GPU))
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-4, rtol=1e-4)


def test_a_slice_is_predicted_as_on_the_cpu() -> None:
    torch.manual_seed(0)
    network = SliceNetwork(NetworkConfig(classes=(1, 2), mirror=True)).eval()
    x = np.random.default_rng(0).standard_normal((3, 200, 150)).astype(np.float16)

    def predicted(device: torch.device) -> NDArray[np.float32]:
        bands = predict_bands(network.to(device), lambda rows, columns: x[:, rows, columns], x.shape[1:], device)  # type: ignore[arg-type]
        return np.concatenate([band.probability for band in bands], 1)

    assert_close(predicted(GPU), predicted(CPU))


def test_a_block_is_predicted_as_on_the_cpu() -> None:
    torch.manual_seed(0)
    kernels, strides = levels((1, 1, 1), (16, 64, 64), 4)
    config = VolumeNetworkConfig(classes=(1, 2), kernels=kernels, strides=strides, tile=(16, 64, 64))
    network = VolumeNetwork(config).eval()
    x = np.random.default_rng(0).standard_normal((2, 1, 16, 64, 64)).astype(np.float16)
    wanted, found = (
        predict_blocks(network.to(device), x, device, stride=config.stride, mirror=True) for device in (CPU, GPU)
    )
    assert_close(found, wanted)


def test_what_was_learned_on_a_gpu_is_applied_without_one(painted: Project, image_file: Path, tmp_path: Path) -> None:
    list(run(painted, build_config("self-label", {"device": "cuda", **SHORT["self-label"]})))
    model = painted.run_folder(painted.run_ids()[-1]) / "model"
    found = []
    for device in ("cuda", "cpu"):
        for _ in apply(model, open_volume(str(image_file)), tmp_path / f"{device}.tif", device=device):
            pass
        labels = open_labels(str(tmp_path / f"{device}.tif"))
        found.append(np.stack([labels.read_slice(SliceRef("z", z)) for z in range(16)]))
    assert (found[0] == found[1]).mean() > 0.98


@pytest.mark.parametrize("features", ["autoencoder", "mae", "intensity"])
@pytest.mark.usefixtures("_short_training")
def test_slices_are_ranked(project: Project, features: str) -> None:
    ranking = rank(project, "representative", 3, features=features, seed=0, device="cuda")
    assert len({place.index for place in ranking.order}) == 3


@pytest.mark.usefixtures("small_memory")
def test_a_full_memory_halves_the_batch_and_training_goes_on() -> None:
    pool = Pool()
    trainer = Trainer(SliceNetwork(NetworkConfig(classes=(1, 2))), FitConfig(steps=4), 32, GPU)
    losses = [float(loss) for loss in trainer.steps(pool, 2)]
    assert np.isfinite(losses).all()
    assert trainer.batch < 32
    assert pool.counts[0] == 32
    assert pool.counts[-1] == trainer.batch


@pytest.mark.usefixtures("small_memory")
def test_a_full_memory_halves_the_tiles() -> None:
    torch.manual_seed(0)
    network = SliceNetwork(NetworkConfig(classes=(1, 2))).to(GPU).eval()
    x = np.zeros((3, 1024, 1024), np.float16)
    tiles = []

    def work(tile: int) -> float:
        tiles.append(tile)
        bands = predict_bands(network, lambda rows, columns: x[:, rows, columns], (1024, 1024), GPU, tile=tile)
        return sum(float(band.probability.sum()) for band in bands)

    assert with_smaller_tiles(work, GPU) == pytest.approx(1024**2, rel=1e-3)
    assert tiles[0] == 1024
    assert len(tiles) > 1


def test_a_memory_that_is_far_too_small_is_said_in_one_line(painted: Project) -> None:
    with left(4), pytest.raises(DeviceError, match="memory") as told:
        list(run(painted, build_config("self-label", {"device": "cuda", **SHORT["self-label"]})))
    assert "\n" not in str(told.value)
    # nothing painted is lost, and the run can go on when there is room again
    assert painted.annotation("tiny").complete("z") == (2, 7, 12)
    end = list(run(painted, resume=painted.run_ids()[-1]))[-1]
    assert isinstance(end, Finished)
    assert end.outcome == "finished"
