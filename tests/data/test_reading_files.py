"""What files of other programs state, and what is read of it: each is written the way the other program does."""

import gzip
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from napari_slicelabel.data.boxes import Box
from napari_slicelabel.data.fingerprint import fingerprint
from napari_slicelabel.data.formats import open_volume, split_source, write_labels
from napari_slicelabel.data.project import Project
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.errors import InputError

IMAGE = np.random.default_rng(0).integers(0, 255, (5, 6, 8), np.uint8)


def values(volume: Volume) -> NDArray[Any]:
    return volume.read(Box.whole(volume.shape))[0]


# -- TIFF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["lzw", "zstd", "lerc", "jpeg2000", "zlib"])
def test_compressed_stacks(tmp_path: Path, codec: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, compression=codec, photometric="minisblack")
    assert np.array_equal(values(open_volume(tmp_path / "a.tif")), IMAGE)


def test_predictor_of_floats(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", IMAGE.astype("f4"), compression="zlib", predictor=3)
    assert np.array_equal(values(open_volume(tmp_path / "a.tif")), IMAGE)


def test_sections_stored_in_several_ways_are_one_stack(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for z, plane in enumerate(IMAGE):
            writer.write(plane, compression="zlib" if z in (1, 2, 4) else None, metadata=None, contiguous=False)
    volume = open_volume(tmp_path / "a.tif")
    assert np.array_equal(values(volume), IMAGE)
    assert np.array_equal(volume.read(Box((1, 2, 3), (4, 5, 6)))[0], IMAGE[1:4, 2:5, 3:6])


def test_a_file_with_several_images_asks_for_one(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(IMAGE, photometric="minisblack")
        writer.write(IMAGE[:, :3], photometric="minisblack")
    with pytest.raises(InputError, match=r"2 images in 10 pages.*::0"):
        open_volume(tmp_path / "a.tif")
    assert open_volume(f"{tmp_path / 'a.tif'}::1").shape == (5, 3, 8)
    with pytest.raises(InputError, match="no image '2'"):
        open_volume(f"{tmp_path / 'a.tif'}::2")


@pytest.mark.parametrize("count", [3, 4])
def test_thin_stacks_are_no_colours(tmp_path: Path, count: int) -> None:
    tifffile.imwrite(tmp_path / "a.tif", IMAGE[:count], photometric="rgb", planarconfig="separate")
    volume = open_volume(tmp_path / "a.tif")
    assert np.array_equal(values(volume), IMAGE[:count])
    assert "read as slices" in volume.notes[0]


def test_a_stack_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.tile(IMAGE, (2, 7, 7)), imagej=True, metadata={"axes": "ZYX"})
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(InputError, match="ends too early"):
        open_volume(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("words", "size"),
    [("unit=nm\nzunit=micron\nspacing=0.05\n", 50), ("unit=nm\nspacing=2,5\n", 2.5), ("unit=nm\nspacing=NaN\n", 0.5)],
)
def test_imagej_states_a_unit_for_each_axis(tmp_path: Path, words: str, size: float) -> None:
    text = f"ImageJ=1.54f\nimages=5\nslices=5\n{words}"
    tifffile.imwrite(
        tmp_path / "a.tif", IMAGE, description=text, metadata=None, resolution=(2, 2), photometric="minisblack"
    )
    volume = open_volume(tmp_path / "a.tif")
    factor = 1000 if volume.unit == "micrometer" else 1
    assert np.allclose(np.multiply(volume.voxel_size, factor), (size, 0.5, 0.5))


# -- folders, HDF5, MRC -----------------------------------------------------------------------------------------------


def test_a_folder_of_sections_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for z, plane in zip((1, 2, 9, 10, 12), IMAGE, strict=True):
        Image.fromarray(plane).save(tmp_path / f"s_{z}.png")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    volume = open_volume(tmp_path)
    assert np.array_equal(values(volume), IMAGE)
    assert np.array_equal(volume.read(Box((2, 1, 1), (4, 3, 5)))[0], IMAGE[2:4, 1:3, 1:5])
    assert "without 3, 4" in volume.notes[0]
    Image.fromarray(IMAGE[0, :3]).save(tmp_path / "s_11.png")
    with pytest.raises(InputError, match=r"s_11\.png: 3 x 8 uint8, but s_1\.png has 6 x 8"):
        open_volume(tmp_path)
    (tmp_path / "s_11.png").unlink()
    tifffile.imwrite(tmp_path / "s_3.tif", IMAGE[0])
    with pytest.raises(InputError, match="several kinds"):
        open_volume(tmp_path)


@pytest.mark.parametrize("order", ["xyz", "yxz", "czyx", "zyxc", "tzyxc"])
def test_axis_tags_of_hdf5_are_honoured(tmp_path: Path, order: str) -> None:
    stored = IMAGE.transpose(["zyx".index(a) for a in order if a in "zyx"])
    stored = stored.reshape([1 if a in "tc" else "zyx".index(a) >= 0 and IMAGE.shape["zyx".index(a)] for a in order])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = stored
        file["data"].attrs["axistags"] = json.dumps({"axes": [{"key": a} for a in order]})
    assert np.array_equal(values(open_volume(tmp_path / "a.h5")), IMAGE)


def test_codecs_and_locks_of_hdf5(tmp_path: Path) -> None:
    import hdf5plugin

    for number, codec in enumerate((hdf5plugin.Zstd(), hdf5plugin.LZ4(), hdf5plugin.Bitshuffle())):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file.create_dataset("data", data=IMAGE, **codec)
        assert np.array_equal(values(open_volume(tmp_path / f"{number}.h5")), IMAGE)


def mrc(path: Path, data: NDArray[Any], mode: int, *, order: tuple[int, int, int] = (1, 2, 3), imod: int = 0) -> None:
    header = bytearray(1024)
    depth, height, width = data.shape
    struct.pack_into("<4i", header, 0, width, height, depth, mode)
    struct.pack_into("<3i", header, 28, width, height, depth)
    struct.pack_into("<6f", header, 40, width * 10, height * 10, depth * 30, 90, 90, 90)
    struct.pack_into("<3i", header, 64, *order)
    struct.pack_into("<2i", header, 152, imod, 0)
    (gzip.open if path.suffix == ".gz" else open)(path, "wb").write(bytes(header) + data.tobytes())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", ["a.st", "a.ali", "a.map.gz", "a.rec"])
def test_old_headers_and_names_of_mrc(tmp_path: Path, name: str) -> None:
    mrc(tmp_path / name, IMAGE, 0, imod=1146047817)
    volume = open_volume(tmp_path / name)
    assert np.array_equal(values(volume), IMAGE)
    assert volume.voxel_size == (3, 1, 1)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_order_of_axes_in_mrc(tmp_path: Path) -> None:
    # columns are y, rows are x
    mrc(tmp_path / "a.mrc", np.ascontiguousarray(IMAGE.transpose(0, 2, 1)).astype("<i2"), 1, order=(2, 1, 3))
    assert np.array_equal(values(open_volume(tmp_path / "a.mrc")), IMAGE)


# -- zarr -------------------------------------------------------------------------------------------------------------


def pyramid(path: Path, unit: str = "foot", names: str = "zyx") -> None:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for level in range(2):
        group.create_array(str(level), data=IMAGE[:, :: 2**level, :: 2**level])
    datasets = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [2.0, 0.5 * 2**k, 0.5 * 2**k]}]}
        for k in range(2)
    ]
    axes = [{"name": a, "type": "space", "unit": unit} for a in names]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]


