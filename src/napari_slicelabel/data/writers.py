"""One function per file format that labels are written to: plane by plane or block by block, never the whole array.

Each takes a `Job` and writes to ``job.path``, a temporary name that `formats.write_labels` renames at the end.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from napari_slicelabel.data.boxes import Box, SliceRef
from napari_slicelabel.data.classes import LabelClass
from napari_slicelabel.data.ngff import VERSION, create_label_image, multiscales
from napari_slicelabel.data.units import Unit, VoxelSize, convert_length
from napari_slicelabel.data.volume import ArrayLike3D, Volume
from napari_slicelabel.errors import InputError

# blocks that viewers read well: a plane of 1024 x 1024 is a few of them
BLOCK = (16, 256, 256)
_CLASSIC_TIFF_BYTES = 2**32 - 2**25


@dataclass(frozen=True, slots=True)
class Job:
    """What to write.

    Attributes
    ----------
    path : Path
        The temporary name; keeps the suffix.
    name : str
        Of the file without suffix.
    labels : array-like of shape (z, y, x), `dtype`
        Lazy or not.
    dtype : numpy.dtype
        An integer type.
    voxel_size : tuple of 3 float
        Along z, y, x, in `unit`.
    unit : str
        As in `Volume`.
    classes : tuple of LabelClass
        Names and colours, for formats that keep them.
    image : Volume, optional
        The image that the labels belong to.
    """

    path: Path
    name: str
    labels: ArrayLike3D
    dtype: np.dtype[Any]
    voxel_size: VoxelSize
    unit: Unit
    classes: tuple[LabelClass, ...]
    image: Volume | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        z, y, x = (int(n) for n in self.labels.shape)
        return z, y, x

    def block(self, box: Box) -> NDArray[Any]:
        """Return the labels in a box, of `dtype`, in native byte order and C order."""
        return np.ascontiguousarray(self.labels[box.slices], dtype=self.dtype)

    def planes(self) -> Iterator[NDArray[Any]]:
        """Yield the slices along z, each of shape (y, x)."""
        # labels kept in chunks of several planes are read that many at a time, so that no chunk is read twice
        depth = max(1, min(_chunk_depth(self.labels), 2**28 // max(1, self.shape[1] * self.shape[2])))
        for box in Box.whole(self.shape).tiles((depth, *self.shape[1:])):
            yield from self.block(box)


Writer = Callable[[Job], None]


def write_zarr(job: Job) -> None:
    """Write OME-Zarr 0.5: a label image alone, or the image with the labels inside it as ``labels/<name>``.

    Notes
    -----
    The copy of the image is made block by block. Image and labels have one resolution level each.
    """
    import zarr
    from zarr.codecs import ZstdCodec

    folder, name, source = job.path, job.name, None
    image = job.image
    if image is not None:
        levels = multiscales(image.name, job.voxel_size, job.unit, channels=image.channels > 1)
        ome: dict[str, Any] = {"version": VERSION, "multiscales": levels}
        group = zarr.create_group(folder, zarr_format=3, attributes={"ome": ome})
        channels = (image.channels,) if image.channels > 1 else ()
        target = group.create_array(
            "0",
            shape=(*channels, *image.shape),
            chunks=(*(1 for _ in channels), *(min(b, n) for b, n in zip(BLOCK, image.shape, strict=True))),
            dtype=image.dtype,
            compressors=[ZstdCodec(level=3)],
            dimension_names=("c", "z", "y", "x")[-3 - len(channels) :],
        )
        for box in Box.whole(image.shape).tiles(_slab(image.shape, image.channels * image.dtype.itemsize)):
            block = image.read(box)
            index: tuple[Any, ...] = (..., *box.slices)
            target[index] = block if channels else block[0]
        zarr.create_group(
            folder / "labels", zarr_format=3, attributes={"ome": {"version": VERSION, "labels": ["labels"]}}
        )
        folder, name, source = folder / "labels" / "labels", "labels", "../../"
    array = create_label_image(
        folder,
        job.shape,
        chunks=BLOCK,
        name=name,
        voxel_size=job.voxel_size,
        unit=job.unit,
        classes=job.classes,
        source=source,
        dtype=job.dtype,
    )
    for box in Box.whole(job.shape).tiles(_slab(job.shape, job.dtype.itemsize)):
        array[box.slices] = job.block(box)


def write_tiff(job: Job) -> None:
    """Write an ImageJ stack; a compressed BigTIFF where ImageJ's own form cannot hold it (32-bit labels, over 4 GB)."""
    import tifffile

    _, y, x = job.voxel_size
    nbytes = int(np.prod(job.shape)) * job.dtype.itemsize
    imagej = job.dtype.name in ("uint8", "uint16") and nbytes < _CLASSIC_TIFF_BYTES
    # ImageJ reads "micron"; its other names are ours
    unit = "micron" if job.unit == "micrometer" else job.unit
    with tifffile.TiffWriter(job.path, imagej=imagej, bigtiff=not imagej) as tif:
        tif.write(
            job.planes(),
            shape=job.shape,
            dtype=job.dtype,
            photometric="minisblack",
            resolution=(1 / x, 1 / y),
            resolutionunit="NONE",
            compression=None if imagej else "zlib",
            metadata={"axes": "ZYX", "spacing": job.voxel_size[0], "unit": unit},
        )


