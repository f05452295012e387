"""What was done, in the order it was done: strokes, which napari takes back, and operations, which the store does."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from napari_slicelabel.data.boxes import AXES, Axis, SliceRef

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from napari_slicelabel.gui.paint import Change, PaintStore

    Changes = tuple[Change, ...]
    Work = Callable[[], Any]
    Start = Callable[[Work, Callable[[Any], None]], None]

_MOST = 100
"""Strokes, and operations, that can be taken back. napari forgets its oldest stroke then."""


@dataclass(eq=False)
class Step:
    """One thing that was done.

    Attributes
    ----------
    stroke : bool
        Whether napari holds the voxels.
    changes : tuple of Change
        Planes of an operation, and slices whose mark "complete" changed with it.
    before, after : dict of axis to frozenset of int
        Complete slices.
    turned : callable, optional
        Called in the background once the step was taken back (with False) or done again (with True).
    """

    stroke: bool = False
    changes: Changes = ()
    before: dict[Axis, frozenset[int]] = field(default_factory=dict)
    after: dict[Axis, frozenset[int]] = field(default_factory=dict)
    turned: Callable[[bool], None] | None = None
    # marks that went besides when the step was taken back or done again, since older steps are forgotten
    _besides: Changes = ()

    def turn(self, store: PaintStore, *, forward: bool, stroke: Work = tuple) -> tuple[SliceRef, ...]:
        """Take the step back, or do it again; return the slices that changed."""
        store.undo(self._besides)
        if self.stroke:
            store.touched()
            stroke()
        (store.redo if forward else store.undo)(self.changes)
        state = self.after if forward else self.before
        emptied = store.unmarked()
        # a slice that was complete and empty then is so again
        store.undo([mark for mark in emptied if mark.ref.index in state[mark.ref.axis]])
        self._besides = tuple(mark for mark in emptied if mark.ref.index not in state[mark.ref.axis])
        if self.turned is not None:
            self.turned(forward)
        touched = store.touched() if self.stroke else ()
        return tuple(dict.fromkeys((*touched, *(change.ref for change in self.changes))))


class History:
    """Steps that can be taken back and done again. To be used from the window's thread.

    Parameters
    ----------
    store : PaintStore
        What is painted.
    start : callable
        Does work in the background, one after the other, then calls another function with its result (see `Tasks`).
    stepped : callable
        Called with the slices that taking back or doing again has changed, and whether it was the latter.
    failed : callable
        Called with the error that ended an operation.
    """

    def __init__(
        self,
        store: PaintStore,
        start: Start,
        stepped: Callable[[tuple[SliceRef, ...], bool], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.layer: Any = None
        self._store = store
        self._start = start
        self._stepped = stepped
        self._failed = failed
        self._done: list[Step] = []
        self._undone: list[Step] = []
        self._busy = 0
        self._waiting: deque[bool] = deque()

    def forget_strokes(self) -> None:
        """Keep operations only: napari's own history went with the layer."""
        self._done = [step for step in self._done if not step.stroke]
        self._undone.clear()

    def stroke(self) -> tuple[SliceRef, ...]:
        """Take note of a stroke; return the slices that it touched."""
        marks = self._store.unmarked()
        self._remember(self._with_marks(Step(stroke=True), marks))
        return self._store.touched()

    def mark(self, ref: SliceRef, complete: bool) -> None:
        """Declare a slice complete, or take that back, as a step of its own."""
        self._remember(self._with_marks(Step(), self._store.mark(ref, complete)))

    def operate(
        self,
        work: Callable[[], Changes],
        done: Callable[[Changes], None],
        turned: Callable[[bool], None] | None = None,
    ) -> None:
        """Change planes in the background. Strokes in the meantime come after it in the order of steps."""
        step = Step(turned=turned)
        self._remember(step)

        def changed(changes: Changes) -> None:
            self._with_marks(step, changes)
            done(changes)

        def failed() -> None:
            self._done = [item for item in self._done if item is not step]

        self._behind(work, changed, failed)

    def undo(self) -> bool:
        """Take the last step back, once what goes on has ended; return whether there is one."""
        return self._turn(forward=False)

    def redo(self) -> bool:
        """Do what was taken back again; return whether there is something."""
        return self._turn(forward=True)

    def _turn(self, *, forward: bool) -> bool:
        if self._busy:
            self._waiting.append(forward)
            return True
        source, target = (self._undone, self._done) if forward else (self._done, self._undone)
        if not source:
            return False
        step = source.pop()
        target.append(step)
        if step.stroke:
            stroke = tuple if self.layer is None else (self.layer.redo if forward else self.layer.undo)
            self._stepped(step.turn(self._store, forward=forward, stroke=stroke), forward)
            return True

        def failed() -> None:
            target.remove(step)
            source.append(step)

        self._behind(lambda: step.turn(self._store, forward=forward), lambda refs: self._stepped(refs, forward), failed)
        return True

    def _behind(self, work: Work, done: Callable[[Any], None], failed: Callable[[], None]) -> None:
        """Do work in the background; what is to be taken back or done again waits for it."""
        self._busy += 1

        def safe() -> Any:
            try:
                return work()
            except Exception as error:  # noqa: BLE001 - whatever it is: what waits for the end of this must go on
                return error

        def ended(result: Any) -> None:
            self._busy -= 1
            if isinstance(result, Exception):
                failed()
                self._failed(result)
            else:
                done(result)
            self._go_on()

        self._start(safe, ended)

    def _go_on(self) -> None:
        while self._waiting and not self._busy:
            self._turn(forward=self._waiting.popleft())

    def _with_marks(self, step: Step, changes: Sequence[Change]) -> Step:
        """Complete a step that was just done by what it changed."""
        step.changes = (*step.changes, *changes)
        step.after = {axis: self._store.complete(axis) for axis in AXES}
        step.before = {axis: _before(step.changes, axis, step.after[axis]) for axis in AXES}
        return step

    def _remember(self, step: Step) -> None:
        self._done.append(step)
        self._undone.clear()
        for kind in (True, False):
            same = [item for item in self._done if item.stroke == kind]
            if len(same) > _MOST:
                self._done.remove(same[0])


def _before(changes: Sequence[Change], axis: Axis, after: frozenset[int]) -> frozenset[int]:
    """Return the complete slices before changes that end in `after`."""
    complete = set(after)
    for change in reversed(changes):
        if change.ref.axis == axis and change.complete_before != change.complete_after:
            (complete.add if change.complete_before else complete.discard)(change.ref.index)
    return frozenset(complete)
