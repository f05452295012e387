"""One function per file format: find the array in the file, lazily, and what the file says about it.

Each takes a `Request` and returns an `Opened`. They may raise anything a library raises on a damaged file;
`formats.open_volume` turns that into one clear line. Libraries are imported inside the functions, to keep imports fast.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from napari_slicelabel.data.spill import spilled
from napari_slicelabel.data.units import Stated, convert_length, parse_unit, stated_sizes
from napari_slicelabel.data.volume import ArrayLike
from napari_slicelabel.errors import InputError

_NEARLY = 1e-3
_IMOD_STAMP = 1146047817
_MRC_AXES = {1: "x", 2: "y", 3: "z"}
_AXIS_WORDS = {
    **{letter: letter for letter in "tczyx"},
    "channel": "c", "channels": "c", "s": "c", "sample": "c", "samples": "c", "rgb": "c", "color": "c", "colour": "c",
    "time": "t", "frame": "t", "depth": "z", "plane": "z", "slice": "z", "height": "y", "row": "y", "width": "x",
    "column": "x",
}  # fmt: skip
_LABEL_WORDS = re.compile(r"label|seg|mask|truth|\bgt\b|annot", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Request:
    """What to open.

    Attributes
    ----------
    path : Path
        The file or folder.
    member : str
        What stood after ``::``, or "".
    level : int
        Resolution level, 0 = finest.
    labels : bool
        Whether labels are wanted, where a file holds image and labels.
    axes : str
        What the user says of the axes, or "".
    """

    path: Path
    member: str = ""
    level: int = 0
    labels: bool = False
    axes: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """A lazy array and what its file says about it.

    Attributes
    ----------
    array : array-like
        Memory-mapped, or read when it is sliced.
    axes : str
        One letter for each axis of the array; "" when the file does not say.
    stated : mapping
        Axis letter (z, y, x) to size of a voxel and its unit, as the file states them, even where that makes no sense.
    member : str
        Which array of the file it is, where it holds several.
    channel_names : tuple of str
        As the file names them.
    affine : ndarray of shape (4, 4), float64, optional
        Index (x, y, z) of a voxel to its place in millimeter.
    nifti_header : nibabel header, optional
        Of a NIfTI file.
    notes : tuple of str
        Sentences for the user about what the file leaves open.
    """

    array: ArrayLike
    axes: str = ""
    stated: Mapping[str, Stated] = field(default_factory=dict)
    member: str = ""
    channel_names: tuple[str, ...] = ()
    affine: NDArray[np.float64] | None = None
    nifti_header: Any = None
    notes: tuple[str, ...] = ()


Reader = Callable[[Request], Opened]


class Scaled:
    """An array times `slope` plus `inter`, computed for what is read: float32.

    Attributes
    ----------
    shape : tuple of int
        Of the array behind.
    dtype : numpy.dtype
        float32.
    """

    def __init__(self, array: ArrayLike, slope: float, inter: float) -> None:
        self._array, self._slope, self._inter = array, slope, inter
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        """Return the scaled values of a part."""
        return (np.asarray(self._array[index], np.float64) * self._slope + self._inter).astype(np.float32)


class Integral:
    """A floating point array that must hold whole numbers, or nearly, read as int32; anything else raises `InputError`.

    Attributes
    ----------
    shape : tuple of int
        Of the array behind.
    dtype : numpy.dtype
        int32.
    """

    def __init__(self, array: ArrayLike, what: str) -> None:
        self._array, self._what = array, what
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(np.int32)

    def __getitem__(self, index: Any) -> NDArray[np.int32]:
        """Return a part as integers."""
        values = np.asarray(self._array[index])
        # compared in float: casting what does not fit is undefined. A resampler may leave 2.00003 of a 2
        values = values.astype(np.float64)
        whole = np.isfinite(values) & (np.abs(values) < 2**31) & (np.abs(values - np.round(values)) < _NEARLY)
        if not whole.all():
            raise InputError(f"{self._what}: the value {values[~whole].flat[0]:g}; labels must be whole numbers")
        return np.round(values).astype(np.int32)


class OneSection:
    """A single section as an array with one more axis in front, of length 1.

    Attributes
    ----------
    shape : tuple of int
        Of the section, behind a 1.
    dtype : numpy.dtype
        The same.
    """

    def __init__(self, array: ArrayLike) -> None:
        self._array = array
        self.shape = (1, *array.shape)
        self.dtype = np.dtype(array.dtype)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Return the part that a tuple of ints and slices names."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        section = np.asarray(self._array[tuple(rest)])
        return section if isinstance(first, int) else section[None][first]


def read_npy(request: Request) -> Opened:
    """Open a ``.npy`` file by memory-mapping it."""
    _no_levels(request)
    return Opened(_map_npy(request.path))


def read_npz(request: Request) -> Opened:
    """Open one array of a ``.npz`` file; by default `image` or `labels`, or the only one.

    Notes
    -----
    A compressed array cannot be read in part: it is unpacked once into a temporary file (see `spilled`).
    The keys voxel_size_nm, voxel_size_um and voxel_size_mm (three numbers, z, y, x) are understood.
    """
    import zipfile

    _no_levels(request)
    with zipfile.ZipFile(request.path) as archive:
        names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        sizes = {n: m for n in names if (m := re.fullmatch(r"voxel_size_(nm|um|mm)", n))}
        arrays = [n for n in names if n not in sizes]
        member = request.member
        if not member:
            preferred = "labels" if request.labels else "image"
            member = preferred if preferred in arrays or len(arrays) != 1 else arrays[0]
        if member not in arrays:
            raise InputError(
                f"{request.path} has no array {member!r}; give one of these: "
                + ", ".join(f"{request.path.name}::{n}" for n in arrays[:20])
                + (f" and {len(arrays) - 20} more" if len(arrays) > 20 else "")
            )
        stated: dict[str, Stated] = {}
        for name, match in sizes.items():
            with archive.open(f"{name}.npy") as stream:
                stated = stated_sizes(np.lib.format.read_array(stream, allow_pickle=False), match[1])

    @contextmanager
    def unpacked() -> Iterator[IO[bytes]]:
        with zipfile.ZipFile(request.path) as archive, archive.open(f"{member}.npy") as stream:
            yield stream

    path = spilled(request.path, member, ".npy", unpacked)
    return Opened(_map_npy(path), stated=stated, member=member)


def read_hdf5(request: Request) -> Opened:
    """Open a dataset of an HDF5 file: the one named, the only one with three axes, or the largest.

    Notes
    -----
    Among several, names that speak of labels come first when labels are wanted and last otherwise.
    Understood are the attributes element_size_um, resolution (in nanometer, as CREMI writes it) and axistags (vigra and
    ilastik), and the names of dimensions.
    """
    import h5py
    import hdf5plugin  # noqa: F401 - its import registers the codecs lz4, zstd, bitshuffle and others

    _no_levels(request)
    file = _open_hdf5(request.path)
    datasets: list[Any] = []
    file.visititems(lambda _, node: datasets.append(node) if isinstance(node, h5py.Dataset) else None)
    if request.member:
        node = file.get(request.member)
        if not isinstance(node, h5py.Dataset):
            known = ", ".join(d.name.lstrip("/") for d in datasets[:20])
            raise InputError(f"{request.path} has no dataset {request.member!r}; it has {known or 'none'}")
    else:
        usable = [d for d in datasets if d.ndim >= 3 and d.dtype.kind in "bui"] if request.labels else []
        usable = usable or [d for d in datasets if d.ndim >= 2 + (not request.labels) and d.dtype.kind in "buif"]
        if not usable:
            known = ", ".join(f"{d.name.lstrip('/')} {d.shape} {d.dtype}" for d in datasets[:20])
            raise InputError(f"{request.path} has no 3D {'label ' * request.labels}dataset; it has {known or 'none'}")
        node = max(usable, key=lambda d: (bool(_LABEL_WORDS.search(d.name)) == request.labels, d.size))
    axes = _hdf5_axes(node)
    return Opened(node, axes, attribute_sizes(node.attrs, axes), member=(request.member or node.name).lstrip("/"))


def _open_hdf5(path: Path) -> Any:
    """Open a file for reading; one that another program writes to is said to be in use, not damaged."""
    import errno

    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        locked = error.errno in (errno.EAGAIN, errno.EACCES) or "unable to lock file" in str(error)
        if locked or "already open for write" in str(error):
            raise InputError(
                f"{path} is open in another program that writes to it; close it there, or copy the file"
            ) from error
        raise


def _hdf5_axes(node: Any) -> str:
    """Return the axes that a dataset states: in vigra's tags, or as the labels of its dimensions."""
    tags = node.attrs.get("axistags")
    if tags is not None:
        text = tags.decode("utf-8", "replace") if isinstance(tags, bytes) else str(tags)
        try:
            keys = [str(_mapping(axis).get("key", "")) for axis in _mapping(json.loads(text)).get("axes", ())]
        except ValueError:
            keys = []
        if len(keys) == node.ndim:
            return axis_letters(keys)
    return axis_letters([dimension.label for dimension in node.dims])


