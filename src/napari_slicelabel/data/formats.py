"""Opening volumes and writing labels in the common file formats. The tables `READERS` and `WRITERS` say which.

| suffix | opens | writes |
|---|---|---|
| .ome.zarr, .zarr | OME-Zarr 0.1 to 0.5, any level; plain arrays | OME-Zarr 0.5 |
| .zarr.zip, .ozx | the same in a zip file | - |
| .tif, .tiff | memory-mapped or page by page, any codec; OME and ImageJ sizes | ImageJ stack, BigTIFF |
| .nii, .nii.gz | x, y, z turned to z, y, x; millimeter | the same way back |
| .h5, .hdf5, .hdf | one dataset, ``FILE.h5::dataset`` | dataset `labels` |
| .mrc, .rec, .map, .st, .ali, .preali, .mrcs, also .gz | angstrom turned to nanometer | - |
| a folder | one picture (.tif, .png, .jpg, .bmp) for each section | - |
| .npy | memory-mapped | - |
| .npz | one array, ``FILE.npz::array`` | - |
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from napari_slicelabel.data import readers, writers
from napari_slicelabel.data.classes import PAINTED_BACKGROUND, LabelClass
from napari_slicelabel.data.files import replacing, storage_errors, sweep
from napari_slicelabel.data.reader_sections import SECTION_SUFFIXES, read_section, read_sections, section_files
from napari_slicelabel.data.reader_tiff import read_tiff
from napari_slicelabel.data.reader_zarr import ZARR_MARKS, read_zarr
from napari_slicelabel.data.readers import Integral, OneSection, Opened, Reader, Request
from napari_slicelabel.data.units import check_voxel_size, parse_unit, resolve_grid
from napari_slicelabel.data.volume import ArrayLike3D, NanRule, Volume, check_axes, sample_boxes
from napari_slicelabel.data.writers import Job, Writer
from napari_slicelabel.errors import InputError, MissingFileError, SliceLabelError

READERS: dict[str, Reader] = {
    ".zarr": read_zarr,
    ".zarr.zip": read_zarr,
    ".ozx": read_zarr,
    ".tif": read_tiff,
    ".tiff": read_tiff,
    ".nii": readers.read_nifti,
    ".nii.gz": readers.read_nifti,
    ".h5": readers.read_hdf5,
    ".hdf5": readers.read_hdf5,
    ".hdf": readers.read_hdf5,
    **{
        f".{name}{packed}": readers.read_mrc
        for name in ("mrc", "rec", "map", "st", "ali", "preali", "mrcs")
        for packed in ("", ".gz")
    },
    ".npy": readers.read_npy,
    ".npz": readers.read_npz,
}

WRITERS: dict[str, Writer] = {
    ".zarr": writers.write_zarr,
    ".tif": writers.write_tiff,
    ".tiff": writers.write_tiff,
    ".nii": writers.write_nifti,
    ".nii.gz": writers.write_nifti,
    ".h5": writers.write_hdf5,
    ".hdf5": writers.write_hdf5,
    ".hdf": writers.write_hdf5,
}

NNUNET_UNKNOWN = PAINTED_BACKGROUND
"""Value in the labels of an `NnunetCase` where nothing is known, as in the pseudo-labels of a run."""

# array names that say nothing about which image it is: the file's own name is better
_PLAIN_NAMES = {"image", "labels", "label", "raw", "data", "volume", "array", "main", "0", "s0"}


def open_volume(
    source: str | Path,
    *,
    axes: str | None = None,
    voxel_size: Sequence[float] | None = None,
    unit: str | None = None,
    level: int = 0,
    name: str | None = None,
    nan: NanRule = "background",
) -> Volume:
    """Open an image lazily.

    Parameters
    ----------
    source : str or Path
        A file or an OME-Zarr folder; ``FILE.npz::array`` and ``FILE.h5::dataset`` name one of several arrays.
    axes : str, optional
        One letter for each axis of the stored array, such as "zyx", "czyx", "xyz". By default as the file says, and
        "zyx" for three axes where it does not.
    voxel_size : sequence of 3 float, optional
        Along z, y, x. By default as the file says, and 1.
    unit : str, optional
        Of `voxel_size`: nanometer, micrometer, millimeter, pixel, or nm, um, mm. By default as the file says. Given
        alone, a size that the file has in another unit is converted.
    level : int
        Resolution level of an OME-Zarr or TIFF pyramid, 0 = finest.
    name : str, optional
        By default from the name of the file or array.
    nan : {"background", "refuse"}
        Whether values that are not finite (outside of the field of view) are read as the smallest value of the image.

    Returns
    -------
    Volume
        Nothing is read yet but metadata; a compressed .npz or .nii.gz is unpacked to a temporary file. What the file
        leaves open is said in its `notes`.

    Raises
    ------
    MissingFileError
        No such file, or no permission to read it.
    InputError
        Unknown suffix, damaged file, 1D or 2D data, several time points, an array that is not there, axes that do
        not fit. What the user gives comes first: no size or unit of the file is looked at where one is given.
    """
    request = _request(source, level=level, labels=False, axes=axes)
    return _volume(request, _open(request), axes=axes, voxel_size=voxel_size, unit=unit, name=name, nan=nan)


def stated_axes(source: str | Path) -> tuple[str, tuple[int, ...]]:
    """Return the axes that a file states, one letter each, "" where it does not, and the shape of its array.

    Raises
    ------
    MissingFileError, InputError
        As `open_volume`, but for axes that it would not take.
    """
    opened = _open(_request(source, level=0, labels=False, axes=None))
    return opened.axes.lower(), tuple(int(n) for n in opened.array.shape)


def open_labels(source: str | Path, *, axes: str | None = None) -> Volume:
    """Open labels lazily.

    Parameters
    ----------
    source : str or Path
        As in `open_volume`. In a file with image and labels the labels are taken: `labels` of a .npz, the label image
        of an OME-Zarr image, the label-like dataset of an .h5.
    axes : str, optional
        As in `open_volume`; without channels.

    Returns
    -------
    Volume
        One channel, of an integer dtype; three or four where the file holds colours. A single section has shape
        (1, h, w).

    Raises
    ------
    MissingFileError
        No such file, or no permission to read it.
    InputError
        As `open_volume`; also channels, and values that are not whole numbers. Floating point files that hold only
        whole numbers (usual in NIfTI) are accepted and read as int32.
    """
    request = _request(source, level=0, labels=True, axes=axes)
    opened = _open(request)
    axes = axes or opened.axes or _axes_of_labels(opened.array.shape)
    if axes and "z" not in axes.lower() and len(axes) == len(opened.array.shape):
        opened, axes = replace(opened, array=OneSection(opened.array)), f"z{axes}"
    volume = _volume(request, opened, axes=axes, voxel_size=None, unit=None, name=None)
    if volume.channels != 1 and not (volume.channels in (3, 4) and volume.dtype == np.uint8):
        raise InputError(
            f"{volume.source}: {volume.channels} channels; expected labels, one value per voxel, or colours (RGB)"
        )
    if volume.dtype.kind == "f":
        whole = replace(opened, array=Integral(opened.array, volume.source))
        volume = _volume(request, whole, axes=axes, voxel_size=None, unit=None, name=None)
        for box in sample_boxes(volume):
            # every later read checks too; this refuses an image given by mistake at once
            volume.read(box)
    return volume


def _axes_of_labels(shape: tuple[int, ...]) -> str | None:
    """Return the axes of labels with axes of length 1 in front or behind; None where that does not tell."""
    for axes in ("yx", "czyx", "zyxc", "tczyx"):
        if len(shape) == len(axes) and all(n == 1 for n, a in zip(shape, axes, strict=True) if a in "tc"):
            return axes
    return None


def write_labels(
    path: str | Path,
    labels: ArrayLike3D,
    *,
    voxel_size: Sequence[float],
    unit: str,
    classes: Sequence[LabelClass],
    image: Volume | None = None,
) -> None:
    """Write labels in the format that the suffix names, plane by plane or block by block.

    Parameters
    ----------
    path : str or Path
        Ends in .zarr, .ome.zarr, .tif, .tiff, .nii, .nii.gz, .h5, .hdf5 or .hdf. It appears complete or not at all;
        what is there is replaced (a folder only if it is a zarr).
    labels : array-like of shape (z, y, x), integer or bool
        numpy, zarr, dask, h5py; never loaded whole.
    voxel_size : sequence of 3 float
        Along z, y, x, in `unit`.
    unit : str
        As in `Volume`.
    classes : sequence of LabelClass
        Kept with name and colour in OME-Zarr, with name in HDF5. May be empty.
    image : Volume, optional
        The image that the labels belong to: OME-Zarr gets a copy of it with the labels inside, NIfTI takes over its
        affine; the other formats ignore it.

    Raises
    ------
    InputError
        Unknown suffix, labels that are not 3D integers, an image of another shape, a target that is the image itself.
    StorageError
        Disk full, no permission, no such folder.
    """
    target = Path(path).expanduser().absolute()
    suffix = suffix_of(target, list(WRITERS))
    if suffix is None:
        raise InputError(f"{target}: labels are written to {', '.join(WRITERS)}; choose one of these endings")
    dtype = _label_dtype(labels.dtype, str(target))
    if len(labels.shape) != 3 or 0 in labels.shape:
        raise InputError(f"labels of shape {tuple(labels.shape)}; expected 3D (z, y, x)")
    if image is not None and image.shape != tuple(labels.shape):
        raise InputError(f"labels of shape {tuple(labels.shape)} do not belong to an image of shape {image.shape}")
    if image is not None and image.source:
        source = split_source(image.source)[0].resolve()
        if target.resolve() in (source, *source.parents):
            raise InputError(f"{target} holds the image itself; choose another file")
    if target.is_dir() and not (suffix == ".zarr" and any((target / m).exists() for m in ZARR_MARKS)):
        raise InputError(f"{target} is a folder that holds something else; choose another name")
    plain_unit, factor = parse_unit(unit)
    sweep(target.parent)
    with storage_errors(target), replacing(target) as temporary:
        WRITERS[suffix](
            Job(
                path=temporary,
                name=_default_name(target, ""),
                labels=labels,
                dtype=dtype,
                voxel_size=check_voxel_size(voxel_size, factor),
                unit=plain_unit,
                classes=tuple(classes),
                image=image,
            )
        )


@dataclass(frozen=True, slots=True)
class NnunetCase:
    """One training case for nnU-Net.

    Attributes
    ----------
    name : str
        Letters, digits and ``_ . -``.
    image : Volume
        Each channel becomes one file.
    labels : array-like of shape (z, y, x), integer
        0 = background, 1 to 254 = class, 255 = unknown (see `Annotation.targets`). May be lazy.
    """

    name: str
    image: Volume
    labels: ArrayLike3D


def write_nnunet(
    folder: str | Path, cases: Sequence[NnunetCase], classes: Sequence[LabelClass], *, ignore: bool
) -> None:
    """Write a data set for nnU-Net v2: imagesTr, labelsTr and dataset.json.

    Parameters
    ----------
    folder : str or Path
        To be created; nnU-Net wants names like ``Dataset001_Cells``. It appears complete or not at all.
    cases : sequence of NnunetCase
        At least one, all with the same number of channels.
    classes : sequence of LabelClass
        nnU-Net wants labels 1, 2, 3 without gaps: class ids are numbered anew in their order; dataset.json has the
        names.
    ignore : bool
        Whether unknown voxels (255) are allowed. They get the ignore label of nnU-Net, which is the highest value.

    Raises
    ------
    InputError
        The folder exists, no case, no class, names that clash, shapes that differ, values that are no class, or 255
        without `ignore`.
    StorageError
        Disk full, no permission.
    """
    target = Path(folder).expanduser().absolute()
    _check_cases(target, cases, classes)
    table = np.full(256, -1, np.int16)
    table[0] = 0
    ordered = sorted(classes, key=lambda c: c.id)
    for number, item in enumerate(ordered, start=1):
        table[item.id] = number
    if ignore:
        table[NNUNET_UNKNOWN] = len(ordered) + 1
    channels = cases[0].image.channels
    names = cases[0].image.channel_names or tuple(f"channel {i}" if channels > 1 else "image" for i in range(channels))
    labels = {"background": 0, **{c.name: i for i, c in enumerate(ordered, start=1)}}
    if ignore:
        labels["ignore"] = len(ordered) + 1
    description = {
        "channel_names": {str(i): n for i, n in enumerate(names)},
        "labels": labels,
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    sweep(target.parent)
    with storage_errors(target), replacing(target) as temporary:
        (temporary / "imagesTr").mkdir(parents=True)
        (temporary / "labelsTr").mkdir()
        for case in cases:
            _write_case(temporary, case, table)
        (temporary / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _check_cases(target: Path, cases: Sequence[NnunetCase], classes: Sequence[LabelClass]) -> None:
    if target.exists():
        raise InputError(f"{target} already exists; choose another folder")
    if not cases or not classes:
        raise InputError(f"{len(cases)} cases and {len(classes)} classes; nnU-Net needs at least one of each")
    if {"background", "ignore"} & {c.name for c in classes}:
        raise InputError(
            "a class is called background or ignore; nnU-Net keeps these names for itself, rename the class"
        )
    names = [c.name for c in cases]
    if len(set(names)) != len(names) or not all(re.fullmatch(r"[A-Za-z0-9_.-]+", n) for n in names):
        raise InputError(f"case names {', '.join(names)}: expected different ones of letters, digits, _ . -")
    for case in cases:
        _label_dtype(case.labels.dtype, case.name)
        if case.image.shape != tuple(case.labels.shape):
            raise InputError(f"case {case.name}: labels {tuple(case.labels.shape)} and image {case.image.shape} differ")
        if case.image.channels != cases[0].image.channels:
            raise InputError(
                f"case {case.name} has {case.image.channels} channels, {names[0]} {cases[0].image.channels}"
            )


def _write_case(folder: Path, case: NnunetCase, table: NDArray[np.int16]) -> None:
    """Write the files of one case; `table` maps our label values to those of nnU-Net, -1 what is not allowed."""
    image = case.image

    def planes() -> Iterator[NDArray[Any]]:
        for z in range(image.shape[0]):
            plane = np.asarray(case.labels[z, :, :])
            mapped = table[plane.clip(0, 255)]
            if mapped.min() < 0 or plane.min() < 0 or plane.max() > 255:
                wrong = plane[(mapped < 0) | (plane < 0) | (plane > 255)].flat[0]
                raise InputError(
                    f"case {case.name}: label value {wrong} in slice z{z} is no class;"
                    " expected 0, the ids of the classes, and 255 (unknown) only with an ignore label"
                )
            yield mapped.astype(np.uint8)

    shape, voxel_size, unit, frame = image.shape, image.voxel_size, image.unit, image.nifti_header
    # NIfTI knows no half precision
    dtype = np.dtype(np.float32) if image.dtype == np.float16 else image.dtype
    for channel in range(image.channels):
        path = folder / "imagesTr" / f"{case.name}_{channel:04d}.nii.gz"
        writers.write_nifti_stream(path, writers.volume_planes(image, channel), shape, dtype, voxel_size, unit, frame)
    path = folder / "labelsTr" / f"{case.name}.nii.gz"
    writers.write_nifti_stream(path, planes(), shape, np.dtype(np.uint8), voxel_size, unit, frame)


def _label_dtype(dtype: Any, what: str) -> np.dtype[Any]:
    plain = np.dtype(dtype)
    if plain.kind not in "bui":
        raise InputError(f"{what}: labels of type {plain}; expected integers")
    return np.dtype(np.uint8) if plain.kind == "b" else np.dtype(plain.newbyteorder("="))


def split_source(source: str | Path) -> tuple[Path, str]:
    """Return the absolute path and the part after ``::`` ("" without one) of what the user gave.

    Raises
    ------
    InputError
        A web address.
    """
    text = str(source)
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    elif (match := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}", text)) and not Path(text).exists():
        raise InputError(f"{text} is a web address ({match[1]}); download the image first, and give the file")
    whole = Path(text).expanduser().absolute()
    if "::" not in text or whole.exists():
        return whole, ""
    # the first :: that leaves a file that is there: names of files and of arrays may hold two colons
    parts = text.split("::")
    for count in range(1, len(parts)):
        path = Path("::".join(parts[:count])).expanduser().absolute()
        if path.exists():
            return path, "::".join(parts[count:]).strip("/")
    return Path(parts[0]).expanduser().absolute(), "::".join(parts[1:]).strip("/")


def suffix_of(path: Path, known: Sequence[str]) -> str | None:
    """Return the longest of the known suffixes that a file name ends with, or None."""
    name = path.name.lower()
    return max((s for s in known if name.endswith(s)), key=len, default=None)


def _request(source: str | Path, *, level: int, labels: bool, axes: str | None) -> Request:
    path, member = split_source(source)
    if level < 0:
        raise InputError(f"level {level}: expected 0 (finest) or more")
    _check_is_there(path)
    return Request(path, member, level, labels, (axes or "").lower())


def _check_is_there(path: Path) -> None:
    with storage_errors(path, "open"):
        exists = path.exists()
    if not exists:
        raise MissingFileError(f"{path}: no such file; check the path")
    if not (path.is_file() or path.is_dir()):
        # to open a pipe that nobody writes to would never end
        raise InputError(f"{path} is a pipe or a device; give a file or a folder")


def _reader(path: Path, *, labels: bool = False) -> Reader:
    suffix = suffix_of(path, list(READERS))
    inside_zarr = any(p.name.lower().endswith(".zarr") for p in path.parents)
    if path.is_dir() and (inside_zarr or any((path / m).exists() for m in ZARR_MARKS)):
        return read_zarr
    if path.is_dir() and suffix != ".zarr":
        if section_files(path):
            return read_sections
        raise InputError(
            f"{path} is a folder without pictures; expected a .zarr, or one picture for each section:"
            f" {', '.join(SECTION_SUFFIXES)}"
        )
    if suffix is None and labels and path.suffix.lower() in SECTION_SUFFIXES:
        return read_section
    if suffix is None:
        raise InputError(f"{path} is an unknown kind of file; {_advice(path)}")
    return READERS[suffix]


_ELSEWHERE = {
    (".dcm", ".dicom", ".ima"): "convert DICOM to .nii.gz first (dcm2niix)",
    (".nrrd", ".nhdr", ".mha", ".mhd"): "save it as .nii.gz first (3D Slicer, SimpleITK)",
    (".hdr", ".img"): "save Analyze images as .nii.gz first (3D Slicer, SimpleITK)",
    (".ims", ".czi", ".lif", ".nd2", ".lsm", ".oib", ".vsi"): "save it as .ome.tif or .ome.zarr first (Fiji)",
    (".n5",): "convert it to .ome.zarr first",
}


def _advice(path: Path) -> str:
    for suffixes, advice in _ELSEWHERE.items():
        if path.name.lower().removesuffix(".gz").endswith(suffixes):
            return advice
    return f"expected one of {', '.join(READERS)}, or a folder with one picture for each section"


def _open(request: Request) -> Opened:
    """Open with the reader of the suffix; whatever its library raises on a bad file becomes one clear line."""
    reader = _reader(request.path, labels=request.labels)
    try:
        return reader(request)
    except SliceLabelError:
        raise
    except PermissionError as error:
        raise MissingFileError(f"{request.path}: no permission to read it; change its permissions") from error
    except ModuleNotFoundError as error:
        raise InputError(
            f"{request.path} needs the package {error.name}; install it: pip install {error.name}"
        ) from error
    except Exception as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{request.path} cannot be opened as {request.path.suffix}: {detail}; is it damaged?"
        ) from error


def _volume(
    request: Request,
    opened: Opened,
    *,
    axes: str | None,
    voxel_size: Sequence[float] | None,
    unit: str | None,
    name: str | None,
    nan: NanRule = "background",
) -> Volume:
    """Return the volume over an opened array; what the user said comes before what the file says."""
    source = f"{request.path}::{opened.member}" if opened.member else str(request.path)
    shape = tuple(int(n) for n in opened.array.shape)
    letters = (axes or opened.axes or _guess_axes(shape, source)).lower()
    check_axes(shape, letters, source)
    grid = resolve_grid(opened.stated, voxel_size, unit)
    # an affine speaks of the axes and voxel size of the file: with others it would be wrong
    placed = grid.as_in_file and letters == (opened.axes or letters)
    return Volume(
        opened.array,
        name=name or _default_name(request.path, opened.member),
        source=source,
        axes=letters,
        voxel_size=grid.voxel_size,
        unit=grid.unit,
        channel_names=opened.channel_names,
        affine=opened.affine if placed else None,
        nifti_header=opened.nifti_header if placed else None,
        origins={
            "axes": "user" if axes else "file" if opened.axes else "default",
            "voxel_size": grid.origin,
        },
        notes=(*opened.notes, *grid.notes),
        nan=nan,
    )


def _guess_axes(shape: tuple[int, ...], source: str) -> str:
    if len(shape) == 3:
        return "zyx"
    if len(shape) < 3:
        raise InputError(f"{source}: {len(shape)}D data of shape {shape}; expected a 3D image (z, y, x)")
    raise InputError(f"{source}: shape {shape} has {len(shape)} axes; say which they are, such as axes='czyx'")


def _default_name(path: Path, member: str) -> str:
    last = member.rsplit("/", 1)[-1]
    if last and last.lower() not in _PLAIN_NAMES:
        return last
    suffix = suffix_of(path, [*READERS, ".ome.zarr", ".ome.tif", ".ome.tiff"])
    return (path.name[: -len(suffix)] if suffix else path.name) or path.name


__all__ = [
    "READERS",
    "WRITERS",
    "NnunetCase",
    "open_labels",
    "open_volume",
    "split_source",
    "suffix_of",
    "write_labels",
    "write_nnunet",
]
