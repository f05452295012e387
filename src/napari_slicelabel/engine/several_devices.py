"""Training a network on several devices at once: one process for each, gradients averaged, launched by Fabric."""

import os
import queue
import shutil
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, multiprocessing
from torch.nn.utils import parameters_to_vector

from napari_slicelabel.data.files import storage_errors
from napari_slicelabel.engine.fit import Crops, NetworkT, Trainer
from napari_slicelabel.errors import DeviceError, InputError, SliceLabelError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_LOOK_UP_S = 0.2
# the port where the processes meet; Fabric leaves it behind, and the next stage needs a free one
_PORT = "MASTER_PORT"


def check_devices(device: torch.device, count: int) -> None:
    """Raise an error where a network cannot be trained on so many devices.

    Raises
    ------
    InputError
        The package `lightning-fabric` is not installed.
    DeviceError
        There are fewer GPUs.
    """
    try:
        import lightning_fabric  # noqa: F401 - whether it is there
    except ImportError as error:
        raise InputError(
            f"devices={count} needs the package lightning-fabric; install it with: pip install"
            " 'napari-slicelabel[distributed]', or use devices=1"
        ) from error
    if device.type == "cuda" and torch.cuda.device_count() < count:
        raise DeviceError(
            f"devices={count}: torch sees {torch.cuda.device_count()} GPU(s) here; use at most as many devices"
        )


def steps(
    trainer: Trainer[NetworkT], pool: Crops, count: int, *, devices: int, rng: np.random.Generator, folder: Path
) -> Iterator[Tensor | None]:
    """Train for `count` steps on several devices; the trainer is then where it would be after as many steps alone.

    Parameters
    ----------
    trainer : Trainer
        What to train. It stays on its device, and gets weights, running mean and optimiser back at the end.
    pool : Crops
        Each process has a copy of it, and draws other crops.
    count : int
        Steps; in each of them every process learns from a batch of its own.
    devices : int
        Processes; each has a GPU of its own, or shares the CPU.
    rng : numpy.random.Generator
        What pool and loss draw from. One number is drawn from it here: all else follows from that.
    folder : Path
        Where a copy of pool and trainer may lie for the time of the training.

    Yields
    ------
    Tensor or None
        The loss of the first process after each step; None about five times a second while nothing ends. Who stops
        early leaves the trainer as it was.

    Raises
    ------
    InputError, DeviceError
        As `Trainer.steps`, `check_devices`; also a process that died.
    """
    check_devices(trainer.device, devices)
    seed = int(rng.integers(2**31))
    # a resume sweeps what a kill has left by this name
    path = Path(tempfile.mkdtemp(prefix=".devices.part.", dir=folder))
    messages = multiprocessing.get_context("spawn").Queue()
    stop = path / "stop"
    try:
        with storage_errors(path):
            torch.save({**trainer.parts(), "pool": pool, "rng": rng, "seed": seed}, path / "start.pt")
        with ThreadPoolExecutor(1) as thread:
            launched = thread.submit(_launch, trainer.device, devices, str(path), messages, count)
            try:
                yield from _losses(launched, messages, count)
            finally:
                # the processes end after the step that they are at
                stop.touch()
        trainer.load_state(torch.load(path / "end.pt", map_location="cpu"))
    finally:
        messages.close()
        shutil.rmtree(path, ignore_errors=True)


def _losses(launched: "Future[None]", messages: Any, count: int) -> Iterator[Tensor | None]:
    left = count
    while left:
        try:
            told = messages.get(timeout=_LOOK_UP_S)
        except queue.Empty:
            if launched.done():
                _explain(launched, messages)
            yield None
            continue
        if isinstance(told, SliceLabelError):
            raise told
        left -= 1
        yield torch.tensor(told)
    while not launched.done():
        yield None
    _explain(launched, messages)


def _explain(launched: "Future[None]", messages: Any) -> None:
    """Raise what went wrong, if anything did."""
    error = launched.exception()
    if error is None:
        return
    try:
        told = messages.get(timeout=_LOOK_UP_S)
    except queue.Empty:
        told = None
    if isinstance(told, SliceLabelError):
        raise told
    reason = str(error).strip().splitlines()[-1]
    raise DeviceError(
        f"a process that trained died: {reason}; use devices=1, or see whether memory is short"
    ) from error


def _launch(device: torch.device, devices: int, path: str, messages: Any, count: int) -> None:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    # not every weight has a part in every loss: that of shapes, where there are none
    strategy = DDPStrategy(start_method="spawn", find_unused_parameters=True)
    fabric = Fabric(accelerator=device.type, devices=devices, strategy=strategy)
    before = os.environ.pop(_PORT, None)
    try:
        fabric.launch(_train, path, messages, count, os.getpid())
    finally:
        os.environ.pop(_PORT, None)
        if before is not None:
            os.environ[_PORT] = before


def _train(fabric: "Fabric", path: str, messages: Any, count: int, parent: int) -> None:
    """Do what one of the processes does."""
    # Ctrl-C reaches every process of a terminal: the first one answers it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _train_rank(fabric, Path(path), messages, count, parent)
    except SliceLabelError as error:
        messages.put(error)
        raise


def _train_rank(fabric: "Fabric", path: Path, messages: Any, count: int, parent: int) -> None:
    start = torch.load(path / "start.pt", map_location=fabric.device, weights_only=False)
    # the generator that pool and loss share: here it draws what no other process draws
    seeds = np.random.SeedSequence([start["seed"], fabric.global_rank])
    rng: np.random.Generator = start["rng"]
    rng.bit_generator.state = type(rng.bit_generator)(seeds).state
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    trainer: Trainer[Any] = Trainer.of_parts(start, fabric.device)
    trainer.share(fabric)
    for loss in trainer.steps(start["pool"], count):
        if fabric.global_rank == 0:
            messages.put(float(loss))
        # all stop after the same step: others would wait for them for ever
        asked = (path / "stop").exists() or os.getppid() != parent
        if fabric.all_reduce(torch.tensor(float(asked), device=fabric.device), reduce_op="sum") > 0:
            return
    _check_agreement(fabric, trainer)
    if fabric.global_rank == 0:
        torch.save(trainer.state(), path / "end.pt")


def _check_agreement(fabric: "Fabric", trainer: Trainer[Any]) -> None:
    """Raise an error unless all processes have the same weights."""
    # as whole numbers: what is no number differs from itself, and is said by the loss
    own = parameters_to_vector(trainer.network.parameters()).detach().view(torch.int32)
    first = fabric.broadcast(own.clone())
    if not torch.equal(own, first):
        raise DeviceError("the processes that train together have come to different weights; use devices=1")
