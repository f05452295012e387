"""Undo and redo of strokes, operations and marks in any order: the same truth in memory and on disk. No window."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_slicelabel.data.annotation import Annotation
from napari_slicelabel.data.boxes import AXES, Axis, SliceRef
from napari_slicelabel.errors import StorageError
from napari_slicelabel.gui import history
from napari_slicelabel.gui.history import History
from napari_slicelabel.gui.paint import PaintStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

SHAPE = (2, 3, 2)


def at_once(work: Callable[[], Any], done: Callable[[Any], None]) -> None:
    done(work())


@dataclass
class Strokes:
    """What napari keeps of strokes: where, what was there, and what came."""

    store: PaintStore
    done: list[tuple[Any, NDArray[np.uint8], int]] = field(default_factory=list)
    undone: list[tuple[Any, NDArray[np.uint8], int]] = field(default_factory=list)

    def paint(self, key: Any, value: int) -> None:
        self.done.append((key, self.store[key].copy(), value))
        self.undone.clear()
        self.store[key] = value

    def undo(self) -> None:
        item = self.done.pop()
        self.undone.append(item)
        self.store[item[0]] = item[1]

    def redo(self) -> None:
        item = self.undone.pop()
        self.done.append(item)
        self.store[item[0]] = item[2]


class Desk:
    """A store with its history, as a session has them."""

    def __init__(self, folder: Path, start: Callable[..., None] = at_once) -> None:
        self.annotation = Annotation(folder / "a.zarr", SHAPE)
        self.store = PaintStore(self.annotation, save_after_s=60, memory_bytes=40)
        self.problems: list[Exception] = []
        self.history = History(self.store, start, lambda *_: None, self.problems.append)
        self.strokes = self.history.layer = Strokes(self.store)

    def stroke(self, ref: SliceRef, part: tuple[slice, slice], value: int) -> None:
        key: list[Any] = list(part)
        key.insert(ref.axis_number, ref.index)
        self.store.axis = ref.axis
        self.strokes.paint(tuple(key), value)
        self.history.stroke()

    def fill(self, ref: SliceRef, values: NDArray[np.uint8], complete: bool | None = None) -> None:
        def planes() -> Iterator[tuple[SliceRef, NDArray[np.uint8], bool | None]]:
            yield ref, np.where(self.store.known(ref), self.store.read_plane(ref), values), complete

        self.history.operate(lambda: self.store.change(planes()), lambda _: None)

    def erase_class(self, value: int) -> None:
        def planes() -> Iterator[tuple[SliceRef, NDArray[np.uint8], None]]:
            for index in range(SHAPE[0]):
                plane = self.store.read_plane(SliceRef("z", index))
                if (plane == value).any():
                    yield SliceRef("z", index), np.where(plane == value, np.uint8(0), plane), None

        self.history.operate(lambda: self.store.change(planes()), lambda _: None)

    def state(self) -> tuple[bytes, tuple[frozenset[int], ...]]:
        return np.asarray(self.store).tobytes(), tuple(self.store.complete(axis) for axis in AXES)


@dataclass
class Model:
    """The same in the plainest way: whole states, one after the other."""

    volume: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(SHAPE, np.uint8))
    complete: frozenset[SliceRef] = frozenset()

    def plane(self, ref: SliceRef) -> NDArray[np.uint8]:
        return np.take(self.volume, ref.index, ref.axis_number)

    def known(self, ref: SliceRef) -> NDArray[np.bool_]:
        everywhere = self.volume != 0
        for other in self.complete:
            everywhere[other.box(SHAPE).slices] = True
        return np.take(everywhere, ref.index, ref.axis_number)

    def painted(self, volume: NDArray[np.uint8], marked: frozenset[SliceRef] = frozenset()) -> Model:
        emptied = {
            ref
            for ref in self.complete
            if self.plane(ref).any() and not np.take(volume, ref.index, ref.axis_number).any()
        }
        return Model(volume, (self.complete - emptied) | marked)

    def state(self) -> tuple[bytes, tuple[frozenset[int], ...]]:
        marks = tuple(frozenset(ref.index for ref in self.complete if ref.axis == axis) for axis in AXES)
        return self.volume.tobytes(), marks


refs = st.builds(lambda axis, index: SliceRef(axis, index), st.sampled_from(AXES), st.integers(0, 1))
parts = st.one_of(st.just((slice(None), slice(None))), st.tuples(st.slices(2), st.slices(2)))
steps = st.one_of(
    st.tuples(st.just("stroke"), refs, parts, st.sampled_from([0, 0, 0, 1, 2, 255])),
    st.tuples(st.just("mark"), refs),
    st.tuples(st.just("copy"), refs, st.integers(0, 2)),
    st.tuples(st.just("accept"), refs, st.integers(0, 2)),
    st.tuples(st.just("erase"), st.integers(1, 2)),
    st.tuples(st.just("undo")),
    st.tuples(st.just("redo")),
    st.tuples(st.just("save")),
)


def follow(model: Model, step: tuple[Any, ...]) -> Model:
    """Return what a step makes of a state."""
    volume = model.volume.copy()
    if step[0] == "stroke":
        ref, part, value = step[1:]
        inside = list(part)
        inside.insert(ref.axis_number, ref.index)
        volume[tuple(inside)] = value
        return model.painted(volume)
    if step[0] == "mark":
        return Model(volume, model.complete ^ {step[1]})
    if step[0] == "erase":
        volume[volume == step[1]] = 0
        return model.painted(volume)
    ref, value = step[1:]
    merged = np.where(model.known(ref), model.plane(ref), value).astype(np.uint8)
    volume[ref.box(SHAPE).slices] = np.expand_dims(merged, ref.axis_number)
    return model.painted(volume, frozenset({ref}) if step[0] == "accept" else frozenset())


def do(desk: Desk, step: tuple[Any, ...]) -> None:
    if step[0] == "stroke":
        desk.stroke(*step[1:])
    elif step[0] == "mark":
        desk.history.mark(step[1], step[1].index not in desk.store.complete(step[1].axis))
    elif step[0] == "erase":
        desk.erase_class(step[1])
    else:
        plane = np.full_like(desk.store.read_plane(step[1]), step[2])
        desk.fill(step[1], plane, True if step[0] == "accept" else None)


@settings(max_examples=120, deadline=None)
@given(st.lists(steps, min_size=6, max_size=18))
def test_any_order_of_steps_is_the_same_truth(plan: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        desk = Desk(Path(folder))
        states, at = [Model()], 0
        for step in plan:
            if step[0] == "save":
                assert desk.store.flush()
            elif step[0] == "undo":
                assert desk.history.undo() == (at > 0)
                at = max(0, at - 1)
            elif step[0] == "redo":
                assert desk.history.redo() == (at < len(states) - 1)
                at = min(len(states) - 1, at + 1)
            else:
                do(desk, step)
                states[at + 1 :] = [follow(states[at], step)]
                at += 1
            assert desk.state() == states[at].state(), step
        assert not desk.problems
        assert desk.store.close()
        marks = tuple(frozenset(desk.annotation.complete(axis)) for axis in AXES)
        stored = np.stack([desk.annotation.read_slice(SliceRef("z", z)) for z in range(SHAPE[0])])
        assert (stored.tobytes(), marks) == states[at].state()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.store.close()


ALL = (slice(None), slice(None))


@pytest.mark.parametrize("axis", AXES)
def test_an_emptied_slice_is_not_complete(desk: Desk, axis: Axis) -> None:
    """By undo, by the eraser, also from another axis; but one that is empty on purpose stays complete."""
    ref = SliceRef(axis, 1)
    desk.stroke(ref, ALL, 1)
    desk.history.mark(ref, True)
    desk.history.undo()
    assert not desk.store.complete(axis)
    desk.history.redo()
    assert desk.store.complete(axis) == {1}
    other: Axis = "y" if axis != "y" else "z"
    for index in range(SHAPE[AXES.index(other)]):
        desk.stroke(SliceRef(other, index), ALL, 0)
    assert not desk.store.complete(axis)
    assert desk.store.flush()
    assert desk.annotation.complete(axis) == ()
    desk.history.mark(ref, True)
    assert desk.store.flush()
    assert desk.annotation.complete(axis) == (1,)


def test_older_steps_are_forgotten_and_the_marks_hold(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark came after the stroke and is forgotten before it: what the stroke leaves empty is not complete."""
    monkeypatch.setattr(history, "_MOST", 1)
    ref = SliceRef("z", 1)
    desk.stroke(ref, ALL, 1)
    desk.history.mark(ref, True)
    desk.history.mark(SliceRef("z", 0), True)
    desk.history.undo()
    desk.history.undo()
    assert not desk.store.read_plane(ref).any()
    assert desk.store.complete("z") == frozenset()
    desk.history.redo()
    assert desk.store.complete("z") == {1}


