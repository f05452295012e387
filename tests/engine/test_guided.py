"""The network that is guided by pseudo-labels, and models of correspondence on disk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from napari_slicelabel.engine.correspondence import CorrespondenceConfig, CorrespondenceNetwork, reconstruction_loss
from napari_slicelabel.engine.flow_model import describe, fitting_weights
from napari_slicelabel.engine.guided import (
    GuidedConfig,
    GuidedNetwork,
    guide_distances,
    guide_weights,
    image_weights,
    without_some_guides,
)
from napari_slicelabel.errors import InputError, MissingFileError

if TYPE_CHECKING:
    from pathlib import Path

PUBLISHED = GuidedConfig(encoder="resnet", stride=1, radius=2, guides=2)
OURS = GuidedConfig(stride=2, radius=2, guides=2)


@pytest.fixture(params=[PUBLISHED, OURS], ids=["published", "ours"])
def network(request: pytest.FixtureRequest) -> GuidedNetwork:
    torch.manual_seed(0)
    return GuidedNetwork(request.param).eval()


@pytest.fixture
def alone(network: GuidedNetwork) -> CorrespondenceNetwork:
    """The image branch by itself."""
    config = CorrespondenceConfig(**{k: v for k, v in network.config.model_dump().items() if k != "guides"})
    made = CorrespondenceNetwork(config)
    made.load_state_dict(image_weights(network.state_dict()))
    return made.eval()


def seen(count: int, size: int = 16) -> torch.Tensor:
    """Slices with an image and pseudo-labels of two classes that differ from slice to slice."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((count, 1, size, size), np.float32))
    labels = np.zeros((count, size, size), np.uint8)
    for number in range(count):
        labels[number, 2 : 6 + number, 3:9], labels[number, 9:13, 4 : 9 + number] = 1, 2
    return torch.cat([image, torch.from_numpy(np.stack([guide_distances(plane, 2) for plane in labels]))], 1)


@torch.no_grad()
def test_features_of_the_image_are_those_of_the_image_alone(
    network: GuidedNetwork, alone: CorrespondenceNetwork
) -> None:
    x = seen(3)
    found = network.features(x)
    assert found.shape == (3, 128, 16 // network.config.stride, 16 // network.config.stride)
    torch.testing.assert_close(found[:, :64], alone.features(x[:, :1]))
    if not network.config.is_published:
        torch.testing.assert_close(found[:, 64:].norm(dim=1), torch.ones(3, 8, 8))


@torch.no_grad()
def test_without_a_guide_the_image_decides_alone(network: GuidedNetwork, alone: CorrespondenceNetwork) -> None:
    """Also where only one of two slices has one."""
    x, values = seen(2), torch.rand(1, 1, 3, 16, 16)
    expected = alone.attend(*((f := alone.features(x[:, :1]))[:1], f[None, 1:]), values)
    x[0, 1:] = 0
    found = network.features(x)
    assert not found[0, 64:].any()
    assert found[1, 64:].any()
    torch.testing.assert_close(network.attend(found[:1], found[None, 1:], values), expected)


@torch.no_grad()
def test_the_guide_changes_what_is_taken_over(network: GuidedNetwork) -> None:
    x, values = seen(2), torch.rand(1, 1, 3, 16, 16)
    features = network.features(x)
    x[1, 1:] *= -1
    other = network.features(x)
    torch.testing.assert_close(other[:, :64], features[:, :64])
    carried, differently = (network.attend(f[:1], f[None, 1:], values) for f in (features, other))
    assert (carried - differently).abs().max() > 1e-3


def test_it_learns_from_the_guide_what_the_image_does_not_say() -> None:
    """Noise for an image, whose brightness the network does not see: only the guide tells bright from dark."""
    torch.manual_seed(0)
    network = GuidedNetwork(GuidedConfig(stride=1, radius=3, guides=1))
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    rng = np.random.default_rng(0)

    def loss(*, guided: bool) -> torch.Tensor:
        labels = np.zeros((4, 2, 16, 16), np.uint8)
        for plane in labels.reshape(-1, 16, 16):
            y, x = rng.integers(0, 10, 2)
            plane[y : y + 6, x : x + 6] = 1
        bright = torch.from_numpy(labels[:, :, None].astype(np.float32))
        guide = torch.from_numpy(np.stack([guide_distances(p, 1) for p in labels.reshape(-1, 16, 16)]))
        both = torch.cat([torch.rand(bright.shape), guide.unflatten(0, (4, 2))], 2)
        if not guided:
            both = without_some_guides(both, 1, 1.0, rng)
        return reconstruction_loss(network, bright, both)

    for _ in range(60):
        optimizer.zero_grad()
        loss(guided=True).backward()
        optimizer.step()
    with torch.no_grad():
        guided, blind = (float(np.mean([float(loss(guided=g)) for _ in range(8)])) for g in (True, False))
    assert guided < 0.8 * blind


def test_a_sample_loses_the_guide_of_all_its_slices() -> None:
    both = seen(2).expand(200, -1, -1, -1, -1).contiguous()
    kept = without_some_guides(both, 1, 0.5, np.random.default_rng(0))
    torch.testing.assert_close(kept[:, :, :1], both[:, :, :1])
    given = (kept[:, :, 1:] != 0).flatten(2).any(2)
    assert (given[:, 0] == given[:, 1]).all()
    assert 70 < int(given[:, 0].sum()) < 130
    torch.testing.assert_close(kept[given[:, 0]], both[given[:, 0]])


def test_distances_say_which_side_and_which_class() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 5:25], labels[10:30, 25:45], labels[35:] = 1, 2, 255
    found = guide_distances(labels, 2)
    assert found.shape == (2, 40, 60)
    assert found[:, 20, 15].tolist() == pytest.approx([10 / 16, -10 / 16])
    assert found[0, 20, 24] == -found[0, 20, 25] == 1 / 16
    assert found[0, 20, 59] == -1
    assert not found[:, 35:].any()
    assert (guide_distances(np.zeros((4, 4), np.uint8), 1) == -1).all()


