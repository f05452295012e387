from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import QApplication, QComboBox

from napari_slicelabel.engine.config import MethodConfig
from napari_slicelabel.engine.methods import METHODS
from napari_slicelabel.engine.methods.interpolate import InterpolateConfig
from napari_slicelabel.engine.methods.self_label import SelfLabelConfig
from napari_slicelabel.engine.pieces import write_stops
from napari_slicelabel.errors import InputError
from napari_slicelabel.gui.forms import ConfigForm, FloatBox, field_title

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pytestqt.qtbot import QtBot

    from conftest import Shoot, Show

KINDS = [method.config for method in METHODS.values()]


def config_values(item: FieldInfo, name: str, kind: type[MethodConfig]) -> st.SearchStrategy[Any]:
    """Valid values of a field, steps and bounds or not."""
    if name == "preset":
        return st.sampled_from(sorted(kind.PRESETS))
    if name == "range":
        return st.just("all") | st.tuples(st.integers(0, 99), st.integers(100, 10**9)).map(
            lambda ab: f"{ab[0]}:{ab[1]}"
        )
    if name == "stops":
        return st.sets(st.integers(0, 10**6), max_size=4).map(write_stops)
    limits = {key: getattr(c, key) for c in item.metadata for key in ("ge", "le", "multiple_of") if hasattr(c, key)}
    low, high = limits.get("ge"), limits.get("le")
    if item.annotation is bool:
        return st.booleans()
    if item.annotation is int:
        unit = limits.get("multiple_of", 1)
        return st.integers(math.ceil(low / unit), high // unit).map(lambda k: k * unit)
    if item.annotation is float:
        step = (item.json_schema_extra or {})["step"]
        on_grid = st.integers(0, int((high - low) / step)).map(lambda k: min(high, low + k * step))
        return on_grid | st.floats(low, high)
    return st.text(max_size=20) if item.annotation is str else st.sampled_from(get_args(item.annotation))


def configs(kind: type[MethodConfig]) -> st.SearchStrategy[MethodConfig]:
    fields = {name: config_values(item, name, kind) for name, item in kind.model_fields.items()}
    return st.fixed_dictionaries(fields).map(kind.model_validate)


@pytest.mark.parametrize("kind", KINDS)
def test_every_config_comes_back_as_it_went_in(kind: type[MethodConfig], qtbot: QtBot) -> None:
    form = ConfigForm(kind())
    qtbot.addWidget(form)

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(config=configs(kind))
    def check(config: MethodConfig) -> None:
        form.set_config(config)
        assert form.is_valid
        assert form.config() == config

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_comes_back_from_the_screen_alone(kind: type[MethodConfig], qtbot: QtBot) -> None:
    # the form would hide a widget that rounds, because it remembers what nobody touched
    form = ConfigForm(kind())
    qtbot.addWidget(form)

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(config=configs(kind))
    def check(config: MethodConfig) -> None:
        form.set_config(config)
        for name, row in form._rows.items():
            value = getattr(config, name)
            # Qt rounds behind the 323rd digit, which only numbers below 1e-300 have
            if not isinstance(value, str) and (value == 0 or abs(value) > 1e-300):
                assert row.editor.value == value, name

    check()


@pytest.mark.parametrize(("kind", "preset"), [(kind, preset) for kind in KINDS for preset in kind.PRESETS])
def test_choosing_a_preset_gives_what_the_command_line_gives(
    kind: type[MethodConfig], preset: str, qtbot: QtBot
) -> None:
    form = ConfigForm(kind())
    qtbot.addWidget(form)
    for other in (*kind.PRESETS, preset):
        form.choose_preset(other)
    assert form.config() == kind.from_values({"preset": preset})
    form.set_config(kind.from_values({"preset": preset}))
    assert form.config() == kind.from_values({"preset": preset})


def test_a_preset_says_how_and_leaves_where(qtbot: QtBot) -> None:
    form = ConfigForm(SelfLabelConfig(axis="y", range="3:9", seed=7, device="cpu", batch=2))
    qtbot.addWidget(form)
    with qtbot.waitSignal(form.config_changed) as told:
        _choose(qtbot, form._presets, "paper")
    config = told.args[0]
    assert config == SelfLabelConfig.from_values(
        {"preset": "paper", "axis": "y", "range": "3:9", "seed": 7, "device": "cpu"}
    )


def test_typing_a_learning_rate(qtbot: QtBot, show: Show) -> None:
    form = ConfigForm(SelfLabelConfig())
    show(form, 320, 900)
    form.fold.set_open(True)
    box = form._rows["learning_rate"].editor.native
    assert isinstance(box, FloatBox)
    assert box.text() == "0.001"
    box.setFocus()
    box.selectAll()
    qtbot.keyClicks(box, "3e-4")
    assert form.config().learning_rate == 3e-4
    qtbot.keyClick(box, Qt.Key.Key_Return)
    assert box.text() == "0.0003"
    qtbot.keyClick(box, Qt.Key.Key_Up)
    assert form.config().learning_rate == 3.1e-4
    assert form._rows["learning_rate"].reset.isVisible()
    assert form._rows["learning_rate"].label.font().bold()
    qtbot.mouseClick(form._rows["learning_rate"].reset, Qt.MouseButton.LeftButton)
    assert form.config() == SelfLabelConfig()
    assert not form._rows["learning_rate"].reset.isVisible()


@pytest.mark.parametrize(
    ("start", "key", "expected"),
    [
        (0.1, Qt.Key.Key_Up, 0.11),
        (0.7, Qt.Key.Key_Down, 0.69),
        (0.0, Qt.Key.Key_Down, 0.0),
        (0.07, Qt.Key.Key_Up, 0.08),
    ],
)
def test_steps_are_decimal(start: float, key: Qt.Key, expected: float, qtbot: QtBot) -> None:
    box = FloatBox()
    qtbot.addWidget(box)
    box.setRange(0, 1)
    box.setSingleStep(0.01)
    box.setValue(start)
    qtbot.keyClick(box, key)
    assert box.value() == expected


def test_an_echo_does_not_disturb_typing(qtbot: QtBot, show: Show) -> None:
    form = ConfigForm(SelfLabelConfig())
    show(form, 320, 900)
    form.fold.set_open(True)
    form.config_changed.connect(form.set_config)  # an owner that gives back what it gets
    box = form._rows["theta"].editor.native
    box.setFocus()
    box.selectAll()
    for typed, so_far in (("0", "0"), (".", "0."), ("9", "0.9"), ("0", "0.90"), ("5", "0.905")):
        qtbot.keyClicks(box, typed)
        assert box.text() == so_far
    assert form.config().theta == 0.905


@pytest.mark.parametrize("typed", ["", "-", "1e", "e", "..", "1e400", "7"])
def test_nonsense_leaves_the_number_alone(typed: str, qtbot: QtBot) -> None:
    box = FloatBox()
    qtbot.addWidget(box)
    box.setRange(0, 1)
    box.setValue(0.25)
    box.selectAll()
    qtbot.keyClicks(box, typed)
    qtbot.keyClick(box, Qt.Key.Key_Return)
    assert 0 <= box.value() <= 1
    assert math.isfinite(box.value())


def test_an_error_stands_under_its_field(qtbot: QtBot, show: Show) -> None:
    form = ConfigForm(SelfLabelConfig())
    show(form, 320, 700)
    told: list[object] = []
    form.config_changed.connect(told.append)
    line = form._rows["range"].editor.native
    line.setFocus()
    line.selectAll()
    with qtbot.waitSignal(form.validity_changed, check_params_cb=lambda valid: not valid):
        qtbot.keyClicks(line, "50:10")
    error = form._rows["range"].error
    assert error.isVisible()
    assert error.problem == "Expected all, or a:b with a below b, such as 10:50"
    assert not told
    assert not form.is_valid
    with pytest.raises(InputError, match="range: Expected all"):
        form.config()
    with qtbot.waitSignal(form.validity_changed, check_params_cb=bool):
        form.set_config(SelfLabelConfig())
    assert not error.isVisible()


def test_an_error_in_the_fold_opens_it(qtbot: QtBot, show: Show) -> None:
    form = ConfigForm(SelfLabelConfig())
    show(form, 320, 900)
    width = form._rows["width"]
    assert not width.editor.native.isVisible()
    width.editor.native.setValue(17)
    assert width.error.isVisible()
    assert width.error.problem == "Should be a multiple of 8"


def test_what_people_need_is_shown_and_the_rest_folded(show: Show, qtbot: QtBot) -> None:
    form = ConfigForm(SelfLabelConfig())
    show(form, 320, 900)
    seen = {name for name, row in form._rows.items() if row.editor.native.isVisible()}
    assert seen == set(SelfLabelConfig.SIMPLE)
    qtbot.mouseClick(form.fold.button, Qt.MouseButton.LeftButton)
    assert all(row.editor.native.isVisible() for row in form._rows.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_simple_fields_exist_and_every_field_has_help(kind: type[MethodConfig], qtbot: QtBot) -> None:
    form = ConfigForm(kind())
    qtbot.addWidget(form)
    assert set(kind.SIMPLE) <= set(form._rows)
    for name, row in form._rows.items():
        description = kind.model_fields[name].description or ""
        assert description[:20] in row.editor.native.toolTip()
        assert row.label.buddy() is row.editor.native


def test_the_wheel_passes_over_a_field_without_focus(qtbot: QtBot, show: Show) -> None:
    form = ConfigForm(SelfLabelConfig())
    show(form, 320, 900)
    box = form._rows["rounds"].editor.native
    form._rows["range"].editor.native.setFocus()
    for change, expected in ((False, 3), (True, 4)):
        if change:
            box.setFocus()
        turn = QWheelEvent(
            QPointF(5, 5), box.mapToGlobal(QPointF(5, 5)), QPoint(), QPoint(0, 120), Qt.MouseButton.NoButton,
            Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase, False,
        )  # fmt: skip
        QApplication.sendEvent(box, turn)
        assert form.config().rounds == expected


def test_tab_goes_down_the_form(qtbot: QtBot, show: Show) -> None:
    form = ConfigForm(SelfLabelConfig())
    show(form, 320, 900)
    form._presets.setFocus()
    for name in SelfLabelConfig.SIMPLE:
        qtbot.keyClick(QApplication.focusWidget(), Qt.Key.Key_Tab)
        assert QApplication.focusWidget() is form._rows[name].editor.native
    qtbot.keyClick(QApplication.focusWidget(), Qt.Key.Key_Tab)
    assert QApplication.focusWidget() is form.fold.button


def test_set_config_is_silent_and_wants_its_class(qtbot: QtBot) -> None:
    form = ConfigForm(InterpolateConfig())
    qtbot.addWidget(form)
    with qtbot.assertNotEmitted(form.config_changed):
        form.set_config(InterpolateConfig(mode="nearest"))
    with pytest.raises(TypeError, match="InterpolateConfig"):
        form.set_config(SelfLabelConfig())


class OddConfig(MethodConfig):
    """A config as the next method may have one: no step, no bounds, a bool, a title, bounds that exclude."""

    PRESETS: ClassVar = {"default": {}, "big": {"count": 123456}}
    SIMPLE: ClassVar = ("count", "absent")

    count: int = 5000
    ratio: float = 1 / 3
    above: float = Field(0.5, gt=0.0, lt=1.0, title="Strictly between")
    use: bool = True
    kind: Literal["a", "b"] = "b"


def test_a_config_with_nothing_declared(qtbot: QtBot) -> None:
    form = ConfigForm(OddConfig())
    qtbot.addWidget(form)
    assert form.config() == OddConfig()
    form.choose_preset("big")
    assert form.config().count == 123456
    form._rows["above"].editor.native.setValue(0.0)
    assert form._rows["above"].error.problem == "Should be greater than 0"
    assert form._rows["above"].label.text() == "Strictly between"


@pytest.mark.parametrize(
    ("name", "title"),
    [("radius_px", "Radius (px)"), ("pool_mb", "Pool (MB)"), ("s", "S"), ("ema", "EMA"), ("in_slices", "In slices")],
)
def test_titles(name: str, title: str) -> None:
    assert field_title(name, SelfLabelConfig.model_fields["batch"]) == title


def test_pictures(show: Show, shoot: Shoot, theme: str, qtbot: QtBot) -> None:
    form = ConfigForm(SelfLabelConfig(rounds=5))
    window = show(form, 300, 280, theme)
    assert not shoot(window, "form-simple").isNull()
    form._rows["range"].editor.value = "50:10"
    form._rows["width"].editor.value = 17
    window.resize(300, 1180)
    qtbot.wait(50)
    shoot(window, "form-advanced")
    small = ConfigForm(InterpolateConfig())
    shoot(show(small, 260, 200, theme), "form-interpolate")


def _choose(qtbot: QtBot, box: QComboBox, text: str) -> None:
    """Choose an entry as a person with a keyboard does: its first letters."""
    box.setFocus()
    qtbot.keyClicks(box, text)
    if box.currentText() == text:
        box.textActivated.emit(text)