def test_keys_pressed_while_an_operation_goes_on_wait_for_it(tmp_path: Path) -> None:
    """Copy, a stroke in the meantime, undo twice: all is as before, whichever reached the store first."""
    waiting: list[tuple[Any, Any]] = []
    desk = Desk(tmp_path, lambda work, done: waiting.append((work, done)))
    ref = SliceRef("z", 1)
    desk.fill(ref, np.full((3, 2), 2, np.uint8))
    desk.stroke(ref, (slice(0, 2), slice(0, 1)), 1)
    assert desk.history.undo()
    assert desk.history.undo()
    assert desk.store.read_plane(ref).any()
    while waiting:
        at_once(*waiting.pop(0))
    assert not desk.store.read_plane(ref).any()
    assert desk.history.redo()
    assert desk.history.redo()
    while waiting:
        at_once(*waiting.pop(0))
    assert desk.store.read_plane(ref).tolist() == [[1, 2], [1, 2], [2, 2]]
    desk.store.close()


def test_an_operation_that_fails_leaves_nothing_behind(desk: Desk) -> None:
    def planes() -> Iterator[tuple[SliceRef, NDArray[np.uint8], None]]:
        yield SliceRef("z", 0), np.ones((3, 2), np.uint8), None
        raise StorageError("cannot read: the disk is gone")

    desk.stroke(SliceRef("z", 0), ALL, 2)
    desk.history.operate(lambda: desk.store.change(planes()), lambda _: None)
    assert [str(error) for error in desk.problems] == ["cannot read: the disk is gone"]
    assert (desk.store.read_plane(SliceRef("z", 0)) == 2).all()
    assert desk.history.undo()
    assert not desk.store.read_plane(SliceRef("z", 0)).any()
