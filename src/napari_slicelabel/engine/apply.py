"""A finished model on another volume, out of core."""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from napari_slicelabel.data.boxes import AXES, Box
from napari_slicelabel.data.classes import LabelClass
from napari_slicelabel.data.formats import WRITERS, suffix_of, write_labels
from napari_slicelabel.engine.blocks import BlockPredictor, BlockReader
from napari_slicelabel.engine.confidence import label
from napari_slicelabel.engine.devices import resolve_device
from napari_slicelabel.engine.events import Event, Progress
from napari_slicelabel.engine.networks import SliceNetwork, load_model
from napari_slicelabel.engine.planes import PlaneReader
from napari_slicelabel.engine.predict import Band, predict_bands, with_smaller_tiles
from napari_slicelabel.engine.stores import SliceStore
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.data.boxes import Axis
    from napari_slicelabel.data.volume import Volume
    from napari_slicelabel.engine.volume_networks import VolumeNetwork


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
    network, description = load_model(Path(model))
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
        with closing(_Applied(network, volume, axis, where, Path(folder))) as applied:
            for index in range(depth):
                name = f"{volume.name} {axis}{index}"
                for done, total in applied.prepare(index):
                    yield Progress("apply", index, depth, f"{name}, tile {done} of {total}")
                store.write(index, applied.labels(index))
                yield Progress("apply", index + 1, depth, name)
        write_labels(
            target,
            store.array(),
            voxel_size=volume.voxel_size,
            unit=volume.unit,
            classes=classes,
            image=_affine(volume, target),
        )


class _Applied:
    """The labels that a network gives to the slices of a volume, in their order."""

    def __init__(
        self,
        network: "SliceNetwork | VolumeNetwork",
        volume: "Volume",
        axis: "Axis",
        device: torch.device,
        folder: Path,
    ) -> None:
        self._network, self._device = network, device
        self._shape = volume.plane_shape(axis)
        self._values = np.array([0, *network.config.classes], np.uint8)
        self._planes, self._blocks = None, None
        if isinstance(network, SliceNetwork):
            self._planes = PlaneReader(volume, axis, network.config)
        else:
            self._blocks = _predictor(network, BlockReader(volume, axis, network.config.coordinates), device, folder)

    def prepare(self, index: int) -> Iterator[tuple[int, int]]:
        """Do what a slice needs of a 3D network, yielding after each tile how many of how many are done."""
        if self._blocks is not None:
            yield from self._blocks.prepare(index)

    def labels(self, index: int) -> "NDArray[np.uint8]":
        """Return label values of a slice, shape (h, w)."""
        if self._blocks is not None:
            found = self._labelled(self._blocks.bands(index))
            self._blocks.release(index)
            return found
        return with_smaller_tiles(lambda tile: self._labelled(self._bands(index, tile)), self._device)

    def _bands(self, index: int, tile: int) -> Iterator[Band]:
        network, planes = self._network, self._planes
        assert isinstance(network, SliceNetwork)
        assert planes is not None
        return predict_bands(
            network, lambda rows, columns: planes.read(index, rows, columns), self._shape, self._device, tile=tile
        )

    def _labelled(self, bands: Iterator[Band]) -> "NDArray[np.uint8]":
        # labels do not depend on the temperature
        return self._values[label(bands, self._shape, len(self._values) - 1, 1.0, 1.0).channels]

    def close(self) -> None:
        if self._blocks is not None:
            self._blocks.close()


def _predictor(network: "VolumeNetwork", reader: BlockReader, device: torch.device, folder: Path) -> BlockPredictor:
    config = network.config

    def read(box: Box) -> "NDArray[np.float16]":
        image = reader.read(box)
        # nothing is known of shapes in another image: 0, which training has shown to the network
        return np.concatenate([image, np.zeros((len(config.shape_classes), *box.shape), np.float16)])

    return BlockPredictor(
        network,
        read,
        reader.shape,
        1 + len(config.classes),
        tile=config.tile,
        stride=config.stride,
        device=device,
        scratch=folder / "sums.zarr",
        mirror=config.mirror,
    )


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
