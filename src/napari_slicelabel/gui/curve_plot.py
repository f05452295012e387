"""The live curves of a run: loss at the left axis, held-out Dice at the right one, against the step."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, QPointF, QRectF, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QFontMetricsF, QHelpEvent, QPainter, QPen, QPixmap, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_slicelabel.gui.axes import Axes, nice_ticks, paint_frame, paint_x_numbers, paint_y_numbers
from napari_slicelabel.gui.theme import Theme

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qtpy.QtGui import QColor, QPaintEvent, QResizeEvent

# Ten redraws a second: more than the eye needs, and a run may tell of thousands of steps in one.
_REDRAW_MS = 100

# A curve of more points is thinned to half: its shape stays, and a long run neither grows nor slows the plot.
_MOST_POINTS = 4000

_ROUND_UP = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)


@dataclass
class _Curve:
    """The points of one metric, by rising step; of thinned ones each stands for `stride` that came."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    stride: int = 1
    waiting: int = 0
    last: tuple[float, float] | None = None

    def add(self, step: float, value: float) -> None:
        if self.steps and step < self.steps[-1]:
            # a resumed run goes on from its last round: what it does anew replaces what was there
            keep = bisect_left(self.steps, step)
            del self.steps[keep:], self.values[keep:]
        self.last = (step, value)
        self.waiting += 1
        if self.waiting < self.stride and self.steps:
            return
        self.waiting = 0
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) > _MOST_POINTS:
            self.steps, self.values = self.steps[::2], self.values[::2]
            self.stride *= 2

    def points(self) -> list[tuple[float, float]]:
        """Return all points, the newest with them even where it was thinned out."""
        points = list(zip(self.steps, self.values, strict=True))
        if self.last is not None and points and points[-1][0] < self.last[0]:
            points.append(self.last)
        return points

    def value_at(self, step: float) -> float | None:
        """Return the value of the nearest point."""
        points = self.points()
        return min(points, key=lambda point: abs(point[0] - step))[1] if points else None


