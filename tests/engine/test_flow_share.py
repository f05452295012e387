"""Correspondence flow as a second opinion, in each method that hears it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.engine import flow_share, volume_learning
from napari_slicelabel.engine.block_sampling import Block, BlockPool
from napari_slicelabel.engine.confidence import HeldOut
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.evaluate import evaluate
from napari_slicelabel.engine.events import Event, Metric, Progress, SliceDone
from napari_slicelabel.engine.flow import Flow
from napari_slicelabel.engine.flow_config import FlowShareConfig
from napari_slicelabel.engine.losses import IGNORE
from napari_slicelabel.engine.methods import METHODS, self_label
from napari_slicelabel.engine.run import run
from napari_slicelabel.engine.sampling import Plane, PlanePool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.context import Slot

DEPTH, SIZE = 16, 32
ANNOTATED = (1, 5, 9, 13)
IN_3D: dict[str, object] = {"width": 8, "levels": 3, "crop_px": 32, "crop_depth": 8, "batch": 1, "fold_iterations": 2}
# The networks learn nothing.
SETTINGS: dict[str, dict[str, object]] = {
    "self-label": {
        **dict.fromkeys(("iterations", "fold_iterations"), 2),
        "transfer_iterations": 0,
        "rounds": 0,
        "width": 8,
        "batch": 2,
        "crop_px": 32,
    },
    "gradual-3d": {**IN_3D, "iterations": 2, "rounds": 0},
    "self-train": {
        **IN_3D,
        **dict.fromkeys(("iterations", "plane_iterations", "random_iterations", "nearest_iterations"), 2),
        "plane_batch": 2,
        "planes": "run",
        "trial": "off",
    },
}

methods = pytest.mark.parametrize("method", SETTINGS)


def test_every_method_that_hears_flow_has_settings() -> None:
    assert set(SETTINGS) == {name for name, method in METHODS.items() if issubclass(method.config, FlowShareConfig)}


@pytest.fixture
def project(make_project: Callable[..., Project]) -> Project:
    return make_project({"a": drifting_tube()}, {"a": ANNOTATED}, classes=("tube",))


@pytest.fixture
def _all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flow has all of the say, or none."""
    monkeypatch.setattr(flow_share, "MOST_SHARE", 1.0)


def drifting_tube() -> NDArray[np.uint8]:
    """A tube that moves by two thirds of its width from one annotated slice to the next."""
    z, y, x = np.ogrid[:DEPTH, :SIZE, :SIZE]
    truth: NDArray[np.uint8] = (((y - 6 - 1.3 * z) ** 2 + (x - 16) ** 2) < 16).astype(np.uint8)
    return truth


def settings_of(method: str, **settings: object) -> dict[str, object]:
    return {"device": "cpu", "flow_iterations": 4, "learning_rate": 1e-6, **SETTINGS[method], **settings}


def events_of(project: Project, method: str, **settings: object) -> list[Event]:
    return list(run(project, build_config(method, settings_of(method, **settings))))


def metrics_of(events: list[Event]) -> dict[str, float]:
    return {event.name: event.value for event in events if isinstance(event, Metric)}


def stages_of(events: list[Event]) -> set[str]:
    return {event.stage for event in events if isinstance(event, Progress)}


def dice_of(project: Project) -> float:
    return evaluate(project, truth=project.volume("a"), run_id=project.run_ids()[-1])["mean_dice"]


def sure_of(project: Project) -> NDArray[np.uint8]:
    store = run_store(project, project.run_folder(project.run_ids()[-1]), "confidence", "a", "z")
    return np.stack([store.read(index) for index in range(DEPTH)])


