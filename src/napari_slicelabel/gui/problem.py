"""The one line in which a widget says that something cannot be done."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import QLabel, QWidget

from napari_slicelabel.gui.theme import Theme, css

if TYPE_CHECKING:
    from qtpy.QtGui import QShowEvent


class ProblemLabel(QLabel):
    """A line that says what is wrong, in the theme's colour for it; hidden while nothing is."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.problem = ""
        self.setTextFormat(Qt.TextFormat.RichText)
        self.setWordWrap(True)
        self.setVisible(False)

    def set_problem(self, problem: str) -> None:
        """Say what is wrong; nothing for an empty text."""
        self.problem = problem
        self._write()
        self.setVisible(bool(problem))

    def showEvent(self, event: QShowEvent | None) -> None:
        """Take the colour of the window: a style sheet reaches a widget only when it is shown."""
        super().showEvent(event)
        self._write()

    def changeEvent(self, event: QEvent | None) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        if event is not None and event.type() == QEvent.Type.PaletteChange and self.problem:
            self._write()

    def _write(self) -> None:
        # marked up, since a style sheet of its own would drop the margins of napari's
        theme = Theme.of(self.parentWidget() or self)
        self.setText(f'<span style="color: {css(theme.warning)}">⚠ {html.escape(self.problem)}</span>')
