"""The table of classes: colour, name and key of each; add, remove, choose the one to paint with."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, QModelIndex, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QPainter, QPen
from qtpy.QtWidgets import (
    QAbstractItemView,
    QColorDialog,
    QHBoxLayout,
    QHeaderView,
    QPushButton,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_slicelabel.gui.problem import ProblemLabel
from napari_slicelabel.gui.theme import Theme

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qtpy.QtGui import QKeyEvent

_COLOR, _NAME, _KEY = range(3)

# As many as there are digits.
_KEYS = 9

_LONGEST_NAME = 100
_ROW_PX = 26
_MOST_ROWS = 8


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class.

    Attributes
    ----------
    id : int
        Its label value.
    name : str
        As the user calls it.
    color : str
        "#rrggbb".
    """

    id: int
    name: str
    color: str


class _Table(QTableWidget):
    """A table that hands digits and the space bar to its owner."""

    digit_pressed = Signal(int)
    space_pressed = Signal()

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        """Catch the keys that choose a class or its colour; all others search and move as in any table."""
        if event is not None and event.text() in set("123456789"):
            self.digit_pressed.emit(int(event.text()))
        elif event is not None and event.key() == Qt.Key.Key_Space:
            self.space_pressed.emit()
        else:
            super().keyPressEvent(event)

    def sizeHint(self) -> QSize:
        """Return room for all rows, up to a limit; then it scrolls."""
        rows = min(max(self.rowCount(), 2), _MOST_ROWS)
        header = self.horizontalHeader()
        return QSize(220, rows * _ROW_PX + (header.sizeHint().height() if header else 0) + 4)

    def minimumSizeHint(self) -> QSize:
        """Return the size hint, so that a layout gives the rows their room."""
        return QSize(160, self.sizeHint().height())


class _Swatch(QStyledItemDelegate):
    """Paints a colour as a rounded box."""

    def paint(self, painter: QPainter | None, option: QStyleOptionViewItem, index: QModelIndex) -> None:
        """Paint one cell."""
        super().paint(painter, option, index)
        if painter is None or not isinstance(option.widget, QWidget):
            return
        side = 16.0
        box = QRectF(option.rect)
        box = QRectF(box.center().x() - side / 2, box.center().y() - side / 2, side, side)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(Theme.of(option.widget).text, 1))  # a class may have the colour of the table
        painter.setBrush(QColor(index.data(Qt.ItemDataRole.UserRole)))
        painter.drawRoundedRect(box, 3, 3)
        painter.restore()

    def initStyleOption(self, option: QStyleOptionViewItem | None, index: QModelIndex) -> None:
        """Leave the dotted frame of the focus out."""
        super().initStyleOption(option, index)
        if option is not None:
            option.state &= ~QStyle.StateFlag.State_HasFocus


