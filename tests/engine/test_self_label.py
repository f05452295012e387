"""What self-labelling does beyond the promises of every method."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.classes import PAINTED_BACKGROUND
from napari_slicelabel.engine.confidence import Labelled
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.evaluate import evaluate
from napari_slicelabel.engine.events import Event, Metric, Progress, SliceDone
from napari_slicelabel.engine.losses import IGNORE
from napari_slicelabel.engine.methods.self_label import SelfLabelConfig, SelfLabelling
from napari_slicelabel.engine.networks import load_network
from napari_slicelabel.engine.pieces import pieces
from napari_slicelabel.engine.regions import accepted, front_rounds
from napari_slicelabel.engine.run import run
from napari_slicelabel.engine.shapes import Shapes
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project
    from napari_slicelabel.data.samples import Sample
    from napari_slicelabel.engine.context import Slot

TINY: dict[str, object] = {
    "device": "cpu",
    **dict.fromkeys(("iterations", "round_iterations", "fold_iterations", "flow_iterations", "transfer_iterations"), 2),
    "rounds": 2,
    "width": 8,
    "batch": 2,
    "crop_px": 32,
    "flow": "off",  # test_flow_share.py
}


def events_of(project: Project, **settings: object) -> list[Event]:
    return list(run(project, build_config("self-label", {**TINY, **settings})))


def metrics_of(events: list[Event]) -> dict[str, float]:
    return {event.name: event.value for event in events if isinstance(event, Metric)}


def run_id(project: Project) -> str:
    return project.run_ids()[-1]


@given(
    annotated=st.sets(st.integers(0, 39), min_size=1, max_size=6),
    start=st.integers(0, 20),
    length=st.integers(1, 20),
    rounds=st.integers(0, 6),
    step=st.integers(0, 7),
)
def test_fronts_reach_every_slice_once_and_the_nearest_first(
    annotated: set[int], start: int, length: int, rounds: int, step: int
) -> None:
    span = range(start, start + length)
    annotated &= set(span)
    assume(annotated)
    found = front_rounds(pieces(span, sorted(annotated)), rounds, step)
    reached = [index for slices in found for index in slices]
    assert len(reached) == len(set(reached))
    assert set(reached) <= set(span) - annotated
    if not (rounds and step):
        assert set(reached) == set(span) - annotated

    def far(index: int) -> int:
        return min(abs(index - other) for other in annotated)

    for earlier, later in pairwise(found):
        assert max(map(far, earlier), default=0) < min(map(far, later), default=10**6)
    if rounds:
        assert len(found) <= rounds


@pytest.fixture
def unsure() -> Labelled:
    """Background and two channels, each sure in one half and unsure in the other."""
    channels = np.repeat(np.array([[0, 1, 2]], np.uint8), 4, axis=0)
    confidence = np.where(np.arange(4)[:, None] < 2, 0.95, 0.6).astype(np.float32)
    return Labelled(channels, np.broadcast_to(confidence, (4, 3)).copy(), expected=0.5)


@pytest.mark.parametrize(
    ("rule", "below"),
    [
        ("all", [0, 1, 2]),
        ("one-sided", [0, 0, 0]),
        ("two-sided", [IGNORE, IGNORE, IGNORE]),
    ],
)
def test_what_is_learned_from_pixels_below_the_threshold(unsure: Labelled, rule: str, below: list[int]) -> None:
    found = accepted(unsure, rule, 0.8)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found[:2], unsure.channels[:2])
    np.testing.assert_array_equal(found[2:], [below, below])


def test_quantile_keeps_the_same_share_of_every_class(rng: np.random.Generator) -> None:
    channels = rng.choice(np.array([0, 1, 2], np.uint8), (50, 60), p=[0.8, 0.15, 0.05])
    # the rare class is never as sure as background
    confidence = (rng.random((50, 60)) * np.array([1.0, 0.8, 0.5])[channels]).astype(np.float32)
    found = accepted(Labelled(channels, confidence, expected=0.5), "quantile", 0.6)
    for channel in range(3):
        kept = (found[channels == channel] != IGNORE).mean()
        assert kept == pytest.approx(0.6, abs=0.02)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_preset_of_the_paper_grows_by_one_slice_a_round(project: Project, tiny_stack: Sample) -> None:
    project.annotation("tiny").write_slice(SliceRef("z", 8), tiny_stack.labels[8], complete=True)
    settings = {"preset": "paper", "device": "cpu", "iterations": 2, "round_epochs": 1, "batch": 4, "width": 8}
    events = list(run(project, build_config("self-label", settings)))
    labelled: dict[str, list[int]] = {}
    for event in events:
        if isinstance(event, SliceDone):
            labelled.setdefault(event.provenance, []).append(event.index)
    rounds = [slices for provenance, slices in labelled.items() if provenance.startswith("round")]
    assert [sorted(slices) for slices in rounds] == [[7, 9], [6, 10], [5, 11], [4, 12], [3, 13], [2, 14], [1, 15], [0]]
    # its pseudo-labels are never predicted again
    assert labelled.get("final", []) in ([], [8])
    # one epoch of round 3 is 7 slices in batches of 4
    learned = {event.stage: event.total for event in events if isinstance(event, Progress)}
    assert learned["round 3: learn"] == 2
    assert (load_network(project.run_folder(run_id(project)) / "model")[0].config.encoder) == "anderson"


def test_every_annotated_slice_starts_two_fronts(painted: Project) -> None:
    first = {
        event.index
        for event in events_of(painted, rounds=0, step=1)
        if isinstance(event, SliceDone) and event.provenance == "round 1"
    }
    assert first == {1, 3, 6, 8, 11, 13}


@pytest.mark.parametrize(("flow", "lowest"), [("off", 1), ("auto", 0.25)])
def test_three_annotated_slices_are_held_out_in_turn(painted: Project, flow: str, lowest: float) -> None:
    """A network that trained briefly is too modest; it and flow together may be."""
    found = metrics_of(events_of(painted, flow=flow))
    assert lowest <= found["temperature"] <= 8
    assert 0 <= found["held_out_dice"] <= 1


def test_two_annotated_slices_are_not_held_out(project: Project, tiny_stack: Sample) -> None:
    for z in (4, 12):
        project.annotation("tiny").write_slice(SliceRef("z", z), tiny_stack.labels[z], complete=True)
    assert "temperature" not in metrics_of(events_of(project))


def test_a_class_that_no_slice_shows_is_named(project: Project, tiny_stack: Sample) -> None:
    labels = np.where(tiny_stack.labels[4] == 1, 1, 0).astype(np.uint8)
    project.annotation("tiny").write_slice(SliceRef("z", 4), labels, complete=True)
    with pytest.raises(InputError, match=r"no annotated slice along z shows the class membrane \(2\)"):
        events_of(project)


def test_only_background_painted(project: Project) -> None:
    plane = np.full((64, 64), PAINTED_BACKGROUND, np.uint8)
    project.annotation("tiny").write_slice(SliceRef("z", 4), plane, complete=True)
    with pytest.raises(InputError, match="class"):
        events_of(project)


def tubes(shape: tuple[int, int, int], *, drift: bool, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A tube of each of two classes through z in the same place, or discs that are elsewhere in every slice."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    volume = np.zeros(shape, np.uint8)
    for value, (cy, cx) in ((1, (16, 16)), (2, (40, 36))):
        place = rng.uniform(10, 50, (2, shape[0], 1, 1)) if drift else np.array([cy, cx]).reshape(2, 1, 1, 1)
        volume[(y - place[0]) ** 2 + (x - place[1]) ** 2 + 0 * z < 64] = value
    return volume


@pytest.mark.parametrize(("drift", "expected"), [(False, (1, 2)), (True, ())])
def test_shapes_are_shown_where_place_tells_something(
    make_project: Callable[..., Project], rng: np.random.Generator, drift: bool, expected: tuple[int, ...]
) -> None:
    project = make_project({"a": tubes((20, 64, 64), drift=drift, rng=rng)}, {"a": (2, 6, 10, 14, 18)})
    events_of(project, transfer_iterations=0)
    network = load_network(project.run_folder(run_id(project)) / "model")[0].config
    assert network.shape_classes == expected
    # what has a place must not be learned from mirror images
    assert network.mirror is (expected == ())


def test_it_learns_what_interpolation_cannot_know(make_project: Callable[..., Project]) -> None:
    """Discs that jump from slice to slice are found by their brightness."""
    truth = tubes((12, 64, 64), drift=True, rng=np.random.default_rng(1))
    project = make_project({"a": truth}, {"a": (1, 4, 7, 10)})
    volume = project.volume("a")
    settings = {"iterations": 120, "round_iterations": 10, "batch": 4, "crop_px": 64}
    settings |= {"calibrate": "off", "transfer_iterations": 0}
    events_of(project, **settings)  # type: ignore[arg-type]
    learned = evaluate(project, truth=volume, run_id=run_id(project))["mean_dice"]
    list(run(project, build_config("interpolate", {})))
    interpolated = evaluate(project, truth=volume, run_id=run_id(project))["mean_dice"]
    assert learned > 0.7 > 0.4 > interpolated


def test_volumes_without_annotation_are_labelled_by_the_model(
    make_project: Callable[..., Project], rng: np.random.Generator
) -> None:
    volumes = {name: tubes((6, 64, 64), drift=False, rng=rng) for name in ("a", "b")}
    project = make_project(volumes, {"a": (1, 4)})
    done = [event for event in events_of(project) if isinstance(event, SliceDone) and event.volume == "b"]
    assert [event.index for event in done] == list(range(6))
    assert run_store(project, project.run_folder(run_id(project)), "prediction", "b", "z").read(3).shape == (64, 64)
    scores = evaluate(project, truth=project.volume("b"), run_id=run_id(project), volume="b")
    assert 0 <= scores["mean_dice"] <= 1
    assert scores["by_distance"] == []
    # the model that is kept needs no annotated neighbours: it is for other volumes
    assert load_network(project.run_folder(run_id(project)) / "model")[0].config.shape_classes == ()


def test_one_network_takes_one_number_of_channels(tmp_path: Path) -> None:
    from napari_slicelabel.data.project import Project

    rng = np.random.default_rng(0)
    np.save(tmp_path / "grey.npy", rng.integers(0, 255, (4, 32, 32), np.uint8))
    import tifffile

    tifffile.imwrite(
        tmp_path / "two.tif",
        rng.integers(0, 255, (4, 2, 32, 32), np.uint8),
        imagej=True,
        metadata={"axes": "ZCYX"},
    )
    project = Project.create(tmp_path / "p.slicelabel", [tmp_path / "grey.npy", tmp_path / "two.tif"], classes=["one"])
    labels = np.zeros((32, 32), np.uint8)
    labels[4:9, 4:9] = 1
    project.annotation("grey").write_slice(SliceRef("z", 1), labels, complete=True)
    with pytest.raises(InputError, match=r"\[1, 2\] channels"):
        events_of(project)


@pytest.mark.parametrize(("flow", "first"), [("off", "[23]"), ("auto", "4")])
def test_nan_that_the_intensity_sample_did_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flow: str, first: str
) -> None:
    """A network reads slices with their neighbours; flow, which reads first, one by one."""
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.data.volume import Intensity, Volume

    image = np.random.default_rng(0).random((6, 32, 32), np.float32)
    image[4, 3, 3] = np.nan
    np.save(tmp_path / "holes.npy", image)
    monkeypatch.setattr(Volume, "intensity", lambda _: Intensity((0.0,), (1.0,), (0.5,), (0.3,)))
    project = Project.create(tmp_path / "p.slicelabel", [tmp_path / "holes.npy"], nan="refuse", classes=["one"])
    project.annotation("holes").write_slice(SliceRef("z", 1), np.eye(32, dtype=np.uint8), complete=True)
    with pytest.raises(InputError, match=rf"holes: NaN or infinite values in slices z{first} to z"):
        events_of(project, flow=flow)


def test_config_declares_every_bound_once() -> None:
    assert build_config("self-label", {}) == SelfLabelConfig()
    with pytest.raises(InputError, match="theta"):
        build_config("self-label", {"theta": 0.2})


def test_weak_labels_are_what_interpolation_says(make_project: Callable[..., Project]) -> None:
    truth = tubes((14, 64, 64), drift=False, rng=np.random.default_rng(3))
    truth[9:] = np.roll(truth[9:], 5, axis=2)
    project = make_project({"a": truth}, {"a": (2, 6, 12)})
    list(run(project, build_config("interpolate", {})))
    expected = run_store(project, project.run_folder(run_id(project)), "prediction", "a", "z")
    shapes = Shapes((2, 6, 12), lambda index: truth[index], (1, 2), (1.0, 1.0))
    for index in (3, 4, 8, 11):
        np.testing.assert_array_equal(shapes.labels_between(index), expected.read(index))
    with pytest.raises(ValueError, match="slice 1 "):
        shapes.labels_between(1)


def test_weak_labels_by_correspondence(make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch) -> None:
    """What flow carries is learned from between complete slices, once, and not beyond a stop or in the folds."""
    truth = tubes((14, 64, 64), drift=False, rng=np.random.default_rng(3))
    project = make_project({"a": truth}, {"a": (1, 4, 8, 12)})
    learned: dict[int, NDArray[np.uint8]] = {}
    read = SelfLabelling._labels_between

    def spy(self: SelfLabelling, slot: Slot, left_out: Collection[int]) -> NDArray[np.uint8]:
        learned[slot.index] = read(self, slot, left_out)
        return learned[slot.index]

    monkeypatch.setattr(SelfLabelling, "_labels_between", spy)
    told = events_of(project, interpolation="flow", stops="6", rounds=0)
    assert sorted(learned) == [2, 3, 9, 10, 11]
    found, wanted = (np.stack([planes[index] for index in sorted(learned)]) for planes in (learned, truth))
    assert np.count_nonzero((found == wanted) & (wanted > 0)) > 0.4 * np.count_nonzero(wanted)
    assert {event.stage for event in told if isinstance(event, Progress)} >= {"learn what corresponds", "interpolate"}


def test_weak_labels_are_learned_from_between_complete_slices_only(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not beyond a stop, and in a fold not from the slices that it holds out."""
    truth = tubes((14, 64, 64), drift=True, rng=np.random.default_rng(3))
    project = make_project({"a": truth}, {"a": (1, 4, 8, 12)})
    asked: list[tuple[int, tuple[int, ...]]] = []
    interpolated = Shapes.labels_between

    def spy(self: Shapes, index: int, without: Collection[int] = ()) -> NDArray[np.uint8]:
        asked.append((index, tuple(sorted(without))))
        return interpolated(self, index, without)

    monkeypatch.setattr(Shapes, "labels_between", spy)
    events_of(project, interpolation="distance", stops="6", rounds=0)
    # nothing in the folds: of two slices in a piece one is held out, and the other has nothing to go with
    assert sorted(asked) == [(2, (8, 12)), (3, (8, 12)), (9, (1, 4)), (10, (1, 4)), (11, (1, 4))]
    asked.clear()
    events_of(project, interpolation="distance", rounds=0)
    # first fold: 1 and 8 are held out; second: 4 and 12
    assert {without for _, without in asked} == {(1, 8), (4, 12), ()}
    assert sorted(index for index, without in asked if without == (1, 8)) == [5, 6, 7, 9, 10, 11]
    asked.clear()
    events_of(project)
    assert not asked


