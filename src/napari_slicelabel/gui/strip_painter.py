"""How the strip under the canvas is painted: where things are in it, and what they look like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import QPointF, QRectF, Qt
from qtpy.QtGui import QBrush, QColor, QFontMetricsF, QImage, QPainter, QPen, QPolygonF

from napari_slicelabel.gui.strip_snapshot import Columns, Label, Mark, columns
from napari_slicelabel.gui.theme import Theme, mix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_slicelabel.gui.strip_snapshot import StripSnapshot

MARGIN = 10.0
MARK_LANE = 11.0
_RIBBON = 5.0
_NARROWEST_MARK = 3.0
_NARROWEST_OUTLINE = 6.0
_SMOOTH_UP_TO = 300

_LEGEND = ("painted", "begun", "proposed", "predicted", "reviewed", "stale", "stop")
# What is left for the words about the current slice beside the legend.
_READOUT_ROOM = 250


@dataclass(frozen=True, slots=True)
class StripGeometry:
    """Where things are in a strip of `width` x `height` pixels with `depth` slices and text of a height."""

    width: int
    height: int
    depth: int
    text_height: float

    @property
    def lanes(self) -> QRectF:
        """Where both lanes are."""
        top, bottom = self.text_height + 8, self.text_height + 5
        return QRectF(MARGIN, top, max(1.0, self.width - 2 * MARGIN), self.height - top - bottom)

    @property
    def label_lane(self) -> QRectF:
        """Where it says who labelled the slices."""
        return self.lanes.adjusted(0, 0, 0, -MARK_LANE - 2)

    @property
    def mark_lane(self) -> QRectF:
        """Where people's work is marked."""
        lanes = self.lanes
        return QRectF(lanes.left(), lanes.bottom() - MARK_LANE, lanes.width(), MARK_LANE)

    def edge(self, index: float) -> float:
        """Return where a slice begins."""
        lanes = self.lanes
        return float(lanes.left() + index * lanes.width() / self.depth)

    def x_of(self, index: int) -> float:
        """Return where the middle of a slice is."""
        return self.edge(index + 0.5)

    def slice_at(self, x: float) -> int:
        """Return the slice at a distance from the left side, the nearest one outside of the bar."""
        lanes = self.lanes
        index = math.floor((x - lanes.left()) * self.depth / lanes.width())
        return min(max(index, 0), self.depth - 1)

    def nearest_edge(self, x: float) -> int:
        """Return the slice that begins nearest to a distance from the left side, or the end of the stack."""
        lanes = self.lanes
        return min(max(round((x - lanes.left()) * self.depth / lanes.width()), 0), self.depth)


