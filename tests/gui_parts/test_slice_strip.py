from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QHelpEvent, QMouseEvent
from qtpy.QtWidgets import QApplication, QToolTip

from napari_slicelabel.gui.slice_strip import SliceStatus, SliceStrip, StripSnapshot
from napari_slicelabel.gui.strip_snapshot import LABEL_RANKS, Label, columns
from napari_slicelabel.gui.theme import Theme

if TYPE_CHECKING:
    from pytestqt.qtbot import QtBot

    from conftest import Shoot, Show

NONE, PARTLY, COMPLETE = SliceStatus.NONE, SliceStatus.PARTLY, SliceStatus.COMPLETE
PROPOSED, PREDICTED = SliceStatus.PROPOSED, SliceStatus.PREDICTED
REVIEWED, STALE = SliceStatus.REVIEWED, SliceStatus.STALE


def snapshot(status: list[int], confidence: list[float] | None = None, **more: object) -> StripSnapshot:
    given_or_none = [np.nan] * len(status) if confidence is None else confidence
    return StripSnapshot("z", np.array(status, np.uint8), np.array(given_or_none, np.float32), **more)


def stack(depth: int) -> StripSnapshot:
    """A stack in the middle of its work, every slice of it predicted, reviewed, stale or not yet reached."""
    rng = np.random.default_rng(0)
    status = np.full(depth, PREDICTED, np.uint8)
    status[: depth // 5] |= REVIEWED
    status[depth * 7 // 10 : depth * 8 // 10] |= STALE
    status[depth * 9 // 10 :] = NONE
    painted = np.linspace(0, depth - 1, 9).astype(int)[1:-1]
    status[painted] |= COMPLETE
    status[depth * 11 // 20] |= PARTLY
    status[[depth * 93 // 100, depth * 97 // 100]] |= PROPOSED
    distance = np.abs(np.arange(depth)[:, None] - painted).min(1) / depth
    confidence = np.clip(0.97 - 5 * distance + rng.normal(0, 0.01, depth), 0, 1).astype(np.float32)
    confidence[status == NONE] = np.nan
    origins = ["round 2" if flag & PREDICTED else "" for flag in status]
    return StripSnapshot("z", status, confidence, depth // 3, (depth // 20, depth * 19 // 20), frozenset(), origins)


@pytest.fixture
def strip(show: Show) -> SliceStrip:
    """A strip of 100 slices, ten pixels for each."""
    strip = SliceStrip()
    strip.set_snapshot(snapshot([NONE] * 100))
    show(strip, 1036, 100)
    assert strip._geometry.lanes.width() == 1000
    return strip


def place(strip: SliceStrip, index: int, offset: int = 0) -> QPoint:
    return QPoint(round(strip.x_of(index)) + offset, round(strip._geometry.lanes.center().y()))


def drag(qtbot: QtBot, strip: SliceStrip, start: QPoint, stop: QPoint, *, release: bool = True) -> None:
    qtbot.mousePress(strip, Qt.MouseButton.LeftButton, pos=start)
    for share in (0.3, 0.6, 1.0):
        there = start + (stop - start) * share
        event = QMouseEvent(
            QEvent.Type.MouseMove, QPointF(there), strip.mapToGlobal(QPointF(there)), Qt.MouseButton.NoButton,
            Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier,
        )  # fmt: skip
        QApplication.sendEvent(strip, event)
    if release:
        qtbot.mouseRelease(strip, Qt.MouseButton.LeftButton, pos=stop)


def test_columns_show_the_worst() -> None:
    status = [COMPLETE, PREDICTED, PREDICTED, REVIEWED | PREDICTED, STALE, PREDICTED, PROPOSED, PARTLY]
    shown = columns(snapshot(status, [1.0, 0.5, np.nan, 0.9, np.nan, np.nan, 0.2, 0.6]), 4)
    assert shown.labels.tolist() == [2, 2, 4, 3]  # predicted, predicted, stale, missing
    assert shown.marks.tolist() == [1, 0, 0, 3]  # complete, nothing, nothing, proposed before begun
    np.testing.assert_allclose(shown.mean, [0.75, 0.9, np.nan, 0.4], rtol=1e-6)
    np.testing.assert_allclose(shown.low, [0.5, 0.9, np.nan, 0.2], rtol=1e-6)


@given(
    status=st.lists(st.integers(0, 63), min_size=1, max_size=60),
    width=st.integers(1, 90),
    seed=st.integers(0, 9),
)
def test_columns_are_the_plain_loop(status: list[int], width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence = np.where(rng.random(len(status)) < 0.3, np.nan, rng.random(len(status))).tolist()
    quick, single = columns(snapshot(status, confidence), width), columns(snapshot(status, confidence), len(status))
    for column in range(width):
        first = column * len(status) // width
        last = max(first + 1, (column + 1) * len(status) // width)
        assert quick.labels[column] == single.labels[first:last].max()
        assert quick.marks[column] == single.marks[first:last].max()
        known = [c for c in np.float32(confidence[first:last]).tolist() if np.isfinite(c)]
        np.testing.assert_allclose(quick.mean[column], np.mean(known) if known else np.nan)
        np.testing.assert_allclose(quick.low[column], min(known, default=np.nan))


def test_click_jumps(qtbot: QtBot, strip: SliceStrip) -> None:
    for index in (0, 42, 99):
        with qtbot.waitSignal(strip.slice_chosen, check_params_cb=lambda given, index=index: given == index):
            qtbot.mouseClick(strip, Qt.MouseButton.LeftButton, pos=place(strip, index))
        assert strip.snapshot.current == index


def test_drag_sets_the_range(qtbot: QtBot, strip: SliceStrip) -> None:
    with qtbot.assertNotEmitted(strip.slice_chosen), qtbot.waitSignal(strip.range_changed) as told:
        drag(qtbot, strip, place(strip, 60), place(strip, 20))
    assert told.args == [20, 61]


def test_brackets_can_be_dragged_but_not_past_each_other(qtbot: QtBot, strip: SliceStrip) -> None:
    strip.set_snapshot(snapshot([NONE] * 100, span=(20, 60)))
    edge = QPoint(round(strip._geometry.edge(20)), 40)
    with qtbot.waitSignal(strip.range_changed) as told:
        drag(qtbot, strip, edge, place(strip, 30, -4))
    assert told.args == [30, 60]
    edge = QPoint(round(strip._geometry.edge(60)), 40)
    with qtbot.waitSignal(strip.range_changed) as told:
        drag(qtbot, strip, edge, place(strip, 3))
    assert told.args == [30, 31]
    with qtbot.waitSignal(strip.range_changed) as told:
        drag(qtbot, strip, QPoint(round(strip._geometry.edge(31)), 40), QPoint(5000, 40))
    assert told.args == [30, 100]


def test_escape_gives_up_a_drag_then_the_range(qtbot: QtBot, strip: SliceStrip) -> None:
    strip.set_snapshot(snapshot([NONE] * 100, span=(20, 60)))
    with qtbot.assertNotEmitted(strip.range_changed):
        drag(qtbot, strip, place(strip, 70), place(strip, 80), release=False)
        assert strip.snapshot.span == (70, 81)
        qtbot.keyClick(strip, Qt.Key.Key_Escape)
        qtbot.mouseRelease(strip, Qt.MouseButton.LeftButton, pos=place(strip, 80))
    assert strip.snapshot.span == (20, 60)
    with qtbot.waitSignal(strip.range_changed) as told:
        qtbot.keyClick(strip, Qt.Key.Key_Escape)
    assert told.args == [0, 100]


def test_news_of_a_run_do_not_disturb_a_drag(qtbot: QtBot, strip: SliceStrip) -> None:
    drag(qtbot, strip, place(strip, 70), place(strip, 80), release=False)
    strip.set_snapshot(snapshot([PREDICTED] * 100, span=(20, 60)))
    assert strip.snapshot.span == (70, 81)
    with qtbot.waitSignal(strip.range_changed) as told:
        qtbot.mouseRelease(strip, Qt.MouseButton.LeftButton, pos=place(strip, 80))
    assert told.args == [70, 81]
    drag(qtbot, strip, place(strip, 10), place(strip, 15), release=False)
    strip.set_snapshot(snapshot([PREDICTED] * 12))
    with qtbot.assertNotEmitted(strip.range_changed):  # it was about another stack
        qtbot.mouseRelease(strip, Qt.MouseButton.LeftButton, pos=place(strip, 3))


def test_alt_click_toggles_a_stop(qtbot: QtBot, strip: SliceStrip) -> None:
    for is_set in (True, False):
        with qtbot.assertNotEmitted(strip.slice_chosen), qtbot.waitSignal(strip.stop_toggled) as told:
            qtbot.mouseClick(strip, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.AltModifier, pos=place(strip, 33))
        assert told.args == [33, is_set]
        assert (33 in strip.snapshot.stops) == is_set


@pytest.mark.parametrize(
    ("key", "modifier", "expected"),
    [
        (Qt.Key.Key_Left, None, 49),
        (Qt.Key.Key_Right, None, 51),
        (Qt.Key.Key_PageUp, None, 40),
        (Qt.Key.Key_PageDown, None, 60),
        (Qt.Key.Key_Home, None, 0),
        (Qt.Key.Key_End, None, 99),
        (Qt.Key.Key_Right, Qt.KeyboardModifier.ControlModifier, 70),
        (Qt.Key.Key_Left, Qt.KeyboardModifier.ControlModifier, 10),
    ],
)
def test_keys_move(
    key: Qt.Key, modifier: Qt.KeyboardModifier | None, expected: int, qtbot: QtBot, strip: SliceStrip
) -> None:
    status = [NONE] * 100
    status[10], status[70] = PROPOSED, COMPLETE
    strip.set_snapshot(snapshot(status, current=50))
    with qtbot.waitSignal(strip.slice_chosen) as told:
        qtbot.keyClick(strip, key, modifier or Qt.KeyboardModifier.NoModifier)
    assert told.args == [expected]


def test_keys_set_range_and_stop(qtbot: QtBot, strip: SliceStrip) -> None:
    strip.set_snapshot(snapshot([NONE] * 100, current=50))
    with qtbot.waitSignal(strip.range_changed) as told:
        qtbot.keyClick(strip, Qt.Key.Key_BracketLeft)
    assert told.args == [50, 100]
    strip.set_current(80)
    with qtbot.waitSignal(strip.range_changed) as told:
        qtbot.keyClick(strip, Qt.Key.Key_BracketRight)
    assert told.args == [50, 81]
    with qtbot.waitSignal(strip.stop_toggled) as told:
        qtbot.keyClick(strip, Qt.Key.Key_S)
    assert told.args == [80, True]


def test_menu_says_what_the_mouse_does(qtbot: QtBot, strip: SliceStrip) -> None:
    menu = strip.menu_for(12)
    actions = {action.text().split("\t")[0]: action for action in menu.actions()}
    with qtbot.waitSignal(strip.slice_chosen, check_params_cb=lambda index: index == 12):
        actions["Go to z 12"].trigger()
    with qtbot.waitSignal(strip.range_changed, check_params_cb=lambda *span: span == (12, 100)):
        actions["Begin the range at z 12"].trigger()
    with qtbot.waitSignal(strip.stop_toggled, check_params_cb=lambda *stop: stop == (12, True)):
        actions["Stop at z 12"].trigger()
    assert "Remove the stop at z 12" in strip.menu_for(12).actions()[1].text()


def test_tool_tips(qtbot: QtBot, strip: SliceStrip) -> None:
    status = [PREDICTED | STALE] * 100
    strip.set_snapshot(StripSnapshot("z", np.array(status, np.uint8), np.full(100, 0.834), origins=["round 3"] * 100))
    where = place(strip, 7)
    QApplication.sendEvent(strip, QHelpEvent(QEvent.Type.ToolTip, where, strip.mapToGlobal(where)))
    assert QToolTip.text() == "z 7: predicted, stale (painted since), by round 3, expected Dice 0.83"
    QToolTip.hideText()
    many = stack(100_000)
    strip.set_snapshot(many)
    tip = strip.tip_at(strip.x_of(50_000), 40)
    assert tip.startswith("z 50000-50099: ")
    assert "100 predicted, expected Dice 0." in tip
    assert "reviewed" in strip.tip_at(20, 2)
    assert strip.accessibleDescription().startswith("z 33333: predicted")


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 999, 100_000])
def test_every_place_belongs_to_a_slice(depth: int, strip: SliceStrip) -> None:
    strip.set_snapshot(stack(depth) if depth > 20 else snapshot([PREDICTED] * depth, [0.5] * depth))
    strip.repaint()
    found = [strip.slice_at(x) for x in range(-5, strip.width() + 5)]
    assert found[0] == 0
    assert found[-1] == depth - 1
    assert found == sorted(found)
    for index in {0, depth // 2, depth - 1}:
        assert strip.slice_at(strip.x_of(index)) == index


def test_nonsense_is_refused(strip: SliceStrip) -> None:
    with pytest.raises(ValueError, match="at least one"):
        strip.set_snapshot(snapshot([]))
    with pytest.raises(ValueError, match="one per slice"):
        snapshot([0, 0], [0.5])


def test_colours_are_where_the_slices_are(show: Show, shoot: Shoot, theme: str) -> None:
    strip = SliceStrip()
    strip.set_snapshot(snapshot([PREDICTED] * 10 + [REVIEWED] * 10 + [COMPLETE] * 10 + [NONE] * 10))
    show(strip, 436, 100, theme)
    image = strip.grab().toImage()
    colors = Theme.of(strip)
    y = int(strip._geometry.label_lane.bottom() - 2)
    for index, color in ((5, colors.predicted), (15, colors.reviewed), (25, colors.human), (35, colors.base)):
        pixel = image.pixelColor(round(strip.x_of(index)), y)
        # a display of 16 bits rounds
        assert max(abs(a - b) for a, b in zip(pixel.getRgb(), color.getRgb(), strict=True)) <= 8


@pytest.mark.parametrize(("depth", "width"), [(12, 560), (100, 1000), (1000, 700), (100_000, 1000), (100, 320)])
def test_pictures(depth: int, width: int, show: Show, shoot: Shoot, theme: str) -> None:
    strip = SliceStrip()
    given = stack(depth)
    stops = frozenset({depth * 17 // 20})
    strip.set_snapshot(StripSnapshot(
        "z", given.status, given.confidence, given.current, given.span, stops, given.origins
    ))  # fmt: skip
    shoot(show(strip, width, None, theme), f"strip-{depth}-{width}")


def test_what_was_accepted_is_told_from_what_was_painted() -> None:
    assert LABEL_RANKS[PREDICTED | REVIEWED | COMPLETE] == Label.CHECKED
    assert LABEL_RANKS[PREDICTED | COMPLETE] == Label.PAINTED
