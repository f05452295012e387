"""Slices as correspondence flow sees them: intensities, pseudo-labels that guide, and features to compare."""

import hashlib
from collections import OrderedDict
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from napari_slicelabel.engine.context import Slot
from napari_slicelabel.engine.correspondence import CorrespondenceNetwork, padded_to
from napari_slicelabel.engine.guided import GuidedNetwork, guide_distances
from napari_slicelabel.engine.networks import NetworkConfig
from napari_slicelabel.engine.planes import PlaneReader
from napari_slicelabel.engine.refinement import refined_store

if TYPE_CHECKING:
    from napari_slicelabel.engine.context import RunContext
    from napari_slicelabel.engine.flow_config import FlowConfig

# Of the process, not of a run: a correction is answered in the time it takes to carry labels, not to encode slices.
_FEATURES: OrderedDict[tuple[str, str, str, int], Tensor] = OrderedDict()

_TILE_PX = 1024
_OVERLAP_PX = 32


class FlowSlices:
    """The slices of a run.

    Parameters
    ----------
    context : RunContext
        The run.
    config : FlowConfig
        Its parameters.
    """

    def __init__(self, context: "RunContext", config: "FlowConfig") -> None:
        self.context, self.config = context, config
        self._classes = len(context.class_ids)
        self._plain = NetworkConfig(image_channels=context.image_channels(), in_slices=1, classes=context.class_ids)

    @property
    def image_channels(self) -> int:
        """How many channels the images have."""
        return self._plain.image_channels

    def plane(self, slot: Slot) -> Tensor:
        """Return intensities (c, h, w), float32, from 0 to 1 over the robust range of the volume."""
        volume = self.context.volume(slot.volume)
        planes = PlaneReader(volume, self.context.axis, self._plain).read_whole(slot.index).astype(np.float32)
        scale = volume.intensity()
        low, high, mean, std = (
            np.asarray(values, np.float32)[:, None, None] for values in (scale.low, scale.high, scale.mean, scale.std)
        )
        return torch.from_numpy((planes * std + mean - low) / (high - low))

    def seen(self, slot: Slot, plane: Tensor, network: CorrespondenceNetwork, *, guided: bool = True) -> Tensor:
        """Return what a network sees of a slice: intensities, and with a guide the distances of pseudo-labels."""
        if not isinstance(network, GuidedNetwork):
            return plane
        if not guided:
            return torch.cat([plane, plane.new_zeros(self._classes, *plane.shape[1:])])
        if self.config.guide == "refined":
            labels = refined_store(self.context, slot.volume).read(slot.index)
        else:
            labels = self.context.read_accepted(slot.volume, slot.index)
        return torch.cat([plane, torch.from_numpy(guide_distances(labels, self._classes))])

    @cached_property
    def token(self) -> str:
        """A text that changes with the images: of the first, the middle and the last slice of each volume."""
        digest = hashlib.sha256()
        for name in self.context.volumes:
            indices = self.context.slices(name)
            for index in (indices[0], indices[len(indices) // 2], indices[-1]):
                digest.update(self.plane(Slot(name, index)).numpy().tobytes())
        return digest.hexdigest()


class SliceFeatures:
    """The features that a trained network has of slices; the last ones stay in memory.

    Parameters
    ----------
    slices : FlowSlices
        Of the run.
    network : CorrespondenceNetwork
        Not trained any more.
    """

    def __init__(self, slices: FlowSlices, network: CorrespondenceNetwork) -> None:
        self._slices, self._network = slices, network
        digest = hashlib.sha256(network.config.model_dump_json().encode())
        for value in network.state_dict().values():
            digest.update(value.detach().cpu().numpy().tobytes())
        # a guide is a run's own
        own = str(slices.context.folder) if isinstance(network, GuidedNetwork) else ""
        self._token = digest.hexdigest() + slices.token + own

    def of(self, slot: Slot, plane: Tensor) -> Tensor:
        """Return the features of a slice with intensities `plane`, (64 or 128, h / stride, w / stride)."""
        context, config = self._slices.context, self._slices.config
        key = (self._token, context.axis, slot.volume, slot.index)
        if key not in _FEATURES:
            with torch.inference_mode():
                seen = self._slices.seen(slot, plane, self._network, guided=config.guide_carry == "on")
                padded = padded_to(seen, self._network.config.stride)
                _FEATURES[key] = _encoded_in_tiles(self._network, padded.to(context.device))
                total = sum(features.nbytes for features in _FEATURES.values())
                while total > config.cache_mb * 2**20 and len(_FEATURES) > 1:
                    total -= _FEATURES.popitem(last=False)[1].nbytes
        _FEATURES.move_to_end(key)
        return _FEATURES[key].float()


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
