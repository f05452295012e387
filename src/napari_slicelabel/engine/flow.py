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
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from napari_slicelabel.data.boxes import AXES, SliceRef
from napari_slicelabel.engine.carried import (
    KEPT_DOUBT,
    Carried,
    mixed,
    share_of_upper,
    verified,
    without_unknown,
)
from napari_slicelabel.engine.confidence import Calibration, HeldOut, Labelled, calibrate, label, mean_dice, true_dice
from napari_slicelabel.engine.context import Slot
from napari_slicelabel.engine.correspondence import (
    CorrespondenceConfig,
    CorrespondenceNetwork,
    estimate_noise,
    misalignment,
    padded_to,
    reconstruction_loss,
)
from napari_slicelabel.engine.devices import on_device, on_gpu
from napari_slicelabel.engine.earlier import EarlierRun
from napari_slicelabel.engine.events import Event, Metric, Progress, SliceDone
from napari_slicelabel.engine.flow_config import FlowConfig
from napari_slicelabel.engine.flow_model import describe, fitting_weights, model_folder
from napari_slicelabel.engine.guided import (
    GuidedConfig,
    GuidedNetwork,
    guide_distances,
    guide_weights,
    image_weights,
    without_some_guides,
)
from napari_slicelabel.engine.interpolation import LABEL_RADIUS_PX, class_distances
from napari_slicelabel.engine.losses import IGNORE
from napari_slicelabel.engine.networks import NetworkConfig
from napari_slicelabel.engine.pieces import Piece
from napari_slicelabel.engine.planes import PlaneReader
from napari_slicelabel.engine.predict import Band
from napari_slicelabel.engine.refinement import refine, refined_store, refinement_config, refinement_work
from napari_slicelabel.engine.regions import Known
from napari_slicelabel.engine.scratch import Scratch
from napari_slicelabel.engine.training import told
from napari_slicelabel.engine.volume_learning import VolumeLearningConfig
from napari_slicelabel.engine.work import Stack, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydantic import JsonValue

    from napari_slicelabel.engine.context import RunContext

NAME = "flow"

T = TypeVar("T")

# Of the process, not of a run: a correction is answered in the time it takes to carry labels, not to encode slices.
_FEATURES: OrderedDict[tuple[str, str, str, int], Tensor] = OrderedDict()

_MOST_HELD_OUT = 4
_RUNS = 24
_TILE_PX = 1024
_OVERLAP_PX = 32
# Of what either side of a gap brings to its slices, in memory.
_GAP_BYTES = 128 * 2**20
# A chain that meets its other end as well as this is not trusted more; of the intensity range.
_LEAST_LOSS, _LEAST_RESIDUAL = 0.02, 1e-4
# Errors of carried intensities, in units of what is usual: up to the first all is well, from the second on a pixel is
# not explained at all.
_USUAL, _STRANGE = 3.0, 9.0
# A slice is damaged where so much of it is not explained; not more than so many in a row are.
_DAMAGED, _MOST_SKIPPED = 0.3, 2
_MOST_MEASURED = 8
# Of 1e6 pixels at stride 1 on two CPU cores: a training step, and a slice that is encoded and carried to.
_TRAIN_S, _CARRY_S = 6.0, 4.0
# What is left of that with a GPU.
_TRAIN_CUDA, _CARRY_CUDA = 0.1, 0.5


class Gap(NamedTuple):
    """Slices to fill, and the annotated slices at their ends; None where the stack, or its piece, ends."""

    volume: str
    slices: range
    lower: int | None
    upper: int | None


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
            for index, carried in flow.carried(gap):
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
    held_out = _some(around) if config.calibrate == "auto" else []
    # both chains of a gap reach its other end
    judged = sum(2 * (upper - lower) if config.sides == "both" else upper - lower - 1 for lower, upper in held_out)
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
        predictions=filled + judged,
        step_s=seconds / max(1, flow_steps + refine_steps),
        prediction_s=(1 + guided) * carry_s + refined * refine_slice_s,
        memory_bytes=(300 + config.cache_mb) * 2**20 + 60 * (2 + classes) * pixels + refined * refine_bytes,
    )


