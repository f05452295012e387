"""The bar under the canvas: what every slice of the stack is, how sure the labels are, and how far to go.

Two lanes. The upper one says who labelled a slice, with the curve of expected Dice over it; the lower one marks
where people worked or should. Where a pixel column stands for several slices, it shows what needs most attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
from qtpy.QtCore import QEvent, QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import (
    QAction,
    QBrush,
    QColor,
    QFont,
    QFontMetricsF,
    QHelpEvent,
    QImage,
    QPainter,
    QPen,
    QPixmap,
    QPolygonF,
)
from qtpy.QtWidgets import QApplication, QMenu, QSizePolicy, QToolTip, QWidget

from napari_slicelabel.gui.theme import Theme, mix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from qtpy.QtGui import QContextMenuEvent, QKeyEvent, QMouseEvent, QPaintEvent, QResizeEvent


class SliceStatus:
    """What is true of a slice, as bits: several may be."""

    # bare numbers and no IntFlag: numpy takes those for int64, and `status[3] |= ...` on uint8 would raise
    NONE: Final = 0
    PARTLY: Final = 1
    COMPLETE: Final = 2
    PROPOSED: Final = 4
    PREDICTED: Final = 8
    REVIEWED: Final = 16
    STALE: Final = 32


_WORDS = {
    SliceStatus.COMPLETE: "painted, complete",
    SliceStatus.PARTLY: "painted, not complete",
    SliceStatus.PROPOSED: "proposed",
    SliceStatus.PREDICTED: "predicted",
    SliceStatus.REVIEWED: "reviewed",
    SliceStatus.STALE: "stale (painted since)",
}

# Ranks of the two lanes; the higher one wins a pixel column.
_PAINTED, _CHECKED, _MACHINE, _MISSING, _OUTDATED = range(5)
_BLANK, _DONE, _BEGUN, _TO_DO = range(4)


def _label_rank(status: int) -> int:
    if status & SliceStatus.COMPLETE:
        return _PAINTED
    if status & SliceStatus.STALE:
        return _OUTDATED
    if status & SliceStatus.REVIEWED:
        return _CHECKED
    return _MACHINE if status & SliceStatus.PREDICTED else _MISSING


def _mark_rank(status: int) -> int:
    if status & SliceStatus.COMPLETE:
        return _DONE
    if status & SliceStatus.PARTLY:
        return _BEGUN
    return _TO_DO if status & SliceStatus.PROPOSED else _BLANK


_LABEL_RANKS = np.array([_label_rank(status) for status in range(64)], np.uint8)
_MARK_RANKS = np.array([_mark_rank(status) for status in range(64)], np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class StripSnapshot:
    """What the strip shows.

    Attributes
    ----------
    axis : str
        Name of the axis, for the words.
    status : ndarray of shape (n,), uint8
        `SliceStatus` of each slice.
    confidence : ndarray of shape (n,), float
        Expected Dice of each slice, 0 to 1; nan where there is none.
    current : int
        The slice on the canvas.
    span : tuple of int, optional
        First slice of the range to work on, and one past its last; None for all.
    stops : frozenset of int
        Slices that propagation must not pass.
    origins : sequence of str
        Who labelled each slice (``human``, ``round 3``); empty if not known.
    """

    axis: str
    status: NDArray[np.uint8]
    confidence: NDArray[np.floating]
    current: int = 0
    span: tuple[int, int] | None = None
    stops: frozenset[int] = field(default_factory=frozenset)
    origins: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.status.ndim != 1 or self.status.shape != self.confidence.shape:
            raise ValueError(f"status {self.status.shape} and confidence {self.confidence.shape} must be one per slice")

    @property
    def depth(self) -> int:
        """How many slices there are."""
        return len(self.status)

    @property
    def start(self) -> int:
        """First slice of the range."""
        return self.span[0] if self.span else 0

    @property
    def stop(self) -> int:
        """One past the last slice of the range."""
        return self.span[1] if self.span else self.depth

    def describe(self, first: int, last: int) -> str:
        """Return in words what the slices from `first` to `last`, both included, are."""
        status, confidence = self.status[first : last + 1], self.confidence[first : last + 1]
        known = confidence[np.isfinite(confidence)]
        if first == last:
            parts = [words for flag, words in _WORDS.items() if status[0] & flag] or ["no labels"]
            if self.origins and self.origins[first]:
                parts.append(f"by {self.origins[first]}")
            if len(known):
                parts.append(f"expected Dice {known[0]:.2f}")
            if first in self.stops:
                parts.append("stop")
            return f"{self.axis} {first}: {', '.join(parts)}"
        parts = [
            f"{count} {words}" for flag, words in _WORDS.items() if (count := int(np.count_nonzero(status & flag)))
        ]
        if len(known):
            parts.append(f"expected Dice {known.min():.2f} to {known.max():.2f}")
        return f"{self.axis} {first}-{last}: {', '.join(parts) or 'no labels'}"


class Columns(NamedTuple):
    """What the pixel columns of the strip show, all of length w.

    `labels` and `marks` are the highest ranks among the slices of a column; `mean` and `low` the mean and the least
    expected Dice among them, nan where none has one.
    """

    labels: NDArray[np.uint8]
    marks: NDArray[np.uint8]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]


def columns(snapshot: StripSnapshot, width: int) -> Columns:
    """Return what each of `width` pixel columns shows; columns show the same slice where there are more of them."""
    starts = np.arange(width) * snapshot.depth // width
    # where a start is repeated, reduceat returns the one element: what a column narrower than a slice needs
    labels = np.maximum.reduceat(_LABEL_RANKS[snapshot.status & 63], starts)
    marks = np.maximum.reduceat(_MARK_RANKS[snapshot.status & 63], starts)
    confidence = snapshot.confidence.astype(np.float64)
    known = np.isfinite(confidence)
    count = np.add.reduceat(known.astype(np.float64), starts)
    total = np.add.reduceat(np.where(known, confidence, 0.0), starts)
    mean = np.divide(total, count, out=np.full(width, np.nan), where=count > 0)
    return Columns(labels, marks, mean, np.fmin.reduceat(confidence, starts))


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

    _MARGIN = 10.0
    _MARK_LANE = 11.0
    _RIBBON = 5.0
    _GRIP = 6.0
    _NARROWEST_MARK = 3.0
    _NARROWEST_OUTLINE = 6.0
    _SMOOTH_UP_TO = 300

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
        """Show a stack of at least one slice. Emits nothing."""
        if snapshot.depth < 1:
            raise ValueError("a stack has at least one slice")
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
        return QSize(480, round(self._text_height * 2 + self._MARK_LANE + 46))

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
    def _lanes(self) -> QRectF:
        """Where both lanes are."""
        top = self._text_height + 8
        bottom = self._text_height + 5
        return QRectF(self._MARGIN, top, max(1.0, self.width() - 2 * self._MARGIN), self.height() - top - bottom)

    @property
    def _label_lane(self) -> QRectF:
        return self._lanes.adjusted(0, 0, 0, -self._MARK_LANE - 2)

    @property
    def _mark_lane(self) -> QRectF:
        lanes = self._lanes
        return QRectF(lanes.left(), lanes.bottom() - self._MARK_LANE, lanes.width(), self._MARK_LANE)

    def _edge(self, index: float) -> float:
        """Return where a slice begins."""
        lanes = self._lanes
        return lanes.left() + index * lanes.width() / self._snapshot.depth

    def slice_at(self, x: float) -> int:
        """Return the slice at a distance from the left side, the nearest one outside of the bar."""
        lanes = self._lanes
        index = math.floor((x - lanes.left()) * self._snapshot.depth / lanes.width())
        return min(max(index, 0), self._snapshot.depth - 1)

    def x_of(self, index: int) -> float:
        """Return where the middle of a slice is, from the left side."""
        return self._edge(index + 0.5)

    def _slices_under(self, x: float) -> tuple[int, int]:
        first = self.slice_at(math.floor(x))
        return first, max(first, self.slice_at(math.floor(x) + 0.999))

    def _grip_at(self, x: float) -> Literal["start", "stop"] | None:
        start, stop = self._edge(self._snapshot.start), self._edge(self._snapshot.stop)
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
        lanes = self._lanes
        edge = round((x - lanes.left()) * self._snapshot.depth / lanes.width())
        if drag.kind == "start":
            return min(max(edge, 0), self._snapshot.stop - 1), self._snapshot.stop
        return self._snapshot.start, max(min(edge, self._snapshot.depth), self._snapshot.start + 1)

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
        marked = np.flatnonzero(_MARK_RANKS[self._snapshot.status & 63])
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
        if y < self._lanes.top() - 4:
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
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        self._paint_span(painter, theme)
        self._paint_current(painter, theme)
        self._paint_readout(painter, theme)
        if self.hasFocus():
            painter.setPen(QPen(theme.muted, 1, Qt.PenStyle.DotLine))
            painter.drawRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5))
        painter.end()

    def _paint_still(self, theme: Theme) -> QPixmap:
        """Return lanes, curve, marks, numbers and legend."""
        ratio = self.devicePixelRatioF()
        pixmap = QPixmap(round(self.width() * ratio), round(self.height() * ratio))
        pixmap.setDevicePixelRatio(ratio)
        pixmap.fill(theme.background)
        painter = QPainter(pixmap)
        painter.setFont(self._small)
        shown = columns(self._snapshot, max(1, round(self._lanes.width() * ratio)))
        self._paint_labels(painter, theme, shown)
        self._paint_marks(painter, theme, shown)
        self._paint_gaps(painter, theme)
        self._paint_curve(painter, theme, shown)
        self._paint_stops(painter, theme)
        self._paint_numbers(painter, theme)
        self._paint_legend(painter, theme)
        painter.end()
        return pixmap

    def _paint_labels(self, painter: QPainter, theme: Theme, shown: Columns) -> None:
        lane = self._label_lane
        colors = [theme.human, theme.reviewed, theme.predicted, theme.base, theme.stale]
        pale = [mix(theme.background, color, 0.4) for color in colors]
        pale[_MISSING] = theme.base
        painter.drawImage(lane, _row_image(shown.labels, pale))
        ribbon = QRectF(lane.left(), lane.bottom() - self._RIBBON, lane.width(), self._RIBBON)
        painter.drawImage(ribbon, _row_image(shown.labels, colors))
        if (shown.labels == _OUTDATED).any():
            painter.drawImage(lane, _hatch_image(shown.labels == _OUTDATED, round(lane.height()), theme.stale))

    def _paint_marks(self, painter: QPainter, theme: Theme, shown: Columns) -> None:
        lane = self._mark_lane
        painter.fillRect(lane, mix(theme.background, theme.base, 0.6))
        scale = lane.width() / len(shown.marks)
        # what needs most attention is painted last, over its neighbours
        for rank in (_DONE, _BEGUN, _TO_DO):
            for first, last in _runs(shown.marks == rank):
                least = self._NARROWEST_OUTLINE if rank == _TO_DO else self._NARROWEST_MARK
                width = max(least, (last - first) * scale)
                left = lane.left() + (first + last) * scale / 2 - width / 2
                _paint_mark(painter, theme, rank, QRectF(left, lane.top(), width, lane.height()))

    def _paint_gaps(self, painter: QPainter, theme: Theme) -> None:
        """Part the slices where they are wide enough for it."""
        lanes, depth = self._lanes, self._snapshot.depth
        if lanes.width() / depth < 6:
            return
        painter.setPen(QPen(theme.background, 1))
        for index in range(1, depth):
            x = round(self._edge(index)) + 0.5
            painter.drawLine(QPointF(x, lanes.top()), QPointF(x, lanes.bottom()))

    def _paint_curve(self, painter: QPainter, theme: Theme, shown: Columns) -> None:
        """Paint the expected Dice: a line; where a column has several slices also a shade down to the least."""
        lane = self._label_lane.adjusted(0, 1, 0, -self._RIBBON - 2)
        if self._snapshot.depth > len(shown.mean):
            shade = mix(theme.background, theme.text, 0.55)
            painter.drawImage(lane, _curve_image(shown, round(lane.height()), theme.text, shade))
            return
        mean = self._snapshot.confidence.astype(np.float64)
        step = lane.width() / len(mean)
        xs = lane.left() + (np.arange(len(mean)) + 0.5) * step
        ys = lane.top() + (1 - np.clip(mean, 0, 1)) * lane.height()
        # smooth wide lines cost milliseconds per thousand points
        smooth = len(mean) <= self._SMOOTH_UP_TO
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, smooth)
        painter.setPen(QPen(theme.text, 1.5 if smooth else 1))
        for first, last in _runs(np.isfinite(mean)):
            points = [QPointF(x, y) for x, y in zip(xs[first:last].tolist(), ys[first:last].tolist(), strict=True)]
            if len(points) == 1:  # a lone slice would be an invisible point
                half = QPointF(min(step, 6) / 2, 0)
                points = [points[0] - half, points[0] + half]
            painter.drawPolyline(QPolygonF(points))
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)

    def _paint_stops(self, painter: QPainter, theme: Theme) -> None:
        lane = self._label_lane
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        for index in self._snapshot.stops:
            x = self.x_of(index)
            painter.setPen(QPen(theme.text, 1.5, Qt.PenStyle.DashLine))
            painter.drawLine(QPointF(x, lane.top()), QPointF(x, lane.bottom()))
            _paint_stop(painter, theme, QPointF(x, self._mark_lane.center().y()))
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)

    def _paint_numbers(self, painter: QPainter, theme: Theme) -> None:
        lanes, metrics = self._lanes, QFontMetricsF(self._small)
        painter.setPen(theme.muted)
        room = metrics.horizontalAdvance(str(self._snapshot.depth)) + 24
        step = _nice_step(self._snapshot.depth * room / lanes.width())
        for index in range(0, self._snapshot.depth, step):
            text = str(index)
            width = metrics.horizontalAdvance(text)
            left = min(max(self.x_of(index) - width / 2, 0), self.width() - width)
            painter.drawText(QPointF(left, lanes.bottom() + metrics.ascent() + 3), text)

    def _paint_legend(self, painter: QPainter, theme: Theme) -> None:
        metrics = QFontMetricsF(self._small)
        entries = ("painted", "begun", "proposed", "predicted", "reviewed", "stale", "stop")
        widths = [metrics.horizontalAdvance(text) + 24 for text in entries]
        x = self.width() - self._MARGIN - sum(widths) + 8
        if x < 210:  # too narrow; the tool tip of this line says it then
            self._legend_left = float(self.width() - self._MARGIN)
            return
        self._legend_left = x - 12
        for text, width in zip(entries, widths, strict=True):
            box = QRectF(x, 5, 10, 10).translated(0, (self._text_height - 14) / 2)
            _paint_swatch(painter, theme, text, box)
            painter.setPen(theme.muted)
            painter.drawText(QPointF(x + 14, 3 + metrics.ascent()), text)
            x += width

    def _paint_span(self, painter: QPainter, theme: Theme) -> None:
        """Dim what is outside the range, and draw its brackets."""
        lanes = self._lanes
        start, stop = self._edge(self._snapshot.start), self._edge(self._snapshot.stop)
        veil = QColor(theme.background)
        veil.setAlpha(185)
        painter.fillRect(QRectF(lanes.left(), lanes.top(), start - lanes.left(), lanes.height()), veil)
        painter.fillRect(QRectF(stop, lanes.top(), lanes.right() - stop, lanes.height()), veil)
        painter.setPen(QPen(theme.text, 2, Qt.PenStyle.SolidLine, Qt.PenCapStyle.FlatCap, Qt.PenJoinStyle.MiterJoin))
        for x, inwards in ((start - 1, 5.0), (stop + 1, -5.0)):
            top, bottom = lanes.top() - 1, lanes.bottom() + 1
            corners = [(x + inwards, top), (x, top), (x, bottom), (x + inwards, bottom)]
            painter.drawPolyline(QPolygonF([QPointF(*corner) for corner in corners]))

    def _paint_current(self, painter: QPainter, theme: Theme) -> None:
        lanes = self._lanes
        x = self.x_of(min(max(self._snapshot.current, 0), self._snapshot.depth - 1))
        painter.setPen(QPen(theme.background, 4))
        painter.drawLine(QPointF(x, lanes.top()), QPointF(x, lanes.bottom()))
        painter.setPen(QPen(theme.text, 2))
        painter.drawLine(QPointF(x, lanes.top() - 1), QPointF(x, lanes.bottom()))
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(theme.text)
        top = lanes.top() + 1
        painter.drawPolygon(QPolygonF([QPointF(x - 5, top - 7), QPointF(x + 5, top - 7), QPointF(x, top)]))
        painter.setBrush(Qt.BrushStyle.NoBrush)

    def _paint_readout(self, painter: QPainter, theme: Theme) -> None:
        painter.setFont(self._small)
        painter.setPen(theme.text)
        metrics = QFontMetricsF(self._small)
        room = self._legend_left - self._MARGIN
        text = metrics.elidedText(self._readout, Qt.TextElideMode.ElideRight, room)
        painter.drawText(QPointF(self._MARGIN, 3 + metrics.ascent()), text)


def _row_image(ranks: NDArray[np.uint8], colors: Sequence[QColor]) -> QImage:
    """Return an image one pixel high."""
    values = np.array([color.rgb() for color in colors], np.uint32)[ranks]
    image = QImage(values.tobytes(), len(values), 1, 4 * len(values), QImage.Format.Format_RGB32)
    return image.copy()  # the bytes go away with this function


def _hatch_image(mask: NDArray[np.bool_], height: int, color: QColor) -> QImage:
    """Return an image with diagonal lines in the columns that `mask` names, and nothing elsewhere."""
    rows, places = np.ogrid[:height, : len(mask)]
    values = np.where(mask & ((rows + places) % 7 < 1), color.rgb(), 0).astype(np.uint32)
    return QImage(values.tobytes(), len(mask), height, 4 * len(mask), QImage.Format.Format_ARGB32).copy()


def _curve_image(shown: Columns, height: int, line: QColor, shade: QColor) -> QImage:
    """Return an image of the curve, one pixel wide per column: thousands of lines would take milliseconds."""
    known = np.isfinite(shown.mean)
    mean, low = (
        np.rint((1 - np.clip(np.nan_to_num(values), 0, 1)) * (height - 1)).astype(int)
        for values in (shown.mean, shown.low)
    )
    before = np.where(np.roll(known, 1), np.roll(mean, 1), mean)
    before[0] = mean[0]
    rows = np.arange(height)[:, np.newaxis]
    on_line = known & (rows >= np.minimum(mean, before)) & (rows <= np.maximum(mean, before))
    in_shade = known & (rows >= mean) & (rows <= low)
    values = np.where(on_line, line.rgb(), np.where(in_shade, shade.rgb(), 0)).astype(np.uint32)
    return QImage(values.tobytes(), len(mean), height, 4 * len(mean), QImage.Format.Format_ARGB32).copy()


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return first and one past the last of each stretch that is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def _nice_step(least: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20 ... that is not below `least`."""
    power = int(10 ** math.floor(math.log10(max(least, 1))))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)


