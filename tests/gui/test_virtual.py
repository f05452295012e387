"""Our arrays for layers answer numpy's keys as numpy does, and say in one line why not. No window."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from napari.layers import Labels
from npe2 import PluginManifest
from scipy import ndimage
from skimage import measure

from napari_slicelabel.data.annotation import Annotation
from napari_slicelabel.data.boxes import Box, SliceRef
from napari_slicelabel.data.formats import open_labels
from napari_slicelabel.gui import virtual
from napari_slicelabel.gui.paint import PaintStore
from napari_slicelabel.gui.virtual import LARGEST_READ, VirtualArray

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = (5, 7, 6)
VALUES = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)


class Memory(VirtualArray):
    """A volume in memory that counts what is read of it; drawing gets zeros."""

    def __init__(self, values: NDArray[np.uint8]) -> None:
        super().__init__(values.shape)  # type: ignore[arg-type]
        self.values = values
        self.largest = 0

    def _read(self, box: Box) -> NDArray[np.uint8]:
        self.largest = max(self.largest, box.size)
        return self.values[box.slices]

    def _drawn(self, box: Box) -> NDArray[np.uint8]:
        return np.zeros(box.shape, np.uint8)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.values[key] = value


@pytest.fixture
def painted(tmp_path: Path) -> Iterator[PaintStore]:
    """A store that holds `VALUES`, half of it on disk and half in memory."""
    annotation = Annotation(tmp_path / "a.zarr", SHAPE)
    for index in (0, 2, 4):
        annotation.write_slice(SliceRef("z", index), VALUES[index])
    store = PaintStore(annotation, save_after_s=60)
    for index in (1, 3):
        store[index, :, :] = VALUES[index]
    yield store
    store.close()


def keys() -> st.SearchStrategy[Any]:
    masks = st.one_of(arrays.arrays(bool, SHAPE), arrays.arrays(bool, SHAPE[0]), arrays.arrays(bool, SHAPE[:2]))
    lists = st.lists(st.integers(-5, 4), max_size=4)
    return st.one_of(
        arrays.basic_indices(SHAPE, allow_newaxis=True, allow_ellipsis=True),
        arrays.integer_array_indices(SHAPE),
        st.tuples(lists, st.slices(7), st.integers(-6, 5)),
        st.tuples(st.slices(5), st.none(), arrays.arrays(np.int16, 3, elements=st.integers(-7, 6))),
        masks,
        lists,
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=keys())
def test_every_key_is_answered_as_numpy_does(painted: PaintStore, key: Any) -> None:
    expected = VALUES[key]
    for array in (painted, Memory(VALUES)):
        answer = np.asarray(array[key])
        assert answer.shape == expected.shape
        assert np.array_equal(answer, expected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=keys(), value=st.integers(0, 5))
def test_every_key_is_painted_as_numpy_does(painted: PaintStore, key: Any, value: int) -> None:
    expected = np.array(painted)
    expected[key] = value
    painted[key] = value
    assert np.array_equal(painted, expected)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=keys())
def test_what_is_larger_than_the_limit_is_read_in_parts(monkeypatch: pytest.MonkeyPatch, key: Any) -> None:
    monkeypatch.setattr(virtual, "LARGEST_READ", 42)
    array, expected = Memory(VALUES), VALUES[key]
    with suppress(TypeError):
        assert np.array_equal(array[key], expected)
    assert array.largest <= 42


@pytest.mark.parametrize("key", [5, (0, 7), (0, 0, 0, 0), (..., ...), ([9], 0, 0), 1.5, np.ones(3, bool), "z"])
def test_a_wrong_key_is_an_index_error_as_in_numpy(painted: PaintStore, key: Any) -> None:
    with pytest.raises((IndexError, TypeError)):
        painted[key]


def test_a_plane_is_read_when_it_is_looked_at(painted: PaintStore) -> None:
    plane = painted[2]
    assert (plane.shape, plane.dtype, plane.ndim, plane.size, len(plane)) == ((7, 6), np.uint8, 2, 42, 7)
    painted[2, 3, 3] = 9
    assert plane[3, 3] == 9
    assert plane.max() == np.max(plane) == 9
    assert np.array_equal(plane == 9, np.asarray(painted)[2] == 9)
    assert [np.asarray(plane).tolist() for plane in painted] == np.asarray(painted).tolist()
    painted[-1][1:3, :2] = 8
    assert (np.asarray(painted)[4, 1:3, :2] == 8).all()


def test_whole_arrays_compute(painted: PaintStore) -> None:
    assert np.array_equal(painted, VALUES)
    assert painted.max() == VALUES.max()
    assert np.array_equal(painted.astype(np.uint32), VALUES)
    assert np.array_equal(painted == 3, VALUES == 3)
    assert np.array_equal(np.where(painted, 1, 0), VALUES > 0)
    assert painted.T.shape == SHAPE[::-1]
    assert not hasattr(painted, "chunks")
    assert not hasattr(painted, "sort")


def test_too_much_is_refused_in_one_line() -> None:
    array = Memory(np.broadcast_to(np.uint8(1), (64, 4096, 4096)))
    for ask in (np.asarray, lambda a: a[:], lambda a: a.max(), lambda a: a[[0, 63]], lambda a: a > 1):
        with pytest.raises(TypeError, match=r"1\.0 GB.*write all to a file"):
            ask(array)
    assert array[::8, ::64, 5].shape == (8, 64)
    assert array[[0, 63], [1, 4000], [5, 6]].tolist() == [1, 1]
    assert array.largest <= LARGEST_READ


def test_only_what_napari_draws_may_be_empty() -> None:
    """A plugin that asks for a plane, in any thread, gets it; napari's drawing does not wait for it."""
    array = Memory(VALUES)
    layer = Labels(array)
    layer.refresh()
    assert not np.asarray(layer._slice.image.raw).any()
    assert np.array_equal(layer.data[0, :, :], VALUES[0])
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(layer.data[0, :, :]))
    thread.start()
    thread.join()
    assert np.array_equal(answers[0], VALUES[0])


@pytest.mark.parametrize("name", ["labels.tif", "labels.ome.zarr"])
def test_napari_saves_what_is_painted(painted: PaintStore, tmp_path: Path, name: str, npe2pm: Any) -> None:
    """Both by napari's own writer and by ours, and through the list of layers as File > Save does."""
    for distribution in ("napari", "napari-slicelabel"):
        npe2pm.register(PluginManifest.from_distribution(distribution))
    layer = Labels(painted, name="mine")
    target = tmp_path / name
    assert layer.save(str(target)) == [str(target)]
    assert np.array_equal(np.asarray(open_labels(target).as_dask()), VALUES)


def test_other_libraries_take_our_arrays(painted: PaintStore) -> None:
    assert np.array_equal(measure.label(np.asarray(painted)), measure.label(VALUES))
    ours, theirs = (measure.regionprops_table(data, properties=("label", "area")) for data in (painted, VALUES))
    assert np.array_equal(ours["area"], theirs["area"])
    assert ndimage.label(painted)[1] == ndimage.label(VALUES)[1]
