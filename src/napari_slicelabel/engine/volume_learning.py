"""What the 3D methods share: what a network is fed, trained on and asked, over all volumes of a run."""

# No `from __future__ import annotations`: pydantic reads the annotations of the config when the class is made.
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, JsonValue

from napari_slicelabel.data.boxes import Box
from napari_slicelabel.engine.augment import NO_AUGMENTATION, Augmentation
from napari_slicelabel.engine.block_sampling import Block, BlockPool, BlockSampling, ShapesOf, block_boxes
from napari_slicelabel.engine.blocks import BlockPredictor, BlockReader, ShapeBlocks, crop_size
from napari_slicelabel.engine.confidence import (
    FOLDS,
    Calibration,
    HeldOut,
    Labelled,
    calibrate,
    label,
)
from napari_slicelabel.engine.config import LEAST_FOR_CALIBRATION, Devices
from napari_slicelabel.engine.context import Slot
from napari_slicelabel.engine.devices import crops_per_step, on_gpu
from napari_slicelabel.engine.events import Event, Progress, SliceDone
from napari_slicelabel.engine.fit import Crops, FitConfig, NetworkT, Trainer
from napari_slicelabel.engine.flow_config import FlowShareConfig
from napari_slicelabel.engine.losses import IGNORE
from napari_slicelabel.engine.regions import Known
from napari_slicelabel.engine.shapes import between
from napari_slicelabel.engine.training import fit_config, train
from napari_slicelabel.engine.volume_networks import (
    DENSEVOXNET_LEVELS,
    Architecture,
    VolumeNetwork,
    VolumeNetworkConfig,
    levels,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.engine.context import RunContext
    from napari_slicelabel.engine.flow_share import FlowShare


# Of 1e6 voxels, with the default network: on one CPU core with bfloat16, and beside a GPU, as measured. For the plan.
_TRAIN_S, _PREDICT_S = 2.3, 1.4
_TRAIN_CUDA_S, _PREDICT_CUDA_S = 0.06, 0.3


class VolumeLearningConfig(FlowShareConfig):
    """Parameters of methods that train a 3D network."""

    iterations: int = Field(
        300, ge=1, le=1_000_000, json_schema_extra={"step": 50}, description="Training steps of the 3D network."
    )
    network: Architecture = Field(
        "dynunet",
        description="3D network. dynunet: nnU-Net's, from full resolution on; unet: MONAI's residual U-Net;"
        " densevoxnet: that of S5.",
    )
    width: int = Field(
        16, ge=4, le=64, multiple_of=4, json_schema_extra={"step": 4}, description="Channels of the first level."
    )
    levels: int = Field(4, ge=3, le=6, json_schema_extra={"step": 1}, description="Resolutions of the network.")
    coordinates: Literal["on", "off"] = Field("off", description="Whether the network sees where it is in the volume.")
    shapes: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether the network sees the shapes of the neighbouring annotated slices, a geometric prior; auto:"
        " for the classes whose place in one annotated slice tells where they are in the next.",
    )
    shape_mix_low: float = Field(
        0.4,
        ge=0.0,
        le=1.0,
        json_schema_extra={"step": 0.05},
        description="How far training shapes may lean to the truth: 1 = only what other annotated slices say.",
    )
    shape_mix_high: float = Field(
        0.8, ge=0.0, le=1.0, json_schema_extra={"step": 0.05}, description="And how far at most from it."
    )
    shape_dropout: float = Field(
        0.1,
        ge=0.0,
        le=1.0,
        json_schema_extra={"step": 0.05},
        description="Share of the crops without shapes, from which the network learns to label other images.",
    )
    transfer_dropout: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        json_schema_extra={"step": 0.05},
        description="The same where some of the volumes to fill have no annotated slice, and so no shapes.",
    )
    crop_px: int = Field(
        128, ge=32, le=512, multiple_of=16, json_schema_extra={"step": 16}, description="Largest crop, in the slice."
    )
    crop_depth: int = Field(
        8, ge=4, le=512, multiple_of=4, json_schema_extra={"step": 4}, description="Largest crop, in slices."
    )
    batch: int = Field(
        0, ge=0, le=64, json_schema_extra={"step": 1}, description="Crops per step; 0: 2, and 8 on a GPU."
    )
    foreground_share: float = Field(
        0.67, ge=0.0, le=1.0, json_schema_extra={"step": 0.01}, description="Share of crops centred on a class."
    )
    human_share: float = Field(
        0.75, ge=0.0, le=1.0, json_schema_extra={"step": 0.05}, description="Share of crops around human labels."
    )
    pseudo_weight: float = Field(
        0.3, ge=0.0, le=1.0, json_schema_extra={"step": 0.05}, description="Weight of pseudo-labels; human ones have 1."
    )
    learning_rate: float = Field(
        2e-3, ge=1e-6, le=1.0, json_schema_extra={"step": 1e-6}, description="Highest learning rate."
    )
    weight_decay: float = Field(0.01, ge=0.0, le=1.0, json_schema_extra={"step": 0.001}, description="Of AdamW.")
    schedule: Literal["cosine", "poly", "constant"] = Field("cosine", description="How the learning rate falls.")
    ema: float = Field(
        0.98, ge=0.0, le=0.9999, json_schema_extra={"step": 0.0001}, description="Running mean of the weights; 0 = off."
    )
    dice_weight: float = Field(
        1.0, ge=0.0, le=10.0, json_schema_extra={"step": 0.1}, description="Of soft Dice beside cross-entropy."
    )
    augment: Literal["on", "off"] = Field("on", description="Vary crops in geometry and intensity.")
    flips: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Mirror crops and rotate them by 90 degrees, and predict the mean over four mirror images; auto:"
        " with augment, where most classes have no fixed place.",
    )
    fold_iterations: int = Field(
        50, ge=1, le=100_000, json_schema_extra={"step": 10}, description="Training steps per held-out fold."
    )
    devices: Devices = 1
    pool_mb: int = Field(
        1024,
        ge=16,
        le=1_000_000,
        json_schema_extra={"step": 16},
        description="Memory for blocks to learn from, in MiB.",
    )

    @property
    def in_3d(self) -> bool:
        """Whether a run of it needs networks in 3D."""
        return True

    @property
    def crops(self) -> int:
        """Crops per step, here."""
        return crops_per_step(self.batch, 2, self.device)