def test_a_level_named_as_a_part_has_its_own_voxel_size(tmp_path: Path) -> None:
    pyramid(tmp_path / "a.zarr", "um")
    for source in (f"{tmp_path / 'a.zarr'}::1", tmp_path / "a.zarr" / "1"):
        volume = open_volume(source)
        assert (volume.shape, volume.voxel_size, volume.unit) == ((5, 3, 4), (2, 1, 1), "micrometer")


@pytest.mark.parametrize("name", ["a.ome.zarr.zip", "a.ozx"])
def test_zarr_in_a_zip_file(tmp_path: Path, name: str) -> None:
    pyramid(tmp_path / "a.zarr")
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for file in (tmp_path / "a.zarr").rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(tmp_path / "a.zarr"))
    volume = open_volume(tmp_path / name)
    assert np.array_equal(values(volume), IMAGE)
    assert np.allclose(volume.voxel_size, (609.6, 152.4, 152.4))
    assert open_volume(f"{tmp_path / name}::1").shape == (5, 3, 4)


# -- NIfTI ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["mm", "micron", "meter"])
@pytest.mark.parametrize("forms", [(1, 1), (2, 0), (0, 1), (4, 2)])
def test_exported_labels_have_the_frame_of_their_image(tmp_path: Path, unit: str, forms: tuple[int, int]) -> None:
    turn = np.array([[0.8, -0.6, 0, -3], [0.6, 0.8, 0, 4], [0, 0, 1, 5], [0, 0, 0, 1]])
    affine = turn @ np.diag([0.5, 0.5, -3.0, 1])
    image = nibabel.Nifti1Image(IMAGE.T.astype(np.int16), None)
    image.set_sform(affine, code=forms[0])
    image.set_qform(affine, code=forms[1])
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = open_volume(tmp_path / "a.nii.gz")
    write_labels(
        tmp_path / "l.nii.gz", IMAGE % 3, voxel_size=volume.voxel_size, unit=volume.unit, classes=(), image=volume
    )
    theirs, ours = (nibabel.load(tmp_path / name).header for name in ("a.nii.gz", "l.nii.gz"))
    assert np.array_equal(theirs.get_best_affine(), ours.get_best_affine())
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert theirs[field] == ours[field]
    assert np.array_equal(theirs.get_zooms(), ours.get_zooms())


