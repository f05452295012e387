"""How many clicks and keys it takes from an open file to the first propagated slice: docs/comparison.md says so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from qtpy.QtCore import QEvent, QObject
from qtpy.QtWidgets import QApplication
from tests.gui.test_workflow import TINY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gui.conftest import Bench

    from napari_slicelabel.data.samples import Sample

COMPARISON = (Path(__file__).resolve().parents[2] / "docs" / "comparison.md").read_text(encoding="utf-8")


class Counter(QObject):
    """Counts what a person's hands do, whichever widget hears of it.

    An event that a widget leaves alone goes on to its parent: a button or key counts again only after its release.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clicks = self.keys = self.strokes = 0
        self._held = {QEvent.Type.MouseButtonPress: False, QEvent.Type.KeyPress: False}

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        assert event is not None
        kind = event.type()
        if kind in self._held and not self._held[kind]:
            self._held[kind] = True
            if kind == QEvent.Type.KeyPress:
                self.keys += 1
            elif type(watched).__name__ == "CanvasBackendDesktop":
                self.strokes += 1
            else:
                self.clicks += 1
        elif kind == QEvent.Type.MouseButtonRelease:
            self._held[QEvent.Type.MouseButtonPress] = False
        elif kind == QEvent.Type.KeyRelease:
            self._held[QEvent.Type.KeyPress] = False
        return False


@pytest.fixture
def counter() -> Iterator[Counter]:
    counter, app = Counter(), QApplication.instance()
    assert app is not None
    app.installEventFilter(counter)
    yield counter
    app.removeEventFilter(counter)


def test_a_counter_counts_what_is_done(bench: Bench, counter: Counter, stack: Sample) -> None:
    bench.start(stack.image)
    assert (counter.clicks, counter.keys, counter.strokes) == (1, 0, 0)
    bench.drag((10, 10), (10, 20), (20, 20))
    bench.press("D")
    bench.press("Ctrl+Z")
    bench.click(bench.panel("PaintPanel").background)
    assert (counter.clicks, counter.keys, counter.strokes) == (2, 2, 1)


def test_clicks_from_five_proposed_slices(window: Bench, counter: Counter, stack: Sample) -> None:
    open_and_start(window, stack)
    window.click(window.panel("SelectPanel").propose)
    window.wait(lambda: len(window.snapshot.proposals) == 5)
    window.settle()
    for number in range(5):
        window.drag((20, 20), (20, 30), (30, 30))
        window.press("D")
        if number < 4:
            window.press("N")
    run_until_propagated(window)
    assert (counter.clicks, counter.keys, counter.strokes) == said_of("**napari-slicelabel**")
    end(window)


def test_clicks_from_one_slice(window: Bench, counter: Counter, stack: Sample) -> None:
    open_and_start(window, stack)
    window.drag((20, 20), (20, 30), (30, 30))
    window.press("D")
    run_until_propagated(window)
    assert (counter.clicks, counter.keys, counter.strokes) == said_of("**napari-slicelabel**, one slice")
    end(window)


def open_and_start(window: Bench, stack: Sample) -> None:
    tifffile.imwrite(window.folder / "stack.tif", stack.image, metadata={"axes": "ZYX"}, imagej=True)
    window.viewer.open(window.folder / "stack.tif")
    window.choose("Plugins", "SliceLabel", "Label from few slices (SliceLabel)")
    window.wait(window.take_dock)
    window.click(window.panel("VolumePanel").start)
    window.wait(lambda: window.workspace.session is not None)
    window.settle()


def run_until_propagated(window: Bench) -> None:
    window.settle()
    panel = window.panel("PropagatePanel")
    panel.form.set_config(panel.form.config().model_copy(update=TINY))
    window.session.set_config(panel.config())
    window.settle()
    assert panel.run.isVisible(), "the section whose turn it is opens by itself"
    window.click(panel.run)
    window.wait(lambda: has_propagated(window.snapshot))


def end(window: Bench) -> None:
    window.wait(lambda: not window.session.worker.state.active)
    window.settle()


def has_propagated(snapshot: Any) -> bool:
    """Whether there is a label in a slice that nobody painted."""
    scores = snapshot.project.scores
    return scores is not None and bool(np.any(np.isfinite(scores.confidence) & ~scores.human))


def said_of(name: str) -> tuple[int, int, int]:
    """Return the clicks, keys and strokes in the row of the table that begins with a name."""
    row = next(line for line in COMPARISON.splitlines() if line.startswith(f"| {name} |"))
    clicks, keys, strokes = (re.sub(r"\D", "", cell) for cell in row.split("|")[2:5])
    return int(clicks), int(keys), int(strokes)
