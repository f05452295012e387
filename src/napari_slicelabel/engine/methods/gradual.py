"""3D gradual learning (S2): regions grow around what a human labelled; a 3D network learns from what it labels there.

After Engster 2025, preset ``paper``: n subvolumes are annotated in 3D, each grows by a step in all directions per
round, the network predicts the new shell and is trained on. Ours, preset ``default``: annotated slices are the seeds,
the network also sees their shapes, pseudo-labels weigh less than human ones and are predicted again in each round,
rounds end where they change nothing or do harm, confidence is calibrated on annotated slices that were held out, and
these say, too, how much what correspondence flow carries (S4) counts in the result.
"""

# No `from __future__ import annotations`: pydantic reads the annotations of the config when the class is made.
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from napari_slicelabel.data.boxes import Box
from napari_slicelabel.engine.confidence import FOLDS, Calibration, Labelled, mean_dice
from napari_slicelabel.engine.config import LEAST_FOR_CALIBRATION
from napari_slicelabel.engine.context import Slot, fill_state, filled_before
from napari_slicelabel.engine.events import Event, Metric, Progress
from napari_slicelabel.engine.fit import Trainer
from napari_slicelabel.engine.flow_share import FlowShare, and_flow
from napari_slicelabel.engine.losses import IGNORE
from napari_slicelabel.engine.regions import (
    Region,
    Rule,
    accepted,
    find_seeds,
    front_rounds,
    physical_step,
    smallest_step,
)
from napari_slicelabel.engine.volume_learning import (
    VolumeLearner,
    VolumeLearningConfig,
    voxel_seconds,
)
from napari_slicelabel.engine.volume_networks import VolumeNetwork
from napari_slicelabel.engine.work import Stack, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.engine.blocks import BlockPredictor
    from napari_slicelabel.engine.context import RunContext

NAME = "gradual-3d"

_SAVE_EVERY_S = 30.0
_BYTES_PER_VOXEL = 4
# One annotated slice in so many watches the rounds, where there are as many.
_WATCH_ONE_IN = 8


class GradualConfig(VolumeLearningConfig):
    """Parameters of `propagate`."""

    PRESETS: ClassVar = {
        "default": {},
        "paper": {
            "network": "unet",
            "levels": 5,
            "shapes": "off",
            "rounds": 10,
            "step": 8,
            "refresh": False,
            "churn": 0.0,
            "watch": "off",
            "accept": "all",
            "iterations": 2000,
            "round_iterations": 500,
            "batch": 2,
            "crop_px": 64,
            "crop_depth": 64,
            "learning_rate": 1e-3,
            "schedule": "constant",
            "weight_decay": 0.0,
            "ema": 0.0,
            "pseudo_weight": 1.0,
            "human_share": 0.0,
            "foreground_share": 0.0,
            "augment": "off",
            "calibrate": "off",
            "flow": "off",
        },
    }
    SIMPLE: ClassVar = ("iterations", "rounds", "axis", "range", "device")

    iterations: int = Field(
        480, ge=1, le=1_000_000, json_schema_extra={"step": 50}, description="Training steps before the first round."
    )
    rounds: int = Field(
        3,
        ge=0,
        le=1000,
        json_schema_extra={"step": 1},
        description="Rounds until everything is reached, at most; 0: as many as it takes.",
    )
    step: int = Field(
        0,
        ge=0,
        le=10_000,
        json_schema_extra={"step": 1},
        description="How far the region grows per round, in voxels of the finest axis, and as far along the others; 0:"
        " from the rounds.",
    )
    round_iterations: int = Field(
        40, ge=0, le=100_000, json_schema_extra={"step": 10}, description="Training steps per round."
    )
    accept: Rule = Field(
        "all",
        description="Pseudo-labels to learn from. two-sided: confident voxels of every class and of background;"
        " one-sided: confident voxels of classes, all else is background; all: every voxel;"
        " quantile: of every class and of background the more confident share.",
    )
    theta: float = Field(
        0.8, ge=0.5, le=0.99, json_schema_extra={"step": 0.01}, description="Confidence from which a voxel is accepted."
    )
    refresh: bool = Field(
        True, description="Predict the whole region again in each round, instead of the new shell alone."
    )
    churn: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        json_schema_extra={"step": 0.005},
        description="Rounds end when a smaller share of the pseudo-labels changes; needs refresh. 0 = off.",
    )
    watch: Literal["auto", "off"] = Field(
        "auto",
        description="Watch the rounds on annotated slices that are held out, and end them when these get worse; auto:"
        " one annotated slice in 8, so none where there are fewer.",
    )
    drop: float = Field(
        0.02, ge=0.0, le=1.0, json_schema_extra={"step": 0.01}, description="By how much Dice they may get worse."
    )


