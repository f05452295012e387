"""The curve of coverage: how much of the volume the first slices of a ranking stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QFontMetricsF, QHelpEvent, QPainter, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_slicelabel.gui.axes import Axes, nice_ticks, paint_frame, paint_x_numbers, paint_y_numbers
from napari_slicelabel.gui.theme import Theme, mix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qtpy.QtGui import QKeyEvent, QMouseEvent, QPaintEvent


class CoverageCurve(QWidget):
    """Share of the volume represented, against the number of slices, with the budget marked.

    A click, or the arrow keys, choose another budget.

    Attributes
    ----------
    budget_chosen : Signal(int)
        The user wants to paint this many slices.
    """

    budget_chosen = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._coverage: tuple[float, ...] = ()
        self._budget = 0
        self._done = 0
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Coverage")

    def set_coverage(self, coverage: Sequence[float], budget: int, done: int = 0) -> None:
        """Show a curve. Emits nothing.

        Parameters
        ----------
        coverage : sequence of float
            What the first slice stands for, the first two, and so on; 0 to 1. Empty: not measured.
        budget : int
            How many slices the user wants to paint.
        done : int
            How many of them are complete.
        """
        self._coverage, self._budget, self._done = tuple(coverage), budget, done
        self.setAccessibleDescription(self.summary)
        self.update()

    @property
    def summary(self) -> str:
        """What the budget buys, in words."""
        if not self._coverage:
            return "This way to choose slices does not measure coverage."
        number = min(max(self._budget, 1), len(self._coverage))
        slices = "1 slice" if number == 1 else f"{number} slices"
        return f"{slices}: {self._coverage[number - 1]:.0%} of the volume"

    def sizeHint(self) -> QSize:
        """Return a comfortable size."""
        return QSize(260, 130)

    def minimumSizeHint(self) -> QSize:
        """Return the least size at which all is there."""
        return QSize(160, 120)

    def mousePressEvent(self, event: QMouseEvent | None) -> None:
        """Choose the budget under the mouse."""
        if event is not None and event.button() == Qt.MouseButton.LeftButton:
            self._choose(round(self._axes().value(event.position().x())))

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        """Choose one more or one less."""
        steps = {Qt.Key.Key_Left: -1, Qt.Key.Key_Right: 1}
        if event is not None and event.key() in steps:
            self._choose(self._budget + steps[Qt.Key(event.key())])
        else:
            super().keyPressEvent(event)

    def event(self, event: QEvent | None) -> bool:
        """Answer a question for a tool tip."""
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip and self._coverage:
            number = max(1, round(self._axes().value(event.pos().x())))
            stand = "1 slice stands" if number == 1 else f"{number} slices stand"
            text = f"{stand} for {self._coverage[number - 1]:.1%} of the volume. Click: paint {number}."
            QToolTip.showText(event.globalPos(), text, self)
            return True
        return super().event(event)

    def paintEvent(self, event: QPaintEvent | None) -> None:
        """Paint axes, curve and budget."""
        theme, painter = Theme.of(self), QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if self._coverage:
            axes = self._axes()
            self._paint_numbers(painter, theme, axes)
            self._paint_curve(painter, theme, axes)
            self._paint_budget(painter, theme, axes)
        painter.setPen(theme.text if self._coverage else theme.muted)
        flags = Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignTop | Qt.TextFlag.TextWordWrap
        place = QRectF(self.rect()) if self._coverage else QRectF(self.rect()).adjusted(8, 40, -8, 0)
        painter.drawText(place, int(flags), self.summary)
        painter.end()

    def changeEvent(self, event: QEvent | None) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        if event is not None and event.type() == QEvent.Type.PaletteChange:
            self.update()

    def _choose(self, budget: int) -> None:
        budget = min(max(budget, 1), len(self._coverage))
        if self._coverage and budget != self._budget:
            self.set_coverage(self._coverage, budget, self._done)
            self.budget_chosen.emit(budget)

    def _axes(self) -> Axes:
        metrics = QFontMetricsF(self.font())
        left = metrics.horizontalAdvance("100 %") + 7
        top, bottom = metrics.height() + 8, metrics.height() + 4
        area = QRectF(left, top, self.width() - left - 10, self.height() - top - bottom)
        return Axes(area, (0.0, float(max(1, len(self._coverage)))), (0.0, 1.0))

    def _paint_numbers(self, painter: QPainter, theme: Theme, axes: Axes) -> None:
        paint_y_numbers(painter, theme, axes, (0.0, 0.5, 1.0), lambda share: f"{share * 100:.0f} %")
        ticks = nice_ticks(0, len(self._coverage), max(2, int(axes.area.width() // 40)))
        paint_x_numbers(painter, theme, axes, [tick for tick in ticks if tick == int(tick)], self.width() - 1)
        paint_frame(painter, theme, axes)

    def _paint_curve(self, painter: QPainter, theme: Theme, axes: Axes) -> None:
        points = [axes.point(number, share) for number, share in enumerate((0.0, *self._coverage))]
        fill = mix(theme.background, theme.predicted, 0.35)
        if self._done:
            inside = [*points[: self._done + 1], axes.point(min(self._done, len(self._coverage)), 0)]
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(fill)
            painter.drawPolygon(QPolygonF(inside))
            painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(QPen(theme.predicted, 2))
        painter.drawPolyline(QPolygonF(points))

    def _paint_budget(self, painter: QPainter, theme: Theme, axes: Axes) -> None:
        number = min(max(self._budget, 1), len(self._coverage))
        place = axes.point(number, self._coverage[number - 1])
        painter.setPen(QPen(theme.text, 1, Qt.PenStyle.DashLine))
        painter.drawLine(QPointF(place.x(), axes.area.bottom()), place)
        painter.setPen(QPen(theme.background, 1.5))
        painter.setBrush(theme.text)
        painter.drawEllipse(place, 4.5, 4.5)
        painter.setBrush(Qt.BrushStyle.NoBrush)