def gaps(context: "RunContext", volume: str) -> tuple[Gap, ...]:
    """Return the slices between annotated ones, and those beyond the first and the last of a piece that has any."""
    found = []
    for piece in (piece for piece in context.pieces(volume) if piece.anchors):
        ends: list[int | None] = [None, *piece.anchors, None]
        for lower, upper in pairwise(ends):
            first = piece.slices.start if lower is None else max(lower + 1, piece.slices.start)
            last = piece.slices.stop if upper is None else min(upper, piece.slices.stop)
            if first < last:
                found.append(Gap(volume, range(first, last), lower, upper))
    return tuple(found)


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
    calibration: Calibration = field(init=False, default_factory=Calibration)

    def __post_init__(self) -> None:
        context = self.context
        self._known = Known(context)
        self._classes = len(context.class_ids)
        self._plain = NetworkConfig(image_channels=context.image_channels(), in_slices=1, classes=context.class_ids)
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
                image_channels=self._plain.image_channels,
                encoder=self.config.encoder,
                profile=self.config.profile,
                stride=_stride(self.config, pixels),
                radius=self.config.radius,
                reach=self._reach(pixels),
                soften=self.config.soften,
                noise=estimate_noise(self._plane(first)[0]),
            )
        ).to(context.device)
        self._token = ""
        self._measured_with = 0
        self._residual = 0.0

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
        if annotated < 2 * measured_with:
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
            "image": self._image_token,
            "classes": list(self.context.class_ids),
            "calibration": asdict(self.calibration),
            "measured_with": self._measured_with,
            "residual": self._residual,
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
            found.extra["image"] == self._image_token and found.extra["classes"] == list(self.context.class_ids)
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

    @cached_property
    def _image_token(self) -> str:
        """Return a text that changes with the images: of the first, the middle and the last slice of each volume."""
        digest = hashlib.sha256()
        for name in self.context.volumes:
            indices = self.context.slices(name)
            for index in (indices[0], indices[len(indices) // 2], indices[-1]):
                digest.update(self._plane(Slot(name, index)).numpy().tobytes())
        return digest.hexdigest()

    def _network_token(self) -> str:
        digest = hashlib.sha256(self.network.config.model_dump_json().encode())
        for value in self.network.state_dict().values():
            digest.update(value.detach().cpu().numpy().tobytes())
        # a guide is a run's own
        own = str(self.context.folder) if isinstance(self.network, GuidedNetwork) else ""
        return digest.hexdigest() + self._image_token + own

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
                for index, probability in self.carried(gap):
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

    def _seen(self, slot: Slot, plane: Tensor, *, guided: bool = True) -> Tensor:
        """Return what the network sees of a slice: intensities, and with a guide the distances of pseudo-labels."""
        if not isinstance(self.network, GuidedNetwork):
            return plane
        if not guided:
            return torch.cat([plane, plane.new_zeros(self._classes, *plane.shape[1:])])
        if self.config.guide == "refined":
            labels = refined_store(self.context, slot.volume).read(slot.index)
        else:
            labels = self.context.read_accepted(slot.volume, slot.index)
        return torch.cat([plane, torch.from_numpy(guide_distances(labels, self._classes))])

    def _done(self) -> frozenset[Slot]:
        return frozenset(Slot(name, index) for name in self.context.volumes for index in self.context.done(name))

    def _fill(self, done: frozenset[Slot]) -> Iterator[Event]:
        for slot in self._known.human_slots():
            if slot not in done:
                yield self._write(slot, without_unknown(self._with_unknown(slot)).cpu().numpy())
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
        for index, carried in self.carried(gap):
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
        self.network.eval()
        self._token = self._network_token()
        self._residual = residual if isinstance(residual, float) else self._measure_residual()

    def _train(self, stage: str, steps: int) -> Iterator[Event]:
        runs = self._runs() if steps else []
        if runs:
            yield from told(self.context, self._steps(runs, steps), steps, stage)

    def _steps(self, runs: Sequence[Tensor], steps: int) -> Iterator[Tensor]:
        """Take steps of training, yielding the loss after each."""
        chains = min(len(run) for run in runs) > 2 * self.config.gap_low
        optimizer = torch.optim.AdamW(
            self.network.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        self.network.train()
        for number in range(1, steps + 1):
            slices, seen = self._crops(runs, 3 if chains and self._draws(self.config.sampling * number / steps) else 2)
            loss = reconstruction_loss(self.network, slices, seen)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            optimizer.step()
            yield loss.detach()

    def _draws(self, share: float) -> bool:
        return share > 0 and self.rng.random() < share

    def _runs(self) -> list[Tensor]:
        """Return some runs of consecutive slices, (n, c, h, w), as many as a fixed memory holds."""
        context, rng = self.context, self.rng
        length = 1 + self.config.gap_high
        starts = [
            (name, start, min(start + length, piece.slices.stop))
            for name in context.volumes
            for piece in context.pieces(name)
            for start in range(piece.slices.start, max(piece.slices.start + 1, piece.slices.stop - length + 1))
        ]
        budget = self.config.cache_mb * 2**20
        runs = []
        for number in rng.permutation(len(starts)):
            name, start, stop = starts[number]
            if stop - start <= self.config.gap_low:
                continue
            slots = [Slot(name, index) for index in range(start, stop)]
            run = torch.stack([self._seen(slot, self._plane(slot)) for slot in slots])
            budget -= run.nbytes
            runs.append(run)
            if budget < run.nbytes or len(runs) == _RUNS:
                break
        return runs

    def _crops(self, runs: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor]:
        """Return the same crop of `count` slices one behind the other, and what the network sees of them."""
        rng, config = self.rng, self.config
        stride = self.network.config.stride
        smallest = [min(run.shape[axis] for run in runs) for axis in (-2, -1)]
        size = [max(stride, min(config.crop_px, n) // stride * stride) for n in smallest]
        batch = []
        for _ in range(config.batch):
            run = runs[int(rng.integers(len(runs)))]
            places = self._places(len(run), count)
            y, x = (int(rng.integers(run.shape[axis] - n + 1)) for axis, n in zip((-2, -1), size, strict=True))
            crops = run[places, :, y : y + size[0], x : x + size[1]]
            turns, mirrored = int(rng.integers(4)) if size[0] == size[1] else 0, bool(rng.integers(2))
            batch.append(torch.rot90(crops.flip(-1) if mirrored else crops, turns, (-2, -1)))
        both = torch.stack([padded_to(crops, stride) for crops in batch])
        channels = self.network.config.image_channels
        slices, guides = both[:, :, :channels], both[:, :, channels:]
        seen = slices
        if config.contrast == "on":
            gamma, gain = (
                torch.from_numpy(rng.uniform(low, high, (config.batch, count, 1, 1, 1)).astype(np.float32))
                for low, high in ((0.7, 1.4), (0.8, 1.2))
            )
            seen = gain * slices.clamp_min(1e-3) ** gamma
        if guides.shape[2]:
            seen = without_some_guides(torch.cat([seen, guides], 2), channels, config.guide_dropout, rng)
        device = self.context.device
        return on_device(slices, device), on_device(seen, device)

    def _places(self, length: int, count: int) -> list[int]:
        """Return places in a run of slices, one behind the other in either direction, as far apart as in training."""
        rng, low, high = self.rng, self.config.gap_low, self.config.gap_high
        gaps: list[int] = []
        for later in reversed(range(count - 1)):
            gaps.append(int(rng.integers(low, min(high, length - 1 - sum(gaps) - low * later) + 1)))
        first = int(rng.integers(length - sum(gaps)))
        places = [first + sum(gaps[:number]) for number in range(count)]
        return places if rng.random() < 0.5 else places[::-1]

    # -- carrying labels ----------------------------------------------------------------------------------------------

    def carried(self, gap: Gap) -> Iterator[tuple[int, "NDArray[np.float32] | None"]]:
        """Yield the class probabilities of the slices of a gap; None for one that is only on its way."""
        lower, upper = gap.lower, gap.upper
        if lower is None or upper is None:
            start, indices = (upper, reversed(gap.slices)) if lower is None else (lower, iter(gap.slices))
            assert start is not None
            for index, carried in self._chain(gap.volume, start, indices):
                yield index, carried.explained().cpu().numpy()
        elif self.config.sides == "nearest":
            middle = (lower + upper) / 2
            for end, near in (
                (lower, [index for index in gap.slices if index <= middle]),
                (upper, [index for index in reversed(gap.slices) if index > middle]),
            ):
                for index, carried in self._chain(gap.volume, end, iter(near)):
                    yield index, carried.explained().cpu().numpy()
        else:
            yield from self._from_both(gap, lower, upper)

    def _from_both(self, gap: Gap, lower: int, upper: int) -> Iterator[tuple[int, "NDArray[np.float32] | None"]]:
        height, width = self.context.volume(gap.volume).plane_shape(self.context.axis)
        ways = (
            (lower, upper, [*gap.slices, upper]),
            (upper, lower, [*reversed(gap.slices), lower]),
        )
        count, planes = len(gap.slices), 5 + self._classes
        arrived: list[Tensor] = []
        lost: list[float] = []
        with ExitStack() as stack:
            # one gap's labels from either side: on disk where it is long
            kept = [
                stack.enter_context(Scratch(path, (count, planes, height, width), np.uint8, most_in_memory=_GAP_BYTES))
                for path in (self.context.folder / f".flow.{gap.volume}.{end}.part.zarr" for end in ("lower", "upper"))
            ]
            for scratch, (start, end, indices) in zip(kept, ways, strict=True):
                for index, carried in self._chain(gap.volume, start, iter(indices)):
                    if index == end:
                        lost.append(self._lost(carried, Slot(gap.volume, end)))
                        arrived.append(carried.origin)
                    else:
                        scratch.write(index - gap.slices.start, carried.packed())
                    yield index, None
            ends = (Slot(gap.volume, lower), Slot(gap.volume, upper))
            shapes = [self._distances(end) for end in ends] if self.config.shapes else None
            for slot in self.context.in_view_first(Slot(gap.volume, index) for index in gap.slices):
                below, above = (
                    Carried.unpacked(scratch.read(slot.index - gap.slices.start), self.context.device)
                    for scratch in kept
                )
                way = (slot.index - lower) / (upper - lower)
                found = mixed(below, above, arrived, share_of_upper(way, lost[0], lost[1]))
                if shapes is not None:
                    # a logit per pixel from the border
                    interpolated = torch.lerp(shapes[0], shapes[1], way).softmax(0)
                    found = torch.lerp(found, interpolated, self.config.shapes)
                yield slot.index, found.cpu().numpy()

    def _lost(self, carried: Carried, end: Slot) -> float:
        """Return how far what a chain carried to an annotated slice is from it: 1 less the mean Dice."""
        target = self._known.human(end)
        known = target != IGNORE
        dice = true_dice(carried.explained().argmax(0).cpu().numpy()[known], target[known])
        return _LEAST_LOSS if dice is None else max(1 - dice, _LEAST_LOSS)

    def _chain(self, volume: str, start: int, indices: Iterator[int]) -> Iterator[tuple[int, Carried]]:
        """Yield what is carried to slice by slice away from an annotated one."""
        anchor = Slot(volume, start)
        painted, before = self._with_unknown(anchor), self._plane(anchor)
        h, w = painted.shape[1:]
        count = len(painted)
        last = Carried.start(painted)
        first = self._remembered(self._encoded(anchor, before), last, before)
        recent: deque[tuple[Tensor, Tensor]] = deque([first], maxlen=max(1, self.config.references))
        permanent = [first] if self.config.anchor == "on" or not self.config.references else []
        mask, skipped = painted[:-1].argmax(0).cpu().numpy(), 0
        for index in indices:
            slot = Slot(volume, index)
            plane = self._plane(slot)
            memory = [*permanent, *(recent if self.config.references else ())]
            with torch.inference_mode():
                query = self._encoded(slot, plane)
                aligned = [self._aligned(query, *remembered) for remembered in memory]
                keys, values = (torch.stack(parts)[None] for parts in zip(*aligned, strict=True))
                carried = self.network.attend(query[None], keys, values)[0, :, :h, :w]
                strange = self._unexplained(carried[count + 3 :], plane)
                # what is carried from a place that nothing explained is not explained either
                doubt = torch.maximum(strange, KEPT_DOUBT * carried[count])
                found = self._decided(carried[:count])
            if self.config.damaged == "skip" and float(strange.mean()) > _DAMAGED and skipped < _MOST_SKIPPED:
                skipped += 1
                yield index, last._replace(doubt=torch.ones_like(last.doubt))
                continue
            skipped = 0
            if self.config.verify == "on":
                found, mask = self._verified(found, plane, before, mask)
                before = plane
            last = Carried(found, doubt, carried[count + 1 : count + 3])
            recent.append(self._remembered(query, last, plane))
            yield index, last

    def _aligned(self, query: Tensor, features: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and values of a slice rolled to where a slice lies that was cut or scanned elsewhere."""
        if self.config.align == "off":
            return features, values
        row, column = misalignment(query, features)
        if not row and not column:
            return features, values
        stride = self.network.config.stride
        return features.roll((row, column), (-2, -1)), values.roll((row * stride, column * stride), (-2, -1))

    def _remembered(self, features: Tensor, carried: Carried, plane: Tensor) -> tuple[Tensor, Tensor]:
        """Return features, and what is carried above intensities, of a slice that others take them from."""
        both = torch.cat([carried.planes(), plane.to(self.context.device)])
        return features, padded_to(both, self.network.config.stride)

    def _unexplained(self, carried: Tensor, plane: Tensor) -> Tensor:
        """Return from 0 to 1 how far the intensities (c, h, w) carried to a slice are from its own, (h, w)."""
        error = (carried - plane.to(carried)).abs().mean(0, keepdim=True)
        error = functional.avg_pool2d(error[None], 5, 1, 2, count_include_pad=False)[0, 0]
        return ((error / self._residual - _USUAL) / (_STRANGE - _USUAL)).clamp(0, 1)

    def _decided(self, carried: Tensor) -> Tensor:
        """Return probabilities that sum to 1, sharpened a little or down to decisions."""
        if self.config.masks == "hard":
            return _one_hot(carried.argmax(0), len(carried))
        sharp = carried.clamp(min=0) ** (1 / self.config.sharpen)
        return sharp / sharp.sum(0, keepdim=True).clamp(min=1e-6)

    def _verified(
        self, found: Tensor, plane: Tensor, before: Tensor, mask: "NDArray[np.integer]"
    ) -> tuple[Tensor, "NDArray[np.integer]"]:
        """Return labels checked by intensity against the slice before, and the mask of the next check."""
        decided = found.argmax(0).cpu().numpy()
        checked = verified(decided, mask, plane.numpy(), before.numpy(), self._classes)
        return _one_hot(torch.from_numpy(checked).to(found.device), len(found)), checked

    def _distances(self, slot: Slot) -> Tensor:
        """Return signed distances of the channels in an annotated slice (channels, h, w), in pixels."""
        spacing = dict(zip(AXES, self.context.volume(slot.volume).voxel_size, strict=True))
        del spacing[self.context.axis]
        height, width = spacing.values()
        pixel = (height + width) / 2
        target = self._known.human(slot)
        labels = np.where(target == IGNORE, np.uint8(0), target)
        found = class_distances(labels, range(1, 1 + self._classes), (height, width), radius=LABEL_RADIUS_PX * pixel)
        return torch.from_numpy(found / np.float32(pixel)).to(self.context.device)

    # -- held-out slices ----------------------------------------------------------------------------------------------

    def _calibrate(self) -> Iterator[Event]:
        """Carry labels to annotated slices from those around them, and measure how sure one may be."""
        if self.config.calibrate == "off":
            return
        found: list[HeldOut] = []
        for event in self.to_held_out():
            if isinstance(event, Progress):
                yield event
                continue
            slot, probability = event
            target = self._known.human(slot)
            known = target != IGNORE
            distance = self._known.held_out_distance(slot, (slot,))
            found.append(HeldOut(probability[:, known], target[known], distance))
        if found and not self.context.stop():
            self.calibration = calibrate(found, self._usual_area, final=True)
            yield Metric("temperature", self.calibration.temperature, 0)
            yield Metric("held_out_dice", mean_dice(found), 0)

    def to_held_out(self) -> Iterator[Progress | tuple[Slot, "NDArray[np.float32]"]]:
        """Carry labels to some annotated slices from those on both sides of each; yield these with probabilities."""
        chosen = _some(
            [
                Gap(name, range(lower + 1, upper), lower, upper)
                for name in self.context.volumes
                for piece in self.context.pieces(name)
                for lower, upper in _around_one(piece)
            ]
        )
        for number, gap in enumerate(chosen, 1):
            held_out = next(i for i in self.context.annotated(gap.volume) if i in gap.slices)
            for index, probability in self.carried(gap):
                if index == held_out and probability is not None:
                    yield Slot(gap.volume, index), probability
                if probability is None or self.config.sides == "nearest":
                    yield Progress("calibrate", number, len(chosen), self.name(gap, index))
                if self.context.stop():
                    return

    # -- reading ------------------------------------------------------------------------------------------------------

    def _plane(self, slot: Slot) -> Tensor:
        """Return intensities (c, h, w) from 0 to 1 over the robust range of the volume."""
        volume = self.context.volume(slot.volume)
        planes = PlaneReader(volume, self.context.axis, self._plain).read_whole(slot.index).astype(np.float32)
        scale = volume.intensity()
        low, high, mean, std = (
            np.asarray(values, np.float32)[:, None, None] for values in (scale.low, scale.high, scale.mean, scale.std)
        )
        return torch.from_numpy((planes * std + mean - low) / (high - low))

    def _encoded(self, slot: Slot, plane: Tensor) -> Tensor:
        """Return the features of a slice, (64 or 128, h / stride, w / stride); the last ones stay in memory."""
        key = (self._token, self.context.axis, slot.volume, slot.index)
        if key not in _FEATURES:
            with torch.inference_mode():
                seen = self._seen(slot, plane, guided=self.config.guide_carry == "on")
                padded = padded_to(seen, self.network.config.stride)
                _FEATURES[key] = _encoded_in_tiles(self.network, padded.to(self.context.device))
                total = sum(features.nbytes for features in _FEATURES.values())
                while total > self.config.cache_mb * 2**20 and len(_FEATURES) > 1:
                    total -= _FEATURES.popitem(last=False)[1].nbytes
        _FEATURES.move_to_end(key)
        return _FEATURES[key].float()

    def _measure_residual(self) -> float:
        """Return how far intensities carried from a neighbour usually are from a slice's own, the median of some."""
        found = []
        for name in self.context.volumes:
            for piece in self.context.pieces(name):
                pairs = piece.slices[:-1]
                for index in pairs[:: max(1, -(-len(pairs) // _MOST_MEASURED))]:
                    slots = Slot(name, index), Slot(name, index + 1)
                    here, there = (self._plane(slot) for slot in slots)
                    keys, query = (self._encoded(slot, plane) for slot, plane in zip(slots, (here, there), strict=True))
                    values = padded_to(here.to(self.context.device), self.network.config.stride)
                    with torch.inference_mode():
                        made = self.network.attend(query[None], keys[None, None], values[None, None])[0]
                    made = made[:, : here.shape[1], : here.shape[2]]
                    found.append(float((made - there.to(made)).abs().mean()))
        return max(float(np.median(found)) if found else 0.0, _LEAST_RESIDUAL)

    def _with_unknown(self, slot: Slot) -> Tensor:
        """Return what a human painted in a slice, one plane per channel and a last one for what is not known."""
        target = self._known.human(slot)
        channels = np.where(target == IGNORE, np.uint8(1 + self._classes), target)
        return _one_hot(torch.from_numpy(channels).to(self.context.device), 2 + self._classes)


def _one_hot(channels: Tensor, count: int) -> Tensor:
    """Return a plane for each of `count` channels, (count, h, w), 1 where it is that of a pixel and 0 elsewhere."""
    return (torch.arange(count, device=channels.device)[:, None, None] == channels).float()


def _same(gap: Gap, before: Mapping[str, str], painted: Mapping[str, str]) -> bool:
    """Return whether the annotated slices around a gap are the same, and as they were."""
    names = [f"{gap.volume} {end}" for end in (gap.lower, gap.upper) if end is not None]
    inside = any(f"{gap.volume} {index}" in before for index in gap.slices)
    return not inside and all(before.get(name) == painted[name] for name in names)


def _encoded_in_tiles(network: CorrespondenceNetwork, plane: Tensor) -> Tensor:
    """Return the features of a slice (c, h, w) as float16, large ones in bands of rows."""
    stride = network.config.stride
    h = plane.shape[-2]
    bands = []
    for top in range(0, h, _TILE_PX):
        bottom = min(h, top + _TILE_PX)
        above, below = max(0, top - _OVERLAP_PX), min(h, bottom + _OVERLAP_PX)
        found = network.features(plane[None, :, above:below])[0]
        bands.append(found[:, (top - above) // stride : (bottom - above) // stride].half())
    return torch.cat(bands, 1)


def _around_one(piece: Piece) -> list[tuple[int, int]]:
    """Return the annotated slices on both sides of each that has some on both."""
    return list(zip(piece.anchors, piece.anchors[2:], strict=False))


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
