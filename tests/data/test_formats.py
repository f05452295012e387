from __future__ import annotations

import errno
import gzip
import json
import os
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import nibabel
import numpy as np
import pytest
import tifffile
import zarr

from napari_slicelabel.data import spill
from napari_slicelabel.data.boxes import Box, SliceRef
from napari_slicelabel.data.classes import make_classes
from napari_slicelabel.data.formats import (
    READERS,
    WRITERS,
    NnunetCase,
    open_labels,
    open_volume,
    write_labels,
    write_nnunet,
)
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.errors import InputError, MissingFileError, SliceLabelError, StorageError

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 60000, (7, 20, 30)).astype(np.uint16)
LABELS = RNG.integers(0, 3, IMAGE.shape).astype(np.uint8)
CLASSES = make_classes(["mito", "er"])


def whole(volume: Volume) -> np.ndarray[Any, np.dtype[Any]]:
    return volume.read(Box.whole(volume.shape))


def ome(path: Path, version: str, levels: int = 2) -> Path:
    """An image of two channels with a pyramid, in micrometer with z in nanometer."""
    group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
    data = np.stack([IMAGE, IMAGE + 1])
    datasets = []
    for level in range(levels):
        group.create_array(str(level), data=data[:, :, :: 2**level, :: 2**level], chunks=(1, 4, 8, 8))
        scale = [1, 1, 0.5 * 2**level, 0.25 * 2**level]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    units = {"z": "nanometer", "y": "nanometer", "x": "nanometer"}
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}]
    axes += [{"name": a, "type": "space", "unit": u} for a, u in units.items()]
    metadata: dict[str, Any] = {
        "multiscales": [
            {
                "axes": axes,
                "datasets": datasets,
                "coordinateTransformations": [{"type": "scale", "scale": [1, 40, 8, 16]}],
            }
        ],
        "omero": {"channels": [{"label": "membrane"}, {"label": "dye"}]},
    }
    if version == "0.4":
        metadata["multiscales"][0]["version"] = version
        group.attrs.update(metadata)
    else:
        group.attrs["ome"] = {"version": version, **metadata}
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path: Path, version: str) -> None:
    path = ome(tmp_path / "a.ome.zarr", version)
    volume = open_volume(path)
    assert (volume.name, volume.shape, volume.channels) == ("a", IMAGE.shape, 2)
    assert (volume.voxel_size, volume.unit) == ((40, 4, 4), "nanometer")
    assert volume.channel_names == ("membrane", "dye")
    np.testing.assert_array_equal(whole(volume)[1], IMAGE + 1)
    small = open_volume(path, level=1)
    assert (small.shape, small.voxel_size) == ((7, 10, 15), (40, 8, 8))
    np.testing.assert_array_equal(whole(small)[0], IMAGE[:, ::2, ::2])
    with pytest.raises(InputError, match="2 levels, 0 to 1"):
        open_volume(path, level=2)
    assert open_volume(path, unit="um").voxel_size == pytest.approx((0.04, 0.004, 0.004))
    assert open_volume(path / "1", axes="czyx").shape == (7, 10, 15)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_plain_zarr(tmp_path: Path, zarr_format: Any) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", data=IMAGE, chunks=(2, 8, 8), zarr_format=zarr_format)
    array.attrs["resolution"] = [30, 4, 4]
    volume = open_volume(tmp_path / "a.zarr")
    assert (volume.voxel_size, volume.unit, volume.chunks) == ((30, 4, 4), "nanometer", (2, 8, 8))
    np.testing.assert_array_equal(whole(volume)[0], IMAGE)


def test_dimension_names_of_zarr_are_the_axes(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=IMAGE.T, dimension_names=("x", "y", "z"))
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "a.zarr"))[0], IMAGE)


