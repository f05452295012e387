from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_slicelabel.data.boxes import AXES, Axis, Box, SliceRef
from napari_slicelabel.data.units import parse_unit
from napari_slicelabel.data.volume import SAMPLE_BYTES, Volume, sample_boxes
from napari_slicelabel.errors import InputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RNG = np.random.default_rng(0)
ARRAY = RNG.integers(0, 1000, (4, 5, 6)).astype(np.uint16)


class Spy:
    """An array that notes what is read of it."""

    def __init__(self, array: Any, chunks: tuple[int, ...] | None = None) -> None:
        self.array, self.shape, self.dtype, self.chunks = array, array.shape, array.dtype, chunks
        self.values_read = 0

    def __getitem__(self, index: Any) -> Any:
        part = self.array[index]
        self.values_read += part.size
        return part


@pytest.mark.parametrize("axes", ["".join(p) for p in itertools.permutations("zyx")])
def test_any_order_of_axes_reads_as_zyx(axes: str) -> None:
    stored = ARRAY.transpose(["zyx".index(a) for a in axes])
    volume = Volume.from_array(stored, axes=axes)
    assert volume.shape == (4, 5, 6)
    np.testing.assert_array_equal(volume.read(Box((1, 0, 2), (3, 5, 4))), ARRAY[None, 1:3, :, 2:4])


@pytest.mark.parametrize("axes", ["czyx", "zyxc", "zcyx", "tczyx", "xyzct"])
def test_channels_and_a_single_time_point(axes: str) -> None:
    full = RNG.integers(0, 9, (1, 2, 3, 4, 5)).astype(np.uint8)
    kept = [a for a in "tczyx" if a in axes]
    stored = full.reshape([n for a, n in zip("tczyx", full.shape, strict=True) if a in axes])
    volume = Volume.from_array(stored.transpose([kept.index(a) for a in axes]), axes=axes)
    assert (volume.channels, volume.shape) == (2, (3, 4, 5))
    block = volume.read(Box.whole(volume.shape))
    np.testing.assert_array_equal(block, full[0])
    assert block.flags.c_contiguous


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("halo", [0, 1, 3])
def test_a_slice_has_its_neighbours_with_the_edge_repeated(axis: Axis, halo: int) -> None:
    volume = Volume.from_array(ARRAY)
    number = AXES.index(axis)
    padded = np.pad(ARRAY, [(halo, halo) if i == number else (0, 0) for i in range(3)], mode="edge")
    for index in range(volume.depth(axis)):
        expected = np.moveaxis(padded.take(range(index, index + 2 * halo + 1), number), number, 0)
        got = volume.read_slice(SliceRef(axis, index), halo=halo)
        assert got.shape == (1, 2 * halo + 1, *volume.plane_shape(axis))
        np.testing.assert_array_equal(got[0], expected)


def test_a_slice_reads_itself_only() -> None:
    spy = Spy(np.zeros((10, 20, 30), np.uint8))
    Volume.from_array(spy).read_slice(SliceRef("y", 7), halo=1)
    assert spy.values_read == 10 * 3 * 30


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("halo", [0, 1])
def test_slice_by_slice_reads_each_chunk_once(axis: Axis, halo: int) -> None:
    values = RNG.integers(0, 99, (9, 13, 10)).astype(np.uint8)
    spy = Spy(values, chunks=(4, 4, 4))
    volume = Volume.from_array(spy)
    number = AXES.index(axis)
    for index in range(volume.depth(axis)):
        got = volume.read_slice(SliceRef(axis, index), halo=halo)
        np.testing.assert_array_equal(got[0, halo], values.take(index, number))
        got[:] = 0
    assert spy.values_read == values.size


def test_few_slices_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from napari_slicelabel.data import volume as module

    monkeypatch.setattr(module, "_SLAB_BYTES", 5 * 20)
    spy = Spy(RNG.integers(0, 99, (40, 4, 5)).astype(np.uint8), chunks=(8, 4, 5))
    volume = Volume.from_array(spy)
    for index in range(40):
        np.testing.assert_array_equal(volume.read_slice(SliceRef("z", index))[0, 0], spy.array[index])
    assert spy.values_read == spy.array.size
    assert sum(s.nbytes for s in volume._slabs.values()) <= 2 * 5 * 20


def test_what_is_read_belongs_to_the_reader(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ARRAY)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    for source in (mapped, ARRAY):
        volume = Volume.from_array(source)
        for got in (volume.read(Box.whole(volume.shape)), volume.read_slice(SliceRef("z", 0))):
            assert got.flags.writeable
            assert not np.shares_memory(got, source)
            assert type(got) is np.ndarray


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=3))
def test_reading_a_box_is_slicing(corners: list[tuple[int, int]]) -> None:
    box = Box(tuple(min(c) for c in corners), tuple(max(c) for c in corners)).clip(ARRAY.shape)
    np.testing.assert_array_equal(Volume.from_array(ARRAY).read(box)[0], ARRAY[box.slices])


