"""Correspondence flow (S4): labels are carried from annotated slices along what the slices themselves look like.

Preset ``sli2vol`` after Yeung et al., MICCAI 2021 (released code: pakheiyeung/Sli2Vol). Ours, preset ``default``: every
annotated slice is an anchor, soft labels are carried from both sides, and the two are weighed by distance, by how well
each side meets the annotated slice at its other end, and pixel by pixel by whether the ways there and back agree.
Damaged slices are stepped over, and a correction costs no more than the gaps that it touches.

Preset ``sli2vol+`` after An et al., 2025: what was carried once is refined by a 3D network, and guides a second
correspondence network (`engine.guided`, `engine.refinement`).
"""

import hashlib
import math
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import numpy as np
from torch import Tensor

from napari_slicelabel.data.boxes import AXES, SliceRef
from napari_slicelabel.engine.carried import without_unknown
from napari_slicelabel.engine.confidence import Calibration, HeldOut, Labelled, calibrate, label, mean_dice
from napari_slicelabel.engine.context import Slot
from napari_slicelabel.engine.correspondence import CorrespondenceConfig, CorrespondenceNetwork, estimate_noise
from napari_slicelabel.engine.devices import on_gpu
from napari_slicelabel.engine.earlier import EarlierRun
from napari_slicelabel.engine.events import Event, Metric, Progress, SliceDone
from napari_slicelabel.engine.flow_carrier import Carrier, Gap, gaps
from napari_slicelabel.engine.flow_config import FlowConfig
from napari_slicelabel.engine.flow_model import describe, fitting_weights, model_folder
from napari_slicelabel.engine.flow_slices import FlowSlices
from napari_slicelabel.engine.flow_training import ReconstructionTraining
from napari_slicelabel.engine.guided import GuidedConfig, GuidedNetwork, guide_weights, image_weights
from napari_slicelabel.engine.losses import IGNORE
from napari_slicelabel.engine.pieces import Piece
from napari_slicelabel.engine.predict import Band
from napari_slicelabel.engine.refinement import refine, refinement_config, refinement_work
from napari_slicelabel.engine.regions import Known
from napari_slicelabel.engine.training import told
from napari_slicelabel.engine.volume_learning import VolumeLearningConfig
from napari_slicelabel.engine.work import Stack, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydantic import JsonValue

    from napari_slicelabel.engine.context import RunContext

NAME = "flow"

T = TypeVar("T")

_MOST_HELD_OUT = 4
_FURTHEST = 20
# Of 1e6 pixels at stride 1 on two CPU cores: a training step, and a slice that is encoded and carried to.
_TRAIN_S, _CARRY_S = 6.0, 4.0
# What is left of that with a GPU.
_TRAIN_CUDA, _CARRY_CUDA = 0.1, 0.5


def propagate(context: "RunContext", config: FlowConfig) -> Iterator[Event]:
    """Learn from the image alone how slices correspond, then carry the labels of the annotated slices along.

    Parameters
    ----------
    context : RunContext
        The run.
    config : FlowConfig
        The parameters.

    Yields
    ------
    Event
        `Progress` and `Metric` ("loss") while training, `Progress` while labels are carried, a `SliceDone` per slice.

    Raises
    ------
    InputError
        A volume has no annotated slice, none has a class in it, images differ in channels, or `model` does not fit.
    MissingFileError
        No such `model`.

    Notes
    -----
    The gaps between annotated slices are filled one after the other, the one in view first. From each end labels go
    slice by slice: a slice takes them from the ones before it in its chain (``references``), and with ``anchor`` from
    the annotated slice too, by the affinity of their features in a window (S4). Unknown pixels of an annotated slice
    are a label of their own, which is taken out at the end. In a gap with two ends both chains go on to the annotated
    slice at the other end, which tells how much each has lost on the way; the two are added with the inverse of what
    each is expected to have lost so far as weights, pixel by pixel times how far the ways there and back agree (see
    `carried.trust`), and with ``shapes`` of what interpolation says.

    Intensities are carried along. A pixel whose intensity the slices before do not explain is one that they have no
    label for: its confidence falls. A slice of which that is true as a whole is damaged: it gets the labels carried to
    the slices before it, and nothing is taken from it.

    With ``guide`` the labels of that first pass are kept as pseudo-labels, refined in 3D, and seen by a second network,
    which carries the labels that are written. State is on disk after each stage: *learn what corresponds*, *calibrate*
    (always without the guide, which knows slices that are held out), *pseudo-label*, *refine*, *learn with a guide*. A
    resume goes on behind the last one; where the annotation has changed since, from *calibrate* on.

    Memory holds the features of a few slices (of up to ``cache_mb``, which stay for the next run in this process), and
    one gap's labels; those of a long gap are on disk in the run's folder.
    """
    context.need_annotated("carry labels from")
    yield from Flow(context, config, context.rng).run()


