"""What every method promises. A new method is one line in `CASES`."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import pytest
from tests.conftest import tiny_project
from tests.engine.conftest import ANNOTATED

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project
from napari_slicelabel.data.samples import synthetic_em
from napari_slicelabel.engine.config import MethodConfig, build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.events import Event, Finished, Progress, SliceDone, Started, from_json, to_json
from napari_slicelabel.engine.methods import METHODS
from napari_slicelabel.engine.plan import RunPlan, plan
from napari_slicelabel.engine.record import RunRecord, read_events
from napari_slicelabel.engine.run import run
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from napari_slicelabel.data.samples import Sample

# ``cuda`` on a machine with a GPU; elsewhere, and in CI, everything here is for the CPU
DEVICE = os.environ.get("SLICELABEL_TEST_DEVICE", "cpu")


@dataclass(frozen=True)
class Case:
    """A method at its smallest."""

    method: str
    settings: dict[str, object] = field(default_factory=dict)
    cancels: int = 5  # at how many events it is cancelled
    chains: bool = False  # whether slices come in chains, so that those before the one looked at come before it
    resumes_exactly: bool = False  # whether a killed and resumed run gives the very labels of one that was left alone

    def config(self, **values: object) -> MethodConfig:
        return build_config(self.method, {"device": DEVICE, **self.settings, **values})

    def __str__(self) -> str:
        return " ".join(str(word) for word in (self.method, self.settings.get("preset")) if word)


TINY_NETWORK: dict[str, object] = {
    **dict.fromkeys(("iterations", "round_iterations", "fold_iterations", "flow_iterations", "transfer_iterations"), 2),
    "rounds": 2,
    "flow": "auto",
    "width": 8,
    "batch": 2,
    "crop_px": 32,
}
TINY_FLOW: dict[str, object] = {"iterations": 2, "batch": 2, "crop_px": 32, "reuse": "off"}
TINY_PLUS: dict[str, object] = {
    **TINY_FLOW,
    "preset": "sli2vol+",
    **dict.fromkeys(("guide_iterations", "refine_iterations"), 2),
    "refine_width": 4,
    "encoder": "compact",
    "sides": "both",
    "calibrate": "auto",
}
TINY_VOLUME: dict[str, object] = {
    **dict.fromkeys(("iterations", "fold_iterations", "flow_iterations"), 2),
    "flow": "auto",
    "width": 4,
    "levels": 3,
    "crop_px": 32,
    "crop_depth": 8,
    "batch": 1,
}
TINY_META: dict[str, object] = {
    "vote_margin": 1.0,  # whatever its networks say: they have learned nothing
    **dict.fromkeys(("plane_iterations", "random_iterations", "nearest_iterations"), 2),
    "width": 8,
    "plane_batch": 2,
}
CASES = (
    Case("flow", TINY_FLOW, chains=True),
    Case("flow", TINY_PLUS, cancels=8, chains=True),
    Case("gradual-3d", {**TINY_VOLUME, "round_iterations": 2, "rounds": 2, "churn": 0.0}),
    Case("interpolate", cancels=30, resumes_exactly=True),
    Case("self-label", TINY_NETWORK),
    Case("self-train", {**TINY_VOLUME, **TINY_META}),
)
# those of one method share a run: with xdist they go to the same process
each_method = pytest.mark.parametrize(
    "case", [pytest.param(case, id=str(case), marks=pytest.mark.xdist_group(str(case))) for case in CASES]
)


@pytest.fixture(scope="module")
def _small_sample() -> Sample:
    sample = synthetic_em((16, 32, 32), seed=0)
    sample.image.flags.writeable = sample.labels.flags.writeable = False
    return sample


@pytest.fixture
def tiny_stack(_small_sample: Sample) -> Sample:
    """A quarter of that of other tests: hundreds of runs fill it."""
    return _small_sample


@dataclass(frozen=True)
class Whole:
    """A run from beginning to end that several tests look at; they change nothing."""

    project: Project
    size: RunPlan
    events: list[Event]

    @property
    def run_id(self) -> str:
        return self.events[0].run_id  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def _whole_runs() -> dict[str, Whole]:
    return {}


@pytest.fixture
def whole(
    case: Case, _whole_runs: dict[str, Whole], tmp_path_factory: pytest.TempPathFactory, _small_sample: Sample
) -> Whole:
    if str(case) not in _whole_runs:
        folder = tmp_path_factory.mktemp("whole")
        np.save(folder / "tiny.npy", _small_sample.image)
        project = tiny_project(folder, folder / "tiny.npy", _small_sample)
        for z in ANNOTATED:
            project.annotation("tiny").write_slice(SliceRef("z", z), _small_sample.labels[z], complete=True)
        config = case.config()
        _whole_runs[str(case)] = Whole(project, plan(project, config), list(run(project, config)))
    return _whole_runs[str(case)]


def test_every_method_has_a_case() -> None:
    assert {case.method for case in CASES} == set(METHODS)


def labels_of(project: Project, run_id: str, kind: str = "prediction") -> NDArray[np.uint8]:
    store = run_store(project, project.run_folder(run_id), kind, "tiny", "z")
    return np.stack([store.read(index) for index in range(16)])


def slices_of(project: Project, run_id: str) -> dict[int, dict[str, str]]:
    with (project.run_folder(run_id) / "slices.csv").open() as file:
        return {int(row["index"]): row for row in csv.DictReader(file)}


def assert_human_slices(project: Project, labels: NDArray[np.uint8], *, only: set[int] | None = None) -> None:
    for index in project.annotation("tiny").complete("z"):
        if only is None or index in only:
            target = project.annotation("tiny").supervision(SliceRef("z", index)).target
            np.testing.assert_array_equal(labels[index], target)


def assert_consistent(project: Project, run_id: str) -> None:
    """What the journal and slices.csv list is on disk, and whatever is on disk of a human slice is the human's."""
    reopened = Project.open(project.path)
    journal = list(read_events(reopened.run_folder(run_id) / "events.jsonl"))
    done = {event.index for event in journal if isinstance(event, SliceDone)}
    assert set(slices_of(reopened, run_id)) == done
    assert_human_slices(reopened, labels_of(reopened, run_id), only=done)
    sure = labels_of(reopened, run_id, "confidence")
    assert all(sure[index].any() for index in done)


