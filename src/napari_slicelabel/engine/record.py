"""What a run leaves besides voxels: run.json, the journal of its events, and the lock that keeps it alone."""

import json
import os
import platform
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from napari_slicelabel.data.boxes import Axis
from napari_slicelabel.data.files import make_folder, open_own, storage_errors, write_text
from napari_slicelabel.data.reading import open_file, read_bytes
from napari_slicelabel.engine.config import LEAST_FOR_CALIBRATION
from napari_slicelabel.engine.events import Event, from_json, to_json
from napari_slicelabel.engine.pieces import Piece, pieces
from napari_slicelabel.errors import BusyError, InputError, MissingFileError, StorageError

if TYPE_CHECKING:
    from napari_slicelabel.data.project import Project

RECORD_NAME = "run.json"
JOURNAL_NAME = "events.jsonl"
_LONGEST_AXIS = 10**7
# in bytes; a traceback, the longest note, takes some thousand
_LONGEST_LINE = 2**24

# Labels a held-out slice from annotated ones on both sides of it; networks need others somewhere.
_FROM_BOTH_SIDES = "interpolate"
# Needs none held out: its labels go from an annotated slice to others and back.
_RETURNS = "flow"


class RunRecord(BaseModel):
    """What run.json holds: all that is needed to say how the labels came about, and to go on.

    `outcome` is ``running`` from the start; a run that was killed still says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    run_id: str = Field(description="name of the folder")
    method: str = Field(description="name in METHODS")
    config: dict[str, JsonValue] = Field(description="every parameter of the method")
    seed: int
    device: str = Field(description="cpu or cuda, with the GPU's name")
    axis: Axis = Field(description="the axis that auto stood for")
    spans: dict[str, tuple[int, int]] = Field(description="per volume the slices to fill, the second number excluded")
    stops: tuple[int, ...] = Field(default=(), description="slices that labels do not pass")
    annotated: dict[str, tuple[int, ...]] = Field(description="per volume the slices inside the span that a human did")
    versions: dict[str, str]
    started: datetime
    seconds: float = Field(default=0, description="wall time of all parts so far")
    outcome: Literal["running", "finished", "stopped", "cancelled", "failed"] = "running"
    error: str = Field(default="", description="one line, when it failed")
    scores: dict[str, float] = Field(default={}, description="last value of each metric, and the summary")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Check what slices are counted by, before they are."""
        if not self.spans or self.spans.keys() != self.annotated.keys():
            raise ValueError("spans and annotated are of different volumes")
        for name, (start, stop) in self.spans.items():
            if not 0 <= start < stop <= _LONGEST_AXIS:
                raise ValueError(f"the span of {name} goes from {start} to {stop}")
            if not all(start <= index < stop for index in self.annotated[name]):
                raise ValueError(f"annotated slices of {name} lie outside of its span")
        return self

    def save(self, folder: Path) -> None:
        """Replace run.json in one step.

        Raises
        ------
        StorageError
            Disk full, no permission.
        """
        write_text(folder / RECORD_NAME, self.model_dump_json(indent=2) + "\n")

    @property
    def measured(self) -> bool:
        """Whether it was measured on annotated slices how sure the run may be of its labels."""
        if self.config.get("calibrate") == "off":
            return False
        if self.method == _RETURNS:
            return True
        if self.method == _FROM_BOTH_SIDES:
            anchors = [len(piece.anchors) for volume in self.annotated for piece in self.pieces(volume)]
            return max(anchors, default=0) >= LEAST_FOR_CALIBRATION
        return sum(map(len, self.annotated.values())) >= LEAST_FOR_CALIBRATION

    def pieces(self, volume: str) -> tuple[Piece, ...]:
        """Return the pieces that the stop slices leave of `volume`; none where it has no annotated slice."""
        return pieces(range(*self.spans[volume]), self.annotated[volume], self.stops)

    def slices(self, volume: str) -> tuple[int, ...]:
        """Return the slices of `volume` to fill, sorted.

        Of a volume without annotated slices that is the whole span: labels do not come there slice by slice.
        """
        if not self.annotated[volume]:
            return tuple(range(*self.spans[volume]))
        return tuple(index for piece in self.pieces(volume) for index in piece.slices)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the record of the run in `folder`.

        Raises
        ------
        MissingFileError
            There is no run.json: the run was killed before it began.
        StorageError
            run.json is damaged.
        """
        path = folder / RECORD_NAME
        try:
            return cls.model_validate_json(read_bytes(path))
        except FileNotFoundError as error:
            raise MissingFileError(f"{path} is not there: the run never began; start a new one") from error
        except (ValueError, OSError) as error:
            raise StorageError(f"{path} is damaged; delete the folder of this run and start a new one") from error


def versions() -> dict[str, str]:
    """Return the versions that may change a result, by name."""
    found = {"python": platform.python_version()}
    for name in ("napari-slicelabel", "torch", "numpy", "scipy", "zarr", "segmentation-models-pytorch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def new_run_folder(runs: Path, method: str) -> Path:
    """Create and return a folder whose name sorts by time: ``20260731-142501-372-interpolate``.

    Parameters
    ----------
    runs : Path
        The project's folder of runs.
    method : str
        Name of the method.

    Returns
    -------
    Path
        An empty folder that nobody else got. A counter is appended where the name is taken.

    Raises
    ------
    StorageError
        Disk full, no permission.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
    make_folder(runs)
    with storage_errors(runs, "create a folder in"):
        counter = 1
        while True:
            folder = runs / (f"{stamp}-{method}" + (f"-{counter}" if counter > 1 else ""))
            try:
                folder.mkdir()
            except FileExistsError:
                counter += 1
            else:
                return folder


