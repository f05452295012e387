"""A volume to be labelled by a model, in parts that any process may do, in any order, and each only once."""

# No `from __future__ import annotations`: pydantic reads the annotations when the class is made.
import hashlib
import json
import math
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from napari_slicelabel.data.boxes import AXES, Axis, Box
from napari_slicelabel.data.classes import LabelClass
from napari_slicelabel.data.files import storage_errors, write_text
from napari_slicelabel.data.formats import open_volume, split_source
from napari_slicelabel.data.reading import read_bytes
from napari_slicelabel.data.volume import NanRule
from napari_slicelabel.engine.blocks import BlockPredictor, BlockReader, along, tiling
from napari_slicelabel.engine.confidence import label
from napari_slicelabel.engine.devices import resolve_device
from napari_slicelabel.engine.model_files import unreadable
from napari_slicelabel.engine.networks import SliceNetwork, load_model
from napari_slicelabel.engine.planes import PlaneReader
from napari_slicelabel.engine.predict import Band, predict_bands, with_smaller_tiles
from napari_slicelabel.engine.stores import PLANE_CHUNK, SliceStore
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from napari_slicelabel.data.volume import Volume
    from napari_slicelabel.engine.volume_networks import VolumeNetwork

    Network = SliceNetwork | VolumeNetwork

# A part of slices has at most this many pixels, and a part of tiles this many layers of them; but where there is little
# to do there are at least as many parts as this, so that every process has some.
_SLICES_PX = 16 * 2**20
_LAYERS = 4
_LEAST_PARTS = 8
# Of n layers of tiles in a part one is predicted for the next part, too.
_LEAST_LAYERS = 2

LOCK_NAME = "lock"
"""The file in the folder of a job by which a process keeps others from it."""

_opening = threading.Lock()