@pytest.mark.parametrize("dtype", [">u2", ">f4", "<i2", "?"])
def test_what_is_read_has_native_byte_order(dtype: str) -> None:
    volume = Volume.from_array(np.ones((2, 2, 2), dtype))
    assert volume.dtype.isnative
    assert volume.read(Box.whole(volume.shape)).dtype == volume.dtype
    assert volume.dtype.kind != "b"


def test_zarr_hdf5_and_dask_are_read_alike(tmp_path: Path) -> None:
    import dask.array as da

    stored = zarr.create_array(tmp_path / "a.zarr", data=ARRAY, chunks=(2, 2, 2))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        sources: Sequence[Any] = [stored, file.create_dataset("a", data=ARRAY), da.from_array(ARRAY, chunks=2)]
        for source in sources:
            volume = Volume.from_array(source)
            np.testing.assert_array_equal(volume.read_slice(SliceRef("x", 5))[0, 0], ARRAY[:, :, 5])
        assert Volume.from_array(stored).chunks == Volume.from_array(sources[2]).chunks == (2, 2, 2)


@pytest.mark.parametrize("index", [np.s_[:], np.s_[1], np.s_[::2, 1:3, -1], np.s_[::-1, :, 2], np.s_[0:0]])
def test_the_dask_view_holds_the_same_values(index: Any) -> None:
    np.testing.assert_array_equal(Volume.from_array(ARRAY).as_dask()[index].compute(), ARRAY[index])
    many = np.stack([ARRAY, ARRAY + 1])
    np.testing.assert_array_equal(
        Volume.from_array(many, axes="czyx").as_dask()[1][index].compute(), (ARRAY + 1)[index]
    )


def test_anisotropy() -> None:
    volume = Volume.from_array(ARRAY, voxel_size=(50, 4, 6), unit="nm")
    assert volume.unit == "nanometer"
    assert volume.anisotropy("z") == pytest.approx(10)
    assert volume.anisotropy("y") == pytest.approx(4 / 28)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nm", ("nanometer", 1)),
        ("\u00b5m", ("micrometer", 1)),
        ("\u03bcm", ("micrometer", 1)),
        ("\\u00B5m", ("micrometer", 1)),
        ("micron", ("micrometer", 1)),
        ("\u00c5", ("nanometer", 0.1)),
        ("Millimeter", ("millimeter", 1)),
        ("", ("pixel", 1)),
    ],
)
def test_units(text: str, expected: tuple[str, float]) -> None:
    assert parse_unit(text) == expected


def test_intensity_is_robust_and_per_channel() -> None:
    values = RNG.normal(100, 10, (2, 8, 64, 64)).astype(np.float32)
    values[1] += 1000
    values[0, 0, 0, :3] = 1e9
    intensity = Volume.from_array(values, axes="czyx").intensity()
    assert intensity.high[0] < 200
    assert intensity.mean == pytest.approx((100, 1100), abs=1)
    assert intensity.std == pytest.approx((10, 10), rel=0.1)
    assert all(a < b for a, b in zip(intensity.low, intensity.high, strict=True))


def test_intensity_is_measured_once() -> None:
    spy = Spy(ARRAY)
    volume = Volume.from_array(spy)
    first, read = volume.intensity(), spy.values_read
    assert volume.intensity() is first
    assert spy.values_read == read == ARRAY.size


def test_a_nearly_empty_image_still_has_a_range() -> None:
    values = np.zeros((10, 50, 50), np.uint8)
    values[5, 5, 5] = 200
    intensity = Volume.from_array(values).intensity()
    assert (intensity.low, intensity.high) == ((0.0,), (200.0,))


