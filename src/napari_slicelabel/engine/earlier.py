"""What an earlier run of the same kind left that is still true, so that a correction costs what it touches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_slicelabel.engine.events import SliceDone
from napari_slicelabel.engine.record import JOURNAL_NAME, RunRecord, read_events
from napari_slicelabel.engine.state import RANDOM, load_state
from napari_slicelabel.errors import SliceLabelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic import JsonValue
    from torch import Tensor

    from napari_slicelabel.data.project import Project


@dataclass(frozen=True)
class EarlierRun:
    """A finished run.

    Attributes
    ----------
    folder : Path
        Where it lies.
    tensors : mapping of str to Tensor
        Its state, on the CPU, without that of random generators.
    extra : mapping
        What its method kept beside them.
    rows : mapping of (str, int) to SliceDone
        The slices that it wrote, by volume and index.
    """

    folder: Path
    tensors: Mapping[str, Tensor]
    extra: Mapping[str, JsonValue]
    rows: Mapping[tuple[str, int], SliceDone]


def earlier_run(project: Project, record: RunRecord) -> EarlierRun | None:
    """Return the newest finished run that was asked for the same on the same device; None when there is none.

    Parameters
    ----------
    project : Project
        Its runs are looked through, the newest first.
    record : RunRecord
        Of the run that asks.

    Returns
    -------
    EarlierRun or None
        Method, parameters, axis, slices and device are those of `record`. What was painted since is for the method to
        find out. Runs that are damaged are passed over: they can only be started anew.
    """
    for run_id in sorted(project.run_ids(), reverse=True):
        folder = project.run_folder(run_id)
        try:
            other = RunRecord.load(folder)
            if other.outcome != "finished" or _asked(other) != _asked(record):
                continue
            state = load_state(folder / "state")
            if state is None:
                continue
            events = [event for event in read_events(folder / JOURNAL_NAME) if isinstance(event, SliceDone)]
        except SliceLabelError:
            continue
        extra = state[1]["method"]
        assert isinstance(extra, dict)
        tensors = {name: tensor for name, tensor in state[0].items() if not name.startswith(RANDOM)}
        return EarlierRun(folder, tensors, extra, {(event.volume, event.index): event for event in events})
    return None


def _asked(record: RunRecord) -> tuple[object, ...]:
    return record.method, record.config, record.device, record.axis, record.spans, record.stops
