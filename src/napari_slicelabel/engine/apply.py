"""A finished model on another volume, out of core."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_slicelabel.data.boxes import AXES
from napari_slicelabel.data.classes import LabelClass
from napari_slicelabel.data.formats import WRITERS, suffix_of, write_labels
from napari_slicelabel.engine.confidence import label
from napari_slicelabel.engine.devices import resolve_device
from napari_slicelabel.engine.events import Event, Progress
from napari_slicelabel.engine.networks import load_network
from napari_slicelabel.engine.planes import PlaneReader
from napari_slicelabel.engine.predict import predict_bands, with_smaller_tiles
from napari_slicelabel.engine.stores import SliceStore
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.data.boxes import Axis
    from napari_slicelabel.data.volume import Volume
    from napari_slicelabel.engine.networks import SliceNetwork


def apply(model: str | Path, volume: "Volume", out: str | Path, *, device: str = "auto") -> Iterator[Event]:
    """Label a volume with the model of a finished run and write the labels to a file.

    Parameters
    ----------
    model : str or Path
        The folder ``model`` of a run.
    volume : Volume
        The image, with as many channels as those of the run.
    out : str or Path
        A file whose ending names the format; see `write_labels`. What is there is replaced.
    device : {"auto", "cpu", "cuda"}
        Where the network runs.

    Yields
    ------
    Event
        A `Progress` for each slice.

    Raises
    ------
    MissingFileError
        No model in the folder.
    InputError
        A damaged model, another number of channels, an unknown ending, a constant image.
    DeviceError
        No GPU, or its memory is full.
    StorageError
        Disk full, no permission.

    Notes
    -----
    Slices lie along the axis that the model was trained on. They go to a temporary zarr beside `out`, from which the
    file is written at the end; memory holds one row of tiles.
    """
    target = Path(out).expanduser().absolute()
    if suffix_of(target, list(WRITERS)) is None:
        raise InputError(f"{target}: labels are written to {', '.join(WRITERS)}; choose one of these endings")
    network, description = load_network(Path(model))
    if volume.channels != network.config.image_channels:
        raise InputError(
            f"{volume.source} has {volume.channels} channels, the model was trained on {network.config.image_channels};"
            " give an image with the same channels"
        )
    axis = _axis(description.get("axis"), Path(model))
    where = resolve_device(device)
    network.to(where)
    classes = [LabelClass.model_validate(record) for record in _records(description.get("classes"))]
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=_existing(target.parent)) as folder:
        store = SliceStore(Path(folder) / "labels.zarr", volume, axis, classes=classes)
        depth = volume.depth(axis)
        for index in range(depth):
            store.write(index, _labels(network, PlaneReader(volume, axis, network.config), index, where))
            yield Progress("apply", index + 1, depth, f"{volume.name} {axis}{index}")
        write_labels(
            target,
            store.array(),
            voxel_size=volume.voxel_size,
            unit=volume.unit,
            classes=classes,
            image=_affine(volume, target),
        )


def _labels(network: "SliceNetwork", planes: PlaneReader, index: int, device: Any) -> "NDArray[np.uint8]":
    shape = planes.volume.plane_shape(planes.axis)
    values = np.array([0, *network.config.classes], np.uint8)

    def work(tile: int) -> "NDArray[np.uint8]":
        bands = predict_bands(
            network, lambda rows, columns: planes.read(index, rows, columns), shape, device, tile=tile
        )
        # labels do not depend on the temperature
        return values[label(bands, shape, len(network.config.classes), 1.0, 1.0).channels]

    return with_smaller_tiles(work, device)


def _axis(value: object, model: Path) -> "Axis":
    for axis in AXES:
        if value == axis:
            return axis
    raise InputError(f"the model in {model} names the axis {value!r}, expected one of {', '.join(AXES)}")


def _records(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; create it first")
    return folder


def _affine(volume: "Volume", target: Path) -> "Volume | None":
    # NIfTI needs the image for its place in the body; an OME-Zarr would get a copy of all its voxels
    return volume if suffix_of(target, [".nii", ".nii.gz"]) else None