class TestModels:
    def save(self, folder: Path, network: CorrespondenceNetwork) -> Path:
        folder.mkdir()
        save_file(network.state_dict(), folder / "weights.safetensors")
        (folder / "network.json").write_text(json.dumps({**describe(network), "method": "flow"}))
        return folder

    def test_weights_come_back(self, tmp_path: Path, network: GuidedNetwork, alone: CorrespondenceNetwork) -> None:
        folder = self.save(tmp_path / "model", network)
        whole = fitting_weights(folder, alone.config, 2)
        assert guide_weights(whole)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(whole[name], value)
        alone.load_state_dict(fitting_weights(folder, alone.config, 0))

    def test_the_noise_is_that_of_the_new_images(self, tmp_path: Path, alone: CorrespondenceNetwork) -> None:
        folder = self.save(tmp_path / "model", alone)
        fitting_weights(folder, alone.config.model_copy(update={"noise": 0.1, "radius": 4}), 0)

    @pytest.mark.parametrize(
        ("wanted", "message"),
        [
            ({"image_channels": 2}, "trained on images of 1 channels, these have 2"),
            ({"stride": 4}, "has stride=2, this run stride=4; set stride=2"),
            ({"profile": "edges"}, "set profile=gradients"),
            ({"encoder": "resnet"}, "set encoder=compact"),
        ],
    )
    def test_another_architecture(self, tmp_path: Path, wanted: dict[str, object], message: str) -> None:
        config = CorrespondenceConfig(stride=2)
        folder = self.save(tmp_path / "model", CorrespondenceNetwork(config))
        with pytest.raises(InputError, match=message):
            fitting_weights(folder, config.model_copy(update=wanted), 0)

    def test_another_guide(self, tmp_path: Path) -> None:
        config = CorrespondenceConfig(stride=2, radius=2)
        plain = self.save(tmp_path / "plain", CorrespondenceNetwork(config))
        with pytest.raises(InputError, match="has no guide; set guide=off"):
            fitting_weights(plain, config, 2)
        guided = self.save(tmp_path / "guided", GuidedNetwork(OURS))
        with pytest.raises(InputError, match="of 2 classes for a guide, this run has 3; set guide=off"):
            fitting_weights(guided, config, 3)

    def test_nothing_there_damaged_or_of_another_method(self, tmp_path: Path) -> None:
        config = CorrespondenceConfig(stride=2)
        with pytest.raises(MissingFileError, match="does not exist; give the id"):
            fitting_weights(tmp_path, config, 0)
        folder = self.save(tmp_path / "model", CorrespondenceNetwork(config))
        (folder / "network.json").write_text(json.dumps({"network": {}, "method": "self-label"}))
        with pytest.raises(InputError, match="a network of self-label, not of flow"):
            fitting_weights(folder, config, 0)
        for damaged in ("{", "[1]", json.dumps({"correspondence": {"stride": 3}})):
            (folder / "network.json").write_text(damaged)
            with pytest.raises(InputError, match="cannot be read"):
                fitting_weights(folder, config, 0)
        (folder / "network.json").write_text(json.dumps(describe(CorrespondenceNetwork(config))))
        (folder / "weights.safetensors").write_bytes(b"\x01" * 20)
        with pytest.raises(InputError, match="cannot be read"):
            fitting_weights(folder, config, 0)
