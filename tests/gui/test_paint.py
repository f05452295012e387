"""The painted planes between napari and the annotation, without a viewer."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel.data.annotation import Annotation
from napari_slicelabel.data.boxes import AXES, SliceRef
from napari_slicelabel.data.project import Project
from napari_slicelabel.errors import StorageError
from napari_slicelabel.gui import paint
from napari_slicelabel.gui.paint import PaintStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHAPE = (20, 40, 30)


@pytest.fixture
def annotation(tmp_path: Path) -> Annotation:
    return Annotation(tmp_path / "annotation.zarr", SHAPE)


@pytest.fixture
def store(annotation: Annotation) -> Iterator[PaintStore]:
    store = PaintStore(annotation)
    yield store
    store.close()


def whole(annotation: Annotation) -> np.ndarray:
    return np.stack([annotation.read_slice(SliceRef("z", z)) for z in range(SHAPE[0])])


@pytest.mark.parametrize("seed", range(4))
def test_painting_along_all_axes_is_what_numpy_does(annotation: Annotation, seed: int) -> None:
    """Boxes, planes and points along changing axes; also while planes are saved and dropped all the time."""
    rng = np.random.default_rng(seed)
    expected = np.zeros(SHAPE, np.uint8)
    store = PaintStore(annotation, memory_bytes=3000)
    for step in range(120):
        number = int(rng.integers(3))
        store.axis = AXES[number]
        key = [slice(*sorted(rng.integers(0, n + 1, 2).tolist())) for n in SHAPE]
        index = int(rng.integers(SHAPE[number]))
        key[number] = slice(index, index + 1) if step % 2 else index
        value = int(rng.integers(0, 4))
        if step % 5 == 4:
            points = tuple(rng.integers(0, n, 7) for n in SHAPE)
            store[points] = expected[points] = value
            assert (store[points] == value).all()
        else:
            expected[tuple(key)] = value
            store[tuple(key)] = store[tuple(key)] * 0 + value
        assert np.array_equal(store[tuple(key)], expected[tuple(key)])
        look = SliceRef(AXES[int(rng.integers(3))], int(rng.integers(20)))
        assert np.array_equal(store[look.box(SHAPE).slices], expected[look.box(SHAPE).slices])
    assert np.array_equal(store[:, 3:9, :], expected[:, 3:9, :])
    assert store.close()
    assert np.array_equal(whole(annotation), expected)


def test_a_stroke_is_put_on_disk_by_itself(store: PaintStore, annotation: Annotation) -> None:
    store[4, 5:9, 6:8] = 2
    assert store.save_state.unsaved == 1
    start = time.monotonic()
    while not annotation.read_slice(SliceRef("z", 4)).any():
        assert time.monotonic() - start < 240, "waited in vain"
        time.sleep(0.01)
    assert store.flush()
    assert annotation.painted("z") == (4,)


def test_what_was_painted_survives_a_kill(project: Project) -> None:
    """Nobody closes the store: what the thread has saved by itself is all that is left. How soon is another test."""
    script = f"""
        import os, time
        from napari_slicelabel.data.project import Project
        from napari_slicelabel.gui.paint import PaintStore
        project = Project.open({str(project.path)!r})
        store = PaintStore(project.annotation("tiny"))
        store[3, 10:20, 10:20] = 1
        store.axis = "y"
        store[5:8, 30, 3:9] = 2
        deadline = time.monotonic() + 240
        while store.save_state.unsaved and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -9
    again = Project.open(project.path).annotation("tiny")
    assert np.count_nonzero(again.read_slice(SliceRef("z", 3)) == 1) == 100
    assert np.count_nonzero(again.read_slice(SliceRef("y", 30)) == 2) == 18
    assert (again.painted("z"), again.painted("y")) == ((3,), (30,))


def test_a_disk_that_fails_loses_nothing(
    store: PaintStore, annotation: Annotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paint, "_RETRY_S", 0.05)
    write, fails = annotation.write_slice, [True]

    def failing(*args: object, **kwargs: object) -> None:
        if fails[0]:
            raise StorageError("cannot write: the disk is full; free some space and try again")
        write(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(annotation, "write_slice", failing)
    store[7, 1:3, 1:3] = 1
    assert not store.flush()
    assert "disk is full" in store.save_state.error
    assert store.save_state.unsaved == 1
    fails[0] = False
    assert store.flush()
    assert not store.save_state.error
    assert np.count_nonzero(annotation.read_slice(SliceRef("z", 7))) == 4


def test_complete_and_painted_are_known_before_they_are_saved(store: PaintStore, annotation: Annotation) -> None:
    ref = SliceRef("x", 5)
    store.axis = "x"
    store[2:4, 3:9, 5] = 1
    store.set_complete(ref, True)
    assert store.painted("x") == {5}
    assert store.complete("x") == {5}
    assert store.known(SliceRef("z", 0))[:, 5].all()
    assert store.flush()
    assert annotation.complete("x") == (5,)


def test_operations_go_back_and_forth(store: PaintStore) -> None:
    ref = SliceRef("z", 9)
    store[9, 0:5, 0:5] = 1
    new = np.full(SHAPE[1:], 2, np.uint8)
    changes = store.change([(ref, new, True)])
    assert store.complete("z") == {9}
    assert store.undo(changes) == (ref,)
    assert np.count_nonzero(store.read_plane(ref) == 1) == 25
    assert store.complete("z") == frozenset()
    store.redo(changes)
    assert (store.read_plane(ref) == 2).all()


def test_nothing_loads_the_volume_by_accident(annotation: Annotation) -> None:
    class Huge:
        shape = (4096, 4096, 4096)
        painted = staticmethod(lambda axis: ())
        complete = staticmethod(lambda axis: ())
        changes = 0

    store = PaintStore(Huge())  # type: ignore[arg-type]
    assert store[0].dtype == np.uint8
    for ask in (np.asarray, lambda array: array[:, :, :]):
        with pytest.raises(TypeError, match="not loaded as a whole"):
            ask(store)
    store.close()


def test_memory_stays_bounded(annotation: Annotation) -> None:
    store = PaintStore(annotation, memory_bytes=5 * 40 * 30)
    for z in range(20):
        store[z, :, :] = z + 1
    assert store.flush()
    assert "5 planes" in repr(store)
    assert [int(store[z, 0, 0]) for z in range(20)] == list(range(1, 21))
    store.close()


def test_values_without_a_class_are_announced(annotation: Annotation) -> None:
    seen: list[frozenset[int]] = []
    store = PaintStore(annotation, add_classes=seen.append)
    store[1, 2, 3] = 7
    store[1, 2, 4] = 255
    assert store.close()
    assert frozenset({7}) in seen
