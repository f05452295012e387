"""Forms: the config of a method shown, edited and read back without loss.

Everything that the form says is read from the fields of the config: type, bounds, step, help, presets, and which
fields most people need.
"""

# No `from __future__ import annotations`: pydantic's models are at hand here, and a test keeps the two apart.
import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from magicgui.widgets import create_widget
from pydantic import ValidationError
from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtGui import QValidator
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QComboBox,
    QDoubleSpinBox,
    QGridLayout,
    QLabel,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_slicelabel.engine.config import MethodConfig
from napari_slicelabel.errors import InputError
from napari_slicelabel.gui.problem import ProblemLabel

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

# What Qt's spin boxes can hold.
_INT_BOUNDS = (-(2**31), 2**31 - 1)
_FLOAT_BOUNDS = (-1e300, 1e300)

# Digits behind the point with which Qt rounds: so many that it never does.
_ALL_DECIMALS = 323

# A range of more steps than this is walked in tenths of the value's own magnitude: a learning rate from 1e-6 to 1.
_MANY_STEPS = 1e5

# Least widths: of fields; of numbers, where "0.0005" and its margins take 46 px, and the buttons 40.
_FIELD_PX, _NUMBER_PX = 64, 88
_ABBREVIATIONS = {"ema": "EMA"}
_UNITS = {"px": "px", "mb": "MB", "um": "µm", "nm": "nm", "s": "s"}


class _Editor(Protocol):
    """What the form needs of a value widget; those of magicgui have it."""

    value: Any

    @property
    def native(self) -> QWidget: ...

    @property
    def changed(self) -> Any: ...


class FloatBox(QDoubleSpinBox):
    """A spin box that keeps every float as it is, shows it in the fewest digits and understands ``1e-4``."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setDecimals(_ALL_DECIMALS)

    def textFromValue(self, value: float) -> str:
        """Return the shortest text that reads back as the same number."""
        text = repr(value)
        return text.removesuffix(".0")

    def valueFromText(self, text: str | None) -> float:
        """Return the number that the text stands for; the value so far where it stands for none."""
        value = _read_float(text or "")
        return self.value() if value is None else value

    def validate(self, text: str | None, position: int) -> tuple[QValidator.State, str, int]:
        """Return whether the text is a number within bounds, or may become one."""
        text = text or ""
        value = _read_float(text)
        if value is not None and self.minimum() <= value <= self.maximum():
            return QValidator.State.Acceptable, text, position
        may_become = all(letter in "0123456789.,eE+-" for letter in text.strip())
        return QValidator.State.Intermediate if may_become else QValidator.State.Invalid, text, position

    def stepBy(self, steps: int) -> None:
        """Go some steps up or down, without the rounding errors of binary fractions."""
        value = self.value()
        self.setValue(float(Decimal(repr(value)) + steps * self._step_at(value)))
        self.selectAll()

    def _step_at(self, value: float) -> Decimal:
        step = self.singleStep()
        if self.maximum() / step >= _MANY_STEPS and abs(value) > step:
            step = max(step, 10.0 ** (math.floor(math.log10(abs(value))) - 1))
        return Decimal(repr(step))


class _FloatEditor:
    """A `FloatBox` with the members of a magicgui widget, whose own would round."""

    def __init__(self, value: float, low: float, high: float, step: float) -> None:
        self.native = FloatBox()
        self.native.setRange(low, high)
        self.native.setSingleStep(step)
        self.value = value

    @property
    def value(self) -> float:
        """The number."""
        return float(self.native.value())

    @value.setter
    def value(self, value: float) -> None:
        self.native.setValue(value)

    @property
    def changed(self) -> Any:
        """Signal of a new value."""
        return self.native.valueChanged


@dataclass
class _Row:
    """One field: what is on the screen for it, and the value that was put there."""

    label: QLabel
    editor: _Editor
    reset: QToolButton
    error: ProblemLabel
    given: Any = None
    shown: Any = field(default=None)

    @property
    def value(self) -> Any:
        """The value: what was given, unless the user changed it."""
        # a line edit drops control characters, so what nobody touched is not read from the screen
        now = self.editor.value
        return self.given if now == self.shown else now

    @value.setter
    def value(self, value: Any) -> None:
        self.editor.value = value
        self.given, self.shown = value, self.editor.value


class Fold(QWidget):
    """A heading that shows and hides what is under it.

    Parameters
    ----------
    title : str
        The heading.
    content : QWidget
        What is under it, hidden at first.
    """

    def __init__(self, title: str, content: QWidget, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._content = content
        self.button = QToolButton()
        self.button.setText(title)
        self.button.setToolTip("What seldom needs to be changed.")
        self.button.setCheckable(True)
        self.button.setAutoRaise(True)
        self.button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.button.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.button.toggled.connect(self._show)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(self.button)
        layout.addWidget(content)
        self._show(False)

    def set_open(self, is_open: bool) -> None:
        """Show or hide what is under the heading."""
        self.button.setChecked(is_open)

    def _show(self, is_open: bool) -> None:
        self.button.setArrowType(Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow)
        self._content.setVisible(is_open)


class NoWheel(QObject):
    """Leaves the wheel to the scroll area unless the widget has the focus: scrolling past must change no value."""

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Swallow a wheel turn over a widget without focus."""
        if event is None or event.type() != QEvent.Type.Wheel:
            return False
        if not isinstance(watched, QWidget) or watched.hasFocus():
            return False
        event.ignore()
        return True