def pseudo_labels_learned_from(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.uint8]]:
    """Return a list that gets the pseudo-labels of everything that a network learns from."""
    learned: list[NDArray[np.uint8]] = []

    class Planes(PlanePool):
        def __init__(self, planes: Iterator[Plane], *others: object) -> None:
            def seen() -> Iterator[Plane]:
                for plane in planes:
                    learned.extend([] if plane.human else [plane.target])
                    yield plane

            super().__init__(seen(), *others)  # type: ignore[arg-type]

    class Blocks(BlockPool):
        def __init__(self, blocks: Iterator[Block], *others: object) -> None:
            def seen() -> Iterator[Block]:
                for block in blocks:
                    pseudo = block.targets[0][~block.human]
                    learned.extend([pseudo] if (pseudo != IGNORE).any() else [])
                    yield block

            super().__init__(seen(), *others)  # type: ignore[arg-type]

    monkeypatch.setattr(self_label, "PlanePool", Planes)
    monkeypatch.setattr(volume_learning, "BlockPool", Blocks)
    return learned


@methods
@pytest.mark.usefixtures("_all_or_nothing")
def test_it_counts_where_it_labels_held_out_slices_better(project: Project, method: str) -> None:
    scores = {}
    for flow in ("off", "auto"):
        events = events_of(project, method, flow=flow)
        scores[flow] = dice_of(project)
        carried = [e.index for e in events if isinstance(e, SliceDone) and e.provenance == "flow"]
        assert ("carry" in stages_of(events)) is (flow == "auto")
        # the first labels that are seen
        assert sorted(carried) == (sorted(set(range(DEPTH)) - set(ANNOTATED)) if flow == "auto" else [])
    told = metrics_of(events)
    assert told["flow_share"] == 1
    assert told["held_out_dice"] == told["held_out_dice_flow"] > told["held_out_dice_network"]
    assert scores["auto"] > scores["off"] + 0.1
    assert scores["auto"] > 0.9
    assert not (project.run_folder(project.run_ids()[-1]) / "sets").exists()


@methods
def test_it_counts_where_too_few_slices_are_annotated_to_ask(make_project: Callable[..., Project], method: str) -> None:
    project = make_project({"a": drifting_tube()}, {"a": ANNOTATED[:2]}, classes=("tube",))
    scores = {}
    for flow in ("off", "auto"):
        events = events_of(project, method, flow=flow, range=f"0:{ANNOTATED[1] + 1}")
        assert not {stage for stage in stages_of(events) if stage.startswith(("hold out", "calibrate"))}
        assert ("there and back" in stages_of(events)) is ("carry" in stages_of(events)) is (flow == "auto")
        scores[flow] = dice_of(project)
    assert scores["auto"] > scores["off"] + 0.05