def axis_letters(names: Sequence[object], kinds: Sequence[object] = ()) -> str:
    """Return one letter for each axis from its name, or from its kind ("channel", "time"); "" where one says nothing.

    Examples
    --------
    >>> axis_letters(["channel", "Z", "Y", "X"]), axis_letters(["dim_0", "y", "x"])
    ('czyx', '')
    """
    letters = []
    for number, name in enumerate(names):
        word = str(name or "").strip().lower()
        kind = str(kinds[number]).lower() if number < len(kinds) else ""
        letter = _AXIS_WORDS.get(word) or _AXIS_WORDS.get(kind) or ""
        letters.append(letter)
    return "".join(letters) if all(letters) else ""


def read_mrc(request: Request) -> Opened:
    """Open an MRC file by memory-mapping it; its voxel size is in angstrom.

    Notes
    -----
    Headers from before the year 2000, without the word MAP or the machine stamp, are accepted where they are otherwise
    sound. Bytes are unsigned where IMOD's stamp says so (https://bio3d.colorado.edu/imod/doc/mrc_format.txt). The order
    of the axes (mapc, mapr, maps) is honoured.
    A file ending in .gz is unpacked once into a temporary file (see `spilled`).
    """
    import gzip
    import warnings

    import mrcfile

    _no_levels(request)
    path = request.path
    if path.name.lower().endswith(".gz"):
        path = spilled(path, "", ".mrc", lambda: gzip.GzipFile(request.path, "rb"))
    with warnings.catch_warnings():
        # an old header, or bytes behind the data: what matters of it is checked below
        warnings.simplefilter("ignore")
        mrc = mrcfile.mmap(path, mode="r", permissive=True)
    with mrc:
        size, header = mrc.voxel_size, mrc.header
        data, is_stack = mrc.data, mrc.is_volume_stack()
    order = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    if data is None or min(int(header[n]) for n in ("nx", "ny", "nz")) < 1:
        raise InputError(f"{request.path} is no MRC file, or ends before its voxels do; copy it again")
    stamp, flags = (int(v) for v in np.frombuffer(header.tobytes()[152:160], header["nx"].dtype.newbyteorder("=")))
    if data.dtype == np.int8 and stamp == _IMOD_STAMP and not flags & 1:
        data = data.view(np.uint8)
    letters = "".join(_MRC_AXES.get(number, "") for number in order)
    axes = letters if sorted(letters) == ["x", "y", "z"] else "zyx"
    if data.ndim == 2:
        raise InputError(f"{request.path} is a 2D image, shape {data.shape}; expected a 3D stack")
    stated = {a: (float(getattr(size, a)), "angstrom") for a in "zyx"}
    return Opened(data, "t" + axes if is_stack else axes, stated if max(s for s, _ in stated.values()) > 0 else {})


