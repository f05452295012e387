"""Correspondence flow (S4) as a second opinion beside what a network says.

A network and flow err in different places. Annotated slices that were held out of both say how much each should count,
or, where there are too few, labels that flow carries away and back; then it labels everything once, and its labels are
added to those of the network. Where too few slices are annotated to hold any out the network learns from them, too.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import JsonValue

from napari_slicelabel.data.boxes import Box
from napari_slicelabel.engine.confidence import (
    Calibration,
    HeldOut,
    Labelled,
    calibrate,
    fit_share,
    mean_dice,
    pooled,
)
from napari_slicelabel.engine.context import Slot
from napari_slicelabel.engine.events import Event, Metric, Progress, SliceDone
from napari_slicelabel.engine.flow import Flow
from napari_slicelabel.engine.flow import work as flow_work
from napari_slicelabel.engine.flow_carrier import gaps
from napari_slicelabel.engine.flow_config import FlowConfig, FlowShareConfig
from napari_slicelabel.engine.label_sets import LabelSets
from napari_slicelabel.engine.predict import Band
from napari_slicelabel.engine.work import Stack, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.engine.context import RunContext
    from napari_slicelabel.engine.regions import Known

FLOW_SET = "flow"
"""The set of labels that correspondence flow carries, and their provenance where they are shown."""

_SECOND = "flow second"

MOST_SHARE = 0.65
"""Share that it has in the result at most.