def test_a_zarr_group_without_metadata_lists_its_parts(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_array("raw", data=IMAGE)
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "a.zarr"))[0], IMAGE)
    group.create_array("gt", data=LABELS)
    with pytest.raises(InputError, match="gt, raw"):
        open_volume(tmp_path / "a.zarr")
    np.testing.assert_array_equal(whole(open_labels(f"{tmp_path / 'a.zarr'}::gt"))[0], LABELS)
    with pytest.raises(InputError, match="has no other"):
        open_volume(f"{tmp_path / 'a.zarr'}::other")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_tiff(tmp_path: Path, compression: str | None, byteorder: Any) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, photometric="minisblack", compression=compression, byteorder=byteorder)
    volume = open_volume(path)
    assert (volume.name, volume.unit, volume.dtype) == ("a", "pixel", np.dtype(np.uint16))
    np.testing.assert_array_equal(whole(volume)[0], IMAGE)
    np.testing.assert_array_equal(volume.read_slice(SliceRef("x", 3))[0, 0], IMAGE[:, :, 3])


def test_imagej_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    metadata = {"axes": "ZYX", "spacing": 40.0, "unit": "nm"}
    tifffile.imwrite(path, IMAGE, imagej=True, resolution=(1 / 4, 1 / 5), metadata=metadata)
    volume = open_volume(path)
    assert volume.voxel_size == pytest.approx((40, 5, 4))
    assert volume.unit == "nanometer"


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_tiff_with_channels(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a.ome.tif"
    metadata: dict[str, Any] = {"axes": "ZCYX", "PhysicalSizeX": 0.2, "PhysicalSizeY": 0.3, "PhysicalSizeZ": 900.0}
    metadata["PhysicalSizeZUnit"] = "nm"
    tifffile.imwrite(path, np.stack([IMAGE, IMAGE + 1], 1), ome=True, metadata=metadata, compression=compression)
    volume = open_volume(path)
    assert (volume.name, volume.channels, volume.unit) == ("a", 2, "nanometer")
    assert volume.voxel_size == pytest.approx((900, 300, 200))
    np.testing.assert_array_equal(whole(volume)[1], IMAGE + 1)


def test_tiff_pyramid(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.2, "PhysicalSizeY": 0.3, "PhysicalSizeZ": 0.9}
    big = np.tile(IMAGE, (1, 4, 4))
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(big, subifds=1, metadata=metadata, tile=(16, 16))
        tif.write(big[:, ::2, ::2], subfiletype=1, tile=(16, 16))
    small = open_volume(path, level=1)
    assert small.voxel_size == pytest.approx((0.9, 0.6, 0.4))
    np.testing.assert_array_equal(whole(small)[0], big[:, ::2, ::2])
    with pytest.raises(InputError, match="level 2"):
        open_volume(path, level=2)


def test_rgb_tiff_has_channels(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 255, (7, 20, 30, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "a.tif")), np.moveaxis(rgb, -1, 0))
    assert open_labels(tmp_path / "a.tif").channels == 3
    np.save(tmp_path / "two.npy", rgb[..., :2])
    with pytest.raises(InputError, match="2 channels; expected labels"):
        open_labels(tmp_path / "two.npy", axes="zyxc")


def test_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("volumes/raw", data=IMAGE.astype(np.float32)).attrs["element_size_um"] = [
            0.04,
            0.005,
            0.005,
        ]
        file.create_dataset("volumes/gt", data=np.tile(LABELS, (2, 1, 1)))
        file.create_dataset("line", data=np.zeros(5))
    volume = open_volume(path)
    assert volume.source.endswith("a.h5::volumes/raw")
    assert (volume.name, volume.voxel_size, volume.unit) == ("a", (0.04, 0.005, 0.005), "micrometer")
    assert open_labels(path).source.endswith("volumes/gt")
    assert open_volume(f"{path}::volumes/gt").name == "gt"
    with pytest.raises(InputError, match="it has line, volumes/gt, volumes/raw"):
        open_volume(f"{path}::nothing")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("line", data=np.zeros(5))
    with pytest.raises(InputError, match=r"line \(5,\) float64"):
        open_volume(tmp_path / "b.h5")


