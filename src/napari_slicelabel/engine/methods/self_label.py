"""Incremental 2D self-labelling (S1): fronts advance from annotated slices, the network learns from what it labelled.

After Anderson 2025 (released code: muanderson/Incremental2D-SelfLabel3D), preset ``paper``. Ours, preset ``default``:
every annotated slice starts two fronts, the network also sees the shapes of the annotated neighbours, pseudo-labels
weigh less than human ones and are refreshed, confidence is calibrated on annotated slices that were held out, and these
say, too, how much of what correspondence flow carries (S4) is added to what the network says.
"""

# No `from __future__ import annotations`: pydantic reads the annotations of the config when the class is made.
import math
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, JsonValue
from torch import Tensor

from napari_slicelabel.engine.augment import NO_AUGMENTATION, Augmentation
from napari_slicelabel.engine.confidence import (
    FOLDS,
    Calibration,
    HeldOut,
    Labelled,
    calibrate,
    label,
)
from napari_slicelabel.engine.config import LEAST_FOR_CALIBRATION, Devices
from napari_slicelabel.engine.context import Slot, fill_state, filled_before
from napari_slicelabel.engine.devices import crops_per_step, on_gpu
from napari_slicelabel.engine.events import Event, Progress, SliceDone
from napari_slicelabel.engine.fit import Trainer
from napari_slicelabel.engine.flow import between
from napari_slicelabel.engine.flow_config import FlowShareConfig
from napari_slicelabel.engine.flow_share import FlowShare, and_flow, flow_config
from napari_slicelabel.engine.losses import IGNORE
from napari_slicelabel.engine.networks import ANDERSON, OUTPUT_STRIDE, PLAIN, NetworkConfig, SliceNetwork, describe
from napari_slicelabel.engine.planes import PlaneReader
from napari_slicelabel.engine.predict import predict_bands, with_smaller_tiles
from napari_slicelabel.engine.regions import Known, Rule, accepted, front_rounds
from napari_slicelabel.engine.sampling import Plane, PlanePool, SamplingConfig
from napari_slicelabel.engine.shapes import Shapes
from napari_slicelabel.engine.training import fit_config, train
from napari_slicelabel.engine.work import Stack, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.engine.context import RunContext

NAME = "self-label"

_SAVE_EVERY_S = 30.0

# Of 1e6 pixels: on two CPU cores, and beside a GPU, as measured with the default network. For the plan.
_TRAIN_S, _PREDICT_S = 2.6, 0.9
_TRAIN_CUDA_S, _PREDICT_CUDA_S = 0.05, 0.3
_BYTES_PER_PIXEL = 12

MOST_ANISOTROPIC = 16.0
"""Where slices lie further apart than this many pixels, a neighbour says nothing about a slice."""