class CurvePlot(QWidget):
    """Two live curves with a common horizontal axis.

    Points may come by the thousand a second; the plot repaints ten times a second at most, and only while seen.

    Attributes
    ----------
    repainted : Signal()
        The picture was made anew; for tests and measurements.
    """

    repainted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._loss, self._dice = _Curve(), _Curve()
        self._picture: QPixmap | None = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_REDRAW_MS)
        self._timer.timeout.connect(self._refresh)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Loss and held-out Dice")

    def add_loss(self, step: float, value: float) -> None:
        """Add a point to the loss. One that is not finite is left out."""
        self._add(self._loss, step, value)

    def add_dice(self, step: float, value: float) -> None:
        """Add a point to the held-out Dice, 0 to 1. One that is not finite is left out."""
        self._add(self._dice, step, value)

    def set_points(self, loss: Iterable[tuple[float, float]], dice: Iterable[tuple[float, float]]) -> None:
        """Replace both curves by (step, value) pairs, such as those of a journal."""
        self._loss, self._dice = _Curve(), _Curve()
        for curve, points in ((self._loss, loss), (self._dice, dice)):
            for step, value in points:
                if math.isfinite(value):
                    curve.add(step, value)
        self._refresh()

    def clear(self) -> None:
        """Forget both curves."""
        self.set_points((), ())

    @property
    def summary(self) -> str:
        """The newest values, in words."""
        parts = [
            f"{name} {curve.last[1]:.3g}"
            for name, curve in (("loss", self._loss), ("held-out Dice", self._dice))
            if curve.last is not None
        ]
        if not parts:
            return "Loss and held-out Dice appear here while a run learns."
        newest = max(curve.last[0] for curve in (self._loss, self._dice) if curve.last is not None)
        return f"step {newest:g}: " + ", ".join(parts)

    def sizeHint(self) -> QSize:
        """Return a comfortable size."""
        return QSize(280, 150)

    def minimumSizeHint(self) -> QSize:
        """Return the least size at which all is there."""
        return QSize(180, 130)

    def resizeEvent(self, event: QResizeEvent | None) -> None:
        """Paint anew."""
        self._picture = None
        super().resizeEvent(event)

    def changeEvent(self, event: QEvent | None) -> None:
        """Follow theme and font."""
        super().changeEvent(event)
        if event is not None and event.type() in (QEvent.Type.PaletteChange, QEvent.Type.FontChange):
            self._refresh()

    def event(self, event: QEvent | None) -> bool:
        """Answer a question for a tool tip."""
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            QToolTip.showText(event.globalPos(), self.tip_at(event.pos().x()), self)
            return True
        return super().event(event)

    def tip_at(self, x: float) -> str:
        """Return the values of both curves at a place."""
        step = self._axes((0.0, 1.0)).value(x)
        values = {"loss": self._loss.value_at(step), "held-out Dice": self._dice.value_at(step)}
        parts = [f"{name} {value:.3g}" for name, value in values.items() if value is not None]
        return f"step {step:.0f}: {', '.join(parts)}" if parts else self.summary

    def paintEvent(self, event: QPaintEvent | None) -> None:
        """Show the picture; make it first where it is old."""
        if self._picture is None:
            self._picture = self._paint_picture()
            self.setAccessibleDescription(self.summary)
            self.repainted.emit()
        painter = QPainter(self)
        painter.drawPixmap(0, 0, self._picture)
        painter.end()

    def _add(self, curve: _Curve, step: float, value: float) -> None:
        if not math.isfinite(value):
            return
        curve.add(step, value)
        if not self._timer.isActive():
            self._timer.start()

    def _refresh(self) -> None:
        self._picture = None
        self.update()

    def _paint_picture(self) -> QPixmap:
        ratio = self.devicePixelRatioF()
        picture = QPixmap(round(self.width() * ratio), round(self.height() * ratio))
        picture.setDevicePixelRatio(ratio)
        theme = Theme.of(self)
        picture.fill(theme.background)
        painter = QPainter(picture)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setFont(self.font())
        if self._loss.steps or self._dice.steps:
            self._paint_curves(painter, theme)
            self._paint_key(painter, theme)
        else:
            painter.setPen(theme.muted)
            flags = Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap
            painter.drawText(QRectF(self.rect()).adjusted(12, 0, -12, 0), int(flags), self.summary)
        painter.end()
        return picture

    def _paint_curves(self, painter: QPainter, theme: Theme) -> None:
        losses = self._loss.points()
        axes = self._axes((0.0, _round_up(_usual_top([value for _, value in losses]))))
        right = self._axes((0.0, 1.0))
        if losses:
            paint_y_numbers(painter, theme, axes, (0.0, axes.y[1] / 2, axes.y[1]), lambda value: f"{value:.3g}")
        if self._dice.steps:
            paint_y_numbers(painter, theme, right, (0.0, 0.5, 1.0), lambda value: f"{value:g}", at_right=True)
        ticks = nice_ticks(*axes.x, max(2, int(axes.area.width() // 60)))
        paint_x_numbers(painter, theme, axes, [tick for tick in ticks if tick == int(tick)], self.width() - 1)
        paint_frame(painter, theme, axes)
        painter.setClipRect(axes.area.adjusted(-3, -3, 3, 3))
        _paint_curve(painter, axes, _thinned(losses, axes), theme.predicted, dashed=False)
        _paint_curve(painter, right, _thinned(self._dice.points(), right), theme.human, dashed=True)
        painter.setClipping(False)

    def _paint_key(self, painter: QPainter, theme: Theme) -> None:
        """Name the curves with their newest values: the loss at the left, Dice at the right, as their axes."""
        metrics = QFontMetricsF(self.font())
        baseline, middle = metrics.ascent() + 2, metrics.height() / 2 + 2
        taken = 0.0
        if self._loss.last is not None:
            text = f"loss {self._loss.last[1]:.3g}"
            taken = 30 + metrics.horizontalAdvance(text) + 12
            _paint_sample(painter, theme.predicted, 6, middle, dashed=False)
            painter.setPen(theme.text)
            painter.drawText(QPointF(30, baseline), text)
        if self._dice.last is not None:
            text = f"held-out Dice {self._dice.last[1]:.2f}"
            if self.width() - 30 - metrics.horizontalAdvance(text) < taken:
                text = f"Dice {self._dice.last[1]:.2f}"
            left = self.width() - 6 - metrics.horizontalAdvance(text)
            _paint_sample(painter, theme.human, left - 24, middle, dashed=True)
            painter.setPen(theme.text)
            painter.drawText(QPointF(left, baseline), text)

    def _axes(self, y: tuple[float, float]) -> Axes:
        metrics = QFontMetricsF(self.font())
        side = metrics.horizontalAdvance("0.000") + 8
        right = metrics.horizontalAdvance("0.5") + 12 if self._dice.steps else 12.0
        top, bottom = metrics.height() + 12, metrics.height() + 4
        area = QRectF(side, top, self.width() - side - right, self.height() - top - bottom)
        newest = max((curve.last[0] for curve in (self._loss, self._dice) if curve.last), default=1.0)
        return Axes(area, (0.0, max(newest, 1.0)), y)


def _usual_top(values: list[float]) -> float:
    """Return the height that shows nearly all losses: the first few steps may lie far above the rest."""
    if not values:
        return 1.0
    ordered = sorted(values)
    usual = ordered[int(0.98 * (len(ordered) - 1))] * 1.1
    return max(usual, values[-1], 1e-9)


def _round_up(value: float) -> float:
    """Return the smallest round number that is not below `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in _ROUND_UP if power * factor >= value * (1 - 1e-9))


def _thinned(points: list[tuple[float, float]], axes: Axes) -> list[tuple[float, float]]:
    """Return the points that can be told apart: least and greatest of each pixel column, in their order."""
    if len(points) <= 2 * axes.area.width():
        return points
    kept: list[tuple[float, float]] = []
    column: list[tuple[float, float]] = []
    for point in points:
        if column and int(axes.left(point[0])) != int(axes.left(column[0][0])):
            kept += _ends(column)
            column = []
        column.append(point)
    return kept + _ends(column)


def _ends(column: list[tuple[float, float]]) -> list[tuple[float, float]]:
    low, high = min(column, key=lambda point: point[1]), max(column, key=lambda point: point[1])
    return sorted({low, high})


def _paint_curve(
    painter: QPainter, axes: Axes, points: list[tuple[float, float]], color: QColor, *, dashed: bool
) -> None:
    """Paint a line; with points where there are few, so that a single one is seen."""
    places = [axes.point(*point) for point in points]
    painter.setPen(_pen(color, dashed=dashed))
    painter.drawPolyline(QPolygonF(places))
    if len(places) <= 30:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(color)
        for place in places:
            painter.drawEllipse(place, 2.5, 2.5)
        painter.setBrush(Qt.BrushStyle.NoBrush)


def _paint_sample(painter: QPainter, color: QColor, x: float, y: float, *, dashed: bool) -> None:
    painter.setPen(_pen(color, dashed=dashed))
    painter.drawLine(QPointF(x, y), QPointF(x + 18, y))


def _pen(color: QColor, *, dashed: bool) -> QPen:
    """Return a pen: the Dice is dashed, so that the curves differ without their colours too."""
    pen = QPen(color, 1.8)
    if dashed:
        pen.setDashPattern([3, 1.5])
    return pen