def between(context: "RunContext", config: FlowConfig) -> Iterator[Event | tuple[Slot, "NDArray[np.uint8]"]]:
    """Learn what corresponds, then label the slices between annotated ones: mask interpolation for another method.

    Parameters
    ----------
    context : RunContext
        The run of the other method; nothing is written to it.
    config : FlowConfig
        The parameters.

    Yields
    ------
    Event, or tuple of (Slot, ndarray of shape (h, w), uint8)
        `Progress` and `Metric`; a slice with its labels, as channel numbers: 0 = background, k + 1 = class k.

    Raises
    ------
    InputError
        As for `propagate`.
    """
    flow = Flow(context, config, context.rng)
    yield from flow.learn()
    for name in context.volumes:
        for gap in gaps(context, name):
            if gap.lower is None or gap.upper is None:
                continue
            for index, carried in flow.carrier.carried(gap):
                if carried is None:
                    yield Progress("interpolate", index - gap.lower, gap.upper - gap.lower, flow.name(gap, index))
                else:
                    yield Slot(name, index), carried.argmax(0).astype(np.uint8)
                if context.stop():
                    return


def work(stacks: Sequence[Stack], classes: int, config: FlowConfig) -> Work:
    """Return how much `propagate` has to do."""
    pixels = max(stack.pixels for stack in stacks)
    stride = _stride(config, pixels)
    around = [ends for stack in stacks for piece in stack.pieces for ends in _around_one(piece)]
    # both chains of a gap reach its other end
    judged = [2 * (upper - lower) if config.sides == "both" else upper - lower - 1 for lower, upper in around]
    if not around:
        judged = [2 * sum(map(len, both)) for stack in stacks for piece in stack.pieces for _, both in _ways(piece)]
    filled = sum(stack.slices for stack in stacks)
    crops = 2 * config.batch * min(config.crop_px**2, pixels)
    rate = 1.0 if config.encoder == "resnet" else 0.5 / stride
    guided, refined = config.guide != "off", config.guide == "refined"
    flow_steps = 0 if config.model else config.iterations + guided * config.guide_iterations
    refine_steps = refined * config.refine_iterations
    refine_step_s, refine_slice_s, refine_bytes = refinement_work(stacks, _refinement(config))
    train_left, carry_left = (_TRAIN_CUDA, _CARRY_CUDA) if on_gpu(config.device) else (1.0, 1.0)
    seconds = flow_steps * crops / 1e6 * _TRAIN_S * rate * train_left + refine_steps * refine_step_s
    carry_s = 2 * pixels / 1e6 * _CARRY_S * rate / stride * carry_left
    return Work(
        rounds=0,
        steps=flow_steps + refine_steps,
        predictions=filled + (sum(_some(judged)) if config.calibrate == "auto" else 0),
        step_s=seconds / max(1, flow_steps + refine_steps),
        prediction_s=(1 + guided) * carry_s + refined * refine_slice_s,
        memory_bytes=(300 + config.cache_mb) * 2**20 + 60 * (2 + classes) * pixels + refined * refine_bytes,
    )


