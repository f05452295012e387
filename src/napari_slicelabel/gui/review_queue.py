"""The queue of slices to review, those first whose correction is expected to gain most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qtpy.QtCore import QAbstractTableModel, QEvent, QModelIndex, QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QKeySequence, QPainter, QPen, QPolygonF
from qtpy.QtWidgets import (
    QAbstractItemView,
    QGridLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QShortcut,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from napari_slicelabel.gui.theme import Theme

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qtpy.QtGui import QFocusEvent, QKeyEvent

ReviewState = Literal["to do", "accepted", "corrected", "flagged"]

_SLICE, _DICE, _GAIN, _STATE = range(4)
_HEADERS = ("Slice", "Dice", "Gain", "State")
_TIPS = (
    "Where the slice is",
    "Expected Dice of the prediction, 0 to 1",
    "What correcting this slice is expected to bring: the lower its Dice, and the more neighbours learn from it, the "
    "more",
    "What you decided",
)
_ROW_PX = 24


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """One slice to look at.

    Attributes
    ----------
    volume, axis, index : str, str, int
        Which slice.
    expected_dice : float or None
        0 to 1; None if not known.
    gain : float or None
        What correcting it is expected to bring; None if not known.
    state : {"to do", "accepted", "corrected", "flagged"}
        What the user decided.
    """

    volume: str
    axis: str
    index: int
    expected_dice: float | None = None
    gain: float | None = None
    state: ReviewState = "to do"

    @property
    def key(self) -> tuple[str, str, int]:
        """Volume, axis and index."""
        return self.volume, self.axis, self.index


@dataclass(frozen=True, slots=True)
class ReviewKeys:
    """The keys of the queue; none of them is taken by napari's labels layers."""

    next: str = "J"
    previous: str = "K"
    accept: str = "A"
    correct: str = "C"
    flag: str = "G"


