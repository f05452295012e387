"""Heterogeneous self-training (S5): labels of 2D networks and of a 3D one differ; a meta-model learns from all of them.

After Zheng et al., AAAI 2020, preset ``paper``. One 2D network, trained on planes of all axes, gives a set of
pseudo-labels per axis, a 3D network trained on the same sparse annotation one more. A Y-shaped DenseVoxNet sees the
image and the average of the sets, and learns at first from a set drawn at random, then from the one that is nearest to
what it says. Ours, preset ``default``: the meta-model is the 3D network, which goes on to learn from the sets, half of
the time without seeing them, so that it can label other images; it also sees how far the sets disagree, which counts in
the confidence, too; the 2D network sees the shapes of the annotated slices as the 3D one does; and a trial on annotated
slices that are held out says which sets have a vote, and whether the meta-model is any better than their mean or the 3D
network alone. What correspondence flow carries (S4) counts in the result as much as slices held out of the 3D network
speak for.
"""

# No `from __future__ import annotations`: pydantic reads the annotations of the config when the class is made.
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from napari_slicelabel.data.boxes import AXES, Axis, Box
from napari_slicelabel.engine.block_sampling import Block, BlockPool, ShapesOf, block_boxes
from napari_slicelabel.engine.blocks import BlockPredictor, crop_size
from napari_slicelabel.engine.confidence import FOLDS, Calibration, Labelled, label, true_dice
from napari_slicelabel.engine.config import LEAST_FOR_CALIBRATION
from napari_slicelabel.engine.context import Slot, fill_state, filled_before
from napari_slicelabel.engine.densevoxnet import DenseVoxNet
from napari_slicelabel.engine.devices import crops_per_step, on_gpu
from napari_slicelabel.engine.events import Event, Metric, Progress
from napari_slicelabel.engine.fit import Crops, NetworkT, Trainer
from napari_slicelabel.engine.flow_share import FlowShare, and_flow
from napari_slicelabel.engine.label_sets import LabelSets, averaged
from napari_slicelabel.engine.losses import IGNORE
from napari_slicelabel.engine.meta_model import MetaLoss, MetaNetwork, fitted
from napari_slicelabel.engine.networks import OUTPUT_STRIDE, NetworkConfig, SliceNetwork
from napari_slicelabel.engine.planes import PlaneReader
from napari_slicelabel.engine.predict import Band, predict_bands, with_smaller_tiles
from napari_slicelabel.engine.sampling import Plane, PlanePool, SamplingConfig
from napari_slicelabel.engine.volume_learning import (
    VolumeLearner,
    VolumeLearningConfig,
    voxel_seconds,
)
from napari_slicelabel.engine.volume_networks import COARSE, VolumeNetwork
from napari_slicelabel.engine.work import LEAST_PREDICTION_S, Stack, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.data.volume import Volume
    from napari_slicelabel.engine.context import RunContext

NAME = "self-train"

VOLUME_SET = "3d"
"""The set of pseudo-labels of the 3D network; the others are called by their axis."""

_SAVE_EVERY_S = 30.0
_BYTES_PER_VOXEL = 24
# Planes along an axis that nobody annotated, of which only lines are known.
_CROSSED_PLANES = 24
_LEAST_PLANE_PX = 16
_META_STRIDE = (4, 4, 4)
# Of the annotated slices one in so many is held out in the trial, from the second one on.
_TRIAL_EVERY = 3
# So much better must the mean of the sets be to label in the place of the meta-model, the better one for other images.
_META_MARGIN = 0.01
_MEAN_ROWS = 256
# Of as many pixels as voxels, times what the 3D network takes: the 2D network, a DenseVoxNet. As measured on a CPU.
_PLANE_COST, _META_COST = 1.1, 3.3


