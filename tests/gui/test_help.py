"""What tells a person what things are for: tooltips in the docks, the keys in README.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtGui import QShortcut
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSlider,
    QAbstractSpinBox,
    QComboBox,
    QLineEdit,
    QProgressBar,
    QScrollBar,
    QWidget,
)

from napari_slicelabel.engine.methods import METHODS
from napari_slicelabel.gui.session import KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gui.conftest import Bench

    from napari_slicelabel.data.samples import Sample

INTERACTIVE = (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSlider,
    QAbstractSpinBox,
    QComboBox,
    QLineEdit,
    QProgressBar,
)


def interactive(top: QWidget) -> Iterator[QWidget]:
    """Yield what can be used, hidden or not."""
    for widget in top.findChildren(QWidget):
        if isinstance(widget, INTERACTIVE) and not isinstance(widget, QScrollBar):
            yield widget


def explained(widget: Any, top: QWidget) -> bool:
    """Whether the widget, or one that it is a part of (as a field is of a spin box), has a tooltip."""
    while widget is not None and widget is not top:
        if widget.toolTip():
            return True
        widget = widget.parentWidget()
    return False


def test_everything_that_can_be_used_has_a_tooltip(bench: Bench, stack: Sample) -> None:
    bench.start(stack.image)
    methods = bench.panel("PropagatePanel").method
    for index in range(methods.count()):
        methods.setCurrentIndex(index)
    bench.settle()
    without = [
        f"{type(widget).__name__} {getattr(widget, 'text', str)()!r} in {type(widget.parentWidget()).__name__}"
        for widget in interactive(bench.dock)
        if not explained(widget, bench.dock)
    ]
    assert not without, "\n".join(without)


def test_the_panel_says_what_is_known_of_each_method(bench: Bench, stack: Sample) -> None:
    bench.start(stack.image)
    panel = bench.panel("PropagatePanel")
    for index in range(panel.method.count()):
        panel.method.setCurrentIndex(index)
        method = METHODS[panel.method.currentData()]
        assert method.title in panel.known.text()
        assert method.known in panel.known.text()
        # what stands in the list can be read whole
        assert panel.method.fontMetrics().horizontalAdvance(panel.method.currentText()) < panel.method.width() - 30


GUI = Path(__file__).resolve().parents[2] / "src" / "napari_slicelabel" / "gui"
README = (GUI.parents[2] / "README.md").read_text(encoding="utf-8")
SPELLED = {"BracketLeft": "[", "BracketRight": "]", "Escape": "Esc", "Return": "Return", "Enter": "Return"}


def documented_keys() -> set[str]:
    """Return the keys in the two tables of README.md."""
    short, by_place = README.partition("| key | |")[2].partition("| where | key | |")[::2]
    cells = [row.split("|")[1] for row in short.splitlines() if row.startswith("| ")]
    cells += [row.split("|")[2] for row in by_place.partition("\n## ")[0].splitlines() if row.startswith("| ")]
    return {key.strip() for cell in cells for key in cell.split(",")}


def test_readme_has_every_key_of_the_canvas() -> None:
    keys = {key.replace("Control", "Ctrl").replace("-", "+") for key, _ in KEYS}
    assert keys <= documented_keys()


def test_readme_has_every_key_that_a_widget_hears() -> None:
    source = "\n".join(path.read_text("utf-8") for path in GUI.rglob("*.py"))
    named = {SPELLED.get(name, name) for name in re.findall(r"Qt\.Key\.Key_(\w+)", source)}
    assert len(named) > 8
    assert named <= documented_keys()


def test_readme_has_every_shortcut_of_the_dock(bench: Bench) -> None:
    keys = {shortcut.key().toString() for shortcut in bench.dock.findChildren(QShortcut)}
    assert len(keys) > 8
    assert keys <= documented_keys()


def test_readme_has_no_key_that_does_nothing(bench: Bench, stack: Sample) -> None:
    bench.start(stack.image)
    own = {key.replace("Control", "Ctrl").replace("-", "+") for key, _ in KEYS}
    elsewhere = set(SPELLED.values()) | {"Left", "Right", "PageUp", "PageDown", "Home", "End", "Space", "1 to 9"}
    assert documented_keys() - own - elsewhere == {"-", "="}
    for key, value in (("=", 2), ("-", 1)):
        bench.press(key)
        assert bench.session.labels.selected_label == value
