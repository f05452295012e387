from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel.data.boxes import Box
from napari_slicelabel.data.formats import open_labels
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.evaluate import evaluate
from napari_slicelabel.engine.export import export
from napari_slicelabel.engine.run import run
from napari_slicelabel.errors import InputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project


def column(value: int = 1) -> NDArray[np.uint8]:
    labels = np.zeros((5, 6, 8), np.uint8)
    labels[:, 2:4, 2:6] = value
    return labels


def read(path: Path) -> NDArray[np.uint8]:
    volume = open_labels(path)
    whole: NDArray[np.uint8] = volume.read(Box.whole(volume.shape))[0]
    return whole


@pytest.fixture
def filled(make_project: Callable[..., Project]) -> Project:
    project = make_project({"v": column()}, {"v": (0, 4)}, voxel_size=(10, 2, 1))
    list(run(project, build_config("interpolate", {})))
    return project


@pytest.mark.parametrize("name", ["out.ome.zarr", "out.tif", "out.nii.gz", "out.h5"])
def test_formats(filled: Project, tmp_path: Path, name: str) -> None:
    (path,) = export(filled, filled.run_ids()[0], tmp_path / name)
    assert path == tmp_path / name
    np.testing.assert_array_equal(read(path), column())


@pytest.mark.parametrize("kind", ["prediction", "confidence"])
@pytest.mark.parametrize("index", [0, 2])
def test_a_lost_part_is_no_background(
    make_project: Callable[..., Project], tmp_path: Path, kind: str, index: int
) -> None:
    """Also where it held nothing but background."""
    labels = column()
    labels[2] = 0
    project = make_project({"v": labels}, {"v": (0, 2, 4)})
    list(run(project, build_config("interpolate", {})))
    run_id = project.run_ids()[0]
    (project.run_folder(run_id) / kind / "v.zarr" / "0" / "c" / str(index) / "0" / "0").unlink()
    for use in (
        lambda: export(project, run_id, tmp_path / "out.tif"),
        lambda: list(run(project, resume=run_id)),
        lambda: evaluate(project, truth=tmp_path / "v.npy"),
    ):
        with pytest.raises(StorageError, match=f"slice z{index}"):
            use()
    assert not (tmp_path / "out.tif").exists()


def test_a_damaged_part_is_one_line(filled: Project, tmp_path: Path) -> None:
    chunk = filled.run_folder(filled.run_ids()[0]) / "prediction" / "v.zarr" / "0" / "c" / "3" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(StorageError, match="damaged"):
        export(filled, filled.run_ids()[0], tmp_path / "out.tif")


def test_never_over_what_exists(filled: Project, tmp_path: Path) -> None:
    path = tmp_path / "out.tif"
    path.write_text("precious")
    with pytest.raises(InputError, match="already exists"):
        export(filled, filled.run_ids()[0], path)
    assert path.read_text() == "precious"
    export(filled, filled.run_ids()[0], path, overwrite=True)
    np.testing.assert_array_equal(read(path), column())


def test_several_volumes(make_project: Callable[..., Project], tmp_path: Path) -> None:
    project = make_project({"a": column(1), "b": column(2)}, {"a": (0,), "b": (0,)})
    list(run(project, build_config("interpolate", {})))
    paths = export(project, project.run_ids()[0], tmp_path / "out.ome.zarr")
    assert [path.name for path in paths] == ["out_a.ome.zarr", "out_b.ome.zarr"]
    assert [read(path).max() for path in paths] == [1, 2]
    (one,) = export(project, project.run_ids()[0], tmp_path / "out.tif", volume="b")
    assert one.name == "out.tif"


def test_along_another_axis(make_project: Callable[..., Project], tmp_path: Path) -> None:
    project = make_project({"v": column()}, {"v": (1, 3, 5)}, axis="x")
    list(run(project, build_config("interpolate", {"mode": "nearest"})))
    (path,) = export(project, project.run_ids()[0], tmp_path / "out.tif")
    labels = read(path)
    np.testing.assert_array_equal(labels[:, :, 3:6], column()[:, :, 3:6])


class TestNnunet:
    def test_a_folder(self, filled: Project, tmp_path: Path) -> None:
        (folder,) = export(filled, filled.run_ids()[0], tmp_path / "Dataset001_Test", ignore_below=0)
        description = json.loads((folder / "dataset.json").read_text())
        assert "ignore" not in description["labels"]
        assert len(list((folder / "labelsTr").iterdir())) == 1

    def test_unsure_voxels_are_ignored(self, make_project: Callable[..., Project], tmp_path: Path) -> None:
        project = make_project({"v": column()}, {"v": (0,)})
        count = iter(range(100))
        list(run(project, build_config("interpolate", {}), stop=lambda: next(count) >= 3))
        (folder,) = export(project, project.run_ids()[0], tmp_path / "Dataset001_Test")
        ignored = json.loads((folder / "dataset.json").read_text())["labels"]["ignore"]
        labels = read(next((folder / "labelsTr").iterdir()))
        np.testing.assert_array_equal(labels[0], column()[0])
        assert (labels[4] == ignored).all()


class TestRefused:
    def test_unknown_run_or_volume(self, filled: Project, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="this project has"):
            export(filled, "r", tmp_path / "out.tif")
        with pytest.raises(InputError, match="no volume 'w'; it has v"):
            export(filled, filled.run_ids()[0], tmp_path / "out.tif", volume="w")

    def test_nothing_written_yet(self, make_project: Callable[..., Project], tmp_path: Path) -> None:
        project = make_project({"v": column()}, {"v": (0,)})
        events = run(project, build_config("interpolate", {}))
        next(events)
        events.close()
        with pytest.raises(InputError, match=r"written nothing to v yet \(cancelled\)"):
            export(project, project.run_ids()[0], tmp_path / "out.tif")
