"""What holds for all widgets: they follow a change of theme, and their docstrings' examples are true."""

from __future__ import annotations

import doctest
import importlib
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from napari.qt import get_stylesheet
from qtpy.QtGui import QColor
from skimage.color import deltaE_ciede2000, rgb2lab

from napari_slicelabel.engine.methods.self_label import SelfLabelConfig
from napari_slicelabel.gui.class_table import ClassRow, ClassTable
from napari_slicelabel.gui.coverage_curve import CoverageCurve
from napari_slicelabel.gui.curve_plot import CurvePlot
from napari_slicelabel.gui.forms import ConfigForm
from napari_slicelabel.gui.review_queue import ReviewItem, ReviewQueue
from napari_slicelabel.gui.slice_list import ProposedSlice, SliceList
from napari_slicelabel.gui.slice_strip import SliceStatus, SliceStrip, StripSnapshot
from napari_slicelabel.gui.theme import Theme, contrast, mix

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytestqt.qtbot import QtBot
    from qtpy.QtWidgets import QWidget

    from conftest import Show


def form() -> QWidget:
    widget = ConfigForm(SelfLabelConfig())
    widget._rows["range"].editor.value = "9:1"
    return widget


def strip() -> QWidget:
    widget = SliceStrip()
    status = np.array([SliceStatus.PREDICTED, SliceStatus.STALE, SliceStatus.COMPLETE, 0] * 8, np.uint8)
    widget.set_snapshot(StripSnapshot("z", status, np.linspace(0, 1, 32), current=3, span=(2, 30)))
    return widget


def class_table() -> QWidget:
    widget = ClassTable()
    widget.set_classes([ClassRow(1, "mitochondria", "#e69f00"), ClassRow(2, "membrane", "#56b4e9")])
    widget._remove.click()
    return widget


def slice_list() -> QWidget:
    widget = SliceList()
    widget.set_slices([ProposedSlice("a", "z", 3), ProposedSlice("a", "z", 4, "complete", 0.4)])
    return widget


def coverage() -> QWidget:
    widget = CoverageCurve()
    widget.set_coverage([0.3, 0.5, 0.6], 2, 1)
    return widget


def queue() -> QWidget:
    widget = ReviewQueue()
    widget.set_items([ReviewItem("a", "z", 3, 0.5, 2.0), ReviewItem("a", "z", 4, 0.5, 2.0, "flagged")])
    return widget


def plot() -> QWidget:
    widget = CurvePlot()
    widget.set_points([(1, 0.5), (2, 0.4)], [(1, 0.7)])
    return widget


ALL = [form, strip, class_table, slice_list, coverage, queue, plot]


@pytest.mark.parametrize("make", ALL)
def test_a_widget_follows_a_change_of_theme(make: Callable[[], QWidget], show: Show, qtbot: QtBot) -> None:
    changed, fresh = show(make(), 320, 330, "dark"), show(make(), 320, 330, "light")
    before = changed.grab().toImage()
    changed.setStyleSheet(get_stylesheet("light"))
    qtbot.wait(30)
    assert changed.grab().toImage() != before
    # keyboard focus draws a cursor or a frame in one of the two windows only
    for window in (changed, fresh):
        focused = window.focusWidget()
        if focused is not None:
            focused.clearFocus()
    qtbot.wait(30)
    assert changed.grab().toImage() == fresh.grab().toImage()


# Machado, Oliveira and Fernandes (IEEE TVCG 15(6), 2009), full severity, on linear red, green, blue.
SEEN_BY = {
    "normal": np.eye(3),
    "deuteranope": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "protanope": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "tritanope": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def seen(color: QColor, matrix: np.ndarray) -> np.ndarray:
    """The colour as a person sees it, in Lab."""
    rgb = np.array(color.getRgb()[:3]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    left = np.clip(np.asarray(matrix) @ linear, 0, 1)
    return rgb2lab(np.where(left <= 0.0031308, left * 12.92, 1.055 * left ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize("person", SEEN_BY)
def test_the_colours_of_the_strip_can_be_told_apart(person: str, theme: str, show: Show) -> None:
    widget = SliceStrip()
    show(widget, 300, None, theme)
    used = Theme.of(widget)
    colors = (used.human, used.predicted, used.reviewed, used.stale, used.base)
    for first, second in combinations(colors, 2):
        assert deltaE_ciede2000(seen(first, SEEN_BY[person]), seen(second, SEEN_BY[person])) > 11
    assert all(contrast(color, used.background) >= 3 for color in colors[:4])
    assert all(contrast(color, used.background) >= 4.5 for color in (used.text, used.muted, used.warning))


def test_mix_and_contrast() -> None:
    black, white = QColor("#000000"), QColor("#ffffff")
    assert mix(black, white, 0.5).name() == "#808080"
    assert contrast(black, white) == pytest.approx(21)
    assert contrast(white, black) == pytest.approx(21)
    assert contrast(white, white) == 1


@pytest.mark.parametrize("name", ["forms", "axes"])
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"napari_slicelabel.gui.{name}"))
    assert result.attempted
    assert result.failed == 0
