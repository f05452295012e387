"""A window beside another program that paints in the same project: both see what the other painted, nothing is lost."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.data.annotation import Annotation
from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project
from napari_slicelabel.gui import paint
from napari_slicelabel.gui.paint import PaintStore

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from tests.gui.conftest import Bench

    from napari_slicelabel.data.samples import Sample

SHAPE = (20, 40, 30)


def test_a_stroke_in_a_window_beside_another_program(bench: Bench, stack: Sample) -> None:
    bench.start(stack.image)
    session = bench.session
    session.jump(SliceRef("z", 3))
    path, shape = session.project.path, stack.image.shape
    script = f"""
        import numpy as np
        from napari_slicelabel.data.boxes import SliceRef
        from napari_slicelabel.data.classes import LabelClass
        from napari_slicelabel.data.project import Project
        project = Project.open({str(path)!r})
        project.set_classes([*project.classes, LabelClass(id=7, name="golgi", color="#123456")])
        labels = np.zeros({shape[1:]}, np.uint8)
        labels[:8] = 7
        for z in range(6):
            project.annotation("stack").write_slice(SliceRef("z", z), labels, complete=True, keep=True)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)]) as other:
        while other.poll() is None:
            bench.drag((40, 20), (40, 24))
            bench.drag((50, 20), (50, 24))
    assert other.returncode == 0
    bench.wait(lambda: session.store.complete("z") == set(range(6)))
    bench.wait(lambda: "golgi" in {c.name for c in bench.snapshot.project.classes})
    bench.settle()
    # on the canvas
    bench.wait(lambda: (np.asarray(session.labels.data[3])[:8] == 7).all())
    # back to before the strokes of the window: what the other program painted stays
    strokes = np.asarray(session.labels.data[3])
    assert (strokes[40, 20:25] == 1).all()
    session.undo()
    bench.settle()
    annotation = Project.open(path).annotation("stack")
    assert annotation.complete("z") == tuple(range(6))
    for z in range(6):
        assert (annotation.read_slice(SliceRef("z", z))[:8] == 7).all()
    assert (annotation.read_slice(SliceRef("z", 3))[40, 20:25] == 1).all()


def test_only_voxels_that_were_painted_here_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paint, "_LOOK_S", 0.05)
    annotation, other = (Annotation(tmp_path / "a.zarr", SHAPE) for _ in range(2))
    store = PaintStore(annotation, save_after_s=30)
    ref = SliceRef("z", 4)
    store[4, 5:9, 6:8] = 2
    store.read_plane(SliceRef("y", 20))
    theirs = np.zeros(SHAPE[1:], np.uint8)
    theirs[20], theirs[6] = 3, 3
    other.write_slice(ref, theirs, complete=True)
    other.write_slice(SliceRef("x", 0), np.full(SHAPE[:2], 4, np.uint8))
    expected = theirs.copy()
    expected[:, 0], expected[5:9, 6:8] = 4, 2
    _wait(lambda: np.array_equal(store.read_plane(ref), expected))
    _wait(lambda: np.array_equal(store.read_plane(SliceRef("y", 20))[4], expected[20]))
    assert store.complete("z") == {4}
    assert store.painted("x") == {0}
    assert store.close()
    np.testing.assert_array_equal(other.read_slice(ref), expected)


def _wait(condition: object) -> None:
    import time

    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
