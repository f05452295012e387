"""What gradual learning does beyond the promises of every method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.classes import PAINTED_BACKGROUND
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine import block_sampling, volume_learning
from napari_slicelabel.engine.apply import apply
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.evaluate import evaluate
from napari_slicelabel.engine.events import Event, Finished, Metric, Progress, SliceDone
from napari_slicelabel.engine.methods import gradual
from napari_slicelabel.engine.networks import load_model
from napari_slicelabel.engine.run import run
from napari_slicelabel.engine.volume_networks import VolumeNetwork
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.fit import Trainer

TINY: dict[str, object] = {
    "device": "cpu",
    **dict.fromkeys(("iterations", "round_iterations", "fold_iterations"), 2),
    "width": 4,
    "levels": 3,
    "crop_px": 32,
    "crop_depth": 8,
    "batch": 1,
    "calibrate": "off",
}


def balls(shape: tuple[int, int, int] = (24, 40, 40)) -> NDArray[np.uint8]:
    """Two balls of class 1, which a network can tell by their intensity."""
    grid = np.indices(shape)
    labels = np.zeros(shape, np.uint8)
    for centre, radius in (((8, 14, 14), 7), ((16, 26, 26), 8)):
        labels[sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < radius**2] = 1  # type: ignore[arg-type]
    return labels


def events_of(project: Project, **settings: object) -> list[Event]:
    return list(run(project, build_config("gradual-3d", {**TINY, **settings})))


def metrics_of(events: list[Event], name: str) -> list[float]:
    return [event.value for event in events if isinstance(event, Metric) and event.name == name]


def accepted_of(project: Project, volume: str = "a") -> NDArray[np.uint8]:
    store = run_store(project, project.run_folder(project.run_ids()[-1]), "accepted", volume, "z")
    return np.stack([store.read(index) for index in range(project.volume(volume).depth("z"))])


def paint_box(project: Project, truth: NDArray[np.uint8], box: tuple[slice, slice, slice]) -> None:
    """Annotate a subvolume in 3D, background and all; elsewhere nothing is known."""
    for index in range(box[0].start, box[0].stop):
        plane = np.zeros(truth.shape[1:], np.uint8)
        plane[box[1:]] = np.where(truth[index][box[1:]] == 0, PAINTED_BACKGROUND, truth[index][box[1:]])
        project.annotation("a").write_slice(SliceRef("z", index), plane)


def test_it_learns_and_beats_what_the_shapes_say(make_project: Callable[..., Project]) -> None:
    truth = balls()
    project = make_project({"a": truth}, {"a": (2, 12, 22)}, classes=("ball",))
    settings = {"iterations": 40, "round_iterations": 10, "width": 8, "learning_rate": 5e-3, "flips": "on"}
    scores = {}
    for method, values in (("gradual-3d", {**TINY, **settings}), ("interpolate", {})):
        (*_, last) = run(project, build_config(method, values))
        assert isinstance(last, Finished)
        scores[method] = evaluate(project, truth=Volume.from_array(truth), run_id=last.run_id)["mean_dice"]
    assert scores["gradual-3d"] > scores["interpolate"]
    assert scores["gradual-3d"] > 0.85


def test_subvolumes_grow_in_all_directions_until_everything_is_reached(make_project: Callable[..., Project]) -> None:
    truth = balls()
    project = make_project({"a": truth}, {}, classes=("ball",))
    paint_box(project, truth, (slice(8, 12), slice(10, 20), slice(10, 20)))
    paint_box(project, truth, (slice(14, 18), slice(22, 34), slice(22, 34)))
    events = events_of(project, preset="paper", crop_depth=8, crop_px=32, step=4, rounds=2, round_iterations=1)
    coverage = metrics_of(events, "coverage")
    assert len(coverage) == 2
    assert 0 < coverage[0] < coverage[1] < 1
    known = accepted_of(project) != 255
    # from 8 to 12 and 14 to 18, twice 4 voxels on: planes 0 to 25, and pixels 2 to 41
    assert known[0, 2:28, 2:28].all()
    assert not known[0, :2].any()
    assert known[23, 14:, 14:].all()
    assert not known[23, :14].any()
    # the new shells alone are pseudo-labelled: what a human labelled is not
    assert not known[8:12, 10:20, 10:20].any()
    assert known.mean() + (4 * 10**2 + 4 * 12**2) / known.size == pytest.approx(coverage[1], abs=1e-6)
    assert sorted(event.index for event in events if isinstance(event, SliceDone)) == list(range(24))


def test_the_step_is_physical(make_project: Callable[..., Project]) -> None:
    truth = balls()
    project = make_project({"a": truth}, {"a": (12,)}, classes=("ball",), voxel_size=(3, 1, 1))
    events_of(project, step=6, rounds=1)
    reached = [index for index, plane in enumerate(accepted_of(project)) if (plane != 255).any()]
    assert set(reached) - {12} == {10, 11, 13, 14}


def test_rounds_without_refresh_leave_older_labels_alone(make_project: Callable[..., Project]) -> None:
    truth = balls()
    project = make_project({"a": truth}, {"a": (12,)}, classes=("ball",))
    written: dict[str, set[int]] = {}
    for event in run(project, build_config("gradual-3d", {**TINY, "refresh": False, "rounds": 3, "step": 2})):
        if isinstance(event, SliceDone):
            written.setdefault(event.provenance, set()).add(event.index)
    assert written["round 1"] == {10, 11, 13, 14}
    assert written["round 2"] == {8, 9, 15, 16}
    assert written["round 3"] == {6, 7, 17, 18}


def test_rounds_end_when_labels_no_longer_change(make_project: Callable[..., Project]) -> None:
    project = make_project({"a": balls()}, {"a": (4, 12, 20)}, classes=("ball",))
    events = events_of(project, rounds=4, churn=1.0)
    # the first round has nothing to compare with
    assert len(metrics_of(events, "coverage")) == 2
    assert len(metrics_of(events, "churn")) == 1


def test_rounds_end_when_watched_slices_get_worse(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 9 annotated slices one is held out; what the harmful round taught is forgotten, then the slice is used."""
    project = make_project({"a": balls()}, {"a": tuple(range(3, 21, 2))}, classes=("ball",))
    scores = iter([0.8, 0.9, 0.5])
    monkeypatch.setattr("napari_slicelabel.engine.methods.gradual.mean_dice", lambda _: next(scores))
    events = events_of(project, rounds=4, step=1, churn=0.0)
    assert metrics_of(events, "watched_dice") == [0.8, 0.9, 0.5]
    stages = [event.stage for event in events if isinstance(event, Progress)]
    assert "round 2: learn" in stages
    assert "round 3" not in stages
    assert "settle" in stages


