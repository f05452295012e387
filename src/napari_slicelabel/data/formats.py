"""Opening volumes and writing labels in the common file formats. The tables `READERS` and `WRITERS` say which.

| suffix | opens | writes |
|---|---|---|
| .ome.zarr, .zarr | OME-Zarr 0.4 and 0.5, any level; plain arrays | OME-Zarr 0.5 |
| .tif, .tiff | memory-mapped or page by page; OME and ImageJ sizes | ImageJ stack, BigTIFF |
| .nii, .nii.gz | x, y, z turned to z, y, x; millimeter | the same way back |
| .h5, .hdf5, .hdf | one dataset, ``FILE.h5::dataset`` | dataset `labels` |
| .mrc, .rec, .map | angstrom turned to nanometer | - |
| .npy | memory-mapped | - |
| .npz | one array, ``FILE.npz::array`` | - |
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from napari_slicelabel.data import readers
from napari_slicelabel.data.readers import Integral, Opened, Reader, Request
from napari_slicelabel.data.volume import Volume, check_axes, check_voxel_size, convert_length, parse_unit, sample_boxes
from napari_slicelabel.errors import InputError, MissingFileError, SliceLabelError

READERS: dict[str, Reader] = {
    ".zarr": readers.read_zarr,
    ".tif": readers.read_tiff,
    ".tiff": readers.read_tiff,
    ".nii": readers.read_nifti,
    ".nii.gz": readers.read_nifti,
    ".h5": readers.read_hdf5,
    ".hdf5": readers.read_hdf5,
    ".hdf": readers.read_hdf5,
    ".mrc": readers.read_mrc,
    ".rec": readers.read_mrc,
    ".map": readers.read_mrc,
    ".npy": readers.read_npy,
    ".npz": readers.read_npz,
}

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

    Returns
    -------
    Volume
        Nothing is read yet but metadata; a compressed .npz or .nii.gz is unpacked to a temporary file.

    Raises
    ------
    MissingFileError
        No such file, or no permission to read it.
    InputError
        Unknown suffix, damaged file, 1D or 2D data, several time points, an array that is not there, axes that do not fit.
    """
    request = _request(source, level=level, labels=False)
    return _volume(request, _open(request), axes=axes, voxel_size=voxel_size, unit=unit, name=name)


def open_labels(source: str | Path, *, axes: str | None = None) -> Volume:
    """Open labels lazily.

    Parameters
    ----------
    source : str or Path
        As in `open_volume`. In a file with image and labels the labels are taken: `labels` of a .npz, the label image of
        an OME-Zarr image, the label-like dataset of an .h5.
    axes : str, optional
        As in `open_volume`; without channels.

    Returns
    -------
    Volume
        One channel, of an integer dtype.

    Raises
    ------
    MissingFileError
        No such file, or no permission to read it.
    InputError
        As `open_volume`; also channels, and values that are not whole numbers. Floating point files that hold only whole
        numbers (usual in NIfTI) are accepted and read as int32.
    """
    request = _request(source, level=0, labels=True)
    opened = _open(request)
    volume = _volume(request, opened, axes=axes, voxel_size=None, unit=None, name=None)
    if volume.channels != 1:
        raise InputError(f"{volume.source}: {volume.channels} channels; expected labels, one value per voxel")
    if volume.dtype.kind == "f":
        whole = Opened(Integral(opened.array, volume.source), opened.axes, opened.voxel_size, opened.unit, opened.member)
        volume = _volume(request, whole, axes=axes, voxel_size=None, unit=None, name=None)
        for box in sample_boxes(volume):
            # every later read checks too; this refuses an image given by mistake at once
            volume.read(box)
    return volume


def split_source(source: str | Path) -> tuple[Path, str]:
    """Return the absolute path and the part after ``::`` ("" without one) of what the user gave."""
    file, _, member = str(source).partition("::")
    return Path(file).expanduser().absolute(), member.strip("/")


def suffix_of(path: Path, known: Sequence[str]) -> str | None:
    """Return the longest of the known suffixes that a file name ends with, or None."""
    name = path.name.lower()
    return max((s for s in known if name.endswith(s)), key=len, default=None)


def _request(source: str | Path, *, level: int, labels: bool) -> Request:
    path, member = split_source(source)
    if level < 0:
        raise InputError(f"level {level}: expected 0 (finest) or more")
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; check the path")
    return Request(path, member, level, labels)


def _reader(path: Path) -> Reader:
    suffix = suffix_of(path, list(READERS))
    inside_zarr = any(p.name.lower().endswith(".zarr") for p in path.parents)
    if path.is_dir() and (inside_zarr or any((path / m).exists() for m in ("zarr.json", ".zarray", ".zgroup"))):
        return readers.read_zarr
    if suffix is None or (path.is_dir() and suffix != ".zarr"):
        what = "a folder" if path.is_dir() else "an unknown kind of file"
        raise InputError(f"{path} is {what}; expected one of {', '.join(READERS)}")
    return READERS[suffix]


def _open(request: Request) -> Opened:
    """Open with the reader of the suffix; whatever its library raises on a bad file becomes one clear line."""
    reader = _reader(request.path)
    try:
        return reader(request)
    except SliceLabelError:
        raise
    except PermissionError as error:
        raise MissingFileError(f"{request.path}: no permission to read it; change its permissions") from error
    except Exception as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{request.path} cannot be opened as {request.path.suffix}: {detail}; is it damaged?") from error


def _volume(
    request: Request,
    opened: Opened,
    *,
    axes: str | None,
    voxel_size: Sequence[float] | None,
    unit: str | None,
    name: str | None,
) -> Volume:
    """Return the volume over an opened array; what the user said comes before what the file says."""
    source = f"{request.path}::{opened.member}" if opened.member else str(request.path)
    shape = tuple(int(n) for n in opened.array.shape)
    letters = (axes or opened.axes or _guess_axes(shape, source)).lower()
    check_axes(shape, letters, source)
    file_unit, factor = parse_unit(opened.unit)
    file_size = check_voxel_size(opened.voxel_size or (1, 1, 1), factor)
    chosen_unit, factor = parse_unit(unit) if unit is not None else (file_unit, 1.0)
    if voxel_size is not None:
        size = check_voxel_size(voxel_size, factor)
    else:
        size = check_voxel_size(file_size, convert_length(file_unit, chosen_unit) if "pixel" != file_unit else factor)
    same_grid = opened.voxel_size is not None and np.allclose(
        size, np.multiply(file_size, convert_length(file_unit, chosen_unit)), rtol=1e-3
    )
    return Volume(
        opened.array,
        name=name or _default_name(request.path, opened.member),
        source=source,
        axes=letters,
        voxel_size=size,
        unit=chosen_unit,
        channel_names=opened.channel_names,
        # an affine speaks of the voxel size of the file: with another one it would be wrong
        affine=opened.affine if same_grid else None,
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


__all__ = ["READERS", "open_labels", "open_volume", "split_source"]
