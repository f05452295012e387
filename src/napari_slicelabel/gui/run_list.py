"""The list of runs: how each one came out, and what to do with its labels."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QMessageBox,
    QSizePolicy,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_slicelabel.gui.panels.base import button, grid
from napari_slicelabel.gui.runs import by_id, label_of, outcome_word

if TYPE_CHECKING:
    from qtpy.QtGui import QKeyEvent

    from napari_slicelabel.gui.state import RunFacts

_RUN, _SLICES, _DICE, _OUTCOME = range(4)
_HEADERS = ("Run", "Slices", "Dice", "Outcome")
_NEWEST = "Newest labels of every slice"
_RESUMABLE = ("running", "stopped", "cancelled", "failed")
_ROW_PX = 18
_MOST_ROWS = 6


@dataclass(frozen=True, slots=True)
class RunChoice:
    """What the list shows.

    Attributes
    ----------
    runs : tuple of RunFacts
        Oldest first.
    volume : str
        The volume that is labelled.
    alone, compared : str
        The run that is shown alone, and the one that it is compared with; empty for none.
    running : str
        The run that goes on here; empty for none.
    busy : bool
        Whether one goes on, or begins.
    """

    runs: tuple[RunFacts, ...] = ()
    volume: str = ""
    alone: str = ""
    compared: str = ""
    running: str = ""
    busy: bool = False


class RunList(QWidget):
    """Runs, the newest first; above them a row that stands for the newest labels of every slice.

    Attributes
    ----------
    show_wanted, compare_wanted, export_wanted, resume_wanted : Signal(str)
        The user wants to see a run, or where it differs from what is seen, to write it to a file, or to go on with it.
        Shown of an empty id: of every slice the newest labels; compared with one: no longer.
    delete_wanted : Signal(str)
        The user wants a run to be deleted, and has said so twice.
    """

    show_wanted = Signal(str)
    compare_wanted = Signal(str)
    export_wanted = Signal(str)
    delete_wanted = Signal(str)
    resume_wanted = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.choice = RunChoice()
        self.question: QMessageBox | None = None
        self.table = self._make_table()
        self.show_run = button("Show", "Show the labels of this run alone.", self._show)
        self.compare = button(
            "Compare",
            "Show only where this run differs from what is shown: with the label that is shown, grey where that is"
            " background. Again: all labels.",
            self._compare,
        )
        self.compare.setCheckable(True)
        self.resume = button("Go on", "Go on with this run where it was.", lambda: self._tell(self.resume_wanted))
        self.export = button(
            "Export …", "Write the labels of this run to a file.", lambda: self._tell(self.export_wanted)
        )
        self.delete = button("Delete …", "Remove this run from the disk, after a question.", self._ask)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addWidget(self.table)
        column.addLayout(grid([self.show_run, self.compare, self.resume, self.export, self.delete], 3))

    def _make_table(self) -> QTreeWidget:
        table = _Table()
        table.setHeaderLabels(list(_HEADERS))
        table.setRootIsDecorated(False)
        table.setUniformRowHeights(True)
        table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        table.setAccessibleName("Runs")
        table.setToolTip("Runs, the newest first; bold: what is shown. Double-click shows one alone.")
        table.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        header = table.header()
        if header is not None:
            header.setStretchLastSection(False)
            header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
            header.setSectionResizeMode(_RUN, QHeaderView.ResizeMode.Stretch)
        table.itemSelectionChanged.connect(self._update)
        table.itemDoubleClicked.connect(lambda _item, _column: self._show())
        table.entered.connect(self._show)
        return table

    @property
    def current(self) -> RunFacts | None:
        """The chosen run."""
        item = self.table.currentItem()
        return None if item is None else by_id(self.choice.runs).get(item.data(_RUN, Qt.ItemDataRole.UserRole))

    def set_choice(self, choice: RunChoice) -> None:
        """Show runs; the chosen one stays chosen."""
        chosen = self.current
        self.choice = choice
        self.table.blockSignals(True)
        self.table.clear()
        if choice.runs:
            self._add("", (_NEWEST, "", "", ""), "Of every slice the labels of the newest run that has written it.")
        for run in reversed(choice.runs):
            self._add(run.run_id, self._cells(run), self._tip(run))
            if chosen is not None and run.run_id == chosen.run_id:
                self.table.setCurrentItem(self.table.topLevelItem(self.table.topLevelItemCount() - 1))
        self.table.blockSignals(False)
        self.table.updateGeometry()
        self._update()

    def choose(self, run_id: str) -> None:
        """Choose a run, as a click does."""
        for row in range(self.table.topLevelItemCount()):
            item = self.table.topLevelItem(row)
            if item is not None and item.data(_RUN, Qt.ItemDataRole.UserRole) == run_id:
                self.table.setCurrentItem(item)

    def _add(self, run_id: str, cells: tuple[str, ...], tip: str) -> None:
        item = QTreeWidgetItem(list(cells))
        item.setData(_RUN, Qt.ItemDataRole.UserRole, run_id)
        for column in range(len(cells)):
            item.setToolTip(column, tip)
            if column in (_SLICES, _DICE):
                item.setTextAlignment(column, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            if run_id == self.choice.alone:
                font = item.font(column)
                font.setBold(True)
                item.setFont(column, font)
        if run_id == self.choice.alone:
            item.setText(_RUN, f"● {cells[_RUN]}")
        self.table.addTopLevelItem(item)
        item.setFirstColumnSpanned(not run_id)

    def _cells(self, run: RunFacts) -> tuple[str, ...]:
        when = "" if run.started is None else f"{_short(run.started)} "
        dice = "" if run.mean_confidence is None else f"{run.mean_confidence:.2f}"
        extent = f"{run.written}/{run.slices}" if run.slices else "none"
        if self._is_elsewhere(run):
            extent = "other"
        compared = "≠ " if run.run_id == self.choice.compared else ""
        return f"{compared}{when}{run.method}", extent, dice, outcome_word(run, self.choice.running)

    def _tip(self, run: RunFacts) -> str:
        if run.outcome == "damaged":
            return run.error
        lines = [f"Run {run.run_id}"]
        if run.started is not None:
            lines.append(f"begun {run.started.astimezone():%d %B %Y %H:%M}")
        lines.append(f"{run.written} of {run.slices} slices along {run.axis} in {', '.join(run.volumes)}")
        if run.mean_confidence is not None:
            measured = "" if run.measured else ", not measured"
            lines.append(f"mean expected Dice {run.mean_confidence:.3f}{measured}")
        return "\n".join([*lines, *([run.error] if run.error else [])])

    def _is_elsewhere(self, run: RunFacts) -> bool:
        return bool(run.volumes) and self.choice.volume not in run.volumes

    def _update(self) -> None:
        run, choice = self.current, self.choice
        is_newest = run is None and self.table.currentItem() is not None
        has_labels = run is not None and run.written > 0
        self.show_run.setEnabled(has_labels or is_newest)
        is_alone = run is not None and run.run_id == choice.alone
        self.compare.setEnabled(bool(choice.compared) or (has_labels and not is_alone))
        self.compare.setChecked(bool(choice.compared))
        self.export.setEnabled(has_labels)
        self.resume.setEnabled(not choice.busy and run is not None and run.outcome in _RESUMABLE)
        self.delete.setEnabled(not choice.busy and run is not None)

    def _show(self) -> None:
        if self.show_run.isEnabled():
            run = self.current
            self.show_wanted.emit("" if run is None else run.run_id)

    def _compare(self) -> None:
        run = self.current
        self.compare_wanted.emit("" if self.choice.compared or run is None else run.run_id)
        self._update()

    def _tell(self, signal: Signal) -> None:
        run = self.current
        if run is not None:
            signal.emit(run.run_id)

    def _ask(self) -> None:
        run = self.current
        if run is None:
            return
        box = QMessageBox(self)
        box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        box.setIcon(QMessageBox.Icon.Warning)
        box.setWindowTitle("Delete a run")
        box.setText(f"Delete the run {label_of(run)}?")
        box.setInformativeText("Its labels, its confidence and its model go from the disk. What you painted stays.")
        box.addButton("Delete", QMessageBox.ButtonRole.AcceptRole)
        box.setDefaultButton(box.addButton(QMessageBox.StandardButton.Cancel))
        box.accepted.connect(lambda: self.delete_wanted.emit(run.run_id))
        box.finished.connect(self._asked)
        self.question = box
        box.open()

    def _asked(self, _result: int) -> None:
        self.question = None


def _short(moment: datetime) -> str:
    """Return the time of today, or the day before that."""
    local = moment.astimezone()
    return f"{local:%H:%M}" if local.date() == datetime.now().astimezone().date() else f"{local:%d %b}"


class _Table(QTreeWidget):
    """As high as its rows, up to `_MOST_ROWS`; Return says so."""

    entered = Signal()

    def sizeHint(self) -> QSize:
        """Return room for the rows."""
        rows = min(_MOST_ROWS, self.topLevelItemCount()) + 1
        return QSize(200, rows * _ROW_PX + 6)

    def minimumSizeHint(self) -> QSize:
        """Return room for two rows."""
        return QSize(160, 3 * _ROW_PX)

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        """Tell of Return."""
        if event is not None and event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.entered.emit()
            return
        super().keyPressEvent(event)
