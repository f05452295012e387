from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QApplication, QColorDialog, QLineEdit

from napari_slicelabel.gui.class_table import ClassRow, ClassTable

if TYPE_CHECKING:
    from pytestqt.qtbot import QtBot

    from conftest import Shoot, Show

ROWS = (
    ClassRow(1, "mitochondria", "#e69f00"),
    ClassRow(2, "membrane", "#56b4e9"),
    ClassRow(7, "synapse", "#009e73"),
)


@pytest.fixture
def table(show: Show) -> ClassTable:
    table = ClassTable()
    table.set_classes(ROWS)
    show(table, 280)
    return table


def cell(table: ClassTable, row: int, column: int) -> QPoint:
    view = table._table
    return view.visualItemRect(view.item(row, column)).center()


def click(qtbot: QtBot, table: ClassTable, row: int, column: int, *, double: bool = False) -> None:
    qtbot.mouseClick(table._table.viewport(), Qt.MouseButton.LeftButton, pos=cell(table, row, column))
    if double:
        qtbot.mouseDClick(table._table.viewport(), Qt.MouseButton.LeftButton, pos=cell(table, row, column))


def rename(qtbot: QtBot, table: ClassTable, row: int, name: str) -> None:
    click(qtbot, table, row, 1, double=True)
    editor = table._table.viewport().findChild(QLineEdit)
    editor.selectAll()
    qtbot.keyClick(editor, Qt.Key.Key_Delete)
    qtbot.keyClicks(editor, name)
    qtbot.keyClick(editor, Qt.Key.Key_Return)


def test_it_shows_what_it_is_given_and_stays_silent(qtbot: QtBot, table: ClassTable) -> None:
    for signal in (table.class_selected, table.class_renamed, table.class_recolored):
        with qtbot.assertNotEmitted(signal):
            table.set_classes(ROWS, current_id=7)
            table.set_current(2)
    assert table.current_id == 2
    assert [table._table.item(k, 1).text() for k in range(3)] == ["mitochondria", "membrane", "synapse"]
    assert [table._table.item(k, 2).text() for k in range(3)] == ["1", "2", "3"]
    table.set_classes(ROWS[::2])
    assert table.current_id == 1  # the chosen one is gone
    table.set_classes(())
    assert table.current_id is None


def test_click_chooses(qtbot: QtBot, table: ClassTable) -> None:
    with qtbot.waitSignal(table.class_selected) as told:
        click(qtbot, table, 2, 1)
    assert told.args == [7]


def test_digits_choose(qtbot: QtBot, table: ClassTable) -> None:
    with qtbot.waitSignal(table.class_selected) as told:
        qtbot.keyClick(table._table, Qt.Key.Key_3)
    assert told.args == [7]
    with qtbot.assertNotEmitted(table.class_selected):
        qtbot.keyClick(table._table, Qt.Key.Key_9)
    with qtbot.waitSignal(table.class_selected) as told:
        qtbot.keyClick(table._table, Qt.Key.Key_Up)
    assert told.args == [2]


def test_rename(qtbot: QtBot, table: ClassTable) -> None:
    with qtbot.waitSignal(table.class_renamed) as told:
        rename(qtbot, table, 1, "  inner membrane ")
    assert told.args == [2, "inner membrane"]
    assert table._table.item(1, 1).text() == "inner membrane"


@pytest.mark.parametrize(
    ("name", "problem"),
    [("", "needs a name"), ("  ", "needs a name"), ("synapse", "There is a class synapse"), ("x" * 101, "at most 100")],
)
def test_a_bad_name_is_refused_with_a_reason(name: str, problem: str, qtbot: QtBot, table: ClassTable) -> None:
    with qtbot.assertNotEmitted(table.class_renamed):
        rename(qtbot, table, 1, name)
        qtbot.waitUntil(lambda: problem in table._problem.problem)  # Qt commits an edit a turn later
    assert table._table.item(1, 1).text() == "membrane"
    assert table._problem.isVisible()
    click(qtbot, table, 0, 1)
    assert not table._problem.isVisible()


def test_click_on_the_colour_changes_it(qtbot: QtBot, table: ClassTable, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[QColorDialog] = []
    monkeypatch.setattr(QColorDialog, "open", lambda self, *_: opened.append(self))
    click(qtbot, table, 1, 0)
    (dialog,) = opened
    assert dialog.currentColor() == QColor("#56b4e9")
    assert dialog.windowTitle() == "Colour of membrane"
    with qtbot.waitSignal(table.class_recolored) as told:
        dialog.colorSelected.emit(QColor("#123456"))
    assert told.args == [2, "#123456"]
    assert table._table.item(1, 0).data(Qt.ItemDataRole.UserRole) == "#123456"
    with qtbot.assertNotEmitted(table.class_recolored):
        dialog.colorSelected.emit(QColor("#123456"))
    qtbot.keyClick(table._table, Qt.Key.Key_Space)
    assert len(opened) == 2
    for dialog in opened:
        dialog.close()


def test_the_same_classes_do_not_disturb_an_edit(qtbot: QtBot, table: ClassTable) -> None:
    click(qtbot, table, 1, 1, double=True)
    editor = table._table.viewport().findChild(QLineEdit)
    editor.selectAll()
    qtbot.keyClicks(editor, "inner")
    table.set_classes(ROWS)
    with qtbot.waitSignal(table.class_renamed) as told:
        qtbot.keyClick(editor, Qt.Key.Key_Return)
    assert told.args == [2, "inner"]


def test_add_then_type_the_name(qtbot: QtBot, table: ClassTable) -> None:
    with qtbot.waitSignal(table.class_added) as told:
        qtbot.mouseClick(table._add, Qt.MouseButton.LeftButton)
    assert told.args == ["class 4"]
    table.set_classes((*ROWS, ClassRow(8, "class 4", "#cc79a7")))
    assert table.current_id == 8
    editor = QApplication.focusWidget()
    assert isinstance(editor, QLineEdit)
    with qtbot.waitSignal(table.class_renamed) as told:
        qtbot.keyClicks(editor, "nucleus")
        qtbot.keyClick(editor, Qt.Key.Key_Return)
    assert told.args == [8, "nucleus"]


def test_a_new_name_is_free(qtbot: QtBot, table: ClassTable) -> None:
    table.set_classes([ClassRow(1, "class 2", "#000000")])
    with qtbot.waitSignal(table.class_added) as told:
        qtbot.mouseClick(table._add, Qt.MouseButton.LeftButton)
    assert told.args == ["class 3"]


def test_remove(qtbot: QtBot, table: ClassTable) -> None:
    click(qtbot, table, 1, 1)
    with qtbot.waitSignal(table.class_removed) as told:
        qtbot.mouseClick(table._remove, Qt.MouseButton.LeftButton)
    assert told.args == [2]


def test_no_class_no_remove(qtbot: QtBot) -> None:
    table = ClassTable()
    qtbot.addWidget(table)
    assert not table._remove.isEnabled()


def test_pictures(show: Show, shoot: Shoot, theme: str, qtbot: QtBot) -> None:
    table = ClassTable()
    table.set_classes(ROWS, current_id=2)
    window = show(table, 280, None, theme)
    shoot(window, "classes")
    table.set_current(1)
    qtbot.mouseClick(table._remove, Qt.MouseButton.LeftButton)
    window.resize(240, window.sizeHint().height())
    qtbot.wait(20)
    shoot(window, "classes-refused")
    many = ClassTable()
    many.set_classes([ClassRow(k, f"class with a rather long name {k}", f"#{k * 1050000:06x}") for k in range(1, 15)])
    shoot(show(many, 260, None, theme), "classes-many")
