"""The options of a selection: all of them can be said, and only what concerns the method is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from qtpy.QtWidgets import QComboBox, QLineEdit

from napari_slicelabel.engine.select import SELECTORS
from napari_slicelabel.engine.select.options import SelectOptions
from napari_slicelabel.errors import InputError
from napari_slicelabel.gui.select_options import SelectOptionsForm

if TYPE_CHECKING:
    from pytestqt.qtbot import QtBot


@pytest.fixture
def form(qtbot: QtBot) -> SelectOptionsForm:
    made = SelectOptionsForm()
    qtbot.addWidget(made)
    made.fold.set_open(True)
    made.show()
    return made


def shown(form: SelectOptionsForm) -> set[str]:
    return {name for name, editor in form.editors.items() if not editor.isHidden()}


def test_every_option_has_its_place_and_says_what_it_does(form: SelectOptionsForm) -> None:
    assert set(form.editors) == {*SelectOptions.model_fields, "volumes", "seed"}
    assert all(editor.toolTip() and editor.accessibleName() for editor in form.editors.values())


def test_untouched_it_says_nothing(form: SelectOptionsForm) -> None:
    assert form.options() == SelectOptions()
    assert (form.seed, form.all_volumes) == (0, False)


def test_what_is_typed_is_what_is_meant(form: SelectOptionsForm) -> None:
    texts = {"range": " 2:30 ", "skip": "z12, z4  v:z7", "encoder": "resnet18", "weights": "~/it.pth"}
    for name, text in texts.items():
        line = form.editors[name]
        assert isinstance(line, QLineEdit)
        line.setText(text)
    choices = {"cost": "area", "spread": "even", "damaged": "keep", "volumes": "all"}
    for name, value in choices.items():
        box = form.editors[name]
        assert isinstance(box, QComboBox)
        box.setCurrentIndex(box.findData(value))
    form.editors["reach"].setValue(0.5)  # type: ignore[attr-defined]
    form.editors["seed"].setValue(7)  # type: ignore[attr-defined]
    assert form.options() == SelectOptions(
        range="2:30",
        skip=("z12", "z4", "v:z7"),
        encoder="resnet18",
        weights="~/it.pth",
        cost="area",
        spread="even",
        damaged="keep",
        reach=0.5,
    )
    assert (form.seed, form.all_volumes) == (7, True)


@pytest.mark.parametrize(("name", "text"), [("range", "9:3"), ("skip", "12")])
def test_what_does_not_fit_is_told(form: SelectOptionsForm, name: str, text: str) -> None:
    told: list[bool] = []
    form.validity_changed.connect(told.append)
    line = form.editors[name]
    assert isinstance(line, QLineEdit)
    before = line.text()
    line.setText(text)
    assert text in form.problem.problem
    assert form.problem.isVisible()
    with pytest.raises(InputError, match=name):
        form.options()
    line.setText(before)
    assert not form.problem.isVisible()
    assert told == [False, True]


@pytest.mark.parametrize("method", SELECTORS)
def test_only_what_concerns_the_method_is_shown(form: SelectOptionsForm, method: str) -> None:
    form.show_for(method, "intensity", several_volumes=False)
    expected = {"range", "skip", "damaged"}
    if method != "interval":
        expected |= {"seed"}
    if method in ("representative", "mae"):
        expected |= {"reach", "cost", "spread"}
    assert shown(form) == expected
    form.show_for(method, "pretrained", several_volumes=True)
    assert shown(form) == expected | {"volumes"} | ({"encoder", "weights"} if method == "representative" else set())
