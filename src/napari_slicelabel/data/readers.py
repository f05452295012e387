"""One function per file format: find the array in the file, lazily, and what the file says about it.

Each takes a `Request` and returns an `Opened`. They may raise anything a library raises on a damaged file;
`formats.open_volume` turns that into one clear line. Libraries are imported inside the functions, to keep imports fast.
"""

import json
import math
import re
import struct
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from napari_slicelabel.data.spill import spilled
from napari_slicelabel.data.volume import ArrayLike, parse_unit
from napari_slicelabel.errors import InputError

ZARR_MARKS = ("zarr.json", ".zarray", ".zgroup")
"""Files of which a zarr array or group has one."""

_NEARLY = 1e-3
_IMOD = 1146047817
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
    voxel_size : tuple of 3 float, optional
        Along z, y, x.
    unit : str
        Any name that `parse_unit` knows.
    member : str
        Which array of the file it is, where it holds several.
    """

    array: ArrayLike
    axes: str = ""
    voxel_size: tuple[float, float, float] | None = None
    unit: str = "pixel"
    member: str = ""
    channel_names: tuple[str, ...] = ()
    affine: NDArray[np.float64] | None = None


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
        voxel_size, unit = None, "pixel"
        for name, match in sizes.items():
            with archive.open(f"{name}.npy") as stream:
                voxel_size, unit = _three(np.lib.format.read_array(stream, allow_pickle=False)), match[1]

    @contextmanager
    def unpacked() -> Iterator[IO[bytes]]:
        with zipfile.ZipFile(request.path) as archive, archive.open(f"{member}.npy") as stream:
            yield stream

    path = spilled(request.path, member, ".npy", unpacked)
    return Opened(_map_npy(path), voxel_size=voxel_size, unit=unit, member=member)


def read_zarr(request: Request) -> Opened:
    """Open a zarr array, or one level of an OME-Zarr image (0.4, 0.5), format 2 or 3.

    Notes
    -----
    ``img.ome.zarr/labels/cells`` and ``img.ome.zarr::labels/cells`` both name a part of the hierarchy.
    When labels are wanted of an image that has exactly one label image, that one is taken.
    """
    import zarr

    from napari_slicelabel.data.zarr_stores import PlainStore

    path = request.path / request.member if request.member else request.path
    if not path.exists():
        raise InputError(f"{request.path} has no {request.member}; it holds {', '.join(_zarr_children(request.path))}")
    node = zarr.open(PlainStore(path), mode="r")
    if isinstance(node, zarr.Array):
        _no_levels(request)
        names = getattr(node.metadata, "dimension_names", None) or ()
        axes = "".join(n.lower() for n in names if n) if all(n and len(n) == 1 for n in names) else ""
        return Opened(node, axes, *_attribute_size(node.attrs), member=request.member)
    attributes = dict(node.attrs)
    # 0.5 keeps everything under one key, 0.4 at the top
    ome: Mapping[str, Any] = _mapping(attributes.get("ome")) or attributes
    multiscales: Any = ome.get("multiscales")
    if request.labels and "image-label" not in ome and (path / "labels").is_dir():
        found = _mapping(dict(zarr.open_group(PlainStore(path / "labels"), mode="r").attrs))
        labels: Any = (_mapping(found.get("ome")) or found).get("labels") or _zarr_children(path / "labels")
        if not labels:
            raise InputError(f"{path} has no label image; to take an array of it for labels, name it: {path}::0")
        if len(labels) != 1:
            raise InputError(f"{path} has the label images {', '.join(labels)}; give one: {path}::labels/{labels[0]}")
        member = f"{request.member}/labels/{labels[0]}".lstrip("/")
        return read_zarr(replace(request, member=member))
    if not multiscales:
        children = _zarr_children(path)
        if "bioformats2raw.layout" in ome and "0" in children:
            return read_zarr(replace(request, member=f"{request.member}/0".lstrip("/")))
        if len(children) == 1:
            member = f"{request.member}/{children[0]}".lstrip("/")
            return read_zarr(replace(request, member=member))
        parts = ", ".join(children) or "none"
        raise InputError(f"{path} is a zarr group without OME-Zarr metadata; give one of its parts: {parts}")
    return _ome_level(request, path, multiscales[0], ome)


def _ome_level(request: Request, path: Path, multiscale: Mapping[str, Any], ome: Mapping[str, Any]) -> Opened:
    """Open one level of an OME-Zarr image."""
    import zarr

    from napari_slicelabel.data.zarr_stores import PlainStore

    datasets = multiscale["datasets"]
    if request.level >= len(datasets):
        raise InputError(f"{path}: level {request.level}; it has {len(datasets)} levels, 0 to {len(datasets) - 1}")
    dataset = datasets[request.level]
    array = zarr.open_array(PlainStore(path / dataset["path"]), mode="r")
    # before 0.3 there were no axes: always tczyx
    described = [a if isinstance(a, Mapping) else {"name": a} for a in multiscale.get("axes") or "tczyx"]
    axes = "".join(str(a["name"]).lower() for a in described)
    scale = np.ones(len(axes))
    for transform in (*dataset.get("coordinateTransformations", ()), *multiscale.get("coordinateTransformations", ())):
        if transform.get("type") == "scale":
            scale = scale * np.asarray(transform["scale"], float)
    sizes: dict[str, float] = {}
    unit = "pixel"
    for axis, letter, size in zip(described, axes, scale.tolist(), strict=True):
        if letter in "zyx" and axis.get("unit"):
            unit, factor = parse_unit(str(axis["unit"]))
            sizes[letter] = size * factor
        else:
            sizes[letter] = size
    voxel_size = (sizes["z"], sizes["y"], sizes["x"]) if {"z", "y", "x"} <= set(sizes) else None
    channels = _mapping(ome.get("omero")).get("channels") or ()
    names = tuple(str(_mapping(c).get("label") or f"channel {i}") for i, c in enumerate(channels))
    return Opened(array, axes, voxel_size, unit, request.member, channel_names=names)


def read_tiff(request: Request) -> Opened:
    """Open a TIFF stack: memory-mapped where its pixels lie in one piece, else read page by page or tile by tile."""
    import tifffile
    import zarr

    with tifffile.TiffFile(request.path) as tif:
        if len(tif.series) > 1:
            return _all_pages(tif, request)
        series = tif.series[0]
        if request.level >= len(series.levels):
            raise InputError(
                f"{request.path}: level {request.level}; it has {len(series.levels)} level(s), counted from 0"
            )
        chosen = series.levels[request.level]
        axes = request.axes or _tiff_axes(str(chosen.axes), chosen.shape, request.path)
        voxel_size, unit = _tiff_size(tif)
        if voxel_size is not None and request.level and len(axes) == len(chosen.shape):
            # each level halves the plane more or less; the true factor is the ratio of the shapes
            full, small = (dict(zip(axes, s.shape, strict=True)) for s in (series, chosen))
            z, y, x = (v * full[a] / small[a] for a, v in zip("zyx", voxel_size, strict=True))
            voxel_size = (z, y, x)
        _refuse_holes(tif, chosen, request.path)
        offset, shape, dtype = chosen.dataoffset, chosen.shape, chosen.dtype
        order = tif.byteorder
    array: ArrayLike
    if offset is not None and dtype is not None:
        array = np.memmap(request.path, dtype.newbyteorder(order), "r", offset, shape)
    else:
        store = tifffile.imread(request.path, aszarr=True, series=0, level=request.level)
        array = zarr.open_array(store, mode="r")
        # the store keeps the file open for as long as the array lives
        weakref.finalize(array, store.close)
    return Opened(array, axes, voxel_size, unit)


class Pages:
    """The pages of a TIFF file as one array (n, ...), whatever each is stored like; read page by page.

    Attributes
    ----------
    shape : tuple of int
        Pages first.
    dtype : numpy.dtype
        Of each.
    """

    def __init__(self, path: Path, numbers: Sequence[int], shape: Sequence[int], dtype: Any) -> None:
        import tifffile

        self._file = tifffile.TiffFile(path)
        weakref.finalize(self, self._file.close)
        self._numbers = tuple(numbers)
        self.shape = (len(self._numbers), *shape)
        self.dtype = np.dtype(dtype)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Return what a tuple of ints and slices names, as numpy would."""
        first, *others = index if isinstance(index, tuple) else (index,)
        chosen = np.asarray(self._numbers)[first]
        planes: list[NDArray[Any]] = [self._page(int(n))[tuple(others)] for n in np.atleast_1d(chosen)]
        if chosen.ndim == 0:
            return planes[0]
        empty = np.empty(self.shape[1:], self.dtype)[tuple(others)]
        return np.stack(planes) if planes else np.empty((0, *empty.shape), self.dtype)

    def _page(self, number: int) -> NDArray[Any]:
        page: NDArray[Any] = self._file.pages[number].asarray()
        return page


