"""What people do to a viewer while something goes on in it: nothing crashes, nothing painted is lost."""

from __future__ import annotations

import gc
import shutil
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.gui.gates import put_gate
from tests.gui.test_workflow import ENDLESS, TINY, WITH_FLOW, learns_in_round_1, press_run

from napari_slicelabel.data.boxes import AXES, SliceRef
from napari_slicelabel.data.project import Project
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.events import Progress
from napari_slicelabel.errors import InputError
from napari_slicelabel.gui.layers import role as role_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytestqt.qtbot import QtBot
    from tests.gui.conftest import Bench

    from napari_slicelabel.data.samples import Sample

OURS = ("labels", "prediction", "confidence")


def begin(bench: Bench, stack: Sample) -> None:
    """Start on the stack and paint two slices."""
    bench.start(stack.image)
    bench.paint_truth(stack.labels, [4, 11])


def run(bench: Bench, method: str = "self-label", **values: object) -> None:
    """Press Run."""
    bench.session.set_config(build_config(method, values))
    bench.settle()
    press_run(bench)


def learning(bench: Bench) -> None:
    """Begin a run that will not end by itself, nor label anything before, and wait until it learns."""
    run(bench, **ENDLESS)
    bench.wait(lambda: bench.session.worker.state.stage == "fit" and bench.session.worker.state.done > 2)


def to_end(bench: Bench) -> None:
    bench.wait(lambda: not bench.session.worker.state.active)
    bench.settle()
    assert bench.session.worker.state.phase == "finished", bench.session.worker.state.traceback


def stop(bench: Bench) -> None:
    bench.click(bench.panel("PropagatePanel").stop)
    bench.wait(lambda: not bench.session.worker.state.active)
    bench.settle()
    assert bench.session.worker.state.phase == "stopped", bench.session.worker.state.error


def our_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("slicelabel-")}


def ours(bench: Bench) -> list[str]:
    """Return the roles of the layers that we add, sorted; the image is marked too."""
    return sorted(role_of(layer) for layer in bench.viewer.layers if role_of(layer) not in ("", "image"))


@pytest.fixture
def said(bench: Bench) -> list[tuple[str, bool]]:
    """All that the user is told, and whether it is an error."""
    heard: list[tuple[str, bool]] = []
    bench.workspace.said.connect(lambda text, error: heard.append((text, error)))
    return heard


@pytest.fixture
def async_slicing() -> Iterator[None]:
    from napari.settings import get_settings

    settings = get_settings().experimental
    settings.async_ = True
    yield
    settings.async_ = False


# -- ways to look -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("async_slicing")
def test_async_slicing(bench: Bench, stack: Sample) -> None:
    """Slices are read in napari's own thread: painting, scrolling, results and undo are what they are without."""
    begin(bench, stack)
    ref = SliceRef("z", 8)
    bench.session.jump(ref)
    bench.drag((20, 20), (20, 30), (30, 30))
    mine = bench.session.store.read_plane(ref)
    assert np.count_nonzero(mine) > 50
    run(bench, "interpolate")
    for index in range(16):
        bench.session.jump(SliceRef("z", index))
        bench.qtbot.wait(5)
    to_end(bench)
    bench.session.jump(ref)
    layers = bench.viewer.layers
    bench.wait(lambda: all(layer.loaded for layer in layers))
    with_labels = bench.viewer.screenshot(canvas_only=True, flash=False)
    for role in ("labels", "prediction"):
        getattr(bench.session, role).visible = False
    bench.qtbot.wait(200)
    assert np.count_nonzero(bench.viewer.screenshot(canvas_only=True, flash=False) != with_labels) > 1000
    bench.session.labels.visible = True
    bench.press("A")
    bench.settle()
    accepted = bench.session.store.read_plane(ref)
    assert np.array_equal(accepted[mine > 0], mine[mine > 0])
    bench.press("Ctrl+Z")
    bench.settle()
    bench.press("Ctrl+Z")
    bench.settle()
    assert not bench.session.store.read_plane(ref).any()
    annotation = Project.open(bench.session.project.path).annotation("stack")
    assert np.array_equal(annotation.read_slice(SliceRef("z", 4)), stack.labels[4])


