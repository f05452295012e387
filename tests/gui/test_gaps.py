"""Whether the window lives while a run goes; how long its event loop stands still is printed: benchmarks.gaps."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np
from tests.gui.gates import PATIENCE_S, put_gate
from tests.gui.test_workflow import TINY

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.events import Progress

if TYPE_CHECKING:
    import pytest
    from tests.gui.conftest import Bench

    from napari_slicelabel.data.samples import Sample
    from napari_slicelabel.engine.events import Event

TURNS = 8


def test_the_window_stays_alive_during_a_run(
    bench: Bench, stack: Sample, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the first steps waits for a turn of the wheel: a run in the window's own thread would wait in vain."""
    from qtpy.QtCore import QTimer

    bench.start(stack.image)
    bench.paint_truth(stack.labels, [4, 11])
    bench.session.set_config(build_config("self-label", {**TINY, "iterations": TURNS + 2}))
    bench.settle()
    turned, waited = threading.Semaphore(0), []

    def turn_of_the_wheel(event: Event) -> bool:
        if isinstance(event, Progress) and event.stage == "fit" and len(waited) < TURNS:
            while turned.acquire(blocking=False):
                pass  # what came before does not count
            waited.append(turned.acquire(timeout=PATIENCE_S))
        return False

    put_gate(monkeypatch, turn_of_the_wheel)
    gaps: list[float] = []
    last = [time.perf_counter()]

    def beat() -> None:
        now = time.perf_counter()
        gaps.append(now - last[0])
        last[0] = now

    heart = QTimer()
    heart.setInterval(5)
    heart.timeout.connect(beat)
    shown = []

    def move() -> None:
        shown.append(bench.session.worker.state.done)
        bench.session.jump(SliceRef("z", len(shown) % 16))
        turned.release()

    # as fast as somebody turns the wheel
    wheel = QTimer()
    wheel.setInterval(100)
    wheel.timeout.connect(move)
    before = bench.session.worker.state
    bench.session.start_run()
    heart.start()
    wheel.start()
    try:
        bench.wait(lambda: bench.session.worker.state is not before)
        bench.wait(lambda: not bench.session.worker.state.active)
    finally:
        wheel.stop()
        heart.stop()
    ordered = np.sort(gaps)
    with capsys.disabled():
        print(  # noqa: T201
            f"\ngaps of the event loop over {sum(gaps):.0f} s: p99 {1000 * np.quantile(ordered, 0.99):.0f} ms,"
            f" longest {1000 * ordered[-1]:.0f} ms"
        )
    assert bench.session.worker.state.phase == "finished", bench.session.worker.state.traceback
    assert waited == [True] * TURNS
    # and the window showed how far the run was, in between
    assert len(set(shown)) > 3
