"""Select: which few slices to paint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QFormLayout, QListWidget, QListWidgetItem, QSpinBox, QWidget

from napari_slicelabel.data.boxes import AXES
from napari_slicelabel.engine.select import SELECTORS
from napari_slicelabel.gui.panels.base import Panel, button, changed, grid

if TYPE_CHECKING:
    from napari_slicelabel.gui.state import ProposalRow, Snapshot, Step
    from napari_slicelabel.gui.workspace import Workspace

_MARKS = {"proposed": "○", "painting": "◐", "complete": "●", "skipped": "–"}
_WORDS = {"proposed": "to paint", "painting": "begun", "complete": "complete", "skipped": "skipped"}


class SelectPanel(Panel):
    """Choose a budget; the plugin proposes slices that stand for the others."""

    title = "Select slices"
    tip = "Which slices to paint: the plugin proposes them, the labels of the others follow from them."
    steps: tuple[Step, ...] = ("select",)

    def __init__(self, workspace: Workspace, parent: QWidget | None = None) -> None:
        super().__init__(workspace, parent)
        self.method = QComboBox()
        for name, selector in SELECTORS.items():
            self.method.addItem(name.capitalize(), name)
            self.method.setItemData(self.method.count() - 1, selector.title, Qt.ItemDataRole.ToolTipRole)
        self.method.setToolTip("How slices are chosen.")
        self.budget = QSpinBox()
        self.budget.setRange(1, 999)
        self.budget.setValue(5)
        self.budget.setToolTip("Budget: how many slices you are willing to paint.")
        self.axis = QComboBox()
        self.axis.addItems([*AXES, "all"])
        self.axis.setToolTip("Axis that the slices are perpendicular to: z for the slices as they were cut.")
        form = QFormLayout()
        form.setContentsMargins(0, 0, 0, 0)
        form.setSpacing(4)
        form.addRow("Method", self.method)
        form.addRow("Slices", self.budget)
        form.addRow("Axis", self.axis)
        self.column.addLayout(form)
        self.propose = button("Propose slices", "Rank the slices and go to the first one.", self._propose, primary=True)
        self.column.addWidget(self.propose)
        self.list = QListWidget()
        self.list.setToolTip("Proposed slices, the most worthwhile first. Click to go there.")
        self.list.setUniformItemSizes(True)
        self.list.itemClicked.connect(self._jump)
        self.column.addWidget(self.list)
        self.next = button("Next", "Go to the next proposed slice.", self.ask("next_proposal"), key="N")
        self.skip = button("Skip", "Leave the chosen proposal out, or take it in again.", self._skip)
        self.column.addLayout(grid([self.next, self.skip]))
        self._rows: tuple[ProposalRow, ...] = ()

    def summary(self, snapshot: Snapshot) -> str:
        """Return how many proposals are done."""
        rows = [row for row in snapshot.proposals if row.state != "skipped"]
        return f"{sum(row.state == 'complete' for row in rows)} of {len(rows)} complete" if rows else ""

    def apply(self, new: Snapshot, old: Snapshot | None) -> None:
        """Show what differs."""
        self.setEnabled(new.project is not None)
        if changed(new, old, "proposals"):
            self._fill(new.proposals)
        if changed(new, old, "layers.current", "proposals") and new.layers.current is not None:
            place = next((k for k, row in enumerate(self._rows) if row.ref == new.layers.current), -1)
            self.list.setCurrentRow(place)

    def _fill(self, rows: tuple[ProposalRow, ...]) -> None:
        self._rows = rows
        self.list.clear()
        for row in rows:
            gain = f"   +{row.gain:.0%}" if row.gain is not None else ""
            item = QListWidgetItem(f"{_MARKS[row.state]}  {row.rank}.  slice {row.ref}   {_WORDS[row.state]}{gain}")
            item.setData(Qt.ItemDataRole.UserRole, row.rank - 1)
            self.list.addItem(item)
        for widget in (self.list, self.next, self.skip):
            widget.setVisible(bool(rows))
        height = self.list.sizeHintForRow(0) if rows else 20
        self.list.setFixedHeight(min(len(rows), 6) * max(18, height) + 6)

    def _propose(self) -> None:
        if self.session is not None:
            method, axis = self.method.currentData(), self.axis.currentText()
            self.session.propose(method, self.budget.value(), axis)  # type: ignore[arg-type]

    def _jump(self, item: QListWidgetItem) -> None:
        if self.session is not None:
            self.session.jump(self._rows[item.data(Qt.ItemDataRole.UserRole)].ref)

    def _skip(self) -> None:
        row = self.list.currentRow()
        if self.session is not None and 0 <= row < len(self._rows):
            self.session.skip(self._rows[row].ref)
