"""A model on another image, in one process: in parts, and going on where it was stopped."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel.data.boxes import Box
from napari_slicelabel.data.formats import open_volume
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine.apply import apply, sweep_finished
from napari_slicelabel.engine.apply_job import LOCK_NAME, parts
from napari_slicelabel.engine.networks import load_model
from napari_slicelabel.engine.record import run_lock
from napari_slicelabel.engine.stores import PLANE_CHUNK
from napari_slicelabel.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


Read = "Callable[[Path], NDArray[np.integer]]"


def until(model: Path, image: Path, out: Path, done: int) -> None:
    """Stop once so many slices are labelled."""
    with closing(apply(model, open_volume(image), out, device="cpu")) as events:  # type: ignore[type-var]
        for event in events:
            if event.done >= done:  # type: ignore[union-attr]
                return


def indices(events: object) -> set[int]:
    return {event.done for event in events if "tile" not in event.message}  # type: ignore[attr-defined]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("shape", [(70, 40, 1500), (9, 2100, 30), (5, 8, 8)])
def test_parts_are_the_volume_and_share_no_chunk(
    make_model: Callable[..., Path], dimensions: int, shape: tuple[int, int, int]
) -> None:
    network, _ = load_model(make_model(dimensions))
    found = list(parts(network, Volume.from_array(np.zeros(shape, np.uint8)), "z"))
    assert sum(box.size for box in found) == np.prod(shape)
    assert all(a.intersect(b).size == 0 for a in found for b in found if a is not b)
    for box in found:
        for start, stop, length in zip(box.start[1:], box.stop[1:], shape[1:], strict=True):
            assert start % PLANE_CHUNK == 0
            assert stop % PLANE_CHUNK == 0 or stop == length


def test_a_job_that_was_killed_at_its_very_end_is_swept(
    make_model: Callable[..., Path], noise_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "labels.tif"
    out.parent.mkdir()
    until(make_model(2), noise_file, out, 30)
    assert len(list(out.parent.iterdir())) == 1
    out.touch()
    sweep_finished(out)
    assert [path.name for path in out.parent.iterdir()] == ["labels.tif"]
    out.unlink()
    until(make_model(2, seed=1), noise_file, out, 30)
    out.touch()
    os.utime(out, (0, 0))
    sweep_finished(out)
    assert len(list(out.parent.iterdir())) == 2


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("axis", ["z", "x"])
def test_it_goes_on_where_it_was_stopped(
    make_model: Callable[..., Path], noise_file: Path, tmp_path: Path, read_labels: Read, dimensions: int, axis: str
) -> None:
    model = make_model(dimensions, axis=axis)
    whole, stopped = tmp_path / "whole.zarr", tmp_path / "stopped.zarr"
    depth = max(indices(apply(model, open_volume(noise_file), whole, device="cpu")))
    until(model, noise_file, stopped, 30)
    assert not stopped.exists()
    again = indices(apply(model, open_volume(noise_file), stopped, device="cpu"))
    # a part that was begun is done again
    assert 20 < min(again) <= 30
    assert max(again) == depth
    labels = read_labels(whole)
    assert set(np.unique(labels)) <= {0, 3, 7}
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(read_labels(stopped), labels)
    assert not list(tmp_path.glob(".*"))


def test_a_hole_in_what_is_done_is_filled(
    make_model: Callable[..., Path], noise_file: Path, tmp_path: Path, read_labels: Read
) -> None:
    """As a cluster leaves it: some parts in the middle are done, and none before them."""
    model, out, whole = make_model(3), tmp_path / "out.zarr", tmp_path / "whole.zarr"
    list(apply(model, open_volume(noise_file), whole, device="cpu"))
    until(model, noise_file, out, 63)
    for number in (0, 2):
        (tmp_path / ".out.zarr.apply" / "done" / str(number)).unlink()
    again = indices(apply(model, open_volume(noise_file), out, device="cpu"))
    assert len(again) < 40
    np.testing.assert_array_equal(read_labels(out), read_labels(whole))


@pytest.mark.parametrize("what", ["model", "image"])
def test_what_belongs_to_another_model_or_image_is_not_used(
    make_model: Callable[..., Path], noise_file: Path, tmp_path: Path, what: str
) -> None:
    out = tmp_path / "out.zarr"
    until(make_model(2), noise_file, out, 30)
    model = make_model(2, seed=int(what == "model"), axis="z") if what == "model" else tmp_path / "model2-0-z"
    if what == "image":
        np.save(noise_file, 255 - np.load(noise_file) // 2)
    events = list(apply(model, open_volume(noise_file), out, device="cpu"))
    assert "another model or image" in events[0].message  # type: ignore[union-attr]
    assert min(indices(events[1:])) == 1


def test_what_is_in_no_file_leaves_nothing_behind(
    make_model: Callable[..., Path], noise_file: Path, tmp_path: Path
) -> None:
    volume = Volume.from_array(np.load(noise_file))
    with closing(apply(make_model(2), volume, tmp_path / "out.tif", device="cpu")) as events:  # type: ignore[type-var]
        for event in events:
            if event.done == 40:  # type: ignore[union-attr]
                break
    assert not list(tmp_path.glob(".*"))


def test_two_at_once_are_refused(make_model: Callable[..., Path], noise_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / ".out.tif.apply"
    folder.mkdir()
    with run_lock(folder / LOCK_NAME), pytest.raises(BusyError, match="already goes"):
        list(apply(make_model(2), open_volume(noise_file), tmp_path / "out.tif", device="cpu"))
    assert folder.is_dir()


def test_a_box_of_labels_fits_every_axis(make_model: Callable[..., Path]) -> None:
    network, _ = load_model(make_model(3))
    volume = Volume.from_array(np.zeros((10, 20, 30), np.uint8))
    assert sum(box.size for box in parts(network, volume, "y")) == Box.whole(volume.shape).size