def test_the_affine_in_use_says_the_voxel_size(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(IMAGE.T.astype(np.int16), np.diag([0.5, 0.5, 3, 1]))
    image.set_qform(None, code=0)
    image.header["pixdim"][1:4] = 2
    nibabel.save(image, tmp_path / "a.nii")
    assert open_volume(tmp_path / "a.nii").voxel_size == (3, 0.5, 0.5)


def test_colours_of_nifti_are_channels(tmp_path: Path) -> None:
    colours = np.zeros(IMAGE.T.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"] = IMAGE.T
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "a.nii")
    volume = open_volume(tmp_path / "a.nii")
    assert volume.channels == 3
    assert np.array_equal(volume.read(Box.whole(volume.shape))[1], IMAGE)


# -- the same image ---------------------------------------------------------------------------------------------------


def test_the_same_image_in_another_format_has_the_same_fingerprint(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGE.transpose(2, 1, 0))
    tifffile.imwrite(tmp_path / "a.tif", IMAGE.astype(np.uint16), photometric="minisblack")
    digests = {fingerprint(open_volume(tmp_path / "a.npy", axes="xyz")), fingerprint(open_volume(tmp_path / "a.tif"))}
    assert len(digests) == 1
    for other in (IMAGE[::-1], IMAGE[:, :, ::-1], IMAGE // 2, IMAGE.reshape(6, 5, 8)):
        assert fingerprint(Volume.from_array(other)) not in digests


def test_an_image_that_was_replaced_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGE)
    project = Project.create(tmp_path / "p.slicelabel", tmp_path / "a.npy")
    assert np.array_equal(values(Project.open(project.path).volume("a")), IMAGE)
    np.save(tmp_path / "a.npy", IMAGE[::-1])
    with pytest.raises(InputError, match="has other values"):
        Project.open(project.path).volume("a")


def test_another_image_of_the_same_name_beside_a_moved_project(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder, image in (("first", IMAGE), ("second", IMAGE[::-1])):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", image)
    project = Project.create(tmp_path / "first" / "p.slicelabel", tmp_path / "first" / "a.npy")
    project.path.rename(tmp_path / "second" / "p.slicelabel")
    assert np.array_equal(values(Project.open(tmp_path / "second" / "p.slicelabel").volume("a")), IMAGE)
    assert "has other values" in caplog.text


def test_an_image_without_values_makes_no_project(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full(IMAGE.shape, np.nan, np.float32))
    with pytest.raises(InputError, match="is NaN"):
        Project.create(tmp_path / "p.slicelabel", tmp_path / "a.npy")
    assert not (tmp_path / "p.slicelabel").exists()


def test_addresses_and_colons(tmp_path: Path) -> None:
    np.save(tmp_path / "left::right.npy", IMAGE)
    assert split_source(tmp_path / "left::right.npy") == (tmp_path / "left::right.npy", "")
    assert open_volume(f"file://{tmp_path}/left::right.npy").shape == IMAGE.shape
    with pytest.raises(InputError, match="web address"):
        open_volume("https://example.invalid/a.ome.zarr")
    for name in ("a.dcm", "a.nrrd", "a.czi"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match="first"):
            open_volume(tmp_path / name)