class SelfTrainConfig(VolumeLearningConfig):
    """Parameters of `propagate`."""

    PRESETS: ClassVar = {
        "default": {},
        "paper": {
            "network": "densevoxnet",
            "shapes": "off",
            "in_slices": "1",
            "plane_iterations": 2000,
            "plane_batch": 8,
            "iterations": 2000,
            "random_iterations": 1000,
            "nearest_iterations": 1000,
            "batch": 2,
            "crop_px": 64,
            "crop_depth": 64,
            "learning_rate": 5e-4,
            "schedule": "poly",
            "weight_decay": 0.0,
            "ema": 0.0,
            "dice_weight": 0.0,
            "pseudo_weight": 1.0,
            "human_share": 0.0,
            "foreground_share": 0.0,
            "augment": "off",
            "flips": "on",
            "calibrate": "off",
            "flow": "off",
            "average": "hard",
            "variance": "off",
            "meta_model": "densevoxnet",
            "sets_dropout": 0.0,
            "start": "random",
            "consensus": 0.0,
            "trial": "off",
        },
    }
    SIMPLE: ClassVar = ("iterations", "planes", "axis", "range", "device")

    planes: Literal["auto", "run", "all"] = Field(
        "auto",
        description="Along which axes the 2D network labels planes. auto: those whose pixels are less than 2 times as"
        " long as wide; all: z, y and x; run: that of the run.",
    )
    plane_iterations: int = Field(
        150, ge=1, le=1_000_000, json_schema_extra={"step": 50}, description="Training steps of the 2D network."
    )
    plane_batch: int = Field(
        0, ge=0, le=512, json_schema_extra={"step": 1}, description="2D crops per step; 0: 8, and 32 on a GPU."
    )
    in_slices: Literal["1", "3"] = Field("3", description="Neighbouring planes that the 2D network sees.")
    random_iterations: int = Field(
        60,
        ge=0,
        le=1_000_000,
        json_schema_extra={"step": 50},
        description="Training steps of the meta-model with a random set of pseudo-labels as the truth.",
    )
    nearest_iterations: int = Field(
        60,
        ge=0,
        le=1_000_000,
        json_schema_extra={"step": 50},
        description="And with the set that is nearest to what it says of a crop.",
    )
    average: Literal["soft", "hard"] = Field(
        "soft",
        description="Whether the meta-model sees the mean of the sets with their confidence, or of their labels.",
    )
    variance: Literal["on", "off"] = Field("on", description="Whether it also sees how far the sets disagree.")
    meta_model: Literal["3d", "densevoxnet"] = Field(
        "3d",
        description="Meta-model. 3d: the 3D network goes on to learn, and sees the sets, too; densevoxnet: the Y-shaped"
        " one of S5, from scratch, which takes far more training steps.",
    )
    start: Literal["mean", "random"] = Field(
        "mean",
        description="Whether the meta-model begins at the mean of the sets, which it learns to correct.",
    )
    sets_dropout: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        json_schema_extra={"step": 0.05},
        description="Share of the crops in which the meta-model sees nothing of the sets: what it learned from them it"
        " knows without them then, and is the model for other images.",
    )
    consensus: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        json_schema_extra={"step": 0.05},
        description="Share of the mean of the sets in the result: where they disagree confidence falls.",
    )
    trial: Literal["auto", "off"] = Field(
        "auto",
        description="Go through everything once with a third of the annotated slices held out, where there are at least"
        " 3: sets that label these badly have no vote; of meta-model, mean of the sets and 3D network"
        " the best labels. off: all vote.",
    )
    vote_margin: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        json_schema_extra={"step": 0.01},
        description="How far below the best set's Dice on held-out slices another may be to have a vote.",
    )

    @property
    def plane_crops(self) -> int:
        """2D crops per step, here."""
        return crops_per_step(self.plane_batch, 8, self.device)


def propagate(context: "RunContext", config: SelfTrainConfig) -> Iterator[Event]:
    """Make sets of pseudo-labels in 2D and in 3D, train the meta-model on them, fill everything with it.

    Parameters
    ----------
    context : RunContext
        The run.
    config : SelfTrainConfig
        The parameters.

    Yields
    ------
    Event
        `Progress` and `Metric` while training, a `SliceDone` for every slice as it is predicted.

    Raises
    ------
    InputError
        No class is painted or one of them in no annotated slice, a constant image, images that differ in channels.
    DeviceError
        The GPU's memory is full even with one crop, or small tiles.

    Notes
    -----
    Stages, each with its state on disk at the end: *calibrate* (with the 3D network alone, and with it and flow
    together), *carry* (by flow, where it counts), *planes* (the 2D network),
    *label along z* and so on (its sets), *volume* (the 3D network, which learns from what flow carried, too, where no
    slice could be held out of that), *label in 3D* (its set), *meta*, *fill*. With a *trial* those from *planes* to
    *meta* come twice, the first time without the slices that are held out. A resume goes on behind the last stage that
    ended, in *fill* where it was, and where the training of a network was stopped, with the steps that are left;
    cancelled or killed, it begins anew. The sets lie in the run's folder until the run has ended.

    The model that is kept for other images is the meta-model as it is without the sets, where it has learned to do
    without (``meta_model=3d``, ``sets_dropout``) and is used; else the 3D network that learned from the annotation.
    """
    run = SelfTraining(context, config)
    with closing(run.learner):
        yield from run.run()


def plane_axes(volume: "Volume", setting: Literal["auto", "run", "all"], axis: Axis) -> tuple[Axis, ...]:
    """Return the axes along which the 2D network labels the planes of a volume.

    Parameters
    ----------
    volume : Volume
        Its spacing and shape decide.
    setting : {"auto", "run", "all"}
        auto leaves out planes whose pixels are `COARSE` times as long as wide or more, unless they are those of the
        run, and planes of fewer than 16 pixels along a side.
    axis : {"z", "y", "x"}
        That of the run.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_slicelabel.data.volume import Volume
    >>> plane_axes(Volume.from_array(np.zeros((20, 64, 64)), voxel_size=(40, 4, 4)), "auto", "z")
    ('z',)
    """
    if setting == "run":
        return (axis,)
    if setting == "all":
        return AXES
    return tuple(other for other in AXES if other == axis or _makes_sense(volume, other))


