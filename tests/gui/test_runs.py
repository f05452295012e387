"""Several runs on one volume: what is seen of each, compared, exported and deleted. Without a window."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel.data.boxes import AXES, Axis, SliceRef
from napari_slicelabel.engine.context import HUMAN, run_store
from napari_slicelabel.engine.events import SliceDone
from napari_slicelabel.engine.record import JOURNAL_NAME, Journal, RunRecord, run_lock
from napari_slicelabel.engine.run import LOCK_NAME, delete_run
from napari_slicelabel.errors import BusyError, InputError
from napari_slicelabel.gui.results import ResultArray
from napari_slicelabel.gui.runs import Shelf, export_choice, label_of, read_runs
from napari_slicelabel.gui.state import stale_slices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_slicelabel.data.project import Project

SHAPE = (16, 64, 64)
START = datetime(2026, 1, 2, 10, tzinfo=UTC)


def add_run(
    project: Project,
    number: int,
    written: Sequence[int],
    *,
    axis: Axis = "z",
    value: int = 0,
    outcome: str = "finished",
    annotated: tuple[int, ...] = (0,),
    volumes: tuple[str, ...] = ("tiny",),
) -> str:
    """Put a run on disk that has labelled some slices with one value; return its id."""
    run_id = f"run-{number}"
    folder = project.runs_folder / run_id
    folder.mkdir(parents=True)
    depth = SHAPE[AXES.index(axis)]
    record = RunRecord(
        run_id=run_id,
        method="interpolate",
        config={},
        seed=0,
        device="cpu",
        axis=axis,
        spans=dict.fromkeys(volumes, (0, depth)),
        annotated=dict.fromkeys(volumes, annotated),
        versions={},
        started=START + timedelta(hours=number),
        outcome=outcome,  # type: ignore[arg-type]
    )
    record.save(folder)
    journal = Journal(folder / JOURNAL_NAME)
    for index in written if "tiny" in volumes else ():
        height, width = (n for n, name in zip(SHAPE, AXES, strict=True) if name != axis)
        for role, fill in (("prediction", value or number), ("confidence", 100 + number)):
            store = run_store(project, folder, role, "tiny", axis)
            store.write(index, np.full((height, width), fill, np.uint8))
        origin = HUMAN if index in annotated else f"run {number}"
        journal.write(SliceDone("tiny", axis, index, number / 10, origin))
    journal.close()
    return run_id


@pytest.fixture
def shelf(project: Project) -> Shelf:
    return Shelf(project, "tiny")


def shown(shelf: Shelf, role: str = "prediction") -> np.ndarray:
    """Return what the layer of a role holds."""
    array = ResultArray(SHAPE)
    array.show(shelf.sources(role), shelf.others())
    values = np.asarray(array)
    for axis, key in (("z", (3, slice(None), slice(None))), ("y", (slice(None), 5, slice(None)))):
        assert np.array_equal(array[key], values[key]), axis
    array.close()
    return values


def test_of_every_slice_the_newest_labels_are_seen(project: Project, shelf: Shelf) -> None:
    """A finished run, one that was cancelled, one that was killed before its first slice, and one of another volume."""
    add_run(project, 1, range(16))
    add_run(project, 2, [2, 3], outcome="cancelled", annotated=(0, 3))
    add_run(project, 3, [], outcome="running")
    add_run(project, 4, [], volumes=("other",))
    shelf.take(read_runs(project, "tiny")[0])
    book = shelf.book()
    assert book is not None
    expected = np.ones(SHAPE, np.uint8)
    expected[2:4] = 2
    assert np.array_equal(shown(shelf), expected)
    assert np.array_equal(shown(shelf, "confidence"), expected + 100)
    assert book.scores.confidence.tolist() == [0.1, 0.1, 0.2, 0.2, *[0.1] * 12]
    assert book.scores.origins[:4] == ("human", "run 1", "run 2", "human")
    # what the newer run went by is new to the older one
    assert stale_slices(book.scores, frozenset({0, 3}), frozenset()) == {4, *range(5, 16)}
    shelf.alone = "run-1"
    assert (shown(shelf) == 1).all()
    shelf.alone = "run-2"
    assert not shown(shelf)[4:].any()


def test_runs_along_two_axes_fill_each_other(project: Project, shelf: Shelf) -> None:
    add_run(project, 1, range(16), value=3)
    add_run(project, 2, range(10, 20), axis="y")
    add_run(project, 3, [5, 6])
    shelf.take(read_runs(project, "tiny")[0])
    expected = np.full(SHAPE, 3, np.uint8)
    expected[:, 10:20] = 2
    expected[5:7] = 3
    assert np.array_equal(shown(shelf), expected)
    book = shelf.book()
    assert book is not None
    assert book.axis == "z"
    assert book.scores.origins[4:6] == ("interpolate along y", "run 3")
    assert np.isfinite(book.scores.confidence).all()


def test_what_a_run_writes_takes_the_place_of_what_was_seen(project: Project, shelf: Shelf) -> None:
    add_run(project, 1, range(16))
    add_run(project, 2, [7, 8], outcome="running")
    runs = read_runs(project, "tiny")[0]
    live = runs[1]
    live.confidence[:] = np.nan
    shelf.take(runs[:1])
    shelf.begin(live)
    assert (shown(shelf) == 1).all()
    assert shelf.wrote("run-2", [SliceDone("tiny", "z", 7, 0.5, "fit")])
    assert [np.unique(plane).tolist() for plane in shown(shelf)[6:9]] == [[1], [2], [1]]
    array = ResultArray(SHAPE)
    array.show(shelf.sources("prediction"))
    assert shelf.book() is not None
    assert not shelf.wrote("run-2", [SliceDone("tiny", "z", 8, 0.5, "fit")])
    array.changed([8])
    assert np.unique(array[8, :, :]).tolist() == [2]
    assert shelf.review(8) is live
    # read again from a disk that is behind: what is known of the run that goes on stays
    shelf.take(read_runs(project, "tiny")[0], "run-2")
    assert shelf.find("run-2") is live
    array.close()


def test_a_run_that_goes_on_is_the_newest_also_after_a_restart(project: Project, shelf: Shelf) -> None:
    add_run(project, 1, [4], outcome="stopped")
    add_run(project, 2, range(16))
    runs = read_runs(project, "tiny")[0]
    runs[0].resumed = datetime(2026, 2, 1, tzinfo=UTC).isoformat()
    runs[0].accepted.add(4)
    runs[0].save_review()
    shelf.take(read_runs(project, "tiny")[0])
    assert [run.run_id for run in shelf.runs] == ["run-2", "run-1"]
    shelf.book()
    assert shelf.said("accepted") == {4}
    assert shelf.review(5) is shelf.find("run-2")


def test_differences_are_shown_alone(project: Project, shelf: Shelf) -> None:
    add_run(project, 1, range(16))
    add_run(project, 2, [2, 3])
    add_run(project, 3, [2], value=1)
    shelf.take(read_runs(project, "tiny")[0])
    shelf.alone, shelf.compared = "run-3", "run-2"
    expected = np.zeros(SHAPE, np.uint8)
    expected[2], expected[3] = 1, 255
    assert np.array_equal(shown(shelf), expected)
    shelf.drop("run-2")
    assert shelf.compared == ""
    assert np.unique(shown(shelf)[2]).tolist() == [1]


def test_what_is_hidden_is_not_drawn_and_still_there() -> None:
    class Drawn(ResultArray):
        def plane(self, axis: Axis, index: int) -> np.ndarray:
            ref = SliceRef(axis, index)
            return self._drawn(ref.box(self.shape)).squeeze(ref.axis_number)

        def _plane(self, ref: SliceRef) -> np.ndarray:
            return np.ones(ref.box(self.shape).shape, np.uint8).squeeze(ref.axis_number)

    array = Drawn((3, 4, 5))
    array.hide({"z": frozenset({1}), "x": frozenset({0})})
    assert not array.plane("z", 1).any()
    assert not array.plane("x", 0).any()
    assert array.plane("y", 2).tolist() == [[0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]
    array.hide({})
    assert array.plane("y", 2).all()
    array.close()


def test_deleting_a_run_leaves_the_others(project: Project, shelf: Shelf) -> None:
    add_run(project, 1, range(16))
    add_run(project, 2, [2, 3])
    with run_lock(project.path / LOCK_NAME), pytest.raises(BusyError):
        delete_run(project, "run-2")
    delete_run(project, "run-2")
    with pytest.raises(InputError, match="run-1"):
        delete_run(project, "run-2")
    assert [path.name for path in project.runs_folder.iterdir()] == ["run-1"]
    shelf.take(read_runs(project, "tiny")[0])
    assert (shown(shelf) == 1).all()


def test_a_run_gone_from_the_disk_is_seen_as_empty(project: Project, shelf: Shelf) -> None:
    add_run(project, 1, [2])
    shelf.take(read_runs(project, "tiny")[0])
    delete_run(project, "run-1")
    assert not shown(shelf).any()


def test_export_takes_a_finished_run_unless_another_one_is_said(project: Project) -> None:
    add_run(project, 1, range(16))
    add_run(project, 2, [2], outcome="cancelled")
    add_run(project, 3, [])
    facts = read_runs(project, "tiny")[1]
    assert [(run.run_id, run.written, run.slices, run.outcome) for run in facts] == [
        ("run-1", 16, 16, "finished"),
        ("run-2", 1, 16, "cancelled"),
        ("run-3", 0, 16, "finished"),
    ]
    assert [export_choice(facts, alone).run_id for alone in ("", "run-2", "run-1")] == ["run-1", "run-2", "run-1"]  # type: ignore[union-attr]
    assert export_choice(facts[1:], "").run_id == "run-2"  # type: ignore[union-attr]
    assert export_choice(facts[2:], "") is None
    assert label_of(facts[1]).endswith("1 of 16 slices, cancelled")


def test_a_damaged_run_is_listed(project: Project) -> None:
    add_run(project, 1, [1])
    (project.runs_folder / "run-1" / "run.json").write_text("{")
    runs, facts = read_runs(project, "tiny")
    assert not runs
    assert (facts[0].outcome, facts[0].run_id) == ("damaged", "run-1")
