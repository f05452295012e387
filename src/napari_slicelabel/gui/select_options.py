"""What may be said about a selection beyond method and budget: a fold in the Select panel."""

from __future__ import annotations

import html
from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QComboBox, QFormLayout, QLineEdit, QSpinBox, QVBoxLayout, QWidget

from napari_slicelabel.engine.select import SELECTORS
from napari_slicelabel.engine.select.options import NO_OPTIONS, SelectOptions
from napari_slicelabel.errors import InputError
from napari_slicelabel.gui.forms import FloatBox, Fold, NoWheel
from napari_slicelabel.gui.problem import ProblemLabel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_CHOICES: Mapping[str, Mapping[str, str]] = {
    "volumes": {"one": "This one", "all": "All of the project"},
    "damaged": {"skip": "Skip", "keep": "Keep"},
    "cost": {"equal": "All the same", "area": "By their area"},
    "spread": {"pooled": "To best cover", "even": "In even shares"},
}
_TITLES = {
    "volumes": "Volumes",
    "range": "Range",
    "skip": "Leave out",
    "damaged": "Damaged slices",
    "spread": "Spread budget",
    "reach": "Reach",
    "cost": "Cost of slices",
    "seed": "Seed",
    "encoder": "Encoder",
    "weights": "Weights",
}
_TIPS = {
    "volumes": "Whether all volumes of the project share the budget.",
    "range": f"{SelectOptions.model_fields['range'].description} With all it is as far as labels are to go, which is"
    " set under Propagate.",
    "skip": "Slices not to propose besides those skipped in the list, such as z12 z40.",
    "seed": "For methods that draw at random or train a network.",
}
_OF_COMPARISON = ("spread", "reach", "cost")
_OF_WEIGHTS = ("encoder", "weights")


class SelectOptionsForm(QWidget):
    """The options of a selection, those that concern the method chosen.

    Attributes
    ----------
    validity_changed : Signal(bool)
        From now on all values fit, or do not.
    editors : dict of str to QWidget
        By the names of the options, and ``volumes`` and ``seed``.
    """

    validity_changed = Signal(bool)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.editors: dict[str, QWidget] = {}
        self._read: dict[str, Callable[[], object]] = {}
        self._valid = True
        self._no_wheel = NoWheel(self)
        inside = QWidget()
        self._rows = QFormLayout(inside)
        self._rows.setContentsMargins(0, 0, 0, 0)
        self._rows.setSpacing(4)
        self._rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for name in _TITLES:
            self._add(name)
        self.problem = ProblemLabel()
        self.fold = Fold("Advanced", inside)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addWidget(self.fold)
        column.addWidget(self.problem)

    def options(self) -> SelectOptions:
        """Return what the form says.

        Raises
        ------
        InputError
            A value does not fit.
        """
        return SelectOptions.of(
            **{name: read() for name, read in self._read.items() if name not in ("volumes", "seed")}
        )

    @property
    def seed(self) -> int:
        """The seed."""
        return int(str(self._read["seed"]()))

    @property
    def all_volumes(self) -> bool:
        """Whether all volumes of the project share the budget."""
        return self._read["volumes"]() == "all"

    def show_for(self, method: str, features: str, *, several_volumes: bool) -> None:
        """Show the options that concern a method, which compares slices by some features."""
        compares = SELECTORS[method].compares
        shown = {
            "volumes": several_volumes,
            "seed": method != "interval",
            **dict.fromkeys(_OF_COMPARISON, compares),
            **dict.fromkeys(_OF_WEIGHTS, method == "representative" and features == "pretrained"),
        }
        for name, is_shown in shown.items():
            self._rows.setRowVisible(self.editors[name], is_shown)

    def _add(self, name: str) -> None:
        if name in _CHOICES:
            editor, read = _choice(_CHOICES[name], self._check)
        elif name == "seed":
            editor, read = _whole_number(self._check)
        elif name == "reach":
            editor, read = _number(NO_OPTIONS.reach, self._check)
        else:
            editor, read = _text("" if name == "skip" else getattr(NO_OPTIONS, name), self._check)
        self._read[name] = (lambda: str(read()).replace(",", " ").split()) if name == "skip" else read
        tip = _TIPS[name] if name in _TIPS else SelectOptions.model_fields[name].description or ""
        editor.setToolTip(f"<qt>{html.escape(tip)}</qt>")  # rich text, which Qt wraps
        editor.setAccessibleName(_TITLES[name])
        editor.setMinimumWidth(64)
        editor.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        editor.installEventFilter(self._no_wheel)
        self._rows.addRow(_TITLES[name], editor)
        label = self._rows.labelForField(editor)
        if label is not None:
            label.setToolTip(editor.toolTip())
        self.editors[name] = editor

    def _check(self, _value: object = None) -> None:
        """Say what does not fit."""
        try:
            self.options()
        except InputError as error:
            problem = str(error)
        else:
            problem = ""
        self.problem.set_problem(problem)
        if self._valid != (not problem):
            self._valid = not problem
            self.validity_changed.emit(self._valid)


def _choice(texts: Mapping[str, str], changed: Callable[[object], None]) -> tuple[QWidget, Callable[[], object]]:
    box = QComboBox()
    for value, text in texts.items():
        box.addItem(text, value)
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    box.currentIndexChanged.connect(changed)
    return box, box.currentData


def _whole_number(changed: Callable[[object], None]) -> tuple[QWidget, Callable[[], object]]:
    box = QSpinBox()
    box.setRange(0, 2**31 - 1)
    box.valueChanged.connect(changed)
    return box, box.value


def _number(value: float, changed: Callable[[object], None]) -> tuple[QWidget, Callable[[], object]]:
    box = FloatBox()
    box.setRange(0.0, 100.0)
    box.setSingleStep(0.1)
    box.setValue(value)
    box.valueChanged.connect(changed)
    return box, box.value


def _text(value: str, changed: Callable[[object], None]) -> tuple[QWidget, Callable[[], object]]:
    line = QLineEdit(value)
    line.textChanged.connect(changed)
    return line, partial(_stripped, line)


def _stripped(line: QLineEdit) -> str:
    return line.text().strip()