def test_3d_while_a_run_writes(bench: Bench, stack: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = put_gate(monkeypatch, learns_in_round_1)
    begin(bench, stack)
    run(bench, **TINY)
    bench.viewer.dims.ndisplay = 3
    bench.wait(lambda: gate.reached)
    bench.settle()
    gate.open()
    to_end(bench)
    assert bench.session.current is None
    bench.viewer.dims.ndisplay = 2
    bench.settle()
    assert bench.session.current is not None
    bench.drag((10, 10), (10, 20))
    assert bench.session.store.read_plane(bench.session.current)[10, 15] == 1


def test_the_axis_is_the_one_that_is_looked_along(bench: Bench, stack: Sample) -> None:
    """napari's own keys turn the stack; a slice is what is then on the canvas, also transposed."""
    bench.start(stack.image)
    seen = []
    for _ in AXES:
        bench.viewer.dims.roll()
        seen.append(bench.session.axis)
        assert bench.session.current.axis == bench.session.axis
    assert sorted(seen) == sorted(AXES)
    bench.viewer.dims.order = (1, 2, 0)
    bench.session.jump(SliceRef("y", 20))
    assert bench.viewer.dims.displayed == (2, 0)
    bench.press("D")
    bench.settle()
    assert bench.session.project.annotation("stack").complete("y") == (20,)


def test_all_layers_lie_where_the_image_lies(bench: Bench, stack: Sample) -> None:
    affine = np.array([[1.0, 0.1, 0, 5], [0, 0.9, -0.2, -3], [0, 0.2, 0.9, 7], [0, 0, 0, 1]])
    place: dict[str, Any] = {
        "scale": (40.0, 6.0, 5.0),
        "translate": (100.0, -20.0, 3.0),
        "rotate": (0.0, 0.0, 30.0),
        "shear": (0.1, 0.0, 0.2),
        "affine": affine,
        "units": ("nm", "nm", "nm"),
        "axis_labels": ("depth", "row", "column"),
    }
    bench.start(stack.image, **place)
    bench.paint_truth(stack.labels, [4, 11])
    run(bench, "interpolate")
    to_end(bench)
    image = bench.session.image
    assert tuple(image.scale) == place["scale"]
    for role in OURS:
        layer = getattr(bench.session, role)
        for corner in np.ndindex(2, 2, 2):
            voxel = np.multiply(corner, stack.image.shape)
            assert np.allclose(layer.data_to_world(voxel), image.data_to_world(voxel)), role
        assert layer.units == image.units, role
        assert layer.axis_labels == image.axis_labels == place["axis_labels"], role
    assert bench.viewer.layers.extent.units == image.units


def test_layers_over_the_last_axes_of_a_turned_4d_image(bench: Bench, stack: Sample) -> None:
    affine = np.eye(5)
    affine[1:4, 1:4] = [[2, 0, 0], [0, 0.9, -0.2], [0, 0.2, 0.9]]
    affine[1:4, 4] = (4, 5, 6)
    image = np.stack([stack.image, 255 - stack.image])
    bench.start(
        image,
        scale=(1, 40, 6, 5),
        rotate=rotation_4d(),
        affine=affine,
        units=("pixel", "nm", "nm", "nm"),
        axis_labels="czyx",
    )
    bench.session.jump(SliceRef("z", 7))
    assert bench.session.current == SliceRef("z", 7)
    shown = bench.session.image
    for corner in np.ndindex(2, 2, 2):
        voxel = np.multiply(corner, stack.image.shape)
        expected = shown.data_to_world((0, *voxel))[-3:]
        assert np.allclose(bench.session.labels.data_to_world(voxel), expected)


def rotation_4d() -> np.ndarray:
    """30 degrees in the plane of the last two of four axes."""
    turn = np.eye(4)
    turn[2:, 2:] = [[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]]
    return turn


def test_the_voxel_size_of_an_affine_counts(bench: Bench, stack: Sample) -> None:
    bench.start(stack.image, scale=(1, 2, 2), affine=np.diag([8.0, 1.0, 1.0, 1.0]))
    assert bench.session.project.record("stack").voxel_size == (8, 2, 2)


def test_at_most_four_layers(bench: Bench, stack: Sample) -> None:
    """Runs, previews and other sessions use the layers that are there."""
    begin(bench, stack)
    for _ in range(2):
        run(bench, "interpolate")
        to_end(bench)
    bench.session.jump(SliceRef("z", 7))
    bench.press("S")
    bench.settle()
    assert bench.snapshot.layers.preview > 0
    assert len(bench.viewer.layers) == 4
    assert ours(bench) == sorted(OURS)
    path, image = bench.session.project.path, bench.session.image
    bench.workspace.end_session()
    bench.workspace.open_project(path, layer=image)
    bench.wait(lambda: bench.workspace.session is not None)
    bench.settle()
    bench.wait(lambda: bench.session.prediction is not None)
    assert len(bench.viewer.layers) == 4
    assert bench.session.image == image
    assert np.array_equal(bench.session.store.read_plane(SliceRef("z", 4)), stack.labels[4])


def test_garbage_is_collected_again_after_a_run(bench: Bench, stack: Sample) -> None:
    """During one, only what came since is looked at: a look at everything keeps the window waiting for 0.3 s."""
    begin(bench, stack)
    assert gc.get_freeze_count() == 0
    learning(bench)
    assert gc.get_freeze_count() > 100_000
    stop(bench)
    assert gc.get_freeze_count() == 0


# -- layers that go or change -----------------------------------------------------------------------------------------


def test_the_image_may_go_during_a_run(bench: Bench, stack: Sample) -> None:
    begin(bench, stack)
    learning(bench)
    bench.viewer.layers.remove(bench.session.image)
    bench.settle()
    bench.session.jump(SliceRef("z", 8))
    bench.drag((10, 10), (10, 20))
    assert bench.session.store.read_plane(SliceRef("z", 8))[10, 15] == 1
    stop(bench)
    run(bench, "interpolate")
    to_end(bench)
    assert bench.session.prediction.data[4, :, :].any()
    assert ours(bench) == sorted(OURS)


def test_the_image_may_get_another_name_and_a_namesake(bench: Bench, stack: Sample) -> None:
    begin(bench, stack)
    learning(bench)
    bench.session.image.name = "something else"
    bench.viewer.add_image(np.zeros((5, 20, 20), np.uint8), name="stack")
    bench.viewer.add_labels(np.zeros((5, 20, 20), np.uint8), name="stack labels")
    bench.settle()
    bench.viewer.layers.selection.active = bench.session.labels
    bench.session.jump(SliceRef("z", 12))
    assert bench.session.current == SliceRef("z", 12)
    bench.drag((10, 10), (10, 20))
    stop(bench)
    annotation = Project.open(bench.session.project.path).annotation("stack")
    assert annotation.read_slice(SliceRef("z", 12))[10, 15] == 1
    assert bench.session.volume == "stack"


@pytest.mark.parametrize("shape", [(16, 64, 64), (3, 20, 30)])
def test_the_image_may_get_other_data_during_a_run(bench: Bench, stack: Sample, shape: tuple[int, ...]) -> None:
    """A run reads what the project names, whatever the viewer shows."""
    begin(bench, stack)
    learning(bench)
    bench.session.image.data = np.full(shape, 7, np.uint8)
    bench.settle()
    ref = SliceRef("z", 8)
    bench.session.jump(ref)
    assert bench.session.current == ref
    bench.drag((10, 10), (10, 20))
    stop(bench)
    run(bench, "interpolate")
    to_end(bench)
    assert bench.session.store.read_plane(ref)[10, 15] == 1
    assert np.array_equal(bench.session.project.volume("stack").read_slice(ref)[0, 0], stack.image[8])


def test_the_result_layers_may_go_during_a_run(bench: Bench, stack: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = put_gate(monkeypatch, learns_in_round_1)
    begin(bench, stack)
    run(bench, **WITH_FLOW)
    bench.wait(lambda: gate.reached)
    bench.wait(lambda: bool(bench.snapshot.project.shown_run) and bench.session.confidence is not None)
    bench.qtbot.wait(200)
    bench.viewer.layers.remove(bench.session.prediction)
    bench.viewer.layers.remove(bench.session.confidence)
    assert bench.session.worker.state.active
    gate.open()
    to_end(bench)
    assert ours(bench) == ["labels"]
    bench.session.show_run(bench.session.worker.state.run_id)
    bench.settle()
    assert ours(bench) == sorted(OURS)
    assert bench.session.prediction.data[7, :, :].any()


def test_the_labels_layer_may_go_with_its_brush_on(bench: Bench, stack: Sample) -> None:
    """In napari 0.9.2 that by itself ends in a crash of OpenGL once another labels layer is added."""
    begin(bench, stack)
    bench.session.jump(SliceRef("z", 8))
    bench.drag((10, 10), (10, 20))
    assert bench.session.labels.mode == "paint"
    bench.qtbot.wait(200)
    bench.viewer.layers.remove(bench.session.labels)
    bench.qtbot.wait(100)
    bench.click(bench.panel("VolumePanel").show_labels)
    bench.settle()
    bench.drag((30, 10), (30, 20))
    plane = bench.session.store.read_plane(SliceRef("z", 8))
    assert plane[10, 15] == plane[30, 15] == 1


def test_all_layers_may_go(bench: Bench, stack: Sample) -> None:
    begin(bench, stack)
    run(bench, "interpolate")
    to_end(bench)
    bench.viewer.layers.clear()
    bench.settle()
    assert bench.session.current is None or bench.session.current.axis == "z"
    bench.click(bench.panel("VolumePanel").show_labels)
    bench.settle()
    assert np.array_equal(bench.session.store.read_plane(SliceRef("z", 4)), stack.labels[4])


# -- windows ----------------------------------------------------------------------------------------------------------


def test_two_viewers_do_not_meet(
    bench: Bench, stack: Sample, make_napari_viewer_proxy: Callable[..., Any], qtbot: QtBot, tmp_path: Path
) -> None:
    """Each has its own project and run; what ends in one goes on in the other.

    The second window is not shown: napari 0.9.2 by itself fails in OpenGL where two canvases are drawn by turns and
    layers are added to them, whoever adds them.
    """
    begin(bench, stack)
    (tmp_path / "other").mkdir()
    other = type(bench)(make_napari_viewer_proxy(show=False), qtbot, tmp_path / "other")
    other.start(255 - stack.image)
    ref = SliceRef("z", 8)
    other.session.labels.data[8, :, :] = stack.labels[8]
    other.session.store.set_complete(ref, True)
    assert other.session is not bench.session
    learning(bench)
    run(other, "interpolate")
    to_end(other)
    assert bench.session.worker.state.active
    assert not bench.session.prediction.data[8, :, :].any()
    path = other.session.project.path
    other.workspace.end_session()
    assert bench.session.worker.state.active
    bench.session.jump(SliceRef("z", 7))
    bench.drag((20, 20), (20, 30))
    stop(bench)
    assert bench.session.store.read_plane(SliceRef("z", 7))[20, 25] == 1
    assert np.array_equal(Project.open(path).annotation("stack").read_slice(ref), stack.labels[8])
    other.workspace.close()


def test_one_project_in_two_viewers_is_refused(
    bench: Bench, stack: Sample, make_napari_viewer_proxy: Callable[..., Any], qtbot: QtBot, tmp_path: Path
) -> None:
    """Two that save into the same slices would each undo what the other one painted."""
    begin(bench, stack)
    other = type(bench)(make_napari_viewer_proxy(show=False), qtbot, tmp_path)
    heard: list[str] = []
    other.workspace.said.connect(lambda text, error: heard.append(text))
    other.workspace.open_project(bench.session.project.path)
    bench.wait(lambda: bool(heard))
    assert "another window" in heard[0]
    assert other.workspace.session is None
    bench.workspace.close()
    other.workspace.open_project(tmp_path / "stack.slicelabel")
    bench.wait(lambda: other.workspace.session is not None)
    other.settle()
    other.workspace.close()


@pytest.mark.parametrize("paused", [False, True])
def test_closing_the_viewer_ends_all_threads(bench: Bench, stack: Sample, paused: bool) -> None:
    before = our_threads()
    begin(bench, stack)
    learning(bench)
    bench.session.jump(SliceRef("z", 8))
    bench.drag((10, 10), (10, 40))
    if paused:
        bench.click(bench.panel("PropagatePanel").pause)
    session = bench.session
    bench.viewer.close()
    bench.wait(lambda: session.closed)
    assert our_threads() <= before
    again = Project.open(session.project.path)
    assert again.annotation("stack").read_slice(SliceRef("z", 8))[10, 12] == 1
    assert not session.store.save_state.unsaved
    last = sorted(again.run_ids())[-1]
    assert '"running"' not in (again.run_folder(last) / "run.json").read_text()


def test_closing_a_floating_dock_ends_nothing(bench: Bench, stack: Sample) -> None:
    begin(bench, stack)
    learning(bench)
    session, floating = bench.session, bench.dock.parentWidget()
    while not hasattr(floating, "setFloating"):
        floating = floating.parentWidget()
    floating.setFloating(True)
    bench.qtbot.wait(200)
    floating.close()
    bench.qtbot.wait(300)
    assert not session.closed
    assert session.worker.state.active
    floating.show()
    floating.setFloating(False)
    bench.qtbot.wait(100)
    stop(bench)


def test_what_is_painted_after_the_end_is_refused(bench: Bench, stack: Sample) -> None:
    """The layers of a session that ended could take strokes that nobody saves."""
    begin(bench, stack)
    labels, store = bench.session.labels, bench.session.store
    bench.workspace.end_session()
    assert labels not in bench.viewer.layers
    with pytest.raises(InputError, match="no longer saved"):
        store[3, 4, 5] = 1


# -- the disk ---------------------------------------------------------------------------------------------------------


def test_a_project_folder_that_is_gone(bench: Bench, stack: Sample, said: list[tuple[str, bool]]) -> None:
    """It is said, the strokes wait in memory, and are saved once the folder is back."""
    begin(bench, stack)
    bench.session.jump(SliceRef("z", 8))
    path = bench.session.project.path
    away = path.with_name("moved")
    path.rename(away)
    bench.drag((10, 10), (10, 40))
    bench.wait(lambda: bool(bench.session.store.save_state.error))
    assert "cannot write" in bench.session.store.save_state.error
    bench.wait(lambda: "cannot write" in bench.snapshot.saved)
    bench.session.jump(SliceRef("y", 30))
    bench.session.jump(SliceRef("z", 8))
    bench.session.set_config(build_config("interpolate", {}))
    bench.session.start_run()
    bench.wait(lambda: any(error for _, error in said))
    assert not bench.session.worker.state.active
    assert bench.session.store.read_plane(SliceRef("z", 8))[10, 12] == 1
    shutil.rmtree(path, ignore_errors=True)
    away.rename(path)
    bench.wait(lambda: not bench.session.store.save_state.unsaved)
    assert not bench.session.store.save_state.error
    annotation = Project.open(path).annotation("stack")
    assert annotation.read_slice(SliceRef("z", 8))[10, 12] == 1
    assert np.array_equal(annotation.read_slice(SliceRef("z", 4)), stack.labels[4])


def test_a_project_folder_that_goes_during_a_run(
    bench: Bench, stack: Sample, said: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = put_gate(monkeypatch, lambda event: isinstance(event, Progress) and event.stage == "fit")
    begin(bench, stack)
    run(bench, **TINY)
    bench.wait(lambda: gate.reached)
    # a file in its place, so that the run cannot make the folder anew
    path = bench.session.project.path
    shutil.rmtree(path)
    path.write_text("")
    gate.open()
    bench.wait(lambda: not bench.session.worker.state.active)
    assert bench.session.worker.state.phase == "failed"
    assert "\n" not in bench.session.worker.state.error
    assert any(error for _, error in said)
    for ref in (SliceRef("z", 3), SliceRef("x", 9), SliceRef("z", 8)):
        bench.session.jump(ref)
        bench.qtbot.wait(50)
    assert not bench.session.closed


def test_a_damaged_annotation_is_said_and_not_painted_over(
    bench: Bench, stack: Sample, said: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice that cannot be read is shown empty; painting in it would write the emptiness over what is there."""
    begin(bench, stack)
    path = bench.session.project.path
    bench.workspace.end_session()
    chunks = [
        file
        for file in (path / "annotation" / "stack.zarr" / "0").rglob("*")
        if file.parent.name.isdigit() and file.is_file()
    ]
    assert chunks
    for file in chunks:
        file.write_bytes(b"broken")
    bench.workspace.open_project(path)
    bench.wait(lambda: bench.workspace.session is not None)
    bench.settle()
    bench.session.jump(SliceRef("z", 4))
    bench.wait(lambda: any(error and "damaged" in text for text, error in said))
    with pytest.raises(OSError, match="damaged"):
        bench.session.labels.data[4, 3:5, 3:5] = 1
    assert {file.read_bytes() for file in chunks} == {b"broken"}
