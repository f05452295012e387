"""Commands in forks of one process that has everything imported: each costs what it does, and no start.

The process that forks opens no data itself, so that it stays of one thread: whatever is prepared or checked is done in
a fork, too.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HANGING_S = 300.0
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Ended:
    """How a fork came to its end.

    Attributes
    ----------
    code : int
        Exit code, or minus the number of the signal that ended it.
    out, err : str
        What it printed.
    seconds : float
        Wall time.
    hung : bool
        Whether it was killed for taking too long.
    grown_mb : int
        Peak memory beyond what it had at first; code that it used for the first time counts, too.
    """

    code: int
    out: str
    err: str
    seconds: float
    hung: bool
    grown_mb: int

    @property
    def last_words(self) -> str:
        """The last line on stderr."""
        return next((line for line in reversed(self.err.splitlines()) if line.strip()), "")

    @property
    def answer(self) -> Any:
        """What it printed as JSON."""
        return json.loads(self.out)


def warm_up() -> None:
    """Import what commands and methods import when they run, and stay alone in this process."""
    import h5py  # noqa: F401
    import nibabel  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import tifffile  # noqa: F401
    import torch
    import zarr  # noqa: F401
    from monai.networks.nets import dynunet  # noqa: F401

    from napari_slicelabel import cli  # noqa: F401
    from napari_slicelabel.data import formats, project, samples  # noqa: F401
    from napari_slicelabel.engine import annotate, apply, evaluate, export, methods, plan, run, select  # noqa: F401

    torch.set_num_threads(1)


def fork(
    work: Callable[[], int | None],
    *,
    folder: Path | None = None,
    kill_after: float | None = None,
    room_mb: int | None = None,
    hanging: float = HANGING_S,
) -> Ended:
    """Do something in a fork.

    Parameters
    ----------
    work : callable
        Returns the exit code; None is 0. An exception is printed and makes it 1.
    folder : Path, optional
        Working directory.
    kill_after : float, optional
        Seconds after which it gets SIGKILL, if it still runs.
    room_mb : int, optional
        Address space that it may take beyond what it begins with.
    hanging : float
        Seconds after which it counts as hanging and gets SIGKILL.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    begun = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as start:
        child = os.fork()
        if child == 0:
            _work_and_exit(work, folder, room_mb, [file.fileno() for file in (out, err, start)])
        try:
            ended = _wait(child, hanging if kill_after is None else kill_after)
        finally:
            os.kill(child, signal.SIGKILL)
            # what it has started itself goes with it
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
        *texts, before = [_text(file) for file in (out, err, start)]
    return Ended(
        os.waitstatus_to_exitcode(status),
        *texts,
        seconds=time.monotonic() - begun,
        hung=not ended and kill_after is None,
        grown_mb=max(0, usage.ru_maxrss // 1024 - int(before or 0)),
    )


def slicelabel(*arguments: object) -> Callable[[], int]:
    """Return what `fork` runs for one command."""

    def work() -> int:
        from napari_slicelabel import cli

        return cli.main([str(argument) for argument in arguments])

    return work


def answering(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns, computed in a fork; as JSON can hold it."""
    ended = fork(lambda: print(json.dumps(function(*arguments))))
    if ended.code:
        raise RuntimeError(f"{function.__name__}{arguments} failed:\n{ended.err}")
    return ended.answer


def killed_at(
    number: int, folder: Path, work: Callable[[], int | None], count: Path, by: int = signal.SIGKILL
) -> Callable[[], int | None]:
    """Return `work` that sends itself a signal just before it changes a file in `folder` for the `number`-th time.

    Counted are renames, removals, new files and folders, files opened to be written, and fsync. With number 0 nothing
    is killed and their count is written into a file.
    """

    def watched() -> int | None:
        changes = itertools.count(1)
        last = [0]

        def change() -> None:
            last[0] = next(changes)
            if last[0] == number:
                os.kill(os.getpid(), by)

        _on_changes(folder, change)
        code = work()
        seen, last[0] = last[0], 0
        if number == 0:
            count.write_text(str(seen))
        return code

    return watched


def _on_changes(folder: Path, change: Callable[[], None]) -> None:
    inside = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)) and (flags or 0) & _WRITES and _is_inside(path, inside):
                change()
        elif event in _CHANGES and _is_inside(arguments[0], inside):
            change()

    sync = os.fsync

    def fsync(descriptor: int) -> None:
        change()
        sync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    sys.addaudithook(hook)


def _is_inside(path: Any, folder: str) -> bool:
    """Return whether a change concerns the folder; names that are relative, to a folder held open, count."""
    text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
    return not os.path.isabs(text) or text.startswith(folder)


def _work_and_exit(work: Callable[[], int | None], folder: Path | None, room_mb: int | None, files: list[int]) -> None:
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(files[0], 1)
        os.dup2(files[1], 2)
        os.write(files[2], str(_resident_mb()).encode())
        if folder is not None:
            os.chdir(folder)
        if room_mb is not None:
            most = _address_space() + room_mb * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        code = work() or 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001 - whatever it is, the one who forked reads of it
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait(child: int, seconds: float) -> bool:
    """Wait until a fork has ended, without taking its status; return whether it has."""
    handle = os.pidfd_open(child)
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode("utf-8", "replace"))


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _resident_mb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**20
