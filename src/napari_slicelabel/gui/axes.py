"""What the small plots share: a frame with numbers, and the way from values to pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtpy.QtCore import QPointF, QRectF
from qtpy.QtGui import QFontMetricsF, QPainter, QPen

from napari_slicelabel.gui.theme import mix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from napari_slicelabel.gui.theme import Theme


@dataclass(frozen=True, slots=True)
class Axes:
    """A rectangle on the screen, and the values at its sides; the second of each pair is right and top."""

    area: QRectF
    x: tuple[float, float]
    y: tuple[float, float]

    def left(self, x: float) -> float:
        """Return the pixel of a value on the horizontal axis."""
        low, high = self.x
        return float(self.area.left() + (x - low) / ((high - low) or 1) * self.area.width())

    def top(self, y: float) -> float:
        """Return the pixel of a value on the vertical axis."""
        low, high = self.y
        return float(self.area.bottom() - (y - low) / ((high - low) or 1) * self.area.height())

    def point(self, x: float, y: float) -> QPointF:
        """Return the place of a pair of values."""
        return QPointF(self.left(x), self.top(y))

    def value(self, pixel: float) -> float:
        """Return the value on the horizontal axis at a pixel, within its ends."""
        low, high = self.x
        share = (pixel - self.area.left()) / (self.area.width() or 1)
        return low + min(max(share, 0.0), 1.0) * (high - low)


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers from `low` to `high`, at least 2 and about `most` of them.

    Examples
    --------
    >>> nice_ticks(0, 1, 5)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> nice_ticks(0, 340, 4)
    [0.0, 100.0, 200.0, 300.0]
    """
    raw = (high - low) / max(1, most) or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def paint_frame(painter: QPainter, theme: Theme, axes: Axes) -> None:
    """Paint the two lines that the numbers stand at."""
    area = axes.area
    painter.setPen(QPen(theme.line, 1))
    painter.drawLine(area.bottomLeft(), area.bottomRight())
    painter.drawLine(area.topLeft(), area.bottomLeft())


def paint_x_numbers(painter: QPainter, theme: Theme, axes: Axes, ticks: Sequence[float], right: float) -> None:
    """Paint numbers under the frame, none of them beyond the pixel `right`."""
    metrics = QFontMetricsF(painter.font())
    painter.setPen(theme.muted)
    for tick in ticks:
        text = f"{tick:g}"
        width = metrics.horizontalAdvance(text)
        left = min(axes.left(tick) - width / 2, right - width)
        painter.drawText(QPointF(left, axes.area.bottom() + metrics.ascent() + 2), text)


def paint_y_numbers(
    painter: QPainter,
    theme: Theme,
    axes: Axes,
    ticks: Sequence[float],
    text: Callable[[float], str],
    *,
    at_right: bool = False,
) -> None:
    """Paint numbers beside the frame, and with those at the left faint lines across."""
    metrics = QFontMetricsF(painter.font())
    for tick in ticks:
        y, words = axes.top(tick), text(tick)
        width = metrics.horizontalAdvance(words)
        x = axes.area.right() + 5 if at_right else axes.area.left() - width - 5
        painter.setPen(theme.muted)
        painter.drawText(QPointF(x, y + metrics.ascent() / 2 - 1), words)
        if not at_right:
            painter.setPen(QPen(mix(theme.background, theme.line, 0.5), 1))
            painter.drawLine(QPointF(axes.area.left() + 1, y), QPointF(axes.area.right(), y))
