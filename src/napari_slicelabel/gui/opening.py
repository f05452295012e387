"""What napari.yaml names as widgets: each takes its place at once, and its content comes when it is imported.

The widgets need torch, whose import takes seconds. Imported by napari itself, in the window's thread, it would leave
the window dead for that long.
"""

from __future__ import annotations

import threading
import weakref
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QDockWidget, QGridLayout, QLabel, QMainWindow, QSizePolicy, QWidget

from napari_slicelabel.gui.garbage import uncollected
from napari_slicelabel.gui.tasks import Tasks

if TYPE_CHECKING:
    import napari

_CONTENT = "napari_slicelabel.gui.dock"
_importing = threading.Lock()
_imported: dict[str, Any] = {}
_opened: list[weakref.ref[_Opening]] = []


class _Opening(QWidget):
    """A place for a widget of `dock`; napari gives it the viewer. A viewer has one of each kind.

    Attributes
    ----------
    content : QWidget or None
        The widget; None while it is imported.
    viewer : napari.Viewer
        As napari gives it: a proxy.
    """

    kind: ClassVar[str]

    def __init__(self, viewer: napari.viewer.Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.content: QWidget | None = None
        self.viewer = viewer
        # napari adds a spacer to a column, which would take half of the dock
        self._room = QGridLayout(self)
        self._room.setContentsMargins(0, 0, 0, 0)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        self._tasks = Tasks(self)
        self._tasks.failed.connect(self._failed)
        self._text = QLabel("Loading ...")
        self._text.setWordWrap(True)
        self._text.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._room.addWidget(self._text)
        self._is_spare = docked(viewer, self.kind) is not None
        if self._is_spare:
            return
        _opened.append(weakref.ref(self))
        # not sys.modules: a module is in there as soon as its import has begun
        if _CONTENT in _imported:
            self._show(_imported[_CONTENT])
        else:
            self._tasks.start(_load, self._show)

    def showEvent(self, event: Any) -> None:
        """Come to the front of the docks, beside the others of this plugin; where there is one already, show that."""
        super().showEvent(event)
        # napari docks a widget after it has made it
        QTimer.singleShot(0, self._settle)

    def _settle(self) -> None:
        dock = dock_of(self)
        if dock is None:
            return
        first = docked(self.viewer, self.kind)
        if self._is_spare and first is not None:
            self.viewer.window.remove_dock_widget(self)
            bring_to_front(first)
        elif dock.isVisible():
            self._join(dock)

    def _join(self, dock: QDockWidget) -> None:
        """Share the place of another widget of this plugin as tabs: stacked, both would be too low."""
        window = dock.parentWidget()
        others = [dock_of(other) for other in _of_viewer(self.viewer) if other is not self]
        mate = next((o for o in others if o is not None and o.isVisible() and not o.isFloating()), None)
        if not isinstance(window, QMainWindow) or mate is None or dock.isFloating():
            return
        if mate not in window.tabifiedDockWidgets(dock):
            window.tabifyDockWidget(mate, dock)
            dock.raise_()

    def _show(self, module: Any) -> None:
        self.content = getattr(module, self.kind)(self.viewer)
        self._text.setVisible(False)
        self._room.removeWidget(self._text)
        self._room.addWidget(self.content, 0, 0)
        self._tasks.close()

    def _failed(self, line: str, whole: str) -> None:
        self._text.setText(f"This could not be loaded: {line}")
        self._text.setToolTip(whole)


def dock_of(widget: QWidget) -> QDockWidget | None:
    """Return the dock that a widget is in; None where it is in none, or is gone."""
    try:
        parent = widget.parentWidget()
        while parent is not None and not isinstance(parent, QDockWidget):
            parent = parent.parentWidget()
    except RuntimeError:
        # Qt has deleted it
        return None
    return parent


def docked(viewer: Any, kind: str) -> _Opening | None:
    """Return the widget of a kind that a viewer has, hidden or not."""
    return next((one for one in _of_viewer(viewer) if one.kind == kind), None)


def bring_to_front(widget: QWidget) -> None:
    """Show the dock of a widget, before those that share its place."""
    dock = dock_of(widget)
    if dock is not None:
        dock.show()
        dock.raise_()


def _of_viewer(viewer: Any) -> list[_Opening]:
    inner = _unwrapped(viewer)
    alive = [(ref, one) for ref in _opened if (one := ref()) is not None]
    _opened[:] = [ref for ref, _ in alive]
    return [one for _, one in alive if _unwrapped(one.viewer) is inner and dock_of(one) is not None]


def _unwrapped(viewer: Any) -> Any:
    """Return a viewer without the proxy that plugins get."""
    return getattr(viewer, "__wrapped__", viewer)


def _load() -> Any:
    """Import the widgets: once, whoever else asks waits."""
    with _importing, uncollected():
        module = import_module(_CONTENT)
        # what the first run would import: better now than while somebody scrolls
        import_module("napari_slicelabel.gui.background").import_networks()
        _imported[_CONTENT] = module
    return module


class WorkflowDock(_Opening):
    """Everything from choosing slices to export."""

    kind = "WorkflowDock"


class SelectWidget(_Opening):
    """Choose slices to paint."""

    kind = "SelectWidget"


class PaintWidget(_Opening):
    """Paint slices."""

    kind = "PaintWidget"


class PropagateWidget(_Opening):
    """Label the volume."""

    kind = "PropagateWidget"


class ReviewWidget(_Opening):
    """Review slices and export."""

    kind = "ReviewWidget"
