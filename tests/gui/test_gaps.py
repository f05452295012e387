"""Whether the window lives while a run goes; how long its event loop stands still is printed: benchmarks.gaps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.engine.config import build_config

if TYPE_CHECKING:
    import pytest
    from tests.gui.conftest import Bench

    from napari_slicelabel.data.samples import Sample


def test_the_window_stays_alive_during_a_run(bench: Bench, stack: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    from qtpy.QtCore import QTimer

    # the tiny stack, tiled: large enough that steps and slices take their time
    image, truth = (np.tile(array, (1, 4, 4)) for array in (stack.image, stack.labels))
    bench.start(image)
    bench.paint_truth(truth, [4, 11])
    values = {"iterations": 60, "rounds": 2, "round_iterations": 10, "width": 8, "batch": 4, "device": "cpu"}
    bench.session.set_config(build_config("self-label", values))
    bench.settle()
    gaps: list[float] = []
    last = [time.perf_counter()]

    def beat() -> None:
        now = time.perf_counter()
        gaps.append(now - last[0])
        last[0] = now

    heart = QTimer()
    heart.setInterval(5)
    heart.timeout.connect(beat)
    bench.session.start_run()
    bench.wait(lambda: bench.session.worker.state.stage == "fit" and bench.session.worker.state.done > 1, 100)
    last[0] = time.perf_counter()
    heart.start()
    shown = []

    def move() -> None:
        shown.append(bench.session.worker.state.done)
        bench.session.jump(SliceRef("z", len(shown) % 16))

    # as fast as somebody turns the wheel
    wheel = QTimer()
    wheel.setInterval(100)
    wheel.timeout.connect(move)
    wheel.start()
    try:
        bench.wait(lambda: not bench.session.worker.state.active, 150)
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
    # a run in the window's own thread would let nobody turn the wheel before it is at its end
    assert len(set(shown)) > 3
