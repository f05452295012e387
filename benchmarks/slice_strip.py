"""How long the slice strip takes to paint itself at 2000 px: ``python benchmarks/slice_strip.py`` (needs a display)."""

from __future__ import annotations

from time import perf_counter

import numpy as np
from qtpy.QtWidgets import QApplication

from napari_slicelabel.gui.slice_strip import SliceStatus, SliceStrip, StripSnapshot

DEPTHS = (16, 100, 1000, 100_000)
REPEATS = 30


def stack(depth: int) -> StripSnapshot:
    rng = np.random.default_rng(0)
    status = rng.choice([SliceStatus.PREDICTED, SliceStatus.REVIEWED, SliceStatus.STALE], depth).astype(np.uint8)
    status[:: max(1, depth // 10)] |= SliceStatus.COMPLETE
    return StripSnapshot("z", status, rng.random(depth), current=depth // 2)


def main() -> None:
    app = QApplication([])
    strip = SliceStrip()
    strip.resize(2000, 90)
    strip.show()
    app.processEvents()
    print("slices   new snapshot (ms)   other slice (ms)      median (worst)")
    for depth in DEPTHS:
        snapshot = stack(depth)
        new, moved = [], []
        for repeat in range(REPEATS):
            start = perf_counter()
            strip.set_snapshot(snapshot)
            strip.repaint()
            new.append(perf_counter() - start)
            start = perf_counter()
            strip.set_current(repeat % depth)
            strip.repaint()
            moved.append(perf_counter() - start)
        times = (f"{np.median(t) * 1e3:.1f} ({max(t) * 1e3:.1f})" for t in (new, moved))
        print(f"{depth:7d}  {next(times):18s}  {next(times)}")


if __name__ == "__main__":
    main()
