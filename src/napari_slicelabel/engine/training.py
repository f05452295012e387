"""What methods that train a network do alike: how, for how long, on how many devices, and what is told of it."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, Protocol

from napari_slicelabel.engine import several_devices
from napari_slicelabel.engine.events import Event, Metric, Progress
from napari_slicelabel.engine.fit import Crops, FitConfig, NetworkT, Trainer, check_loss

if TYPE_CHECKING:
    from torch import Tensor

    from napari_slicelabel.engine.context import RunContext

_METRIC_EVERY = 10
_WARMUP = 0.15


class Learning(Protocol):
    """The parameters of a method that say how its network is trained."""

    @property
    def learning_rate(self) -> float:
        """Highest learning rate."""

    @property
    def weight_decay(self) -> float:
        """Of AdamW."""

    @property
    def schedule(self) -> Literal["cosine", "poly", "constant"]:
        """How the learning rate falls."""

    @property
    def ema(self) -> float:
        """Decay of the running mean of the weights."""

    @property
    def dice_weight(self) -> float:
        """Of soft Dice beside cross-entropy."""


def fit_config(config: Learning, steps: int, *, running_mean: bool = True) -> FitConfig:
    """Return how a network is trained in `steps`; without `running_mean` it predicts with the weights themselves."""
    return FitConfig(
        steps=steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        ema=config.ema if running_mean else 0.0,
        dice_weight=config.dice_weight,
        warmup=0.0 if config.schedule == "constant" else _WARMUP,
    )


def train(
    context: "RunContext", trainer: Trainer[NetworkT], pool: Crops, steps: int, stage: str, *, devices: int
) -> Iterator[Event]:
    """Train, until the run is to stop.

    Parameters
    ----------
    context : RunContext
        Of the run.
    trainer : Trainer
        What to train.
    pool : Crops
        What from.
    steps : int
        How long.
    stage : str
        What it is called in progress.
    devices : int
        1: in this process; more: see `several_devices.steps`.

    Yields
    ------
    Event
        Progress at every step, the loss at every tenth.
    """
    losses = _losses(context, trainer, pool, steps, devices)
    return told(context, losses, steps, stage, begun=trainer.step_number, waiting=f"{devices} processes")


def told(
    context: "RunContext",
    losses: "Iterable[Tensor | None]",
    steps: int,
    stage: str,
    *,
    begun: int = 0,
    waiting: str = "",
) -> Iterator[Event]:
    """Take steps of training, and tell of them, until the run is to stop.

    Parameters
    ----------
    context : RunContext
        Of the run.
    losses : iterable of Tensor or None
        Takes a step each time; None says that nothing has ended yet.
    steps : int
        How many there are.
    stage : str
        What it is called in progress.
    begun : int
        Steps that the network was trained before.
    waiting : str
        What is said while nothing ends.

    Yields
    ------
    Event
        As `train`.
    """
    number = 0
    for loss in losses:
        if loss is None:
            yield Progress(stage, number, steps, waiting)
        else:
            number += 1
            yield Progress(stage, number, steps)
            if number % _METRIC_EVERY == 0 or number == steps:
                yield Metric("loss", check_loss(float(loss)), begun + number)
        if context.stop():
            return


def _losses(
    context: "RunContext", trainer: Trainer[NetworkT], pool: Crops, steps: int, devices: int
) -> "Iterator[Tensor | None]":
    """Take the steps, here or on several devices; None says that nothing has ended yet."""
    if devices == 1:
        return trainer.steps(pool, steps)
    return several_devices.steps(trainer, pool, steps, devices=devices, rng=context.rng, folder=context.folder)