class SelfLabelConfig(FlowShareConfig):
    """Parameters of `propagate`."""

    PRESETS: ClassVar = {
        "default": {},
        "paper": {
            "encoder": ANDERSON,
            "in_slices": "1",
            "shapes": "off",
            "rounds": 0,
            "step": 1,
            "accept": "one-sided",
            "theta": 0.8,
            "refresh": False,
            "iterations": 1000,
            "round_epochs": 20,
            "fresh_optimizer": True,
            "batch": 16,
            "crop_px": 512,
            "learning_rate": 1e-4,
            "schedule": "constant",
            "weight_decay": 0.0,
            "ema": 0.0,
            "dice_weight": 0.0,
            "pseudo_weight": 1.0,
            "human_share": 0.0,
            "foreground_share": 0.0,
            "augment": "off",
            "mirror": "off",
            "calibrate": "off",
            "flow": "off",
        },
    }
    SIMPLE: ClassVar = ("iterations", "rounds", "axis", "range", "device")

    encoder: str = Field(PLAIN, description="plain, anderson (the paper's U-Net), or an encoder name of smp.")
    encoder_weights: str = Field(
        "none", description="none = from scratch, works offline; or weights that smp can fetch for the encoder."
    )
    width: int = Field(
        16, ge=8, le=64, multiple_of=8, json_schema_extra={"step": 8}, description="Channels at full resolution."
    )
    in_slices: Literal["auto", "1", "3", "5"] = Field(
        "auto", description="Neighbouring slices that the network sees; auto: 3, or 1 where slices lie far apart."
    )
    coordinates: Literal["on", "off"] = Field("off", description="Whether the network sees where it is in the volume.")
    shapes: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether the network sees the shapes of the neighbouring annotated slices; auto: for the classes"
        " whose place in one annotated slice tells where they are in the next.",
    )
    interpolation: Literal["off", "distance", "flow"] = Field(
        "off",
        description="Weak labels to begin with, between complete slices (mask interpolation of S3); distance: by signed"
        " distance, not for thin structures; flow: by correspondence.",
    )
    iterations: int = Field(
        320, ge=1, le=1_000_000, json_schema_extra={"step": 50}, description="Training steps before the first round."
    )
    rounds: int = Field(
        3,
        ge=0,
        le=1000,
        json_schema_extra={"step": 1},
        description="Rounds until the fronts meet; 0: as many as it takes.",
    )
    step: int = Field(
        0, ge=0, le=10_000, json_schema_extra={"step": 1}, description="Slices per front and round; 0: from the rounds."
    )
    round_iterations: int = Field(
        30, ge=0, le=100_000, json_schema_extra={"step": 10}, description="Training steps per round."
    )
    round_epochs: int = Field(
        0,
        ge=0,
        le=1000,
        json_schema_extra={"step": 1},
        description="Passes over all labels per round, instead of steps.",
    )
    fresh_optimizer: bool = Field(False, description="Begin every round with a fresh optimiser, as the paper does.")
    accept: Rule = Field(
        "all",
        description="Pseudo-labels to learn from. two-sided: confident pixels of every class and of background;"
        " one-sided: confident pixels of classes, all else is background; all: every pixel;"
        " quantile: of every class and of background the more confident share.",
    )
    theta: float = Field(
        0.8, ge=0.5, le=0.99, json_schema_extra={"step": 0.01}, description="Confidence from which a pixel is accepted."
    )
    refresh: bool = Field(
        True, description="Predict all slices again: pseudo-labels each round, everything at the end."
    )
    pseudo_weight: float = Field(
        0.3,
        ge=0.0,
        le=1.0,
        json_schema_extra={"step": 0.05},
        description="Weight of pseudo-labels; human labels have 1.",
    )
    human_share: float = Field(
        0.75, ge=0.0, le=1.0, json_schema_extra={"step": 0.05}, description="Share of crops from human slices."
    )
    batch: int = Field(
        0, ge=0, le=512, json_schema_extra={"step": 1}, description="Crops per step; 0: 8, and 32 on a GPU."
    )
    crop_px: int = Field(
        128, ge=32, le=1024, multiple_of=16, json_schema_extra={"step": 16}, description="Largest crop to train on."
    )
    foreground_share: float = Field(
        0.67, ge=0.0, le=1.0, json_schema_extra={"step": 0.01}, description="Share of crops centred on a class."
    )
    learning_rate: float = Field(
        1e-3, ge=1e-6, le=1.0, json_schema_extra={"step": 1e-6}, description="Highest learning rate."
    )
    weight_decay: float = Field(0.01, ge=0.0, le=1.0, json_schema_extra={"step": 0.001}, description="Of AdamW.")
    schedule: Literal["cosine", "poly", "constant"] = Field("cosine", description="How the learning rate falls.")
    ema: float = Field(
        0.99, ge=0.0, le=0.9999, json_schema_extra={"step": 0.0001}, description="Running mean of the weights; 0 = off."
    )
    dice_weight: float = Field(
        1.0, ge=0.0, le=10.0, json_schema_extra={"step": 0.1}, description="Of soft Dice beside cross-entropy."
    )
    augment: Literal["on", "off"] = Field("on", description="Vary crops in geometry and intensity.")
    flips: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Mirror and rotate crops by 90 degrees; auto: where most classes have no fixed place.",
    )
    mirror: Literal["auto", "on", "off"] = Field(
        "auto", description="Predict the mean over four mirror images; auto: where crops were mirrored to train on."
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
    fold_iterations: int = Field(
        80, ge=1, le=100_000, json_schema_extra={"step": 10}, description="Training steps per held-out fold."
    )
    devices: Devices = 1
    transfer_iterations: int = Field(
        100,
        ge=0,
        le=100_000,
        json_schema_extra={"step": 10},
        description="Where shapes are used: training steps of the network for volumes without annotated slices.",
    )
    pool_mb: int = Field(
        1024,
        ge=16,
        le=1_000_000,
        json_schema_extra={"step": 16},
        description="Memory for planes to learn from, in MiB.",
    )

    @property
    def crops(self) -> int:
        """Crops per step, here."""
        return crops_per_step(self.batch, 8, self.device)


def propagate(context: "RunContext", config: SelfLabelConfig) -> Iterator[Event]:
    """Train on the annotated slices, advance the fronts round by round, then fill everything with the last network.

    Parameters
    ----------
    context : RunContext
        The run.
    config : SelfLabelConfig
        The parameters.

    Yields
    ------
    Event
        `Progress` and `Metric` while training, a `SliceDone` for every slice as it is predicted.

    Raises
    ------
    InputError
        No volume has an annotated slice with a class in it, a constant image, images that differ in channels.
    DeviceError
        The GPU's memory is full even with one crop.

    Notes
    -----
    Stages, each with its state on disk at the end: *calibrate* trains one network per fold of held-out annotated slices
    and measures temperature and expected Dice, and how much correspondence flow should count; *carry* has flow label
    everything, if it does; *fit* trains on the annotated slices, and where these are too few to hold any out of flow on
    what it carried, as pseudo-labels; *round k* predicts the next slices of every front, accepts pseudo-labels and
    trains on; *fill* predicts every slice with the last network, and adds what flow says, those nearest to an annotated
    slice first. A resume goes on behind the last stage that ended, in *fill* where it was, and in *fit* where it was
    stopped; cancelled or killed, *fit* begins anew.
    """
    yield from SelfLabelling(context, config).run()


def work(stacks: Sequence[Stack], classes: int, config: SelfLabelConfig) -> Work:
    """Return how much `propagate` has to do."""
    fronts = [
        front_rounds(stack.pieces, config.rounds, config.step) if config.rounds or config.step else ()
        for stack in stacks
    ]
    rounds = max(map(len, fronts))
    annotated = sum(stack.annotated for stack in stacks)
    pixels = max(stack.pixels for stack in stacks)
    filled = sum(stack.slices for stack in stacks)
    steps = config.iterations + rounds * config.round_iterations
    if config.round_epochs:
        planes = [annotated + sum(len(slices) for front in fronts for slices in front[: n + 1]) for n in range(rounds)]
        steps = config.iterations + sum(config.round_epochs * math.ceil(count / config.crops) for count in planes)
    # each slice once in its round; with refresh again in every later round, and at the end
    again = [len(slices) * (len(front) - 1 - n) for front in fronts for n, slices in enumerate(front)]
    first = sum(len(slices) for front in fronts for slices in front)
    predictions = filled + (first + sum(again) if config.refresh else 0)
    if config.calibrate == "auto" and annotated >= LEAST_FOR_CALIBRATION:
        steps += FOLDS * config.fold_iterations
        predictions += annotated
    if config.interpolation == "flow":
        steps += config.flow_iterations
    if config.shapes != "off":
        # at most: not where no class turns out to have a place
        steps += config.transfer_iterations
    crops = config.crops * min(config.crop_px**2, pixels)
    wide = (config.width / 16) ** 2
    train_s, predict_s = (_TRAIN_CUDA_S, _PREDICT_CUDA_S) if on_gpu(config.device) else (_TRAIN_S, _PREDICT_S)
    pool = min(config.pool_mb * 2**20, (annotated + filled) * pixels * _BYTES_PER_PIXEL)
    learning = Work(
        rounds=rounds,
        steps=steps,
        predictions=predictions,
        step_s=wide * crops / 1e6 * train_s,
        prediction_s=wide * pixels / 1e6 * predict_s,
        memory_bytes=int(400 * 2**20 + pool + crops * wide * 2000),
    )
    return and_flow(learning, stacks, classes, config)


@dataclass
class SelfLabelling:
    """One run of the method: what was decided at the start, and what it has learned."""

    context: "RunContext"
    config: SelfLabelConfig
    network: NetworkConfig = field(init=False)
    sampling: SamplingConfig = field(init=False)
    known: Known = field(init=False)
    calibration: Calibration = field(init=False, default_factory=Calibration)
    digest: str = field(init=False, default="")
    flow: FlowShare = field(init=False)
    # of the network alone, for `apply`
    temperature: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        context, config = self.context, self.config
        self.known = Known(context)
        self.flow = FlowShare(context, config, self.known)
        self.sources = self.known.sources
        image_channels = context.image_channels()
        self.known.check_classes()
        self.complete = self.known.shapes(context.class_ids)
        shape_classes = self.known.shape_classes(self.complete, config.shapes, config.seed)
        flips = self._flips(shape_classes)
        self.network = NetworkConfig(
            encoder=config.encoder,
            encoder_weights=config.encoder_weights,
            filters=tuple(
                config.width * factor
                for factor in ((0.5, 1, 2, 4, 8) if config.encoder == ANDERSON else (1, 2, 4, 6, 8))
            ),
            image_channels=image_channels,
            in_slices=self._in_slices(),
            coordinates=config.coordinates == "on",
            classes=context.class_ids,
            shape_classes=shape_classes,
            mirror=config.mirror == "on" or (config.mirror == "auto" and flips and config.augment == "on"),
        )
        self.shapes = self.known.shapes(shape_classes)
        self.sampling = self._sampling_config(flips=flips)
        self.usual_area = self.known.usual_area()
        self.rounds = self._rounds()

    # -- what is decided at the start ---------------------------------------------------------------------------------

    def _in_slices(self) -> Literal[1, 3, 5]:
        if self.config.in_slices != "auto":
            return {"1": 1, "3": 3, "5": 5}[self.config.in_slices]  # type: ignore[return-value]
        ratios = [self.context.volume(name).anisotropy(self.context.axis) for name in self.sources]
        return 3 if max(ratios) <= MOST_ANISOTROPIC else 1

    def _flips(self, shape_classes: tuple[int, ...]) -> bool:
        if self.config.flips != "auto":
            return self.config.flips == "on"
        return 2 * len(shape_classes) < len(self.context.class_ids)

    def _sampling_config(self, *, flips: bool) -> SamplingConfig:
        config = self.config
        sizes = [self.context.volume(name).plane_shape(self.context.axis) for name in self.sources]
        crop = tuple(
            min(config.crop_px, math.ceil(max(size[axis] for size in sizes) / OUTPUT_STRIDE) * OUTPUT_STRIDE)
            for axis in (0, 1)
        )
        return SamplingConfig(
            crop=(crop[0], crop[1]),
            foreground=config.foreground_share,
            human=config.human_share,
            shape_mix=(config.shape_mix_low, config.shape_mix_high),
            augmentation=replace(Augmentation(), flips=flips) if config.augment == "on" else NO_AUGMENTATION,
        )

    def _rounds(self) -> tuple[tuple[Slot, ...], ...]:
        per_volume = {
            name: front_rounds(self.context.pieces(name), self.config.rounds, self.config.step) for name in self.sources
        }
        if self.config.rounds == 0 and self.config.step == 0:
            return ()
        count = max(map(len, per_volume.values()), default=0)
        return tuple(
            tuple(
                Slot(name, index)
                for name, rounds in per_volume.items()
                if number < len(rounds)
                for index in rounds[number]
            )
            for number in range(count)
        )

    # -- the stages ---------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Event]:
        """Go through the stages; see `propagate`."""
        tensors, extra = self.context.load_state() or ({}, {})
        # of what this part goes by: what is painted while it fills must be seen by the next one
        self.digest = self.context.annotation_digest()
        if extra:
            self.calibration = Calibration(**extra["calibration"])  # type: ignore[arg-type]
            self._keep_shape_classes(extra.get("shape_classes"))
            self.flow.load_state(extra)
            self.temperature = float(extra["temperature"])  # type: ignore[arg-type]
        else:
            yield from self._calibrate()
            if self.context.stop():
                return
            self._save({}, done=-1)
        done = int(extra.get("done", -1))  # type: ignore[arg-type]
        yield from self.flow.carried(self.digest, self._write if done < 0 else None)
        if self.context.stop():
            return
        trainer = self._trainer(self.network, self._total_steps())
        if tensors:
            trainer.load_state(tensors)
        if done < 0:
            yield from self._carry_between()
            if self.context.stop():
                return
            pool = self._pool(self._carried(), between=self._between())
            yield from self._train(trainer, pool, self.config.iterations - trainer.step_number, "fit")
            # stopped before its end it is gone on with
            done = 0 if trainer.step_number >= self.config.iterations else -1
            self._save(trainer.state(), done=done)
            if done < 0:
                return
        for number in range(done, len(self.rounds)):
            if self.context.stop():
                break
            if not (yield from self._round(trainer, number)):
                break
            self._save(trainer.state(), done=number + 1)
        yield from self._finish(trainer, filled_before(extra, self.digest))
        if not self.context.stop():
            self.flow.remove()

    def _save(self, tensors: dict[str, Tensor], *, done: int, filled: Iterable[Slot] = ()) -> None:
        """Put on disk what a resume starts from: `done` rounds, -1 = nothing trained; `filled` slices of the fill."""
        self.context.save_state(
            tensors,
            {
                "calibration": asdict(self.calibration),
                "done": done,
                **fill_state(filled, self.digest),
                "shape_classes": list(self.network.shape_classes),
                **self.flow.state(),
                "temperature": self.temperature,
            },
        )

    def _keep_shape_classes(self, kept: JsonValue) -> None:
        """Go on with the shapes that the trained network sees: slices painted since could speak for other ones."""
        if isinstance(kept, list) and kept != list(self.network.shape_classes):
            classes = tuple(value for value in kept if isinstance(value, int))
            self.network = self.network.model_copy(update={"shape_classes": classes})
            self.shapes = self.known.shapes(classes)

    def _total_steps(self) -> int:
        return self.config.iterations + len(self.rounds) * self.config.round_iterations

    def _trainer(self, network: NetworkConfig, steps: int) -> Trainer[SliceNetwork]:
        fit = fit_config(self.config, steps)
        return Trainer(SliceNetwork(network), fit, self.config.crops, self.context.device)

    def _train(self, trainer: Trainer[SliceNetwork], pool: PlanePool, steps: int, stage: str) -> Iterator[Event]:
        return train(self.context, trainer, pool, steps, stage, devices=self.config.devices)

    def _round(self, trainer: Trainer[SliceNetwork], number: int) -> Generator[Event, None, bool]:
        """Label the next slices of every front, and train on; return whether it went to its end."""
        stage = f"round {number + 1}"
        reached = [slot for slots in self.rounds[:number] for slot in slots]
        todo = (reached if self.config.refresh else []) + list(self.rounds[number])
        for count, slot in enumerate(self.context.in_view_first(todo), 1):
            labelled = self._label(trainer.predictor, slot, self.shapes, mirror=False)
            self.context.write_accepted(
                slot.volume, slot.index, accepted(labelled, self.config.accept, self.config.theta)
            )
            yield self._write(slot, labelled, stage)
            yield Progress(stage, count, len(todo), f"{slot.volume} {self.context.axis}{slot.index}")
            if self.context.stop():
                return False
        steps = self.config.round_iterations
        if self.config.round_epochs:
            planes = len(reached) + len(self.rounds[number]) + len(self.known.human_slots())
            steps = self.config.round_epochs * math.ceil(planes / self.config.crops)
        if self.config.fresh_optimizer:
            trainer.restart(trainer.config)
        pool = self._pool((*reached, *self.rounds[number]))
        until = trainer.step_number + steps
        yield from self._train(trainer, pool, steps, f"{stage}: learn")
        return trainer.step_number == until

    def _finish(self, trainer: Trainer[SliceNetwork], filled: Iterable[Slot]) -> Iterator[Event]:
        self._save_model(trainer.predictor)
        if self.context.stop():
            return
        reached = {slot for slots in self.rounds for slot in slots}
        slots = [
            Slot(name, index)
            for name in self.sources
            for index in sorted(self.context.slices(name), key=lambda index: self._distance(Slot(name, index)))
            if self.config.refresh or Slot(name, index) not in reached
        ]
        tensors = trainer.state()
        yield from self._fill(trainer.predictor, slots, self.shapes, tensors, filled)
        if self.context.stop():
            return
        rest = [
            Slot(name, index)
            for name in self.context.volumes
            if name not in self.sources
            for index in self.context.slices(name)
        ]
        network = trainer.predictor
        if self.network.shape_classes and self.config.transfer_iterations and not self.context.stop():
            student = self._trainer(
                self.network.model_copy(update={"shape_classes": ()}), self.config.transfer_iterations
            )
            pool = self._pool(
                [slot for slot in slots if slot.index not in self.context.annotated(slot.volume)], student=True
            )
            yield from self._train(student, pool, self.config.transfer_iterations, "transfer")
            network = student.predictor
            self._save_model(network)
        yield from self._fill(network, rest, {}, tensors, ())

    def _fill(
        self,
        network: SliceNetwork,
        slots: Sequence[Slot],
        shapes: dict[str, Shapes],
        tensors: dict[str, Tensor],
        filled: Iterable[Slot],
    ) -> Iterator[Event]:
        saved, done = time.monotonic(), set(filled)
        for slot in self.context.in_view_first([slot for slot in slots if slot not in done]):
            yield self._write(slot, self._label(network, slot, shapes, flow=self.flow), "final")
            done.add(slot)
            yield Progress("fill", len(done), len(slots), f"{slot.volume} {self.context.axis}{slot.index}")
            is_last = self.context.stop()
            if shapes and (is_last or time.monotonic() - saved > _SAVE_EVERY_S):
                self._save(tensors, done=len(self.rounds), filled=done)
                saved = time.monotonic()
            if is_last:
                return

    def _save_model(self, network: SliceNetwork) -> None:
        classes: list[JsonValue] = [
            {"id": label_class.id, "name": label_class.name, "color": label_class.color}
            for label_class in self.context.project.classes
        ]
        description = describe(
            network.config,
            axis=self.context.axis,
            classes=classes,
            temperature=self.temperature,
            method=NAME,
        )
        weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        self.context.save_model(weights, description)

    # -- held-out slices ----------------------------------------------------------------------------------------------

    def _calibrate(self) -> Iterator[Event]:
        """Hold annotated slices out in turn, and measure how sure a network may be of such slices."""
        slots = self.known.human_slots()
        if self.config.calibrate == "off" or len(slots) < LEAST_FOR_CALIBRATION:
            yield from self.flow.assumed()
            return
        found: dict[Slot, HeldOut] = {}
        for fold in range(FOLDS):
            held_out = slots[fold::FOLDS]
            trainer = self._trainer(self.network, self.config.fold_iterations)
            pool = self._pool((), without=held_out, between=self._between(held_out))
            yield from self._train(trainer, pool, self.config.fold_iterations, f"hold out {fold + 1} of {FOLDS}")
            if self.context.stop():
                return
            for slot in held_out:
                found[slot] = self._judge(trainer.predictor, slot, held_out)
                yield Progress("calibrate", len(found), len(slots), f"{slot.volume} {self.context.axis}{slot.index}")
        alone = calibrate(list(found.values()), self.usual_area)
        self.temperature = alone.temperature
        self.calibration = yield from self.flow.calibrated(found, alone, self.usual_area)

    def _judge(self, network: SliceNetwork, slot: Slot, held_out: Sequence[Slot]) -> HeldOut:
        target, picked = self.known.human(slot), self.known.sample(slot, self.config.seed)
        read = self._reader(network, slot, self.shapes, self.known.left_out(slot, held_out))

        def work(tile: int) -> "NDArray[np.float32]":
            bands = predict_bands(network, read, target.shape, self.context.device, tile=tile)
            return np.concatenate([probability[:, picked[rows]] for rows, probability in bands], axis=1)

        distance = self.known.held_out_distance(slot, held_out)
        return HeldOut(with_smaller_tiles(work, self.context.device), target[picked], distance)

    # -- reading and writing slices -----------------------------------------------------------------------------------

    def _reader(
        self, network: SliceNetwork, slot: Slot, shapes: dict[str, Shapes], without: Collection[int] = ()
    ) -> "Callable[[slice, slice], NDArray[np.float16]]":
        planes = PlaneReader(self.context.volume(slot.volume), self.context.axis, network.config)
        around = self._around(network.config, slot, shapes, without)

        def read(rows: slice, columns: slice) -> "NDArray[np.float16]":
            image = planes.read(slot.index, rows, columns)
            return image if around is None else np.concatenate([image, around[:, rows, columns]])

        return read

    def _around(
        self, network: NetworkConfig, slot: Slot, shapes: dict[str, Shapes], without: Collection[int] = ()
    ) -> "NDArray[np.float16] | None":
        if not network.shape_classes:
            return None
        found = shapes[slot.volume].around(slot.index, {*without, *self.known.beyond(slot)})
        if found is None:
            # no neighbour speaks for or against a class: on its border everywhere
            size = self.context.volume(slot.volume).plane_shape(self.context.axis)
            found = np.zeros((len(network.shape_classes), *size), np.float16)
        return found

    def _label(
        self,
        network: SliceNetwork,
        slot: Slot,
        shapes: dict[str, Shapes],
        *,
        mirror: bool = True,
        flow: FlowShare | None = None,
    ) -> Labelled:
        shape = self.context.volume(slot.volume).plane_shape(self.context.axis)
        read = self._reader(network, slot, shapes)
        temperature = self.calibration.temperature_at(self._distance(slot))

        def work(tile: int) -> Labelled:
            bands = predict_bands(network, read, shape, self.context.device, tile=tile, mirror=mirror)
            if flow is not None:
                bands = flow.added(bands, slot)
            return label(bands, shape, len(network.config.classes), temperature, self.usual_area)

        return with_smaller_tiles(work, self.context.device)

    def _distance(self, slot: Slot) -> int:
        return self.calibration.distance(self.known.distance(slot))

    def _write(self, slot: Slot, labelled: Labelled, provenance: str) -> SliceDone:
        return self.context.write_slice(
            slot.volume,
            slot.index,
            self.known.values[labelled.channels],
            np.rint(labelled.confidence * 255).astype(np.uint8),
            provenance=provenance,
            score=self.calibration.corrected(labelled.expected, self._distance(slot)),
        )

    def _pool(
        self,
        machine: Sequence[Slot],
        *,
        without: Sequence[Slot] = (),
        between: Sequence[Slot] = (),
        student: bool = False,
    ) -> PlanePool:
        """Return the planes to learn from: human slices, then pseudo-labels, each in random order.

        Parameters
        ----------
        machine : sequence of Slot
            Slices with pseudo-labels.
        without : sequence of Slot
            Human slices to leave out.
        between : sequence of Slot
            Slices to learn from the shapes interpolated in them.
        student : bool
            For the network that sees no shapes: pseudo-labels are the predictions instead of what was accepted.
        """
        config = self.config
        network = self.network.model_copy(update={"shape_classes": ()}) if student else self.network
        human = [slot for slot in self.known.human_slots() if slot not in set(without)]
        shuffled = [
            [slots[number] for number in self.context.rng.permutation(len(slots))]
            for slots in (human, machine, between)
        ]

        def planes() -> Iterator[Plane]:
            for slot in shuffled[0]:
                yield self._human_plane(network, slot, without)
            for slot in shuffled[1]:
                yield self._machine_plane(network, slot, student=student)
            for slot in shuffled[2]:
                yield self._interpolated_plane(network, slot, without)

        budget = config.pool_mb * 2**20
        return PlanePool(planes(), network.image_planes, self.sampling, self.context.device, budget, self.context.rng)

    def _human_plane(self, network: NetworkConfig, slot: Slot, without: Sequence[Slot]) -> Plane:
        left_out = self.known.left_out(slot, without)
        own = None
        if network.shape_classes and slot.index in self.shapes[slot.volume].anchors:
            own = self.shapes[slot.volume].at(slot.index)
        return Plane(
            PlaneReader(self.context.volume(slot.volume), self.context.axis, network).read_whole(slot.index),
            self.known.human(slot),
            1.0,
            human=True,
            own=own,
            around=self._around(network, slot, self.shapes, left_out),
        )

    def _between(self, without: Sequence[Slot] = ()) -> list[Slot]:
        """Return the slices that lie between two complete ones, where weak labels are wanted there."""
        if self.config.interpolation == "off" or (without and self.config.interpolation == "flow"):
            # what flow carried knows the slices that are held out
            return []
        return [
            slot
            for slot in self._not_annotated()
            if self.complete[slot.volume].neighbours(slot.index, self.known.left_out(slot, without))
        ]

    def _carried(self) -> list[Slot]:
        """Return the slices that flow gave pseudo-labels to begin with, unless there are others to begin with."""
        return self._not_annotated() if self.flow.teaches and self.config.interpolation == "off" else []

    def _not_annotated(self) -> list[Slot]:
        return [
            Slot(name, index)
            for name in self.sources
            for index in self.context.slices(name)
            if index not in self.context.annotated(name)
        ]

    def _interpolated_plane(self, network: NetworkConfig, slot: Slot, without: Sequence[Slot]) -> Plane:
        left_out = self.known.left_out(slot, without)
        return Plane(
            PlaneReader(self.context.volume(slot.volume), self.context.axis, network).read_whole(slot.index),
            self._labels_between(slot, left_out),
            self.config.pseudo_weight,
            human=False,
            around=self._around(network, slot, self.shapes, left_out),
        )

    def _labels_between(self, slot: Slot, left_out: Collection[int]) -> "NDArray[np.uint8]":
        if self.config.interpolation == "flow":
            return self.context.read_accepted(slot.volume, slot.index)
        return self.complete[slot.volume].labels_between(slot.index, left_out)

    def _carry_between(self) -> Iterator[Event]:
        """Have correspondence flow label what lies between complete slices; rounds replace it by their own labels."""
        if self.config.interpolation != "flow":
            return
        wanted = set(self._between())
        for found in between(self.context, flow_config(self.config)) if wanted else ():
            if isinstance(found, tuple):
                slot, channels = found
                if slot in wanted:
                    self.context.write_accepted(slot.volume, slot.index, channels)
            else:
                yield found

    def _machine_plane(self, network: NetworkConfig, slot: Slot, *, student: bool) -> Plane:
        if student:
            confident = self.context.read_confidence(slot.volume, slot.index) >= round(255 * self.config.theta)
            predicted = self.known.channel[self.context.read_prediction(slot.volume, slot.index)]
            target = np.where(confident, predicted, np.uint8(IGNORE))
        else:
            target = self.known.pseudo(slot)
        return Plane(
            PlaneReader(self.context.volume(slot.volume), self.context.axis, network).read_whole(slot.index),
            target,
            self.config.pseudo_weight,
            human=False,
            around=self._around(network, slot, self.shapes),
        )
