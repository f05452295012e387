"""The bar under the canvas: what every slice of the stack is, how sure the labels are, and how far to go.

Two lanes. The upper one says who labelled a slice, with the curve of expected Dice over it; the lower one marks
where people worked or should. Where a pixel column stands for several slices, it shows what needs most attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from qtpy.QtCore import QEvent, QRectF, QSize, Qt, Signal
from qtpy.QtGui import (
    QAction,
    QFont,
    QFontMetricsF,
    QHelpEvent,
    QPainter,
    QPen,
    QPixmap,
)
from qtpy.QtWidgets import QApplication, QMenu, QSizePolicy, QToolTip, QWidget

from napari_slicelabel.gui.strip_painter import MARK_LANE, StripGeometry, StripPainter
from napari_slicelabel.gui.strip_snapshot import MARK_RANKS, SliceStatus, StripSnapshot
from napari_slicelabel.gui.theme import Theme

if TYPE_CHECKING:
    from qtpy.QtGui import QContextMenuEvent, QKeyEvent, QMouseEvent, QPaintEvent, QResizeEvent

__all__ = ["SliceStatus", "SliceStrip", "StripSnapshot"]


@dataclass
class _Drag:
    """A press of the mouse that goes on: where it began, and what it moves."""

    kind: Literal["click", "new", "start", "stop"]
    anchor: int
    x: float
    before: tuple[int, int] | None
    moved: bool = False


class SliceStrip(QWidget):
    """A bar with one place per slice.

    Click jumps, drag sets the range, its brackets can be dragged, Alt-click sets and removes a stop; the context menu
    says the same in words. Keys: arrows, Page Up and Down, Home, End move; Ctrl and an arrow go to the next slice
    that is painted or proposed; ``[`` and ``]`` begin and end the range, Escape takes it back, S sets a stop.

    Attributes
    ----------
    slice_chosen : Signal(int)
        The user wants to see a slice.
    range_changed : Signal(int, int)
        The user set the range: first slice, and one past the last. All slices: 0 and their number.
    stop_toggled : Signal(int, bool)
        The user set or removed a stop slice.
    """

    slice_chosen = Signal(int)
    range_changed = Signal(int, int)
    stop_toggled = Signal(int, bool)

    _GRIP = 6.0

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._snapshot = StripSnapshot("z", np.zeros(1, np.uint8), np.full(1, np.nan))
        self._still: QPixmap | None = None
        self._drag: _Drag | None = None
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Slices of the stack")
        self._describe_current()

    @property
    def snapshot(self) -> StripSnapshot:
        """What the strip shows, with what the user changed since it was set."""
        return self._snapshot

    def set_snapshot(self, snapshot: StripSnapshot) -> None:
        """Show a stack of at least one slice. Emits nothing; a range that is being dragged stays as it is."""
        if snapshot.depth < 1:
            raise ValueError("a stack has at least one slice")
        if self._drag is not None and snapshot.depth != self._snapshot.depth:
            self._drag = None
        if self._drag is not None and self._drag.moved:
            # a run tells of new slices ten times a second, and knows nothing of the range under the mouse
            snapshot = replace(snapshot, span=self._snapshot.span)
        self._snapshot = snapshot
        self._still = None
        self._describe_current()
        self.update()

    def set_current(self, index: int) -> None:
        """Mark another slice as the one on the canvas; much cheaper than a new snapshot."""
        self._snapshot = replace(self._snapshot, current=index)
        self._describe_current()
        self.update()

    def sizeHint(self) -> QSize:
        """Return a comfortable size."""
        return QSize(480, round(self._text_height * 2 + MARK_LANE + 46))

    def minimumSizeHint(self) -> QSize:
        """Return the least height at which all is there."""
        return QSize(160, self.sizeHint().height())

    # -- geometry ---------------------------------------------------------------------------------------------------

    @cached_property
    def _small(self) -> QFont:
        font = QFont(self.font())
        font.setPointSizeF(max(7.0, font.pointSizeF() - 1))
        return font

    @property
    def _text_height(self) -> float:
        return QFontMetricsF(self._small).height()

    @property
    def _geometry(self) -> StripGeometry:
        return StripGeometry(self.width(), self.height(), self._snapshot.depth, self._text_height)

    def slice_at(self, x: float) -> int:
        """Return the slice at a distance from the left side, the nearest one outside of the bar."""
        return self._geometry.slice_at(x)

    def x_of(self, index: int) -> float:
        """Return where the middle of a slice is, from the left side."""
        return self._geometry.x_of(index)

    def _slices_under(self, x: float) -> tuple[int, int]:
        first = self.slice_at(math.floor(x))
        return first, max(first, self.slice_at(math.floor(x) + 0.999))

    def _grip_at(self, x: float) -> Literal["start", "stop"] | None:
        start, stop = self._geometry.edge(self._snapshot.start), self._geometry.edge(self._snapshot.stop)
        near_start, near_stop = abs(x - start) <= self._GRIP, abs(x - stop) <= self._GRIP
        if near_start and near_stop:
            return "start" if x < (start + stop) / 2 else "stop"
        if near_start:
            return "start"
        return "stop" if near_stop else None

    # -- mouse ------------------------------------------------------------------------------------------------------

    def mousePressEvent(self, event: QMouseEvent | None) -> None:
        """Begin a click or a drag; Alt sets a stop."""
        if event is None or event.button() != Qt.MouseButton.LeftButton:
            return
        x = event.position().x()
        index = self.slice_at(x)
        if event.modifiers() & Qt.KeyboardModifier.AltModifier:
            self._toggle_stop(index)
            return
        self._drag = _Drag(self._grip_at(x) or "click", index, x, self._snapshot.span)

    def mouseMoveEvent(self, event: QMouseEvent | None) -> None:
        """Go on with a drag, or show what a drag would move."""
        if event is None:
            return
        x = event.position().x()
        if self._drag is None:
            over = self._grip_at(x) is not None
            self.setCursor(Qt.CursorShape.SizeHorCursor if over else Qt.CursorShape.ArrowCursor)
            return
        drag = self._drag
        if not drag.moved and abs(x - drag.x) < QApplication.startDragDistance():
            return
        drag.moved = True
        if drag.kind == "click":
            drag.kind = "new"
        self._show_span(*self._dragged(drag, x))
        first, last = self._snapshot.start, self._snapshot.stop - 1
        QToolTip.showText(event.globalPosition().toPoint(), f"{self._snapshot.axis} {first}-{last}", self)

    def mouseReleaseEvent(self, event: QMouseEvent | None) -> None:
        """End a click or a drag, and tell."""
        if event is None or self._drag is None or event.button() != Qt.MouseButton.LeftButton:
            return
        drag, self._drag = self._drag, None
        if drag.moved:
            self.range_changed.emit(self._snapshot.start, self._snapshot.stop)
        else:
            self._choose(drag.anchor)

    def contextMenuEvent(self, event: QContextMenuEvent | None) -> None:
        """Offer in words what the mouse and the keys do."""
        if event is not None:
            index = self.slice_at(event.pos().x())
            self.menu_for(index).popup(event.globalPos())

    def menu_for(self, index: int) -> QMenu:
        """Return the context menu of a slice."""
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        name = f"{self._snapshot.axis} {index}"
        stop = f"Remove the stop at {name}" if index in self._snapshot.stops else f"Stop at {name}"
        entries = {
            f"Go to {name}": lambda: self._choose(index),
            f"{stop}\tAlt+click": lambda: self._toggle_stop(index),
            f"Begin the range at {name}": lambda: self._set_span(index, max(self._snapshot.stop, index + 1)),
            f"End the range at {name}": lambda: self._set_span(min(self._snapshot.start, index), index + 1),
            "Range: all slices": lambda: self._set_span(0, self._snapshot.depth),
        }
        for text, act in entries.items():
            action = QAction(text, menu)
            action.triggered.connect(act)
            menu.addAction(action)
        return menu

    def _dragged(self, drag: _Drag, x: float) -> tuple[int, int]:
        """Return the range that a drag to `x` makes."""
        if drag.kind == "new":
            index = self.slice_at(x)
            return min(drag.anchor, index), max(drag.anchor, index) + 1
        edge = self._geometry.nearest_edge(x)
        if drag.kind == "start":
            return min(edge, self._snapshot.stop - 1), self._snapshot.stop
        return self._snapshot.start, max(edge, self._snapshot.start + 1)

    # -- keys -------------------------------------------------------------------------------------------------------

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        """Move, set the range, set a stop."""
        if event is None:
            return
        key, current, depth = event.key(), self._snapshot.current, self._snapshot.depth
        page = max(1, depth // 10)
        by_mark = bool(event.modifiers() & Qt.KeyboardModifier.ControlModifier)
        moves = {
            Qt.Key.Key_Left: self._next_mark(-1) if by_mark else current - 1,
            Qt.Key.Key_Right: self._next_mark(1) if by_mark else current + 1,
            Qt.Key.Key_PageUp: current - page,
            Qt.Key.Key_PageDown: current + page,
            Qt.Key.Key_Home: 0,
            Qt.Key.Key_End: depth - 1,
        }
        if key in moves:
            self._choose(min(max(moves[Qt.Key(key)], 0), depth - 1))
        elif key == Qt.Key.Key_S:
            self._toggle_stop(current)
        elif key == Qt.Key.Key_BracketLeft:
            self._set_span(current, max(self._snapshot.stop, current + 1))
        elif key == Qt.Key.Key_BracketRight:
            self._set_span(min(self._snapshot.start, current), current + 1)
        elif key == Qt.Key.Key_Escape:
            self._escape()
        else:
            super().keyPressEvent(event)

    def _escape(self) -> None:
        """Give up the drag that goes on, or else the range."""
        if self._drag is None:
            self._set_span(0, self._snapshot.depth)
            return
        self._snapshot = replace(self._snapshot, span=self._drag.before)
        self._drag = None
        self._refresh()

    def _next_mark(self, direction: int) -> int:
        """Return the next slice that is painted or proposed; the one at hand if there is none."""
        marked = np.flatnonzero(MARK_RANKS[self._snapshot.status & 63])
        current = self._snapshot.current
        further = marked[marked > current] if direction > 0 else marked[marked < current][::-1]
        return int(further[0]) if len(further) else current

    def _choose(self, index: int) -> None:
        if index != self._snapshot.current:
            self.set_current(index)
        self.slice_chosen.emit(index)

    def _toggle_stop(self, index: int) -> None:
        is_set = index not in self._snapshot.stops
        self._snapshot = replace(self._snapshot, stops=self._snapshot.stops ^ {index})
        self._refresh()
        self.stop_toggled.emit(index, is_set)

    def _set_span(self, start: int, stop: int) -> None:
        if (start, stop) != (self._snapshot.start, self._snapshot.stop):
            self._show_span(start, stop)
            self.range_changed.emit(start, stop)

    def _show_span(self, start: int, stop: int) -> None:
        self._snapshot = replace(self._snapshot, span=(start, stop))
        self.update()

    def _refresh(self) -> None:
        self._still = None
        self._describe_current()
        self.update()

    def _describe_current(self) -> None:
        current = min(max(self._snapshot.current, 0), self._snapshot.depth - 1)
        self._readout = self._snapshot.describe(current, current)
        self.setAccessibleDescription(self._readout)

    # -- events -----------------------------------------------------------------------------------------------------

    def event(self, event: QEvent | None) -> bool:
        """Answer a question for a tool tip."""
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            QToolTip.showText(event.globalPos(), self.tip_at(event.pos().x(), event.pos().y()), self)
            return True
        return super().event(event)

    def tip_at(self, x: float, y: float) -> str:
        """Return what a tool tip says at a place: the slices there; the meaning of the colours over the bar."""
        if y < self._geometry.lanes.top() - 4:
            return _legend_text()
        return self._snapshot.describe(*self._slices_under(x))

    def resizeEvent(self, event: QResizeEvent | None) -> None:
        """Paint anew."""
        self._still = None
        super().resizeEvent(event)

    def changeEvent(self, event: QEvent | None) -> None:
        """Follow theme and font."""
        super().changeEvent(event)
        if event is not None and event.type() in (QEvent.Type.PaletteChange, QEvent.Type.FontChange):
            self.__dict__.pop("_small", None)
            self._still = None
            self.update()

    # -- painting ---------------------------------------------------------------------------------------------------

    def paintEvent(self, event: QPaintEvent | None) -> None:
        """Paint what changes often over a picture of the rest."""
        theme = Theme.of(self)
        if self._still is None:
            self._still = self._paint_still(theme)
        painter = QPainter(self)
        painter.drawPixmap(0, 0, self._still)
        painter.setFont(self._small)
        StripPainter(painter, theme, self._geometry, self._snapshot).paint_moving(self._readout)
        if self.hasFocus():
            painter.setPen(QPen(theme.muted, 1, Qt.PenStyle.DotLine))
            painter.drawRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5))
        painter.end()

    def _paint_still(self, theme: Theme) -> QPixmap:
        """Return what does not change while the user scrolls and drags."""
        ratio = self.devicePixelRatioF()
        pixmap = QPixmap(round(self.width() * ratio), round(self.height() * ratio))
        pixmap.setDevicePixelRatio(ratio)
        pixmap.fill(theme.background)
        painter = QPainter(pixmap)
        painter.setFont(self._small)
        StripPainter(painter, theme, self._geometry, self._snapshot).paint_still(ratio)
        painter.end()
        return pixmap


def _legend_text() -> str:
    return (
        "Upper lane: orange = painted by hand, blue = predicted, green = reviewed, hatched = stale, empty = no labels."
        "\nLine over it: expected Dice, 0 to 1. Lower lane: full = complete, half = begun, outline = proposed."
        "\nClick: go there. Drag: set the range. Alt+click: stop slice."
    )