def _hatched(color: QColor) -> QBrush:
    return QBrush(color, Qt.BrushStyle.BDiagPattern)


def _paint_mark(painter: QPainter, theme: Theme, rank: int, box: QRectF) -> None:
    """Paint a mark of the lower lane: full, half, or an outline."""
    if rank == _DONE:
        painter.fillRect(box, theme.human)
    elif rank == _BEGUN:
        painter.fillRect(box.adjusted(0, box.height() / 2, 0, 0), theme.human)
    else:
        painter.setPen(QPen(theme.human, 1.5))
        painter.drawRect(box.adjusted(0.75, 0.75, -0.75, -0.75))


def _paint_stop(painter: QPainter, theme: Theme, center: QPointF) -> None:
    """Paint the sign of a stop: an octagon with a bar."""
    radius = 5.5
    corners = [math.pi / 8 + k * math.pi / 4 for k in range(8)]
    painter.setPen(QPen(theme.background, 1))
    painter.setBrush(theme.text)
    painter.drawPolygon(QPolygonF([center + QPointF(radius * math.cos(a), radius * math.sin(a)) for a in corners]))
    painter.setPen(QPen(theme.background, 2))
    painter.drawLine(center - QPointF(2.5, 0), center + QPointF(2.5, 0))
    painter.setBrush(Qt.BrushStyle.NoBrush)


def _paint_swatch(painter: QPainter, theme: Theme, text: str, box: QRectF) -> None:
    """Paint a sample of what the legend explains."""
    marks = {"painted": _DONE, "begun": _BEGUN, "proposed": _TO_DO}
    colors = {"predicted": theme.predicted, "reviewed": theme.reviewed, "stale": theme.stale}
    if text in marks:
        _paint_mark(painter, theme, marks[text], box)
    elif text == "stop":
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        _paint_stop(painter, theme, box.center())
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
    else:
        painter.fillRect(box, mix(theme.background, colors[text], 0.4))
        painter.fillRect(box.adjusted(0, box.height() - 3, 0, 0), colors[text])
        if text == "stale":
            painter.fillRect(box, _hatched(theme.stale))


def _legend_text() -> str:
    return (
        "Upper lane: orange = painted by hand, blue = predicted, green = reviewed, hatched = stale, empty = no labels."
        "\nLine over it: expected Dice, 0 to 1. Lower lane: full = complete, half = begun, outline = proposed."
        "\nClick: go there. Drag: set the range. Alt+click: stop slice."
    )