def test_mrc(tmp_path: Path) -> None:
    for name in ("a.mrc", "a.rec"):
        with mrcfile.new(tmp_path / name) as mrc:
            mrc.set_data(IMAGE.astype(np.int16))
            mrc.voxel_size = (40, 50, 60)
        volume = open_volume(tmp_path / name)
        assert volume.voxel_size == pytest.approx((6, 5, 4))
        assert volume.unit == "nanometer"
        np.testing.assert_array_equal(whole(volume)[0], IMAGE.astype(np.int16))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti(tmp_path: Path, suffix: str) -> None:
    image = nibabel.Nifti1Image(IMAGE.T, np.diag([1, 2, 3, 1.0]))
    nibabel.save(image, tmp_path / f"a{suffix}")
    volume = open_volume(tmp_path / f"a{suffix}")
    assert (volume.name, volume.voxel_size, volume.unit) == ("a", (3, 2, 1), "millimeter")
    np.testing.assert_array_equal(whole(volume)[0], IMAGE)
    assert open_volume(tmp_path / f"a{suffix}", unit="um").voxel_size == (3000, 2000, 1000)


def test_nifti_with_a_slope(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(IMAGE.astype(np.int16).T, np.eye(4))
    nibabel.save(image, tmp_path / "a.nii")
    # nibabel itself would scale the values the other way: set slope and intercept in the file
    with (tmp_path / "a.nii").open("r+b") as file:
        file.seek(112)
        file.write(np.array([0.5, 10], "<f4").tobytes())
    loaded: Any = nibabel.load(tmp_path / "a.nii")
    expected = np.asarray(loaded.dataobj).T
    volume = open_volume(tmp_path / "a.nii")
    assert volume.dtype == np.float32
    np.testing.assert_allclose(whole(volume)[0], expected, rtol=1e-6)


def test_nifti_of_several_time_points(tmp_path: Path) -> None:
    four = np.stack([IMAGE.T, IMAGE.T + 1], -1)
    nibabel.save(nibabel.Nifti1Image(four, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(InputError, match="time points"):
        open_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "a.nii", axes="czyx"))[1], IMAGE + 1)
    nibabel.save(nibabel.Nifti1Image(four[..., :1], np.eye(4)), tmp_path / "b.nii")
    assert open_volume(tmp_path / "b.nii").shape == IMAGE.shape


def test_npy_in_fortran_order(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(IMAGE))
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "a.npy"))[0], IMAGE)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "a.npz"
    save(path, image=IMAGE, labels=LABELS, other=LABELS, voxel_size_nm=np.array([50, 4.6, 4.6]))
    volume = open_volume(path)
    assert (volume.name, volume.voxel_size, volume.unit) == ("a", (50, 4.6, 4.6), "nanometer")
    np.testing.assert_array_equal(whole(volume)[0], IMAGE)
    np.testing.assert_array_equal(whole(open_labels(path))[0], LABELS)
    assert open_volume(f"{path}::other").name == "other"
    with pytest.raises(InputError, match=r"a\.npz::image, a\.npz::labels, a\.npz::other"):
        open_volume(f"{path}::nothing")


def test_npz_without_an_image_lists_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", first=IMAGE, second=IMAGE)
    with pytest.raises(InputError, match=r"a\.npz::first, a\.npz::second"):
        open_volume(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", first=IMAGE)
    assert open_volume(tmp_path / "b.npz").name == "first"


def test_packed_files_are_unpacked_once_to_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, image=IMAGE)
    first, second = open_volume(path), open_volume(path)
    assert isinstance(first._array, np.memmap)
    assert isinstance(second._array, np.memmap)
    assert first._array.filename == second._array.filename
    assert Path(str(first._array.filename)).parent == spill._folder()
    np.savez_compressed(path, image=IMAGE + 1)
    np.testing.assert_array_equal(whole(open_volume(path))[0], IMAGE + 1)
    np.testing.assert_array_equal(whole(first)[0], IMAGE)


def test_what_a_killed_program_unpacked_is_removed(tmp_path: Path) -> None:
    dead, alive = (tmp_path / f"napari-slicelabel-{pid}-x" for pid in (2**22 - 1, 1))
    for folder in (dead, alive, tmp_path / "napari-slicelabel-x"):
        folder.mkdir()
    spill._remove_abandoned(tmp_path)
    assert not dead.exists()
    assert alive.exists()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_kept_as_floats_are_accepted_when_whole(tmp_path: Path, dtype: Any) -> None:
    nibabel.save(nibabel.Nifti1Image(LABELS.T.astype(dtype), np.eye(4)), tmp_path / "a.nii.gz")
    volume = open_labels(tmp_path / "a.nii.gz")
    assert volume.dtype == np.int32
    np.testing.assert_array_equal(whole(volume)[0], LABELS)
    for bad in (0.5, np.nan, 1e12):
        values = LABELS.T.astype(dtype)
        values[3, 3, 3] = bad
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "b.nii.gz")
        with pytest.raises(InputError, match="whole numbers"):
            open_labels(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("suffix", [".ome.zarr", *WRITERS])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, ">u2", bool])