class ConfigForm(QWidget):
    """The parameters of a method, to look at and to change.

    A chooser of presets on top, then the fields in ``SIMPLE`` of the config, the others in a fold. A value that differs
    from the preset gets a button that takes it back; one that does not fit gets a line that says why.

    Parameters
    ----------
    config : MethodConfig
        What to show first. The form stays with its class.

    Attributes
    ----------
    config_changed : Signal(MethodConfig)
        The user changed something, and all of it fits.
    validity_changed : Signal(bool)
        From now on all values fit, or do not.
    """

    config_changed = Signal(object)
    validity_changed = Signal(bool)

    def __init__(self, config: MethodConfig, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._kind = type(config)
        self._valid = True
        self._filling = False
        self._no_wheel = NoWheel(self)
        self._presets = self._preset_chooser()
        self._rows = {name: self._row(name, config) for name in self._kind.model_fields if name != "preset"}
        self._general_error = ProblemLabel()
        self._lay_out()
        self._show(config)

    @property
    def is_valid(self) -> bool:
        """Whether all values fit."""
        return self._valid

    def config(self) -> MethodConfig:
        """Return what the form shows.

        Raises
        ------
        InputError
            A value does not fit; one line for each.
        """
        try:
            return self._kind.model_validate(self._values())
        except ValidationError as error:
            raise InputError("; ".join(f"{_where(p)}: {_message(p)}" for p in error.errors())) from error

    def set_config(self, config: MethodConfig) -> None:
        """Show a config of the same class; one that is shown already leaves alone what is being typed.

        Emits nothing, but that the form is valid if it was not.
        """
        if type(config) is not self._kind:
            raise TypeError(f"this form shows {self._kind.__name__}, not {type(config).__name__}")
        if self._validated()[0] != config:
            self._show(config)

    def choose_preset(self, preset: str) -> None:
        """Fill the form with a preset, as its chooser does.

        Where and on what the method works (axis, range, volumes, device, seed) stays unless the preset says otherwise:
        a preset is about how.
        """
        kept = {name: row.value for name, row in self._rows.items() if name in MethodConfig.model_fields}
        self._fill({**self._preset_values(preset), **kept, **self._kind.PRESETS[preset], "preset": preset})
        self._check(tell=True)

    def _show(self, config: MethodConfig) -> None:
        self._fill({name: getattr(config, name) for name in self._kind.model_fields})

    def _preset_values(self, preset: str) -> dict[str, Any]:
        defaults = {name: item.default for name, item in self._kind.model_fields.items()}
        return {**defaults, **self._kind.PRESETS[preset], "preset": preset}

    def _values(self) -> dict[str, Any]:
        return {"preset": self._presets.currentText(), **{name: row.value for name, row in self._rows.items()}}

    def _fill(self, values: Mapping[str, Any]) -> None:
        self._filling = True
        try:
            self._presets.setCurrentText(values["preset"])
            for name, row in self._rows.items():
                row.value = values[name]
        finally:
            self._filling = False
        self._check(tell=False)

    def _edited(self, *_: object) -> None:
        if not self._filling:
            self._check(tell=True)

    def _check(self, *, tell: bool) -> None:
        """Show what does not fit and what differs from the preset; tell who listens if asked to."""
        config, problems = self._validated()
        for name, row in self._rows.items():
            row.error.set_problem(problems.pop(name, ""))
        self._general_error.set_problem("; ".join(problems.values()))
        self._open_fold_on_error()
        self._mark_overrides()
        if self._valid != (config is not None):
            self._valid = config is not None
            self.validity_changed.emit(self._valid)
        if tell and config is not None:
            self.config_changed.emit(config)

    def _validated(self) -> tuple[MethodConfig | None, dict[str, str]]:
        try:
            return self._kind.model_validate(self._values()), {}
        except ValidationError as error:
            return None, {_where(problem): _message(problem) for problem in error.errors()}

    def _open_fold_on_error(self) -> None:
        if any(row.error.problem for name, row in self._rows.items() if name not in self._kind.SIMPLE):
            self.fold.set_open(True)

    def _mark_overrides(self) -> None:
        preset = self._preset_values(self._presets.currentText())
        for name, row in self._rows.items():
            differs = row.value != preset[name]
            row.reset.setVisible(differs)
            row.reset.setToolTip(f"Back to {_text(preset[name])}, as in the preset")
            font = row.label.font()
            font.setBold(differs)
            row.label.setFont(font)

    def _reset(self, name: str) -> None:
        self._rows[name].value = self._preset_values(self._presets.currentText())[name]
        self._check(tell=True)

    def _preset_chooser(self) -> QComboBox:
        chooser = QComboBox()
        chooser.addItems(list(self._kind.PRESETS))
        chooser.setToolTip(_tooltip(self._kind.model_fields["preset"], bounds=""))
        chooser.setAccessibleName("Preset")
        self._let_shrink(chooser)
        chooser.textActivated.connect(self.choose_preset)
        return chooser

    def _row(self, name: str, config: MethodConfig) -> _Row:
        item = self._kind.model_fields[name]
        editor = _editor(item, getattr(config, name))
        tip, title = _tooltip(item), field_title(name, item)
        label = QLabel(title)
        label.setBuddy(editor.native)
        reset = QToolButton()
        reset.setText("↺")
        reset.setAutoRaise(True)
        reset.setAccessibleName(f"Reset {title}")
        reset.clicked.connect(lambda: self._reset(name))
        policy = reset.sizePolicy()
        policy.setRetainSizeWhenHidden(True)  # otherwise every field would jump at the first edit
        reset.setSizePolicy(policy)
        for widget in (label, editor.native):
            widget.setToolTip(tip)
        editor.native.setAccessibleName(title)
        self._let_shrink(editor.native)
        editor.changed.connect(self._edited)
        return _Row(label, editor, reset, ProblemLabel())

    def _let_shrink(self, widget: QWidget) -> None:
        # a spin box asks for room for its largest value; a dock is narrow
        widget.setMinimumWidth(_FIELD_PX)
        if isinstance(widget, QAbstractSpinBox):
            # napari's style goes before the widget's own least width, and leaves 30 px between wide paddings
            widget.setStyleSheet(f"padding: 1px; min-width: {_NUMBER_PX}px")
        widget.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        widget.installEventFilter(self._no_wheel)

    def _lay_out(self) -> None:
        simple = [name for name in self._kind.SIMPLE if name in self._rows]
        rest = [name for name in self._rows if name not in simple]
        top = self._grid(simple)
        grid = top.layout()
        assert isinstance(grid, QGridLayout)
        label = QLabel("Preset")
        label.setBuddy(self._presets)
        grid.addWidget(label, 0, 0)
        grid.addWidget(self._presets, 0, 1)
        self.fold = Fold("Advanced", self._grid(rest))
        self.fold.setVisible(bool(rest))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (top, self._general_error, self.fold):
            layout.addWidget(widget)
        layout.addStretch()
        self._set_tab_order(simple, rest)

    def _set_tab_order(self, simple: list[str], rest: list[str]) -> None:
        """Let Tab go down the form; by itself it follows the order in which the widgets were made."""

        def stops(names: list[str]) -> list[QWidget]:
            return [widget for name in names for widget in (self._rows[name].editor.native, self._rows[name].reset)]

        order = [self._presets, *stops(simple), self.fold.button, *stops(rest)]
        for before, after in pairwise(order):
            QWidget.setTabOrder(before, after)

    def _grid(self, names: list[str]) -> QWidget:
        panel = QWidget()
        grid = QGridLayout(panel)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setVerticalSpacing(4)
        grid.setColumnStretch(1, 1)
        for number, name in enumerate(names, 1):
            row = self._rows[name]
            grid.addWidget(row.label, 2 * number, 0)
            grid.addWidget(row.editor.native, 2 * number, 1)
            grid.addWidget(row.reset, 2 * number, 2)
            grid.addWidget(row.error, 2 * number + 1, 0, 1, 3)
        return panel


def field_title(name: str, item: "FieldInfo") -> str:
    """Return the words that stand before a field.

    Parameters
    ----------
    name : str
        Of the field; a unit at its end goes in brackets.
    item : FieldInfo
        The field; a title given there wins.

    Returns
    -------
    str
        For people.

    Examples
    --------
    >>> from pydantic.fields import FieldInfo
    >>> field_title("crop_px", FieldInfo())
    'Crop (px)'
    """
    if item.title:
        return item.title
    *words, last = name.split("_")
    unit = _UNITS.get(last) if words else None
    text = " ".join(_ABBREVIATIONS.get(word, word) for word in (words if unit else (*words, last)))
    return text[:1].upper() + text[1:] + (f" ({unit})" if unit else "")


def _editor(item: "FieldInfo", value: Any) -> _Editor:
    """Return a widget for values of the field."""
    if item.annotation is float:
        low, high = _bounds(item, _FLOAT_BOUNDS)
        return _FloatEditor(value, low, high, _step(item, 0.01))
    options: dict[str, Any] = {}
    if item.annotation is int:
        low, high = _bounds(item, _INT_BOUNDS)
        # without bounds magicgui caps at 999
        options = {"min": int(low), "max": int(high), "step": int(_step(item, 1))}
    made: _Editor = create_widget(value=value, annotation=item.annotation, options=options)  # type: ignore[assignment]
    if item.annotation is bool:
        made.native.setText("")  # type: ignore[attr-defined]  # the label before it says it
    return made


def _bounds(item: "FieldInfo", widest: tuple[float, float]) -> tuple[float, float]:
    """Return lowest and highest value that may be typed; what is excluded at a bound is told when it is typed."""
    low, high = widest
    for constraint in item.metadata:
        for name in ("ge", "gt"):
            low = max(low, getattr(constraint, name, low))
        for name in ("le", "lt"):
            high = min(high, getattr(constraint, name, high))
    return low, high


def _step(item: "FieldInfo", otherwise: float) -> float:
    extra = item.json_schema_extra
    step = extra.get("step", otherwise) if isinstance(extra, Mapping) else otherwise
    return float(step) if isinstance(step, int | float) else otherwise


def _tooltip(item: "FieldInfo", bounds: str | None = None) -> str:
    """Return the help of a field as rich text, which Qt wraps."""
    if bounds is None:
        low, high = _bounds(item, (-math.inf, math.inf))
        bounds = f"{_text(low)} to {_text(high)}, " if math.isfinite(low) and math.isfinite(high) else ""
        bounds += f"by default {_text(item.default)}."
    return f"<qt>{html.escape(item.description or '')}<br/><i>{html.escape(bounds)}</i></qt>"


def _text(value: object) -> str:
    """Return a value as the form shows it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _where(problem: Any) -> str:
    """Return the field of a problem; empty for the config as a whole."""
    return str(problem["loc"][0]) if problem["loc"] else ""


def _message(problem: Any) -> str:
    """Return a problem in words for people: ``Should be a multiple of 8``."""
    text = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return str(text[:1].upper() + text[1:])


def _read_float(text: str) -> float | None:
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
