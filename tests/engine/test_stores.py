"""Slices that one store takes over from another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel.data.boxes import AXES, Axis
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine import stores
from napari_slicelabel.engine.stores import SliceStore
from napari_slicelabel.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (5, 6, 7)
VOLUME = Volume.from_array(np.zeros(SHAPE, np.uint8), name="a")


def store(path: Path, axis: Axis, **settings: object) -> SliceStore:
    return SliceStore(path, VOLUME, axis, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", [(1, 4), (1, 1024), (2, 4)], ids=str)
@pytest.mark.parametrize("axis", AXES)
def test_a_slice_that_is_taken_over_is_the_same(tmp_path: Path, axis: Axis, chunk: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    one, other = store(tmp_path / "one.zarr", axis), store(tmp_path / "other.zarr", axis, chunk=chunk)
    planes = rng.integers(0, 3, (5, *VOLUME.plane_shape(axis))).astype(np.uint8)
    # a slice of zeros has no file, and neither has a part of one
    planes[1], planes[2, :4] = 0, 0
    for index, plane in enumerate(planes):
        other.write(index, plane)
    one.write(1, planes[0])
    one = store(tmp_path / "one.zarr", axis, chunk=chunk)
    for index in (1, 0, 2, 4):
        one.take(other, index)
        np.testing.assert_array_equal(one.read(index), planes[index])
    assert not one.read(3).any()
    assert not list(tmp_path.rglob("*.part.*"))


def test_what_does_not_exist_is_empty(tmp_path: Path) -> None:
    one, other = store(tmp_path / "one.zarr", "z"), store(tmp_path / "other.zarr", "z")
    one.write(2, np.ones(SHAPE[1:], np.uint8))
    one.take(other, 2)
    assert not one.read(2).any()


def test_damage_is_told_by_who_reads_it(tmp_path: Path) -> None:
    one, other = store(tmp_path / "one.zarr", "z"), store(tmp_path / "other.zarr", "z")
    other.write(2, np.arange(42, dtype=np.uint8).reshape(SHAPE[1:]))
    (chunk,) = [path for path in (tmp_path / "other.zarr" / "0" / "c").rglob("*") if path.is_file()]
    chunk.write_bytes(chunk.read_bytes()[:-3])
    one.take(other, 2)
    with pytest.raises(StorageError, match="damaged"):
        one.read(2)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = store(tmp_path / "one.zarr", "z"), store(tmp_path / "other.zarr", "z")
    before, after = np.full(SHAPE[1:], 1, np.uint8), np.full(SHAPE[1:], 2, np.uint8)
    one.write(2, before)
    other.write(2, after)

    def full(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores.shutil, "copyfile", full)
    with pytest.raises(StorageError, match="the disk is full"):
        one.take(other, 2)
    np.testing.assert_array_equal(one.read(2), before)
    assert not list(tmp_path.rglob("*.part.*"))