def test_labels_come_back(tmp_path: Path, suffix: str, dtype: Any) -> None:
    expected = LABELS.astype(dtype)
    path = tmp_path / f"a{suffix}"
    # a second write replaces the first
    write_labels(path, expected * 0 + 1, voxel_size=(1, 1, 1), unit="um", classes=())
    write_labels(path, expected, voxel_size=(50, 4.5, 4), unit="nm", classes=CLASSES)
    volume = open_labels(path)
    np.testing.assert_array_equal(whole(volume)[0], LABELS if dtype is not bool else LABELS > 0)
    assert volume.dtype.kind == "u"
    as_nanometer = np.multiply(volume.voxel_size, {"nanometer": 1, "micrometer": 1e3, "millimeter": 1e6}[volume.unit])
    np.testing.assert_allclose(as_nanometer, (50, 4.5, 4), rtol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


class Planes:
    """Labels that refuse to be read in one piece."""

    shape, dtype = (40, 300, 300), np.dtype(np.uint8)

    def __getitem__(self, index: tuple[slice, ...]) -> Any:
        shape = Box.whole(self.shape).intersect(Box((0, 0, 0), self.shape)).shape
        part = np.broadcast_to(np.uint8(1), shape)[index]
        assert part.size < np.prod(self.shape)
        return part


@pytest.mark.parametrize("suffix", sorted(set(WRITERS)))
def test_labels_are_never_loaded_whole(tmp_path: Path, suffix: str) -> None:
    write_labels(tmp_path / f"a{suffix}", Planes(), voxel_size=(1, 1, 1), unit="um", classes=())
    assert (whole(open_labels(tmp_path / f"a{suffix}")) == 1).all()


def test_ome_zarr_with_its_image(tmp_path: Path) -> None:
    yaozarrs = pytest.importorskip("yaozarrs")
    for name, data, axes in (("a", IMAGE, "zyx"), ("b", np.stack([IMAGE, IMAGE + 1]), "czyx")):
        image = Volume.from_array(data, axes=axes, voxel_size=(50, 4, 4), unit="nm")
        path = tmp_path / f"{name}.ome.zarr"
        write_labels(path, LABELS, voxel_size=(50, 4, 4), unit="nm", classes=CLASSES, image=image)
        yaozarrs.validate_zarr_store(str(path))
        yaozarrs.validate_zarr_store(str(path / "labels" / "labels"))
        np.testing.assert_array_equal(whole(open_volume(path)), whole(image))
        np.testing.assert_array_equal(whole(open_labels(path))[0], LABELS)
        listed: Any = zarr.open_group(path / "labels", mode="r").attrs["ome"]
        assert listed["labels"] == ["labels"]
        label: Any = zarr.open_group(path / "labels" / "labels", mode="r").attrs["ome"]
        assert label["image-label"]["source"] == {"image": "../../"}
        assert label["image-label"]["colors"][1] == {"label-value": 2, "rgba": [86, 180, 233, 255]}
        assert label["image-label"]["properties"][0] == {"label-value": 1, "class": "mito"}


def test_imagej_reads_our_tiff(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.tif", LABELS, voxel_size=(0.05, 0.01, 0.02), unit="um", classes=())
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.is_imagej
        assert tif.imagej_metadata is not None
        assert tif.imagej_metadata["unit"] == "micron"
        assert tif.imagej_metadata["slices"] == 7
    write_labels(tmp_path / "b.tif", LABELS.astype(np.uint32), voxel_size=(1, 1, 1), unit="um", classes=())
    with tifffile.TiffFile(tmp_path / "b.tif") as tif:
        assert tif.is_bigtiff


def test_nifti_labels_lie_on_their_image(tmp_path: Path) -> None:
    affine = np.array([[0, -2.0, 0, 5], [1.0, 0, 0, -7], [0, 0, 3.0, 9], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(IMAGE.T, affine), tmp_path / "a.nii.gz")
    image = open_volume(tmp_path / "a.nii.gz")
    options: dict[str, Any] = {"voxel_size": image.voxel_size, "unit": image.unit, "classes": ()}
    write_labels(tmp_path / "l.nii.gz", LABELS, image=image, **options)
    written: Any = nibabel.load(tmp_path / "l.nii.gz")
    np.testing.assert_allclose(written.affine, affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj), LABELS.T)
    assert written.header.get_zooms() == (1, 2, 3)
    # with another voxel size the old affine would be a lie
    assert open_volume(tmp_path / "a.nii.gz", voxel_size=(1, 1, 1)).affine is None


def test_the_same_labels_give_the_same_nifti(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_labels(tmp_path / name, LABELS, voxel_size=(1, 1, 1), unit="mm", classes=())
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_nnunet(tmp_path: Path) -> None:
    labels = LABELS.copy()
    labels[labels == 2] = 7
    labels[0] = 255
    classes = [c.model_copy(update={"id": 7}) if c.id == 2 else c for c in CLASSES]
    many = np.stack([IMAGE, IMAGE + 1]).astype(np.float16)
    image = Volume.from_array(many, axes="czyx", voxel_size=(50, 4, 4), unit="nm")
    folder = tmp_path / "Dataset001_Cells"
    write_nnunet(folder, [NnunetCase("c1", image, labels), NnunetCase("c2", image, labels)], classes, ignore=True)
    assert json.loads((folder / "dataset.json").read_text()) == {
        "channel_names": {"0": "channel 0", "1": "channel 1"},
        "labels": {"background": 0, "mito": 1, "er": 2, "ignore": 3},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    assert sorted(p.name for p in (folder / "imagesTr").iterdir()) == [
        f"{c}_000{i}.nii.gz" for c in ("c1", "c2") for i in range(2)
    ]
    expected = LABELS.copy()
    expected[0] = 3
    np.testing.assert_array_equal(whole(open_labels(folder / "labelsTr" / "c2.nii.gz"))[0], expected)
    second = whole(open_volume(folder / "imagesTr" / "c1_0001.nii.gz"))
    np.testing.assert_array_equal(second[0], many[1].astype(np.float32))


def test_nnunet_refuses_what_it_cannot_train_on(tmp_path: Path) -> None:
    image = Volume.from_array(IMAGE)
    unknown = np.where(LABELS == 0, 255, LABELS)
    cases: list[tuple[list[NnunetCase], Any, str]] = [
        ([], CLASSES, "0 cases"),
        ([NnunetCase("a", image, LABELS)], [], "0 classes"),
        ([NnunetCase("a", image, LABELS)] * 2, CLASSES, "case names"),
        ([NnunetCase("a/b", image, LABELS)], CLASSES, "case names"),
        ([NnunetCase("a", image, LABELS[1:])], CLASSES, "differ"),
        ([NnunetCase("a", image, LABELS.astype(float))], CLASSES, "integers"),
        ([NnunetCase("a", image, LABELS)], make_classes(["ignore", "b"]), "rename"),
        ([NnunetCase("a", image, LABELS + 1)], CLASSES, "value 3 in slice z0"),
        ([NnunetCase("a", image, unknown)], CLASSES, "value 255"),
        ([NnunetCase("a", image, LABELS.astype(int) - 1)], CLASSES, "value -1"),
    ]
    for given, classes, message in cases:
        with pytest.raises(InputError, match=message):
            write_nnunet(tmp_path / "d", given, classes, ignore=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "d").mkdir()
    with pytest.raises(InputError, match="already exists"):
        write_nnunet(tmp_path / "d", [NnunetCase("a", image, LABELS)], CLASSES, ignore=False)


@pytest.mark.parametrize("suffix", [s for s in READERS if s != ".zarr"])
@pytest.mark.parametrize("content", [b"", b"rubbish" * 100])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is it damaged") as caught:
        open_volume(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_packed_files(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", image=IMAGE)
    nibabel.save(nibabel.Nifti1Image(IMAGE.T, np.eye(4)), tmp_path / "a.nii.gz")
    before = set(spill._folder().iterdir())
    for name in ("a.npz", "a.nii.gz"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match="is it damaged"):
            open_volume(path)
    assert set(spill._folder().iterdir()) == before


def test_data_of_two_dimensions_is_refused(tmp_path: Path) -> None:
    plane = IMAGE[0]
    np.save(tmp_path / "a.npy", plane)
    np.save(tmp_path / "line.npy", plane[0])
    np.save(tmp_path / "four.npy", IMAGE[None])
    np.save(tmp_path / "objects.npy", np.array([None]))
    tifffile.imwrite(tmp_path / "a.tif", plane)
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((20, 30, 3), np.uint8), photometric="rgb")
    zarr.create_array(tmp_path / "a.zarr", data=plane)
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(plane.astype(np.float32))
    nibabel.save(nibabel.Nifti1Image(plane.T, np.eye(4)), tmp_path / "a.nii")
    for name in ("a.npy", "line.npy", "a.tif", "rgb.tif", "a.zarr", "a.mrc", "a.nii"):
        with pytest.raises(InputError, match=r"2D|1D"):
            open_volume(tmp_path / name)
    with pytest.raises(InputError, match="say which they are"):
        open_volume(tmp_path / "four.npy")
    with pytest.raises(InputError, match="damaged"):
        open_volume(tmp_path / "objects.npy")


def test_slices_saved_as_time_points_can_be_opened(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(InputError, match="give axes='zyx'"):
        open_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "a.tif", axes="zyx"))[0], IMAGE)


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "a.npy", IMAGE)
    with pytest.raises(MissingFileError, match="no such file"):
        open_volume(tmp_path / "none.tif")
    for name, message in (("a.jpg", "unknown kind of file"), ("folder", "is a folder")):
        with pytest.raises(InputError, match=message):
            open_volume(tmp_path / name)
    with pytest.raises(InputError, match="one resolution"):
        open_volume(tmp_path / "a.npy", level=1)
    with pytest.raises(InputError, match="level -1"):
        open_volume(tmp_path / "a.npy", level=-1)
    np.save(tmp_path / "f.npy", IMAGE / 7)
    with pytest.raises(InputError, match="whole numbers"):
        open_labels(tmp_path / "f.npy")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(MissingFileError, match="no permission"):
        open_volume(tmp_path / "a.npy")


def test_what_cannot_be_written(tmp_path: Path) -> None:
    options: dict[str, Any] = {"voxel_size": (1, 1, 1), "unit": "um", "classes": ()}
    cases: list[tuple[str, Any, str]] = [
        ("a.png", LABELS, "choose one of these endings"),
        ("a.tif", LABELS[0], "expected 3D"),
        ("a.tif", LABELS.astype(float), "integers"),
    ]
    for name, labels, message in cases:
        with pytest.raises(InputError, match=message):
            write_labels(tmp_path / name, labels, **options)
    with pytest.raises(InputError, match="do not belong"):
        write_labels(tmp_path / "a.tif", LABELS, **options, image=Volume.from_array(IMAGE[1:]))
    assert list(tmp_path.iterdir()) == []
    image = open_volume(ome(tmp_path / "a.ome.zarr", "0.5"))
    with pytest.raises(InputError, match="holds the image itself"):
        write_labels(tmp_path / "a.ome.zarr", LABELS, **options, image=image)
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "diary.txt").write_text("precious")
    with pytest.raises(InputError, match="holds something else"):
        write_labels(tmp_path / "mine.zarr", LABELS, **options)
    with pytest.raises(StorageError, match="No such file"):
        write_labels(tmp_path / "none" / "a.tif", LABELS, **options)


@pytest.mark.parametrize("suffix", sorted(set(WRITERS)))
def test_a_full_disk_keeps_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    options: dict[str, Any] = {"voxel_size": (1, 1, 1), "unit": "um", "classes": ()}
    write_labels(path, LABELS, **options)

    class Full(Planes):
        def __getitem__(self, index: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="disk is full") as caught:
        write_labels(path, Full(), **options)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(whole(open_labels(path))[0], LABELS)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_temporary_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", image=IMAGE)
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode == "wb":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match="disk is full"):
        open_volume(tmp_path / "a.npz")


