"""The ranked list of slices to paint: thumbnail, place and status of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qtpy.QtCore import QAbstractListModel, QEvent, QModelIndex, QPointF, QRectF, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QFontMetricsF, QImage, QKeySequence, QPainter, QPen, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QListView,
    QPushButton,
    QShortcut,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from napari_slicelabel.gui.theme import Theme, mix

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from qtpy.QtGui import QFocusEvent, QKeyEvent, QPaintEvent, QResizeEvent

ProposalStatus = Literal["proposed", "painting", "complete", "skipped"]

SliceKey = tuple[str, str, int]
"""Volume, axis and index of a slice."""

_THUMBNAIL_PX = 44
_ROW_PX = 54

# Rows are asked for when the list has rested for so long: a flick through a long one asks for few.
_REST_MS = 60


@dataclass(frozen=True, slots=True)
class ProposedSlice:
    """One proposal; its rank is its place in the list.

    Attributes
    ----------
    volume, axis, index : str, str, int
        Which slice.
    status : {"proposed", "painting", "complete", "skipped"}
        How far it is.
    coverage : float, optional
        What this slice and all before it stand for, 0 to 1; None if not measured.
    """

    volume: str
    axis: str
    index: int
    status: ProposalStatus = "proposed"
    coverage: float | None = None

    @property
    def key(self) -> SliceKey:
        """Volume, axis and index."""
        return self.volume, self.axis, self.index


class SliceModel(QAbstractListModel):
    """The proposals and the thumbnails there are."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.slices: tuple[ProposedSlice, ...] = ()
        self.thumbnails: dict[SliceKey, QPixmap] = {}
        self._several_volumes = False

    def set_slices(self, slices: Sequence[ProposedSlice]) -> None:
        """Replace the proposals; thumbnails of slices that stay are kept."""
        if slices and [item.key for item in slices] == [item.key for item in self.slices]:
            self.slices = tuple(slices)
            self.dataChanged.emit(self.index(0), self.index(len(slices) - 1))
            return
        self.beginResetModel()
        self.slices = tuple(slices)
        self._several_volumes = len({item.volume for item in slices}) > 1
        self.thumbnails = {item.key: self.thumbnails[item.key] for item in slices if item.key in self.thumbnails}
        self.endResetModel()

    def set_thumbnail(self, key: SliceKey, pixmap: QPixmap) -> None:
        """Keep a thumbnail, if its slice is still in the list."""
        for row, item in enumerate(self.slices):
            if item.key == key:
                self.thumbnails[key] = pixmap
                self.dataChanged.emit(self.index(row), self.index(row))

    def rowCount(self, parent: QModelIndex | None = None) -> int:
        """Return how many proposals there are."""
        return 0 if parent is not None and parent.isValid() else len(self.slices)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return what a row says."""
        if not index.isValid():
            return None
        item = self.slices[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return self.title(item)
        if role in {Qt.ItemDataRole.ToolTipRole, Qt.ItemDataRole.AccessibleTextRole}:
            covers = f"; with those before it stands for {item.coverage:.0%} of the volume" if item.coverage else ""
            return f"Rank {index.row() + 1}: {self.title(item)}, {item.status}{covers}"
        return None

    def title(self, item: ProposedSlice) -> str:
        """Return the name of a slice; with its volume where there are several."""
        name = f"{item.axis} {item.index}"
        return f"{item.volume} {name}" if self._several_volumes else name

    @staticmethod
    def subtitle(item: ProposedSlice) -> str:
        """Return status and coverage in words."""
        return item.status if item.coverage is None else f"{item.status}, {item.coverage:.0%}"


class SliceDelegate(QStyledItemDelegate):
    """Paints a row: rank, thumbnail, name, status."""

    def sizeHint(self, option: QStyleOptionViewItem, index: QModelIndex) -> QSize:
        """Return the size of a row."""
        return QSize(160, _ROW_PX)

    def paint(self, painter: QPainter | None, option: QStyleOptionViewItem, index: QModelIndex) -> None:
        """Paint a row."""
        self.initStyleOption(option, index)
        option.text = ""
        view, model = option.widget, index.model()
        if painter is None or not isinstance(model, SliceModel):
            return
        style = view.style()
        assert style is not None
        style.drawControl(style.ControlElement.CE_ItemViewItem, option, painter, view)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        _RowPainter(painter, Theme.of(view), QRectF(option.rect), model).paint(index)
        painter.restore()


@dataclass(frozen=True)
class _RowPainter:
    """Paints one row into its box."""

    painter: QPainter
    theme: Theme
    box: QRectF
    model: SliceModel

    def paint(self, index: QModelIndex) -> None:
        item = self.model.slices[index.row()]
        metrics = QFontMetricsF(self.painter.font())
        rank_width = metrics.horizontalAdvance("0" * max(2, len(str(len(self.model.slices))))) + 6
        center = self.box.center().y()
        self._text(QRectF(self.box.left() + 2, self.box.top(), rank_width, self.box.height()), str(index.row() + 1))
        thumbnail = QRectF(self.box.left() + rank_width + 8, center - _THUMBNAIL_PX / 2, _THUMBNAIL_PX, _THUMBNAIL_PX)
        self._thumbnail(thumbnail, item)
        left = thumbnail.right() + 10
        room = self.box.right() - left - 6
        self._lines(left, room, item, metrics)

    def _text(self, box: QRectF, text: str) -> None:
        self.painter.setPen(self.theme.muted)
        self.painter.drawText(box, int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter), text)

    def _thumbnail(self, box: QRectF, item: ProposedSlice) -> None:
        pixmap = self.model.thumbnails.get(item.key)
        self.painter.fillRect(box, mix(self.theme.background, self.theme.text, 0.12))
        if pixmap is None:
            return
        if item.status == "skipped":
            self.painter.setOpacity(0.35)
        size = pixmap.size().scaled(_THUMBNAIL_PX, _THUMBNAIL_PX, Qt.AspectRatioMode.KeepAspectRatio)
        place = QRectF(0, 0, size.width(), size.height())
        place.moveCenter(box.center())
        self.painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        self.painter.drawPixmap(place, pixmap, QRectF(pixmap.rect()))
        self.painter.setOpacity(1.0)

    def _lines(self, left: float, room: float, item: ProposedSlice, metrics: QFontMetricsF) -> None:
        center = self.box.center().y()
        font = self.painter.font()
        font.setBold(item.status != "skipped")
        font.setStrikeOut(item.status == "skipped")
        self.painter.save()
        self.painter.setFont(font)
        self.painter.setPen(self.theme.muted if item.status == "skipped" else self.theme.text)
        title = QFontMetricsF(font).elidedText(self.model.title(item), Qt.TextElideMode.ElideMiddle, room)
        self.painter.drawText(QPointF(left, center - 4), title)
        self.painter.restore()
        sign = QRectF(left, center + 5, 9, 9)
        self._sign(sign, item.status)
        self.painter.setPen(self.theme.muted)
        words = metrics.elidedText(self.model.subtitle(item), Qt.TextElideMode.ElideRight, room - 14)
        self.painter.drawText(QPointF(left + 14, center + 5 + metrics.ascent() - 2), words)

    def _sign(self, box: QRectF, status: ProposalStatus) -> None:
        """Paint the mark that the strip under the canvas uses: outline, half, full."""
        human = self.theme.human
        if status == "complete":
            self.painter.fillRect(box, human)
        elif status == "painting":
            self.painter.fillRect(box.adjusted(0, box.height() / 2, 0, 0), human)
        else:
            self.painter.setPen(QPen(human if status == "proposed" else self.theme.muted, 1.5))
            if status == "proposed":
                self.painter.drawRect(box.adjusted(0.75, 0.75, -0.75, -0.75))
            else:
                self.painter.drawLine(box.topLeft(), box.bottomRight())
                self.painter.drawLine(box.bottomLeft(), box.topRight())


class _View(QListView):
    """A list that tells when other rows are seen, when a key moved on, and why it is empty."""

    rows_moved = Signal()
    moved_by_key = Signal(QModelIndex)
    entered_by_key = Signal(QModelIndex)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.placeholder = ""

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        """Tell of a new current row, and of Return."""
        before = self.currentIndex()
        if event is not None and event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.entered_by_key.emit(before)
            return
        super().keyPressEvent(event)
        if self.currentIndex() != before:
            self.moved_by_key.emit(self.currentIndex())

    def focusInEvent(self, event: QFocusEvent | None) -> None:
        """Take the focus without choosing a row; S must not skip a slice that was never seen."""
        had_none = not self.currentIndex().isValid()
        super().focusInEvent(event)
        if had_none:
            self.setCurrentIndex(QModelIndex())

    def scrollContentsBy(self, dx: int, dy: int) -> None:
        """Scroll, and tell."""
        super().scrollContentsBy(dx, dy)
        self.rows_moved.emit()

    def resizeEvent(self, event: QResizeEvent | None) -> None:
        """Resize, and tell."""
        super().resizeEvent(event)
        self.rows_moved.emit()

    def paintEvent(self, event: QPaintEvent | None) -> None:
        """Paint the rows, or why there are none."""
        super().paintEvent(event)
        model = self.model()
        if model is None or model.rowCount() or not self.placeholder:
            return
        viewport = self.viewport()
        if viewport is None:
            return
        painter = QPainter(viewport)
        painter.setPen(Theme.of(self).text)
        flags = Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap
        painter.drawText(viewport.rect().adjusted(12, 4, -12, -4), int(flags), self.placeholder)
        painter.end()


class SliceList(QWidget):
    """Proposed slices, best first.

    Click, arrows or Return go to a slice; N goes to the next one that waits; S skips the one at hand or takes that
    back. The keys work while the list has the focus.

    Attributes
    ----------
    slice_chosen : Signal(str, str, int)
        The user wants to see a slice: volume, axis, index.
    slice_skipped : Signal(str, str, int, bool)
        The user skips a slice (True) or takes that back (False).
    thumbnails_wanted : Signal(tuple)
        Keys of slices that are on the screen without thumbnail; each is asked for once.
    """

    slice_chosen = Signal(str, str, int)
    slice_skipped = Signal(str, str, int, bool)
    thumbnails_wanted = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._asked: set[SliceKey] = set()
        self.model = SliceModel(self)
        self.view = self._make_view()
        self._rest = QTimer(self)
        self._rest.setSingleShot(True)
        self._rest.setInterval(_REST_MS)
        self._rest.timeout.connect(self._ask_for_thumbnails)
        self.next_button = QPushButton("Next (N)")
        self.next_button.setToolTip("Go to the next proposed slice")
        self.next_button.clicked.connect(self.choose_next)
        self.skip_button = QPushButton("Skip (S)")
        self.skip_button.clicked.connect(self.skip_current)
        for key, act in (("N", self.choose_next), ("S", self.skip_current)):
            shortcut = QShortcut(QKeySequence(key), self)
            shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
            shortcut.activated.connect(act)
        self._lay_out()
        self._update_buttons()

    @property
    def current(self) -> ProposedSlice | None:
        """The chosen proposal."""
        row = self.view.currentIndex().row()
        return self.model.slices[row] if 0 <= row < len(self.model.slices) else None

    def set_slices(self, slices: Sequence[ProposedSlice]) -> None:
        """Show the proposals, best first; the chosen slice stays chosen. Emits no choice."""
        current = self.current
        self.model.set_slices(slices)
        self._asked &= {item.key for item in slices}
        if current is not None and self.current is None:
            self.set_current(*current.key)
        self._update_buttons()
        self._rest.start()

    def set_current(self, volume: str, axis: str, index: int) -> None:
        """Mark the slice that is on the canvas, if it is in the list. Emits nothing."""
        keys = [item.key for item in self.model.slices]
        key = (volume, axis, index)
        row = self.model.index(keys.index(key)) if key in keys else QModelIndex()
        self.view.setCurrentIndex(row)
        self._update_buttons()

    def set_thumbnail(self, key: SliceKey, image: NDArray[np.uint8]) -> None:
        """Show a thumbnail.

        Parameters
        ----------
        key : (str, str, int)
            Volume, axis and index. One that is not in the list any more is passed over.
        image : ndarray of shape (h, w) or (h, w, 3), uint8
            Grey or red, green, blue.
        """
        self.model.set_thumbnail(key, to_pixmap(image))

    def set_placeholder(self, text: str) -> None:
        """Say what to do while the list is empty."""
        self.view.placeholder = text

    def choose_next(self) -> None:
        """Go to the next slice behind the chosen one that waits to be painted; from the end to the first such."""
        slices, start = self.model.slices, self.view.currentIndex().row() + 1
        for step in range(len(slices)):
            row = (start + step) % len(slices)
            if slices[row].status in ("proposed", "painting"):
                self.view.setCurrentIndex(self.model.index(row))
                self._chosen(self.model.index(row))
                return

    def skip_current(self) -> None:
        """Skip the chosen slice, or take that back."""
        current = self.current
        if current is not None and current.status != "complete":
            self.slice_skipped.emit(*current.key, current.status != "skipped")

    def changeEvent(self, event: QEvent | None) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        viewport = self.view.viewport() if hasattr(self, "view") else None
        if event is not None and event.type() == QEvent.Type.PaletteChange and viewport is not None:
            viewport.update()

    def _make_view(self) -> _View:
        view = _View()
        view.placeholder = "No slices are proposed yet."
        view.setModel(self.model)
        view.setItemDelegate(SliceDelegate(view))
        view.setUniformItemSizes(True)
        view.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        view.setAccessibleName("Proposed slices")
        view.setToolTip("Proposed slices, the one that stands for most of the volume first. Click one to go there.")
        view.clicked.connect(self._chosen)
        view.moved_by_key.connect(self._chosen)
        view.entered_by_key.connect(self._chosen)
        view.rows_moved.connect(lambda: self._rest.start())
        return view

    def _lay_out(self) -> None:
        buttons = QHBoxLayout()
        buttons.addWidget(self.next_button)
        buttons.addWidget(self.skip_button)
        buttons.addStretch()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(self.view)
        layout.addLayout(buttons)

    def _chosen(self, index: QModelIndex) -> None:
        self._update_buttons()
        if index.isValid():
            self.slice_chosen.emit(*self.model.slices[index.row()].key)

    def _update_buttons(self) -> None:
        current = self.current
        waiting = any(item.status in ("proposed", "painting") for item in self.model.slices)
        self.next_button.setEnabled(waiting)
        self.skip_button.setEnabled(current is not None and current.status != "complete")
        skipped = current is not None and current.status == "skipped"
        self.skip_button.setText("Take back (S)" if skipped else "Skip (S)")
        self.skip_button.setToolTip("Propose it again" if skipped else "Leave this slice out")

    def _ask_for_thumbnails(self) -> None:
        """Ask for what is on the screen and was not asked for."""
        viewport = self.view.viewport()
        if viewport is None or not self.isVisible() or not self.model.slices:
            return
        first = self.view.indexAt(viewport.rect().topLeft()).row()
        last = self.view.indexAt(viewport.rect().bottomLeft()).row()
        last = len(self.model.slices) - 1 if last < 0 else last
        keys = [item.key for item in self.model.slices[max(first, 0) : last + 1]]
        wanted = tuple(key for key in keys if key not in self._asked and key not in self.model.thumbnails)
        if wanted:
            self._asked.update(wanted)
            self.thumbnails_wanted.emit(wanted)


def to_pixmap(image: NDArray[np.uint8]) -> QPixmap:
    """Return a grey (h, w) or coloured (h, w, 3) uint8 array as a picture.

    Raises
    ------
    ValueError
        Another shape or type.
    """
    is_grey, is_rgb = image.ndim == 2, image.ndim == 3 and image.shape[-1] == 3
    if image.dtype != "uint8" or not (is_grey or is_rgb):
        raise ValueError(f"thumbnail {image.shape} {image.dtype}: expected uint8 of shape (h, w) or (h, w, 3)")
    height, width = image.shape[:2]
    kind = QImage.Format.Format_Grayscale8 if is_grey else QImage.Format.Format_RGB888
    return QPixmap.fromImage(QImage(image.tobytes(), width, height, image.nbytes // height, kind))