@methods
def test_a_network_learns_from_it_where_too_few_slices_are_annotated_to_ask(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Also in a run that goes on behind it, and not where it carries to held-out slices."""
    learned = pseudo_labels_learned_from(monkeypatch)
    project = make_project({"a": drifting_tube()}, {"a": ANNOTATED[1:3]}, classes=("tube",))
    first = list(run(project, build_config(method, settings_of(method)), stop=lambda: bool(learned)))
    assert "carry" in stages_of(first)
    assert learned
    learned.clear()
    assert "carry" not in stages_of(list(run(project, resume=project.run_ids()[-1])))
    # every pixel between the annotated slices and beyond them, as it was carried
    assert np.mean([target != IGNORE for target in learned]) == 1
    assert sum((target == 1).sum() for target in learned) > 0.5 * drifting_tube().sum()
    learned.clear()
    for z in ANNOTATED:
        project.annotation("a").write_slice(SliceRef("z", z), drifting_tube()[z], complete=True)
    assert "carry" in stages_of(events_of(project, method))
    assert not learned


def test_a_network_learns_from_it_however_little_it_counts(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_share, "MOST_SHARE", 0.12)
    learned = pseudo_labels_learned_from(monkeypatch)
    project = make_project({"a": drifting_tube()}, {"a": ANNOTATED[1:3]}, classes=("tube",))
    told = metrics_of(list(run(project, build_config("self-label", settings_of("self-label")))))
    assert told["flow_share"] == 0.12
    assert np.mean([target != IGNORE for target in learned]) == 1


def test_it_does_not_count_where_labels_do_not_come_back(make_project: Callable[..., Project]) -> None:
    """A single annotated slice, and nothing of it in the others."""
    noise = np.random.default_rng(0).integers(0, 255, (DEPTH, SIZE, SIZE)).astype(np.uint8)
    project = make_project({"a": noise}, {}, classes=("tube",))
    project.annotation("a").write_slice(SliceRef("z", 8), drifting_tube()[8], complete=True)
    told = metrics_of(events_of(project, "self-label"))
    assert told["flow_return"] < 0.05
    assert told["flow_share"] == 0


def test_it_counts_where_no_annotated_slice_lies_between_others(make_project: Callable[..., Project]) -> None:
    """A slice in each of three volumes: a network can be held out from them, flow cannot."""
    names = ("a", "b", "c")
    project = make_project(dict.fromkeys(names, drifting_tube()), dict.fromkeys(names, (9,)), classes=("tube",))
    events = events_of(project, "self-label")
    told = metrics_of(events)
    assert told["flow_share"] > 0.1
    assert told["held_out_dice"] >= 0
    carried = {event.volume for event in events if isinstance(event, SliceDone) and event.provenance == "flow"}
    assert carried == set(names)


@pytest.mark.parametrize("trained", [True, False])
def test_it_does_not_count_where_it_labels_them_far_worse(
    project: Project, monkeypatch: pytest.MonkeyPatch, *, trained: bool
) -> None:
    """However likely: but where the network labels them badly, too, Dice cannot tell."""
    held_out = Flow.to_held_out

    def upside_down(flow: Flow) -> Iterator[Progress | tuple[Slot, NDArray[np.float32]]]:
        for event in held_out(flow):
            yield event if isinstance(event, Progress) else (event[0], event[1][::-1])

    monkeypatch.setattr(Flow, "to_held_out", upside_down)
    monkeypatch.setattr(flow_share, "fit_share", lambda _network, _flow: 0.4)
    learning = {"iterations": 40, "fold_iterations": 40, "learning_rate": 1e-3, "batch": 4, "crop_px": 64}
    events = events_of(project, "self-label", **(learning if trained else {"fold_iterations": 1}))
    told = metrics_of(events)
    assert (told["held_out_dice_network"] > 0.3) is trained
    assert told["flow_share"] == (0 if trained else 0.4)
    assert "flow_share_next_to" not in told
    assert ("carry" in stages_of(events)) is not trained
    assert ("flow" in {event.provenance for event in events if isinstance(event, SliceDone)}) is not trained


def held_out_bars(shown: float, *, distance: int = 5) -> list[HeldOut]:
    """Slices with a bar of which a part is labelled, and as much beside it."""
    target = np.zeros(200, np.uint8)
    target[50:150] = 1
    seen = np.roll(target, round(100 * (1 - shown)))
    probability = np.where(seen, 0.9, 0.1).astype(np.float32)
    return [HeldOut(np.stack([1 - probability, probability]), target, distance)] * 2


def test_how_much_it_counts_follows_from_held_out_slices() -> None:
    # Dice .8 and .7, and the errors of the one are among those of the other
    share, next_to = flow_share.shares(held_out_bars(0.8), held_out_bars(0.7))
    assert 0 <= share == next_to <= flow_share.MOST_SHARE
    # .2 from five slices away is .72 from the next one, and .55 from two away
    assert flow_share.shares(held_out_bars(0.6), held_out_bars(0.2)) == (0, 0.5)
    assert flow_share.shares(held_out_bars(0.8), held_out_bars(0.2)) == (0, 0)
    assert flow_share.shares(held_out_bars(0.6), held_out_bars(0.2, distance=2)) == (0, 0)


def test_it_counts_a_little_where_it_is_far_worse_and_helps() -> None:
    """The network is not sure of the first fifth of the bar; flow knows that one, and nothing else."""
    network, flow = held_out_bars(0.6)[0], held_out_bars(0.6)[0]
    unsure, knows = network.probability.copy(), np.full((2, 200), 0.1, np.float32)
    unsure[:, 50:70] = [[0.51], [0.49]]
    knows[1, :70] = knows[1, 150:] = 0.9
    knows[0] = 1 - knows[1]
    assert flow_share.shares([network._replace(probability=unsure)], [flow._replace(probability=knows)])[0] == 0.15


def test_it_may_count_next_to_annotated_slices_only(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_share, "shares", lambda _network, _flow: (0.0, 1.0))
    events_of(project, "self-label", flow="off")
    without = sure_of(project)
    events = events_of(project, "self-label")
    assert "carry" in stages_of(events)
    told = metrics_of(events)
    assert (told["flow_share"], told["flow_share_next_to"]) == (0, 1)
    # where it hardly counts it is not shown, either
    assert not [event for event in events if isinstance(event, SliceDone) and event.provenance == "flow"]
    nearest = np.abs(np.arange(DEPTH)[:, None] - np.array(ANNOTATED)).min(1)
    assert (sure_of(project) != without).any((1, 2))[nearest == 1].all()
    np.testing.assert_array_equal(sure_of(project)[nearest != 1], without[nearest != 1])
    scores = evaluate(project, truth=project.volume("a"), run_id=project.run_ids()[-1])["by_distance"]
    assert scores[0]["mean_dice"] > 0.9


@methods
@pytest.mark.usefixtures("_all_or_nothing")
@pytest.mark.parametrize("change", ["nothing", "a correction", "a set removed"])
def test_what_was_carried_is_taken_up_by_a_resume(project: Project, method: str, change: str) -> None:
    """Once more where the annotation has changed since, or where the run was killed while it cleared away."""
    filled: list[int] = []
    for event in run(project, build_config(method, settings_of(method)), stop=lambda: len(filled) > 4):
        filled.extend([event.index] if isinstance(event, SliceDone) and event.provenance == "final" else [])
    run_id = project.run_ids()[-1]
    carried_set = project.run_folder(run_id) / "sets" / flow_share.FLOW_SET
    assert carried_set.exists()
    before = sure_of(project)
    if change == "a correction":
        project.annotation("a").write_slice(SliceRef("z", 7), drifting_tube()[7], complete=True)
    elif change == "a set removed":
        shutil.rmtree(carried_set)
    events = list(run(project, resume=run_id))
    assert ("carry" in stages_of(events)) is (change != "nothing")
    # it is not shown again: what the network has labelled by now would be gone
    written = [event for event in events if isinstance(event, SliceDone)]
    assert {event.provenance for event in written} <= {"final", "human"}
    if change != "a correction":
        assert not {event.index for event in written} & set(filled)
        np.testing.assert_array_equal(sure_of(project)[filled], before[filled])
    assert dice_of(project) > 0.9
    assert not carried_set.parent.exists()


@methods
def test_one_that_does_not_count_changes_no_label(
    project: Project, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether flow is asked must not change what the network draws, and so learns."""
    monkeypatch.setattr(flow_share, "MOST_SHARE", 0.0)
    found = []
    for flow in ("auto", "off"):
        events = events_of(project, method, flow=flow, learning_rate=1e-3)
        assert ("flow_share" in metrics_of(events)) is (flow == "auto")
        found.append(sure_of(project))
    np.testing.assert_array_equal(*found)


def test_it_has_no_say_in_the_trial_of_self_train(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flow knows the slices that are held out there."""
    asked: list[Slot] = []
    added = flow_share.FlowShare.added

    def noted(share: flow_share.FlowShare, bands: object, slot: Slot) -> object:
        asked.append(slot)
        return added(share, bands, slot)  # type: ignore[arg-type]

    monkeypatch.setattr(flow_share.FlowShare, "added", noted)
    for event in run(
        project, build_config("self-train", settings_of("self-train", trial="auto")), stop=lambda: bool(asked)
    ):
        assert not (asked and isinstance(event, Progress) and event.stage.startswith("trial"))
    assert asked