def _all_pages(tif: Any, request: Request) -> Opened:
    """Open a file whose pages are stored in several ways: a stack if they are alike, else it is open which is meant."""
    path = request.path
    pages = [page for page in tif.pages if not page.is_reduced]
    kinds = {(page.shape, str(page.dtype)) for page in pages}
    if len(kinds) > 1:
        listed = ", ".join(f"{'x'.join(map(str, s.shape))} {s.dtype}" for s in tif.series[:8])
        raise InputError(
            f"{path} holds {len(tif.series)} images in {len(tif.pages)} pages ({listed}); expected one stack of"
            " sections of the same size and type. Save the one that is meant as a file of its own"
        )
    _no_levels(request)
    voxel_size, unit = _tiff_size(tif)
    first = pages[0]
    axes = request.axes or "z" + str(first.axes).lower().replace("s", "c")
    return Opened(Pages(path, [page.index for page in pages], first.shape, first.dtype), axes, voxel_size, unit)


def _refuse_holes(tif: Any, series: Any, path: Path) -> None:
    """Refuse tiles or strips that are nowhere in the file; GDAL leaves out those of zeros on purpose."""
    if tif.is_gdal or series.dataoffset is not None:
        return
    for number, page in enumerate(series.pages):
        if page is None:
            raise InputError(
                f"{path}: section {number} is missing, the file that holds it is not there; copy all files of the"
                " series into one folder"
            )
        if not all(page.databytecounts):
            raise InputError(f"{path}: parts of section {number} are not in the file; is it damaged, or a broken copy?")


