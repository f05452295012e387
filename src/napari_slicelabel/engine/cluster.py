"""Work for a dask cluster: many small tasks whose results lie on disk. Nothing but their arguments goes through it."""

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from napari_slicelabel.errors import DeviceError, InputError, SliceLabelError

if TYPE_CHECKING:
    from distributed import Client, Future

LOCAL = "local:"
"""What the address of a cluster begins with that is started on this machine."""

# Each thread of a worker does one task and has one in store; the scheduler learns of no more, however many there are.
_PER_THREAD = 2
_CONNECT_S = 10
# how often somebody may look up while nothing ends
_LOOK_UP_S = 0.2
# Ctrl-C reaches every process of a terminal: who asked for the work answers it and ends the workers.
_DEAF = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"


@contextmanager
def connected(scheduler: str) -> "Iterator[Client]":
    """Connect to a dask scheduler for the block.

    Parameters
    ----------
    scheduler : str
        ``tcp://host:port``, or ``local:N`` to start N worker processes of one thread each, which end with the block.

    Raises
    ------
    InputError
        The package `distributed` is not installed, or this is no address.
    DeviceError
        No scheduler answers there.
    """
    try:
        from distributed import Client, LocalCluster, Security

        # whoever reaches the ports of a dask cluster may run code in its workers: here only who has the certificate
        security = Security.temporary() if scheduler.startswith(LOCAL) else None
    except ImportError as error:
        raise InputError(
            "--scheduler needs the package distributed; install it with: pip install 'napari-slicelabel[distributed]'"
        ) from error
    with ExitStack() as stack:
        address: Any = scheduler
        if scheduler.startswith(LOCAL):
            address = LocalCluster(
                n_workers=_count(scheduler),
                security=security,
                host="127.0.0.1",
                threads_per_worker=1,
                processes=True,
                # any free port: the usual one may be taken by another cluster of this machine
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.ERROR,
                preload=_DEAF,
            )
            stack.enter_context(address)
        try:
            client = Client(address, timeout=_CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise DeviceError(
                f"no dask scheduler answers at {scheduler} within {_CONNECT_S} s; start one with `dask scheduler`, give"
                " the address that it prints, or use local:N for N processes of this machine"
            ) from error
        except ValueError as error:
            raise InputError(
                f"--scheduler {scheduler}: expected an address such as tcp://host:8786, or local:N"
            ) from error
        yield stack.enter_context(client)


def results(
    client: "Client", function: Callable[..., object], tasks: Sequence[tuple[object, ...]]
) -> Generator[tuple[int, int]]:
    """Let workers call a function once for each task; a task of a worker that dies goes to another one.

    Parameters
    ----------
    client : distributed.Client
        Connected.
    function : callable
        Of a module that workers can import; may be called for a task more than once.
    tasks : sequence of tuple
        Its arguments, small.

    Yields
    ------
    tuple of (int, int)
        How many workers there are, and how many tasks have ended since the last time: at least every 200 ms or so.

    Raises
    ------
    SliceLabelError
        What the function raises; anything else becomes a `DeviceError`: other errors, the end of the scheduler, a task
        whose workers died again and again.
    """
    from distributed import wait

    left = deque(tasks)
    running: set[Future] = set()
    try:
        while left or running:
            workers = _threads(client)
            room = _PER_THREAD * max(1, sum(workers.values()))
            while left and len(running) < room:
                running.add(client.submit(function, *left.popleft(), pure=False))
            # a scheduler that goes cancels what is running, which is seen below
            with client.as_current(), suppress(TimeoutError, CancelledError):
                wait(running, timeout=_LOOK_UP_S, return_when="FIRST_COMPLETED")
            ended = {future for future in running if future.status != "pending"}
            running -= ended
            for future in ended:
                _check(future)
            yield len(workers), len(ended)
    finally:
        if client.status == "running":
            client.cancel(list(running))


def _threads(client: "Client") -> dict[str, int]:
    """Return the threads of each worker."""
    if client.status != "running":
        raise DeviceError(_GONE)
    try:
        found: dict[str, int] = client.nthreads()
    except OSError as error:
        raise DeviceError(_GONE) from error
    return found


_GONE = "the dask scheduler has gone; start it again: the same command goes on with the parts that are not done"


def _check(future: "Future") -> None:
    """Raise the error of a task, if it has one."""
    from distributed import KilledWorker

    if future.status in ("cancelled", "lost"):
        raise DeviceError(_GONE)
    error = future.exception()
    if error is None:
        return
    if isinstance(error, SliceLabelError):
        raise error
    if isinstance(error, KilledWorker):
        raise DeviceError(
            "the same part was lost with several workers, which died of it, probably for want of memory: give each"
            " worker more, and see what they wrote; the same command goes on with the parts that are not done"
        ) from error
    raise DeviceError(
        f"a worker failed: {type(error).__name__}: {error}; every worker needs napari-slicelabel, in the same version"
    ) from error


def _count(scheduler: str) -> int:
    text = scheduler.removeprefix(LOCAL)
    if not text.isdigit() or not 1 <= int(text) <= 4 * (os.cpu_count() or 1):
        raise InputError(f"--scheduler {scheduler}: expected local:N with a number of processes, such as local:4")
    return int(text)
