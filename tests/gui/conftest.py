"""Real napari windows, on a virtual screen where there is none."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

# before napari is imported: settings of other runs, and of the person whose machine this is, stay out
os.environ["NAPARI_CONFIG"] = str(Path(tempfile.mkdtemp(prefix="napari-")) / "settings.yaml")
os.environ.setdefault("NAPARI_STRICT_QT", "1")
os.environ.setdefault("NAPARI_ENSURE_PLUGIN_MAIN_THREAD", "1")

import numpy as np
import pytest
from tests.gui.gates import PATIENCE_S, make_patient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytestqt.qtbot import QtBot

    from napari_slicelabel.data.samples import Sample
    from napari_slicelabel.gui.dock import WorkflowDock

CANVAS = "CanvasBackendDesktop"


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """Fail rather than hang where there is neither a screen nor a virtual one."""
    if os.environ.get("DISPLAY") is None and os.name == "posix" and not hasattr(config, "xvfb"):
        import shutil
        import sys

        if sys.platform == "linux" and shutil.which("Xvfb") is None:
            raise pytest.UsageError("no screen: install xvfb (apt-get install xvfb)")


@pytest.fixture
def qtbot(qtbot: QtBot) -> QtBot:
    """That of pytest-qt, in no hurry."""
    return make_patient(qtbot)


@pytest.fixture(autouse=True)
def _runs_get_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of runs let others go first; beside other work on the machine they would hardly get on."""
    monkeypatch.setattr("napari_slicelabel.gui.background._NICE", 0)