def _tiff_axes(axes: str, shape: Sequence[int], path: Path) -> str:
    """Return our letters for those of tifffile: S (samples) is c, and an axis without meaning is z."""
    letters = list(axes.upper().replace("S", "C"))
    lengths = dict(zip(letters, shape, strict=True))
    if "Z" not in letters:
        unknown = [a for a in letters if a not in "TCYX"]
        if not unknown and lengths.get("T", 1) > 1:
            raise InputError(
                f"{path} holds {lengths['T']} time points of one plane; expected a 3D image."
                " If these are its slices, give axes='zyx'"
            )
        if not unknown:
            raise InputError(f"{path} is a 2D image, shape {tuple(shape)} ({axes.lower()}); expected a 3D stack")
        letters[letters.index(unknown[0])] = "Z"
    return "".join(letters).lower()


def _tiff_size(tif: Any) -> tuple[tuple[float, float, float] | None, str]:
    """Return voxel size and unit as OME, ImageJ or tifffile wrote them; None when nobody did."""
    if tif.is_ome:
        from xml.etree import ElementTree

        for element in ElementTree.fromstring(tif.ome_metadata).iter():
            if element.tag.endswith("}Pixels") or element.tag == "Pixels":
                return _ome_xml_size(element.attrib)
    description: Mapping[str, Any] = {}
    if tif.is_imagej:
        description = tif.imagej_metadata or {}
    elif tif.is_shaped:
        description = (tif.shaped_metadata or ({},))[0]
    if not {"unit", "spacing"} & set(description):
        return None, "pixel"
    unit = str(description.get("unit", "pixel"))
    try:
        parse_unit(unit)
    except InputError:
        unit = "pixel"
    tags = tif.pages[0].tags
    plane = [1.0, 1.0]
    for i, name in enumerate(("YResolution", "XResolution")):
        numerator, denominator = tags[name].value if name in tags else (1, 1)
        if numerator and denominator:
            plane[i] = denominator / numerator
    spacing = float(description.get("spacing", 0)) or plane[0]
    return (abs(spacing), plane[0], plane[1]), unit


def _ome_xml_size(pixels: Mapping[str, str]) -> tuple[tuple[float, float, float] | None, str]:
    """Return the size in the unit of z; each axis may have its own, and OME's default is the micrometer."""
    if "PhysicalSizeX" not in pixels:
        return None, "pixel"
    sizes: list[float] = []
    unit = "pixel"
    from napari_slicelabel.data.volume import convert_length

    for letter in "ZYX":
        name = f"PhysicalSize{letter}"
        this, factor = parse_unit(pixels.get(f"{name}Unit", "um"))
        unit = this if not sizes else unit
        size = float(pixels.get(name, pixels["PhysicalSizeX"])) * factor
        sizes.append(size * convert_length(this, parse_unit(unit)[0]))
    return (sizes[0], sizes[1], sizes[2]), unit


def read_hdf5(request: Request) -> Opened:
    """Open a dataset of an HDF5 file: the one named, the only one with three axes, or the largest.

    Notes
    -----
    Among several, names that speak of labels come first when labels are wanted and last otherwise.
    The attributes element_size_um, and resolution (in nanometer, as CREMI writes it), are understood.
    """
    import h5py

    _no_levels(request)
    file = h5py.File(request.path, "r")
    found: list[Any] = []
    file.visititems(lambda _, node: found.append(node) if isinstance(node, h5py.Dataset) else None)
    if request.member:
        node = file.get(request.member)
        if not isinstance(node, h5py.Dataset):
            known = ", ".join(d.name.lstrip("/") for d in found[:20])
            raise InputError(f"{request.path} has no dataset {request.member!r}; it has {known or 'none'}")
    else:
        usable = [d for d in found if d.ndim >= 3 and d.dtype.kind in "buif"]
        # labels are integers; floats that are whole will do where there is nothing else
        usable = [d for d in usable if request.labels and d.dtype.kind != "f"] or usable
        if not usable:
            known = ", ".join(f"{d.name.lstrip('/')} {d.shape} {d.dtype}" for d in found[:20])
            raise InputError(f"{request.path} has no 3D {'label ' * request.labels}dataset; it has {known or 'none'}")
        node = max(usable, key=lambda d: (bool(_LABEL_WORDS.search(d.name)) == request.labels, d.size))
    return Opened(node, _axis_tags(node), *_attribute_size(node.attrs), member=node.name.lstrip("/"))


