"""A lazily read 3D image: `Volume`."""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from napari_slicelabel.data.boxes import AXES, Axis, Box, SliceRef
from napari_slicelabel.data.units import check_voxel_size, parse_unit
from napari_slicelabel.errors import InputError, SliceLabelError, StorageError

Origin = Literal["file", "layer", "user", "default"]
NanRule = Literal["background", "refuse"]

SAMPLE_BYTES = 64 * 2**20
"""At most this much of a volume is read to learn its intensity range."""

_SAMPLE_BLOCKS = 64
# a slice with its neighbours lies in two slabs at most, unless the halo is very wide
_SLABS = 2
_SLAB_BYTES = 128 * 2**20
# percentiles sort in float64: this many values of a channel are plenty for them and cost 32 MB, not 512
_SAMPLE_VALUES = 4 * 2**20


class ArrayLike(Protocol):
    """What a lazy array must be able to do: tell shape and dtype, and give a basic slice as something numpy takes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""

    @property
    def dtype(self) -> Any:
        """Type of the values, as numpy understands it."""

    def __getitem__(self, index: Any, /) -> Any:
        """Give the values of a tuple of ints and slices."""


ArrayLike3D = ArrayLike


@dataclass(frozen=True, slots=True)
class Intensity:
    """The intensity range of a volume, per channel, from a bounded sample.

    Attributes
    ----------
    low, high : tuple of float
        Percentiles 0.5 and 99.5; ``low < high`` always, so that it is safe to divide by the difference.
    mean, std : tuple of float
        Of the sample clipped to ``low .. high``. `std` is 0 for a channel that is constant.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Volume:
    """A 3D image that is read lazily. Immutable.

    Open one from a file with `open_volume`, or wrap an array with `Volume.from_array`. It holds a reference to an array
    that lies on disk (or to a dask graph), and of the values only a few slices read last. Safe to use from several
    threads.

    Parameters
    ----------
    array : array-like
        Anything with shape, dtype and basic slicing: numpy (also memory-mapped), zarr, h5py, dask.
    name : str
        Short name, shown to the user.
    source : str
        Where it came from: a path (with ``::array`` where the file holds several), or "" for an array in memory.
    axes : str
        One letter for each axis of `array`, any order: z, y, x, at most one of c, and t where its length is 1.
    voxel_size : sequence of 3 float
        Size of a voxel along z, y, x, in `unit`.
    unit : str
        "nanometer", "micrometer", "millimeter" or "pixel", or a sign for one of them.
    channel_names : sequence of str
        As the file names them; empty when it does not.
    affine : ndarray of shape (4, 4), float64, optional
        Index (x, y, z) of a voxel to its place in millimeter, where the file states one (NIfTI, OME-Zarr).
    nifti_header : nibabel header, optional
        Of a NIfTI file: labels exported for it take over all of its frame, affine, unit and form codes alike.
    origins : mapping, optional
        Whose word each of "axes" and "voxel_size" is: "file", "layer", "user", or "default".
    notes : sequence of str
        Sentences for the user about what the file leaves open and how that is read.
    nan : {"background", "refuse"}
        Whether values that are not finite are read as the smallest finite value, or refused by `intensity`.

    Raises
    ------
    InputError
        Axes that do not fit the array, an axis of length 0, t longer than 1, values that are not real numbers,
        or a voxel size that is not three positive numbers.

    Attributes
    ----------
    shape : tuple of int
        (z, y, x).
    channels : int
        Number of channels, 1 when the array has no such axis.
    dtype : numpy.dtype
        Of what `read` returns: that of the array in native byte order, uint8 for bool.
    """

    def __init__(
        self,
        array: ArrayLike,
        *,
        name: str,
        source: str = "",
        axes: str = "zyx",
        voxel_size: Sequence[float] = (1.0, 1.0, 1.0),
        unit: str = "pixel",
        channel_names: Sequence[str] = (),
        affine: NDArray[np.float64] | None = None,
        nifti_header: Any = None,
        origins: Mapping[str, Origin] | None = None,
        notes: Sequence[str] = (),
        nan: NanRule = "background",
    ) -> None:
        what = source or name
        lengths = check_axes(array.shape, axes, what)
        self._array = array
        self._axes = axes
        self.name = name
        self.source = source
        self.shape: tuple[int, int, int] = (lengths["z"], lengths["y"], lengths["x"])
        self.channels = lengths.get("c", 1)
        self.dtype = _plain_dtype(array.dtype, what)
        self.unit, factor = parse_unit(unit)
        self.voxel_size = check_voxel_size(voxel_size, factor)
        self.channel_names = tuple(channel_names)
        self.affine = affine
        self.nifti_header = nifti_header
        self.origins: Mapping[str, Origin] = origins or {"axes": "default", "voxel_size": "default"}
        self.notes = tuple(notes)
        self.nan = nan
        self._floor: float | None = None
        self._intensity: Intensity | None = None
        self._slabs: OrderedDict[Box, NDArray[Any]] = OrderedDict()
        self._slab_lock = threading.Lock()

    def __repr__(self) -> str:
        """Return name, shape and voxel size on one line."""
        size = " x ".join(f"{s:g}" for s in self.voxel_size)
        channels = f", {self.channels} channels" if self.channels > 1 else ""
        return f"<Volume {self.name!r} zyx {self.shape} {self.dtype}{channels}, {size} {self.unit}>"

    @classmethod
    def from_array(
        cls,
        array: ArrayLike,
        *,
        name: str = "volume",
        axes: str = "zyx",
        voxel_size: Sequence[float] = (1, 1, 1),
        unit: str = "pixel",
    ) -> Self:
        """Return a volume over an array, without copying it.

        Parameters
        ----------
        array : array-like of shape given by `axes`
            numpy, zarr, h5py or dask, real numbers.
        name : str
            Short name.
        axes : str
            One letter for each axis of `array`.
        voxel_size : sequence of 3 float
            Along z, y, x, in `unit`.
        unit : str
            "nanometer", "micrometer", "millimeter" or "pixel".

        Returns
        -------
        Volume
            Reads from `array` when asked.

        Raises
        ------
        InputError
            As the class.

        Examples
        --------
        >>> Volume.from_array(np.zeros((4, 5, 6), "u1")).read_slice(SliceRef("y", 0)).shape
        (1, 1, 4, 6)
        """
        return cls(array, name=name, axes=axes, voxel_size=voxel_size, unit=unit)

    @property
    def axes(self) -> str:
        """The axes of the array behind, one letter each; what `read` returns is c, z, y, x whatever these are."""
        return self._axes

    @property
    def nbytes(self) -> int:
        """Bytes of all values, were they read."""
        return math.prod(self.shape) * self.channels * self.dtype.itemsize

    @property
    def chunks(self) -> tuple[int, int, int] | None:
        """Chunk shape (z, y, x) of the storage, or None where any part can be read alone."""
        chunks = getattr(self._array, "chunks", None)
        if not chunks:
            return None
        # dask gives the length of every chunk along an axis, zarr and h5py one number
        lengths = [max(c) if isinstance(c, tuple) else int(c) for c in chunks]
        by_axis = dict(zip(self._axes, lengths, strict=True))
        return by_axis["z"], by_axis["y"], by_axis["x"]

    def read(self, box: Box) -> NDArray[Any]:
        """Return the values in a box; reads only the chunks that it touches.

        Parameters
        ----------
        box : Box
            In z, y, x, inside the volume.

        Returns
        -------
        ndarray of shape (c, z, y, x), `dtype`
            A new array in memory, C-contiguous and writable.

        Raises
        ------
        InputError
            The box is not 3D or reaches outside the volume.
        StorageError
            The file cannot be read there.

        Notes
        -----
        Values that are not finite (NaN outside of the field of view) are replaced by the smallest finite value of the
        sample that `intensity` takes, where `nan` is "background".
        """
        block = self.read_stored(box)
        if self.dtype.kind == "f" and self.nan == "background":
            odd = ~np.isfinite(block)
            if odd.any():
                block[odd] = self._finite_floor()
        return block

    def _finite_floor(self) -> float:
        """Return the smallest finite value of the sample. Measured once."""
        if self._floor is None:
            lows = [
                float(values.min())
                for box in sample_boxes(self)
                if (values := (stored := self.read_stored(box))[np.isfinite(stored)]).size
            ]
            self._floor = min(lows, default=0.0)
        return self._floor

    def read_stored(self, box: Box) -> NDArray[Any]:
        """Return the values in a box as the file holds them, NaN among them; otherwise as `read`."""
        if len(box.start) != 3 or not Box.whole(self.shape).contains(box) or min(box.start) < 0:
            raise InputError(f"box {box.start} to {box.stop}: volume {self.name!r} has shape {self.shape} (z, y, x)")
        where = dict(zip(AXES, box.slices, strict=True))
        index = tuple(0 if a == "t" else where.get(cast("Axis", a), slice(None)) for a in self._axes)
        try:
            values = np.asarray(self._array[index])
        except (SliceLabelError, MemoryError):
            raise
        except Exception as error:
            # whatever codecs raise: each has its own kinds
            raise StorageError(
                f"{self.source or self.name}: cannot read voxels {box.start} to {box.stop}: {_one_line(error)}"
            ) from error
        kept = [a for a in self._axes if a != "t"]
        if "c" not in kept:
            values, kept = values[None], ["c", *kept]
        block = np.ascontiguousarray(values.transpose([kept.index(a) for a in "czyx"]), dtype=self.dtype)
        # a view may belong to a read-only file or to the array of the caller
        return block if block.flags.owndata else block.copy()

    def read_slice(self, ref: SliceRef, *, halo: int = 0) -> NDArray[Any]:
        """Return one slice, with its neighbours on both sides.

        Parameters
        ----------
        ref : SliceRef
            Which slice.
        halo : int
            Number of neighbouring slices on each side. Beyond the end of the volume the last slice is repeated.

        Returns
        -------
        ndarray of shape (c, 2 * halo + 1, h, w), `dtype`
            The slice asked for is number `halo`. (h, w) is (y, x) along z, (z, x) along y, (z, y) along x.

        Raises
        ------
        InputError
            No such slice, or a negative halo.
        StorageError
            The file cannot be read there.

        Notes
        -----
        Where a chunk of the storage spans several slices, its neighbours must be decoded too; up to 256 MB of them are
        kept, so that going through a volume slice by slice decodes each chunk once, or at least seldom.
        """
        if halo < 0:
            raise InputError(f"halo {halo}: expected 0 or more slices")
        number, depth = ref.axis_number, self.depth(ref.axis)
        thin = ref.box(self.shape)
        wanted = np.arange(ref.index - halo, ref.index + halo + 1).clip(0, depth - 1)
        thickness = self._slab_thickness(number)
        if thickness == 1:
            first = int(wanted[0])
            block = np.moveaxis(self.read(_moved(thin, number, first, int(wanted[-1]) + 1)), number + 1, 1)
            return np.ascontiguousarray(block[:, wanted - first])
        planes = []
        for index in wanted.tolist():
            start = index // thickness * thickness
            slab = self._slab(_moved(thin, number, start, min(start + thickness, depth)))
            planes.append(slab.take(index - start, number + 1))
        return np.stack(planes, 1)

    def _slab_thickness(self, number: int) -> int:
        """Return how many slices along an axis are worth reading together: they share chunks and fit in the cache."""
        if self.chunks is None:
            return 1
        plane = self.nbytes // self.shape[number]
        chunk = self.chunks[number]
        fitting = max(1, min(chunk, _SLAB_BYTES // plane))
        # no slab reaches over the end of a chunk
        return max(n for n in range(1, fitting + 1) if chunk % n == 0)

    def _slab(self, box: Box) -> NDArray[Any]:
        """Return the values of a box, from the cache if it was read lately. Not to be changed."""
        with self._slab_lock:
            if box in self._slabs:
                self._slabs.move_to_end(box)
                return self._slabs[box]
        slab = self.read(box)
        with self._slab_lock:
            self._slabs[box] = slab
            while len(self._slabs) > _SLABS:
                self._slabs.popitem(last=False)
        return slab

    def as_dask(self) -> Any:
        """Return the volume as a dask array of shape (z, y, x), or (c, z, y, x) with several channels.

        Returns
        -------
        dask.array.Array
            Of `dtype`, one task for a chunk of the storage, or for a plane where it has none. For viewers; computing
            with it gives the same values as `read`.
        """
        import dask.array as da

        chunks = self.chunks or (1, *self.shape[1:])
        if self.channels > 1:
            return da.from_array(
                _Blocks(self), chunks=(self.channels, *chunks), name=False, meta=np.empty(0, self.dtype)
            )
        return da.from_array(_Blocks(self), chunks=(1, *chunks), name=False, meta=np.empty(0, self.dtype))[0]

    def plane_shape(self, axis: Axis) -> tuple[int, int]:
        """Return (h, w) of the slices along `axis`."""
        h, w = (n for a, n in zip(AXES, self.shape, strict=True) if a != axis)
        return h, w

    def depth(self, axis: Axis) -> int:
        """Return the number of slices along `axis`."""
        return self.shape[AXES.index(axis)]

    def anisotropy(self, axis: Axis) -> float:
        """Return the spacing across the slices of `axis` over the mean spacing inside them; 1 is isotropic.

        Examples
        --------
        >>> Volume.from_array(np.zeros((2, 2, 2)), voxel_size=(50, 4, 6)).anisotropy("z")
        10.0
        """
        number = AXES.index(axis)
        inside = [s for i, s in enumerate(self.voxel_size) if i != number]
        return self.voxel_size[number] / (sum(inside) / 2)

    def intensity(self) -> Intensity:
        """Return the robust intensity range. Cached.

        Returns
        -------
        Intensity
            From blocks spread over the volume, together at most 64 MB (but at least one chunk).

        Raises
        ------
        InputError
            The sample has a single value everywhere, or no finite value; or one that is not finite, where `nan` is
            "refuse".
        StorageError
            The file cannot be read.

        Notes
        -----
        A channel that is constant beside others that are not (an alpha channel) is no error: its `high` is ``low + 1``.
        """
        if self._intensity is None:
            self._intensity = _measure(self)
            if self._floor is not None:
                self.notes += (
                    f"{self.name} holds NaN or infinite values; they are read as background ({self._floor:g})",
                )
        return self._intensity


class _Blocks:
    """The volume as an array (c, z, y, x) for dask, which asks for one block after the other."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.shape = (volume.channels, *volume.shape)
        self.dtype = volume.dtype
        self.ndim = 4

    def __getitem__(self, index: tuple[int | slice, ...]) -> NDArray[Any]:
        start, stop, rest = [], [], []
        for part, length in zip(index[1:], self._volume.shape, strict=True):
            chosen = range(length)[part if isinstance(part, slice) else slice(part, part + 1)]
            start.append(min(chosen, default=0))
            stop.append(max(chosen, default=-1) + 1)
            # what is read runs from the first to the last one chosen, so that the step alone is left
            rest.append(slice(None, None, part.step) if isinstance(part, slice) else 0)
        block = self._volume.read(Box(tuple(start), tuple(stop)))
        return np.asarray(block[(index[0], *rest)])


def check_axes(shape: Sequence[int], axes: str, what: str) -> dict[str, int]:
    """Return the length of each axis, once the letters are known to fit.

    Parameters
    ----------
    shape : sequence of int
        Of the array.
    axes : str
        One letter for each axis.
    what : str
        Name for the message.

    Returns
    -------
    dict
        Letter to length.

    Raises
    ------
    InputError
        See `Volume`.
    """
    shape = tuple(int(n) for n in shape)
    if len(axes) != len(shape):
        raise InputError(
            f"{what}: the array has {len(shape)} axes, shape {shape}; expected a 3D image and one letter for each axis,"
            f" but axes is {axes!r} (z, y, x in any order, c for channels)"
        )
    if len(set(axes)) != len(axes) or not set("zyx") <= set(axes) <= set("tczyx"):
        raise InputError(f"{what}: axes {axes!r}: expected z, y and x once each, and at most one c, in any order")
    lengths = dict(zip(axes, shape, strict=True))
    if lengths.get("t", 1) != 1:
        raise InputError(
            f"{what}: {lengths['t']} time points ({axes}, shape {shape}); expected one, so extract one first"
        )
    if 0 in shape:
        raise InputError(f"{what}: shape {shape} holds no voxels")
    return lengths


def _moved(thin: Box, number: int, start: int, stop: int) -> Box:
    """Return a plane made a slab from `start` to `stop` along axis `number`."""
    corners = [list(thin.start), list(thin.stop)]
    corners[0][number], corners[1][number] = start, stop
    return Box(tuple(corners[0]), tuple(corners[1]))


def _plain_dtype(dtype: Any, what: str) -> np.dtype[Any]:
    """Return the dtype in native byte order (uint8 for bool), or raise for what is no real number."""
    plain: np.dtype[Any] = np.dtype(dtype)
    if plain.kind == "b":
        return np.dtype(np.uint8)
    if plain.kind not in "uif":
        raise InputError(f"{what}: values of type {plain}; expected integers or floating point numbers")
    # other libraries (torch) refuse the foreign byte order of MRC, NIfTI and TIFF files
    native: np.dtype[Any] = plain.newbyteorder("=")
    return native


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def sample_boxes(volume: Volume) -> Iterator[Box]:
    """Yield boxes spread over the volume that read at most `SAMPLE_BYTES` of its storage, chunks counted whole."""
    voxel = volume.channels * volume.dtype.itemsize
    # in a file without chunks whole rows of a plane lie together
    tile = [min(c, n) for c, n in zip(volume.chunks or (1, *volume.shape[1:]), volume.shape, strict=True)]
    touched = math.prod(tile) * voxel
    while math.prod(tile) * voxel > SAMPLE_BYTES // 4:
        widest = int(np.argmax(tile))
        tile[widest] = math.ceil(tile[widest] / 2)
        if volume.chunks is None:
            touched = math.prod(tile) * voxel
    grid = [math.ceil(n / t) for n, t in zip(volume.shape, tile, strict=True)]
    count = max(1, min(SAMPLE_BYTES // touched, math.prod(grid)))
    if count < math.prod(grid):
        count = min(count, _SAMPLE_BLOCKS)
    if count == math.prod(grid):
        yield from Box.whole(volume.shape).tiles(tile)
        return
    corners: dict[tuple[int, ...], None] = {}
    for i in range(count):
        # evenly along z; in the plane by the powers of the plastic number, which spread any number of points evenly
        # and never fall into step with a grid. A small grid may meet a tile twice: it is read once
        at = ((i + 0.5) / count, (0.5 + i * 0.7548776662466927) % 1.0, (0.5 + i * 0.5698402909980532) % 1.0)
        corners[tuple(int(a * g) * t for a, g, t in zip(at, grid, tile, strict=True))] = None
    for corner in corners:
        yield Box(corner, tuple(c + t for c, t in zip(corner, tile, strict=True))).clip(volume.shape)


def _measure(volume: Volume) -> Intensity:
    """Measure the range from the sample; see `Volume.intensity`."""
    boxes = list(sample_boxes(volume))
    step = max(1, math.ceil(sum(b.size for b in boxes) / _SAMPLE_VALUES))
    parts: list[list[NDArray[Any]]] = [[] for _ in range(volume.channels)]
    extremes = [(math.inf, -math.inf)] * volume.channels
    for box in boxes:
        for channel, block in enumerate(volume.read(box)):
            low, high = float(block.min()), float(block.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise InputError(
                    f"{volume.source or volume.name}: NaN or infinite values between voxels {box.start} and {box.stop};"
                    " open it with nan='background' (--nan background), which reads them as background, or replace them"
                )
            extremes[channel] = (min(low, extremes[channel][0]), max(high, extremes[channel][1]))
            parts[channel].append(block.reshape(-1)[::step].copy())
    if volume.dtype.kind == "f" and all(not np.isfinite(volume.read_stored(box)).any() for box in boxes):
        raise InputError(
            f"{volume.source or volume.name}: every sampled voxel is NaN or infinite; expected an image."
            " Is it the right file, dataset or channel?"
        )
    if all(low == high for low, high in extremes):
        raise InputError(
            f"{volume.source or volume.name}: every sampled voxel has the value {extremes[0][0]:g};"
            " expected an image with contrast. Is it the right file, dataset or channel?"
        )
    rows = [_range(np.concatenate(p), *e) for p, e in zip(parts, extremes, strict=True)]
    return Intensity(*zip(*rows, strict=True))


def _range(values: NDArray[Any], smallest: float, largest: float) -> tuple[float, float, float, float]:
    """Return low, high, mean and std of one channel."""
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    if low == high:
        # an image that is nearly all background: fall back to the extremes
        low, high = smallest, largest
    if low == high:
        return low, low + 1.0, low, 0.0
    clipped = values.astype(np.float64).clip(low, high)
    return low, high, float(clipped.mean()), float(clipped.std())