class Bench:
    """A napari window with the workflow docked: what a person has before them, and their hands.

    With ``docked=False`` the window is empty, until the workflow is chosen from the menu.
    """

    dock: WorkflowDock

    def __init__(self, viewer: Any, qtbot: QtBot, folder: Path, *, docked: bool = True) -> None:
        from napari_slicelabel.gui.dock import WorkflowDock
        from napari_slicelabel.gui.workspace import Workspace

        self.viewer = viewer
        self.qtbot = qtbot
        self.folder = folder
        self.workspace = Workspace.of(viewer)
        if docked:
            self.dock = WorkflowDock(viewer)
            viewer.window.add_dock_widget(self.dock, name="Label from few slices", area="right")

    @property
    def session(self) -> Any:
        assert self.workspace.session is not None
        return self.workspace.session

    @property
    def snapshot(self) -> Any:
        return self.workspace.snapshot

    def panel(self, name: str) -> Any:
        return next(s.panel for s in self.dock.sections if type(s.panel).__name__ == name)

    def wait(self, condition: Callable[[], bool | None], timeout_s: float = PATIENCE_S) -> None:
        """Wait until a condition is true, or one that returns nothing no longer fails an assertion."""
        self.qtbot.waitUntil(condition, timeout=int(timeout_s * 1000))

    def settle(self) -> None:
        """Wait until no job is at work, all is saved, and the widgets have heard of it."""
        self.wait(lambda: not self.session.tasks.busy and not self.session.store.save_state.unsaved)
        self.qtbot.wait(200)
        self.wait(lambda: not self.session.tasks.busy)

    def click(self, button: Any) -> None:
        from qtpy.QtCore import Qt

        def can_be_clicked() -> None:
            assert button.isEnabled(), f"{button.text()} is greyed out"
            # a section may be folded, but a button that is hidden in it cannot be clicked
            assert not button.isHidden(), f"{button.text()} is hidden"

        # as a person who waits for what a job brings
        self.wait(can_be_clicked)
        self.qtbot.mouseClick(button, Qt.MouseButton.LeftButton)

    def choose(self, *titles: str) -> None:
        """Click through the menus, such as ``choose("File", "Open Sample", ...)``; take the dock that comes of it."""
        # a menu closes when its window gets the focus late: then a person opens it again
        for _ in range(3):
            menu = self._opened(titles[:-1])
            if menu is not None:
                break
        assert menu is not None, f"the menu {' > '.join(titles[:-1])} did not open"
        self._click_title(menu, titles[-1])
        self.qtbot.wait(50)
        self.take_dock()

    def take_dock(self) -> bool:
        """Take the workflow that is shown; False where there is none, or its content is still being imported."""
        from qtpy.QtWidgets import QApplication

        from napari_slicelabel.gui.dock import WorkflowDock

        docks = [w for w in QApplication.allWidgets() if isinstance(w, WorkflowDock) and w.isVisible()]
        if docks:
            (self.dock,) = docks
        return bool(docks)

    def _opened(self, titles: tuple[str, ...]) -> Any:
        """Return the menu to which clicks on `titles` lead, from the menu bar on; None where one did not open."""
        from qtpy.QtWidgets import QApplication, QMenuBar

        while (left_over := QApplication.activePopupWidget()) is not None:
            left_over.close()
        place: Any = next(w for w in QApplication.allWidgets() if isinstance(w, QMenuBar) and w.isVisible())
        for title in titles:
            self._click_title(place, title)
            before = place
            try:
                self.wait(lambda before=before: QApplication.activePopupWidget() not in (None, before), 30)
            except self.qtbot.TimeoutError:
                return None
            place = QApplication.activePopupWidget()
        return place

    def _click_title(self, menu: Any, title: str) -> None:
        from qtpy.QtCore import Qt

        shown = {action.text().replace("&", ""): action for action in menu.actions()}
        assert title in shown, f"no {title!r} in this menu; there is {list(shown)}"
        self.qtbot.mouseClick(menu, Qt.MouseButton.LeftButton, pos=menu.actionGeometry(shown[title]).center())

    def start(self, image: np.ndarray, **place: Any) -> None:
        """Open an image and press Start."""
        self.viewer.add_image(image, name="stack", **place)
        volume = self.panel("VolumePanel")
        self.wait(volume.start.isEnabled)
        volume.folder.setText(str(self.folder / "stack.slicelabel"))
        self.click(volume.start)
        self.wait(lambda: self.workspace.session is not None)
        self.settle()

    @property
    def canvas(self) -> Any:
        from qtpy.QtWidgets import QWidget

        # of this window: there may be others
        return next(w for w in self.dock.window().findChildren(QWidget) if type(w).__name__ == CANVAS)

    def at(self, y: float, x: float) -> Any:
        """Return where on the canvas a voxel of the shown slice is, as the camera has it."""
        from qtpy.QtCore import QPoint

        layer = self.session.labels
        # 0.9 on; before it the viewer itself has the camera
        camera = getattr(self.viewer, "scene", self.viewer).camera
        shown = list(self.viewer.dims.displayed)
        inside = [0.0] * 3
        for axis, value in zip(shown, (y, x), strict=True):
            inside[axis] = value
        world = np.asarray(layer.data_to_world(inside))[shown]
        middle = np.asarray(camera.center)[-2:]
        size = self.canvas.size()
        offset = (world - middle) * camera.zoom
        return QPoint(round(size.width() / 2 + offset[1]), round(size.height() / 2 + offset[0]))

    def drag(self, *points: tuple[float, float]) -> None:
        """Press the mouse at the first voxel, move over the others, release."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        canvas, places = self.canvas, [self.at(*point) for point in points]
        QTest.mouseMove(canvas, places[0])
        self.qtbot.wait(20)
        QTest.mousePress(canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, places[0])
        for place in places[1:]:
            QTest.mouseMove(canvas, place)
            self.qtbot.wait(10)
        QTest.mouseRelease(canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, places[-1])
        self.qtbot.wait(30)

    def press(self, key: str) -> None:
        """Press a key over the canvas, such as ``N`` or ``Ctrl+Z``."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        *modifiers, letter = key.split("+")
        held = Qt.KeyboardModifier.NoModifier
        for name in modifiers:
            held |= {"Ctrl": Qt.KeyboardModifier.ControlModifier, "Shift": Qt.KeyboardModifier.ShiftModifier}[name]
        name = {"=": "Equal", "-": "Minus"}.get(letter, letter)
        QTest.keyClick(self.canvas, getattr(Qt.Key, f"Key_{name}"), held)
        self.qtbot.wait(30)

    def paint_truth(self, truth: np.ndarray, indices: list[int]) -> None:
        """Paint whole slices through the layer, and mark them complete with the key."""
        from napari_slicelabel.data.boxes import SliceRef

        for index in indices:
            self.session.jump(SliceRef("z", index))
            self.session.labels.data[index, :, :] = truth[index]
            self.press("D")
        self.session.labels.refresh()
        self.settle()


@pytest.fixture
def bench(make_napari_viewer_proxy: Any, qtbot: QtBot, tmp_path: Path) -> Iterator[Bench]:
    """A window of 1280 x 800 with the workflow docked."""
    viewer = make_napari_viewer_proxy(show=True)
    viewer.window.resize(1280, 800)
    bench = Bench(viewer, qtbot, tmp_path)
    yield bench
    bench.workspace.close()


@pytest.fixture
def window(make_napari_viewer_proxy: Any, qtbot: QtBot, tmp_path: Path) -> Iterator[Bench]:
    """A window of 1280 x 800 as napari opens it: empty."""
    viewer = make_napari_viewer_proxy(show=True)
    viewer.window.resize(1280, 800)
    bench = Bench(viewer, qtbot, tmp_path, docked=False)
    yield bench
    bench.workspace.close()


@pytest.fixture
def stack(tiny_stack: Sample) -> Sample:
    """16 x 64 x 64 synthetic EM with truth."""
    return tiny_stack
