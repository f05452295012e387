"""What correspondence flow does beyond the promises of every method."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.events import SliceDone
from napari_slicelabel.engine.methods.flow import _Planes
from napari_slicelabel.engine.run import run
from napari_slicelabel.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project
    from napari_slicelabel.data.samples import Sample

TINY: dict[str, object] = {"device": "cpu", "iterations": 2, "batch": 2, "crop_px": 32, "calibrate": "off", "reuse": "off"}


def confidence(project: Project, index: int) -> NDArray[np.uint8]:
    return run_store(project, project.run_folder(project.run_ids()[-1]), "confidence", "tiny", "z").read(index)


def test_it_is_not_sure_of_what_nobody_painted(project: Project, tiny_stack: Sample) -> None:
    """One half of the only annotated slice is painted: nothing is known of the other half."""
    half = tiny_stack.labels[7].copy()
    half[:, :32][half[:, :32] == 0] = 255
    half[:, 32:] = 0
    project.annotation("tiny").write_slice(SliceRef("z", 7), half)
    list(run(project, build_config("flow", {**TINY, "masks": "hard"})))
    sure = confidence(project, 7)
    assert (sure[:, :32] == 255).all()
    assert (sure[:, 32:] <= 255 // 3 + 1).all()


def test_scratch_planes_come_back(tmp_path: Path) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (3, 2, 5, 7), np.uint8)
    kept = _Planes(tmp_path / "kept", (2, 5, 7))
    for plane in planes:
        kept.append(plane)
    for number in (2, 0, 1):
        np.testing.assert_array_equal(kept.read(number), planes[number])
    kept.remove()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_between_two_annotated_slices(painted: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear error, what was written stays, nothing else is left behind, and the run goes on once there is room."""

    class Full:
        def __init__(self, file: object) -> None:
            self._file = file

        def write(self, _data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

    made = _Planes.__init__

    def full(self: _Planes, path: Path, shape: tuple[int, ...]) -> None:
        made(self, path, shape)
        self._file = Full(self._file)  # type: ignore[assignment]

    with monkeypatch.context() as patch:
        patch.setattr(_Planes, "__init__", full)
        with pytest.raises(StorageError, match="the disk is full"):
            list(run(painted, build_config("flow", TINY)))
    folder = painted.run_folder(painted.run_ids()[-1])
    assert not list(folder.glob(".flow.*"))
    done = [event.index for event in run(painted, resume=folder.name) if isinstance(event, SliceDone)]
    # the annotated slices and those before the first of them were written by then
    assert sorted(done) == sorted(set(range(16)) - {0, 1, 2, 7, 12})
    assert confidence(painted, 4).any()
