"""Pseudo-labels of a run, refined by a 3D network that learns from all of them (S4, Sli2Vol+).

The errors of labels that were carried from slice to slice go in all directions; what a network can learn from them is
what they have in common. The paper trains UNETR++ for 1000 epochs; this is the compact network of the 3D methods.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.engine.confidence import Labelled
from napari_slicelabel.engine.context import Slot
from napari_slicelabel.engine.events import Event, Progress
from napari_slicelabel.engine.losses import IGNORE
from napari_slicelabel.engine.stores import SliceStore
from napari_slicelabel.engine.volume_learning import VolumeLearner, VolumeLearningConfig, voxel_seconds
from napari_slicelabel.engine.work import Stack

if TYPE_CHECKING:
    from typing import Literal

    from napari_slicelabel.engine.context import RunContext

STAGE = "refine"

# What a crop of one step and the blocks in memory take, as with the 3D methods.
_BYTES_PER_VOXEL, _BYTES_PER_STEP = 24, 1500
_MOST_CROP_PX = 128
# Half of what the 3D methods have: features of slices are in memory as well.
_POOL_MB = 512


def refinement_config(
    *, iterations: int, width: int, crop_px: int, seed: int, device: "Literal['auto', 'cpu', 'cuda']"
) -> VolumeLearningConfig:
    """Return how the network is trained.

    Crops are not mirrored, and the network sees where it is: what it is to refine is in the very volumes that it learns
    from, and of a left and a right structure only one may be labelled. A third of the crops lie around what a human
    painted: all the others are what is to be refined.
    """
    return VolumeLearningConfig(
        iterations=iterations,
        width=width,
        batch=2,
        crop_px=min(crop_px, _MOST_CROP_PX),
        shapes="off",
        coordinates="on",
        flips="off",
        human_share=0.33,
        pool_mb=_POOL_MB,
        calibrate="off",
        seed=seed,
        device=device,
    )


def refined_store(context: "RunContext", volume: str) -> SliceStore:
    """Return the refined pseudo-labels of a volume, as channel numbers; 255 = none.

    They are kept beside those that they were made of (`RunContext.write_accepted`): a run that is killed in between
    begins the refinement again, from the same labels.
    """
    return SliceStore(context.folder / "refined" / f"{volume}.zarr", context.volume(volume), context.axis, fill=IGNORE)


def refine(context: "RunContext", config: VolumeLearningConfig) -> Iterator[Event]:
    """Train a 3D network on the pseudo-labels of all volumes, and write what it says to `refined_store`.

    Parameters
    ----------
    context : RunContext
        The run; its pseudo-labels are those of `write_accepted`, as channel numbers.
    config : VolumeLearningConfig
        See `refinement_config`.

    Yields
    ------
    Event
        `Progress` and `Metric` ("loss") of the stage ``refine``.

    Raises
    ------
    InputError
        A class is painted in no annotated slice.
    DeviceError
        The GPU's memory is full even with one crop, or small tiles.
    StorageError
        Disk full, no permission.

    Notes
    -----
    What a human painted is true: in training wherever a crop shows it, and in the result. Memory does not grow with the
    volumes: blocks of them are learned from, tiles are predicted into a scratch array.
    """
    learner = VolumeLearner(context, config)
    with closing(learner):
        trainer = learner.trainer(config.iterations)
        yield from learner.train(trainer, learner.pool(pseudo=True), config.iterations, STAGE)
        if context.stop():
            return
        for name in context.volumes:
            store, slices = refined_store(context, name), context.slices(name)
            with closing(learner.predictor(trainer.predictor, name)) as predictor:
                for number, index in enumerate(slices, 1):
                    slot = Slot(name, index)
                    for found in learner.labelled(predictor, slot, STAGE):
                        if isinstance(found, Labelled):
                            human = learner.known.human(slot)
                            store.write(index, np.where(human == IGNORE, found.channels, human))
                        else:
                            yield found
                        if context.stop():
                            return
                    predictor.release(index)
                    yield Progress(STAGE, number, len(slices), f"{name} {context.axis}{index}")


def refinement_work(stacks: Sequence[Stack], config: VolumeLearningConfig) -> tuple[float, float, int]:
    """Return guesses at the seconds of a training step and of a slice, and at the bytes in memory."""
    pixels = max(stack.pixels for stack in stacks)
    crop = min(config.crop_px**2, pixels) * min(config.crop_depth, max(stack.slices for stack in stacks))
    train_s, predict_s = voxel_seconds(config)
    blocks = min(config.pool_mb * 2**20, sum(stack.slices for stack in stacks) * pixels * _BYTES_PER_VOXEL)
    memory = blocks + int(crop * (config.width / 16) * _BYTES_PER_STEP)
    return crop / 1e6 * train_s, pixels / 1e6 * predict_s, memory
