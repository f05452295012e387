"""The ways into the window: napari's menus, File > Open, a sample; one dock and one strip, whatever the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from qtpy.QtWidgets import QApplication

from napari_slicelabel import Project, SliceRef
from napari_slicelabel.data.formats import write_labels
from napari_slicelabel.gui import opening, plugin, recent

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gui.conftest import Bench

MENU = ("Plugins", "SliceLabel", "Label from few slices (SliceLabel)")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    np.save(tmp_path / "stack.npy", np.arange(6 * 32 * 32, dtype=np.uint16).reshape(6, 32, 32))
    return Project.create(tmp_path / "stack.slicelabel", [tmp_path / "stack.npy"], classes=["tube"])


def _of_kind(window: Bench, name: str) -> list[Any]:
    """Return the widgets of a kind that are in this window, and on the screen."""
    return [w for w in QApplication.allWidgets() if type(w).__name__ == name and w.isVisible()]


def _content(window: Bench) -> Any:
    (content,) = [w for w in _of_kind(window, "WorkflowDock") if hasattr(w, "sections")]
    return content


def _wait(window: Bench) -> None:
    window.wait(lambda: any(hasattr(w, "sections") for w in _of_kind(window, "WorkflowDock")))
    window.qtbot.wait(100)


def _check_fills(window: Bench) -> None:
    """Check that the content is as high as its dock but for the title."""
    content = _content(window)
    dock = opening.dock_of(content)
    assert dock is not None
    assert dock.height() > 500
    assert content.height() >= dock.height() - 40


def test_the_content_fills_the_dock_from_the_menu_reopened_and_floating(window: Bench) -> None:
    window.choose(*MENU)
    _wait(window)
    _check_fills(window)
    for _ in range(2):
        # hidden, and there again
        window.choose(*MENU)
        window.qtbot.wait(50)
    _check_fills(window)
    dock = opening.dock_of(_content(window))
    assert dock is not None
    dock.setFloating(True)
    dock.resize(360, 700)
    window.qtbot.wait(100)
    assert _content(window).height() >= 640
    dock.destroyOnClose()  # the cross in its title
    window.qtbot.wait(50)
    window.choose(*MENU)
    _wait(window)
    _check_fills(window)


def test_one_dock_and_one_strip_whatever_the_way_in(window: Bench, project: Project) -> None:
    window.choose(*MENU)
    _wait(window)
    window.viewer.open(str(project.path), plugin="napari-slicelabel")
    window.wait(lambda: window.workspace.session is not None)
    window.wait(lambda: len(_of_kind(window, "SliceBar")) == 1)
    window.viewer.window.add_plugin_dock_widget("napari-slicelabel", plugin.WORKFLOW)
    plugin.open_workflow(window.viewer)
    window.qtbot.wait(200)
    _check_fills(window)
    dock = opening.dock_of(_content(window))
    assert dock is not None
    dock.destroyOnClose()
    window.choose(*MENU)
    _wait(window)
    _check_fills(window)
    assert len(_of_kind(window, "SliceBar")) == 1


def test_folders_that_are_no_projects_open_as_images(window: Bench, tmp_path: Path) -> None:
    truth = np.arange(4 * 20 * 24, dtype=np.uint8).reshape(4, 20, 24)
    write_labels(tmp_path / "x.ome.zarr", truth, voxel_size=(5, 2, 2), unit="nanometer", classes=())
    sections = tmp_path / "sections"
    sections.mkdir()
    for index, plane in enumerate(truth):
        tifffile.imwrite(sections / f"{index}.tif", plane)
    (zarr_layer,) = window.viewer.open(str(tmp_path / "x.ome.zarr"), plugin="napari-slicelabel")
    assert (np.asarray(zarr_layer.data) == truth).all()
    assert tuple(zarr_layer.scale) == (5, 2, 2)
    (layer,) = window.viewer.open(str(sections), plugin="napari-slicelabel")
    assert (np.asarray(layer.data) == truth).all()


def test_a_project_closes_its_image_stays_and_it_is_among_the_recent_ones(window: Bench, tmp_path: Path) -> None:
    window.choose(*MENU)
    _wait(window)
    window.dock = _content(window)
    window.start(np.arange(6 * 32 * 32, dtype=np.uint16).reshape(6, 32, 32))
    image = window.session.image
    window.workspace.close_project()
    assert window.workspace.session is None
    assert [layer.name for layer in window.viewer.layers] == [image.name]
    assert window.workspace.images()
    assert recent.recent_projects()[0] == tmp_path / "stack.slicelabel"
    # what was in no file lies in the project, and nothing beside it
    assert (tmp_path / "stack.slicelabel" / "images" / "stack.npy").is_file()
    assert not list(tmp_path.glob("*.npy"))


def test_axes_that_are_not_certain_are_asked_for(window: Bench, tmp_path: Path) -> None:
    window.choose(*MENU)
    _wait(window)
    window.dock = _content(window)
    image = np.arange(6 * 2 * 32 * 40, dtype=np.uint16).reshape(6, 2, 32, 40)
    window.viewer.add_image(image, name="unsure")
    panel = window.panel("VolumePanel")
    window.wait(lambda: not panel.meaning.isHidden())
    assert not panel.start.isEnabled()
    panel.meaning.setCurrentIndex(panel.meaning.findText("6 slices, 2 channels, 32 x 40"))
    panel.folder.setText(str(tmp_path / "unsure.slicelabel"))
    window.click(panel.start)
    window.wait(lambda: window.workspace.session is not None)
    volume = window.session.project.volume("unsure")
    assert (volume.shape, volume.channels) == ((6, 32, 40), 2)
    assert (volume.read_slice(SliceRef("z", 3))[:, 0] == image[3]).all()
