"""How labels get from annotated slices to those between them, slice by slice (S4)."""

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from napari_slicelabel.data.boxes import AXES
from napari_slicelabel.engine.carried import KEPT_DOUBT, Carried, mixed, share_of_upper, verified
from napari_slicelabel.engine.confidence import true_dice
from napari_slicelabel.engine.context import Slot
from napari_slicelabel.engine.correspondence import CorrespondenceNetwork, misalignment, padded_to
from napari_slicelabel.engine.flow_slices import FlowSlices, SliceFeatures
from napari_slicelabel.engine.interpolation import LABEL_RADIUS_PX, class_distances
from napari_slicelabel.engine.losses import IGNORE
from napari_slicelabel.engine.regions import Known
from napari_slicelabel.engine.scratch import Scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.engine.context import RunContext

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


class Gap(NamedTuple):
    """Slices to fill, and the annotated slices at their ends; None where the stack, or its piece, ends."""

    volume: str
    slices: range
    lower: int | None
    upper: int | None


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


class Carrier:
    """Carries labels through the gaps of a run by what a network says of its slices.

    Parameters
    ----------
    slices : FlowSlices
        Of the run.
    known : Known
        What is annotated.
    network : CorrespondenceNetwork
        Not trained any more.
    residual : float, optional
        How far intensities carried from a neighbour usually are from a slice's own; by default it is measured.

    Attributes
    ----------
    residual : float
        As given, or as measured.
    """

    def __init__(
        self, slices: FlowSlices, known: Known, network: CorrespondenceNetwork, residual: float | None = None
    ) -> None:
        self._slices, self._known, self._network = slices, known, network
        self._context, self._config = slices.context, slices.config
        self._classes = len(slices.context.class_ids)
        network.eval()
        self._features = SliceFeatures(slices, network)
        self.residual = self._measure_residual() if residual is None else residual

    def painted(self, slot: Slot) -> Tensor:
        """Return what a human painted in a slice, one plane per channel and a last one for what is not known."""
        target = self._known.human(slot)
        channels = np.where(target == IGNORE, np.uint8(1 + self._classes), target)
        return _one_hot(torch.from_numpy(channels).to(self._context.device), 2 + self._classes)

    def carried(self, gap: Gap) -> Iterator[tuple[int, "NDArray[np.float32] | None"]]:
        """Yield the class probabilities of the slices of a gap; None for one that is only on its way."""
        lower, upper = gap.lower, gap.upper
        if lower is None or upper is None:
            start, indices = (upper, reversed(gap.slices)) if lower is None else (lower, iter(gap.slices))
            assert start is not None
            for index, carried in self.chain(gap.volume, start, indices):
                yield index, carried.explained().cpu().numpy()
        elif self._config.sides == "nearest":
            middle = (lower + upper) / 2
            for end, near in (
                (lower, [index for index in gap.slices if index <= middle]),
                (upper, [index for index in reversed(gap.slices) if index > middle]),
            ):
                for index, carried in self.chain(gap.volume, end, iter(near)):
                    yield index, carried.explained().cpu().numpy()
        else:
            yield from self._from_both(gap, lower, upper)

    def _from_both(self, gap: Gap, lower: int, upper: int) -> Iterator[tuple[int, "NDArray[np.float32] | None"]]:
        height, width = self._context.volume(gap.volume).plane_shape(self._context.axis)
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
                for path in (self._context.folder / f".flow.{gap.volume}.{end}.part.zarr" for end in ("lower", "upper"))
            ]
            for scratch, (start, end, indices) in zip(kept, ways, strict=True):
                for index, carried in self.chain(gap.volume, start, iter(indices)):
                    if index == end:
                        lost.append(self._lost(carried, Slot(gap.volume, end)))
                        arrived.append(carried.origin)
                    else:
                        scratch.write(index - gap.slices.start, carried.packed())
                    yield index, None
            ends = (Slot(gap.volume, lower), Slot(gap.volume, upper))
            shapes = [self._distances(end) for end in ends] if self._config.shapes else None
            for slot in self._context.in_view_first(Slot(gap.volume, index) for index in gap.slices):
                below, above = (
                    Carried.unpacked(scratch.read(slot.index - gap.slices.start), self._context.device)
                    for scratch in kept
                )
                way = (slot.index - lower) / (upper - lower)
                found = mixed(below, above, arrived, share_of_upper(way, lost[0], lost[1]))
                if shapes is not None:
                    # a logit per pixel from the border
                    interpolated = torch.lerp(shapes[0], shapes[1], way).softmax(0)
                    found = torch.lerp(found, interpolated, self._config.shapes)
                yield slot.index, found.cpu().numpy()

    def _lost(self, carried: Carried, end: Slot) -> float:
        """Return how far what a chain carried to an annotated slice is from it: 1 less the mean Dice."""
        dice = self.dice(carried, end)
        return _LEAST_LOSS if dice is None else max(1 - dice, _LEAST_LOSS)

    def dice(self, carried: Carried, slot: Slot) -> float | None:
        """Return the mean Dice of what was carried to an annotated slice; None where there is no class in either."""
        target = self._known.human(slot)
        known = target != IGNORE
        return true_dice(carried.explained().argmax(0).cpu().numpy()[known], target[known])

    def chain(self, volume: str, start: int, indices: Iterator[int]) -> Iterator[tuple[int, Carried]]:
        """Yield what is carried from an annotated slice to one slice after the other, in the order of `indices`."""
        anchor = Slot(volume, start)
        painted, before = self.painted(anchor), self._slices.plane(anchor)
        h, w = painted.shape[1:]
        count = len(painted)
        last = Carried.start(painted)
        first = self._remembered(self._features.of(anchor, before), last, before)
        recent: deque[tuple[Tensor, Tensor]] = deque([first], maxlen=max(1, self._config.references))
        permanent = [first] if self._config.anchor == "on" or not self._config.references else []
        mask, skipped = painted[:-1].argmax(0).cpu().numpy(), 0
        for index in indices:
            slot = Slot(volume, index)
            plane = self._slices.plane(slot)
            memory = [*permanent, *(recent if self._config.references else ())]
            with torch.inference_mode():
                query = self._features.of(slot, plane)
                aligned = [self._aligned(query, *remembered) for remembered in memory]
                keys, values = (torch.stack(parts)[None] for parts in zip(*aligned, strict=True))
                carried = self._network.attend(query[None], keys, values)[0, :, :h, :w]
                strange = self._unexplained(carried[count + 3 :], plane)
                # what is carried from a place that nothing explained is not explained either
                doubt = torch.maximum(strange, KEPT_DOUBT * carried[count])
                found = self._decided(carried[:count])
            if self._config.damaged == "skip" and float(strange.mean()) > _DAMAGED and skipped < _MOST_SKIPPED:
                skipped += 1
                yield index, last._replace(doubt=torch.ones_like(last.doubt))
                continue
            skipped = 0
            if self._config.verify == "on":
                found, mask = self._verified(found, plane, before, mask)
                before = plane
            last = Carried(found, doubt, carried[count + 1 : count + 3])
            recent.append(self._remembered(query, last, plane))
            yield index, last

    def _aligned(self, query: Tensor, features: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and values of a slice rolled to where a slice lies that was cut or scanned elsewhere."""
        if self._config.align == "off":
            return features, values
        row, column = misalignment(query, features)
        if not row and not column:
            return features, values
        stride = self._network.config.stride
        return features.roll((row, column), (-2, -1)), values.roll((row * stride, column * stride), (-2, -1))

    def _remembered(self, features: Tensor, carried: Carried, plane: Tensor) -> tuple[Tensor, Tensor]:
        """Return features, and what is carried above intensities, of a slice that others take them from."""
        both = torch.cat([carried.planes(), plane.to(self._context.device)])
        return features, padded_to(both, self._network.config.stride)

    def _unexplained(self, carried: Tensor, plane: Tensor) -> Tensor:
        """Return from 0 to 1 how far the intensities (c, h, w) carried to a slice are from its own, (h, w)."""
        error = (carried - plane.to(carried)).abs().mean(0, keepdim=True)
        error = functional.avg_pool2d(error[None], 5, 1, 2, count_include_pad=False)[0, 0]
        return ((error / self.residual - _USUAL) / (_STRANGE - _USUAL)).clamp(0, 1)

    def _decided(self, carried: Tensor) -> Tensor:
        """Return probabilities that sum to 1, sharpened a little or down to decisions."""
        if self._config.masks == "hard":
            return _one_hot(carried.argmax(0), len(carried))
        sharp = carried.clamp(min=0) ** (1 / self._config.sharpen)
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
        spacing = dict(zip(AXES, self._context.volume(slot.volume).voxel_size, strict=True))
        del spacing[self._context.axis]
        height, width = spacing.values()
        pixel = (height + width) / 2
        target = self._known.human(slot)
        labels = np.where(target == IGNORE, np.uint8(0), target)
        found = class_distances(labels, range(1, 1 + self._classes), (height, width), radius=LABEL_RADIUS_PX * pixel)
        return torch.from_numpy(found / np.float32(pixel)).to(self._context.device)

    def _measure_residual(self) -> float:
        """Return how far intensities carried from a neighbour usually are from a slice's own, the median of some."""
        found = []
        for name in self._context.volumes:
            for piece in self._context.pieces(name):
                pairs = piece.slices[:-1]
                for index in pairs[:: max(1, -(-len(pairs) // _MOST_MEASURED))]:
                    slots = Slot(name, index), Slot(name, index + 1)
                    here, there = (self._slices.plane(slot) for slot in slots)
                    keys, query = (
                        self._features.of(slot, plane) for slot, plane in zip(slots, (here, there), strict=True)
                    )
                    values = padded_to(here.to(self._context.device), self._network.config.stride)
                    with torch.inference_mode():
                        made = self._network.attend(query[None], keys[None, None], values[None, None])[0]
                    made = made[:, : here.shape[1], : here.shape[2]]
                    found.append(float((made - there.to(made)).abs().mean()))
        return max(float(np.median(found)) if found else 0.0, _LEAST_RESIDUAL)


def _one_hot(channels: Tensor, count: int) -> Tensor:
    """Return a plane for each of `count` channels, (count, h, w), 1 where it is that of a pixel and 0 elsewhere."""
    return (torch.arange(count, device=channels.device)[:, None, None] == channels).float()
