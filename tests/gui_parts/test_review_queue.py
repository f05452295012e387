from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from qtpy.QtCore import QPoint, Qt

from napari_slicelabel.gui.review_queue import ReviewItem, ReviewKeys, ReviewQueue

if TYPE_CHECKING:
    from pytestqt.qtbot import QtBot

    from conftest import Shoot, Show

ITEMS = (
    ReviewItem("stack", "z", 31, 0.42, 12.4, "corrected"),
    ReviewItem("stack", "z", 77, 0.55, 9.1),
    ReviewItem("stack", "z", 5, 0.61, 4.25, "flagged"),
    ReviewItem("stack", "z", 60, 0.74, 1.06),
    ReviewItem("stack", "z", 12, 0.93, 0.034, "accepted"),
    ReviewItem("stack", "z", 99),
)


@pytest.fixture
def queue(show: Show) -> ReviewQueue:
    """A queue whose owner does what the user decides."""
    queue = ReviewQueue()
    queue.set_items(ITEMS)

    def decide(state: str, key: tuple[str, str, int]) -> None:
        queue.set_items([replace(i, state=state) if i.key == key else i for i in queue.model.items])

    queue.slice_accepted.connect(lambda *key: decide("accepted", key))
    queue.slice_corrected.connect(lambda *key: decide("corrected", key))
    queue.slice_flagged.connect(lambda *key: decide("flagged", key))
    show(queue, 300, 320)
    return queue


def place(queue: ReviewQueue, row: int) -> QPoint:
    return queue.table.visualRect(queue.model.index(row, 0)).center()


def states(queue: ReviewQueue) -> list[str]:
    return [item.state for item in queue.model.items]


def test_click_goes_there_each_time(qtbot: QtBot, queue: ReviewQueue) -> None:
    for _ in range(2):
        with qtbot.waitSignal(queue.slice_chosen) as told:
            qtbot.mouseClick(queue.table.viewport(), Qt.MouseButton.LeftButton, pos=place(queue, 3))
        assert told.args == ["stack", "z", 60]


def test_j_and_k_walk_and_stop_at_the_ends(qtbot: QtBot, queue: ReviewQueue) -> None:
    seen: list[int] = []
    queue.slice_chosen.connect(lambda *key: seen.append(key[2]))
    queue.table.setFocus()
    for key in "jjjkkkj":
        qtbot.keyClicks(queue.table, key)
    assert seen == [31, 77, 5, 77, 31, 77]
    qtbot.keyClick(queue.table, Qt.Key.Key_Down)
    assert seen[-1] == 5
    queue.set_current("stack", "z", 99)
    assert not queue.next_button.isEnabled()
    assert queue.previous_button.isEnabled()


def test_accept_goes_on_to_what_is_to_do(qtbot: QtBot, queue: ReviewQueue) -> None:
    queue.set_current("stack", "z", 77)
    queue.table.setFocus()
    with qtbot.waitSignals([queue.slice_accepted, queue.slice_chosen]):
        qtbot.keyClicks(queue.table, "a")
    assert states(queue)[1] == "accepted"
    assert queue.current == ITEMS[3]
    with qtbot.waitSignal(queue.slice_accepted) as told:
        qtbot.mouseClick(queue.accept_button, Qt.MouseButton.LeftButton)
    assert told.args == ["stack", "z", 60]
    assert queue.current == ITEMS[5]
    with qtbot.assertNotEmitted(queue.slice_chosen):
        qtbot.keyClicks(queue.table, "a")  # nothing is left to do
    assert queue.summary.text() == "5 of 6 reviewed, 1 flagged"


def test_flag_goes_on_and_round(qtbot: QtBot, queue: ReviewQueue) -> None:
    queue.set_current("stack", "z", 99)
    queue.table.setFocus()
    with qtbot.waitSignal(queue.slice_flagged) as told:
        qtbot.keyClicks(queue.table, "g")
    assert told.args == ["stack", "z", 99]
    assert queue.current == ITEMS[1]


def test_correct_stays(qtbot: QtBot, queue: ReviewQueue) -> None:
    queue.set_current("stack", "z", 77)
    queue.table.setFocus()
    with qtbot.assertNotEmitted(queue.slice_chosen), qtbot.waitSignal(queue.slice_corrected) as told:
        qtbot.keyClicks(queue.table, "c")
    assert told.args == ["stack", "z", 77]
    assert queue.current == replace(ITEMS[1], state="corrected")


def test_the_owner_may_take_the_slice_out_at_once(qtbot: QtBot, show: Show) -> None:
    queue = ReviewQueue()
    queue.set_items(ITEMS)
    queue.slice_accepted.connect(lambda *key: queue.set_items([item for item in queue.model.items if item.key != key]))
    show(queue, 300, 320)
    queue.set_current("stack", "z", 77)
    with qtbot.waitSignal(queue.slice_chosen) as told:
        qtbot.mouseClick(queue.accept_button, Qt.MouseButton.LeftButton)
    assert told.args == ["stack", "z", 60]


def test_nothing_chosen_nothing_decided(qtbot: QtBot, queue: ReviewQueue) -> None:
    assert not queue.accept_button.isEnabled()
    queue.table.setFocus()
    with qtbot.assertNotEmitted(queue.slice_accepted):
        qtbot.keyClicks(queue.table, "a")
    queue.set_items(())
    assert queue.summary.text().startswith("Nothing to review yet")


def test_a_new_order_keeps_the_choice_in_silence(qtbot: QtBot, queue: ReviewQueue) -> None:
    queue.set_current("stack", "z", 60)
    with qtbot.assertNotEmitted(queue.slice_chosen):
        queue.set_items(ITEMS[::-1])
    assert queue.current == ITEMS[3]


def test_other_keys(qtbot: QtBot, show: Show) -> None:
    queue = ReviewQueue(ReviewKeys(accept="W"))
    queue.set_items(ITEMS)
    show(queue, 300, 320)
    assert queue.accept_button.text() == "Accept (W)"
    queue.set_current("stack", "z", 77)
    queue.table.setFocus()
    with qtbot.waitSignal(queue.slice_accepted):
        qtbot.keyClicks(queue.table, "w")


def test_the_cells(queue: ReviewQueue) -> None:
    texts = [[queue.model.data(queue.model.index(row, column)) for column in range(4)] for row in (0, 4, 5)]
    assert texts == [
        ["z 31", "0.42", "12.4", "corrected"],
        ["z 12", "0.93", "0.034", "accepted"],
        ["z 99", "?", "?", "to do"],
    ]
    queue.set_items((*ITEMS, ReviewItem("other", "z", 31)))
    assert queue.model.data(queue.model.index(6, 0)) == "other z 31"


def test_pictures(show: Show, shoot: Shoot, theme: str) -> None:
    queue = ReviewQueue()
    queue.set_items(ITEMS)
    queue.set_current("stack", "z", 77)
    shoot(show(queue, 300, 290, theme), "review")
    long = ReviewQueue()
    long.set_items([ReviewItem(f"vol{k % 2}", "z", 1000 + k, 0.5 + k / 200, 10 - k / 10) for k in range(60)])
    shoot(show(long, 290, 260, theme), "review-long")
    shoot(show(ReviewQueue(), 270, 220, theme), "review-empty")
