from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt

from napari_slicelabel.gui.coverage_curve import CoverageCurve
from napari_slicelabel.gui.slice_list import ProposedSlice, SliceList, to_pixmap

if TYPE_CHECKING:
    from pytestqt.qtbot import QtBot

    from conftest import Shoot, Show
    from napari_slicelabel.gui.slice_list import SliceKey

SLICES = (
    ProposedSlice("stack", "z", 42, "complete", 0.41),
    ProposedSlice("stack", "z", 7, "painting", 0.58),
    ProposedSlice("stack", "z", 88, "skipped", 0.66),
    ProposedSlice("stack", "y", 120, "proposed", 0.73),
    ProposedSlice("stack", "x", 5, "proposed", 0.78),
)
LONG = tuple(ProposedSlice("stack", "z", index) for index in range(500))


def picture(seed: int) -> np.ndarray:
    """Blobs on grey."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    image = np.full((64, 64), 150.0)
    for cy, cx, r in rng.uniform([0, 0, 4], [64, 64, 14], (7, 3)):
        image[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = rng.uniform(30, 230)
    return np.clip(image + rng.normal(0, 10, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def slice_list(show: Show) -> SliceList:
    widget = SliceList()
    widget.set_slices(SLICES)
    show(widget, 280, 380)
    return widget


def row_place(widget: SliceList, row: int) -> QPoint:
    return widget.view.visualRect(widget.model.index(row)).center()


def click(qtbot: QtBot, widget: SliceList, row: int) -> None:
    qtbot.mouseClick(widget.view.viewport(), Qt.MouseButton.LeftButton, pos=row_place(widget, row))


def test_click_goes_there_each_time(qtbot: QtBot, slice_list: SliceList) -> None:
    for _ in range(2):
        with qtbot.waitSignal(slice_list.slice_chosen) as told:
            click(qtbot, slice_list, 3)
        assert told.args == ["stack", "y", 120]


def test_arrows_and_return(qtbot: QtBot, slice_list: SliceList) -> None:
    slice_list.set_current("stack", "z", 42)
    with qtbot.waitSignal(slice_list.slice_chosen) as told:
        qtbot.keyClick(slice_list.view, Qt.Key.Key_Down)
    assert told.args == ["stack", "z", 7]
    with qtbot.waitSignal(slice_list.slice_chosen) as told:
        qtbot.keyClick(slice_list.view, Qt.Key.Key_Return)
    assert told.args == ["stack", "z", 7]


def test_next_goes_round_over_what_waits(qtbot: QtBot, slice_list: SliceList) -> None:
    seen = []
    slice_list.slice_chosen.connect(lambda *key: seen.append(key[2]))
    slice_list.view.setFocus()
    qtbot.mouseClick(slice_list.next_button, Qt.MouseButton.LeftButton)
    for _ in range(3):
        qtbot.keyClick(slice_list.view, Qt.Key.Key_N)
    assert seen == [7, 120, 5, 7]
    slice_list.set_slices([replace(item, status="complete") for item in SLICES])
    assert not slice_list.next_button.isEnabled()


def test_skip_and_take_back(qtbot: QtBot, slice_list: SliceList) -> None:
    click(qtbot, slice_list, 3)
    slice_list.view.setFocus()
    with qtbot.waitSignal(slice_list.slice_skipped) as told:
        qtbot.keyClick(slice_list.view, Qt.Key.Key_S)
    assert told.args == ["stack", "y", 120, True]
    slice_list.set_slices((*SLICES[:3], replace(SLICES[3], status="skipped"), SLICES[4]))
    assert slice_list.current == replace(SLICES[3], status="skipped")  # still chosen
    assert slice_list.skip_button.text() == "Take back (S)"
    with qtbot.waitSignal(slice_list.slice_skipped) as told:
        qtbot.mouseClick(slice_list.skip_button, Qt.MouseButton.LeftButton)
    assert told.args == ["stack", "y", 120, False]


def test_what_is_complete_cannot_be_skipped(qtbot: QtBot, slice_list: SliceList) -> None:
    click(qtbot, slice_list, 0)
    assert not slice_list.skip_button.isEnabled()
    with qtbot.assertNotEmitted(slice_list.slice_skipped):
        qtbot.keyClick(slice_list.view, Qt.Key.Key_S)


def test_the_focus_alone_chooses_nothing(qtbot: QtBot, slice_list: SliceList) -> None:
    slice_list.view.setFocus()
    with qtbot.assertNotEmitted(slice_list.slice_skipped):
        qtbot.keyClick(slice_list.view, Qt.Key.Key_S)
    assert slice_list.current is None


def test_a_new_order_keeps_the_choice(qtbot: QtBot, slice_list: SliceList) -> None:
    click(qtbot, slice_list, 1)
    with qtbot.assertNotEmitted(slice_list.slice_chosen):
        slice_list.set_slices(SLICES[::-1])
    assert slice_list.current == SLICES[1]
    slice_list.set_slices(SLICES[2:])
    assert slice_list.current is None
    slice_list.set_slices(())


def test_thumbnails_are_asked_for_once_and_only_where_seen(qtbot: QtBot, show: Show) -> None:
    widget = SliceList()
    asked: list[SliceKey] = []
    widget.thumbnails_wanted.connect(lambda keys: asked.extend(keys))
    widget.set_slices(LONG)
    show(widget, 280, 380)
    qtbot.waitUntil(lambda: bool(asked))
    first = len(asked)
    assert 4 <= first <= 9
    assert asked[0] == ("stack", "z", 0)
    for key in asked:
        widget.set_thumbnail(key, picture(key[2]))
    assert len(widget.model.thumbnails) == first
    widget.view.scrollToBottom()
    qtbot.waitUntil(lambda: ("stack", "z", 499) in asked)
    assert len(asked) <= 2 * first + 2
    widget.view.scrollToTop()
    qtbot.wait(120)
    assert len(asked) == len(set(asked))
    widget.set_slices(LONG[:3])
    assert len(widget.model.thumbnails) == 3
    widget.set_thumbnail(("gone", "z", 1), picture(0))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_pictures_of_odd_width_are_not_sheared(shape: tuple[int, ...], qtbot: QtBot) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    image = to_pixmap(array).toImage()
    for y in range(5):
        for x in range(7):
            rgb = np.array(image.pixelColor(x, y).getRgb()[:3])
            assert np.abs(rgb - array[y, x].astype(int)).max() <= 8  # a display of 16 bits rounds


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)])
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        to_pixmap(array)


def test_the_row_says_it_all(slice_list: SliceList) -> None:
    tip = slice_list.model.data(slice_list.model.index(1), Qt.ItemDataRole.ToolTipRole)
    assert tip == "Rank 2: z 7, painting; with those before it stands for 58% of the volume"
    slice_list.set_slices((SLICES[0], ProposedSlice("other", "z", 3)))
    assert slice_list.model.data(slice_list.model.index(1)) == "other z 3"


def test_pictures(qtbot: QtBot, show: Show, shoot: Shoot, theme: str) -> None:
    widget = SliceList()
    widget.set_slices(SLICES)
    widget.thumbnails_wanted.connect(lambda keys: [widget.set_thumbnail(key, picture(key[2])) for key in keys[:4]])
    widget.set_current("stack", "y", 120)
    window = show(widget, 280, 350, theme)
    qtbot.waitUntil(lambda: len(widget.model.thumbnails) == 4)
    shoot(window, "slices")
    two = SliceList()
    two.set_slices((*SLICES, ProposedSlice("a_volume_with_a_long_name", "z", 12345)))
    shoot(show(two, 230, 380, theme), "slices-narrow")
    shoot(show(SliceList(), 260, 200, theme), "slices-empty")


COVERAGE = tuple(1 - 0.62 ** (k**0.8) for k in range(1, 31))


@pytest.fixture
def curve(show: Show) -> CoverageCurve:
    curve = CoverageCurve()
    curve.set_coverage(COVERAGE, 12, 4)
    show(curve, 280)
    return curve


def test_click_chooses_the_budget(qtbot: QtBot, curve: CoverageCurve) -> None:
    for number in (20, 30, 1):
        place = curve._axes().point(number, 0.5).toPoint()
        with qtbot.waitSignal(curve.budget_chosen) as told:
            qtbot.mouseClick(curve, Qt.MouseButton.LeftButton, pos=place)
        assert told.args == [number]
    with qtbot.assertNotEmitted(curve.budget_chosen):
        qtbot.mouseClick(curve, Qt.MouseButton.LeftButton, pos=QPoint(0, 50))


def test_arrows_choose_the_budget(qtbot: QtBot, curve: CoverageCurve) -> None:
    with qtbot.waitSignal(curve.budget_chosen) as told:
        qtbot.keyClick(curve, Qt.Key.Key_Right)
    assert told.args == [13]
    assert curve.summary == f"13 slices: {COVERAGE[12]:.0%} of the volume"
    curve.set_coverage(COVERAGE[:1], 5)
    assert curve.summary.startswith("1 slice: ")


def test_no_coverage_no_click(qtbot: QtBot, show: Show) -> None:
    curve = CoverageCurve()
    show(curve, 280)
    with qtbot.assertNotEmitted(curve.budget_chosen):
        qtbot.mouseClick(curve, Qt.MouseButton.LeftButton)
        qtbot.keyClick(curve, Qt.Key.Key_Right)


def test_pictures_of_coverage(show: Show, shoot: Shoot, theme: str) -> None:
    for name, coverage, budget, done, width in (
        ("", COVERAGE, 12, 4, 280),
        ("-few", COVERAGE[:3], 3, 0, 220),
        ("-none", (), 5, 0, 280),
    ):
        curve = CoverageCurve()
        curve.set_coverage(coverage, budget, done)
        shoot(show(curve, width, None, theme), f"coverage{name}")
