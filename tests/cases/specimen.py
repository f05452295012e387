"""One small specimen, and files of it as other programs store theirs.

Each maker takes a folder and returns the path to open. What a file holds is in `IMAGE` and `LABELS`, or said beside it.
"""

from __future__ import annotations

import json
import struct
import uuid
import zipfile
from typing import TYPE_CHECKING, Any

import h5py
import nibabel
import numpy as np
import tifffile
import zarr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Maker = Callable[[Path], Path]

# three lengths, so that no axis can be taken for another
SHAPE = (12, 40, 48)


def rod(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    """Return labels of a tilted rod (1) with a core (2), of which no mirror image is the same."""
    z, y, x = np.indices(shape)
    distance = np.hypot(y - shape[1] / 2.5 - z / 2, x - shape[2] / 3 - z * 0.8)
    thickness = min(shape[1:]) / 4
    return (distance < thickness).astype(np.uint8) + (distance < thickness / 2)


def grey(labels: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """Return an image of labels in noise."""
    return np.random.default_rng(seed).normal(50 + 75 * labels.astype(float), 10).clip(0, 255).astype(np.uint8)


LABELS = rod()
IMAGE = grey(LABELS)
OTHER_IMAGE = grey(LABELS, seed=1)
for _array in (LABELS, IMAGE, OTHER_IMAGE):
    _array.flags.writeable = False


# NumPy


def npy(array: NDArray[Any], name: str = "stack.npy") -> Maker:
    def make(folder: Path) -> Path:
        np.save(folder / name, array)
        return folder / name

    return make


# MRC


def mrc(
    voxels: NDArray[Any],
    mode: int,
    name: str = "stack.mrc",
    *,
    imod_flags: int | None = None,
    word: bytes = b"MAP ",
    stamp: bytes = b"DD\0\0",
    tail: int = 0,
    gzip: bool = False,
) -> Maker:
    """A cell of 10 x 10 x 30 angstrom a voxel; little endian."""
    depth, height, width = voxels.shape
    header = bytearray(1024)
    struct.pack_into("<10i", header, 0, width, height, depth, mode, 0, 0, 0, width, height, depth)
    struct.pack_into("<6f3i", header, 40, width * 10, height * 10, depth * 30, 90, 90, 90, 1, 2, 3)
    if imod_flags is not None:
        struct.pack_into("<2i", header, 152, 1146047817, imod_flags)
    header[208:216] = word + stamp

    def make(folder: Path) -> Path:
        content = bytes(header) + voxels.tobytes() + bytes(tail)
        if gzip:
            import gzip as packer

            content = packer.compress(content)
        (folder / name).write_bytes(content)
        return folder / name

    return make


# TIFF


def tif(array: NDArray[Any], name: str = "stack.tif", **options: Any) -> Maker:
    def make(folder: Path) -> Path:
        tifffile.imwrite(folder / name, array, **{"photometric": "minisblack", **options})
        return folder / name

    return make


def pages_by_turns(folder: Path) -> Path:
    """Every second page is compressed, as programs leave it that append to a file."""
    with tifffile.TiffWriter(folder / "turns.tif") as writer:
        for z, plane in enumerate(IMAGE):
            packing = "zlib" if z % 2 else None
            writer.write(plane, photometric="minisblack", metadata=None, compression=packing, contiguous=False)
    return folder / "turns.tif"


def sections(ending: str, number: str = "{}") -> Maker:
    """A folder of one file a section, counted from 1."""

    def make(folder: Path) -> Path:
        from PIL import Image

        (folder / "sections").mkdir()
        for z, plane in enumerate(IMAGE, 1):
            Image.fromarray(plane).save(folder / "sections" / f"s_{number.format(z)}{ending}")
        return folder / "sections"

    return make


def imagej(lines: str, *, per_unit: float = 2.0, encoding: str = "ascii") -> Maker:
    """A stack with lines in ImageJ's text, at so many pixels a unit."""
    head = f"ImageJ=1.54f\nimages={len(IMAGE)}\nslices={len(IMAGE)}\n{lines}\nloop=false\n"
    return tif(
        IMAGE,
        description=head.encode(encoding),
        metadata=None,
        resolution=(per_unit, per_unit),
        resolutionunit="NONE",
        contiguous=True,
    )


def hyperstack(array: NDArray[Any], axes: str, **more: Any) -> Maker:
    metadata = {"axes": axes, "spacing": 2, "unit": "um"}
    return tif(array, imagej=True, metadata=metadata, resolution=(2, 2), photometric=None, **more)


def broken_copy(folder: Path) -> Path:
    path = tif(IMAGE, imagej=True, metadata={"axes": "ZYX"})(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


# OME-TIFF


def _ome(attributes: str, planes: str = '<TiffData IFD="0" PlaneCount="12"/>', identity: str = "") -> bytes:
    depth, height, width = SHAPE
    return (
        f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" {identity}><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="{width}" SizeY="{height}" SizeZ="{depth}"'
        f' SizeC="1" SizeT="1" {attributes}><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}'
        "</Pixels></Image></OME>"
    ).encode()


def ome(sizes: Mapping[str, float], units: Mapping[str, str] | None = None) -> Maker:
    """Sizes by axis, Z, Y, X; one that is left out is not in the file, nor is its unit."""
    words = [f'PhysicalSize{axis}="{size}"' for axis, size in sizes.items()]
    words += [f'PhysicalSize{axis}Unit="{unit}"' for axis, unit in (units or {}).items()]
    return tif(IMAGE, "stack.ome.tif", description=_ome(" ".join(words)), metadata=None)


def micrometres(z: float) -> Maker:
    return ome({"Z": z, "Y": 0.5, "X": 0.5}, dict.fromkeys("ZYX", "\u00b5m"))


def ome_files(folder: Path, *, lost: int | None = None) -> Path:
    """One file a section, each of which names all."""
    ids = [f"urn:uuid:{uuid.UUID(int=z + 1)}" for z in range(len(IMAGE))]
    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="z{z:02}.ome.tif">{one}</UUID></TiffData>'
        for z, one in enumerate(ids)
    )
    for z, plane in enumerate(IMAGE):
        text = _ome("", planes, f'UUID="{ids[z]}"')
        tif(plane, f"z{z:02}.ome.tif", description=text, metadata=None)(folder)
    if lost is not None:
        (folder / f"z{lost:02}.ome.tif").unlink()
    return folder / "z00.ome.tif"


# HDF5


def h5(data: Mapping[str, NDArray[Any]], *, axes: str = "", member: str = "", **attributes: Any) -> Maker:
    """Data sets by name, each with the same attributes; `axes` as vigra and ilastik write them."""
    if axes:
        flags = {"c": 1, "t": 8}
        tags = [{"key": a, "typeFlags": flags.get(a, 2), "resolution": 0, "description": ""} for a in axes]
        attributes["axistags"] = json.dumps({"axes": tags})

    def make(folder: Path) -> Path:
        with h5py.File(folder / "stack.h5", "w") as file:
            for name, array in data.items():
                file.create_dataset(name, data=array, compression="gzip").attrs.update(attributes)
        return folder / (f"stack.h5::{member}" if member else "stack.h5")

    return make


def h5_soft_link(folder: Path) -> Path:
    with h5py.File(folder / "link.h5", "w") as file:
        file["a/b"] = IMAGE
        file["raw"] = h5py.SoftLink("/a/b")
    return folder / "link.h5::raw"


def h5_lzf(folder: Path) -> Path:
    with h5py.File(folder / "lzf.h5", "w") as file:
        file.create_dataset("raw", data=IMAGE, compression="lzf", shuffle=True)
    return folder / "lzf.h5"


def big_data_viewer(folder: Path) -> Path:
    with h5py.File(folder / "bdv.h5", "w") as file:
        for level, step in enumerate((1, 2)):
            cells = IMAGE[:, ::step, ::step].astype(np.int16)
            file.create_dataset(f"t00000/s00/{level}/cells", data=cells, chunks=(4, 10, 12))
        file["s00/resolutions"] = np.array([[1.0, 1, 1], [2, 2, 1]])
        file["s00/subdivisions"] = np.array([[12, 10, 4]] * 2)
    return folder / "bdv.h5"


# OME-Zarr


def _entry(axes: str, paths: Sequence[str], scale: Sequence[float], unit: Any) -> dict[str, Any]:
    kinds = {"t": "time", "c": "channel"}
    names: list[dict[str, Any]] = [{"name": a, "type": kinds.get(a, "space")} for a in axes]
    for axis in names:
        if axis["type"] == "space":
            axis["unit"] = unit
    scales = [[1.0] * (len(axes) - 3) + [scale[0], scale[1] * 2**k, scale[2] * 2**k] for k in range(len(paths))]
    levels = [
        {"path": path, "coordinateTransformations": [{"type": "scale", "scale": one}]}
        for path, one in zip(paths, scales, strict=True)
    ]
    return {"axes": names, "datasets": levels}


def ngff(
    array: NDArray[Any] = IMAGE,
    axes: str = "zyx",
    paths: Sequence[str] = ("0", "1"),
    scale: Sequence[float] = (2.0, 0.5, 0.5),
    unit: Any = "micrometer",
    separator: str = "/",
    change: Callable[[dict[str, Any]], None] = lambda _: None,
    more: Callable[[zarr.Group], None] = lambda _: None,
    member: str = "",
) -> Maker:
    """A pyramid of OME-Zarr 0.4 that halves y and x; `change` edits its metadata, `more` puts in what else there is."""

    def make(folder: Path) -> Path:
        group = zarr.open_group(folder / "stack.zarr", mode="w", zarr_format=2)
        for level, name in enumerate(paths):
            data = array[..., :: 2**level, :: 2**level]
            key = {"name": "v2", "separator": separator}
            chunks = tuple(min(length, 16) for length in data.shape)
            group.create_array(name, data=data, chunks=chunks, chunk_key_encoding=key)
        entry = {"version": "0.4", **_entry(axes, paths, scale, unit)}
        change(entry)
        group.attrs["multiscales"] = [entry]
        more(group)
        return folder / (f"stack.zarr::{member}" if member else "stack.zarr")

    return make


def plain_axis_names(entry: dict[str, Any]) -> None:
    """As version 0.3 has it: no sizes."""
    entry.update(version="0.3", axes=[axis["name"] for axis in entry["axes"]])
    for level in entry["datasets"]:
        del level["coordinateTransformations"]


def no_axes(entry: dict[str, Any]) -> None:
    """As version 0.1 has it: five are meant."""
    plain_axis_names(entry)
    del entry["axes"]


def capitals(entry: dict[str, Any]) -> None:
    for axis in entry["axes"]:
        axis["name"] = axis["name"].upper()


def long_channel_name(entry: dict[str, Any]) -> None:
    entry["axes"][0]["name"] = "channel"


def size_beside_the_levels(entry: dict[str, Any]) -> None:
    entry["coordinateTransformations"] = [{"type": "scale", "scale": [2.0, 0.5, 0.5]}]


def label_group(labels: NDArray[Any], *, listed: bool = True, marked: bool = True) -> Callable[[zarr.Group], None]:
    """Labels called cells inside of an image."""

    def add(group: zarr.Group) -> None:
        cells = group.require_group("labels").create_group("cells")
        cells.create_array("0", data=labels)
        axes = "tczyx"[5 - labels.ndim :]
        cells.attrs["multiscales"] = [{"version": "0.4", **_entry(axes, ("0",), (2.0, 0.5, 0.5), "micrometer")}]
        if marked:
            cells.attrs["image-label"] = {"version": "0.4"}
        if listed:
            group["labels"].attrs["labels"] = ["cells"]

    return add


def labels_alone(folder: Path) -> Path:
    label_group(LABELS)(zarr.open_group(folder / "alone.zarr", mode="w", zarr_format=2))
    return folder / "alone.zarr"


def no_label(folder: Path, *, listed: bool) -> Path:
    """A group of labels in which there is none."""
    path = ngff(LABELS)(folder)
    group = zarr.open_group(path, mode="a").create_group("labels")
    if listed:
        group.attrs["labels"] = []
    return path


def shard(folder: Path) -> Path:
    """OME-Zarr 0.5, all chunks in one file."""
    group = zarr.open_group(folder / "shard.ome.zarr", mode="w", zarr_format=3)
    group.create_array("s0", shape=SHAPE, dtype="u1", chunks=(4, 10, 12), shards=SHAPE)[:] = IMAGE
    entry = _entry("zyx", ("s0",), (2.0, 0.5, 0.5), "micrometer")
    group.attrs["ome"] = {"version": "0.5", "multiscales": [entry]}
    return folder / "shard.ome.zarr"


def zipped(maker: Maker, name: str) -> Maker:
    def make(folder: Path) -> Path:
        packed = maker(folder)
        with zipfile.ZipFile(folder / name, "w") as archive:
            for file in sorted(path for path in packed.rglob("*") if path.is_file()):
                archive.write(file, file.relative_to(packed))
        return folder / name

    return make


def plate(folder: Path, *, field: str = "") -> Path:
    """Two wells of one field."""
    wells = [{"path": "A/1"}, {"path": "B/1"}]
    rows = [{"name": "A"}, {"name": "B"}]
    group = zarr.open_group(folder / "plate.zarr", mode="w", zarr_format=2)
    group.attrs["plate"] = {"rows": rows, "columns": [{"name": "1"}], "wells": wells}
    for row in "AB":
        well = group.create_group(row).create_group("1")
        well.attrs["well"] = {"images": [{"path": "0"}]}
        ngff()(folder / "plate.zarr" / row / "1").rename(folder / "plate.zarr" / row / "1" / "0")
    return folder / "plate.zarr" / field


# NIfTI

AFFINE = np.array([[0.5, 0, 0, -12], [0, 0.5, 0, -10], [0, 0, 3, 5], [0, 0, 0, 1.0]])
SHEARED = AFFINE + np.eye(4)[[0]].T @ np.eye(4)[[2]] * 0.8
OBLIQUE = np.array([[0.955, -0.296, 0, 0], [0.296, 0.955, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE
LEFT_HANDED = np.diag([-1.0, -1, 1, 1]) @ AFFINE
ELSEWHERE = AFFINE + np.eye(4)[:, [3]].T * np.array([[52], [50], [35], [0]])


def nifti(
    array: NDArray[Any] = IMAGE,
    name: str = "stack.nii.gz",
    affine: NDArray[Any] = AFFINE,
    *,
    qform: NDArray[Any] | None = None,
    qform_code: int = 1,
    unit: str = "mm",
    kind: Any = nibabel.Nifti1Image,
    patch: tuple[int, Sequence[float]] | None = None,
) -> Maker:
    """Voxels in z, y, x, stored as x, y, z; `patch` puts floats over the header of a .nii, from an offset."""

    def make(folder: Path) -> Path:
        data = array if array.dtype.names or array.ndim > 3 else array.transpose(2, 1, 0)
        image = kind(data, affine, dtype=data.dtype)
        image.set_sform(affine, code=1)
        image.set_qform(affine if qform is None else qform, code=qform_code, strip_shears=True)
        image.header.set_xyzt_units(unit)
        nibabel.save(image, folder / name)
        if patch is not None:
            content = bytearray((folder / name).read_bytes())
            struct.pack_into(f"<{len(patch[1])}f", content, patch[0], *patch[1])
            (folder / name).write_bytes(content)
        return folder / name

    return make


PIXDIM, SLOPE = 80, 112


def patched(offset: int, *values: float, **options: Any) -> Maker:
    return nifti(IMAGE.astype(np.int16), "stack.nii", patch=(offset, values), **options)


def nifti_colours(folder: Path) -> Path:
    voxels = IMAGE.transpose(2, 1, 0)
    colours = np.zeros(voxels.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["R"], colours["G"], colours["B"] = voxels, 255 - voxels, voxels // 2
    return nifti(colours, "colours.nii")(folder)