The networks that label held-out slices trained for less long than the one that labels everything, and these slices lie
further from annotated ones than any other: what they say of flow beside a network that knows nothing yet is too much.
"""

# Where the Dice of the network on held-out slices is as high as the first, and that of flow less than the second times
# as high, flow counts for little, the third: likelihood alone would let it count for more, since it asks how sure they
# are as well as what they say. Next to an annotated slice it may count for the fourth all the same.
_KNOWS, _WORSE, _LITTLE, _NEXT_TO = 0.3, 0.5, 0.15, 0.5
# Where no slice is held out of flow: its share is so many times the Dice with which labels return, and none below that.
_PER_RETURN, _LEAST_SHARE = 2.0, 0.1

_CACHE_MB, _STREAM = 256, 1


def flow_config(config: FlowShareConfig) -> FlowConfig:
    """Return how correspondence flow carries labels for a run of another method."""
    names = ("axis", "range", "stops", "volumes", "seed", "device")
    settings = {name: getattr(config, name) for name in names}
    return FlowConfig(**settings, iterations=config.flow_iterations, cache_mb=_CACHE_MB)


def and_flow(learning: Work, stacks: Sequence[Stack], classes: int, config: FlowShareConfig) -> Work:
    """Return what there is to do besides learning: at most, since flow labels nothing where it does not count."""
    annotated = sum(stack.annotated for stack in stacks)
    if config.flow == "off" or config.calibrate == "off":
        return learning
    carrying = flow_work(stacks, classes, flow_config(config))
    # annotated slices are not carried to
    return learning.and_then(replace(carrying, predictions=carrying.predictions - annotated))


class FlowShare:
    """How much flow counts in a run of another method, and what it says.

    Parameters
    ----------
    context : RunContext
        The run.
    config : FlowShareConfig
        Its parameters.
    known : Known
        What is labelled.

    Attributes
    ----------
    share : float
        0 = not at all. Set by `calibrated` or `assumed`, or to that of a run that goes on.
    next_to : float
        The share in slices that lie next to an annotated one.
    teaches : bool
        Whether what it carries is a pseudo-label to begin with, too: where no slice could be held out of it.

    Notes
    -----
    What flow carries lies in the run's folder until `remove`: of each pixel the label in the set `FLOW_SET`, and the
    next best one in another. With the first alone a pool cannot tell which of the others flow would rather have.
    """

    def __init__(self, context: "RunContext", config: FlowShareConfig, known: "Known") -> None:
        self.share, self.next_to, self.teaches = 0.0, 0.0, False
        self._context, self._config, self._known = context, config, known
        self._sets = LabelSets(context)
        self._flow: Flow | None = None

    def state(self) -> dict[str, JsonValue]:
        """Return what a resumed run must know, as JSON."""
        return {"flow_share": self.share, "flow_next_to": self.next_to, "flow_teaches": self.teaches}

    def load_state(self, state: Mapping[str, JsonValue]) -> None:
        """Go on as `state` says."""
        self.share = float(state["flow_share"])  # type: ignore[arg-type]
        self.next_to = float(state.get("flow_next_to", self.share))  # type: ignore[arg-type]
        self.teaches = bool(state.get("flow_teaches"))

    def calibrated(
        self, found: Mapping[Slot, HeldOut], alone: Calibration, usual_area: float
    ) -> Generator[Event, None, Calibration]:
        """Find out how much flow should count, and return the calibration of the two together.

        Parameters
        ----------
        found : mapping of Slot to HeldOut
            What networks that never saw these slices say of them, at the pixels of `Known.sample`.
        alone : Calibration
            That of the network alone.
        usual_area : float
            As for `confidence.expected_dice`.

        Yields
        ------
        Event
            `Progress`; `Metric` ("flow_share", "held_out_dice_network", "held_out_dice_flow", "held_out_dice_both";
            then "temperature" and "held_out_dice" of what labels).
        """
        judged, calibration = list(found.values()), alone
        if self._config.flow == "auto":
            both = yield from self._weighed(found)
            if both:
                # two opinions where there is one alone: labels are better than either of them is sure of
                judged, calibration = both, calibrate(both, usual_area, final=True)
        if not self._context.stop():
            yield Metric("temperature", calibration.temperature, 0)
            yield Metric("held_out_dice", mean_dice(judged), 0)
        return calibration

    def assumed(self) -> Iterator[Event]:
        """Find out how much flow should count where there are too few annotated slices to hold any out.

        Yields
        ------
        Event
            `Progress`; `Metric` ("flow_share", "flow_return").
        """
        if self._config.flow == "auto" and self._config.calibrate == "auto":
            self._flow = yield from self._learned()
            if not self._context.stop():
                yield from self._returned(self._flow)

    def carried(self, digest: str, write: Callable[[Slot, Labelled, str], SliceDone] | None) -> Iterator[Event]:
        """Have flow label everything, unless it does not count, or has done so from the same annotation.

        Parameters
        ----------
        digest : str
            Of the annotation.
        write : callable, optional
            Writes a slice, with its provenance: what flow says is the first that is seen of it, and learned from if it
            `teaches`; if not, and it counts for little, it is not shown. Not where something is labelled already, whose
            place it must not take.
        """
        flow, self._flow = self._flow, None
        if self.share <= _LITTLE and not self.teaches:
            write = None
        if not self.next_to or all(self._sets.is_finished(name, digest) for name in (FLOW_SET, _SECOND)):
            return
        flow = flow or (yield from self._learned())
        if self._context.stop():
            return
        count = sum(len(gap.slices) for name in self._context.volumes for gap in gaps(self._context, name))
        done = 0
        for gap in flow.gaps_to_fill():
            for index, probability in flow.carrier.carried(gap):
                if probability is not None:
                    labelled = flow.labelled(probability, 1.0)
                    self._sets.write(FLOW_SET, gap.volume, index, labelled)
                    self._sets.write(_SECOND, gap.volume, index, runner_up(probability, labelled))
                    if write is not None:
                        if self.teaches:
                            self._context.write_accepted(gap.volume, index, labelled.channels)
                        yield write(Slot(gap.volume, index), labelled, FLOW_SET)
                    done += 1
                yield Progress("carry", done, count, flow.name(gap, index))
                if self._context.stop():
                    return
        for name in (_SECOND, FLOW_SET):
            self._sets.finish(name, digest)

    def added(self, bands: Iterable[Band], slot: Slot) -> Iterator[Band]:
        """Yield the bands of a slice together with what flow carried to it, where it did."""
        share = self.next_to if self._known.distance(slot) == 1 else self.share
        if not share:
            yield from bands
            return
        width = self._context.volume(slot.volume).plane_shape(self._context.axis)[1]
        for rows, probability in bands:
            box = Box((slot.index, rows.start, 0), (slot.index + 1, rows.stop, width))
            labels, sure = (
                read([FLOW_SET, _SECOND], slot.volume, box)[:, 0] for read in (self._sets.labels, self._sets.confidence)
            )
            carried = from_two(labels, sure, len(probability))
            yield Band(rows, np.where(sure[0] > 0, pooled(probability, carried, share), probability))

    def remove(self) -> None:
        """Remove what flow carried from the disk, and with it all other sets of the run."""
        self._sets.remove()

    def _learned(self) -> Generator[Event, None, Flow]:
        """Return a flow that draws from a generator of its own: the network learns the same without it."""
        rng = np.random.default_rng((self._config.seed, _STREAM))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            flow = Flow(self._context, flow_config(self._config), rng)
        yield from flow.learn()
        return flow

    def _weighed(self, found: Mapping[Slot, HeldOut]) -> Generator[Event, None, list[HeldOut]]:
        """Let flow count as much as held-out slices say; return them as both label them, none where it does not."""
        self._flow = yield from self._learned()
        if self._context.stop():
            return []
        network: list[HeldOut] = []
        flow: list[HeldOut] = []
        for event in self._flow.to_held_out():
            if isinstance(event, Progress):
                yield event
                continue
            slot, probability = event
            if slot in found:
                picked = self._known.sample(slot, self._config.seed)
                network.append(found[slot])
                flow.append(found[slot]._replace(probability=probability[:, picked]))
        if self._context.stop():
            return []
        if not flow:
            # one annotated slice in each volume: none lies between others
            yield from self._returned(self._flow)
            return []
        self.share, self.next_to = shares(network, flow)
        both = together(network, flow, self.share)
        yield Metric("flow_share", self.share, 0)
        if self.next_to != self.share:
            yield Metric("flow_share_next_to", self.next_to, 0)
        yield Metric("held_out_dice_network", mean_dice(network), 0)
        yield Metric("held_out_dice_flow", mean_dice(flow), 0)
        yield Metric("held_out_dice_both", mean_dice(both), 0)
        # of other slices nothing is known that is labelled in this way
        return both if self.share else []

    def _returned(self, flow: Flow) -> Iterator[Event]:
        """Let flow count as much as labels return that it carries away and back."""
        returned = yield from flow.there_and_back()
        if self._context.stop():
            return
        dice = mean_dice(returned)
        share = min(MOST_SHARE, _PER_RETURN * dice)
        self.share = self.next_to = share if share >= _LEAST_SHARE else 0.0
        self.teaches = self.share > 0
        yield Metric("flow_share", self.share, 0)
        yield Metric("flow_return", dice, 0)


def together(network: Sequence[HeldOut], flow: Sequence[HeldOut], share: float) -> list[HeldOut]:
    """Return held-out slices as network and flow label them together, flow with a share of 0 to 1."""
    return [
        one._replace(probability=pooled(one.probability, other.probability, share))
        for one, other in zip(network, flow, strict=True)
    ]


def shares(network: Sequence[HeldOut], flow: Sequence[HeldOut]) -> tuple[float, float]:
    """Return how much flow should count, and how much next to an annotated slice, from slices held out of both.

    Parameters
    ----------
    network, flow : sequence of HeldOut
        What the two say of the same pixels of the same held-out slices.

    Returns
    -------
    tuple of float
        Both the likeliest share, see `fit_share`, but `MOST_SHARE` at most. Where flow labels far worse: a little, if
        the two together label better than the network, else 0; and next to an annotated slice one half, if flow is
        better there than the network. It loses about the same part of its labels at every slice, so that its Dice there
        is a root of what it is further away, while a network hardly knows of distances (docs/algorithms.md).
    """
    by_network, by_flow = mean_dice(network), mean_dice(flow)
    if by_network < _KNOWS or by_flow >= _WORSE * by_network:
        share = min(MOST_SHARE, fit_share(network, flow))
        return share, share
    share = _LITTLE if mean_dice(together(network, flow, _LITTLE)) > by_network else 0.0
    distance = float(np.mean([slice_.distance for slice_ in flow]))
    return share, _NEXT_TO if by_flow ** (1 / distance) > by_network else share


def runner_up(probability: "NDArray[np.float32]", best: Labelled) -> Labelled:
    """Return the second best channel of every pixel, with its probability in the place of the confidence.

    Parameters
    ----------
    probability : ndarray of shape (c, h, w), float32
        Of at least two channels.
    best : Labelled
        The best ones.
    """
    others = probability.copy()
    np.put_along_axis(others, best.channels[None].astype(np.intp), -1, 0)
    second = others.argmax(0)
    return Labelled(second.astype(np.uint8), np.take_along_axis(others, second[None], 0)[0], best.expected)


def from_two(labels: "NDArray[np.uint8]", sure: "NDArray[np.uint8]", channels: int) -> "NDArray[np.float32]":
    """Return probabilities from the two best labels of every pixel.

    Parameters
    ----------
    labels : ndarray of shape (2, h, w), uint8
        Channel numbers, the best first.
    sure : ndarray of shape (2, h, w), uint8
        Their probabilities times 255.
    channels : int
        Classes and background.

    Returns
    -------
    ndarray of shape (channels, h, w), float32
        What is missing to 1 is shared by the other channels.

    Examples
    --------
    >>> two = np.array([[[2]], [[0]]], np.uint8), np.array([[[153]], [[51]]], np.uint8)
    >>> (100 * from_two(*two, channels=4)[:, 0, 0]).round().tolist()
    [20.0, 10.0, 60.0, 10.0]
    """
    shares = sure.astype(np.float32) / 255
    rest = np.maximum(0, 1 - shares.sum(0)) / max(1, channels - 2)
    found = np.repeat(rest[None], channels, 0)
    # the best last: where nothing was written both are channel 0
    for channel, share in zip(labels[::-1], shares[::-1], strict=True):
        np.put_along_axis(found, channel[None].astype(np.intp), share[None], 0)
    return found
