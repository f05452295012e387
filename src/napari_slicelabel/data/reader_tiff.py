"""Reader of TIFF stacks: OME, ImageJ, pages one after the other, compressed or not."""

import re
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_slicelabel.data.readers import Opened, Request
from napari_slicelabel.data.units import Stated, parse_unit
from napari_slicelabel.data.volume import ArrayLike
from napari_slicelabel.errors import InputError

_PER_UNIT = {2: "inch", 3: "cm"}


def read_tiff(request: Request) -> Opened:
    """Open a TIFF stack: memory-mapped where its pixels lie in one piece, else read page by page or tile by tile.

    Notes
    -----
    Every page counts: sections that were written in different ways (compressed and not) are joined in their order, and
    a file with several images asks for one of them, ``FILE.tif::1``.
    """
    import tifffile

    with tifffile.TiffFile(request.path) as tif:
        _refuse_missing_pages(tif, request.path)
        number = _series_number(request, len(tif.series))
        stated: Mapping[str, Stated] = _stated_sizes(tif)
        # small copies of an image, kept as pages, are no sections
        full = [i for i, s in enumerate(tif.series) if not s.keyframe.is_reduced] or [0]
        if number is None and len(full) > 1:
            return _joined(request, tif, stated)
        number = full[0] if number is None else number
        series = tif.series[number]
        if request.level >= len(series.levels):
            raise InputError(
                f"{request.path}: level {request.level}; it has {len(series.levels)} level(s), counted from 0"
            )
        chosen = series.levels[request.level]
        axes, notes = _axes(request, chosen)
        if request.level and len(axes) == len(chosen.shape):
            stated = _at_level(stated, axes, series.shape, chosen.shape)
        _refuse_holes(tif, chosen, request.path)
        offset, shape, dtype, order = chosen.dataoffset, chosen.shape, chosen.dtype, tif.byteorder
    array: ArrayLike
    if offset is not None and dtype is not None:
        _refuse_short(request.path, offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        array = np.memmap(request.path, dtype.newbyteorder(order), "r", offset, shape)
    else:
        array = _through_zarr(request.path, number, request.level)
    return Opened(array, axes, stated, request.member, notes=notes)


def _through_zarr(path: Path, number: int, level: int) -> ArrayLike:
    import tifffile
    import zarr

    store = tifffile.imread(path, aszarr=True, series=number, level=level)
    array: ArrayLike = zarr.open_array(store, mode="r")
    # the store keeps the file open for as long as the array lives
    weakref.finalize(array, store.close)
    return array


def _series_number(request: Request, count: int) -> int | None:
    """Return the image of the file that the user names."""
    if not request.member:
        return None
    if not request.member.isdigit() or int(request.member) >= count:
        raise InputError(f"{request.path} has no image {request.member!r}; it has {count}, ::0 to ::{count - 1}")
    return int(request.member)


class PageStack:
    """Pages of a TIFF file as one array (z, y, x) or (z, y, x, samples), read one by one.

    Attributes
    ----------
    shape : tuple of int
        Pages first.
    dtype : numpy.dtype
        Of every page.
    chunks : tuple of int
        One page.
    """

    def __init__(self, path: Path, pages: Sequence[int], page_shape: tuple[int, ...], dtype: Any) -> None:
        import tifffile

        self.shape = (len(pages), *page_shape)
        self.dtype = np.dtype(dtype)
        self.chunks = (1, *page_shape)
        self._pages = tuple(pages)
        self._file = tifffile.TiffFile(path)
        self._lock = threading.Lock()
        weakref.finalize(self, self._file.close)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Return the part that a tuple of ints and slices names."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        chosen = np.arange(len(self._pages))[first]
        with self._lock:
            planes = [self._file.pages[self._pages[int(z)]].asarray()[tuple(rest)] for z in np.atleast_1d(chosen)]
        return np.asarray(planes[0] if np.ndim(chosen) == 0 else np.stack(planes))


def _joined(request: Request, tif: Any, stated: Mapping[str, Stated]) -> Opened:
    """Join the images of a file that are sections of one stack, in the order of their pages; refuse others."""
    full = [series for series in tif.series if not series.keyframe.is_reduced]
    shapes = {(series.keyframe.shape, series.dtype) for series in full}
    pages = [page.index for page in tif.pages if not page.is_reduced]
    alike = len(shapes) == 1 and not tif.is_ome
    if not alike:
        listed = ", ".join(f"::{i} {s.axes.lower()} {s.shape}" for i, s in enumerate(tif.series[:8]))
        raise InputError(
            f"{request.path} holds {len(tif.series)} images in {len(tif.pages)} pages: {listed}; give one of them, such"
            f" as {request.path.name}::0"
        )
    if request.level:
        raise InputError(f"{request.path}: level {request.level}; this file has one resolution, level 0")
    shape, dtype = next(iter(shapes))
    array = PageStack(request.path, pages, shape, dtype)
    return Opened(array, request.axes or ("zyx" if len(shape) == 2 else "zyxc"), stated)


def _axes(request: Request, series: Any) -> tuple[str, tuple[str, ...]]:
    """Return our letters for those of tifffile, and what is to be said about them."""
    if request.axes:
        return request.axes, ()
    letters = list(str(series.axes).upper())
    lengths = dict(zip(letters, series.shape, strict=True))
    path, shape = request.path, tuple(series.shape)
    hint = "If these are its slices, give axes={!r} (--axes {})"
    if "Z" in letters:
        return "".join(letters).replace("S", "C").lower(), ()
    unnamed = [a for a in letters if a not in "TCSYX"]
    if unnamed:
        letters[letters.index(unnamed[0])] = "Z"
        return "".join(letters).replace("S", "C").lower(), ()
    if "".join(letters) == "SYX":
        note = (
            f"{path.name}: its {lengths['S']} planes are stored as the colours of one picture; they are read as slices"
        )
        return "zyx", (note,)
    for letter, word in (("T", "time points"), ("C", "channels")):
        if lengths.get(letter, 1) > 1:
            axes = "".join("z" if a == letter else a.lower() for a in letters).replace("s", "c")
            raise InputError(
                f"{path} holds {lengths[letter]} {word} of one plane; expected a 3D image. {hint.format(axes, axes)}"
            )
    if request.labels:
        return "".join(letters).replace("S", "C").lower(), ()
    raise InputError(f"{path} is a 2D image, shape {shape} ({''.join(letters).lower()}); expected a 3D stack")


def _refuse_missing_pages(tif: Any, path: Path) -> None:
    """Refuse a file that promises more pages, or other files, than there are."""
    promised = int((tif.imagej_metadata or {}).get("images", 1)) if tif.is_imagej else 1
    present = 0
    for series in tif.series:
        missing = [number for number, page in enumerate(series.pages) if page is None]
        if missing:
            names = re.findall(r'FileName="([^"]+)"', tif.ome_metadata or "")
            lost = [name for name in dict.fromkeys(names) if not (path.parent / name).exists()]
            raise InputError(
                f"{path}: {len(missing)} of {len(series.pages)} sections are missing"
                f" ({', '.join(lost[:5]) or f'the first is number {missing[0]}'}); put the files back beside it"
            )
        planes = int(np.prod(series.shape, dtype=np.int64)) // max(1, int(np.prod(series.keyframe.shape)))
        present += max(planes, len(series.pages))
    if promised > present:
        raise InputError(
            f"{path} ends too early: it promises {promised} sections and has {present}; the copy is incomplete"
        )


def _refuse_short(path: Path, needed: int) -> None:
    size = path.stat().st_size
    if size < needed:
        raise InputError(
            f"{path} ends too early: {size} of {needed} bytes; the copy is incomplete, so copy the file again"
        )


def _refuse_holes(tif: Any, series: Any, path: Path) -> None:
    """Refuse tiles or strips that are nowhere in the file; GDAL leaves out those of zeros on purpose."""
    if tif.is_gdal or series.dataoffset is not None:
        return
    for number, page in enumerate(series.pages):
        if page is None or not all(page.databytecounts):
            raise InputError(f"{path}: parts of section {number} are not in the file; is it damaged, or a broken copy?")


def _at_level(
    stated: Mapping[str, Stated], axes: str, full: Sequence[int], small: Sequence[int]
) -> Mapping[str, Stated]:
    """Return the sizes at a level: the true factor is the ratio of the shapes, which is 2 more or less."""
    ratio = {a: f / s for a, f, s in zip(axes, full, small, strict=True)}
    return {a: (float(str(size)) * ratio.get(a, 1.0), unit) for a, (size, unit) in stated.items()}


def _stated_sizes(tif: Any) -> dict[str, Stated]:
    """Return voxel size and units as OME, ImageJ, tifffile or the resolution tags state them."""
    if tif.is_ome:
        from xml.etree import ElementTree

        for element in ElementTree.fromstring(tif.ome_metadata).iter():
            if element.tag.endswith("}Pixels") or element.tag == "Pixels":
                return _ome_sizes(element.attrib)
    description: Mapping[str, Any] = {}
    if tif.is_imagej:
        description = tif.imagej_metadata or {}
    elif tif.is_shaped:
        description = (tif.shaped_metadata or ({},))[0]
    tags = tif.pages[0].tags
    plane = {axis: _pixel_size(tags, f"{axis.upper()}Resolution") for axis in "yx"}
    resolution_unit = tags["ResolutionUnit"].value if "ResolutionUnit" in tags else 1
    if not {"unit", "spacing"} & set(description):
        # dots per inch of a screen or printer say nothing of a microscope
        if int(resolution_unit) != 3 or not all(plane.values()):
            return {}
        return {axis: (size, _PER_UNIT[3]) for axis, size in plane.items()}
    unit = str(description.get("unit", "pixel"))
    units = {axis: str(description.get(f"{axis}unit") or unit) for axis in "zyx"}
    sizes: dict[str, object] = {axis: size or 1.0 for axis, size in plane.items()}
    sizes["z"] = description.get("spacing")
    return {axis: (sizes[axis], _known(units[axis])) for axis in "zyx" if sizes[axis] is not None}


def _known(unit: str) -> str:
    """Return a unit, the pixel for one that nobody knows: ImageJ lets people type what they like."""
    try:
        parse_unit(unit)
    except InputError:
        return "pixel"
    return unit


def _pixel_size(tags: Any, name: str) -> float:
    numerator, denominator = tags[name].value if name in tags else (0, 0)
    return denominator / numerator if numerator and denominator else 0.0


def _ome_sizes(pixels: Mapping[str, str]) -> dict[str, Stated]:
    """Return the sizes that OME states; each axis may have its own unit, and the default is the micrometer."""
    return {
        letter.lower(): (pixels[f"PhysicalSize{letter}"], pixels.get(f"PhysicalSize{letter}Unit") or "um")
        for letter in "ZYX"
        if f"PhysicalSize{letter}" in pixels
    }