def propagate(context: "RunContext", config: GradualConfig) -> Iterator[Event]:
    """Train on what a human labelled, let the region grow round by round, then fill everything with the last network.

    Parameters
    ----------
    context : RunContext
        The run.
    config : GradualConfig
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
    Stages, each with its state on disk at the end: *calibrate* trains one network per fold of held-out annotated
    slices, and finds out whether flow should count; *carry* has flow label everything, if so; *fit* trains on human
    labels, and where no slice could be held out of flow on what it carried, as pseudo-labels; *round k* predicts what
    the region has grown by, accepts pseudo-labels and trains on; *settle* gives the slices that watched the rounds to
    the network; *fill* predicts every slice with the last network, and adds what flow says. A resume goes on behind the
    last stage that ended, in *fill* where it was, and in *fit* where it was stopped; cancelled or killed,
    *fit* begins anew.

    Metrics: ``loss``; ``coverage``, the share of the slices in the region after a round; ``churn``; ``watched_dice``.
    """
    run = Gradual(context, config)
    with closing(run.learner):
        yield from run.run()


def work(stacks: Sequence[Stack], classes: int, config: GradualConfig) -> Work:
    """Return how much `propagate` has to do at most, with slices as seeds."""
    fronts = [
        front_rounds(stack.pieces, config.rounds, config.step) if config.rounds or config.step else ()
        for stack in stacks
    ]
    rounds = max(map(len, fronts))
    annotated = sum(stack.annotated for stack in stacks)
    pixels = max(stack.pixels for stack in stacks)
    filled = sum(stack.slices for stack in stacks)
    steps = config.iterations + rounds * config.round_iterations
    again = [len(slices) * (len(front) - 1 - n) for front in fronts for n, slices in enumerate(front)]
    first = sum(len(slices) for front in fronts for slices in front)
    predictions = filled + first + (sum(again) if config.refresh else 0)
    if config.calibrate == "auto" and annotated >= LEAST_FOR_CALIBRATION:
        steps += FOLDS * config.fold_iterations
        predictions += annotated
    if config.watch == "auto" and annotated >= _WATCH_ONE_IN and rounds:
        steps += config.round_iterations
    crop = min(config.crop_px**2, pixels) * min(config.crop_depth, max(stack.slices for stack in stacks))
    train_s, predict_s = voxel_seconds(config)
    pool = min(config.pool_mb * 2**20, filled * pixels * _BYTES_PER_VOXEL)
    learning = Work(
        rounds=rounds,
        steps=steps,
        predictions=predictions,
        step_s=config.crops * crop / 1e6 * train_s,
        prediction_s=pixels / 1e6 * predict_s,
        memory_bytes=int(700 * 2**20 + pool + config.crops * crop * (config.width / 16) * 1500),
    )
    return and_flow(learning, stacks, classes, config)