def _makes_sense(volume: "Volume", axis: Axis) -> bool:
    inside = [size for size, name in zip(volume.voxel_size, AXES, strict=True) if name != axis]
    return max(inside) / min(inside) < COARSE and min(volume.plane_shape(axis)) >= _LEAST_PLANE_PX


def work(stacks: Sequence[Stack], classes: int, config: SelfTrainConfig) -> Work:
    """Return how much `propagate` has to do; what the sets take is in the seconds of a prediction."""
    annotated = sum(stack.annotated for stack in stacks)
    pixels = max(stack.pixels for stack in stacks)
    filled = sum(stack.slices for stack in stacks)
    once = config.plane_iterations + config.iterations + config.random_iterations + config.nearest_iterations
    steps, predictions = once, filled
    if config.calibrate == "auto" and annotated >= LEAST_FOR_CALIBRATION:
        steps += FOLDS * config.fold_iterations
        predictions += annotated
    # the trial does everything but calibrate once more
    times = 2 if config.trial == "auto" and annotated >= LEAST_FOR_CALIBRATION else 1
    crop = min(config.crop_px**2, pixels) * min(config.crop_depth, max(stack.slices for stack in stacks))
    train_s, predict_s = voxel_seconds(config)
    plane_crops = config.plane_crops * min(config.crop_px**2, pixels)
    meta_steps = config.random_iterations + config.nearest_iterations
    meta_cost = _META_COST if config.meta_model == "densevoxnet" else 1.0
    voxels = _PLANE_COST * config.plane_iterations * plane_crops + config.crops * crop * (
        meta_cost * meta_steps + steps - config.plane_iterations - meta_steps
    )
    pool = min(config.pool_mb * 2**20, filled * pixels * _BYTES_PER_VOXEL)
    learning = Work(
        rounds=0,
        steps=steps + (times - 1) * once,
        predictions=predictions,
        step_s=voxels / 1e6 * train_s / steps,
        # 3D network, meta-model, and up to three times the 2D network
        prediction_s=times * 5 * max(pixels / 1e6 * predict_s, LEAST_PREDICTION_S * on_gpu(config.device)),
        memory_bytes=int(800 * 2**20 + pool + config.crops * crop * 4000),
    )
    return and_flow(learning, stacks, classes, config)


