"""What napari.yaml names as widgets: each takes its place at once, and its content comes when it is imported.

The widgets need torch, whose import takes seconds. Imported by napari itself, in the window's thread, it would leave
the window dead for that long.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from napari_slicelabel.gui.garbage import uncollected
from napari_slicelabel.gui.tasks import Tasks

if TYPE_CHECKING:
    import napari

_CONTENT = "napari_slicelabel.gui.dock"


class _Opening(QWidget):
    """A place for a widget of `dock`; napari gives it the viewer.

    Attributes
    ----------
    content : QWidget or None
        The widget; None while it is imported.
    """

    kind: ClassVar[str]

    def __init__(self, viewer: napari.viewer.Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.content: QWidget | None = None
        self._viewer = viewer
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._tasks = Tasks(self)
        self._tasks.failed.connect(self._failed)
        self._text = QLabel("Loading ...")
        self._text.setWordWrap(True)
        self._text.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._column.addWidget(self._text)
        if _CONTENT in sys.modules:
            self._show(sys.modules[_CONTENT])
        else:
            self._tasks.start(_load, self._show)

    def _show(self, module: Any) -> None:
        self.content = getattr(module, self.kind)(self._viewer)
        self._text.setVisible(False)
        self._column.addWidget(self.content)
        self._tasks.close()

    def _failed(self, line: str, whole: str) -> None:
        self._text.setText(f"This could not be loaded: {line}")
        self._text.setToolTip(whole)


def _load() -> Any:
    with uncollected():
        module = import_module(_CONTENT)
        # what the first run would import: better now than while somebody scrolls
        import_module("napari_slicelabel.gui.background").import_networks()
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