def test_a_constant_channel_beside_others_is_no_error() -> None:
    rgba = np.full((3, 8, 8, 2), 255, np.uint8)
    rgba[..., 0] = RNG.integers(0, 255, (3, 8, 8))
    intensity = Volume.from_array(rgba, axes="zyxc").intensity()
    assert (intensity.low[1], intensity.high[1], intensity.std[1]) == (255, 256, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    values[1, 1, 1] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        Volume(values, name="volume", nan="refuse").intensity()
    volume = Volume.from_array(values)
    assert (volume.intensity().high[0], volume.read(Box.whole(values.shape))[0, 1, 1, 1]) == (
        pytest.approx(59, abs=1),
        0,
    )
    with pytest.raises(InputError, match="is NaN or infinite"):
        Volume.from_array(np.full((3, 4, 5), bad, np.float32)).intensity()


def test_a_constant_image_is_refused() -> None:
    with pytest.raises(InputError, match="every sampled voxel"):
        Volume.from_array(np.full((3, 4, 5), 7)).intensity()


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros(5), {}, "3D image"),
        (np.zeros((5, 5)), {}, "3D image"),
        (np.zeros((5, 5, 5, 5)), {}, "4 axes"),
        (np.zeros((5, 5, 5)), {"axes": "zzx"}, "once each"),
        (np.zeros((5, 5, 5)), {"axes": "cyx"}, "once each"),
        (np.zeros((2, 5, 5, 5)), {"axes": "tzyx"}, "time points"),
        (np.zeros((0, 5, 5)), {}, "no voxels"),
        (np.zeros((5, 5, 5), complex), {}, "complex"),
        (np.zeros((5, 5, 5), object), {}, "object"),
        (np.zeros((5, 5, 5)), {"voxel_size": (1, 2)}, "three positive"),
        (np.zeros((5, 5, 5)), {"voxel_size": (1, 0, 1)}, "three positive"),
        (np.zeros((5, 5, 5)), {"unit": "parsec"}, "unit 'parsec'"),
    ],
)
def test_bad_arrays_are_refused(array: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Volume.from_array(array, **options)
    assert "\n" not in str(caught.value)


def test_reading_outside_is_refused() -> None:
    volume = Volume.from_array(ARRAY)
    for box in (Box((0, 0, 0), (5, 5, 6)), Box((-1, 0, 0), (1, 1, 1)), Box((0,), (1,))):
        with pytest.raises(InputError):
            volume.read(box)
    with pytest.raises(InputError, match="4 slices"):
        volume.read_slice(SliceRef("z", 4))
    with pytest.raises(InputError, match="halo"):
        volume.read_slice(SliceRef("z", 0), halo=-1)


def test_a_damaged_chunk_of_the_image_is_a_storage_error(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=ARRAY, chunks=(2, 5, 6))
    (tmp_path / "a.zarr" / "c" / "1" / "0" / "0").write_bytes(b"rubbish")
    volume = Volume.from_array(zarr.open_array(tmp_path / "a.zarr", mode="r"), name="mine")
    volume.read_slice(SliceRef("z", 0))
    with pytest.raises(StorageError, match="mine: cannot read"):
        volume.read_slice(SliceRef("z", 2))


class Virtual:
    """An array of any size that holds nothing."""

    def __init__(self, shape: tuple[int, ...], dtype: str, chunks: tuple[int, ...] | None) -> None:
        self.shape, self.dtype, self.chunks = shape, np.dtype(dtype), chunks


@pytest.mark.parametrize(
    ("shape", "dtype", "chunks"),
    [
        ((5000, 6000, 7000), "u1", None),
        ((5000, 6000, 7000), "u1", (64, 64, 64)),
        ((1024, 4096, 4096), "u2", (1, 4096, 4096)),
        ((100, 40000, 40000), "f4", (1, 512, 512)),
        ((20000, 300, 300), "u1", None),
        ((10, 20, 30), "u1", None),
    ],
)
def test_the_sample_is_bounded_and_spread(
    shape: tuple[int, int, int], dtype: str, chunks: tuple[int, int, int] | None
) -> None:
    volume = Volume.from_array(Virtual(shape, dtype, chunks))  # type: ignore[arg-type]
    boxes = list(sample_boxes(volume))
    whole = Box.whole(shape)
    assert all(whole.contains(b) and b.size for b in boxes)
    assert len(set(boxes)) == len(boxes)
    assert sum(b.size for b in boxes) * volume.dtype.itemsize <= SAMPLE_BYTES
    if whole.size * volume.dtype.itemsize <= SAMPLE_BYTES:
        assert sum(b.size for b in boxes) == whole.size
        return
    # along z the sample reaches into each quarter of the volume, as far as there are blocks for that
    assert len({4 * b.start[0] // shape[0] for b in boxes}) == min(4, len(boxes))


def test_200_gigabytes_open_in_little_memory() -> None:
    # in a process of its own: the peak of this one may lie in another test
    code = textwrap.dedent("""
        import resource
        import dask, dask.array as da, numpy as np
        from napari_slicelabel.data.boxes import SliceRef
        from napari_slicelabel.data.volume import Volume
        dask.config.set(scheduler="synchronous")
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        def fill():
            return np.arange(16 * 2**20, dtype=np.uint8).reshape(16, 1024, 1024)
        sizes = ((16,) * 3200, (1024,) * 2, (1024,) * 2)
        array = da.map_blocks(fill, chunks=sizes, dtype=np.uint8)
        assert array.nbytes > 200e9
        before = peak()
        volume = Volume.from_array(array, voxel_size=(8, 8, 8), unit="nm")
        volume.intensity()
        volume.read_slice(SliceRef("z", 3), halo=1)
        print(peak() - before)
    """)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert float(result.stdout) < 300