def newest_finished(project: "Project") -> str:
    """Return the id of the run that started last among those that finished.

    Raises
    ------
    InputError
        No run has finished; says what each one did.
    """
    outcomes: dict[str, str] = {}
    for run_id in sorted(project.run_ids(), reverse=True):
        try:
            outcomes[run_id] = RunRecord.load(project.run_folder(run_id)).outcome
        except (MissingFileError, StorageError):
            outcomes[run_id] = "damaged"
        if outcomes[run_id] == "finished":
            return run_id
    listed = ", ".join(f"{run_id} ({outcome})" for run_id, outcome in outcomes.items()) or "none"
    raise InputError(f"{project.path} has no finished run; name one of its runs, or start one. Runs: {listed}")


class Journal:
    """The events of a run as lines of JSON, appended while it goes.

    Each line reaches the operating system before `write` returns, so that a killed process loses at most the line that
    it was writing. Opening cuts such a torn line off.

    Parameters
    ----------
    path : Path
        events.jsonl; need not exist.

    Raises
    ------
    StorageError
        Disk full, no permission.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path):
            _cut_torn_line(path)
            self._file: IO[str] = open_own(path, "a", encoding="utf-8", newline="\n")

    def write(self, event: Event) -> None:
        """Append one event.

        Raises
        ------
        StorageError
            Disk full.
        """
        self._append(to_json(event))

    def note(self, text: str) -> None:
        """Append text for people, such as a traceback; `read_events` passes over it."""
        self._append(json.dumps({"note": text}))

    def close(self) -> None:
        """Flush to the disk and close. May be called twice."""
        if not self._file.closed:
            with storage_errors(self.path), self._file:
                self._file.flush()
                os.fsync(self._file.fileno())

    def _append(self, line: str) -> None:
        with storage_errors(self.path):
            self._file.write(line + "\n")
            self._file.flush()


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a journal.

    Parameters
    ----------
    path : Path
        events.jsonl. One that does not exist has no events.

    Yields
    ------
    Event
        In the order in which they happened; a resumed run has several `Started`. A last line that a kill tore is left
        out.

    Raises
    ------
    StorageError
        A line before the last one is damaged.
    """
    with storage_errors(path, "read"):
        if not path.exists():
            return
        file = open_file(path)
    with file:
        number = 0
        while line := _read_line(file, path):
            number += 1
            if not line.endswith(b"\n"):
                return
            try:
                if not line.startswith(b'{"note"'):
                    yield from_json(line.decode("utf-8", "replace"))
            except InputError as error:
                raise StorageError(f"{path}, line {number}: not an event; delete the line to go on") from error


def _read_line(file: IO[bytes], path: Path) -> bytes:
    with storage_errors(path, "read"):
        line = file.readline(_LONGEST_LINE)
    if len(line) == _LONGEST_LINE:
        raise StorageError(f"{path}: a line is too long to be an event; start a new run")
    return line


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with open_own(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _LONGEST_LINE))
        torn = len(file.read().rpartition(b"\n")[2])
        file.truncate(end - torn)


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold the project's run lock for the block.

    Parameters
    ----------
    path : Path
        The lock file. It holds the process id and host of its owner, for people; it stays after the run.

    Raises
    ------
    BusyError
        A run already goes in this project.
    StorageError
        The folder cannot be written.

    Notes
    -----
    The operating system holds the lock (``flock``), hence it ends with its process however that dies: a file left by a
    dead process is taken over by itself, even if its process id belongs to someone else by now. Some network
    file systems know no locks; there the file's process id and host decide.
    """
    with storage_errors(path, "lock"):
        file = open_own(path, "a+", encoding="utf-8")
    with file:
        file.seek(0)
        owner = file.read().strip()
        if not _acquire(file, owner):
            who = owner or "an unknown process"
            raise BusyError(f"a run already goes in {path.parent} ({who}); wait for it or stop it")
        try:
            with storage_errors(path, "lock"):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            yield
        finally:
            # unlinking would let a third process lock a file that a second one holds open without a name
            with suppress(OSError):
                file.truncate(0)


if sys.platform == "win32":  # pragma: no cover

    def _acquire(file: IO[str], owner: str) -> bool:
        import msvcrt

        # a byte far behind the text, which others may then still read
        file.seek(1 << 20)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            file.seek(0)
        return True

else:

    def _acquire(file: IO[str], owner: str) -> bool:
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return not _may_live(owner)
        return True


def _may_live(owner: str) -> bool:
    """Return whether the owner that a lock file names may still run: told for processes of this host only."""
    words = owner.split()
    if len(words) != 4 or not words[1].isdigit():
        return False
    if words[3] != socket.gethostname():
        return True
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
