"""3D networks: levels by spacing, DenseVoxNet to the layer, what is kept on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from napari_slicelabel.engine.densevoxnet import DenseVoxNet
from napari_slicelabel.engine.networks import load_model
from napari_slicelabel.engine.volume_networks import (
    DENSEVOXNET_LEVELS,
    VolumeNetwork,
    VolumeNetworkConfig,
    levels,
)
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def config(architecture: str = "dynunet", **settings: object) -> VolumeNetworkConfig:
    kernels, strides = DENSEVOXNET_LEVELS if architecture == "densevoxnet" else levels((1, 1, 1), (16, 16, 16), 3)
    values = {"filters": (4, 8, 8), "kernels": kernels, "strides": strides, "classes": (1, 2), "tile": (16, 16, 16)}
    return VolumeNetworkConfig.model_validate({"architecture": architecture, **values, **settings})


def test_axes_are_halved_once_their_voxels_are_fine_enough() -> None:
    _, isotropic = levels((1, 1, 1), (64, 64, 64), 4)
    assert isotropic == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    kernels, strides = levels((40, 4, 4), (16, 128, 128), 5)
    # 40, 8, 8 then 40, 16, 16 then 40, 32, 32: from there on like isotropic ones, as long as 4 planes are left
    assert strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert kernels == ((1, 3, 3), (1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))


def test_an_axis_that_is_used_up_does_not_stop_the_others() -> None:
    """Crops are 8 slices deep by default: after one halving the slices are the finest for good."""
    kernels, strides = levels((1, 1, 1), (8, 128, 128), 5)
    assert strides == ((1, 1, 1), (2, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 2))
    assert set(kernels) == {(3, 3, 3)}
    kernels, strides = levels((1, 1, 1), (8, 96, 72), 5)
    assert [stride[2] for stride in strides] == [1, 2, 2, 2, 2]
    assert set(kernels) == {(3, 3, 3)}
    # never fine enough, but all that is left
    assert levels((10, 1, 1), (4, 8, 8), 3)[0] == ((1, 3, 3), (3, 3, 3), (3, 3, 3))


@pytest.mark.parametrize("architecture", ["dynunet", "unet", "densevoxnet"])
def test_logits_of_every_voxel(architecture: str) -> None:
    made = VolumeNetwork(config(architecture, image_channels=2, coordinates=True))
    assert made(torch.randn(1, 5, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


def test_untrained_it_says_what_the_shapes_say() -> None:
    made = VolumeNetwork(config(shape_classes=(2,))).eval()
    x = torch.randn(1, 2, 16, 16, 16)
    logits = made(x)
    assert torch.equal(logits[:, :2], torch.zeros(1, 2, 16, 16, 16))
    torch.testing.assert_close(logits[:, 2], 8 * x[:, 1])


def test_levels_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry per level"):
        config(filters=(4, 8))
    with pytest.raises(ValueError, match="not all among"):
        config(shape_classes=(3,))


# -- DenseVoxNet ------------------------------------------------------------------------------------------------------


def convolutions(in_channels: int, classes: int) -> int:
    """Weights of the convolutions of DenseVoxNet, from the numbers of its description alone."""

    def dense(start: int) -> int:
        return sum((start + 12 * unit) * 12 * 27 for unit in range(12))

    return (
        in_channels * 16 * 27
        + dense(16)
        + 160 * 160
        + dense(160)
        + 304 * 304
        + (304 * 128 * 64 + 128)
        + (128 * 64 * 64 + 64)
        + (64 * classes + classes)
        + (160 * classes + classes)
    )


def batch_norms() -> int:
    dense = [[start + 12 * unit for unit in range(12)] for start in (16, 160)]
    return 2 * (sum(map(sum, dense)) + 160 + 304)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_densevoxnet_has_the_parameters_of_its_description() -> None:
    network = DenseVoxNet((1,), 3)
    assert parameters(network) == convolutions(1, 3) + batch_norms() == 4_339_798


def test_densevoxnet_has_the_shapes_of_its_description() -> None:
    network = DenseVoxNet((1,), 3).eval()
    seen: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: tuple(out[0].shape)}))
    logits, auxiliary = network.with_auxiliary(torch.zeros(1, 1, 16, 16, 16))
    assert logits.shape == auxiliary.shape == (1, 3, 16, 16, 16)
    assert seen["stems.0"] == (16, 8, 8, 8)
    assert seen["branches.0"] == (160, 8, 8, 8)
    assert seen["transition"] == (160, 8, 8, 8)
    assert seen["pool"] == (160, 4, 4, 4)
    assert seen["block"] == (304, 4, 4, 4)
    assert seen["bottom"] == (304, 4, 4, 4)
    assert seen["up.0"] == (128, 8, 8, 8)
    assert seen["up.2"] == (64, 16, 16, 16)
    assert seen["auxiliary"] == (3, 8, 8, 8)


def test_the_y_shaped_one_joins_two_branches_in_front_of_the_transition() -> None:
    network = DenseVoxNet((1, 4), 3).eval()
    assert [stem.weight.shape[:2] for stem in network.stems] == [(16, 1), (16, 4)]  # type: ignore[union-attr]
    assert [len(branch.units) for branch in network.branches] == [6, 6]  # type: ignore[arg-type]
    assert network.transition[2].weight.shape[:2] == (160, 2 * 88)
    x = torch.randn(1, 5, 16, 16, 16)
    assert network(x).shape == (1, 3, 16, 16, 16)
    changed = x.clone()
    changed[:, 1:] = 0
    assert not torch.allclose(network(changed), network(x))


# -- on disk ----------------------------------------------------------------------------------------------------------


def test_a_model_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "network.json").write_text('{"volume_network": {"architecture": "cube"}}')
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="run the method again"):
        load_model(tmp_path)
