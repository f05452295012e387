"""The pure part: facts in, one frozen snapshot out. No window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.engine.plan import RunPlan
from napari_slicelabel.gui.paint import SaveState
from napari_slicelabel.gui.state import (
    LayerFacts,
    ProjectFacts,
    RunFacts,
    Scores,
    resolve,
    review_queue,
    stale_slices,
)
from napari_slicelabel.gui.worker import RunState

NONE = {"z": frozenset[int](), "y": frozenset[int](), "x": frozenset[int]()}
LAYERS = LayerFacts(image=True, labels=True, current=SliceRef("z", 3))
PROJECT = ProjectFacts("/p", "v", (10, 20, 30), (1, 1, 1), "pixel", (), NONE, NONE, SaveState())


def scores(confidence: list[float], human: tuple[int, ...] = ()) -> Scores:
    mask = np.zeros(len(confidence), bool)
    mask[list(human)] = True
    return Scores("z", np.array(confidence), mask, ("",) * len(confidence), frozenset(human))


def painted(*indices: int) -> dict[str, frozenset[int]]:
    return {**NONE, "z": frozenset(indices)}


@pytest.mark.parametrize(
    ("project", "layers", "run", "step"),
    [
        pytest.param(None, LayerFacts(), RunState(), "open", id="nothing"),
        pytest.param(PROJECT, LAYERS, RunState(), "select", id="fresh"),
        pytest.param(replace(PROJECT, order=(SliceRef("z", 3),)), LAYERS, RunState(), "paint", id="proposed"),
        pytest.param(replace(PROJECT, painted=painted(3)), LAYERS, RunState(), "paint", id="painted"),
        pytest.param(replace(PROJECT, complete=painted(3)), LAYERS, RunState(), "propagate", id="complete"),
        pytest.param(PROJECT, LAYERS, RunState(phase="running"), "running", id="running"),
        pytest.param(
            replace(PROJECT, painted=painted(3), scores=scores([0.5] * 10)), LAYERS, RunState(), "review", id="done"
        ),
        pytest.param(replace(PROJECT, painted=painted(3)), LayerFacts(), RunState(), "paint", id="layer gone"),
    ],
)
def test_whose_turn_it_is(project: ProjectFacts | None, layers: LayerFacts, run: RunState, step: str) -> None:
    snapshot = resolve(project, layers, run, RunPlan())
    assert snapshot.step == step
    assert snapshot.hint
    assert snapshot == resolve(project, layers, run, RunPlan())


def test_proposals_say_what_became_of_them() -> None:
    refs = tuple(SliceRef("z", index) for index in (1, 3, 5, 7))
    project = replace(PROJECT, order=refs, painted=painted(1, 3), complete=painted(1), skipped=frozenset({refs[2]}))
    snapshot = resolve(project, LAYERS, RunState(), RunPlan())
    assert [row.state for row in snapshot.proposals] == ["complete", "painting", "skipped", "proposed"]
    assert snapshot.next_proposal == refs[1]


def test_the_queue_begins_where_a_correction_repairs_most() -> None:
    found = scores([0.9, 0.75, 0.9, 0.9, 0.9, 0.9, 0.9, 0.5, 0.4, 0.5], human=(0,))
    assert review_queue(found, frozenset(), frozenset())[0].index == 8
    assert 8 not in [row.index for row in review_queue(found, frozenset({8}), frozenset())]
    assert 4 in [row.index for row in review_queue(found, frozenset(), frozenset({4}))]


def test_what_is_complete_needs_no_review() -> None:
    """Whichever way it became so; taken back, it is to be reviewed again."""
    project = replace(PROJECT, scores=scores([0.5] * 10, human=(0,)), accepted=frozenset({4}), complete=painted(4, 5))
    snapshot = resolve(project, LAYERS, RunState(), RunPlan())
    assert {row.index for row in snapshot.queue} == {1, 2, 3, 6, 7, 8, 9}
    assert {row.index for row in snapshot.reviewed} == {4, 5}
    again = resolve(replace(project, accepted=frozenset(), complete=NONE), LAYERS, RunState(), RunPlan())
    assert len(again.queue) == 9
    assert not again.reviewed


def test_slices_of_earlier_runs_are_stale_by_what_those_went_by() -> None:
    found = replace(scores([0.5] * 10, human=(0,)), annotated=frozenset({0, 8}))
    older = replace(found, earlier=((frozenset({4, 7}), frozenset({0})),))
    assert stale_slices(found, frozenset({0, 8}), frozenset()) == frozenset()
    assert stale_slices(older, frozenset({0, 8}), frozenset()) == {4, 7}


def test_slices_near_new_paint_are_stale() -> None:
    found = scores([0.5] * 10, human=(0,))
    assert stale_slices(found, frozenset({0}), frozenset()) == frozenset()
    assert stale_slices(found, frozenset({0, 8}), frozenset()) == {4, 5, 6, 7, 8, 9}


def test_a_killed_run_can_go_on_unless_one_is_at_work() -> None:
    project = replace(PROJECT, runs=(RunFacts("r1", "interpolate", "running"),))
    assert resolve(project, LAYERS, RunState(), RunPlan()).resumable == project.runs[0]
    assert resolve(project, LAYERS, RunState(phase="running"), RunPlan()).resumable is None


def test_a_run_says_whether_it_measured_how_sure_it_may_be() -> None:
    runs = (RunFacts("r1", "flow", "finished", measured=False), RunFacts("r2", "flow", "finished"))
    for shown, measured in (("r1", False), ("r2", True), ("", True)):
        project = replace(PROJECT, runs=runs, shown_run=shown, scores=scores([0.5] * 10))
        assert resolve(project, LAYERS, RunState(), RunPlan()).measured == measured


def test_a_problem_of_the_plan_keeps_run_from_being_pressed() -> None:
    assert not resolve(PROJECT, LAYERS, RunState(), RunPlan(problem="Paint at least one slice first.")).can_run
    assert resolve(PROJECT, LAYERS, RunState(), RunPlan()).can_run