def test_gzip_is_only_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nibabel.save(nibabel.Nifti1Image(IMAGE.T, np.eye(4)), tmp_path / "a.nii.gz")
    open_volume(tmp_path / "a.nii.gz")

    def refuse(*_: object) -> None:
        raise AssertionError("unpacked again")

    monkeypatch.setattr(gzip, "GzipFile", refuse)
    open_volume(tmp_path / "a.nii.gz").intensity()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
@pytest.mark.parametrize("name", ["pipe.tif", f"{'x' * 300}.tif"])
def test_pipes_and_names_that_no_disk_takes(tmp_path: Path, name: str) -> None:
    if len(name) < 100:
        os.mkfifo(tmp_path / name)
    for read in (open_volume, open_labels):
        with pytest.raises(SliceLabelError, match=r"a pipe|too long"):
            read(tmp_path / name)


def test_tiles_that_are_nowhere_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tiles.tif"
    tifffile.imwrite(path, np.ones((3, 40, 48), np.uint8), tile=(16, 16), compression="zlib", photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+") as tif:
        counts = list(tif.pages[1].databytecounts)
        tif.pages[1].tags["TileByteCounts"].overwrite([0, *counts[1:]])
    with pytest.raises(InputError, match="section 1"):
        open_volume(path)


def test_what_a_killed_export_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".0123abcd.part.other.h5").touch()
    (tmp_path / ".0123abcd.old.mine.tif").write_bytes(b"the old one")
    write_labels(tmp_path / "labels.tif", np.ones((4, 5, 6), np.uint8), voxel_size=(1, 1, 1), unit="pixel", classes=())
    assert {path.name for path in tmp_path.iterdir()} == {"labels.tif", "mine.tif"}