def write_hdf5(job: Job) -> None:
    """Write the chunked dataset `labels`, with the attributes element_size_um and class_names."""
    import h5py

    with h5py.File(job.path, "w") as file:
        dataset = file.create_dataset(
            "labels",
            shape=job.shape,
            dtype=job.dtype,
            chunks=tuple(min(b, n) for b, n in zip(BLOCK, job.shape, strict=True)),
            compression="gzip",
            compression_opts=1,
        )
        if job.unit != "pixel":
            dataset.attrs["element_size_um"] = np.multiply(job.voxel_size, convert_length(job.unit, "micrometer"))
        if job.classes:
            dataset.attrs["class_ids"] = [c.id for c in job.classes]
            dataset.attrs["class_names"] = [c.name for c in job.classes]
        for box in Box.whole(job.shape).tiles(_slab(job.shape, job.dtype.itemsize)):
            dataset[box.slices] = job.block(box)


def write_nifti(job: Job) -> None:
    """Write NIfTI, gzipped when the suffix says so. Axes z, y, x become x, y, z; sizes become millimeter.

    Notes
    -----
    With an image that came from NIfTI its whole frame is kept (both forms, their codes, the unit), so that the labels
    lie on the image in every viewer.
    """
    header = job.image.nifti_header if job.image is not None else None
    write_nifti_stream(job.path, job.planes(), job.shape, job.dtype, job.voxel_size, job.unit, header)


def write_nifti_stream(
    path: Path,
    planes: Iterator[NDArray[Any]],
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    voxel_size: VoxelSize,
    unit: Unit,
    frame: Any = None,
) -> None:
    """Write planes (y, x), z by z, as a NIfTI-1 file.

    Parameters
    ----------
    path : Path
        Ends in .nii or .nii.gz.
    planes : iterator of ndarray of shape (y, x), `dtype`
        All slices along z in order.
    shape : tuple of int
        (z, y, x).
    dtype : numpy.dtype
        One that NIfTI knows.
    voxel_size : tuple of 3 float
        Along z, y, x, in `unit`.
    unit : str
        A pixel counts as a millimeter.
    frame : nibabel header, optional
        Of the image: its forms, their codes and its unit are taken over. By default the voxel size in millimeter.

    Raises
    ------
    InputError
        An axis longer than 32767, the limit of NIfTI-1.
    """
    import gzip

    import nibabel

    if max(shape) > 32767:
        raise InputError(f"shape {shape}: NIfTI holds at most 32767 voxels along an axis; export to .ome.zarr or .h5")
    header: Any = _framed(nibabel.Nifti1Header(), voxel_size, unit, frame)
    header.set_data_dtype(dtype)
    header["dim"] = [3, *reversed(shape), 1, 1, 1, 1]
    header.set_slope_inter(1, 0)
    header["vox_offset"] = 352
    stream: IO[bytes] | gzip.GzipFile
    with path.open("wb") as raw:
        # level 1 halves the time for 5 % more bytes; no time stamp: the same labels give the same file
        stream = gzip.GzipFile("", "wb", 1, raw, mtime=0) if path.name.lower().endswith(".gz") else raw
        stream.write(header.binaryblock)
        # no header extension
        stream.write(bytes(4))
        for plane in planes:
            # x runs fastest in NIfTI: that is a plane (y, x) in C order
            stream.write(np.ascontiguousarray(plane, dtype=dtype).data)
        if stream is not raw:
            stream.close()


def _framed(header: Any, voxel_size: VoxelSize, unit: Unit, frame: Any) -> Any:
    """Return the header with its place in space: that of the image, bit by bit, or the voxel size alone."""
    if frame is not None:
        for name in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"):
            header[name] = frame[name]
        for name in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
            header[name] = frame[name]
        return header
    sizes = [s * convert_length(unit, "millimeter") for s in reversed(voxel_size)]
    header.set_data_shape((1, 1, 1))
    header.set_zooms(sizes)
    header.set_xyzt_units("mm")
    header.set_sform(np.diag([*sizes, 1.0]), code="scanner")
    header.set_qform(np.diag([*sizes, 1.0]), code="scanner", strip_shears=True)
    return header


def volume_planes(volume: Volume, channel: int) -> Iterator[NDArray[Any]]:
    """Yield the slices along z of one channel, each of shape (y, x)."""
    for z in range(volume.shape[0]):
        yield volume.read_slice(SliceRef("z", z))[channel, 0]


def _chunk_depth(array: ArrayLike3D) -> int:
    chunks = getattr(array, "chunks", None)
    if not chunks:
        return 1
    first = chunks[0]
    return int(max(first) if isinstance(first, tuple) else first)


def _slab(shape: tuple[int, int, int], voxel_bytes: int) -> tuple[int, int, int]:
    """Return a tile of whole chunks of at most 64 MB or one chunk: as few reads of the source as memory allows."""
    z, y, x = BLOCK
    chunk = z * y * x * voxel_bytes
    count = max(1, 2**26 // chunk)
    columns = min(count, -(-shape[2] // x))
    rows = min(max(1, count // columns), -(-shape[1] // y))
    return z, y * rows, x * columns
