"""Whether everything is kept when two programs annotate one project at once, or a window and a program.

``python -m benchmarks.two_programs --tries 20``; needs a screen, or ``xvfb-run``. Prints what was lost.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project

if TYPE_CHECKING:
    from napari_slicelabel.data.annotation import Annotation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=20)
    tries: int = parser.parse_args().tries
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth = np.kron(np.random.default_rng(0).integers(1, 4, (16, 8, 10)), np.ones((1, 8, 30), int))
        np.save(folder / "labels.npy", truth.astype(np.uint8))
        np.save(folder / "stack.npy", (truth * 60).astype(np.uint8))
        for title, one in (("two annotate", two_commands), ("window and annotate", window_and_command)):
            lost = [text for number in range(tries) if (text := one(folder, f"{title}{number}", truth))]
            print(f"{title}: {tries - len(lost)} of {tries} tries kept everything", *lost, sep="\n  ", flush=True)


def two_commands(folder: Path, name: str, truth: np.ndarray) -> str:
    path = folder / name
    Project.create(path, folder / "stack.npy")
    both = [annotate(folder, path, slices) for slices in ("0,2,4,6", "1,3,5,7")]
    codes = [process.wait() for process in both]
    annotation = Project.open(path).annotation("stack")
    return problems(annotation, truth, range(8)) if codes == [0, 0] else f"exit codes {codes}"


def window_and_command(folder: Path, name: str, truth: np.ndarray) -> str:
    from napari_slicelabel.gui.session import Session

    path = folder / name
    project = Project.create(path, folder / "stack.npy", classes=["first"])
    viewer = _viewer()
    viewer.layers.clear()
    session = Session(lambda: viewer, project, "stack")
    process = annotate(folder, path, "0,1,2,3,4,5,6,7", "--add-classes")
    strokes = 0
    while process.poll() is None:
        # in the same chunks as what the command writes
        session.labels.data[9, strokes % 60, 10:20] = 1
        session.labels.data[8, strokes % 60, 30:40] = 1
        strokes += 1
        _events(0.05)
    saved = session.store.flush()
    session.close()
    session.remove_layers()
    annotation = Project.open(path).annotation("stack")
    rows = range(min(strokes, 60))
    lost = [z for z, start in ((9, 10), (8, 30)) for y in rows if not _is_painted(annotation, z, y, start)]
    if process.returncode or not saved:
        return f"exit code {process.returncode}, saved {saved}"
    return f"strokes lost in {lost}" if lost else problems(annotation, truth, range(8))


def annotate(folder: Path, path: Path, slices: str, *options: str) -> subprocess.Popen[bytes]:
    start = [sys.executable, "-c", "import sys; from napari_slicelabel.cli import main; sys.exit(main())"]
    command = [*start, "annotate", str(path), "--labels", str(folder / "labels.npy"), "--slices", slices, *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def problems(annotation: Annotation, truth: np.ndarray, expected: range) -> str:
    missing = sorted(set(expected) - set(annotation.complete("z")))
    wrong = [z for z in expected if not np.array_equal(annotation.read_slice(SliceRef("z", z)), truth[z])]
    return f"status lost of {missing}, voxels lost of {wrong}" if missing or wrong else ""


def _is_painted(annotation: Annotation, z: int, y: int, start: int) -> bool:
    return bool((annotation.read_slice(SliceRef("z", z))[y, start : start + 10] == 1).all())


def _viewer() -> Any:
    import napari

    return napari.current_viewer() or napari.Viewer(show=False)


def _events(seconds: float) -> None:
    from qtpy.QtTest import QTest

    QTest.qWait(int(seconds * 1000))


if __name__ == "__main__":
    main()
