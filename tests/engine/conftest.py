from __future__ import annotations

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
    """Auto-encoders take 30 steps."""
    monkeypatch.setattr("napari_slicelabel.engine.select.features.MOST_STEPS", 30)
