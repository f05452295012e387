"""The sample that is downloaded, opened in real napari, from a server on this machine."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.gui.gates import PATIENCE_S

from napari_slicelabel.data import downloads
from napari_slicelabel.gui import downloading
from napari_slicelabel.gui.settings import PLUGIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.gui.conftest import Bench

pytestmark = [pytest.mark.loopback, pytest.mark.parametrize("download_site", [1024], indirect=True)]


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the user was told that went wrong."""
    said: list[str] = []
    monkeypatch.setattr(downloading, "show_error", said.append)
    return said


@pytest.fixture
def open_sample(
    bench: Bench, download_site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[Any, Any]]:
    """Opens the sample as the menu does."""
    monkeypatch.setattr(downloads, "VNC_URL", download_site.url)
    monkeypatch.setenv(downloads.CACHE_VARIABLE, str(tmp_path / "cache"))

    def go() -> tuple[Any, Any]:
        image, truth = bench.viewer.open_sample(PLUGIN, "drosophila_vnc")
        return image, truth

    return go


def test_the_layers_fill_while_sections_arrive(
    bench: Bench, download_site: Any, open_sample: Callable[[], tuple[Any, Any]], notes: list[str], tmp_path: Path
) -> None:
    image, truth = open_sample()
    assert not image.data.any(), "the window did not wait for the network"
    panel = bench.panel("VolumePanel")
    bench.wait(panel.start.isEnabled)
    panel.folder.setText(str(tmp_path / "fly.slicelabel"))
    bench.click(panel.start)
    assert "still being downloaded" in bench.dock.problem.text()
    bench.wait(lambda: bool(image.data[-1].any()))
    bench.wait(lambda: "loading" not in image.metadata["slicelabel"])
    assert image.data.any(axis=(1, 2)).all()
    assert sorted(np.unique(truth.data[4, 0, :8])) == [1, 2, 3, 4]
    assert not notes
    bench.click(panel.start)
    bench.wait(lambda: bench.workspace.session is not None)
    assert [item.name for item in bench.session.project.classes] == list(downloads.VNC_CLASSES)
    assert tuple(bench.session.labels.scale) == downloads.VNC_VOXEL_SIZE
    bench.settle()


def test_without_a_connection_nothing_stays(
    bench: Bench, download_site: Any, open_sample: Callable[[], tuple[Any, Any]], notes: list[str]
) -> None:
    download_site.server.server_close()
    open_sample()
    bench.wait(lambda: bool(notes))
    assert len(notes) == 1
    assert "no connection; check the network and open the sample again" in notes[0]
    assert "\n" not in notes[0]
    assert not bench.viewer.layers


def test_removing_the_layers_ends_the_download(
    bench: Bench,
    download_site: Any,
    open_sample: Callable[[], tuple[Any, Any]],
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = threading.Event()
    real = downloads.vnc_slices

    def slow() -> Iterator[downloads.VncSlice]:
        for item in real():
            yield item
            assert go_on.wait(PATIENCE_S)

    monkeypatch.setattr(downloading, "vnc_slices", slow)
    image, truth = open_sample()
    bench.wait(lambda: bool(image.data[0].any()))
    bench.viewer.layers.remove(image)
    bench.viewer.layers.remove(truth)
    go_on.set()
    bench.qtbot.wait(1500)
    assert len(download_site.asked) < 40
    assert not notes