@pytest.mark.parametrize("stopped_in", ["round 1", "round 2: learn"])
def test_a_round_that_was_stopped_is_gone_through_again(
    make_project: Callable[..., Project], rng: np.random.Generator, stopped_in: str
) -> None:
    """Its slices are not predicted a second time at the end: none may be left out."""
    project = make_project({"a": tubes((14, 64, 64), drift=False, rng=rng)}, {"a": (3, 9)})
    stages: list[str] = []
    config = build_config("self-label", {**TINY, "refresh": False, "flow": "off"})
    for event in run(project, config, stop=lambda: stopped_in in stages):
        stages.extend([event.stage] if isinstance(event, Progress) else [])
    events = list(run(project, resume=run_id(project)))
    assert sum(isinstance(event, Progress) and event.stage == "round 2: learn" for event in events) == 2
    store = run_store(project, project.run_folder(run_id(project)), "confidence", "a", "z")
    assert all(store.read(index).any() for index in range(14))


@pytest.mark.parametrize("painted_as", ["the same place", "another place"])
def test_a_correction_goes_on_with_the_shapes_that_the_network_knows(
    make_project: Callable[..., Project], rng: np.random.Generator, painted_as: str
) -> None:
    """Stopped in its first round and painted on: what was added may say that no class has a place after all."""
    truth = tubes((20, 64, 64), drift=False, rng=rng)
    project = make_project({"a": truth}, {"a": (2, 10)})
    config = build_config("self-label", {**TINY, "transfer_iterations": 0})
    stages: list[str] = []
    for event in run(project, config, stop=lambda: "round 1: learn" in stages):
        stages.extend([event.stage] if isinstance(event, Progress) else [])
    added = truth if painted_as == "the same place" else tubes((20, 64, 64), drift=True, rng=rng)
    for index in range(4, 20, 3):
        project.annotation("a").write_slice(SliceRef("z", index), added[index], complete=True)
    events = list(run(project, resume=run_id(project)))
    assert events[-1].outcome == "finished"  # type: ignore[union-attr]
    network = load_network(project.run_folder(run_id(project)) / "model")[0].config
    assert network.shape_classes == (1, 2)
    store = run_store(project, project.run_folder(run_id(project)), "prediction", "a", "z")
    for index in range(4, 20, 3):
        np.testing.assert_array_equal(store.read(index), added[index])
    fresh = events_of(project, transfer_iterations=0)
    assert fresh
    anew = load_network(project.run_folder(run_id(project)) / "model")[0].config.shape_classes
    assert anew == ((1, 2) if painted_as == "the same place" else ())


@pytest.mark.parametrize("correct", ["never", "while it fills", "afterwards"])
def test_a_fill_that_was_stopped_begins_anew_after_a_correction(
    make_project: Callable[..., Project], correct: str
) -> None:
    """What was filled by then followed from other shapes; without a correction it is kept."""
    truth = tubes((12, 64, 64), drift=False, rng=np.random.default_rng(0))
    project = make_project({"a": truth}, {"a": (2, 9)})
    config = build_config("self-label", {**TINY, "transfer_iterations": 0, "rounds": 0, "flow": "off"})
    filled: list[int] = []
    for event in run(project, config, stop=lambda: len(filled) > 6):
        filled.extend([event.index] if isinstance(event, SliceDone) else [])
        if correct == "while it fills" and len(filled) == 3:
            project.annotation("a").write_slice(SliceRef("z", 5), truth[5], complete=True)
    if correct == "afterwards":
        project.annotation("a").write_slice(SliceRef("z", 5), truth[5], complete=True)
    again = [event.index for event in run(project, resume=run_id(project)) if isinstance(event, SliceDone)]
    assert sorted(again) == sorted(set(range(12)) - (set(filled) if correct == "never" else set()))