class _Shapes(ShapesOf):
    """The shapes of the annotated slices of several volumes, but for those held out."""

    def __init__(self, blocks: Mapping[str, ShapeBlocks], classes: int, without: Collection[Slot], mix: float) -> None:
        self.classes = classes
        self._mix = mix
        self._blocks = blocks
        self._without = {name: {slot.index for slot in without if slot.volume == name} for name in blocks}

    def read(self, volume: str, box: Box, without: Collection[int] = ()) -> "NDArray[np.float16]":
        """Return the shapes in a block; zeros for a volume without annotated slices."""
        if volume not in self._blocks or not self.classes:
            return np.zeros((self.classes, *box.shape), np.float16)
        around = self._blocks[volume].read(box, {*without, *self._without[volume]})
        if self._mix == 1 or not self._without[volume]:
            return around
        own = self._blocks[volume].read(box, without)
        return between(own, around, self._mix)

    def anchors(self, volume: str) -> Collection[int]:
        """Return the slices whose own shapes are known."""
        return [anchor for anchor in self._blocks[volume].anchors if anchor not in self._without[volume]]


@dataclass
class VolumeLearner:
    """One run of a 3D method: the network, what it is fed, and how sure it may be.

    Attributes
    ----------
    context, config
        Of the run.
    known : Known
        What is labelled.
    network : VolumeNetworkConfig
        The network; change it with `see_shapes_of` only.
    calibration : Calibration
        Set by `calibrated`.
    temperature : float
        Of the network alone, for `apply`; set by `calibrated`.
    """

    context: "RunContext"
    config: VolumeLearningConfig
    known: Known = field(init=False)
    network: VolumeNetworkConfig = field(init=False)
    sampling: BlockSampling = field(init=False)
    calibration: Calibration = field(init=False, default_factory=Calibration)
    temperature: float = field(init=False, default=1.0)
    usual_area: float = field(init=False)

    def __post_init__(self) -> None:
        context, config = self.context, self.config
        self.known = Known(context)
        self.known.check_classes()
        self.usual_area = self.known.usual_area()
        complete = self.known.shapes(context.class_ids)
        shape_classes = self.known.shape_classes(complete, config.shapes, config.seed)
        flips = config.flips == "on"
        if config.flips == "auto" and config.augment == "on":
            places = shape_classes or self.known.shape_classes(complete, "auto", config.seed)
            flips = 2 * len(places) < len(context.class_ids)
        self.network = self._network(shape_classes, flips=flips)
        everywhere = set(context.volumes) <= set(self.known.sources)
        self.sampling = BlockSampling(
            crop=self.network.tile,
            foreground=config.foreground_share,
            human=config.human_share,
            pseudo_weight=config.pseudo_weight,
            shape_mix=(config.shape_mix_low, config.shape_mix_high),
            shape_dropout=config.shape_dropout if everywhere else config.transfer_dropout,
            augmentation=replace(Augmentation() if config.augment == "on" else NO_AUGMENTATION, flips=flips),
        )
        self._shape_blocks: dict[str, ShapeBlocks] = {}

    def _network(self, shape_classes: tuple[int, ...], *, flips: bool) -> VolumeNetworkConfig:
        context, config = self.context, self.config
        sizes = [self.reader(name).shape for name in self.known.sources]
        wanted = (config.crop_depth, config.crop_px, config.crop_px)
        size = tuple(min(most, max(shape[axis] for shape in sizes)) for axis, most in enumerate(wanted))
        if config.network == "densevoxnet":
            kernels, strides = DENSEVOXNET_LEVELS
        else:
            kernels, strides = levels(self.reader(self.known.sources[0]).spacing, size, config.levels)
        made = VolumeNetworkConfig(
            architecture=config.network,
            filters=tuple(config.width * factor for factor in (1, 2, 4, 6, 8, 10)[: len(kernels)]),
            kernels=kernels,
            strides=strides,
            image_channels=context.image_channels(),
            coordinates=config.coordinates == "on",
            classes=context.class_ids,
            shape_classes=shape_classes,
            mirror=flips,
            tile=(1, 1, 1),
        )
        return made.model_copy(update={"tile": crop_size(size, made.stride)})

    # -- what the network sees ----------------------------------------------------------------------------------------

    def reader(self, volume: str) -> BlockReader:
        """Return what reads the image of a volume."""
        return BlockReader(self.context.volume(volume), self.context.axis, self.config.coordinates == "on")

    def see_shapes_of(self, classes: Sequence[int]) -> None:
        """Go on with the shapes that a trained network sees: slices painted since could speak for other ones."""
        self.network = self.network.model_copy(update={"shape_classes": tuple(classes)})

    def shapes(self, without: Collection[Slot] = (), mix: float = 1.0) -> ShapesOf:
        """Return the shapes of the annotated slices, but for some; with a `mix` below 1 these show through."""
        if self.network.shape_classes and not self._shape_blocks:
            for name, shapes in self.known.shapes(self.network.shape_classes).items():
                beyond = self._beyond(name)
                path = self.context.folder / f".shapes.{name}.part.zarr"
                self._shape_blocks[name] = ShapeBlocks(shapes, beyond, self.reader(name).shape, path)
        return _Shapes(self._shape_blocks, len(self.network.shape_classes), without, mix)

    def _beyond(self, name: str) -> "Callable[[int], frozenset[int]]":
        return lambda index: self.known.beyond(Slot(name, index))

    def close(self) -> None:
        """Give back what lies on disk for the time of the run."""
        for blocks in self._shape_blocks.values():
            blocks.close()

    # -- training -----------------------------------------------------------------------------------------------------

    def trainer(self, steps: int) -> Trainer[VolumeNetwork]:
        """Return a new network with its optimiser, for a schedule of `steps`."""
        return Trainer(VolumeNetwork(self.network), self.fit(steps), self.config.crops, self.context.device)

    def fit(self, steps: int, *others: str) -> FitConfig:
        """Return how a network is trained in `steps`, the config's or one with `others` in it as well."""
        # batch norm's statistics belong to the weights themselves, not to their running mean
        return fit_config(self.config, steps, running_mean="densevoxnet" not in (self.config.network, *others))

    def pool(self, *, pseudo: bool, without: Collection[Slot] = ()) -> BlockPool:
        """Return the blocks to learn from, those with human labels first, each kind in random order.

        Parameters
        ----------
        pseudo : bool
            Whether pseudo-labels count where a human painted nothing.
        without : collection of Slot
            Human slices to leave out.
        """

        def blocks() -> Iterator[Block]:
            read: list[tuple[str, Box]] = [
                (name, box)
                for name in self.known.sources
                for piece in self.context.pieces(name)
                for box in block_boxes(self.reader(name).shape, piece.slices)
            ]
            later = []
            for number in self.context.rng.permutation(len(read)):
                name, box = read[number]
                target, human = self._labels(name, box, pseudo=pseudo, without=without)
                if human.any():
                    yield Block(name, box, self.reader(name).read(box), target[None], human)
                elif (target != IGNORE).any():
                    later.append((name, box))
            for name, box in later:
                target, human = self._labels(name, box, pseudo=pseudo, without=without)
                yield Block(name, box, self.reader(name).read(box), target[None], human)

        return BlockPool(
            blocks(),
            self.network.image_channels,
            self.shapes(without),
            self.sampling,
            self.context.device,
            self.config.pool_mb * 2**20,
            self.context.rng,
        )

    def _labels(
        self, name: str, box: Box, *, pseudo: bool, without: Collection[Slot]
    ) -> "tuple[NDArray[np.uint8], NDArray[np.bool_]]":
        """Return channels (d, h, w), 255 = unknown, and where a human painted them."""
        target = self.known.human_block(name, box)
        held_out = [slot.index - box.start[0] for slot in without if slot.volume == name]
        target[[index for index in held_out if 0 <= index < len(target)]] = IGNORE
        human = target != IGNORE
        if pseudo:
            target = np.where(human, target, self.known.pseudo_block(name, box))
        return target, human

    def train(self, trainer: Trainer[NetworkT], pool: Crops, steps: int, stage: str) -> Iterator[Event]:
        """Train, until the run is to stop."""
        return train(self.context, trainer, pool, steps, stage, devices=self.config.devices)

    # -- predicting ---------------------------------------------------------------------------------------------------

    def predictor(
        self,
        network: VolumeNetwork,
        volume: str,
        *,
        without: Collection[Slot] = (),
        mix: float = 1.0,
        mirror: bool = True,
        wanted: Callable[[Box], bool] = lambda _: True,
    ) -> BlockPredictor:
        """Return what predicts the planes of a volume."""
        reader, shapes = self.reader(volume), self.shapes(without, mix)

        def read(box: Box) -> "NDArray[np.float16]":
            image = reader.read(box)
            return np.concatenate([image, shapes.read(volume, box)]) if self.network.shape_classes else image

        return BlockPredictor(
            network,
            read,
            reader.shape,
            1 + len(self.network.classes),
            tile=self.network.tile,
            stride=self.network.stride,
            device=self.context.device,
            scratch=self.context.folder / f".sums.{volume}.part.zarr",
            mirror=mirror and self.network.mirror,
            wanted=wanted,
        )

    def labelled(
        self, predictor: BlockPredictor, slot: Slot, stage: str, flow: "FlowShare | None" = None
    ) -> "Iterator[Progress | Labelled]":
        """Yield progress tile by tile, then the slice, with what `flow` says where that counts."""
        name = f"{slot.volume} {self.context.axis}{slot.index}"
        for done, total in predictor.prepare(slot.index):
            yield Progress(stage, done, total, f"{name}, tile {done} of {total}")
        shape = self.context.volume(slot.volume).plane_shape(self.context.axis)
        temperature = self.calibration.temperature_at(self.distance(slot))
        bands = predictor.bands(slot.index)
        if flow is not None:
            bands = flow.added(bands, slot)
        yield label(bands, shape, len(self.network.classes), temperature, self.usual_area)

    def distance(self, slot: Slot) -> int:
        """Return how far the nearest annotated slice is, for the calibration."""
        return self.calibration.distance(self.known.distance(slot))

    def write(self, slot: Slot, labelled: Labelled, provenance: str) -> SliceDone:
        """Write a slice of the result."""
        return self.context.write_slice(
            slot.volume,
            slot.index,
            self.known.values[labelled.channels],
            np.rint(labelled.confidence * 255).astype(np.uint8),
            provenance=provenance,
            score=self.calibration.corrected(labelled.expected, self.distance(slot)),
        )

    def save_model(self, network: VolumeNetwork, method: str) -> None:
        """Keep the network for `apply`."""
        classes: list[JsonValue] = [
            {"id": label_class.id, "name": label_class.name, "color": label_class.color}
            for label_class in self.context.project.classes
        ]
        self.context.save_model(
            {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()},
            {
                "volume_network": network.config.model_dump(mode="json"),
                "axis": self.context.axis,
                "classes": classes,
                "temperature": self.temperature,
                "method": method,
            },
        )

    # -- held-out slices ----------------------------------------------------------------------------------------------

    def calibrated(self, flow: "FlowShare") -> Iterator[Event]:
        """Hold annotated slices out in turn; measure how sure a network may be of such slices, and what flow adds."""
        slots = self.known.human_slots()
        if self.config.calibrate == "off" or len(slots) < LEAST_FOR_CALIBRATION:
            yield from flow.assumed()
            return
        found: dict[Slot, HeldOut] = {}
        for fold in range(FOLDS):
            held_out = slots[fold::FOLDS]
            stage = f"hold out {fold + 1} of {FOLDS}"
            trainer = self.trainer(self.config.fold_iterations)
            pool = self.pool(pseudo=False, without=held_out)
            yield from self.train(trainer, pool, self.config.fold_iterations, stage)
            if self.context.stop():
                return
            for judged in self.judged(trainer.predictor, held_out, stage):
                if isinstance(judged, Progress):
                    yield judged
                else:
                    found.update([judged])
                    yield Progress("calibrate", len(found), len(slots), stage)
                if self.context.stop():
                    return
        alone = calibrate(list(found.values()), self.usual_area)
        self.temperature = alone.temperature
        self.calibration = yield from flow.calibrated(found, alone, self.usual_area)

    def judged(
        self, network: VolumeNetwork, held_out: Sequence[Slot], stage: str
    ) -> "Iterator[Progress | tuple[Slot, HeldOut]]":
        """Yield progress, and what a network that was not shown some slices says of each of them."""
        for name in dict.fromkeys(slot.volume for slot in held_out):
            predictor = self.predictor(network, name, without=held_out, mirror=False)
            try:
                for slot in (slot for slot in held_out if slot.volume == name):
                    target, picked = self.known.human(slot), self.known.sample(slot, self.config.seed)
                    for done, total in predictor.prepare(slot.index):
                        yield Progress(stage, done, total, f"{name} {self.context.axis}{slot.index}")
                    bands = predictor.bands(slot.index)
                    probability = np.concatenate([values[:, picked[rows]] for rows, values in bands], axis=1)
                    distance = self.known.held_out_distance(slot, held_out)
                    yield slot, HeldOut(probability, target[picked], distance)
            finally:
                predictor.close()


def voxel_seconds(config: VolumeLearningConfig) -> tuple[float, float]:
    """Return guesses at the seconds that training on, and predicting, 1e6 voxels takes."""
    wide = (config.width / 16) ** 2
    train, predict = (_TRAIN_CUDA_S, _PREDICT_CUDA_S) if on_gpu(config.device) else (_TRAIN_S, _PREDICT_S)
    return wide * train, wide * predict