def test_pages_that_are_stored_in_several_ways(tmp_path: Path) -> None:
    stack = np.arange(6 * 8 * 9, dtype=np.uint8).reshape(6, 8, 9)
    with tifffile.TiffWriter(tmp_path / "turns.tif") as writer:
        for z, plane in enumerate(stack):
            compression = "zlib" if z % 2 else None
            writer.write(plane, photometric="minisblack", metadata=None, compression=compression, contiguous=False)
    volume = open_volume(tmp_path / "turns.tif")
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape))[0], stack)
    np.testing.assert_array_equal(volume.read_slice(SliceRef("x", 4))[0, 0], stack[..., 4])
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as writer:
        for side in (8, 9):
            writer.write(np.ones((3, side, side), np.uint8), photometric="minisblack", metadata=None)
    with pytest.raises(InputError, match="2 images in 6 pages"):
        open_volume(tmp_path / "sizes.tif")


@pytest.mark.parametrize("axes", ["xyz", "yxz", "zyxc"])
def test_axis_tags(tmp_path: Path, axes: str) -> None:
    stack = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    stored = stack[..., None].transpose(["zyxc".index(a) for a in axes] + ([3] if "c" not in axes else []))
    with h5py.File(tmp_path / "tags.h5", "w") as file:
        file["raw"] = stored if "c" in axes else stored[..., 0]
        file["raw"].attrs["axistags"] = json.dumps({"axes": [{"key": a} for a in axes]})
    volume = open_volume(tmp_path / "tags.h5")
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape))[0], stack)


@pytest.mark.parametrize(("flags", "values"), [(0, [0, 127, 200]), (1, [0, 127, -56])])
def test_imod_says_if_bytes_have_signs(tmp_path: Path, flags: int, values: list[int]) -> None:
    header = bytearray(1024)
    header[:16] = np.array([3, 1, 2, 0], "<i4").tobytes()
    header[28:40] = np.array([3, 1, 2], "<i4").tobytes()
    header[152:160] = np.array([1146047817, flags], "<i4").tobytes()
    header[208:216] = b"MAP DD\0\0"
    (tmp_path / "a.st").write_bytes(bytes(header) + bytes([0, 127, 200] * 2))
    volume = open_volume(tmp_path / "a.st", axes="zyx")
    assert volume.read_slice(SliceRef("z", 1))[0, 0].tolist() == [values]