class ClassTable(QWidget):
    """The classes of a project.

    Click on a colour changes it, double click or F2 edits a name, the digits 1 to 9 choose a class, the space bar opens
    the colours of the chosen one. The table shows a new name or colour at once; a class that is added or removed
    appears or goes when `set_classes` says so.

    Attributes
    ----------
    class_selected : Signal(int)
        The user wants to paint with the class of this id.
    class_renamed : Signal(int, str)
        Id and new name.
    class_recolored : Signal(int, str)
        Id and new colour, "#rrggbb".
    class_added : Signal(str)
        The user wants another class; a name that is free.
    class_removed : Signal(int)
        The user wants to be rid of a class.
    """

    class_selected = Signal(int)
    class_renamed = Signal(int, str)
    class_recolored = Signal(int, str)
    class_added = Signal(str)
    class_removed = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._rows: tuple[ClassRow, ...] = ()
        self._filling = False
        self._asked_for = ""
        self._table = self._make_table()
        self._problem = ProblemLabel()
        self._add = QPushButton("Add class")
        self._add.setToolTip("Add a class")
        self._add.clicked.connect(self._ask_for_class)
        self._remove = QPushButton("Remove")
        self._remove.clicked.connect(self._remove_current)
        buttons = QHBoxLayout()
        buttons.addWidget(self._add)
        buttons.addWidget(self._remove)
        buttons.addStretch()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(self._table)
        layout.addWidget(self._problem)
        layout.addLayout(buttons)
        self._update_remove()

    @property
    def current_id(self) -> int | None:
        """Id of the chosen class; None if there is none."""
        number = self._table.currentRow()
        return self._rows[number].id if 0 <= number < len(self._rows) else None

    def set_classes(self, rows: Sequence[ClassRow], current_id: int | None = None) -> None:
        """Show the classes, with one of them chosen: `current_id`, or the one chosen before. Emits nothing.

        Classes that are shown already leave the table alone, with a name that is being typed and the line about a
        problem.
        """
        if tuple(rows) == self._rows:
            if current_id not in (None, self.current_id):
                self.set_current(current_id)
            return
        wanted = self.current_id if current_id is None else current_id
        self._rows = tuple(rows)
        with self._quietly():
            self._table.setRowCount(len(rows))
            for number, row in enumerate(self._rows):
                self._fill(number, row)
        self.set_current(wanted if wanted in {row.id for row in rows} else (rows[0].id if rows else None))
        self._problem.set_problem("")
        self._table.updateGeometry()
        self._edit_what_was_asked_for()

    def set_current(self, class_id: int | None) -> None:
        """Choose a class. Emits nothing."""
        number = next((k for k, row in enumerate(self._rows) if row.id == class_id), -1)
        with self._quietly():
            self._table.setCurrentCell(number, _NAME)
        self._update_remove()

    def set_color(self, class_id: int, color: str) -> None:
        """Give a class another colour, as its dialog does."""
        number, row = self._find(class_id)
        if color != row.color:
            self._replace(number, ClassRow(row.id, row.name, color))
            self.class_recolored.emit(class_id, color)

    def color_dialog(self, class_id: int) -> QColorDialog:
        """Return the dialog that changes the colour of a class, not yet open."""
        _, row = self._find(class_id)
        dialog = QColorDialog(QColor(row.color), self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.setWindowTitle(f"Colour of {row.name}")
        dialog.colorSelected.connect(lambda color: self.set_color(class_id, color.name()))
        return dialog

    def changeEvent(self, event: QEvent | None) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        if event is not None and event.type() == QEvent.Type.PaletteChange:
            self._table.viewport().update()  # type: ignore[union-attr]

    def _make_table(self) -> _Table:
        table = _Table(0, 3)
        table.setHorizontalHeaderLabels(["", "Class", "Key"])
        table.setAccessibleName("Classes")
        table.setToolTip(
            "Click a class to paint with it; double click its name to rename it, click its colour to change it."
        )
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        table.setEditTriggers(
            QAbstractItemView.EditTrigger.DoubleClicked | QAbstractItemView.EditTrigger.EditKeyPressed
        )
        table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        table.setShowGrid(False)
        table.setTabKeyNavigation(False)  # Tab leaves the table, as everywhere else in the dock
        table.setItemDelegateForColumn(_COLOR, _Swatch(table))
        rows, header = table.verticalHeader(), table.horizontalHeader()
        assert rows is not None
        assert header is not None
        rows.hide()
        rows.setDefaultSectionSize(_ROW_PX)
        header.setHighlightSections(False)
        header.setSectionResizeMode(_NAME, QHeaderView.ResizeMode.Stretch)
        for column, width in ((_COLOR, 34), (_KEY, 44)):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.Fixed)
            table.setColumnWidth(column, width)
        table.cellClicked.connect(self._clicked)
        table.currentCellChanged.connect(self._current_changed)
        table.itemChanged.connect(self._item_changed)
        table.digit_pressed.connect(self._choose_by_key)
        table.space_pressed.connect(self._open_color_of_current)
        return table

    def _fill(self, number: int, row: ClassRow) -> None:
        fixed = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        color, name = QTableWidgetItem(), QTableWidgetItem(row.name)
        color.setData(Qt.ItemDataRole.UserRole, row.color)
        color.setData(Qt.ItemDataRole.AccessibleTextRole, f"colour {row.color}")
        color.setToolTip(_color_tip(row))
        color.setFlags(fixed)
        name.setToolTip(f"Label value {row.id}; double click to rename")
        key = QTableWidgetItem(str(number + 1) if number < _KEYS else "")
        key.setTextAlignment(Qt.AlignmentFlag.AlignCenter)
        key.setFlags(fixed)
        # on the canvas the digits are napari's: they choose its tools
        key.setToolTip(
            f"Press {number + 1} in this table to paint with this class; on the canvas - and = go through the classes"
            if number < _KEYS
            else ""
        )
        for column, item in ((_COLOR, color), (_NAME, name), (_KEY, key)):
            self._table.setItem(number, column, item)

    def _find(self, class_id: int) -> tuple[int, ClassRow]:
        return next((number, row) for number, row in enumerate(self._rows) if row.id == class_id)

    def _replace(self, number: int, row: ClassRow) -> None:
        self._rows = (*self._rows[:number], row, *self._rows[number + 1 :])
        with self._quietly():
            # in place: this may run inside a signal of the very item
            color, name = self._table.item(number, _COLOR), self._table.item(number, _NAME)
            assert color is not None
            assert name is not None
            color.setData(Qt.ItemDataRole.UserRole, row.color)
            color.setToolTip(_color_tip(row))
            name.setText(row.name)

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Let what the block does to the table not count as the user's doing."""
        before, self._filling = self._filling, True
        try:
            yield
        finally:
            self._filling = before

    def _clicked(self, number: int, column: int) -> None:
        if column == _COLOR:
            self.color_dialog(self._rows[number].id).open()

    def _open_color_of_current(self) -> None:
        if self.current_id is not None:
            self.color_dialog(self.current_id).open()

    def _current_changed(self, number: int, *_: int) -> None:
        self._update_remove()
        if not self._filling and 0 <= number < len(self._rows):
            self._problem.set_problem("")
            self.class_selected.emit(self._rows[number].id)

    def _choose_by_key(self, digit: int) -> None:
        if digit <= len(self._rows):
            self._table.setCurrentCell(digit - 1, _NAME)

    def _item_changed(self, item: QTableWidgetItem) -> None:
        if self._filling or item.column() != _NAME:
            return
        number, name = item.row(), item.text().strip()
        row = self._rows[number]
        problem = self._problem_with_name(name, row)
        self._problem.set_problem(problem)
        self._replace(number, row if problem else ClassRow(row.id, name, row.color))
        if not problem and name != row.name:
            self.class_renamed.emit(row.id, name)

    def _problem_with_name(self, name: str, row: ClassRow) -> str:
        if not name:
            return f"A class needs a name; {row.name} keeps its own."
        if len(name) > _LONGEST_NAME:
            return f"A name has at most {_LONGEST_NAME} letters; {row.name} keeps its own."
        if any(other.name == name for other in self._rows if other.id != row.id):
            return f"There is a class {name} already; {row.name} keeps its name."
        return ""

    def _ask_for_class(self) -> None:
        names = {row.name for row in self._rows}
        number = len(self._rows) + 1
        while f"class {number}" in names:
            number += 1
        self._asked_for = f"class {number}"
        self.class_added.emit(self._asked_for)

    def _edit_what_was_asked_for(self) -> None:
        """Let the user type the name of the class that the button added."""
        asked_for, self._asked_for = self._asked_for, ""
        for row in self._rows:
            if asked_for and row.name == asked_for:
                number, _ = self._find(row.id)
                self._table.setCurrentCell(number, _NAME)
                self._table.editItem(self._table.item(number, _NAME))

    def _remove_current(self) -> None:
        if self.current_id is not None:
            self.class_removed.emit(self.current_id)

    def _update_remove(self) -> None:
        """Say on the button what it would do."""
        self._remove.setEnabled(self.current_id is not None)
        name = next((row.name for row in self._rows if row.id == self.current_id), "")
        self._remove.setToolTip(f"Remove {name}" if name else "Choose a class to remove")


def _color_tip(row: ClassRow) -> str:
    return f"{row.color}; click to change"
