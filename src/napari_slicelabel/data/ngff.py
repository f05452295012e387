"""OME-Zarr 0.5 metadata, and the label images that the project keeps its arrays in."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_slicelabel.data.classes import LabelClass

if TYPE_CHECKING:
    import zarr

VERSION = "0.5"


def multiscales(
    name: str,
    voxel_size: Sequence[float],
    unit: str,
    *,
    levels: Sequence[Sequence[float]] = ((1, 1, 1),),
    channels: bool,
) -> list[dict[str, Any]]:
    """Return the `multiscales` metadata of an image.

    Parameters
    ----------
    name : str
        Of the image.
    voxel_size : sequence of 3 float
        Of the finest level, along z, y, x.
    unit : str
        "nanometer", "micrometer", "millimeter"; left out for "pixel".
    levels : sequence of sequence of 3 float
        For each level how many voxels of the finest one a voxel spans, along z, y, x. Level k lies at path "k".
    channels : bool
        Whether the first axis is c.

    Returns
    -------
    list of dict
        One multiscale.
    """
    extra = {} if unit == "pixel" else {"unit": unit}
    axes: list[dict[str, str]] = [{"name": a, "type": "space", **extra} for a in "zyx"]
    if channels:
        axes.insert(0, {"name": "c", "type": "channel"})
    datasets: list[dict[str, Any]] = []
    for number, factors in enumerate(levels):
        scale = [1.0] * channels + [float(s * f) for s, f in zip(voxel_size, factors, strict=True)]
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        datasets.append({"path": str(number), "coordinateTransformations": transforms})
    return [{"name": name, "axes": axes, "datasets": datasets}]


def image_label(classes: Sequence[LabelClass], *, source: str | None = None) -> dict[str, Any]:
    """Return the `image-label` metadata: colour and name of each class, and which image the labels belong to."""
    label: dict[str, Any] = {"version": VERSION}
    if classes:
        label["colors"] = [{"label-value": c.id, "rgba": list(c.rgba)} for c in classes]
        label["properties"] = [{"label-value": c.id, "class": c.name} for c in classes]
    if source is not None:
        label["source"] = {"image": source}
    return label


def create_label_image(
    folder: Path,
    shape: Sequence[int],
    *,
    chunks: Sequence[int],
    name: str,
    voxel_size: Sequence[float] = (1.0, 1.0, 1.0),
    unit: str = "pixel",
    classes: Sequence[LabelClass] = (),
    source: str | None = None,
    dtype: Any = np.uint8,
    fill_value: int = 0,
) -> "zarr.Array[Any]":
    """Create an OME-Zarr 0.5 label image of one level and return its array. No chunk is written.

    Parameters
    ----------
    folder : Path
        The zarr group to create; must not exist.
    shape : sequence of 3 int
        (z, y, x).
    chunks : sequence of 3 int
        Chunk shape; what exceeds `shape` is cut.
    name : str
        Of the image.
    voxel_size : sequence of 3 float
        Along z, y, x, in `unit`.
    unit : str
        As in `Volume`.
    classes : sequence of LabelClass
        For colours and names.
    source : str, optional
        Path of the image that the labels belong to, relative to `folder`.
    dtype : dtype
        Of the labels, an integer type.
    fill_value : int
        What chunks that do not exist hold.

    Returns
    -------
    zarr.Array of shape (z, y, x)
        At ``folder/0``. Writing a chunk that holds `fill_value` everywhere removes its file.

    Raises
    ------
    OSError
        As the file system says.
    """
    import zarr
    from zarr.codecs import ZstdCodec

    ome = {
        "version": VERSION,
        "multiscales": multiscales(name, voxel_size, unit, channels=False),
        "image-label": image_label(classes, source=source),
    }
    group = zarr.create_group(folder, zarr_format=3, attributes={"ome": ome})
    # level 1: labels compress 100 to 1 at any level; the checksum tells a damaged chunk from a valid one
    return group.create_array(
        "0",
        shape=tuple(shape),
        chunks=tuple(max(1, min(c, n)) for c, n in zip(chunks, shape, strict=True)),
        dtype=np.dtype(dtype),
        compressors=[ZstdCodec(level=1, checksum=True)],
        fill_value=fill_value,
        dimension_names=("z", "y", "x"),
    )
