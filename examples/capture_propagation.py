"""Open napari, paint a few slices of a sample, let the labels grow, and take pictures of it all.

    python examples/capture_propagation.py [FOLDER] [--quick]

FOLDER (by default ``captured``) gets propagation.gif, the labels growing, and a picture of each step in both themes of
napari. It takes a few minutes, most of them training; ``--quick`` hardly trains, and saves larger files. Needs napari
and a screen, or ``xvfb-run -a -s "-screen 0 1600x1000x24" python examples/capture_propagation.py``.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from PIL import Image
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.gui.dock import WorkflowDock
from napari_slicelabel.gui.panels.propagate import PropagatePanel
from napari_slicelabel.gui.panels.review import ReviewPanel
from napari_slicelabel.gui.panels.select import SelectPanel
from napari_slicelabel.gui.panels.volume import VolumePanel

WINDOW = (1280, 800)
SLICES = 5
GIF_SIZE = (960, 600)
GIF_COLORS = 96
FRAME_MS = 220
MOST_LEARNING = 16
# Half of what the method does by default, and in more rounds, so that there is something to see.
TRAINED = {"rounds": 5, "iterations": 200, "fold_iterations": 40, "round_iterations": 20, "transfer_iterations": 10}
HARDLY_TRAINED = {
    "iterations": 8, "rounds": 3, "round_iterations": 2, "fold_iterations": 2, "flow": "off", "width": 8,
    "batch": 2, "crop_px": 32, "mirror": "off",
}  # fmt: skip


def few_colors(picture: Image.Image, count: int, kmeans: int = 2) -> Image.Image:
    """Return a picture of few colours: a third of the size. k-means keeps the rare ones, which are those of labels."""
    return picture.quantize(count, Image.Quantize.MEDIANCUT, kmeans=kmeans, dither=Image.Dither.NONE)


class Studio:
    """A napari window that is worked in like a person would, and photographed."""

    def __init__(self, folder: Path, project: Path, *, quick: bool) -> None:
        self.folder = folder
        self.quick = quick
        self.viewer = napari.Viewer(title="napari")
        self.viewer.window.resize(*WINDOW)
        self.image, self.truth = self.viewer.open_sample("napari-slicelabel", "synthetic_em")
        self.dock = WorkflowDock(self.viewer)
        self.viewer.window.add_dock_widget(self.dock, name="Label from few slices", area="right")
        self.project = project
        self.learning: list[tuple[float, Image.Image]] = []
        self.growing: list[tuple[float, Image.Image]] = []
        self.written = 0
        self.pause_s = 1.0
        self.next_frame = 0.0

    def panel(self, kind: type) -> Any:
        return self.dock.panel(kind)

    @property
    def session(self) -> Any:
        return self.dock.workspace.session

    @property
    def snapshot(self) -> Any:
        return self.dock.workspace.snapshot

    def wait(self, condition: Callable[[], bool], timeout_s: float = 600) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited for {timeout_s} s; the window says: {self.dock.hint.text()}")
            QTest.qWait(20)

    def settle(self) -> None:
        self.wait(lambda: not self.session.tasks.busy and not self.session.store.save_state.unsaved)
        QTest.qWait(400)

    def point_at_canvas(self) -> None:
        """Put the mouse over the middle of the canvas, where the brush is then shown."""
        for widget in QApplication.allWidgets():
            if type(widget).__name__ == "CanvasBackendDesktop" and widget.isVisible():
                QTest.mouseMove(widget, widget.rect().center())
        QTest.qWait(200)

    def look(self) -> Image.Image:
        pixels = self.viewer.window.screenshot(flash=False, canvas_only=False)
        return Image.fromarray(np.asarray(pixels)[..., :3])

    def picture(self, name: str) -> None:
        """Save the window in both themes."""
        for theme in ("light", "dark"):
            self.viewer.theme = theme
            QTest.qWait(400)
            path = self.folder / f"{name}-{theme}.png"
            few_colors(self.look(), 256, kmeans=0 if self.quick else 2).save(path, optimize=not self.quick)
            print("written:", path)

    # -- the steps ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self.panel(VolumePanel).folder.setText(str(self.project))
        QTest.qWait(400)
        self.picture("1-open")
        self.panel(VolumePanel).start.click()
        self.wait(lambda: self.session is not None)
        self.settle()

    def select(self) -> None:
        panel = self.panel(SelectPanel)
        panel.budget.setValue(SLICES)
        panel.propose.click()
        self.wait(lambda: len(self.snapshot.proposals) == SLICES)
        self.settle()
        opened = [section.is_open for section in self.dock.sections]
        for section in self.dock.sections:
            section.set_open(section.panel is panel)
        self.settle()
        self.picture("2-select")
        for section, was_open in zip(self.dock.sections, opened, strict=True):
            section.set_open(was_open)

    def paint(self) -> None:
        for number, row in enumerate(self.snapshot.proposals):
            self.session.jump(row.ref)
            self.session.labels.data[row.ref.index, :, :] = self.truth.data[row.ref.index]
            self.session.labels.refresh()
            if number == 1:
                self.settle()
                self.point_at_canvas()
                self.picture("3-paint")
            self.session.toggle_complete()
        self.settle()

    def run(self) -> None:
        panel = self.panel(PropagatePanel)
        panel.method.setCurrentIndex(panel.method.findData("self-label"))
        panel.form.set_config(panel.form.config().model_copy(update=HARDLY_TRAINED if self.quick else TRAINED))
        self.session.set_config(panel.config())
        # two slices away from a painted one: labels get there in one of the first rounds, and better in the others
        shown = min(row.ref.index for row in self.snapshot.proposals) + 2
        self.session.jump(SliceRef("z", shown))
        self.settle()
        begin = time.process_time()
        panel.run.click()
        worker, photographed = self.session.worker, False
        self.wait(lambda: worker.state.active)
        while worker.state.active:
            self.film(worker.state.written)
            scores = self.snapshot.project.scores
            if not photographed and scores is not None and np.isfinite(scores.confidence[shown]):
                photographed = worker.state.written > len(self.image.data) // 2
                if photographed:
                    self.picture("4-running")
            QTest.qWait(100)
        self.settle()
        self.film(-1)
        if worker.state.phase != "finished":
            raise RuntimeError(worker.state.error or worker.state.phase)
        print(f"the run took {worker.state.seconds:.0f} s, {time.process_time() - begin:.0f} s of them computing")

    def film(self, written: int) -> None:
        """Take a frame if slices were labelled since the last one; while the network learns, a few are enough."""
        grew = written != self.written
        if not grew and time.monotonic() < self.next_frame:
            return
        frame = self.look().resize(GIF_SIZE, Image.Resampling.LANCZOS)
        (self.growing if grew else self.learning).append((time.monotonic(), frame))
        self.written = written
        if len(self.learning) > MOST_LEARNING:
            self.learning = self.learning[::2]
            self.pause_s *= 2
        self.next_frame = time.monotonic() + self.pause_s

    def review(self) -> None:
        self.session.jump(SliceRef("z", self.snapshot.queue[0].index))
        self.settle()
        self.picture("5-review")
        self.panel(ReviewPanel).show_confidence.click()
        QTest.qWait(400)
        self.picture("6-confidence")

    def animate(self) -> None:
        """Save what was seen during the run; the last picture stays for a while."""
        # one palette and no dithering: what does not change costs nothing
        frames = [frame for _, frame in sorted(self.learning + self.growing, key=lambda item: item[0])]
        palette = few_colors(frames[-1], GIF_COLORS)
        first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
        path = self.folder / "propagation.gif"
        durations = [FRAME_MS] * len(rest) + [2500]
        first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
        print("written:", path, f"({len(frames)} frames, {path.stat().st_size / 1e6:.2f} MB)")

    def close(self) -> None:
        self.dock.workspace.close()
        self.viewer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("captured"))
    parser.add_argument("--quick", action="store_true", help="hardly train")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary) / "napari-slicelabel" / "synthetic_em.slicelabel"
        studio = Studio(arguments.folder, project, quick=arguments.quick)
        studio.open()
        studio.select()
        studio.paint()
        studio.run()
        studio.review()
        studio.animate()
        studio.close()


if __name__ == "__main__":
    main()