def test_watched_slices_are_not_learned_from_before(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project({"a": balls()}, {"a": tuple(range(3, 21, 2))}, classes=("ball",))
    seen: list[tuple[bool, tuple[int, ...]]] = []
    pool = volume_learning.VolumeLearner.pool

    def spy(self: volume_learning.VolumeLearner, *, pseudo: bool, without: tuple[object, ...] = ()) -> object:
        made = pool(self, pseudo=pseudo, without=without)  # type: ignore[arg-type]
        ((block, _),) = made._human._all
        seen.append((pseudo, tuple(np.flatnonzero(block.human.any((1, 2))).tolist())))
        return made

    monkeypatch.setattr(volume_learning.VolumeLearner, "pool", spy)
    events_of(project, rounds=1)
    annotated = tuple(range(3, 21, 2))
    watched = annotated[4]
    assert seen[0] == (False, tuple(index for index in annotated if index != watched))
    assert watched not in seen[1][1]
    assert seen[-1] == (True, annotated)


def test_what_watched_is_learned_from_at_the_end(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learning rate has not fallen to nothing by then."""
    project = make_project({"a": balls()}, {"a": tuple(range(3, 21, 2))}, classes=("ball",))
    weights = []
    settle = gradual.Gradual._settle

    def spy(self: gradual.Gradual, trainer: Trainer[VolumeNetwork], *, settled: bool) -> Iterator[Event]:
        weights.append(trainer.network.slope.detach().clone())
        yield from settle(self, trainer, settled=settled)
        weights.append(trainer.network.slope.detach().clone())

    monkeypatch.setattr(gradual.Gradual, "_settle", spy)
    events_of(project, rounds=1, shapes="on", round_iterations=4)
    assert weights[0] != weights[1]


def test_another_volume_is_labelled_without_annotation(make_project: Callable[..., Project]) -> None:
    truth = balls()
    project = make_project({"a": truth, "b": truth[:, ::-1]}, {"a": (4, 12, 20)}, classes=("ball",))
    events = events_of(project, shapes="on")
    done = [event for event in events if isinstance(event, SliceDone) and event.volume == "b"]
    assert sorted(event.index for event in done) == list(range(24))


@pytest.mark.parametrize(("names", "shown"), [("a", 0.9), ("ab", 0.5)])
def test_more_crops_have_no_shapes_where_a_volume_has_none(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, names: str, shown: float
) -> None:
    drawn: list[bool] = []
    shape = block_sampling.BlockPool._shape

    def spy(self: block_sampling.BlockPool, *place: object) -> object:
        found = shape(self, *place)  # type: ignore[arg-type]
        drawn.append(bool(found[0].any()))
        return found

    monkeypatch.setattr(block_sampling.BlockPool, "_shape", spy)
    project = make_project(dict.fromkeys(names, balls()), {"a": (4, 12, 20)}, classes=("ball",))
    events_of(project, shapes="on", rounds=0, iterations=60)
    assert shown - 0.15 < np.mean(drawn) < shown + 0.15


def test_a_saved_model_labels_another_image(make_project: Callable[..., Project], tmp_path: Path) -> None:
    truth = balls()
    project = make_project({"a": truth}, {"a": (4, 12, 20)}, classes=("ball",))
    events_of(project, shapes="on")
    folder = project.run_folder(project.run_ids()[-1]) / "model"
    network, _ = load_model(folder)
    assert isinstance(network, VolumeNetwork)
    assert network.config.shape_classes == (1,)
    out = tmp_path / "out.tif"
    list(apply(folder, Volume.from_array(truth[:, :, ::-1]), out, device="cpu"))
    import tifffile

    assert tifffile.imread(out).shape == truth.shape
    assert set(np.unique(tifffile.imread(out))) <= {0, 1}
    with pytest.raises(InputError, match="channels"):
        list(apply(folder, Volume.from_array(np.stack([truth, truth]), axes="czyx"), out, device="cpu"))


def test_a_class_that_nobody_painted_is_an_error(make_project: Callable[..., Project]) -> None:
    project = make_project({"a": balls()}, {"a": (12,)}, classes=("ball", "cube"))
    with pytest.raises(InputError, match=r"shows the class cube \(2\)"):
        events_of(project)


def test_coarse_axes_are_not_halved(make_project: Callable[..., Project]) -> None:
    project = make_project({"a": balls()}, {"a": (4, 20)}, classes=("ball",), voxel_size=(4, 1, 1))
    events_of(project, levels=3, rounds=0)
    network, _ = load_model(project.run_folder(project.run_ids()[-1]) / "model")
    assert isinstance(network, VolumeNetwork)
    assert network.config.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2))
    assert network.config.kernels[0] == (1, 3, 3)
