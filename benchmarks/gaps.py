"""How long the window stands still: opening the dock, scrolling, and scrolling while a run goes.

``xvfb-run -a python -m benchmarks.gaps [--blame] [DEPTH HEIGHT WIDTH]`` prints a table. A timer of the window's event
loop should fire every 5 ms; a gap is the time between two of them. The stack has 100 slices of 512 x 512 px by default,
the run is a small self-labelling one on the CPU, and the slice changes ten times a second. *own work* is what the
window's thread computed itself in a gap: in the rest of it that thread waited for a core, for a driver that draws, or
for Python's lock. ``--blame`` also says where it was in gaps longer than 80 ms.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari import Viewer
from qtpy.QtCore import QEvent, QObject, QTimer
from qtpy.QtWidgets import QApplication, QWidget

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.samples import synthetic_em

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE = (100, 512, 512)
ANNOTATED = (10, 30, 50, 70, 90)
RUN = {"iterations": 4000, "width": 8, "batch": 4, "crop_px": 128, "device": "cpu"}
# not the first stage of learning again: what comes after it, prediction of slices above all
RUN_ON = {**RUN, "iterations": 2, "round_iterations": 2, "fold_iterations": 2, "flow_iterations": 2}
SECONDS = 20
BEAT_MS, SCROLL_MS, BLAME_S = 5, 100, 0.08


class Frames(QObject):
    """Counts the slices that were asked for, and those after which the canvas was drawn before the next one."""

    def __init__(self, canvas: QWidget) -> None:
        super().__init__()
        self.asked = self.shown = 0
        self._pending = False
        canvas.installEventFilter(self)

    def ask(self) -> None:
        self.asked += 1
        self._pending = True

    def eventFilter(self, _watched: QObject | None, event: QEvent | None) -> bool:
        if event is not None and event.type() == QEvent.Type.Paint and self._pending:
            self._pending = False
            self.shown += 1
        return False


class Blame(threading.Thread):
    """Looks every few milliseconds where the window's thread is, while it does not beat."""

    def __init__(self, beat: list[float]) -> None:
        super().__init__(daemon=True)
        self.places: Counter[str] = Counter()
        self.on = True
        self._beat = beat
        self._main = threading.main_thread().ident or 0

    def run(self) -> None:
        while self.on:
            time.sleep(0.01)
            if time.perf_counter() - self._beat[0] < BLAME_S:
                continue
            frames = traceback.extract_stack(sys._current_frames()[self._main])  # noqa: SLF001
            ours = [frame for frame in frames if "slicelabel" in frame.filename]
            place = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in (*ours[-2:], *frames[-3:])[::-1])
            self.places[place] += 1


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Let the window live until something holds, or for so long; return whether it holds."""
    app, end = QApplication.instance(), time.perf_counter() + seconds
    while not condition() and time.perf_counter() < end:
        app.processEvents()
        time.sleep(0.0005)
    return condition()


class Meter:
    """Measures the gaps of the event loop during a piece of work."""

    def __init__(self, blame: bool) -> None:
        self.scroll: Callable[[], None] = lambda: None
        self.frames: Frames | None = None
        self._blame = blame

    def measure(self, name: str, condition: Callable[[], bool], seconds: float, *, scrolling: bool = False) -> None:
        """Print a line of the table."""
        gaps, work, beat, spent = [], [], [time.perf_counter()], [time.thread_time()]
        watcher = Blame(beat) if self._blame else None
        if watcher:
            watcher.start()

        def tick() -> None:
            now, busy = time.perf_counter(), time.thread_time()
            gaps.append(now - beat[0])
            work.append(busy - spent[0])
            beat[0], spent[0] = now, busy

        heart, wheel = QTimer(), QTimer()
        for timer, every, call in ((heart, BEAT_MS, tick), (wheel, SCROLL_MS, self.scroll)):
            timer.setInterval(every)
            timer.timeout.connect(call)
        heart.start()
        if scrolling:
            wheel.start()
        frames = self.frames
        before = (frames.asked, frames.shown) if frames else (0, 0)
        until(condition, seconds)
        tick()
        heart.stop()
        wheel.stop()
        asked, shown = (frames.asked - before[0], frames.shown - before[1]) if frames else (0, 0)
        ordered = 1000 * np.sort(gaps)
        own = 1000 * np.array(work)
        over = int(np.count_nonzero(ordered > 100))
        figures = (sum(gaps), *np.quantile(ordered, (0.5, 0.99)), ordered[-1], over, np.quantile(own, 0.99), own.max())
        scrolls = f"{shown} of {asked}" if scrolling else ""
        print(
            f"| {name} | " + " | ".join(f"{figure:.0f}" for figure in figures) + f" | {scrolls} |",
            flush=True,
        )
        if watcher:
            watcher.on = False
            watcher.join()
            for place, count in watcher.places.most_common(12):
                print(f"    {10 * count} ms  {place}", flush=True)


def never() -> bool:
    return False


def main() -> None:
    """Measure and print."""
    words = [word for word in sys.argv[1:] if word != "--blame"]
    shape = tuple(int(word) for word in words) or SHAPE
    depth = shape[0]
    # tiles of a small one: made in a second, and as hard to draw
    small = synthetic_em((depth, 128, 128), seed=0)
    image, truth = (
        np.tile(a, (1, -(-shape[1] // 128), -(-shape[2] // 128)))[:, : shape[1], : shape[2]]
        for a in (small.image, small.labels)
    )
    viewer = Viewer(show=True)
    viewer.window.resize(1280, 800)
    layer = viewer.add_image(image, name="em")
    until(never, 2)
    print("| | s | p50 | p99 | longest | over 100 ms | own work p99 | own work longest | slices shown |")
    print("|---|---|---|---|---|---|---|---|---|")
    meter = Meter("--blame" in sys.argv)
    meter.measure("napari alone, idle", never, SECONDS / 4)
    dock = opened(viewer, meter)
    window: Any = dock.window()
    canvas = next(w for w in window.findChildren(QWidget) if type(w).__name__ == "CanvasBackendDesktop")
    meter.frames = Frames(canvas)
    session = started(dock, layer, meter)
    for index in (z for z in ANNOTATED if z < depth):
        session.labels.data[index, :, :] = truth[index]
        session.store.set_complete(SliceRef("z", index), True)
    session.store.flush()
    moves = iter(range(10**9))

    def scroll() -> None:
        session.jump(SliceRef("z", next(moves) % depth))
        meter.frames.ask()

    meter.scroll = scroll
    meter.measure("labelling, idle", never, SECONDS / 4)
    meter.measure("labelling, scrolling", never, SECONDS, scrolling=True)
    measure_run(session, meter)
    meter.measure("afterwards, scrolling", never, SECONDS, scrolling=True)
    viewer.close()


def opened(viewer: Any, meter: Meter) -> Any:
    """Open the workflow as napari does."""
    found: list[Any] = []

    def open_it() -> None:
        from napari_slicelabel.gui.opening import WorkflowDock

        found.append(WorkflowDock(viewer))
        viewer.window.add_dock_widget(found[0], name="Label from few slices", area="right")

    QTimer.singleShot(200, open_it)
    meter.measure("opening the dock", lambda: bool(found) and found[0].content is not None, 60)
    return found[0].content


def started(dock: Any, layer: Any, meter: Meter) -> Any:
    """Begin to label."""
    folder = Path(tempfile.mkdtemp()) / "em.slicelabel"
    QTimer.singleShot(200, lambda: dock.workspace.start(layer, folder))
    meter.measure(
        "beginning a project", lambda: dock.workspace.session is not None and not dock.workspace.session.tasks.busy, 60
    )
    return dock.workspace.session


def measure_run(session: Any, meter: Meter) -> None:
    """Learn for a while; then, in a run that learns little, label for a while."""
    from napari_slicelabel.engine.config import build_config

    worker = session.worker

    def begin(values: dict[str, Any]) -> None:
        session.set_config(build_config("self-label", values))
        until(lambda: not session.tasks.busy, 1)
        session.start_run()

    begin(RUN)
    meter.measure("pressing Run", lambda: worker.state.active, 60, scrolling=True)
    meter.measure("run: starting", lambda: worker.state.done > 1, 120, scrolling=True)
    meter.measure("run: learning", lambda: not worker.state.active, SECONDS, scrolling=True)
    worker.cancel()
    until(lambda: not worker.state.active, 60)
    begin(RUN_ON)
    until(lambda: worker.state.predictions > 1 or worker.state.phase == "failed", 120)
    meter.measure("run: labelling", lambda: not worker.state.active, SECONDS, scrolling=True)
    assert worker.state.phase != "failed", worker.state.traceback or worker.state.error


if __name__ == "__main__":
    main()
