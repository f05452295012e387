"""The widgets that napari opens: there at once, filled when what they need is imported, which another thread does."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from napari_slicelabel.gui import dock, opening
from napari_slicelabel.gui.garbage import uncollected

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from pytestqt.qtbot import QtBot

SLOW = """
import threading
from qtpy.QtWidgets import QLabel
THREAD = threading.current_thread()
class WorkflowDock(QLabel):
    def __init__(self, viewer):
        assert threading.current_thread() is threading.main_thread()
        super().__init__("here")
"""

SLOWER = """
import threading
from qtpy.QtWidgets import QLabel
GO = threading.Event()
GO.wait(30)
class SelectWidget(QLabel):
    def __init__(self, viewer):
        super().__init__("select")
class WorkflowDock(QLabel):
    def __init__(self, viewer):
        super().__init__("workflow")
"""


def test_what_napari_imports_is_light() -> None:
    code = "import sys, napari_slicelabel.gui.opening; sys.exit('torch' in sys.modules or 'zarr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_widget_that_is_imported_is_there_at_once(make_napari_viewer_proxy: Any) -> None:
    opening._load()
    viewer = make_napari_viewer_proxy()
    place = opening.ReviewWidget(viewer)
    viewer.window.add_dock_widget(place)
    assert isinstance(place.content, dock.ReviewWidget)
    place.content.workspace.close()


def test_a_widget_is_imported_in_another_thread(qtbot: QtBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(opening, "_CONTENT", "slow_to_import")
    place = opening.WorkflowDock(None)  # type: ignore[arg-type]
    qtbot.addWidget(place)
    assert place.content is None
    qtbot.waitUntil(lambda: place.content is not None)
    assert sys.modules.pop("slow_to_import").THREAD is not threading.main_thread()


def test_an_import_that_has_begun_elsewhere_is_waited_for(
    qtbot: QtBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slower_to_import.py").write_text(SLOWER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(opening, "_CONTENT", "slower_to_import")
    first = opening.SelectWidget(None)  # type: ignore[arg-type]
    qtbot.waitUntil(lambda: "slower_to_import" in sys.modules)
    second = opening.WorkflowDock(None)  # type: ignore[arg-type]
    for place in (first, second):
        qtbot.addWidget(place)
    assert second.content is None
    sys.modules["slower_to_import"].GO.set()
    qtbot.waitUntil(lambda: first.content is not None and second.content is not None)
    assert (first.content.text(), second.content.text()) == ("select", "workflow")
    sys.modules.pop("slower_to_import")


def test_an_import_collects_no_garbage_and_garbage_is_collected_afterwards() -> None:
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_an_import_that_fails_is_said(qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_CONTENT", "there_is_no_such_module")
    place = opening.WorkflowDock(None)  # type: ignore[arg-type]
    qtbot.addWidget(place)
    qtbot.waitUntil(lambda: "there_is_no_such_module" in place._text.text())
