"""Reader of a folder with one file for each section."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_slicelabel.data.readers import Opened, Request
from napari_slicelabel.errors import InputError

SECTION_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")
_JUNK = re.compile(r"^\.|^thumbs\.db$|^desktop\.ini$", re.IGNORECASE)


def section_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder in the order of the numbers in their names."""
    # no pipe or device: to open one that nobody writes to would never end
    pictures = (p for p in folder.iterdir() if p.suffix.lower() in SECTION_SUFFIXES and not _JUNK.search(p.name))
    files = [p for p in pictures if p.is_file()]
    return sorted(files, key=lambda p: _natural(p.name))


def read_sections(request: Request) -> Opened:
    """Open a folder of 2D pictures, one for each section, in the order of the numbers in their names.

    Notes
    -----
    All must have one size and type; numbers that are left out are reported. Nothing but the first picture is decoded
    before a section is read.
    """
    files = section_files(request.path)
    kinds = Counter(p.suffix.lower() for p in files)
    if len(kinds) > 1:
        counts = ", ".join(f"{n} {suffix}" for suffix, n in kinds.items())
        raise InputError(f"{request.path} holds pictures of several kinds ({counts}); leave one kind in the folder")
    if request.level:
        raise InputError(f"{request.path}: level {request.level}; a folder of sections has one resolution, level 0")
    shape, dtype = _facts(files[0])
    for file in files[1:]:
        other = _facts(file)
        if other != (shape, dtype):
            raise InputError(
                f"{file}: {_words(*other)}, but {files[0].name} has {_words(shape, dtype)}; sections need one size and"
                " type"
            )
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[-1] > 4):
        raise InputError(f"{files[0]} has shape {shape}; expected one 2D picture in each file")
    return Opened(SectionStack(files, shape, dtype), "zyx" if len(shape) == 2 else "zyxc", notes=_gaps(files))


def read_section(request: Request) -> Opened:
    """Open one picture, for labels of one section."""
    picture = read_picture(request.path)
    return Opened(picture, "yx" if picture.ndim == 2 else "yxc")


class SectionStack:
    """Pictures of one size as an array (z, y, x) or (z, y, x, c), read when they are asked for.

    Attributes
    ----------
    shape : tuple of int
        Pictures first.
    dtype : numpy.dtype
        Of every picture.
    chunks : tuple of int
        One picture.
    """

    def __init__(self, files: list[Path], picture_shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = (len(files), *picture_shape)
        self.dtype = dtype
        self.chunks = (1, *picture_shape)
        self._files = files

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Return the part that a tuple of ints and slices names."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        chosen = np.arange(len(self._files))[first]
        planes = [self._picture(int(z))[tuple(rest)] for z in np.atleast_1d(chosen)]
        return np.asarray(planes[0] if np.ndim(chosen) == 0 else np.stack(planes))

    def _picture(self, number: int) -> NDArray[Any]:
        file = self._files[number]
        picture = read_picture(file)
        if picture.shape != self.shape[1:]:
            raise InputError(f"{file} has shape {picture.shape}, the others {self.shape[1:]}; was it replaced?")
        return picture


def read_picture(file: Path) -> NDArray[Any]:
    """Return a 2D picture, shape (y, x) or (y, x, c). In indexed colours the index counts."""
    if file.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        return np.squeeze(np.asarray(tifffile.imread(file)))
    from PIL import Image

    with Image.open(file) as picture:
        return np.asarray(picture)


def _facts(file: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of a picture without decoding it."""
    if file.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        with tifffile.TiffFile(file) as tif:
            if len(tif.pages) != 1:
                raise InputError(f"{file} holds {len(tif.pages)} pages; expected one section in each file")
            series = tif.series[0]
            return tuple(n for n in series.shape if n > 1), np.dtype(series.dtype).newbyteorder("=")
    from PIL import Image

    with Image.open(file) as picture:
        # a row tells the type of the pixels
        row = np.asarray(picture.crop((0, 0, picture.width, 1)))
        return (picture.height, picture.width, *row.shape[2:]), row.dtype


def _gaps(files: list[Path]) -> tuple[str, ...]:
    """Return a sentence about numbers that are left out."""
    numbers = [int(m[-1]) for p in files if (m := re.findall(r"\d+", p.stem))]
    if len(numbers) != len(files) or len(set(numbers)) != len(files):
        return ()
    missing = sorted(set(range(min(numbers), max(numbers) + 1)) - set(numbers)) if len(numbers) > 1 else []
    step = min(np.diff(sorted(numbers)), default=1)
    if not missing or step > 1:
        return ()
    listed = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
    return (
        f"{files[0].parent.name}: {len(files)} sections, numbered {min(numbers)} to {max(numbers)} without {listed};"
        " those that are there follow each other",
    )


def _words(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{' x '.join(map(str, shape))} {dtype}"


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in re.split(r"(\d+)", name)]