class JobRecord(BaseModel):
    """What a process must know to do parts of a job; ``job.json``.

    Attributes
    ----------
    token : str
        Digest of what the labels follow from: the weights, the image, how it is cut into parts.
    model : str
        Folder of the model.
    source, image_axes, voxel_size, unit, nan, shape, dtype
        How to open the image, and what it must be.
    axis : {"z", "y", "x"}
        Slices are perpendicular to it.
    classes : tuple of LabelClass
        Of the model.
    parts : tuple of pairs of triples of int
        Start and stop of each part, (d, h, w) with `axis` first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str
    model: str
    source: str
    image_axes: str
    voxel_size: tuple[float, float, float]
    unit: str
    nan: NanRule = "background"
    shape: tuple[int, int, int]
    dtype: str
    axis: Axis
    classes: tuple[LabelClass, ...]
    parts: tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...]

    @classmethod
    def of(cls, model: Path, network: "Network", description: Mapping[str, JsonValue], volume: "Volume") -> Self:
        """Return the record of a model and an image."""
        axis = _axis(description.get("axis"), model)
        fields = {
            "model": str(model.expanduser().absolute()),
            "source": volume.source,
            "image_axes": volume.axes,
            "voxel_size": volume.voxel_size,
            "unit": volume.unit,
            "nan": volume.nan,
            "shape": volume.shape,
            "dtype": str(volume.dtype),
            "axis": axis,
            "classes": _classes(description.get("classes"), model),
            "parts": [(box.start, box.stop) for box in parts(network, volume, axis)],
        }
        return cls.model_validate({**fields, "token": _token(model, volume, fields["parts"])})

    @property
    def resumable(self) -> bool:
        """Whether another call can tell that it is asked for the same."""
        return _is_in_a_file(self.source)

    def boxes(self) -> tuple[Box, ...]:
        """Return the parts, (d, h, w)."""
        return tuple(Box(start, stop) for start, stop in self.parts)

    def open_image(self) -> "Volume":
        """Open the image anew.

        Raises
        ------
        MissingFileError
            It is not there.
        InputError
            It is another one.
        """
        volume = open_volume(
            self.source, axes=self.image_axes, voxel_size=self.voxel_size, unit=self.unit, nan=self.nan
        )
        if volume.shape != self.shape or str(volume.dtype) != self.dtype:
            raise InputError(
                f"{self.source} opens as {volume.dtype} of shape {volume.shape}, the image of this job is {self.dtype}"
                f" of {self.shape}; a level of a pyramid other than the finest must be saved as a file of its own"
            )
        return volume


class Job:
    """The folder of a job: its record, a mark for each part that is done, and the labels so far.

    Parameters
    ----------
    folder : Path
        Where it lies.
    record : JobRecord
        What is to be done.
    volume : Volume
        The image.
    """

    def __init__(self, folder: Path, record: JobRecord, volume: "Volume") -> None:
        self.folder, self.record = folder, record
        self.boxes = record.boxes()
        self.store = SliceStore(folder / "labels.zarr", volume, record.axis, classes=record.classes)

    @classmethod
    def begin(cls, folder: Path, record: JobRecord, volume: "Volume") -> tuple[Self, bool]:
        """Return the job in a folder, to go on with, or a new one where there is none or another one.

        Returns
        -------
        tuple of (Job, bool)
            The flag says whether what was there belonged to another model or image, and was removed.

        Raises
        ------
        StorageError
            Disk full, no permission.
        """
        job, path = cls(folder, record, volume), folder / "job.json"
        found = _read_record(path)
        if found is not None and found.token == record.token:
            return job, False
        job.clear()
        with storage_errors(folder):
            job._marks.mkdir(parents=True)
        job.store.create()
        write_text(path, record.model_dump_json())
        return job, found is not None

    @property
    def _marks(self) -> Path:
        return self.folder / "done"

    def pending(self) -> list[int]:
        """Return the numbers of the parts that are not done."""
        with storage_errors(self._marks, "read"):
            done = {entry.name for entry in os.scandir(self._marks)}
        return [number for number in range(len(self.boxes)) if str(number) not in done]

    def mark(self, number: int) -> None:
        """Say that the labels of a part are on disk."""
        with storage_errors(self._marks):
            (self._marks / str(number)).touch()

    def write(self, index: int, box: Box, values: "NDArray[np.uint8]") -> None:
        """Write what a part has of a plane, shape (h, w)."""
        axis = self.record.axis
        plane = Box((index, *box.start[1:]), (index + 1, *box.stop[1:]))
        self.store.write_box(along(axis, plane), np.expand_dims(values, AXES.index(axis)))

    def clear(self) -> None:
        """Remove all but the lock, which is held."""
        for entry in self.folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK_NAME:
                with storage_errors(entry, "remove"):
                    entry.unlink(missing_ok=True)


class Labeller:
    """The labels that a network gives to planes of a part of a volume, from its first to its last.

    Parameters
    ----------
    network : SliceNetwork or VolumeNetwork
        In evaluation mode, on `device`.
    volume : Volume
        The image.
    axis : {"z", "y", "x"}
        Slices are perpendicular to it.
    device : torch.device
        Where the network runs.
    box : Box
        The part, (d, h, w); whole planes for a 2D network.
    scratch : Path
        Where sums may lie that are too large for memory.
    """

    def __init__(
        self, network: "Network", volume: "Volume", axis: Axis, device: "torch.device", box: Box, scratch: Path
    ) -> None:
        self._network, self._device = network, device
        self._shape = (box.shape[1], box.shape[2])
        self._values = np.array([0, *network.config.classes], np.uint8)
        self._planes, self._blocks = None, None
        if isinstance(network, SliceNetwork):
            self._planes = PlaneReader(volume, axis, network.config)
        else:
            reader = BlockReader(volume, axis, network.config.coordinates)
            self._blocks = _predictor(network, reader, device, box, scratch)

    def prepare(self, index: int) -> Iterator[tuple[int, int]]:
        """Do what a plane needs of a 3D network, yielding after each tile how many of how many are done."""
        if self._blocks is not None:
            yield from self._blocks.prepare(index)

    def labels(self, index: int) -> "NDArray[np.uint8]":
        """Return label values of a plane, shape (h, w)."""
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
        """Give the room back."""
        if self._blocks is not None:
            self._blocks.close()


def _predictor(
    network: "VolumeNetwork", reader: BlockReader, device: "torch.device", box: Box, scratch: Path
) -> BlockPredictor:
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
        scratch=scratch,
        mirror=config.mirror,
        window=box,
        in_order=True,
    )


def parts(network: "Network", volume: "Volume", axis: Axis) -> Iterator[Box]:
    """Yield the parts (d, h, w) that a volume is labelled in.

    No two parts share a chunk of a `SliceStore`. For a 2D network they are runs of slices. For a 3D network they begin
    and end where a layer of tiles begins, so that as few tiles as possible are predicted for two parts.
    """
    depth, (height, width) = volume.depth(axis), volume.plane_shape(axis)
    if isinstance(network, SliceNetwork):
        most = max(1, min(_SLICES_PX // (height * width), math.ceil(depth / _LEAST_PARTS)))
        yield from Box.whole((depth, height, width)).tiles((most, height, width))
        return
    starts = tiling(depth, network.config.tile[0]).starts
    layers = max(_LEAST_LAYERS, min(_LAYERS, math.ceil(len(starts) / _LEAST_PARTS)))
    cuts = starts[::layers]
    for first, end in zip(cuts, (*cuts[1:], depth), strict=True):
        yield from Box((first, 0, 0), (end, height, width)).tiles((end - first, PLANE_CHUNK, PLANE_CHUNK))


def label_part(folder: str, token: str, number: int, device: str) -> int:
    """Label one part of a job and return its number; what a worker does.

    Parameters
    ----------
    folder : str
        Of the job.
    token : str
        Of the job, so that a job begun anew is read anew.
    number : int
        Of the part.
    device : {"auto", "cpu", "cuda"}
        Where the network runs.
    """
    with _opening:
        job, network, volume, where = _opened(folder, token, device)
    box = job.boxes[number]
    # another process may do the same part: one that a scheduler has given up, but that goes on
    scratch = job.folder / f"sums-{number}-{os.getpid()}.part.zarr"
    labeller = Labeller(network, volume, job.record.axis, where, box, scratch)
    try:
        for index in range(box.start[0], box.stop[0]):
            for _ in labeller.prepare(index):
                pass
            job.write(index, box, labeller.labels(index))
    finally:
        labeller.close()
    job.mark(number)
    return number


# one model and one image for each process, whatever it does parts of
@lru_cache(maxsize=1)
def _opened(folder: str, token: str, device: str) -> "tuple[Job, Network, Volume, torch.device]":
    path = Path(folder) / "job.json"
    record = _read_record(path)
    if record is None or record.token != token:
        raise InputError(f"{path} is not there or of another job; every worker must see the folder that --out names")
    where = resolve_device(device)
    network, _ = load_model(Path(record.model))
    network.to(where)
    volume = record.open_image()
    return Job(Path(folder), record, volume), network, volume, where


def _read_record(path: Path) -> JobRecord | None:
    """Return a record, or None where there is none that can be read."""
    try:
        return JobRecord.model_validate_json(read_bytes(path))
    except (OSError, ValueError):
        return None


def _token(model: Path, volume: "Volume", parts: object) -> str:
    if not _is_in_a_file(volume.source):
        # nothing tells this array from the next one: a job of its own each time
        return uuid.uuid4().hex
    path = split_source(volume.source)[0]
    digest = hashlib.sha256()
    for name in ("weights.safetensors", "network.json"):
        with storage_errors(model / name, "read"), (model / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    with storage_errors(path, "read"):
        stat = path.stat()
    # of an image that is a folder the time says little; the range of its values is taken from a sample of them
    scale = volume.intensity()
    known = [volume.source, volume.axes, stat.st_size, stat.st_mtime_ns, scale.low, scale.high, scale.mean, scale.std]
    digest.update(json.dumps([known, volume.shape, str(volume.dtype), parts]).encode())
    return digest.hexdigest()


def _is_in_a_file(source: str) -> bool:
    return bool(source) and split_source(source)[0].exists()


def _classes(value: object, model: Path) -> list[LabelClass]:
    try:
        return [LabelClass.model_validate(record) for record in (value if isinstance(value, list) else [])]
    except ValidationError as error:
        raise unreadable(f"the model in {model}", error) from error


def _axis(value: object, model: Path) -> Axis:
    for axis in AXES:
        if value == axis:
            return axis
    raise InputError(f"the model in {model} names the axis {value!r}, expected one of {', '.join(AXES)}")