def judged_slices(events: Sequence[Event]) -> int:
    """Return how often a run told of annotated slices that it held out, or to which flow carried labels back."""
    assert isinstance(events[0], Started)
    # what comes back tells other methods how much flow counts, and nothing of how sure they may be
    stages = {"calibrate", "there and back"} if events[0].method == "flow" else {"calibrate"}
    return sum(isinstance(event, Progress) and event.stage in stages for event in events)


@each_method
class TestContract:
    def test_does_not_pass_a_stop_slice(self, painted: Project, case: Case) -> None:
        """Slices 2, 7 and 12 are annotated: the piece from 8 ends at 12, and nothing behind it is annotated."""
        events = list(run(painted, case.config(stops="4, 5, 12, 15")))
        run_id = events[-1].run_id
        # no annotated slice has others on both sides: interpolation has nothing to measure on
        assert RunRecord.load(painted.run_folder(run_id)).measured == bool(judged_slices(events))
        assert sorted(slices_of(painted, run_id)) == [0, 1, 2, 3, *range(6, 13)]
        labels = labels_of(painted, run_id)
        assert not labels[[4, 5, 13, 14, 15]].any()
        assert_human_slices(painted, labels)

    def test_says_beforehand_what_it_will_do(self, whole: Whole, case: Case) -> None:
        size, events = whole.size, whole.events
        assert size.problem == ""
        assert events[0].slices == size.slices == 16
        assert size.annotated == 3
        trained = sum(isinstance(event, Progress) and not event.message for event in events)
        judged = judged_slices(events)
        written = sum(isinstance(event, SliceDone) for event in events)
        assert RunRecord.load(whole.project.run_folder(whole.run_id)).measured == bool(judged)
        assert size.work.steps - trained in (0, case.settings.get("transfer_iterations"))
        assert size.work.predictions == written + (judged if case.method != "interpolate" else 0)
        assert size.work.seconds > 0
        assert size.work.memory_bytes > 0

    def test_what_is_looked_at_comes_next(self, painted: Project, case: Case) -> None:
        """Somebody looks at slice 15, later at slice 9, and along another axis in between."""
        looks = deque([("tiny", SliceRef("z", 15)), ("tiny", SliceRef("y", 3)), ("tiny", SliceRef("z", 9))])
        order = []
        alone = {name: value for name, value in {"rounds": 0, "flow": "off"}.items() if name in case.settings}
        config = case.config(**alone)
        for event in run(painted, config, in_view=lambda: looks[0]):
            if isinstance(event, SliceDone):
                order.append(event.index)
                looks.rotate(-1 if len(order) < 3 else 0)
        if case.chains:
            # by the time the annotated slices are written it is slice 9: its gap begins with it
            assert order[3] == 9
            assert sorted(order[3:7]) == [8, 9, 10, 11]
        else:
            assert order[0] == 15
            assert order[2] == 9
        assert sorted(order) == list(range(16))
        reference = list(run(painted, config))
        same = [labels_of(painted, run_id) for run_id in (painted.run_ids()[-2], reference[0].run_id)]
        np.testing.assert_array_equal(*same)

    def test_fills_the_span(self, whole: Whole) -> None:
        painted, events = whole.project, whole.events
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Finished)
        assert sum(isinstance(event, Started | Finished) for event in events) == 2
        run_id = events[0].run_id
        labels, sure = labels_of(painted, run_id), labels_of(painted, run_id, "confidence")
        rows = slices_of(painted, run_id)
        assert sorted(rows) == list(range(16))
        assert set(np.unique(labels)) <= {0, 1, 2}
        assert_human_slices(painted, labels)
        for index, row in rows.items():
            human = index in (2, 7, 12)
            assert (row["provenance"] == "human") == human
            assert 0 <= float(row["confidence"]) <= 1
            assert row["needs_review"] == ("yes" if not human and float(row["confidence"]) < 0.8 else "no")
            assert (sure[index] == 255).all() or not human
        assert {event.index for event in events if isinstance(event, SliceDone)} == set(range(16))

    def test_events_survive_the_journal(self, whole: Whole) -> None:
        events = whole.events
        assert [from_json(to_json(event)) for event in events] == events
        assert list(read_events(whole.project.run_folder(whole.run_id) / "events.jsonl")) == events

    def test_same_seed_same_labels(self, whole: Whole, painted: Project, case: Case) -> None:
        list(run(painted, case.config()))
        (again,) = painted.run_ids()
        for kind in ("prediction", "confidence"):
            np.testing.assert_array_equal(labels_of(whole.project, whole.run_id, kind), labels_of(painted, again, kind))

    def test_cancel_then_resume(self, whole: Whole, painted: Project, case: Case) -> None:
        count = len(whole.events)
        run_id = ""
        for stop_after in range(1, count, max(1, count // case.cancels)):
            events = run(painted, case.config())
            for _ in range(stop_after):
                next(events)
            events.close()
            run_id = painted.run_ids()[-1]
            assert RunRecord.load(painted.run_folder(run_id)).outcome == "cancelled"
            assert_consistent(painted, run_id)
        again = list(run(painted, resume=run_id))
        assert isinstance(again[-1], Finished)
        assert again[-1].outcome == "finished"
        assert sorted(slices_of(painted, run_id)) == list(range(16))
        assert_consistent(painted, run_id)

    def test_stop_keeps_what_there_is(self, painted: Project, case: Case) -> None:
        done: list[SliceDone] = []
        event: Event | None = None
        for event in run(painted, case.config(), stop=lambda: len(done) > 2):
            if isinstance(event, SliceDone):
                done.append(event)
        assert isinstance(event, Finished)
        assert event.outcome in ("stopped", "finished")
        assert_consistent(painted, painted.run_ids()[0])

    def test_only_the_range(self, painted: Project, case: Case) -> None:
        list(run(painted, case.config(range="5:14")))
        run_id = painted.run_ids()[0]
        assert sorted(slices_of(painted, run_id)) == list(range(5, 14))
        sure = labels_of(painted, run_id, "confidence")
        assert not sure[:5].any()
        assert not sure[14:].any()
        assert not labels_of(painted, run_id)[:5].any()

    def test_no_annotated_slice(self, project: Project, case: Case) -> None:
        with pytest.raises(InputError, match="no annotated slices"):
            list(run(project, case.config()))

    def test_strokes_in_an_unfinished_slice(self, painted: Project, case: Case) -> None:
        strokes = np.zeros((32, 32), np.uint8)
        strokes[5:9, 10:20], strokes[20:24, 10:20] = 1, 255
        painted.annotation("tiny").write_slice(SliceRef("z", 9), strokes)
        list(run(painted, case.config()))
        labels = labels_of(painted, painted.run_ids()[0])[9]
        assert (labels[strokes == 1] == 1).all()
        assert (labels[strokes == 255] == 0).all()

    def test_along_another_axis(self, project: Project, case: Case) -> None:
        rng = np.random.default_rng(0)
        for index in (6, 16, 26):
            plane = rng.integers(0, 3, (16, 32)).astype(np.uint8)
            project.annotation("tiny").write_slice(SliceRef("y", index), plane, complete=True)
        list(run(project, case.config(range="4:28")))
        run_id = project.run_ids()[0]
        assert sorted(slices_of(project, run_id)) == list(range(4, 28))
        store = run_store(project, project.run_folder(run_id), "prediction", "tiny", "y")
        target = project.annotation("tiny").supervision(SliceRef("y", 16)).target
        np.testing.assert_array_equal(store.read(16), target)


@pytest.mark.parametrize(
    ("method", "stage", "settings"),
    [
        ("gradual-3d", "fit", {"iterations": 5}),
        ("self-label", "fit", {"iterations": 5}),
        ("self-train", "planes", {"plane_iterations": 5, "trial": "off"}),
        ("self-train", "trial, planes", {"plane_iterations": 5, "trial": "auto"}),
        ("self-train", "volume", {"iterations": 5, "trial": "off"}),
        ("self-train", "meta-model, random sets", {"random_iterations": 5, "trial": "off"}),
        ("self-train", "meta-model, nearest sets", {"nearest_iterations": 5, "trial": "off"}),
    ],
)
def test_training_that_was_stopped_takes_the_steps_that_are_left(
    painted: Project, method: str, stage: str, settings: dict[str, object]
) -> None:
    case = next(case for case in CASES if case.method == method)
    steps: list[Event] = []

    def is_step(event: Event) -> bool:
        return isinstance(event, Progress) and event.stage == stage

    for event in run(painted, case.config(**settings), stop=lambda: len(steps) >= 2):
        steps.extend([event] if is_step(event) else [])
    assert len(steps) == 2
    events = list(run(painted, resume=painted.run_ids()[-1]))
    assert len([event for event in events if is_step(event)]) == 3
    assert isinstance(events[-1], Finished)


class Runner:
    """Runs in processes of their own."""

    def __init__(self, requests: IO[str], answers: IO[str]) -> None:
        self._requests = requests
        self._answers = answers
        assert self._answers.readline().strip() == "ready"

    def run(self, **order: object) -> Ended:
        """Run as ordered, killed before it touches the disk for the ``kill_at``-th time if that is given."""
        self._requests.write(json.dumps(order) + "\n")
        self._requests.flush()
        return Ended(**json.loads(self._answers.readline()))


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, and how often it had touched the disk before each stage."""

    status: int
    stages: list[tuple[str, int]]
    touches: int


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    script = Path(__file__).with_name("forked_runs.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin
        assert server.stdout
        yield Runner(server.stdin, server.stdout)
        server.stdin.close()


def kill_points(whole: Ended, rng: random.Random) -> list[int]:
    """Return a touch of the disk in each kind of stage, or as many of any stage as SLICELABEL_KILLS says."""
    wanted = os.environ.get("SLICELABEL_KILLS")
    if wanted:
        return [rng.randint(1, whole.touches) for _ in range(int(wanted))]
    touches: dict[str, list[int]] = {}
    begins = [begin for _, begin in whole.stages]
    for (stage, begin), end in zip(whole.stages, [*begins[1:], whole.touches], strict=True):
        # rounds and folds are alike, and a trial does what comes after it
        kind = re.sub(r"^trial, |[\d ]+(of \d+)?", "", stage)
        touches.setdefault(kind, []).extend(range(begin + 1, end + 1))
    return [rng.choice(numbers) for numbers in touches.values() if numbers]


@pytest.mark.timeout(600)  # some thirty runs
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@each_method
def test_killed_and_resumed(painted: Project, runner: Runner, case: Case) -> None:
    """SIGKILL in each stage, and again in the resume: the project opens, nothing half-written counts, and the next
    resume ends as if nothing had been."""
    order: dict[str, object] = {"project": str(painted.path), "method": case.method}
    order["settings"] = {"device": DEVICE, **case.settings}
    whole_run = runner.run(**order)
    assert whole_run.status == 0
    untouched = labels_of(painted, painted.run_ids()[0])
    painted_bytes = files_of(painted.path / "annotation")
    rng = random.Random(0)
    points = kill_points(whole_run, rng)
    assert len(points) > 1
    resumed = 0
    for point in points:
        known = set(painted.run_ids())
        assert runner.run(**order, kill_at=point).status == -signal.SIGKILL
        new = sorted(set(painted.run_ids()) - known)
        if not new or not (painted.run_folder(new[0]) / "run.json").exists():
            continue  # killed before the run began
        resumed += 1
        assert_opens(painted, new[0])
        again: dict[str, object] = {"project": str(painted.path), "resume": new[0]}
        runner.run(**again, kill_at=rng.randint(1, 1 + (whole_run.touches - point) // 2))
        assert_opens(painted, new[0])
        assert runner.run(**again).status == 0
        assert RunRecord.load(painted.run_folder(new[0])).outcome == "finished"
        assert sorted(slices_of(painted, new[0])) == list(range(16))
        assert_consistent(painted, new[0])
        if case.resumes_exactly:
            np.testing.assert_array_equal(labels_of(painted, new[0]), untouched)
        assert files_of(painted.path / "annotation") == painted_bytes
    assert resumed


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_opens(project: Project, run_id: str) -> None:
    """The project opens, the record is whole, and the run can be looked at."""
    reopened = Project.open(project.path)
    record = RunRecord.load(reopened.run_folder(run_id))
    assert record.outcome in ("running", "finished")
    assert not list(reopened.path.glob("*.part.*"))
    labels_of(reopened, run_id)
    labels_of(reopened, run_id, "confidence")
