"""What a run is going to do, before it does it: how many slices and steps, roughly how long, how much memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from napari_slicelabel.data.boxes import AXES, Axis
from napari_slicelabel.engine.config import MethodConfig
from napari_slicelabel.engine.devices import on_gpu
from napari_slicelabel.engine.fit import working_dtype
from napari_slicelabel.engine.methods import method_of
from napari_slicelabel.engine.pieces import pieces
from napari_slicelabel.engine.work import Stack, Work
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from napari_slicelabel.data.project import Project

_NOTHING = Work(rounds=0, steps=0, predictions=0, step_s=0.0, prediction_s=0.0, memory_bytes=0)


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
    work : Work
        How much that is.
    problem : str
        Why it cannot run yet; empty when it can.
    """

    axis: Axis = "z"
    slices: int = 0
    annotated: int = 0
    work: Work = _NOTHING
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
    depth = {name: project.record(name).shape[AXES.index(axis)] for name in names}
    try:
        stops = config.stop_slices(max(depth.values()))
        stacks = [_stack(project, name, axis, range(*config.bounds(depth[name])), stops) for name in names]
    except InputError as error:
        return RunPlan(axis, problem=str(error))
    slices, annotated = (sum(numbers) for numbers in zip(*((s.slices, s.annotated) for s in stacks), strict=True))
    if not annotated:
        return RunPlan(axis, slices, problem=f"No painted slice lies in the range {config.range}.")
    work = method_of(config).work(stacks, len(project.classes), config)
    if work.steps and on_gpu(config.device):
        work = work.on_gpu()
    elif work.steps and working_dtype(torch.device("cpu")) == torch.float32:
        work = work.in_float32()
    return RunPlan(axis, slices, annotated, work)


def _stack(project: "Project", name: str, axis: Axis, span: range, stops: tuple[int, ...]) -> Stack:
    shape = project.record(name).shape
    found = pieces(span, project.annotation(name).annotated(axis), stops)
    slices = sum(len(piece.slices) for piece in found) if found else len(span)
    return Stack(found, slices, shape[0] * shape[1] * shape[2] // shape[AXES.index(axis)])