@dataclass(frozen=True)
class StripPainter:
    """Paints a snapshot with the painter's font."""

    painter: QPainter
    theme: Theme
    geometry: StripGeometry
    snapshot: StripSnapshot

    def paint_still(self, ratio: float) -> None:
        """Paint lanes, curve, marks, numbers and legend; `ratio` is the number of device pixels per pixel."""
        shown = columns(self.snapshot, max(1, round(self.geometry.lanes.width() * ratio)))
        self._paint_labels(shown)
        self._paint_marks(shown)
        self._paint_gaps()
        self._paint_curve(shown)
        self._paint_stops()
        self._paint_numbers()
        self._paint_legend()

    def paint_moving(self, readout: str) -> None:
        """Paint over the rest what changes while the user scrolls and drags: range, current slice, words about it."""
        self.painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        self._paint_span()
        self._paint_current()
        self._paint_readout(readout)

    def _paint_labels(self, shown: Columns) -> None:
        lane = self.geometry.label_lane
        colors = [self.theme.human, self.theme.reviewed, self.theme.predicted, self.theme.base, self.theme.stale]
        pale = [mix(self.theme.background, color, 0.4) for color in colors]
        pale[Label.MISSING] = self.theme.base
        self.painter.drawImage(lane, _row_image(shown.labels, pale))
        ribbon = QRectF(lane.left(), lane.bottom() - _RIBBON, lane.width(), _RIBBON)
        self.painter.drawImage(ribbon, _row_image(shown.labels, colors))
        if (shown.labels == Label.OUTDATED).any():
            self.painter.drawImage(
                lane, _hatch_image(shown.labels == Label.OUTDATED, round(lane.height()), self.theme.stale)
            )

    def _paint_marks(self, shown: Columns) -> None:
        lane = self.geometry.mark_lane
        self.painter.fillRect(lane, mix(self.theme.background, self.theme.base, 0.6))
        scale = lane.width() / len(shown.marks)
        # what needs most attention is painted last, over its neighbours
        for rank in (Mark.DONE, Mark.BEGUN, Mark.TO_DO):
            for first, last in _runs(shown.marks == rank):
                least = _NARROWEST_OUTLINE if rank == Mark.TO_DO else _NARROWEST_MARK
                width = max(least, (last - first) * scale)
                left = lane.left() + (first + last) * scale / 2 - width / 2
                _paint_mark(self.painter, self.theme, rank, QRectF(left, lane.top(), width, lane.height()))

    def _paint_gaps(self) -> None:
        """Part the slices where they are wide enough for it."""
        lanes, depth = self.geometry.lanes, self.snapshot.depth
        if lanes.width() / depth < 6:
            return
        self.painter.setPen(QPen(self.theme.background, 1))
        for index in range(1, depth):
            x = round(self.geometry.edge(index)) + 0.5
            self.painter.drawLine(QPointF(x, lanes.top()), QPointF(x, lanes.bottom()))

    def _paint_curve(self, shown: Columns) -> None:
        """Paint the expected Dice: a line; where a column has several slices also a shade down to the least."""
        lane = self.geometry.label_lane.adjusted(0, 1, 0, -_RIBBON - 2)
        if self.snapshot.depth > len(shown.mean):
            shade = mix(self.theme.background, self.theme.text, 0.55)
            self.painter.drawImage(lane, _curve_image(shown, round(lane.height()), self.theme.text, shade))
            return
        mean = self.snapshot.confidence.astype(np.float64)
        step = lane.width() / len(mean)
        xs = lane.left() + (np.arange(len(mean)) + 0.5) * step
        ys = lane.top() + (1 - np.clip(mean, 0, 1)) * lane.height()
        # smooth wide lines cost milliseconds per thousand points
        smooth = len(mean) <= _SMOOTH_UP_TO
        self.painter.setRenderHint(QPainter.RenderHint.Antialiasing, smooth)
        self.painter.setPen(QPen(self.theme.text, 1.5 if smooth else 1))
        for first, last in _runs(np.isfinite(mean)):
            points = [QPointF(x, y) for x, y in zip(xs[first:last].tolist(), ys[first:last].tolist(), strict=True)]
            if len(points) == 1:  # a lone slice would be an invisible point
                half = QPointF(min(step, 6) / 2, 0)
                points = [points[0] - half, points[0] + half]
            self.painter.drawPolyline(QPolygonF(points))
        self.painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)

    def _paint_stops(self) -> None:
        lane = self.geometry.label_lane
        self.painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        for index in self.snapshot.stops:
            x = self.geometry.x_of(index)
            self.painter.setPen(QPen(self.theme.text, 1.5, Qt.PenStyle.DashLine))
            self.painter.drawLine(QPointF(x, lane.top()), QPointF(x, lane.bottom()))
            _paint_stop(self.painter, self.theme, QPointF(x, self.geometry.mark_lane.center().y()))
        self.painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)

    def _paint_numbers(self) -> None:
        lanes, metrics = self.geometry.lanes, QFontMetricsF(self.painter.font())
        self.painter.setPen(self.theme.muted)
        room = metrics.horizontalAdvance(str(self.snapshot.depth)) + 24
        step = _nice_step(self.snapshot.depth * room / lanes.width())
        for index in range(0, self.snapshot.depth, step):
            text = str(index)
            width = metrics.horizontalAdvance(text)
            left = min(max(self.geometry.x_of(index) - width / 2, 0), self.geometry.width - width)
            self.painter.drawText(QPointF(left, lanes.bottom() + metrics.ascent() + 3), text)

    def _legend_widths(self) -> list[float]:
        """Return the room of each entry of the legend; none where it is too narrow for them all."""
        metrics = QFontMetricsF(self.painter.font())
        widths = [metrics.horizontalAdvance(text) + 24 for text in _LEGEND]
        # the tool tip of this line says it then
        return widths if self.geometry.width - sum(widths) >= MARGIN + _READOUT_ROOM else []

    def _paint_legend(self) -> None:
        metrics = QFontMetricsF(self.painter.font())
        widths = self._legend_widths()
        x = self.geometry.width - MARGIN - sum(widths) + 8
        for text, width in zip(_LEGEND, widths, strict=False):
            box = QRectF(x, 5, 10, 10).translated(0, (self.geometry.text_height - 14) / 2)
            _paint_swatch(self.painter, self.theme, text, box)
            self.painter.setPen(self.theme.muted)
            self.painter.drawText(QPointF(x + 14, 3 + metrics.ascent()), text)
            x += width

    def _paint_span(self) -> None:
        """Dim what is outside the range, and draw its brackets."""
        lanes = self.geometry.lanes
        start, stop = self.geometry.edge(self.snapshot.start), self.geometry.edge(self.snapshot.stop)
        veil = QColor(self.theme.background)
        veil.setAlpha(185)
        self.painter.fillRect(QRectF(lanes.left(), lanes.top(), start - lanes.left(), lanes.height()), veil)
        self.painter.fillRect(QRectF(stop, lanes.top(), lanes.right() - stop, lanes.height()), veil)
        self.painter.setPen(
            QPen(self.theme.text, 2, Qt.PenStyle.SolidLine, Qt.PenCapStyle.FlatCap, Qt.PenJoinStyle.MiterJoin)
        )
        for x, inwards in ((start - 1, 5.0), (stop + 1, -5.0)):
            top, bottom = lanes.top() - 1, lanes.bottom() + 1
            corners = [(x + inwards, top), (x, top), (x, bottom), (x + inwards, bottom)]
            self.painter.drawPolyline(QPolygonF([QPointF(*corner) for corner in corners]))

    def _paint_current(self) -> None:
        lanes = self.geometry.lanes
        x = self.geometry.x_of(min(max(self.snapshot.current, 0), self.snapshot.depth - 1))
        self.painter.setPen(QPen(self.theme.background, 4))
        self.painter.drawLine(QPointF(x, lanes.top()), QPointF(x, lanes.bottom()))
        self.painter.setPen(QPen(self.theme.text, 2))
        self.painter.drawLine(QPointF(x, lanes.top() - 1), QPointF(x, lanes.bottom()))
        self.painter.setPen(Qt.PenStyle.NoPen)
        self.painter.setBrush(self.theme.text)
        top = lanes.top() + 1
        self.painter.drawPolygon(QPolygonF([QPointF(x - 5, top - 7), QPointF(x + 5, top - 7), QPointF(x, top)]))
        self.painter.setBrush(Qt.BrushStyle.NoBrush)

    def _paint_readout(self, readout: str) -> None:
        self.painter.setPen(self.theme.text)
        metrics = QFontMetricsF(self.painter.font())
        room = self.geometry.width - 2 * MARGIN - sum(self._legend_widths())
        text = metrics.elidedText(readout, Qt.TextElideMode.ElideRight, room)
        self.painter.drawText(QPointF(MARGIN, 3 + metrics.ascent()), text)


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
    if rank == Mark.DONE:
        painter.fillRect(box, theme.human)
    elif rank == Mark.BEGUN:
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
    marks = {"painted": Mark.DONE, "begun": Mark.BEGUN, "proposed": Mark.TO_DO}
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
