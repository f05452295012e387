"""napari.yaml: valid, everything it names exists, and reader, writer and samples do what they say."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, resources
from typing import TYPE_CHECKING, Any

import numpy as np
from npe2 import PluginManifest

from napari_slicelabel.data.annotation import Annotation
from napari_slicelabel.data.formats import open_labels
from napari_slicelabel.gui import plugin
from napari_slicelabel.gui.paint import PaintStore

if TYPE_CHECKING:
    from pathlib import Path

    from napari_slicelabel.data.project import Project


def manifest() -> PluginManifest:
    return PluginManifest.from_file(str(resources.files("napari_slicelabel") / "napari.yaml"))


def test_everything_it_names_exists() -> None:
    for command in manifest().contributions.commands:
        module, name = command.python_name.split(":")
        assert callable(getattr(import_module(module), name)), command.id


def test_menus_are_those_that_napari_opens_to_plugins() -> None:
    from napari._app_model.constants import MenuId

    known = {menu.value for menu in MenuId.contributables()}
    assert set(manifest().contributions.menus) <= known


def test_zarr_is_left_to_others() -> None:
    assert [reader.filename_patterns for reader in manifest().contributions.readers] == [["*.slicelabel"]]


def test_reader_takes_projects_and_nothing_else(project: Project, tmp_path: Path) -> None:
    read = plugin.get_reader(str(project.path))
    assert read is not None
    ((data, meta, kind),) = read(str(project.path))
    assert (data.shape, kind) == ((16, 64, 64), "image")
    assert meta["scale"] == (30.0, 6.0, 6.0)
    assert plugin.get_reader(str(tmp_path)) is None
    assert plugin.get_reader(str(tmp_path / "nothing.slicelabel")) is None


def test_writer_writes_what_is_painted(tmp_path: Path) -> None:
    store = PaintStore(Annotation(tmp_path / "a.zarr", (4, 20, 30)))
    store[2, 3:9, 4:8] = 3
    target = tmp_path / "out.ome.zarr"
    meta: dict[str, Any] = {"scale": (30.0, 6.0, 6.0), "units": ("nanometer",) * 3, "metadata": {}}
    assert plugin.write_label_layer(str(target), store, meta) == [str(target)]
    store.close()
    labels = open_labels(target)
    assert labels.voxel_size == (30.0, 6.0, 6.0)
    assert labels.unit == "nanometer"
    assert np.count_nonzero(np.asarray(labels.as_dask()) == 3) == 24


def test_samples_come_with_truth() -> None:
    (image, _, kind), (truth, meta, labels) = plugin.sample_em()
    assert (kind, labels) == ("image", "labels")
    assert image.shape == truth.shape == (32, 192, 192)
    assert not meta["visible"]


def test_half_finished_project_goes_on(make_napari_viewer_proxy: Any, qtbot: Any) -> None:
    from napari_slicelabel.gui.dock import WorkflowDock

    viewer = make_napari_viewer_proxy()
    ((data, meta, _),) = plugin.sample_project()
    viewer.add_image(data, **meta)
    dock = WorkflowDock(viewer)
    viewer.window.add_dock_widget(dock)
    qtbot.waitUntil(lambda: dock.workspace.session is not None)
    qtbot.waitUntil(lambda: len(dock.workspace.snapshot.proposals) == 4)
    assert [row.state for row in dock.workspace.snapshot.proposals] == ["complete"] * 3 + ["painting"]
    dock.workspace.close()


def test_opening_a_sample_does_not_wait_for_torch() -> None:
    code = "import sys; from napari_slicelabel.gui import plugin; plugin.sample_em(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "False"