def read_nifti(request: Request) -> Opened:
    """Open a NIfTI file; its axes x, y, z become z, y, x.

    Notes
    -----
    The voxel size is that of the affine in use (sform, else qform, else pixdim): pixdim alone may be stale.
    A ``.nii.gz`` cannot be read in part: it is unpacked once into a temporary file (see `spilled`).
    """
    import gzip

    import nibabel

    _no_levels(request)
    path = request.path
    if path.name.lower().endswith(".gz"):
        path = spilled(path, "", ".nii", lambda: gzip.GzipFile(request.path, "rb"))
    image: Any = nibabel.load(path)
    header: Any = image.header
    shape = tuple(reversed(header.get_data_shape()))
    dtype = np.dtype(header.get_data_dtype())
    offset = int(image.dataobj.offset)
    if path.stat().st_size < offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise InputError(f"{request.path} ends before its voxels do: the copy is incomplete; copy it again")
    # x runs fastest in the file, so the reversed view is the one in C order: reading a z slice reads one piece
    array: ArrayLike = np.memmap(path, dtype, "r", offset, shape)
    axes = "ctzyx"[-len(shape) :] if 3 <= len(shape) <= 5 else ""
    if dtype.fields:
        # colours: three or four bytes a voxel
        array = np.asarray(array).view(np.uint8).reshape(*shape, len(dtype.fields))
        axes = f"{axes}c"
    # nibabel takes the scaling out of the header as it loads
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    if (slope, inter) != (1.0, 0.0) and not dtype.fields:
        array = Scaled(array, slope, inter)
    unit = str(header.get_xyzt_units()[0])
    # the standard leaves an unknown unit to the reader, and every tool reads it as millimeter
    unit = "mm" if unit == "unknown" else unit
    affine: NDArray[np.float64] | None = np.asarray(image.affine, np.float64)
    norms = np.linalg.norm(image.affine[:3, :3], axis=0)
    if not (np.isfinite(image.affine).all() and norms.all()):
        affine, norms = None, np.asarray(header.get_zooms()[:3], np.float64)
    stated: dict[str, Stated] = {a: (float(f"{n:.7g}"), unit) for a, n in zip("xyz", norms.tolist(), strict=False)}
    if affine is not None:
        own, factor = parse_unit(unit)
        affine = np.diag([factor * convert_length(own, "millimeter")] * 3 + [1.0]) @ affine
    return Opened(array, axes, stated, affine=affine, nifti_header=header.copy())


def _no_levels(request: Request) -> None:
    if request.level:
        raise InputError(f"{request.path}: level {request.level}; this file has one resolution, level 0")


def _map_npy(path: Path) -> NDArray[Any]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} holds no array")
    return array


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def attribute_sizes(attributes: Mapping[str, Any], axes: str = "") -> dict[str, Stated]:
    """Return the voxel size in the attributes that others write beside an array, in the order of its axes."""
    order = "".join(a for a in axes if a in "zyx")
    for name, unit in (("element_size_um", "micrometer"), ("resolution", "nanometer")):
        if name in attributes:
            # element_size_um is in the order z, y, x whatever the array is
            sizes = stated_sizes(attributes[name], unit, order if name == "resolution" and len(order) == 3 else "zyx")
            if sizes:
                return sizes
    return {}