@dataclass
class Flow:
    """One run of the method.

    Attributes
    ----------
    context, config
        Of the run.
    rng : numpy.random.Generator
        Draws crops; that of the run, unless another method asks and is to draw the same whether it asks or not.
    """

    context: "RunContext"
    config: FlowConfig
    rng: np.random.Generator
    network: CorrespondenceNetwork = field(init=False)
    carrier: Carrier = field(init=False)
    calibration: Calibration = field(init=False, default_factory=Calibration)

    def __post_init__(self) -> None:
        context = self.context
        self._known = Known(context)
        self._classes = len(context.class_ids)
        self._slices = FlowSlices(context, self.config)
        # of the encoder of pseudo-labels, once there is one
        self._guide: dict[str, Tensor] = {}
        # slices that were written before the annotation changed, and count as not written
        self._stale: frozenset[Slot] = frozenset()
        if self.config.guide == "refined":
            # what a 3D network cannot learn is better said before the hours that come first
            self._known.check_classes()
        self._usual_area = self._known.usual_area()
        pixels = max(math.prod(context.volume(name).plane_shape(context.axis)) for name in context.volumes)
        first = self._known.human_slots()[0]
        self.network = CorrespondenceNetwork(
            CorrespondenceConfig(
                image_channels=self._slices.image_channels,
                encoder=self.config.encoder,
                profile=self.config.profile,
                stride=_stride(self.config, pixels),
                radius=self.config.radius,
                reach=self._reach(pixels),
                soften=self.config.soften,
                noise=estimate_noise(self._slices.plane(first)[0]),
            )
        ).to(context.device)
        self._measured_with = 0

    def _reach(self, pixels: int) -> float:
        """Return `reach` in features: never less than one of them, nor so much that the window cuts it off."""
        spacing = dict(zip(AXES, self.context.volume(self.context.volumes[0]).voxel_size, strict=True))
        between = spacing.pop(self.context.axis)
        pixel = sum(spacing.values()) / 2
        features = self.config.reach * between / pixel / _stride(self.config, pixels)
        return min(max(features, 1.0), max(self.config.radius / 2, 1.0))

    # -- the stages ---------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Event]:
        """Go through the stages; see `propagate`."""
        tensors, extra = self.context.load_state() or ({}, {})
        earlier = None if extra else self._earlier()
        if earlier is not None:
            tensors = dict(earlier.tensors)
        if tensors:
            self._take(tensors)
        elif self.config.model:
            guides = self._classes if self.config.guide != "off" else 0
            folder = model_folder(self.context.project, self.config.model)
            self._take(fitting_weights(folder, self.network.config, guides))
        else:
            yield from self._train("learn what corresponds", self.config.iterations)
            if self.context.stop():
                return
        known = extra if earlier is None else dict(earlier.extra)
        self._look(known.get("residual"))
        painted = self._painted()
        measured_with = cast("int", known.get("measured_with", 0))
        annotated = sum(len(self.context.annotated(name)) for name in self.context.volumes)
        holds_out = bool(self._between_others())
        if annotated < 2 * measured_with and known.get("holds_out", holds_out) == holds_out:
            self.calibration = Calibration(**known["calibration"])  # type: ignore[arg-type]
        else:
            yield from self._calibrate()
            if self.context.stop():
                return
            # what is sure by another measure is not taken over
            earlier, measured_with = None, annotated
        self._measured_with = measured_with
        unchanged = bool(extra) and extra["painted"] == painted
        if unchanged:
            self._stale = frozenset(Slot(**slot) for slot in extra["stale"])  # type: ignore[arg-type, union-attr]
        else:
            self._stale = self._done()
            self._save(painted)
        if self.config.guide != "off":
            yield from self._guided(painted, int(extra["stages"]) if unchanged else 0)  # type: ignore[arg-type]
            if self.context.stop():
                return
        if earlier is not None:
            yield from self._take_over(earlier, painted)
            if self.context.stop():
                return
        yield from self._fill(self._done() - self._stale)
        self._save_model()

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the weights to those of a state or of a model."""
        self.network.load_state_dict(image_weights(tensors))
        self._guide = guide_weights(tensors)

    def _save(self, painted: Mapping[str, str], stages: int = 0) -> None:
        """Put on disk what a resume or a later run starts from; `stages` of those with a guide are done."""
        extra: dict[str, JsonValue] = {
            "painted": dict(painted),
            "image": self._slices.token,
            "classes": list(self.context.class_ids),
            "calibration": asdict(self.calibration),
            "measured_with": self._measured_with,
            "holds_out": bool(self._between_others()),
            "residual": self.carrier.residual,
            "stages": stages,
            "stale": [asdict(slot) for slot in sorted(self._stale)],
        }
        self.context.save_state({**self.network.state_dict(), **self._guide}, extra)

    # -- what an earlier run did ---------------------------------------------------------------------------------------

    def _earlier(self) -> EarlierRun | None:
        """Return the run whose network and labels may be taken over."""
        if self.config.reuse == "off" or self.config.guide != "off" or self.config.model:
            # with a guide every label depends on every other, and a model may have changed
            return None
        found = self.context.earlier()
        same = found is not None and (
            found.extra["image"] == self._slices.token and found.extra["classes"] == list(self.context.class_ids)
        )
        return found if same else None

    def _painted(self) -> dict[str, str]:
        """Return a text for each annotated slice, and one per volume for the other axes, that change with the paint."""
        found = {}
        for slot in self._known.human_slots():
            found[f"{slot.volume} {slot.index}"] = hashlib.sha256(self._known.human(slot).tobytes()).hexdigest()
        for name in self.context.volumes:
            across = hashlib.sha256()
            annotation = self.context.annotation(name)
            for axis in AXES:
                for index in annotation.annotated(axis) if axis != self.context.axis else ():
                    across.update(f"{axis}{index}".encode() + annotation.read_slice(SliceRef(axis, index)).tobytes())
            found[f"{name} across"] = across.hexdigest()
        return found

    def _take_over(self, earlier: EarlierRun, painted: Mapping[str, str]) -> Iterator[Event]:
        """Write the slices of an earlier run that no change of the annotation touches."""
        before = cast("Mapping[str, str]", earlier.extra["painted"])
        for name in self.context.volumes:
            if before.get(f"{name} across") != painted[f"{name} across"]:
                continue
            for gap in gaps(self.context, name):
                for index in gap.slices if _same(gap, before, painted) else ():
                    yield self.context.take_slice(earlier, name, index)
                    if self.context.stop():
                        return

    # -- the guide ----------------------------------------------------------------------------------------------------

    def _guided(self, painted: Mapping[str, str], done: int) -> Iterator[Event]:
        """Make pseudo-labels and a network that sees them; `done` stages are on disk."""
        stages = [self._pseudo_label, self._refine] if self.config.guide == "refined" else [self._pseudo_label]
        for number, stage in enumerate(stages, 1):
            if number > done:
                yield from stage()
                if self.context.stop():
                    return
                self._save(painted, number)
        # the image branch goes on from what it has learned; an encoder that is on disk needs no training
        image = self.network
        self.network = GuidedNetwork(GuidedConfig(**image.config.model_dump(), guides=self._classes)).to(
            self.context.device
        )
        self.network.load_state_dict({**self.network.state_dict(), **image.state_dict(), **self._guide})
        if not self._guide:
            yield from self._train("learn with a guide", self.config.guide_iterations)
            if self.context.stop():
                return
            self._guide = guide_weights(self.network.state_dict())
            self._save(painted, len(stages))
        self._look()

    def _pseudo_label(self) -> Iterator[Event]:
        for name in self.context.volumes:
            for slot in (Slot(name, index) for index in self.context.annotated(name)):
                self.context.write_accepted(name, slot.index, self._known.human(slot))
            for gap in gaps(self.context, name):
                done = 0
                for index, probability in self.carrier.carried(gap):
                    if probability is not None:
                        self._accept(Slot(name, index), probability.argmax(0).astype(np.uint8))
                        done += 1
                    yield Progress("pseudo-label", done, len(gap.slices), self.name(gap, index))
                    if self.context.stop():
                        return

    def _accept(self, slot: Slot, channels: "NDArray[np.uint8]") -> None:
        """Keep pseudo-labels of a slice; what a human painted is true, along whichever axis."""
        human = self._known.human(slot)
        self.context.write_accepted(slot.volume, slot.index, np.where(human == IGNORE, channels, human))

    def _refine(self) -> Iterator[Event]:
        yield from refine(self.context, _refinement(self.config))

    def _done(self) -> frozenset[Slot]:
        return frozenset(Slot(name, index) for name in self.context.volumes for index in self.context.done(name))

    def _fill(self, done: frozenset[Slot]) -> Iterator[Event]:
        for slot in self._known.human_slots():
            if slot not in done:
                yield self._write(slot, without_unknown(self.carrier.painted(slot)).cpu().numpy())
                if self.context.stop():
                    return
        for gap in self.gaps_to_fill(done):
            yield from self._fill_gap(gap, done)
            if self.context.stop():
                return

    def gaps_to_fill(self, done: Collection[Slot] = ()) -> Iterator[Gap]:
        """Yield the gaps of all volumes of which not all slices are done, the one in view next."""
        todo = {
            Slot(gap.volume, index): gap
            for name in self.context.volumes
            for gap in gaps(self.context, name)
            for index in gap.slices
            if Slot(name, index) not in done
        }
        begun: set[Gap] = set()
        # the first slice of a gap that is asked for brings the whole gap: its labels come in a chain
        for slot in self.context.in_view_first(todo):
            if todo[slot] not in begun:
                begun.add(todo[slot])
                yield todo[slot]

    def _fill_gap(self, gap: Gap, done: frozenset[Slot]) -> Iterator[Event]:
        for index, carried in self.carrier.carried(gap):
            if carried is None:
                yield Progress("carry", abs(index - gap.slices.start) + 1, len(gap.slices) + 1, self.name(gap, index))
            elif Slot(gap.volume, index) not in done:
                yield self._write(Slot(gap.volume, index), carried)
            if self.context.stop():
                return

    def name(self, gap: Gap, index: int) -> str:
        """Return what a slice of a gap is called in progress."""
        return f"{gap.volume} {self.context.axis}{index}"

    def labelled(self, probability: "NDArray[np.float32]", temperature: float) -> Labelled:
        """Return labels, confidence and expected Dice of a slice that labels were carried to."""
        height, width = probability.shape[1:]
        band = Band(slice(0, height), probability)
        return label([band], (height, width), self._classes, temperature, self._usual_area)

    def _write(self, slot: Slot, probability: "NDArray[np.float32]") -> SliceDone:
        distance = self._known.distance(slot)
        assert distance is not None, "volumes without annotated slices were refused"
        found = self.labelled(probability, self.calibration.temperature_at(distance))
        return self.context.write_slice(
            slot.volume,
            slot.index,
            self._known.values[found.channels],
            np.rint(found.confidence * 255).astype(np.uint8),
            provenance=NAME,
            score=self.calibration.corrected(found.expected, distance),
        )

    def _save_model(self) -> None:
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        description: dict[str, JsonValue] = {
            **describe(self.network),
            "axis": self.context.axis,
            "method": NAME,
        }
        self.context.save_model(weights, description)

    # -- learning from the image --------------------------------------------------------------------------------------

    def learn(self) -> Iterator[Event]:
        """Train the network; then labels can be carried."""
        yield from self._train("learn what corresponds", self.config.iterations)
        self._look()

    def _look(self, residual: "JsonValue" = None) -> None:
        """Take note of what the network says of slices that are as they should be, unless that is known."""
        known = residual if isinstance(residual, float) else None
        self.carrier = Carrier(self._slices, self._known, self.network, known)

    def _train(self, stage: str, steps: int) -> Iterator[Event]:
        training = ReconstructionTraining(self._slices, self.network, self.rng)
        yield from told(self.context, training.steps(steps), steps, stage)

    # -- held-out slices ----------------------------------------------------------------------------------------------

    def _calibrate(self) -> Iterator[Event]:
        """Carry labels to annotated slices, and measure how sure one may be of what arrives."""
        if self.config.calibrate == "off":
            return
        holds_out = bool(self._between_others())
        found = yield from self._held_out() if holds_out else self.there_and_back()
        if found and not self.context.stop():
            self.calibration = calibrate(found, self._usual_area, final=holds_out, returned=not holds_out)
            yield Metric("temperature", self.calibration.temperature, 0)
            yield Metric("held_out_dice", mean_dice(found), 0)

    def _held_out(self) -> Generator[Progress, None, list[HeldOut]]:
        found = []
        for event in self.to_held_out():
            if isinstance(event, Progress):
                yield event
            else:
                slot, probability = event
                found.append(self._judged(slot, probability, self._known.held_out_distance(slot, (slot,))))
        return found

    def _judged(self, slot: Slot, probability: "NDArray[np.float32]", distance: int) -> HeldOut:
        """Return what was carried to an annotated slice beside what a human painted there."""
        target = self._known.human(slot)
        known = target != IGNORE
        return HeldOut(probability[:, known], target[known], distance)

    def _between_others(self) -> list[Gap]:
        """Return a gap for each annotated slice that has others on both sides, as if it were not annotated itself."""
        return [
            Gap(name, range(lower + 1, upper), lower, upper)
            for name in self.context.volumes
            for piece in self.context.pieces(name)
            for lower, upper in _around_one(piece)
        ]

    def to_held_out(self) -> Iterator[Progress | tuple[Slot, "NDArray[np.float32]"]]:
        """Carry labels to some annotated slices from those on both sides of each; yield these with probabilities."""
        chosen = _some(self._between_others())
        for number, gap in enumerate(chosen, 1):
            held_out = next(i for i in self.context.annotated(gap.volume) if i in gap.slices)
            for index, probability in self.carrier.carried(gap):
                if index == held_out and probability is not None:
                    yield Slot(gap.volume, index), probability
                if probability is None or self.config.sides == "nearest":
                    yield Progress("calibrate", number, len(chosen), self.name(gap, index))
                if self.context.stop():
                    return

    def there_and_back(self) -> Generator[Progress, None, list[HeldOut]]:
        """Carry labels away from some annotated slices and back again, and return what returns.

        As far as slices lie from annotated ones on average, but not further than `_FURTHEST`. It takes no other truth,
        and what returns is about as good as what labels are at the far end (docs/algorithms.md), whose distance it
        has: what is lost on the way there is not found again on the way back.
        """
        chosen = _some(
            [
                (Slot(name, anchor), both)
                for name in self.context.volumes
                for piece in self.context.pieces(name)
                for anchor, both in _ways(piece)
            ]
        )
        ways = [(slot, away) for slot, both in chosen for away in both]
        found: list[HeldOut] = []
        for number, (slot, away) in enumerate(ways, 1):
            there_and_back = [*away, *reversed(away[:-1]), slot.index]
            for _, carried in self.carrier.chain(slot.volume, slot.index, iter(there_and_back)):
                arrived = carried
                yield Progress("there and back", number, len(ways), f"{slot.volume} {self.context.axis}{slot.index}")
                if self.context.stop():
                    return found
            found.append(self._judged(slot, arrived.explained().cpu().numpy(), len(away)))
        return found


def _same(gap: Gap, before: Mapping[str, str], painted: Mapping[str, str]) -> bool:
    """Return whether the annotated slices around a gap are the same, and as they were."""
    names = [f"{gap.volume} {end}" for end in (gap.lower, gap.upper) if end is not None]
    inside = any(f"{gap.volume} {index}" in before for index in gap.slices)
    return not inside and all(before.get(name) == painted[name] for name in names)


def _around_one(piece: Piece) -> list[tuple[int, int]]:
    """Return the annotated slices on both sides of each that has some on both."""
    return list(zip(piece.anchors, piece.anchors[2:], strict=False))


def _ways(piece: Piece) -> list[tuple[int, list[range]]]:
    """Return the annotated slices of a piece, each with one or two ways from it, as far as slices are on average."""
    distances = [piece.distance(index) for index in piece.slices if index not in piece.anchors]
    far = min(_FURTHEST, round(float(np.mean(distances or [0]))))
    found = []
    for anchor in piece.anchors:
        above = range(anchor + 1, min(anchor + far + 1, piece.slices.stop))
        below = range(anchor - 1, max(anchor - far, piece.slices.start) - 1, -1)
        found.append((anchor, [way for way in (above, below) if way]))
    return [(anchor, ways) for anchor, ways in found if ways]


def _some(items: Sequence[T]) -> Sequence[T]:
    """Return as many items as are held out at most, evenly spread."""
    return items[:: max(1, -(-len(items) // _MOST_HELD_OUT))]


def _refinement(config: FlowConfig) -> VolumeLearningConfig:
    return refinement_config(
        iterations=config.refine_iterations,
        width=config.refine_width,
        crop_px=config.crop_px,
        seed=config.seed,
        device=config.device,
    )


def _stride(config: FlowConfig, pixels: int) -> Literal[1, 2, 4]:
    if config.stride != "auto":
        return {"1": 1, "2": 2, "4": 4}[config.stride]  # type: ignore[return-value]
    return 1 if pixels <= 128**2 else 2 if pixels <= 320**2 else 4