class ReviewModel(QAbstractTableModel):
    """The items as a table."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.items: tuple[ReviewItem, ...] = ()
        self._several_volumes = False

    def set_items(self, items: Sequence[ReviewItem]) -> None:
        """Replace the items; selection and scroll position survive where only their contents changed."""
        same = bool(items) and [item.key for item in items] == [item.key for item in self.items]
        if same:
            self.items = tuple(items)
            self.dataChanged.emit(self.index(0, 0), self.index(len(items) - 1, _STATE))
            return
        self.beginResetModel()
        self.items = tuple(items)
        self._several_volumes = len({item.volume for item in items}) > 1
        self.endResetModel()

    def rowCount(self, parent: QModelIndex | None = None) -> int:
        """Return the number of slices."""
        return 0 if parent is not None and parent.isValid() else len(self.items)

    def columnCount(self, parent: QModelIndex | None = None) -> int:
        """Return the number of columns."""
        return 0 if parent is not None and parent.isValid() else len(_HEADERS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a column's title, or its explanation."""
        if orientation != Qt.Orientation.Horizontal:
            return None
        if role == Qt.ItemDataRole.ToolTipRole:
            return _TIPS[section]
        return _HEADERS[section] if role == Qt.ItemDataRole.DisplayRole else None

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return what a cell says."""
        if not index.isValid():
            return None
        item = self.items[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return self._text(item, index.column())
        if role == Qt.ItemDataRole.TextAlignmentRole and index.column() in (_DICE, _GAIN):
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        if role in {Qt.ItemDataRole.ToolTipRole, Qt.ItemDataRole.AccessibleTextRole}:
            return _TIPS[index.column()] if role == Qt.ItemDataRole.ToolTipRole else self._text(item, index.column())
        return None

    def _text(self, item: ReviewItem, column: int) -> str:
        if column == _SLICE:
            name = f"{item.axis} {item.index}"
            return f"{item.volume} {name}" if self._several_volumes else name
        if column == _STATE:
            return item.state
        value = item.expected_dice if column == _DICE else item.gain
        if value is None:
            return "?"
        return f"{value:.2f}" if column == _DICE else f"{value:.3g}"


class _StateDelegate(QStyledItemDelegate):
    """Paints a sign before the state, so that a column of them can be scanned."""

    SIGN_PX = 9.0

    def paint(self, painter: QPainter | None, option: QStyleOptionViewItem, index: QModelIndex) -> None:
        """Paint one cell."""
        room = QStyleOptionViewItem(option)
        super().paint(painter, room, index)
        if painter is None:
            return
        box = QRectF(0, 0, self.SIGN_PX, self.SIGN_PX)
        box.moveCenter(QPointF(option.rect.left() + 10, QRectF(option.rect).center().y()))
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        _paint_sign(painter, Theme.of(option.widget), index.data(), box)
        painter.restore()

    def initStyleOption(self, option: QStyleOptionViewItem | None, index: QModelIndex) -> None:
        """Leave room for the sign."""
        super().initStyleOption(option, index)
        if option is not None:
            option.text = f"     {option.text}"


class _Table(QTableView):
    """A table that tells when a key moved on."""

    moved_by_key = Signal()

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        """Tell of a new current row, and of Return."""
        before = self.currentIndex().row()
        entered = event is not None and event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
        super().keyPressEvent(event)
        if entered or self.currentIndex().row() != before:
            self.moved_by_key.emit()

    def focusInEvent(self, event: QFocusEvent | None) -> None:
        """Take the focus without choosing a row; a decision must not be about a slice that was never seen."""
        had_none = not self.currentIndex().isValid()
        super().focusInEvent(event)
        if had_none:
            self.setCurrentIndex(QModelIndex())

    def minimumSizeHint(self) -> QSize:
        """Return room for a few rows."""
        return QSize(200, 4 * _ROW_PX)


class ReviewQueue(QWidget):
    """Slices to review, with what to do about each.

    Going to a slice, by click, arrows, J or K, says so; so do the three decisions. After a slice was accepted or
    flagged the next one that is to do follows by itself; a correction stays where the user now paints. States change
    when `set_items` says so.

    Attributes
    ----------
    slice_chosen : Signal(str, str, int)
        The user wants to see a slice: volume, axis, index.
    slice_accepted, slice_corrected, slice_flagged : Signal(str, str, int)
        The user decided about a slice.
    """

    slice_chosen = Signal(str, str, int)
    slice_accepted = Signal(str, str, int)
    slice_corrected = Signal(str, str, int)
    slice_flagged = Signal(str, str, int)

    def __init__(self, keys: ReviewKeys | None = None, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        keys = keys or ReviewKeys()
        self.model = ReviewModel(self)
        self.table = self._make_table()
        self.summary = QLabel()
        self.summary.setWordWrap(True)
        self.accept_button = self._button("Accept", keys.accept, "The prediction is right", self.accept_current)
        self.correct_button = self._button("Correct", keys.correct, "Paint over the prediction", self.correct_current)
        self.flag_button = self._button("Flag", keys.flag, "Leave it for later", self.flag_current)
        self.previous_button = self._button("Previous", keys.previous, "One up in the queue", lambda: self._step(-1))
        self.next_button = self._button("Next", keys.next, "One down in the queue", lambda: self._step(1))
        self._lay_out()
        self._update()

    @property
    def current(self) -> ReviewItem | None:
        """The chosen item."""
        row = self.table.currentIndex().row()
        return self.model.items[row] if 0 <= row < len(self.model.items) else None

    def set_items(self, items: Sequence[ReviewItem]) -> None:
        """Show the queue, in the order given; the chosen slice stays chosen. Emits nothing."""
        current = self.current
        self.model.set_items(items)
        if current is not None and self.current is None:
            self.set_current(*current.key)
        self._update()

    def set_current(self, volume: str, axis: str, index: int) -> None:
        """Mark the slice that is on the canvas, if it is in the queue. Emits nothing."""
        key = (volume, axis, index)
        row = next((row for row, item in enumerate(self.model.items) if item.key == key), -1)
        self.table.setCurrentIndex(self.model.index(row, _SLICE) if row >= 0 else QModelIndex())
        self._update()

    def accept_current(self) -> None:
        """Accept the chosen slice and go on."""
        self._decide(self.slice_accepted, go_on=True)

    def correct_current(self) -> None:
        """Begin to correct the chosen slice."""
        self._decide(self.slice_corrected, go_on=False)

    def flag_current(self) -> None:
        """Flag the chosen slice and go on."""
        self._decide(self.slice_flagged, go_on=True)

    def _decide(self, signal: Any, *, go_on: bool) -> None:
        current = self.current
        if current is None:
            return
        signal.emit(*current.key)
        if go_on:
            self._go_to_next_to_do(current)

    def _go_to_next_to_do(self, decided: ReviewItem) -> None:
        """Go to the next row below that is to do, from the end to the first one; the queue may have changed by now."""
        items, start = self.model.items, self.table.currentIndex().row() + 1
        for step in range(len(items)):
            row = (start + step) % len(items)
            if items[row].state == "to do" and items[row].key != decided.key:
                self._go_to(row)
                return
        self._update()

    def _step(self, direction: int) -> None:
        row = self.table.currentIndex().row() + direction
        if 0 <= row < len(self.model.items):
            self._go_to(row)

    def _go_to(self, row: int) -> None:
        self.table.setCurrentIndex(self.model.index(row, _SLICE))
        self._tell_chosen()

    def _tell_chosen(self, *_: object) -> None:
        self._update()
        current = self.current
        if current is not None:
            self.slice_chosen.emit(*current.key)

    def _update(self) -> None:
        items, row = self.model.items, self.table.currentIndex().row()
        for button in (self.accept_button, self.correct_button, self.flag_button):
            button.setEnabled(self.current is not None)
        self.previous_button.setEnabled(row > 0)
        self.next_button.setEnabled(row + 1 < len(items))
        done = sum(item.state in ("accepted", "corrected") for item in items)
        flagged = sum(item.state == "flagged" for item in items)
        text = f"{done} of {len(items)} reviewed" + (f", {flagged} flagged" if flagged else "")
        self.summary.setText(text if items else "Nothing to review yet. Predict some slices first.")

    def _make_table(self) -> _Table:
        table = _Table()
        table.setModel(self.model)
        table.setItemDelegateForColumn(_STATE, _StateDelegate(table))
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        table.setShowGrid(False)
        table.setWordWrap(False)
        table.setTextElideMode(Qt.TextElideMode.ElideLeft)  # the number of a slice says more than its volume
        table.setTabKeyNavigation(False)
        table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        table.setAccessibleName("Slices to review")
        table.setToolTip("Doubtful slices, the one whose correction would gain most first. Click one to go there.")
        rows, header = table.verticalHeader(), table.horizontalHeader()
        assert rows is not None
        assert header is not None
        rows.hide()
        rows.setDefaultSectionSize(_ROW_PX)
        header.setHighlightSections(False)
        header.setSectionResizeMode(_SLICE, QHeaderView.ResizeMode.Stretch)
        for column, width in ((_DICE, 44), (_GAIN, 46), (_STATE, 82)):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.Fixed)
            table.setColumnWidth(column, width)
        table.clicked.connect(self._tell_chosen)
        table.moved_by_key.connect(self._tell_chosen)
        return table

    def _button(self, text: str, key: str, tip: str, act: Callable[[], None]) -> QPushButton:
        button = QPushButton(f"{text} ({key})")
        button.setToolTip(tip)
        button.clicked.connect(lambda: act())
        # a shortcut of the queue and not of the button: the key must work from the table, and not in other docks
        shortcut = QShortcut(QKeySequence(key), self)
        shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
        shortcut.activated.connect(act)
        return button

    def _lay_out(self) -> None:
        buttons = QGridLayout()
        buttons.setSpacing(4)
        for column, button in enumerate((self.accept_button, self.correct_button, self.flag_button)):
            buttons.addWidget(button, 0, 2 * column, 1, 2)
        buttons.addWidget(self.previous_button, 1, 0, 1, 3)
        buttons.addWidget(self.next_button, 1, 3, 1, 3)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(self.summary)
        layout.addWidget(self.table)
        layout.addLayout(buttons)

    def changeEvent(self, event: QEvent | None) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        viewport = self.table.viewport() if hasattr(self, "table") else None
        if event is not None and event.type() == QEvent.Type.PaletteChange and viewport is not None:
            viewport.update()


def _paint_sign(painter: QPainter, theme: Theme, state: ReviewState, box: QRectF) -> None:
    """Paint an outline, a disc, a full square or a flag, in the colours of the strip under the canvas."""
    if state == "to do":
        painter.setPen(QPen(theme.predicted, 1.5))
        painter.drawRect(box.adjusted(0.75, 0.75, -0.75, -0.75))
        return
    painter.setPen(Qt.PenStyle.NoPen)
    if state == "accepted":
        painter.setBrush(theme.reviewed)
        painter.drawEllipse(box)
    elif state == "corrected":
        painter.fillRect(box, theme.human)
    else:
        painter.setBrush(theme.stale)
        left, top = box.left() + 1, box.top()
        corners = [QPointF(left, top), QPointF(box.right(), top + 3), QPointF(left, top + 6)]
        painter.drawPolygon(QPolygonF(corners))
        painter.setPen(QPen(theme.stale, 1.5))
        painter.drawLine(QPointF(left, top), QPointF(left, box.bottom()))
