"""Images as other programs store them, given to ``slicelabel new``: a row for each, with the right values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h5py
import nibabel
import numpy as np
import pytest
from tests.cases import specimen as sp
from tests.cases.specimen import IMAGE

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

UNKNOWN = None
BY_HAND = ("--voxel-size", 2, 0.5, 0.5, "--unit", "um")
NM = {"nanometer": 1.0, "micrometer": 1e3, "millimeter": 1e6}


@dataclass(frozen=True)
class Row:
    """A file, and what a project must read from it.

    Attributes
    ----------
    what : str
        Why the file is as it is.
    make : callable
        Writes it.
    size : tuple, optional
        Voxel size along z, y, x, each a number or UNKNOWN, and the unit; not looked at where it is None.
    voxels : ndarray
        The first channel, (z, y, x).
    channels : int
        How many there are.
    options : tuple
        Of the command.
    exact : bool
        Whether the values are the very same; else they are as good as JPEG keeps them.
    """

    what: str
    make: sp.Maker
    size: tuple[float | None, float | None, float | None, str] | None = None
    voxels: NDArray[Any] = field(default_factory=lambda: IMAGE)
    channels: int = 1
    options: tuple[object, ...] = ()
    exact: bool = True


SHORTS = IMAGE.astype("<i2")
TWO = np.stack([IMAGE, 255 - IMAGE], 1)
RGB = np.stack([IMAGE, 255 - IMAGE, IMAGE // 2], -1)
EM = (30, 6, 6, "nanometer")
ANGSTROMS = (3, 1, 1, "nanometer")
MICRO = (2, 0.5, 0.5, "micrometer")
NO_Z = (UNKNOWN, 0.5, 0.5, "micrometer")
MM = (3, 0.5, 0.5, "millimeter")
JPEG = {"compression": "jpeg", "compressionargs": {"level": 95}}

ROWS = (
    # MRC
    Row("mode 0 with IMOD's stamp and flag 1 unset: bytes without sign", sp.mrc(IMAGE, 0, imod_flags=0), ANGSTROMS),
    Row("the same, called .rec", sp.mrc(IMAGE, 0, "stack.rec", imod_flags=0), ANGSTROMS),
    Row(
        "mode 0 with flag 1 set: bytes with sign",
        sp.mrc((IMAGE.astype(np.int16) - 128).astype(np.int8), 0, imod_flags=1),
        voxels=IMAGE.astype(np.int16) - 128,
    ),
    Row("mode 12: half floats", sp.mrc(IMAGE.astype("<f2"), 12), ANGSTROMS),
    Row("mode 6", sp.mrc(IMAGE.astype("<u2") * 200, 6), voxels=IMAGE.astype(np.uint16) * 200),
    Row("longer than the header says", sp.mrc(SHORTS, 1, tail=77)),
    Row("machine stamp 44 20", sp.mrc(IMAGE.astype("<f4"), 2, stamp=b"\x44\x20\x20\x20"), ANGSTROMS),
    Row("before 2000: neither MAP nor stamp", sp.mrc(SHORTS, 1, word=bytes(4), stamp=bytes(4)), ANGSTROMS),
    Row("a tilt series", sp.mrc(SHORTS, 1, "tilts.st")),
    Row("an aligned one", sp.mrc(SHORTS, 1, "aligned.ali")),
    Row("a density map, packed", sp.mrc(SHORTS, 1, "density.map.gz", gzip=True), ANGSTROMS),
    # OME-TIFF
    Row(
        "unit reference frame: pixels",
        sp.ome(dict.fromkeys("ZYX", 1), dict.fromkeys("ZYX", "reference frame")),
        (1, 1, 1, "pixel"),
    ),
    Row(
        "the same, with a size by hand",
        sp.ome(dict.fromkeys("ZYX", 1), dict.fromkeys("ZYX", "reference frame")),
        MICRO,
        options=BY_HAND,
    ),
    Row("decimetre", sp.ome({"Z": 2e-5, "Y": 5e-6, "X": 5e-6}, dict.fromkeys("ZYX", "dm")), MICRO),
    Row(
        "inch",
        sp.ome({"Z": 0.002, "Y": 0.001, "X": 0.001}, dict.fromkeys("ZYX", "in")),
        (50.8, 25.4, 25.4, "micrometer"),
    ),
    Row(
        "z in pixels, y and x not",
        sp.ome({"Z": 1, "Y": 0.5, "X": 0.5}, {"Z": "pixel", "Y": "\u00b5m", "X": "\u00b5m"}),
        NO_Z,
    ),
    Row("size 0: not known", sp.micrometres(0), NO_Z),
    Row("size 0, and one by hand", sp.micrometres(0), MICRO, options=BY_HAND),
    Row("a negative size: which way the stage went", sp.micrometres(-2), MICRO),
    Row("no size along z", sp.ome({"Y": 0.5, "X": 0.5}, {"Y": "\u00b5m", "X": "\u00b5m"}), NO_Z),
    Row("a size along z alone", sp.ome({"Z": 2}), (2, UNKNOWN, UNKNOWN, "micrometer")),
    Row(
        "another unit along z",
        sp.ome({"Z": 0.025, "Y": 16.5, "X": 16.5}, {"Z": "\u00b5m", "Y": "nm", "X": "nm"}),
        (25, 16.5, 16.5, "nanometer"),
    ),
    Row("Greek mu", sp.ome({"Z": 2, "Y": 0.5, "X": 0.5}, dict.fromkeys("ZYX", "\u03bcm")), MICRO),
    Row("an empty unit: that of the schema", sp.ome({"Z": 2, "Y": 0.5, "X": 0.5}, dict.fromkeys("ZYX", "")), MICRO),
    Row("a file for each section", sp.ome_files),
    # ImageJ
    Row("zunit micron beside nm", sp.imagej("unit=nm\nzunit=micron\nspacing=0.05"), (50, 0.5, 0.5, "nanometer")),
    Row("zunit nm beside micron", sp.imagej("unit=micron\nzunit=nm\nspacing=50.0"), (0.05, 0.5, 0.5, "micrometer")),
    Row("micro sign as an escape", sp.imagej("unit=\\u00B5m\nspacing=2.0"), MICRO),
    Row("micro sign in latin-1", sp.imagej("unit=\u00b5m\nspacing=2.0", encoding="latin1"), MICRO),
    Row("micro sign in UTF-8", sp.imagej("unit=\u00b5m\nspacing=2.0", encoding="utf8"), MICRO),
    Row("cm", sp.imagej("unit=cm\nspacing=0.01"), (0.1, 5, 5, "millimeter")),
    Row("inch", sp.imagej("unit=inch\nspacing=0.01", per_unit=200), (0.254, 0.127, 0.127, "millimeter")),
    Row("spacing NaN: not known", sp.imagej("unit=micron\nspacing=NaN"), NO_Z),
    Row("spacing NaN, and a size by hand", sp.imagej("unit=micron\nspacing=NaN"), MICRO, options=BY_HAND),
    Row("decimal comma", sp.imagej("unit=micron\nspacing=2,5"), NO_Z),
    Row(
        "one time point, two channels",
        sp.hyperstack(np.stack([IMAGE, 255 - IMAGE], 1)[None], "TZCYX"),
        MICRO,
        channels=2,
    ),
    Row("an RGB stack", sp.hyperstack(RGB, "ZYXS"), channels=3),
    # TIFF
    Row("LZW", sp.tif(IMAGE, compression="lzw")),
    Row("JPEG", sp.tif(IMAGE, **JPEG), exact=False),
    Row("zstd", sp.tif(IMAGE, compression="zstd")),
    Row("deflate", sp.tif(IMAGE, compression="zlib")),
    Row("tiles", sp.tif(IMAGE, tile=(32, 32), compression="zlib")),
    Row("half floats", sp.tif(IMAGE.astype(np.float16))),
    Row("floats with predictor", sp.tif(IMAGE.astype(np.float32), compression="zlib", predictor=True)),
    Row("big endian", sp.tif(IMAGE.astype(np.int16) - 999, byteorder=">"), voxels=IMAGE.astype(np.int16) - 999),
    Row("colours in planes", sp.tif(RGB.transpose(0, 3, 1, 2), photometric="rgb", planarconfig="separate"), channels=3),
    Row(
        "three sections stored as colours",
        sp.tif(IMAGE[:3], photometric="rgb", planarconfig="separate"),
        voxels=IMAGE[:3],
    ),
    Row(
        "three sections stored as colours, with --axes",
        sp.tif(IMAGE[:3], photometric="rgb", planarconfig="separate"),
        voxels=IMAGE[:3],
        options=("--axes", "zyx"),
    ),
    Row(
        "pixels per centimetre",
        sp.tif(IMAGE, resolution=(20000, 20000), resolutionunit="CENTIMETER", metadata=None),
        NO_Z,
    ),
    Row("every second page compressed", sp.pages_by_turns),
    Row("a folder of TIFFs, numbers without zeros", sp.sections(".tif")),
    Row("a folder of PNG pictures", sp.sections(".png", "{:03}")),
    # HDF5
    Row("axis tags x, y, z", sp.h5({"exported_data": IMAGE.transpose(2, 1, 0)}, axes="xyz")),
    Row("axis tags y, x, z", sp.h5({"exported_data": IMAGE.transpose(1, 2, 0)}, axes="yxz")),
    Row("axis tags z, y, x, c", sp.h5({"exported_data": IMAGE[..., None]}, axes="zyxc")),
    Row('resolution "30 nm"', sp.h5({"volumes/raw": IMAGE}, resolution="30 nm"), (30, 30, 30, "nanometer")),
    Row(
        "element_size_um with commas",
        sp.h5({"raw": IMAGE}, element_size_um="0.03,0.006,0.006"),
        EM,
    ),
    Row(
        "element_size_um as JSON",
        sp.h5({"raw": IMAGE}, element_size_um="[0.03, 0.006, 0.006]"),
        EM,
    ),
    Row(
        "the CREMI challenge: image beside labels",
        sp.h5(
            {"volumes/raw": IMAGE, "volumes/labels/clefts": sp.LABELS.astype(np.uint64)}, resolution=(40.0, 4.0, 4.0)
        ),
        (40, 4, 4, "nanometer"),
    ),
    Row("Fiji", sp.h5({"t0/channel0": IMAGE}, element_size_um=(2.0, 0.5, 0.5)), MICRO),
    Row("LZF", sp.h5_lzf),
    Row("a soft link", sp.h5_soft_link),
    Row("BigDataViewer", sp.big_data_viewer),
    # OME-Zarr
    Row("inch", sp.ngff(unit="inch"), (50.8, 12.7, 12.7, "millimeter")),
    Row("foot", sp.ngff(unit="foot"), (609.6, 152.4, 152.4, "millimeter")),
    Row("decimeter", sp.ngff(unit="decimeter"), (200, 50, 50, "millimeter")),
    Row("inch, and a size by hand", sp.ngff(unit="inch"), MICRO, options=BY_HAND),
    Row("scale 0: not known", sp.ngff(scale=(0, 0.5, 0.5)), NO_Z),
    Row("unit pixel", sp.ngff(unit="pixel"), (2, 0.5, 0.5, "pixel")),
    Row("unit micron", sp.ngff(unit="micron"), MICRO),
    Row("unit um", sp.ngff(unit="um"), MICRO),
    Row("unit null", sp.ngff(unit=None)),
    Row("unit empty", sp.ngff(unit="")),
    Row("an axis called channel", sp.ngff(IMAGE[None], "czyx", change=sp.long_channel_name), MICRO),
    Row("one level", sp.ngff(member="1"), (2, 1, 1, "micrometer"), IMAGE[:, ::2, ::2]),
    Row(
        "one level of five axes",
        sp.ngff(IMAGE[None, None], "tczyx", member="1"),
        (2, 1, 1, "micrometer"),
        IMAGE[:, ::2, ::2],
    ),
    Row("chunks in folders", sp.ngff(), MICRO),
    Row("chunks side by side", sp.ngff(separator="."), MICRO),
    Row("five axes", sp.ngff(IMAGE[None, None], "tczyx"), MICRO),
    Row("x, y, z", sp.ngff(IMAGE.transpose(2, 1, 0), "xyz", ("0",), (0.5, 0.5, 2)), MICRO),
    Row("levels in folders", sp.ngff(paths=("scale0/image", "scale1/image")), MICRO),
    Row("size beside the levels", sp.ngff(scale=(1, 1, 1), change=sp.size_beside_the_levels), MICRO),
    Row("Z, Y, X", sp.ngff(change=sp.capitals), MICRO),
    Row("version 0.3", sp.ngff(change=sp.plain_axis_names)),
    Row("version 0.1", sp.ngff(IMAGE[None, None], "tczyx", change=sp.no_axes)),
    Row("version 0.5 in a shard", sp.shard, MICRO),
    Row("a field of a plate", lambda folder: sp.plate(folder, field="A/1/0"), MICRO),
    Row("packed as .ome.zarr.zip", sp.zipped(sp.ngff(), "packed.ome.zarr.zip"), MICRO),
    Row("packed as .ozx", sp.zipped(sp.shard, "packed.ozx"), MICRO),
    # NIfTI
    Row("as scanners write it", sp.nifti(), MM),
    Row("micrometre", sp.nifti(unit="micron"), (3, 0.5, 0.5, "micrometer")),
    Row("metre", sp.nifti(affine=sp.AFFINE / [[1e3], [1e3], [1e3], [1]], unit="meter"), MM),
    Row("pixdim that nobody updated: the sform counts", sp.patched(sp.PIXDIM, 2, 2, 2, qform_code=0), MM),
    Row("negative pixdim", sp.patched(sp.PIXDIM, -0.5, 0.5, 3), MM),
    Row("pixdim 0", sp.patched(sp.PIXDIM, 0, 0, 0)),
    Row("pixdim NaN", sp.patched(sp.PIXDIM, float("nan"), 0.5, 3)),
    Row("slope NaN: not scaled", sp.patched(sp.SLOPE, float("nan"), float("nan"))),
    Row("version 2", sp.nifti(name="two.nii", kind=nibabel.Nifti2Image), MM),
    Row("one time point", sp.nifti(IMAGE.T[..., None], "one.nii"), MM),
    Row("colours", sp.nifti_colours, MM, channels=3),
    # NumPy
    Row("two colons in a name", sp.npy(IMAGE, "left::right.npy")),
    Row("blanks, accents, Chinese, # and %", sp.npy(IMAGE, "stack \u00e9 \u6837\u54c1 #1 100%.npy")),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_opens_rightly(row: Row, tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    answer = slicelabel("new", tmp_path / "p.slicelabel", row.make(tmp_path), *row.options)
    answer.assert_done()
    assert "Traceback" not in answer.err
    (volume,) = answer.json["volumes"].values()
    project = Project.open(tmp_path / "p.slicelabel")
    opened = project.volume(project.names[0])
    read = np.stack([opened.read_slice(SliceRef("z", z))[:, 0] for z in range(opened.shape[0])], 1)
    assert read.shape == (row.channels, *row.voxels.shape)
    if row.exact:
        np.testing.assert_array_equal(read[0], row.voxels)
    else:
        assert np.corrcoef(read[0].ravel(), row.voxels.ravel())[0, 1] > 0.98
    if row.size is not None:
        assert_size(volume["voxel_size"], volume["unit"], row.size)


def assert_size(size: list[float], unit: str, expected: tuple[float | None, float | None, float | None, str]) -> None:
    """The lengths are the same, in whatever unit; pixels have none."""
    assert (unit == "pixel") == (expected[-1] == "pixel")
    for found, right in zip(size, expected[:-1], strict=True):
        if right is not UNKNOWN:
            assert found * NM.get(unit, 1) == pytest.approx(right * NM.get(expected[-1], 1), rel=1e-3)


REFUSALS: tuple[tuple[str, sp.Maker, str], ...] = (
    ("one of the files of an OME-TIFF is lost", lambda folder: sp.ome_files(folder, lost=5), "z05|missing|not there"),
    ("a copy that broke off", sp.broken_copy, "truncated|incomplete|broke|ends|cut off|too short|missing|promise"),
    ("a plate", sp.plate, r"\bA\b.*\bB\b"),
    ("two time points", sp.nifti(np.stack([IMAGE.T] * 2, -1), "two.nii"), "time|4 axes|4D|four"),
)


@pytest.mark.parametrize(("make", "words"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_refused(make: sp.Maker, words: str, tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    answer = slicelabel("new", tmp_path / "p.slicelabel", make(tmp_path))
    answer.assert_refused(words)
    assert "damaged" not in answer.err or "broke off" in words
    assert not (tmp_path / "p.slicelabel").exists()


def test_slices_kept_as_channels(tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    """Either they are taken for what they are, or the hint helps."""
    path = sp.hyperstack(IMAGE[None, None], "TZCYX")(tmp_path)
    answer = slicelabel("new", tmp_path / "p.slicelabel", path)
    if answer.code:
        answer.assert_refused("--axes")
        answer = slicelabel("new", tmp_path / "p.slicelabel", path, "--axes", "zyx")
    answer.assert_done()
    assert answer.json["volumes"]["stack"]["shape"] == list(sp.SHAPE)


def test_a_file_that_is_being_written_is_not_damaged(tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    path = sp.h5({"raw": IMAGE})(tmp_path)
    with h5py.File(path, "a"):
        # as another process: a lock of this one would not keep it out
        answer = slicelabel("new", tmp_path / "p.slicelabel", path)
    assert "damaged" not in answer.err


def test_a_web_address_is_told_from_a_path(tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    answer = slicelabel("new", tmp_path / "p.slicelabel", "https://example.invalid/image.ome.zarr")
    answer.assert_refused("URL|web|remote|network|internet|download")
    assert "no such file" not in answer.err


def test_a_file_address_is_a_path(tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    answer = slicelabel("new", tmp_path / "p.slicelabel", f"file://{sp.ngff()(tmp_path)}")
    if answer.code:
        answer.assert_refused("URL|address")
        assert "no such file" not in answer.err


def test_slices_can_be_proposed_of_what_is_compressed(tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    slicelabel("new", tmp_path / "p.slicelabel", sp.tif(IMAGE, compression="lzw")(tmp_path)).assert_done()
    slicelabel("select", tmp_path / "p.slicelabel", "--budget", 2).assert_done()
