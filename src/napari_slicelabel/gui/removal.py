"""What becomes of the paint when its class goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QComboBox, QDialog, QDialogButtonBox, QLabel, QVBoxLayout, QWidget

from napari_slicelabel.data.classes import NOT_PAINTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_slicelabel.data.classes import LabelClass


class RemovalDialog(QDialog):
    """Asks what a painted class is to become.

    Parameters
    ----------
    label_class : LabelClass
        The one that goes.
    others : sequence of LabelClass
        Those that stay.
    slices : int
        In how many slices it is painted.

    Attributes
    ----------
    confirmed : Signal(int)
        The label that its voxels are to get: that of another class, or `NOT_PAINTED`.
    """

    confirmed = Signal(int)

    def __init__(
        self, label_class: LabelClass, others: Sequence[LabelClass], slices: int, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(f"Remove {label_class.name}")
        self.question = QLabel(
            f"{label_class.name} is painted in {slices} slice{'s' if slices > 1 else ''}. What becomes of that paint?"
        )
        self.question.setWordWrap(True)
        self.target = QComboBox()
        self.target.addItem("Erase it", NOT_PAINTED)
        for other in others:
            self.target.addItem(f"It becomes {other.name}", other.id)
        self.target.setToolTip(
            "Where a slice is complete, what is erased counts as background; one that is empty then is no longer"
            " complete. Undo (Ctrl+Z) brings everything back."
        )
        self.buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel)
        self.remove = self.buttons.addButton(f"Remove {label_class.name}", QDialogButtonBox.ButtonRole.AcceptRole)
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        self.accepted.connect(lambda: self.confirmed.emit(self.target.currentData()))
        column = QVBoxLayout(self)
        for item in (self.question, self.target, self.buttons):
            column.addWidget(item)
        self.setMinimumWidth(340)
