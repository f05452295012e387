from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_slicelabel.data.samples import Sample

ANNOTATED = (2, 7, 12)


@pytest.fixture
def painted(project: Project, tiny_stack: Sample) -> Project:
    """``project`` with slices z2, z7 and z12 painted and complete."""
    for z in ANNOTATED:
        project.annotation("tiny").write_slice(SliceRef("z", z), tiny_stack.labels[z], complete=True)
    return project


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Project]:
    """Makes a project from label volumes, whose image is the labels; slices of the axis are painted and complete."""

    def make(
        volumes: dict[str, NDArray[np.uint8]],
        slices: dict[str, tuple[int, ...]],
        *,
        axis: str = "z",
        classes: tuple[str, ...] = ("one", "two"),
        voxel_size: tuple[float, float, float] = (1, 1, 1),
    ) -> Project:
        files = []
        for name, labels in volumes.items():
            files.append(tmp_path / f"{name}.npy")
            np.save(files[-1], labels)
        project = Project.create(
            tmp_path / "made.slicelabel", files, names=list(volumes), classes=classes, voxel_size=voxel_size
        )
        for name, indices in slices.items():
            for index in indices:
                ref = SliceRef(axis, index)  # type: ignore[arg-type]
                plane: NDArray[np.uint8] = np.take(volumes[name], index, ref.axis_number)
                project.annotation(name).write_slice(ref, plane, complete=True)
        return project

    return make


@pytest.fixture
def _short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Auto-encoders take 12 steps."""
    monkeypatch.setattr("napari_slicelabel.engine.select.features.MOST_STEPS", 12)


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Saves an untrained network of two classes as a run does; ``dimensions`` 2 or 3."""
    import json

    import torch
    from safetensors.torch import save_file

    from napari_slicelabel.engine.networks import NetworkConfig, SliceNetwork
    from napari_slicelabel.engine.volume_networks import VolumeNetwork, VolumeNetworkConfig

    def make(dimensions: int, *, seed: int = 0, axis: str = "z") -> Path:
        torch.manual_seed(seed)
        network: SliceNetwork | VolumeNetwork
        if dimensions == 2:
            network, key = SliceNetwork(NetworkConfig(classes=(3, 7), filters=(4, 4, 4, 4, 4))), "network"
        else:
            config = VolumeNetworkConfig(
                architecture="unet",
                filters=(4, 8),
                kernels=((3, 3, 3),) * 2,
                strides=((1, 1, 1), (1, 2, 2)),
                classes=(3, 7),
                tile=(8, 32, 32),
            )
            network, key = VolumeNetwork(config), "volume_network"
        folder = tmp_path / f"model{dimensions}-{seed}-{axis}"
        folder.mkdir()
        save_file(
            {name: value.contiguous() for name, value in network.state_dict().items()}, folder / "weights.safetensors"
        )
        classes = [{"id": 3, "name": "a", "color": "#e69f00"}, {"id": 7, "name": "b", "color": "#56b4e9"}]
        record = {key: network.config.model_dump(mode="json"), "axis": axis, "classes": classes}
        (folder / "network.json").write_text(json.dumps(record))
        return folder

    return make


@pytest.fixture
def noise_file(tmp_path: Path) -> Path:
    """64 x 72 x 80 voxels of noise: labels of an untrained network change from voxel to voxel."""
    path = tmp_path / "noise.npy"
    np.save(path, np.random.default_rng(0).integers(0, 255, (64, 72, 80), dtype=np.uint8))
    return path


@pytest.fixture
def read_labels() -> Callable[[Path], NDArray[np.integer]]:
    """Reads a label file whole."""
    from napari_slicelabel.data.boxes import Box
    from napari_slicelabel.data.formats import open_labels

    def read(path: Path) -> NDArray[np.integer]:
        volume = open_labels(path)
        return volume.read(Box.whole(volume.shape))[0]

    return read


@pytest.fixture
def forget_fingerprints() -> Callable[[Project], Project]:
    """Makes a project one from before images were known by a digest; only there another image is taken for the same."""

    def forget(project: Project) -> Project:
        file = project.path / "project.json"
        file.write_text(re.sub(r'"fingerprint": "\w+"', '"fingerprint": ""', file.read_text()))
        return Project.open(project.path)

    return forget