@dataclass
class SelfTraining:
    """One run of the method."""

    context: "RunContext"
    config: SelfTrainConfig
    learner: VolumeLearner = field(init=False)
    flow: FlowShare = field(init=False)
    axes: Mapping[str, tuple[Axis, ...]] = field(init=False)
    digest: str = field(init=False, default="")
    # of the trial: what nothing may learn from while it is under way, and what it found
    held_out: tuple[Slot, ...] = field(init=False, default=())
    voters: tuple[str, ...] = field(init=False, default=(*AXES, VOLUME_SET))
    model: Literal["meta", "mean", "3d"] = field(init=False, default="meta")
    # the stage that goes on, and its trainer where it was stopped before
    stage: int = field(init=False, default=0)
    begun: Mapping[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        context, config = self.context, self.config
        self.learner = VolumeLearner(context, config)
        self.flow = FlowShare(context, config, self.learner.known)
        self.axes = {name: plane_axes(context.volume(name), config.planes, context.axis) for name in context.volumes}
        self.sets = LabelSets(context)

    @property
    def planes(self) -> NetworkConfig:
        """The 2D network; it sees the shapes of the same classes as the 3D network."""
        config, network = self.config, self.learner.network
        return NetworkConfig(
            image_channels=network.image_channels,
            in_slices=3 if config.in_slices == "3" else 1,
            classes=self.context.class_ids,
            shape_classes=network.shape_classes,
            mirror=network.mirror,
            filters=(config.width, 2 * config.width, 4 * config.width, 6 * config.width, 8 * config.width),
        )

    # -- the stages ---------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Event]:
        """Go through the stages; see `propagate`."""
        tensors, extra = self.context.load_state() or ({}, {})
        if extra.get("all_done"):
            self.sets.remove()
            return
        # of what this part goes by: what is painted while it fills must be seen by the next one
        self.digest = self.context.annotation_digest()
        done = int(extra.get("done", -1))  # type: ignore[arg-type]
        if done >= 0:
            self.learner.calibration = Calibration(**extra["calibration"])  # type: ignore[arg-type]
            self.learner.temperature = float(extra["temperature"])  # type: ignore[arg-type]
            self.learner.see_shapes_of(extra["shape_classes"])  # type: ignore[arg-type]
            self.flow.load_state(extra)
            self.voters = tuple(extra["voters"])  # type: ignore[arg-type]
            self.model = extra["model"]  # type: ignore[assignment]
            self.held_out = tuple(Slot(**slot) for slot in extra["held_out"])  # type: ignore[union-attr,arg-type]
        sets = (self._learn_planes, self._label_planes, self._learn_volume, self._label_volume)
        in_trial = (*sets, self._choose_voters, self._learn_meta, self._judge_meta)
        stages = (self._calibrate, *in_trial, *sets, self._learn_meta)
        for number, stage in enumerate(stages):
            if number == 1:
                yield from self.flow.carried(self.digest, self.learner.write if done < 1 else None)
                if self.context.stop():
                    return
            if number <= done:
                continue
            if number == 1:
                self.held_out = self._to_hold_out()
            if number > len(in_trial):
                self.held_out = ()
            elif number and not self.held_out:
                continue
            self.stage, self.begun = number, tensors if extra.pop("under_way", None) == number else {}
            found: dict[str, Tensor] = {}
            yield from stage(tensors, found)
            if self.context.stop():
                return
            tensors = found
            self._save(tensors, done=number)
        filled = filled_before(extra, self.digest)
        yield from self._fill(tensors, filled, last_stage=len(stages) - 1)

    def _train(self, trainer: Trainer[NetworkT], pool: Crops, until: int, name: str) -> Iterator[Event]:
        """Train for `until` steps in all; stopped before, the stage goes on from there."""
        if self.begun:
            trainer.load_state(self.begun)
            self.begun = {}
        left = until - trainer.step_number
        if left > 0:
            yield from self.learner.train(trainer, pool, left, self._named(name))
        if self.context.stop():
            self._save(trainer.state(), done=self.stage - 1, under_way=self.stage)

    def _save(
        self,
        tensors: Mapping[str, Tensor],
        *,
        done: int,
        filled: Iterable[Slot] = (),
        all_done: bool = False,
        under_way: int | None = None,
    ) -> None:
        self.context.save_state(
            tensors,
            {
                "calibration": asdict(self.learner.calibration),
                "temperature": self.learner.temperature,
                **self.flow.state(),
                "done": done,
                **fill_state(filled, self.digest),
                "shape_classes": list(self.learner.network.shape_classes),
                "voters": list(self.voters),
                "model": self.model,
                "held_out": [asdict(slot) for slot in self.held_out],
                "all_done": all_done,
                "under_way": under_way,
            },
        )

    def _to_hold_out(self) -> tuple[Slot, ...]:
        slots = self.learner.known.human_slots()
        if self.config.trial == "off" or len(slots) < LEAST_FOR_CALIBRATION:
            return ()
        return tuple(slots[1::_TRIAL_EVERY])

    def _named(self, stage: str) -> str:
        return f"trial, {stage}" if self.held_out else stage

    def _calibrate(self, _: Mapping[str, Tensor], found: dict[str, Tensor]) -> Iterator[Event]:
        yield from self._say_what_is_left_out()
        yield from self.learner.calibrated(self.flow)

    def _say_what_is_left_out(self) -> Iterator[Event]:
        for number, (name, axes) in enumerate(self.axes.items(), 1):
            left_out = ", ".join(axis for axis in AXES if axis not in axes)
            text = f"{name}: no planes along {left_out}" if left_out else f"{name}: planes along z, y and x"
            yield Progress("choose planes", number, len(self.axes), text)
            yield Metric("plane_axes", len(axes), 0)

    def _learn_planes(self, _: Mapping[str, Tensor], found: dict[str, Tensor]) -> Iterator[Event]:
        config = self.config
        if not self._wants_planes():
            return
        trainer = Trainer(
            SliceNetwork(self.planes),
            self.learner.fit(config.plane_iterations),
            config.plane_crops,
            self.context.device,
        )
        yield from self._train(trainer, self._plane_pool(), config.plane_iterations, "planes")
        found.update(trainer.predictor.state_dict())

    def _wants_planes(self) -> bool:
        return self.model != VOLUME_SET and any(set(axes) & set(self.voters) for axes in self.axes.values())

    def _label_planes(self, tensors: Mapping[str, Tensor], found: dict[str, Tensor]) -> Iterator[Event]:
        if not self._wants_planes():
            return
        network = SliceNetwork(self.planes)
        network.load_state_dict(dict(tensors))
        network.to(self.context.device).eval()
        for name, axes in self.axes.items():
            for axis in (axis for axis in axes if axis in self.voters):
                yield from self._label_along(network, name, axis)
                if self.context.stop():
                    return

    def _label_along(self, network: SliceNetwork, name: str, axis: Axis) -> Iterator[Event]:
        volume = self.context.volume(name)
        reader, shape = PlaneReader(volume, axis, self.planes), volume.plane_shape(axis)
        indices = self.context.slices(name) if axis == self.context.axis else range(volume.depth(axis))
        for number, index in enumerate(indices, 1):
            shapes = self._plane_shapes(name, axis, index, mix=self._mix())

            def labelled(tile: int, index: int = index, shapes: "NDArray[np.float16]" = shapes) -> Labelled:
                bands = predict_bands(
                    network,
                    lambda rows, columns: np.concatenate([reader.read(index, rows, columns), shapes[:, rows, columns]]),
                    shape,
                    self.context.device,
                    tile=tile,
                    mirror=False,
                )
                return label(bands, shape, len(self.planes.classes), 1.0, self.learner.usual_area)

            self.sets.write(axis, name, index, with_smaller_tiles(labelled, self.context.device))
            yield Progress(self._named(f"label along {axis}"), number, len(indices), f"{name} {axis}{index}")
            if self.context.stop():
                return

    def _learn_volume(self, _: Mapping[str, Tensor], found: dict[str, Tensor]) -> Iterator[Event]:
        trainer = self.learner.trainer(self.config.iterations)
        # what flow carried knows the slices that are held out
        pool = self.learner.pool(pseudo=self.flow.teaches and not self.held_out, without=self.held_out)
        yield from self._train(trainer, pool, self.config.iterations, "volume")
        if self.context.stop():
            return
        found.update(trainer.predictor.state_dict())
        if not self.held_out:
            self.learner.save_model(trainer.predictor, NAME)

    def _label_volume(self, tensors: Mapping[str, Tensor], found: dict[str, Tensor]) -> Iterator[Event]:
        # it goes on as the meta-model, or fills
        found.update(tensors)
        if self.model == VOLUME_SET:
            return
        network, stage = VolumeNetwork(self.learner.network), self._named("label in 3D")
        network.load_state_dict(dict(tensors))
        network.to(self.context.device).eval()
        for name in self.context.volumes:
            with closing(
                self.learner.predictor(network, name, without=self.held_out, mix=self._mix(), mirror=False)
            ) as predictor:
                slices = self.context.slices(name)
                for number, index in enumerate(slices, 1):
                    for labelled in self.learner.labelled(predictor, Slot(name, index), stage):
                        if isinstance(labelled, Progress):
                            yield labelled
                        else:
                            self.sets.write(VOLUME_SET, name, index, labelled)
                    predictor.release(index)
                    yield Progress(stage, number, len(slices), f"{name} {index}")
                    if self.context.stop():
                        return

    def _choose_voters(self, tensors: Mapping[str, Tensor], found: dict[str, Tensor]) -> Iterator[Event]:
        """Score the sets on the held-out slices; those far below the best have no vote."""
        found.update(tensors)
        scores = {}
        for which in (*AXES, VOLUME_SET):
            slots = [slot for slot in self.held_out if which in self._sets(slot.volume)]
            if slots:
                scores[which] = self._held_out_dice({slot: self._set_plane(which, slot) for slot in slots})
                yield Metric(f"held_out_dice_{which}", scores[which], 0)
        least = max(scores.values()) - self.config.vote_margin
        self.voters = tuple(which for which, score in scores.items() if score >= least)
        told = ", ".join(
            f"{which} {score:.3f}{'' if which in self.voters else ' (no vote)'}" for which, score in scores.items()
        )
        yield Progress("trial, choose sets", 1, 1, f"Dice on {len(self.held_out)} held-out slices: {told}")
        if self.voters == (VOLUME_SET,):
            self.model = "3d"
            yield from self._say_which("only the 3D network has a vote")

    def _judge_meta(self, tensors: Mapping[str, Tensor], found: dict[str, Tensor]) -> Iterator[Event]:
        """Compare the meta-model with the mean of the sets, and with the 3D network alone, on the held-out slices."""
        if self.model == VOLUME_SET:
            return
        meta = self._meta()
        meta.load_state_dict(dict(tensors))
        meta.to(self.context.device).eval()
        by_meta, by_mean = {}, {}
        for name in dict.fromkeys(slot.volume for slot in self.held_out):
            with closing(self._meta_predictor(meta, name)) as predictor:
                for slot in (slot for slot in self.held_out if slot.volume == name):
                    for count, total in predictor.prepare(slot.index):
                        yield Progress("trial, judge", count, total, f"{name} {self.context.axis}{slot.index}")
                    by_meta[slot] = self._labelled(predictor, slot).channels
                    by_mean[slot] = self._labelled(None, slot).channels
                    if self.context.stop():
                        return
        by_3d = {slot: self._set_plane(VOLUME_SET, slot) for slot in self.held_out}
        meta_dice, mean, sparse = (self._held_out_dice(made) for made in (by_meta, by_mean, by_3d))
        yield Metric("held_out_dice_meta", meta_dice, 0)
        yield Metric("held_out_dice_mean", mean, 0)
        if max(meta_dice, mean) < sparse:
            self.model = "3d"
        elif meta_dice < mean - _META_MARGIN:
            self.model = "mean"
        yield from self._say_which(
            f"Dice on held-out slices: meta-model {meta_dice:.3f}, mean of the sets {mean:.3f}, 3D network {sparse:.3f}"
        )

    def _say_which(self, why: str) -> Iterator[Event]:
        what = {
            "meta": "the meta-model labels",
            "mean": "the mean of the sets labels, not the meta-model",
            "3d": "the 3D network labels, not the meta-model",
        }[self.model]
        yield Metric("uses_meta", float(self.model == "meta"), 0)
        yield Progress("choose model", 1, 1, f"{what}: {why}")

    def _mix(self) -> float:
        """Return how much of the shapes of held-out slices is hidden in the trial.

        Without them a slice lies twice as far from the annotated ones as those to be labelled. What networks are shown
        of slices that they learn from evens that out; so here.
        """
        return (self.config.shape_mix_low + self.config.shape_mix_high) / 2

    def _set_plane(self, which: str, slot: Slot) -> "NDArray[np.uint8]":
        """Return the labels of a set in a slice along the axis of the run."""
        height, width = self.context.volume(slot.volume).plane_shape(self.context.axis)
        box = Box((slot.index, 0, 0), (slot.index + 1, height, width))
        plane: NDArray[np.uint8] = self.sets.labels([which], slot.volume, box)[0, 0]
        return plane

    def _held_out_dice(self, made: "Mapping[Slot, NDArray[np.uint8]]") -> float:
        """Return the mean over the classes of the Dice of some slices, all their pixels together."""
        pairs = [(labels, self.learner.known.human(slot)) for slot, labels in made.items()]
        labels = np.concatenate([labels[target != IGNORE] for labels, target in pairs])
        target = np.concatenate([target[target != IGNORE] for _, target in pairs])
        return true_dice(labels, target) or 0.0

    def _learn_meta(self, tensors: Mapping[str, Tensor], found: dict[str, Tensor]) -> Iterator[Event]:
        if self.model != "meta":
            found.update(tensors)
            return
        config = self.config
        loss = MetaLoss(config.dice_weight, self.context.rng)
        fit = self.learner.fit(config.random_iterations + config.nearest_iterations, config.meta_model)
        # as many voxels in a step as the 3D network sees, although crops may have to be deeper
        share = math.prod(self.learner.sampling.crop) / math.prod(self._meta_crop())
        batch = max(1, round(config.crops * share))
        meta = self._meta()
        if config.meta_model == "3d" and not self.begun:
            meta.network.load_state_dict(fitted(tensors, meta.network, self._channels_of_image()))
        trainer: Trainer[MetaNetwork] = Trainer(meta, fit, batch, self.context.device, loss)
        pool = self._meta_pool()
        yield from self._train(trainer, pool, config.random_iterations, "meta-model, random sets")
        if self.context.stop():
            return
        loss.nearest = True
        steps = config.random_iterations + config.nearest_iterations
        yield from self._train(trainer, pool, steps, "meta-model, nearest sets")
        if self.context.stop():
            return
        found.update(trainer.predictor.state_dict())
        if config.meta_model == "3d" and config.sets_dropout > 0 and not self.held_out:
            alone = VolumeNetwork(self.learner.network)
            alone.load_state_dict(fitted(trainer.predictor.network.state_dict(), alone, self._channels_of_image()))
            self.learner.save_model(alone, NAME)

    def _fill(self, tensors: Mapping[str, Tensor], filled: Iterable[Slot], *, last_stage: int) -> Iterator[Event]:
        network = None
        if self.model != "mean":
            network = self._meta() if self.model == "meta" else VolumeNetwork(self.learner.network)
            network.load_state_dict(dict(tensors))
            network.to(self.context.device).eval()
        slots = [Slot(name, index) for name in self.context.volumes for index in self.context.slices(name)]
        done, saved = set(filled), time.monotonic()
        predictors: dict[str, BlockPredictor] = {}
        left = Counter(slot.volume for slot in slots if slot not in done)
        try:
            for slot in self.context.in_view_first([slot for slot in slots if slot not in done]):
                name = f"{slot.volume} {self.context.axis}{slot.index}"
                if network is not None and slot.volume not in predictors:
                    predictors[slot.volume] = (
                        self._meta_predictor(network, slot.volume)
                        if isinstance(network, MetaNetwork)
                        else self.learner.predictor(network, slot.volume)
                    )
                predictor = predictors.get(slot.volume)
                if predictor is not None:
                    for count, total in predictor.prepare(slot.index):
                        yield Progress("fill", len(done), len(slots), f"{name}, tile {count} of {total}")
                yield self.learner.write(slot, self._labelled(predictor, slot), "final")
                left[slot.volume] -= 1
                if predictor is not None:
                    predictor.release(slot.index)
                    if not left[slot.volume]:
                        predictor.close()
                done.add(slot)
                yield Progress("fill", len(done), len(slots), name)
                is_last = self.context.stop()
                if is_last or time.monotonic() - saved > _SAVE_EVERY_S:
                    self._save(tensors, done=last_stage, filled=done)
                    saved = time.monotonic()
                if is_last:
                    return
        finally:
            for predictor in predictors.values():
                predictor.close()
        # first of all: without the sets, and with some of them, nothing could be filled any more
        self._save(tensors, done=last_stage, filled=done, all_done=True)
        self.sets.remove()

    def _labelled(self, predictor: BlockPredictor | None, slot: Slot) -> Labelled:
        """Return a slice as the meta-model and the mean of the sets see it together, or the 3D network, or the mean.

        With what flow says, where that counts: but not in the trial, since flow knows the slices that are held out.
        """
        shape = self.context.volume(slot.volume).plane_shape(self.context.axis)
        share = 0.0 if self.model == VOLUME_SET else self.config.consensus

        def mean(rows: slice) -> "NDArray[np.float32]":
            box = Box((slot.index, rows.start, 0), (slot.index + 1, rows.stop, shape[1]))
            return self._averaged(slot.volume, box)[: 1 + len(self.planes.classes), 0].astype(np.float32)

        def bands() -> Iterator[Band]:
            if predictor is None:
                for top in range(0, shape[0], _MEAN_ROWS):
                    rows = slice(top, min(top + _MEAN_ROWS, shape[0]))
                    yield Band(rows, mean(rows))
                return
            for rows, probability in predictor.bands(slot.index):
                yield Band(rows, probability + share * (mean(rows) - probability) if share else probability)

        temperature = self.learner.calibration.temperature_at(self.learner.distance(slot))
        found = bands() if self.held_out else self.flow.added(bands(), slot)
        return label(found, shape, len(self.planes.classes), temperature, self.learner.usual_area)

    # -- the 2D network -----------------------------------------------------------------------------------------------

    def _plane_pool(self) -> PlanePool:
        context, config, learner = self.context, self.config, self.learner
        sizes = [n for name in learner.known.sources for n in learner.reader(name).shape]
        crop = min(config.crop_px, math.ceil(max(sizes) / OUTPUT_STRIDE) * OUTPUT_STRIDE)
        wanted = [
            (name, axis, index)
            for name in learner.known.sources
            for axis in self.axes[name]
            for index in self._planes_along(name, axis)
        ]
        order = [wanted[number] for number in context.rng.permutation(len(wanted))]

        def planes() -> Iterator[Plane]:
            for number, (name, axis, index) in enumerate(order):
                image = PlaneReader(context.volume(name), axis, self.planes).read_whole(index)
                target = self._plane_target(name, axis, index)
                if not self.planes.shape_classes:
                    yield Plane(image, target, 1.0, human=True)
                    continue
                hidden = self._hidden(name, axis, index, number)
                given_away = set(learner.shapes(self.held_out).anchors(name)) - set(hidden)
                if axis != context.axis:
                    # a line whose own shape the network is shown teaches nothing
                    np.moveaxis(target, self._line_axis(axis), 0)[sorted(given_away)] = IGNORE
                own, around = (self._plane_shapes(name, axis, index, without) for without in ((), hidden))
                yield Plane(image, target, 1.0, human=True, own=own, around=around)

        sampling = SamplingConfig(
            crop=(crop, crop),
            foreground=config.foreground_share,
            human=1.0,
            shape_mix=learner.sampling.shape_mix,
            augmentation=replace(learner.sampling.augmentation),
            shape_dropout=learner.sampling.shape_dropout,
        )
        budget = config.pool_mb * 2**20
        return PlanePool(planes(), self.planes.image_planes, sampling, context.device, budget, context.rng)

    def _planes_along(self, name: str, axis: Axis) -> Sequence[int]:
        """Return the planes to learn from: annotated ones, and along other axes some that these cross."""
        if axis == self.context.axis:
            return [index for index in self.context.annotated(name) if Slot(name, index) not in self.held_out]
        annotated = self.context.annotation(name).annotated(axis)
        crossed = np.linspace(0, self.context.volume(name).depth(axis) - 1, _CROSSED_PLANES + 2).round().astype(int)
        found = sorted({*annotated, *crossed[1:-1].tolist()})
        return [index for index in found if (self._plane_target(name, axis, index) != IGNORE).any()]

    def _plane_target(self, name: str, axis: Axis, index: int) -> "NDArray[np.uint8]":
        """Return what a human painted in a plane along any axis; nothing of what lies outside of the run's pieces."""
        target = self.learner.known.human_plane(name, axis, index)
        if axis != self.context.axis:
            inside = {i for piece in self.context.pieces(name) for i in piece.slices}
            inside -= {slot.index for slot in self.held_out if slot.volume == name}
            lines = np.moveaxis(target, self._line_axis(axis), 0)
            lines[[i for i in range(len(lines)) if i not in inside]] = IGNORE
        return target

    def _line_axis(self, axis: Axis) -> int:
        """Return which axis of a plane across the slices of the run has these slices as its lines."""
        return [other for other in AXES if other != axis].index(self.context.axis)

    def _hidden(self, name: str, axis: Axis, index: int, number: int) -> Sequence[int]:
        """Return the annotated slices whose shapes a plane must not show, so that they can be learned from in it."""
        if axis == self.context.axis:
            return (index,)
        anchors = sorted(self.learner.shapes(self.held_out).anchors(name))
        # every other one: those between them tell their shapes from as near as the rest does in any other plane
        return anchors[number % 2 :: 2] or anchors

    def _plane_shapes(
        self, name: str, axis: Axis, index: int, without: Sequence[int] = (), mix: float = 1.0
    ) -> "NDArray[np.float16]":
        """Return the shapes that annotated slices tell of a plane along any axis, (classes, h, w)."""
        place = (self.context.axis, *(other for other in AXES if other != self.context.axis)).index(axis)
        start, stop = [0, 0, 0], list(self.learner.reader(name).shape)
        start[place], stop[place] = index, index + 1
        block = self.learner.shapes(self.held_out, mix).read(name, Box(tuple(start), tuple(stop)), without)
        in_order = np.moveaxis(block, 1, 1 + AXES.index(self.context.axis))
        plane: NDArray[np.float16] = np.moveaxis(in_order, 1 + AXES.index(axis), 0)[0]
        return plane

    # -- the sets -----------------------------------------------------------------------------------------------------

    def _sets(self, name: str) -> tuple[str, ...]:
        """Return the sets of a volume that have a vote; where none of those makes sense in it, the 3D network's."""
        return tuple(which for which in (*self.axes[name], VOLUME_SET) if which in self.voters) or (VOLUME_SET,)

    def _averaged(self, name: str, box: Box) -> "NDArray[np.float16]":
        """Return the mean of the sets for each channel in a box, and with ``variance`` how far they disagree."""
        which = self._sets(name)
        labels = self.sets.labels(which, name, box)
        sure = None if self.config.average == "hard" else self.sets.confidence(which, name, box)
        return averaged(labels, sure, 1 + len(self.planes.classes), variance=self.config.variance == "on")

    # -- the meta-model -----------------------------------------------------------------------------------------------

    def _channels_of_image(self) -> int:
        network = self.learner.network
        return network.in_channels - len(network.shape_classes)

    def _meta(self) -> MetaNetwork:
        network, image = self.learner.network, self._channels_of_image()
        outputs = 1 + len(network.classes)
        means = outputs + (self.config.variance == "on")
        base: DenseVoxNet | VolumeNetwork
        if self.config.meta_model == "densevoxnet":
            base = DenseVoxNet((image, means), outputs)
        else:
            base = VolumeNetwork(network.model_copy(update={"image_channels": network.image_channels + means}))
        start_at_mean, dropout = self.config.start == "mean", self.config.sets_dropout
        return MetaNetwork(base, slice(image, image + means), outputs, start_at_mean=start_at_mean, dropout=dropout)

    def _meta_crop(self) -> tuple[int, int, int]:
        if self.config.meta_model == "3d":
            return self.learner.sampling.crop
        return crop_size(self.learner.sampling.crop, _META_STRIDE)

    def _meta_shapes(self, mix: float = 1.0) -> ShapesOf:
        """Return the shapes that the meta-model sees."""
        return self.learner.shapes(self.held_out, mix) if self.config.meta_model == "3d" else ShapesOf()

    def _meta_input(self, name: str, box: Box) -> "NDArray[np.float16]":
        return np.concatenate([self.learner.reader(name).read(box), self._averaged(name, box)])

    def _meta_pool(self) -> BlockPool:
        learner, context = self.learner, self.context
        boxes = [
            (name, box)
            for name in context.volumes
            for part in _runs(context.slices(name))
            for box in block_boxes(learner.reader(name).shape, part)
        ]

        def blocks() -> Iterator[Block]:
            for number in context.rng.permutation(len(boxes)):
                name, box = boxes[number]
                painted = learner.known.human_block(name, box)
                held_out = [slot.index for slot in self.held_out if slot.volume == name]
                painted[[index - box.start[0] for index in held_out if box.start[0] <= index < box.stop[0]]] = IGNORE
                human = painted != IGNORE
                targets = np.where(human, painted, self.sets.labels(self._sets(name), name, box))
                yield Block(name, box, self._meta_input(name, box), targets, human)

        return BlockPool(
            blocks(),
            learner.network.image_channels,
            self._meta_shapes(),
            replace(learner.sampling, crop=self._meta_crop()),
            context.device,
            self.config.pool_mb * 2**20,
            context.rng,
        )

    def _meta_predictor(self, meta: MetaNetwork, name: str) -> BlockPredictor:
        shapes = self._meta_shapes(self._mix())
        return BlockPredictor(
            meta,
            lambda box: np.concatenate([self._meta_input(name, box), shapes.read(name, box)]),
            self.learner.reader(name).shape,
            1 + len(self.planes.classes),
            tile=self._meta_crop(),
            stride=self.learner.network.stride if self.config.meta_model == "3d" else _META_STRIDE,
            device=self.context.device,
            scratch=self.context.folder / f".sums.{name}.part.zarr",
            mirror=self.planes.mirror,
        )


def _runs(indices: Sequence[int]) -> Iterator[range]:
    """Yield the runs of consecutive numbers."""
    if not len(indices):
        return
    breaks = [n for n in range(1, len(indices)) if indices[n] != indices[n - 1] + 1]
    for first, last in zip([0, *breaks], [*breaks, len(indices)], strict=True):
        yield range(indices[first], indices[last - 1] + 1)