@dataclass
class Gradual:
    """One run of the method."""

    context: "RunContext"
    config: GradualConfig
    learner: VolumeLearner = field(init=False)
    flow: FlowShare = field(init=False)
    regions: Mapping[str, Region] = field(init=False)
    watched: tuple[Slot, ...] = field(init=False)
    digest: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.learner = VolumeLearner(self.context, self.config)
        self.flow = FlowShare(self.context, self.config, self.learner.known)
        self.regions = {name: self._region(name) for name in self.learner.known.sources}
        self.rounds = self._rounds()
        slots = self.learner.known.human_slots()
        enough = self.config.watch == "auto" and len(slots) >= _WATCH_ONE_IN and self.rounds
        self.watched = tuple(slots[_WATCH_ONE_IN // 2 :: _WATCH_ONE_IN]) if enough else ()

    def _region(self, name: str) -> Region:
        reader, config = self.learner.reader(name), self.config
        seeds = tuple(
            seed
            for piece in self.context.pieces(name)
            for seed in find_seeds(
                piece, lambda index: self.learner.known.human(Slot(name, index)) != IGNORE, reader.shape[1:]
            )
        )
        step = config.step or smallest_step(seeds, reader.spacing, config.rounds or 1)
        return Region(seeds, physical_step(step, reader.spacing))

    def _rounds(self) -> int:
        if not self.config.rounds and not self.config.step:
            return 0
        needed = max(region.rounds_to_fill() for region in self.regions.values())
        return min(needed, self.config.rounds) if self.config.rounds else needed

    # -- the stages ---------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Event]:
        """Go through the stages; see `propagate`."""
        tensors, extra = self.context.load_state() or ({}, {})
        # of what this part goes by: what is painted while it fills must be seen by the next one
        self.digest = self.context.annotation_digest()
        learner = self.learner
        if extra:
            learner.calibration = Calibration(**extra["calibration"])  # type: ignore[arg-type]
            learner.temperature = float(extra["temperature"])  # type: ignore[arg-type]
            learner.see_shapes_of(extra["shape_classes"])  # type: ignore[arg-type]
            self.flow.load_state(extra)
        else:
            yield from learner.calibrated(self.flow)
            if self.context.stop():
                return
            self._save({}, done=-1)
        more = self.rounds + bool(self.watched)
        trainer = learner.trainer(self.config.iterations + more * self.config.round_iterations)
        done = int(extra.get("done", -1))  # type: ignore[arg-type]
        yield from self.flow.carried(self.digest, learner.write if done < 0 else None)
        if self.context.stop():
            return
        best = float(extra.get("best", 0.0))  # type: ignore[arg-type]
        if tensors:
            trainer.load_state(tensors)
        if done < 0:
            pool = learner.pool(pseudo=self.flow.teaches, without=self.watched)
            yield from learner.train(trainer, pool, self.config.iterations - trainer.step_number, "fit")
            if self.context.stop():
                # before its end, or before it was watched: it is gone on with
                self._save(trainer.state(), done=-1)
                return
            best = yield from self._watched_dice(trainer, 0)
            done = 0
            self._save(trainer.state(), done=done, best=best)
        ended = bool(extra.get("ended", False))
        for number in range(done, self.rounds):
            if ended or self.context.stop():
                break
            before = trainer.state()
            churn = yield from self._round(trainer, number)
            if self.context.stop():
                break
            score = yield from self._watched_dice(trainer, number + 1)
            worse = bool(self.watched) and score < best - self.config.drop
            if worse:
                # what the round taught did harm: go on with what was known before it
                trainer.load_state(before)
            best = max(best, score)
            ended = worse or (churn is not None and number > 0 and churn < self.config.churn)
            self._save(trainer.state(), done=number + 1, best=best, ended=ended)
        yield from self._settle(trainer, settled=bool(extra.get("settled", False)))
        yield from self._finish(trainer, filled_before(extra, self.digest))
        if not self.context.stop():
            self.flow.remove()

    def _save(
        self,
        tensors: dict[str, Tensor],
        *,
        done: int,
        best: float = 0.0,
        ended: bool = False,
        settled: bool = False,
        filled: Iterable[Slot] = (),
    ) -> None:
        """Put on disk what a resume starts from: `done` rounds, -1 = nothing trained; `filled` slices of the fill."""
        self.context.save_state(
            tensors,
            {
                "calibration": asdict(self.learner.calibration),
                "temperature": self.learner.temperature,
                **self.flow.state(),
                "done": done,
                "best": best,
                "ended": ended,
                "settled": settled,
                **fill_state(filled, self.digest),
                "shape_classes": list(self.learner.network.shape_classes),
            },
        )

    def _round(self, trainer: Trainer[VolumeNetwork], number: int) -> Generator[Event, None, float | None]:
        """Label what the region has grown by, and train on; return the share of older pseudo-labels that changed."""
        stage = f"round {number + 1}"
        changes = Counter[str]()
        slots = [Slot(name, index) for name in self.regions for index in self._planes(name, number)]
        count = 0
        for slot, found in self._predicted(trainer.predictor, slots, stage, number):
            if isinstance(found, Progress):
                yield found
            else:
                yield from self._accept(slot, found, number, changes)
                count += 1
                yield Progress(stage, count, len(slots), f"{slot.volume} {self.context.axis}{slot.index}")
            if self.context.stop():
                return None
        yield Metric("coverage", self._coverage(number + 1), number + 1)
        pool = self.learner.pool(pseudo=True, without=self.watched)
        yield from self.learner.train(trainer, pool, self.config.round_iterations, f"{stage}: learn")
        if not changes["before"]:
            return None
        churn = changes["changed"] / changes["before"]
        yield Metric("churn", churn, number + 1)
        return churn

    def _planes(self, name: str, number: int) -> list[int]:
        """Return the planes of which round `number` labels something."""
        annotated = self.context.annotated(name)
        planes = []
        for index in sorted(self.regions[name].planes(number + 1)):
            target = self.learner.known.human(Slot(name, index)) if index in annotated else None
            todo = self._todo(name, index, number)
            if (todo if target is None else todo & (target == IGNORE)).any():
                planes.append(index)
        return planes

    def _todo(self, name: str, index: int, number: int) -> "NDArray[np.bool_]":
        """Return which pixels of a plane round `number` labels."""
        region, shape = self.regions[name], self.learner.reader(name).shape[1:]
        now = region.inside(index, shape, number + 1)
        return now if self.config.refresh else now & ~region.inside(index, shape, number)

    def _accept(self, slot: Slot, labelled: Labelled, number: int, changes: Counter[str]) -> Iterator[Event]:
        todo = self._todo(slot.volume, slot.index, number)
        old = self.learner.known.pseudo(slot)
        new = np.where(todo, accepted(labelled, self.config.accept, self.config.theta), old)
        both = (old != IGNORE) & (new != IGNORE)
        if self.config.refresh:
            changes["before"] += int(np.count_nonzero(both))
            changes["changed"] += int(np.count_nonzero(both & (old != new)))
        self.context.write_accepted(slot.volume, slot.index, new)
        if todo.all():
            yield self.learner.write(slot, labelled, f"round {number + 1}")

    def _predicted(
        self, network: VolumeNetwork, slots: Sequence[Slot], stage: str, number: int | None = None
    ) -> "Iterator[tuple[Slot, Progress | Labelled]]":
        """Yield slices as the network labels them, whichever is looked at first, and progress in between."""
        left = Counter(slot.volume for slot in slots)
        predictors: dict[str, BlockPredictor] = {}
        with ExitStack() as stack:
            for slot in self.context.in_view_first(slots):
                if slot.volume not in predictors:
                    predictors[slot.volume] = self._predictor(network, slot.volume, number)
                    stack.callback(predictors[slot.volume].close)
                # rounds learn from what the network says alone
                flow = self.flow if number is None else None
                for found in self.learner.labelled(predictors[slot.volume], slot, stage, flow):
                    yield slot, found
                predictors[slot.volume].release(slot.index)
                left[slot.volume] -= 1
                if not left[slot.volume]:
                    predictors[slot.volume].close()

    def _predictor(self, network: VolumeNetwork, volume: str, number: int | None) -> "BlockPredictor":
        if number is None:
            return self.learner.predictor(network, volume)
        boxes = self.regions[volume].boxes(number + 1)
        known = () if self.config.refresh else self.regions[volume].boxes(number)

        def wanted(tile: Box) -> bool:
            touched = [tile.intersect(box) for box in boxes]
            return any(part.size and not any(old.contains(part) for old in known) for part in touched)

        return self.learner.predictor(network, volume, without=self.watched, mirror=False, wanted=wanted)

    def _coverage(self, rounds: int) -> float:
        total = sum(len(self.context.slices(name)) for name in self.regions)
        inside = sum(
            float(region.inside(index, self.learner.reader(name).shape[1:], rounds).mean())
            for name, region in self.regions.items()
            for index in self.context.slices(name)
        )
        return inside / total

    def _watched_dice(self, trainer: Trainer[VolumeNetwork], number: int) -> Generator[Event, None, float]:
        """Return the mean Dice of the slices that watch the rounds; 0 where there are none."""
        if not self.watched:
            return 0.0
        found = []
        for judged in self.learner.judged(trainer.predictor, self.watched, "watch"):
            if isinstance(judged, Progress):
                yield judged
            else:
                found.append(judged[1])
        score = mean_dice(found)
        yield Metric("watched_dice", score, number)
        return score

    def _settle(self, trainer: Trainer[VolumeNetwork], *, settled: bool) -> Iterator[Event]:
        """Learn from the slices that were held out to watch."""
        if not self.watched or settled or self.context.stop():
            return
        pool = self.learner.pool(pseudo=True)
        yield from self.learner.train(trainer, pool, self.config.round_iterations, "settle")
        if self.context.stop():
            return
        self._save(trainer.state(), done=self.rounds, ended=True, settled=True)

    def _finish(self, trainer: Trainer[VolumeNetwork], filled: Iterable[Slot]) -> Iterator[Event]:
        network = trainer.predictor
        self.learner.save_model(network, NAME)
        if self.context.stop():
            return
        sources = self.learner.known.sources
        names = [*sources, *(name for name in self.context.volumes if name not in sources)]
        slots = [Slot(name, index) for name in names for index in self.context.slices(name)]
        done, saved, tensors = set(filled), time.monotonic(), trainer.state()
        for slot, found in self._predicted(network, [slot for slot in slots if slot not in done], "fill"):
            if isinstance(found, Progress):
                yield found
                continue
            yield self.learner.write(slot, found, "final")
            done.add(slot)
            yield Progress("fill", len(done), len(slots), f"{slot.volume} {self.context.axis}{slot.index}")
            is_last = self.context.stop()
            if is_last or time.monotonic() - saved > _SAVE_EVERY_S:
                self._save(tensors, done=self.rounds, ended=True, settled=True, filled=done)
                saved = time.monotonic()
            if is_last:
                return
