"""What a run is going to do, before it does it: how many slices and steps, roughly how long, how much memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from napari_slicelabel.data.boxes import AXES, Axis
from napari_slicelabel.engine.config import MethodConfig
from napari_slicelabel.engine.methods.self_label import LEAST_FOR_CALIBRATION, SelfLabelConfig, front_rounds
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_slicelabel.data.project import Project

# Seconds for 1e6 pixels: on two CPU cores as measured with the default network, on a GPU as guessed. They only set the
# first guess, and each run corrects them with its own pace.
_TRAIN = {"cpu": 2.6, "cuda": 0.05}
_PREDICT = {"cpu": 0.9, "cuda": 0.03}
_INTERPOLATE = 0.25
_FIXED_S = 2.0
_MB = 2**20


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The size of a run.

    Attributes
    ----------
    axis : {"z", "y", "x"}
        The slices are perpendicular to it.
    slices : int
        How many are filled, annotated ones included.
    annotated : int
        How many of them a human painted or completed.
    rounds : int
        How often the method learns from its own labels.
    steps : int
        Training steps, over all stages.
    predictions : int
        Slices that are predicted; one that is predicted twice counts twice.
    seconds : float
        A guess.
    memory_bytes : int
        A guess at what the run needs, on the device and off it.
    problem : str
        Why it cannot run yet; empty when it can.
    """

    axis: Axis = "z"
    slices: int = 0
    annotated: int = 0
    rounds: int = 0
    steps: int = 0
    predictions: int = 0
    seconds: float = 0.0
    memory_bytes: int = 0
    problem: str = ""


def plan(project: "Project", config: MethodConfig) -> RunPlan:
    """Return what `run` would do with this config now. Reads no image and writes nothing.

    Parameters
    ----------
    project : Project
        Its annotation decides how far the fronts have to go.
    config : MethodConfig
        What to do.

    Returns
    -------
    RunPlan
        With `problem` set where the run would refuse.
    """
    names = [name.strip() for name in config.volumes.split(",")] if config.volumes != "all" else list(project.names)
    if not set(names) <= set(project.names):
        return RunPlan(problem=f"volumes: this project has {', '.join(project.names)}")
    counts = {axis: sum(len(project.annotation(name).annotated(axis)) for name in names) for axis in AXES}
    axis: Axis = config.axis if config.axis != "auto" else max(AXES, key=lambda a: counts[a])
    if not counts[axis]:
        return RunPlan(axis, problem="Paint at least one slice first.")
    slices = annotated = steps = predictions = rounds = 0
    pixels = 0.0
    for name in names:
        shape = project.record(name).shape
        try:
            start, stop = config.bounds(shape[AXES.index(axis)])
        except InputError as error:
            return RunPlan(axis, problem=str(error))
        inside = [index for index in project.annotation(name).annotated(axis) if start <= index < stop]
        slices, annotated = slices + stop - start, annotated + len(inside)
        pixels = max(pixels, shape[0] * shape[1] * shape[2] / shape[AXES.index(axis)])
        if isinstance(config, SelfLabelConfig):
            reached = _fronts(inside, range(start, stop), config)
            rounds = max(rounds, len(reached))
            predictions += _predictions(reached, config) + stop - start
    if not annotated:
        return RunPlan(axis, slices, problem=f"No painted slice lies in the range {config.range}.")
    if not isinstance(config, SelfLabelConfig):
        seconds = _FIXED_S + slices * pixels / 1e6 * _INTERPOLATE * (1 + len(project.classes))
        return RunPlan(axis, slices, annotated, 0, 0, slices, seconds, int(200 * _MB + 60 * pixels))
    steps = config.iterations + rounds * config.round_iterations
    if config.calibrate == "auto" and annotated >= LEAST_FOR_CALIBRATION:
        steps += 2 * config.fold_iterations
        predictions += annotated
    device = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    batch_pixels = config.batch * min(config.crop_px**2, pixels)
    wide = (config.width / 16) ** 2
    seconds = _FIXED_S + wide * (
        steps * batch_pixels / 1e6 * _TRAIN[device] + predictions * pixels / 1e6 * _PREDICT[device]
    )
    memory = 400 * _MB + min(config.pool_mb * _MB, (annotated + slices) * pixels * 12) + batch_pixels * wide * 2000
    return RunPlan(axis, slices, annotated, rounds, steps, predictions, seconds, int(memory))


def _fronts(annotated: "Sequence[int]", span: range, config: SelfLabelConfig) -> tuple[tuple[int, ...], ...]:
    if not annotated or not (config.rounds or config.step):
        return ()
    return front_rounds(annotated, span, config.rounds, config.step)


def _predictions(rounds: "Sequence[Sequence[int]]", config: SelfLabelConfig) -> int:
    if not config.refresh:
        return sum(map(len, rounds))
    return sum(len(slices) * (len(rounds) - number) for number, slices in enumerate(rounds))