def _axis_tags(node: Any) -> str:
    """Return the axes as vigra and ilastik write them beside a data set; "" where they do not."""
    try:
        axes = "".join(str(axis["key"]) for axis in json.loads(node.attrs["axistags"])["axes"])
    except (KeyError, TypeError, ValueError):
        return ""
    return axes if len(axes) == node.ndim and set(axes) <= set("tczyx") else ""


def read_mrc(request: Request) -> Opened:
    """Open an MRC file by memory-mapping it; its voxel size is in angstrom."""
    import gzip
    import warnings

    import mrcfile

    _no_levels(request)
    path = request.path
    if path.name.lower().endswith(".gz"):
        path = spilled(path, "", ".mrc", lambda: gzip.GzipFile(request.path, "rb"))
    with warnings.catch_warnings():
        # headers from before 2014 lack the word MAP or the stamp; what cannot be read at all has no data
        warnings.simplefilter("ignore", RuntimeWarning)
        with mrcfile.mmap(path, mode="r", permissive=True) as mrc:
            if mrc.data is None:
                raise ValueError("its header promises other voxels than the file holds")
            size = mrc.voxel_size
            data, is_stack = mrc.data, mrc.is_volume_stack()
    if data.dtype == np.int8 and _has_unsigned_bytes(path):
        data = data.view(np.uint8)
    voxel_size = _three([size.z, size.y, size.x])
    known = voxel_size is not None and all(v > 0 for v in voxel_size)
    return Opened(data, "tzyx" if is_stack else "", voxel_size if known else None, "angstrom" if known else "pixel")


def _has_unsigned_bytes(path: Path) -> bool:
    """Return whether IMOD has written bytes without sign: its stamp is there, and bit 0 of its flags is not set."""
    with path.open("rb") as file:
        header = file.read(160)
    orders = ("<", ">")
    return any(struct.unpack_from(f"{o}i", header, 152)[0] == _IMOD and not _flags(header, o) & 1 for o in orders)


def _flags(header: bytes, order: str) -> int:
    flags: int = struct.unpack_from(f"{order}i", header, 156)[0]
    return flags


def read_nifti(request: Request) -> Opened:
    """Open a NIfTI file; its axes x, y, z become z, y, x.

    Notes
    -----
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
    shape = header.get_data_shape()
    # x runs fastest in the file, so the reversed view is the one in C order: reading a z slice reads one piece
    array: ArrayLike = np.memmap(
        path, np.dtype(header.get_data_dtype()), "r", int(image.dataobj.offset), tuple(reversed(shape))
    )
    # nibabel takes the scaling out of the header as it loads
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    if (slope, inter) != (1.0, 0.0):
        array = Scaled(array, slope, inter)
    unit = str(header.get_xyzt_units()[0])
    zooms = [float(z) for z in header.get_zooms()[:3]]
    voxel_size = _three(reversed(zooms)) if len(zooms) == 3 and all(zooms) else None
    # NIfTI orders x y z t c
    axes = "ctzyx"[-len(shape) :] if 3 <= len(shape) <= 5 else ""
    # the standard leaves an unknown unit to the reader, and every tool reads it as millimeter
    return Opened(
        array, axes, voxel_size, "mm" if unit == "unknown" else unit, affine=np.asarray(image.affine, np.float64)
    )


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


def _three(values: Iterable[Any]) -> tuple[float, float, float] | None:
    sizes = [float(v) for v in values]
    return (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 and all(map(math.isfinite, sizes)) else None


def _attribute_size(attributes: Mapping[str, Any]) -> tuple[tuple[float, float, float] | None, str]:
    """Return voxel size and unit from the attributes that others write beside an array."""
    for name, unit in (("element_size_um", "micrometer"), ("resolution", "nanometer")):
        if name in attributes:
            values = np.atleast_1d(np.asarray(attributes[name], float)).ravel()
            size = _three(values)
            if size is not None and min(size) > 0:
                return size, unit
    return None, "pixel"


def _zarr_children(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if any((p / m).exists() for m in ZARR_MARKS))
