"""The run loop, driven by methods made for the purpose."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project
from napari_slicelabel.engine import context as context_module
from napari_slicelabel.engine.config import MethodConfig, build_config
from napari_slicelabel.engine.devices import resolve_device
from napari_slicelabel.engine.events import Event, Finished, Metric, Progress, SliceDone, Started
from napari_slicelabel.engine.methods import METHODS, Method
from napari_slicelabel.engine.record import RunRecord, new_run_folder, newest_finished, read_events
from napari_slicelabel.engine.run import resume_config, run
from napari_slicelabel.engine.stores import SliceStore
from napari_slicelabel.engine.work import Work
from napari_slicelabel.errors import BusyError, DeviceError, InputError, MissingFileError, SliceLabelError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from napari_slicelabel.engine.context import RunContext


class FakeConfig(MethodConfig):
    """Nothing of its own."""


def no_work(_stacks: object, _classes: int, _config: object) -> Work:
    """Nobody plans the methods made here."""
    return Work(rounds=0, steps=0, predictions=0, step_s=0.0, prediction_s=0.0, memory_bytes=0)


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], FakeConfig]:
    """Puts a function into METHODS as ``fake`` and returns a config of it."""

    def install(propagate: Any) -> FakeConfig:
        monkeypatch.setitem(
            METHODS, "fake", Method("fake", "made for a test", "Nothing.", FakeConfig, propagate, no_work)
        )
        return FakeConfig(device="cpu")

    return install


def background(context: RunContext, index: int) -> SliceDone:
    plane = np.zeros(context.volume("tiny").plane_shape(context.axis), np.uint8)
    return context.write_slice("tiny", index, plane, plane + 51, provenance="fake", score=0.25)


def fill(context: RunContext, config: FakeConfig) -> Iterator[Event]:
    for index in context.slices("tiny"):
        if context.stop():
            return
        if index not in context.done("tiny"):
            yield background(context, index)


def last_run(project: Project) -> tuple[RunRecord, list[Event]]:
    folder = project.run_folder(project.run_ids()[-1])
    return RunRecord.load(folder), list(read_events(folder / "events.jsonl"))


def notes(project: Project) -> str:
    path = project.run_folder(project.run_ids()[-1]) / "events.jsonl"
    return "\n".join(line for line in path.read_text().splitlines() if line.startswith('{"note"'))


class TestOutcome:
    def test_finished(self, painted: Project, method: Any) -> None:
        events = list(run(painted, method(fill)))
        record, journal = last_run(painted)
        assert journal == events
        assert isinstance(events[0], Started)
        assert events[0].slices == 16
        assert isinstance(events[-1], Finished)
        assert events[-1].outcome == record.outcome == "finished"
        assert events[-1].summary == {"slices": 16, "needs_review": 13, "mean_confidence": 0.25}
        assert record.versions.keys() >= {"napari-slicelabel", "torch", "numpy", "python"}
        assert (record.seed, record.device, record.axis) == (0, "cpu", "z")
        assert record.annotated == {"tiny": (2, 7, 12)}
        assert newest_finished(painted) == record.run_id

    def test_metrics_become_scores(self, painted: Project, method: Any) -> None:
        def two(context: RunContext, config: FakeConfig) -> Iterator[Event]:
            yield Metric("loss", 3.0, 0)
            yield Metric("loss", 2.0, 1)

        list(run(painted, method(two)))
        assert last_run(painted)[0].scores["loss"] == 2.0

    def test_stopped(self, painted: Project, method: Any) -> None:
        count = iter(range(100))
        events = list(run(painted, method(fill), stop=lambda: next(count) >= 4))
        assert isinstance(events[-1], Finished)
        assert events[-1].outcome == last_run(painted)[0].outcome == "stopped"
        assert events[-1].summary["slices"] == 4

    def test_cancelled(self, painted: Project, method: Any) -> None:
        events = run(painted, method(fill))
        for _ in range(4):
            next(events)
        events.close()
        record, journal = last_run(painted)
        assert record.outcome == "cancelled"
        assert record.error == ""
        assert isinstance(journal[-1], Finished)
        assert journal[-1].outcome == "cancelled"
        assert (painted.run_folder(record.run_id) / "slices.csv").read_text().count("\n") == 4

    @pytest.mark.parametrize("error", [RuntimeError("boom\nand more"), MemoryError()], ids=["runtime", "memory"])
    def test_failed(self, painted: Project, method: Any, error: Exception) -> None:
        def fail(context: RunContext, config: FakeConfig) -> Iterator[Event]:
            yield background(context, 0)
            raise error

        with pytest.raises(type(error)) as caught:
            list(run(painted, method(fail)))
        assert caught.value is error
        record, journal = last_run(painted)
        assert record.outcome == "failed"
        assert type(error).__name__ in record.error
        assert "\n" not in record.error
        assert "Traceback" in notes(painted)
        assert "in fail" in notes(painted)
        assert isinstance(journal[-1], Finished)
        assert journal[-1].outcome == "failed"
        assert list(run(painted, method(fill)))

    def test_interrupted_from_the_keyboard(self, painted: Project, method: Any) -> None:
        def interrupted(context: RunContext, config: FakeConfig) -> Iterator[Event]:
            yield background(context, 0)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            list(run(painted, method(interrupted)))
        assert last_run(painted)[0].outcome == "cancelled"

    def test_a_method_is_closed_with_its_run(self, painted: Project, method: Any) -> None:
        closed = []

        def careful(context: RunContext, config: FakeConfig) -> Iterator[Event]:
            try:
                yield Progress("wait", 0, 1)
            finally:
                closed.append(True)

        events = run(painted, method(careful))
        next(events)
        next(events)
        events.close()
        assert closed == [True]

    def test_nothing_happens_before_the_first_event(self, painted: Project, method: Any) -> None:
        run(painted, method(fill)).close()
        assert painted.run_ids() == ()


class TestDisk:
    def test_full_while_writing(self, painted: Project, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        create = SliceStore._create

        def full(store: SliceStore) -> None:
            if store.folder.parent.name == "confidence":
                raise OSError(errno.ENOSPC, "No space left on device")
            create(store)

        monkeypatch.setattr(SliceStore, "_create", full)
        with pytest.raises(StorageError, match="the disk is full"):
            list(run(painted, method(fill)))
        record, journal = last_run(painted)
        assert record.outcome == "failed"
        assert isinstance(journal[-1], Finished)
        monkeypatch.undo()
        assert isinstance(list(run(painted, method(fill), resume=record.run_id))[-1], Finished)

    def test_full_at_the_very_end(self, painted: Project, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(path: Path, text: str) -> None:
            raise StorageError(f"cannot write {path}: the disk is full")

        monkeypatch.setattr(context_module, "write_text", full)
        with pytest.raises(StorageError, match=r"slices\.csv"):
            list(run(painted, method(fill)))
        record, _ = last_run(painted)
        assert record.outcome == "failed"
        assert "disk is full" in record.error

    def test_the_first_error_is_the_one_that_is_raised(
        self, painted: Project, method: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(context: RunContext, config: FakeConfig) -> Iterator[Event]:
            yield background(context, 0)
            raise RuntimeError("first")

        def full(path: Path, text: str) -> None:
            raise StorageError("second")

        monkeypatch.setattr(context_module, "write_text", full)
        with pytest.raises(RuntimeError, match="first"):
            list(run(painted, method(fail)))
        assert "first" in last_run(painted)[0].error

    def test_a_run_leaves_the_annotation_alone(self, painted: Project, method: Any) -> None:
        def content() -> dict[str, bytes]:
            files = [painted.path / "project.json", *(painted.path / "annotation").rglob("*")]
            return {str(file): file.read_bytes() for file in files if file.is_file()}

        before = content()
        list(run(painted, method(fill)))
        assert content() == before


class TestInput:
    def test_no_annotated_slices(self, project: Project, method: Any) -> None:
        with pytest.raises(InputError, match=r"no annotated slices in tiny z0 to z15; paint"):
            list(run(project, method(fill)))
        assert project.run_ids() == ()

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"range": "3:6"}, "no annotated slices in tiny z3 to z5"),
            ({"range": "0:17"}, "range=0:17: the volume has 16 slices"),
            ({"volumes": "tini"}, r"unknown volume 'tini'. Did you mean tiny\?"),
            ({"volumes": " , "}, "names no volume"),
            ({"axis": "x"}, "no annotated slices in tiny x0"),
        ],
    )
    def test_what_cannot_be_filled(self, painted: Project, values: dict[str, str], message: str) -> None:
        with pytest.raises(InputError, match=message):
            list(run(painted, build_config("interpolate", values)))
        assert painted.run_ids() == ()

    def test_neither_config_nor_resume(self, painted: Project) -> None:
        with pytest.raises(InputError, match="needs a config"):
            list(run(painted))

    def test_axis_with_most_annotated_slices(self, painted: Project, method: Any) -> None:
        plane = np.ones((16, 64), np.uint8)
        for index in range(3):
            painted.annotation("tiny").write_slice(SliceRef("y", index), plane)
        assert next(run(painted, method(fill))).axis == "z"  # type: ignore[union-attr]  # three each: z is first
        painted.annotation("tiny").write_slice(SliceRef("y", 3), plane)
        assert next(run(painted, method(fill))).axis == "y"  # type: ignore[union-attr]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    def test_no_gpu(self, painted: Project) -> None:
        assert resolve_device("auto").type == "cpu"
        with pytest.raises(DeviceError, match="device=auto or device=cpu"):
            list(run(painted, build_config("interpolate", {"device": "cuda"})))
        assert painted.run_ids() == ()

    def test_gpu_memory_full(self, painted: Project, method: Any) -> None:
        def greedy(context: RunContext, config: FakeConfig) -> Iterator[Event]:
            yield Progress("fit", 0, 1)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

        with pytest.raises(DeviceError, match="GPU's memory is full"):
            list(run(painted, method(greedy)))
        assert last_run(painted)[0].outcome == "failed"


class TestLock:
    def test_one_run_at_a_time(self, painted: Project, method: Any) -> None:
        config = method(fill)
        first = run(painted, config)
        next(first)
        with pytest.raises(BusyError, match=f"process {os.getpid()} on"):
            next(run(painted, config))
        first.close()
        assert len(list(run(painted, config))) == 18

    def test_free_once_finished_is_seen(self, painted: Project, method: Any) -> None:
        config = method(fill)
        first = run(painted, config)
        while not isinstance(next(first), Finished):
            pass
        assert isinstance(next(run(painted, config)), Started)

    @pytest.mark.parametrize(
        "owner", [f"process 999999999 on {socket.gethostname()}", "process 1 on elsewhere", "?", ""]
    )
    def test_a_file_of_a_dead_process(self, painted: Project, method: Any, owner: str) -> None:
        (painted.path / "run.lock").write_text(owner)
        assert list(run(painted, method(fill)))


class TestResume:
    def test_goes_on(self, painted: Project, method: Any) -> None:
        events = run(painted, method(fill))
        for _ in range(5):
            next(events)
        events.close()
        run_id = painted.run_ids()[0]
        again = list(run(painted, resume=run_id))
        assert [event.index for event in again if isinstance(event, SliceDone)] == list(range(4, 16))
        record, journal = last_run(painted)
        assert painted.run_ids() == (run_id,)
        assert record.outcome == "finished"
        kinds = [type(event) for event in journal]
        assert (kinds.count(Started), kinds.count(Finished), kinds.count(SliceDone)) == (2, 2, 16)
        assert (painted.run_folder(run_id) / "slices.csv").read_text().count("\n") == 17

    def test_a_finished_run_has_nothing_to_do(self, painted: Project, method: Any) -> None:
        list(run(painted, method(fill)))
        run_id = painted.run_ids()[0]
        before = (painted.run_folder(run_id) / "events.jsonl").read_text()
        again = list(run(painted, resume=run_id))
        assert [type(event) for event in again] == [Started, Finished]
        assert again[-1].outcome == "finished"  # type: ignore[union-attr]
        assert (painted.run_folder(run_id) / "events.jsonl").read_text() == before

    def test_torn_last_line(self, painted: Project, method: Any) -> None:
        events = run(painted, method(fill))
        for _ in range(5):
            next(events)
        events.close()
        run_id = painted.run_ids()[0]
        path = painted.run_folder(run_id) / "events.jsonl"
        with path.open("a") as file:
            file.write('{"event": "SliceDone", "volume": "ti')
        (path.parent / "prediction" / ".12345678.part.tiny.zarr").mkdir()
        (path.parent / ".sums.tiny.part.zarr").mkdir()
        chunk = path.parent / "prediction" / "tiny.zarr" / "0" / "c" / "0" / "0"
        chunk.mkdir(parents=True, exist_ok=True)
        (chunk / f"0.{'a' * 32}.partial").touch()
        assert len(list(read_events(path))) == 6
        list(run(painted, resume=run_id))
        assert all(json.loads(line) for line in path.read_text().splitlines())
        assert not [*path.parent.rglob("*.part.*"), *path.parent.rglob("*.partial")]

    def test_damaged_line(self, painted: Project, method: Any) -> None:
        list(run(painted, method(fill)))
        path = painted.run_folder(painted.run_ids()[0]) / "events.jsonl"
        path.write_text("nonsense\n" + path.read_text())
        with pytest.raises(StorageError, match="line 1"):
            list(read_events(path))

    def test_method_and_config_come_from_the_run(self, painted: Project) -> None:
        config = build_config("interpolate", {"mode": "nearest", "seed": 4})
        events = run(painted, config)
        next(events)
        events.close()
        run_id = painted.run_ids()[0]
        assert resume_config(painted, run_id) == config
        moved = config.model_copy(update={"device": "cpu"})
        assert list(run(painted, moved, resume=run_id))
        with pytest.raises(InputError, match="config that it began with"):
            list(run(painted, build_config("interpolate", {}), resume=run_id))

    def test_takes_note_of_what_was_painted_since(self, painted: Project, method: Any) -> None:
        seen = []

        def look(context: RunContext, config: FakeConfig) -> Iterator[Event]:
            seen.append(context.annotated("tiny"))
            yield Progress("look", 0, 1)

        events = run(painted, method(look))
        next(events)
        next(events)
        events.close()
        painted.annotation("tiny").set_complete(SliceRef("z", 9), True)
        list(run(painted, resume=painted.run_ids()[0]))
        assert seen == [(2, 7, 12), (2, 7, 9, 12)]

    def test_no_such_run(self, painted: Project) -> None:
        with pytest.raises(InputError, match="no runs yet"):
            list(run(painted, resume="r1"))
        with pytest.raises(InputError, match="no finished run"):
            newest_finished(painted)

    def test_killed_before_it_began(self, painted: Project) -> None:
        folder = new_run_folder(painted.runs_folder, "interpolate")
        with pytest.raises(MissingFileError, match="never began"):
            list(run(painted, resume=folder.name))
        (folder / "run.json").write_text("{")
        with pytest.raises(StorageError, match="damaged"):
            list(run(painted, resume=folder.name))


class TestGlobals:
    def test_a_run_changes_nothing_outside(self, painted: Project, method: Any) -> None:
        def rude(context: RunContext, config: FakeConfig) -> Iterator[Event]:
            torch.set_grad_enabled(False)
            torch.set_num_threads(2)
            torch.set_default_dtype(torch.float64)
            torch.backends.cudnn.benchmark = True
            yield Progress("rude", 0, 1)
            assert not torch.is_grad_enabled()
            assert torch.get_deterministic_debug_mode() == 2

        def outside() -> tuple[object, ...]:
            return (
                torch.is_grad_enabled(),
                torch.get_num_threads(),
                torch.get_default_dtype(),
                torch.backends.cudnn.benchmark,
                torch.backends.cudnn.deterministic,
                torch.get_deterministic_debug_mode(),
            )

        before = outside()
        for _ in run(painted, method(rude)):
            assert outside() == before
        assert outside() == before

    def test_random_numbers_belong_to_the_run(self, painted: Project, method: Any) -> None:
        drawn: list[tuple[float, ...]] = []

        def draw(context: RunContext, config: FakeConfig) -> Iterator[Event]:
            for step in range(3):
                drawn.append((random.random(), np.random.rand(), float(torch.rand(())), context.rng.random()))
                yield Progress("draw", step, 3)

        config = method(draw)
        list(run(painted, config))
        mine = []
        random.seed(5)
        for _ in run(painted, config):
            mine.append(random.random())
            torch.rand(7)
            np.random.rand(7)
        assert drawn[:3] == drawn[3:]
        random.seed(5)
        assert mine == [random.random() for _ in mine]
        list(run(painted, config.model_copy(update={"seed": 1})))
        assert drawn[6] != drawn[0]

    def test_cancelling_does_not_wind_the_callers_generator_back(self, painted: Project, method: Any) -> None:
        events = run(painted, method(fill))
        next(events)
        next(events)
        random.seed(5)
        first = random.random()
        events.close()
        assert random.random() != first


def test_run_ids_are_different_and_sorted(tmp_path: Path) -> None:
    names = [new_run_folder(tmp_path, "m").name for _ in range(12)]
    assert len(set(names)) == 12
    stamps = [name.rpartition("-m")[0] for name in names]
    assert stamps == sorted(stamps)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
@pytest.mark.parametrize(
    "name", ["run.lock", "runs/R/run.json", "runs/R/events.jsonl", "runs/R/slices.csv", "runs/R/prediction", "runs/R"]
)
def test_nothing_outside_of_the_project_is_written(painted: Project, tmp_path: Path, method: Any, name: str) -> None:
    """A project from somebody else holds links: none is followed to be written or removed."""
    events = run(painted, method(fill))
    for _ in range(5):
        next(events)
    events.close()
    run_id = painted.run_ids()[0]
    inside, outside = painted.path / name.replace("R", run_id), tmp_path / "outside"
    if inside.exists():
        inside.rename(outside)
    else:
        outside.write_text("precious")
    inside.symlink_to(outside, target_is_directory=outside.is_dir())
    before = {path: path.read_bytes() for path in (outside, *outside.rglob("*")) if path.is_file()}
    said = ""
    try:
        list(run(Project.open(painted.path), resume=run_id))
    except SliceLabelError as error:
        said = str(error)
    assert not said or "link" in said
    assert {path: path.read_bytes() for path in (outside, *outside.rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize(
    "change",
    [
        {"annotated": {}},
        {"spans": {}},
        {"spans": {"tiny": [0, 10**30]}},
        {"spans": {"tiny": [5, 3]}},
        {"annotated": {"tiny": [99]}},
        {"stops": "none"},
    ],
    ids=str,
)
def test_a_record_that_does_not_fit_together_is_damaged(painted: Project, method: Any, change: dict[str, Any]) -> None:
    list(run(painted, method(fill)))
    folder = painted.run_folder(painted.run_ids()[0])
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(StorageError, match="damaged"):
        RunRecord.load(folder)
