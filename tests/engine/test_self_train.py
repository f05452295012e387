"""What heterogeneous self-training does beyond the promises of every method."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from napari_slicelabel.data.boxes import Box, SliceRef
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.densevoxnet import DenseVoxNet
from napari_slicelabel.engine.evaluate import evaluate
from napari_slicelabel.engine.events import Event, Finished, Metric, Progress
from napari_slicelabel.engine.label_sets import LabelSets, averaged
from napari_slicelabel.engine.losses import IGNORE
from napari_slicelabel.engine.meta_model import MetaLoss, MetaNetwork, fitted, nearest_set
from napari_slicelabel.engine.methods import self_train
from napari_slicelabel.engine.methods.self_train import SelfTraining, plane_axes
from napari_slicelabel.engine.run import run
from napari_slicelabel.engine.sampling import Batch
from napari_slicelabel.engine.scratch import Scratch
from napari_slicelabel.engine.volume_networks import VolumeNetwork, VolumeNetworkConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.confidence import Labelled
    from napari_slicelabel.engine.context import Slot
    from napari_slicelabel.engine.sampling import Plane

    Tensors = dict[str, torch.Tensor]

TINY: dict[str, object] = {
    "device": "cpu",
    **dict.fromkeys(("iterations", "plane_iterations", "random_iterations", "nearest_iterations"), 2),
    "width": 8,
    "levels": 3,
    "crop_px": 32,
    "crop_depth": 8,
    "batch": 1,
    "plane_batch": 2,
    "calibrate": "off",
    "trial": "off",
}


def ball(shape: tuple[int, int, int] = (20, 32, 32)) -> NDArray[np.uint8]:
    grid = np.indices(shape)
    far = sum((g - n / 2) ** 2 for g, n in zip(grid, shape, strict=True))
    return (far < 8**2).astype(np.uint8)  # type: ignore[operator]


def events_of(project: Project, **settings: object) -> list[Event]:
    return list(run(project, build_config("self-train", {**TINY, **settings})))


@pytest.mark.parametrize(
    ("voxel_size", "shape", "setting", "axes"),
    [
        ((1, 1, 1), (64, 64, 64), "auto", ("z", "y", "x")),
        ((1.9, 1, 1), (64, 64, 64), "auto", ("z", "y", "x")),
        ((2, 1, 1), (64, 64, 64), "auto", ("z",)),
        ((2, 1, 1), (64, 64, 64), "all", ("z", "y", "x")),
        ((1, 1, 1), (64, 64, 64), "run", ("z",)),
        ((1, 1, 1), (10, 64, 64), "auto", ("z",)),  # planes along y would be 10 pixels high
        ((1, 1, 4), (64, 64, 64), "auto", ("z", "x")),  # z is that of the run, although its pixels are oblong
    ],
)
def test_planes_that_make_no_sense_are_left_out(
    voxel_size: tuple[float, ...], shape: tuple[int, ...], setting: str, axes: tuple[str, ...]
) -> None:
    volume = Volume.from_array(np.zeros(shape, np.uint8), voxel_size=voxel_size)  # type: ignore[arg-type]
    assert plane_axes(volume, setting, "z") == axes  # type: ignore[arg-type]


def test_what_is_left_out_is_said(make_project: Callable[..., Project]) -> None:
    project = make_project({"a": ball()}, {"a": (4, 10)}, classes=("ball",), voxel_size=(4, 1, 1))
    events = events_of(project)
    said = [event.message for event in events if isinstance(event, Progress) and event.stage == "choose planes"]
    assert said == ["a: no planes along y, x"]
    assert not [event for event in events if isinstance(event, Progress) and event.stage == "label along x"]
    assert [event.value for event in events if isinstance(event, Metric) and event.name == "plane_axes"] == [1]


def test_it_learns(make_project: Callable[..., Project]) -> None:
    truth = ball()
    project = make_project({"a": truth}, {"a": (4, 10, 15)}, classes=("ball",))
    steps = {"plane_iterations": 40, "iterations": 30, "random_iterations": 15, "nearest_iterations": 15}
    (*_, last) = events_of(project, **steps, learning_rate=5e-3)
    assert isinstance(last, Finished)
    assert evaluate(project, truth=Volume.from_array(truth), run_id=last.run_id)["mean_dice"] > 0.8
    assert not (project.run_folder(last.run_id) / "sets").exists()


def test_the_mean_of_sets_and_how_far_they_disagree() -> None:
    labels = np.array([[0, 1, 2], [0, 1, 1]], np.uint8)[:, None, None]
    sure = np.array([[255, 204, 255], [255, 102, 255]], np.uint8)[:, None, None]
    found = averaged(labels, sure, 3, variance=True)[:, 0, 0].astype(float)
    np.testing.assert_allclose(found[:3].sum(0), 1, atol=1e-3)
    np.testing.assert_allclose(found[:, 0], [1, 0, 0, 0], atol=1e-3)
    # .8 and .4 for channel 1; what is missing is shared by the two others
    np.testing.assert_allclose(found[:3, 1], [0.2, 0.6, 0.2], atol=1e-3)
    np.testing.assert_allclose(found[:, 2], [0, 0.5, 0.5, 0.5], atol=1e-3)
    assert found[3, 1] > 0
    assert averaged(labels, None, 3, variance=False).shape == (3, 1, 1, 3)


def sets() -> torch.Tensor:
    """Two crops, three sets: all 0, all 1, all 2."""
    return torch.arange(3, dtype=torch.uint8).view(1, 3, 1, 1, 1).expand(2, 3, 2, 2, 2).clone()


def logits_of(*channels: int) -> torch.Tensor:
    made = torch.zeros(len(channels), 3, 2, 2, 2)
    for crop, channel in enumerate(channels):
        made[crop, channel] = 4
    return made


def test_the_nearest_set_is_that_with_the_lowest_cross_entropy() -> None:
    assert nearest_set(logits_of(2, 0), sets()).tolist() == [2, 0]
    partly = sets()
    partly[0, 2, 0] = IGNORE
    assert nearest_set(logits_of(2, 1), partly).tolist() == [2, 1]


def test_the_meta_model_fits_random_sets_first_and_the_nearest_later() -> None:
    loss = MetaLoss(0.0, np.random.default_rng(0))
    logits = logits_of(1, 2)
    batch = Batch(torch.zeros(2, 1, 2, 2, 2), sets(), torch.ones(2, 2, 2, 2))
    drawn = {round(float(loss((logits, logits), batch)), 4) for _ in range(20)}
    assert len(drawn) > 1
    loss.nearest = True
    nearest = {round(float(loss((logits, logits), batch)), 4) for _ in range(20)}
    assert len(nearest) == 1
    assert nearest.pop() == min(drawn)


def test_untrained_the_meta_model_says_what_the_sets_say() -> None:
    torch.manual_seed(0)
    mean = torch.rand(1, 3, 16, 16, 16).softmax(1)
    x = torch.cat([torch.randn(1, 1, 16, 16, 16), mean, torch.rand(1, 1, 16, 16, 16)], 1)
    made = MetaNetwork(DenseVoxNet((1, 4), 3), slice(1, 5), 3, start_at_mean=True).eval()
    torch.testing.assert_close(made(x).softmax(1), mean)
    other = MetaNetwork(DenseVoxNet((1, 4), 3), slice(1, 5), 3, start_at_mean=False).eval()
    assert not torch.allclose(other(x).softmax(1), mean, atol=0.01)


@pytest.mark.parametrize("architecture", ["dynunet", "unet", "densevoxnet"])
def test_a_3d_network_goes_on_as_the_meta_model(architecture: Literal["dynunet", "unet", "densevoxnet"]) -> None:
    """It begins by saying what it said, pooled with the mean of the sets, and is free to learn from these."""
    torch.manual_seed(0)
    levels: Any = {"kernels": ((3, 3, 3),) * 3, "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)), "filters": (4, 8, 8)}
    before = VolumeNetworkConfig(
        architecture=architecture, classes=(1, 2), shape_classes=(2,), coordinates=True, tile=(16, 16, 16), **levels
    )
    network = VolumeNetwork(before)
    with torch.no_grad():
        # classifiers start at zero where there are shapes
        for weight in network.parameters():
            weight += 0.05 * torch.randn_like(weight)
    wide = VolumeNetwork(before.model_copy(update={"image_channels": 1 + 4}))
    wide.load_state_dict(fitted(network.state_dict(), wide, 4))
    image, shape = torch.randn(2, 4, 16, 16, 16), torch.randn(2, 1, 16, 16, 16)
    mean = torch.randn(2, 3, 16, 16, 16).softmax(1)
    x = torch.cat([image, mean, torch.rand(2, 1, 16, 16, 16), shape], 1)
    alone = network.eval()(torch.cat([image, shape], 1))
    torch.testing.assert_close(wide.eval()(x), alone, atol=2e-4, rtol=1e-3)
    pooled = (alone.softmax(1) * mean.clamp(min=0.01)).sqrt()
    made = MetaNetwork(wide, slice(4, 8), 3, start_at_mean=True, dropout=0.5).eval()
    torch.testing.assert_close(made(x).softmax(1), pooled / pooled.sum(1, keepdim=True), atol=1e-4, rtol=1e-3)
    loss = MetaLoss(1.0, np.random.default_rng(0))
    batch = Batch(x, torch.randint(0, 3, (2, 4, 16, 16, 16)).to(torch.uint8), torch.ones(2, 16, 16, 16))
    loss(MetaNetwork(wide, slice(4, 8), 3, start_at_mean=True).train()(x), batch).backward()
    first = next(weight for weight in wide.parameters() if weight.ndim == 5 and weight.shape[1] == x.shape[1])
    assert first.grad is not None
    assert first.grad[:, 4:8].abs().sum() > 0
    with torch.no_grad():
        first -= 0.1 * first.grad
    x[:, 4:8] = 0
    network.load_state_dict(fitted(wide.state_dict(), network, 4))
    torch.testing.assert_close(network.eval()(torch.cat([image, shape], 1)), wide.eval()(x), atol=2e-4, rtol=1e-3)


def test_some_crops_show_the_meta_model_nothing_of_the_sets() -> None:
    torch.manual_seed(0)
    seen = []

    class Zeros(VolumeNetwork):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return torch.zeros_like(x[:, :2])

    levels: Any = {"kernels": ((3, 3, 3),) * 3, "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)), "filters": (4, 4, 4)}
    network = Zeros(VolumeNetworkConfig(image_channels=4, classes=(1,), tile=(4, 4, 4), **levels))
    made = MetaNetwork(network, slice(1, 4), 2, start_at_mean=True, dropout=0.25).train()
    x = torch.full((400, 4, 1, 1, 1), 0.5)
    x[:, 1] = 0.9
    (logits,) = made(x)
    shown = seen[0][:, 1:].flatten(1).any(1)
    assert 0.65 < shown.float().mean() < 0.85
    assert (seen[0][:, 0] == 0.5).all()
    # with the sets it is pooled with their mean, without them it is on its own
    assert (logits[shown, 0] > logits[shown, 1]).all()
    assert not logits[~shown].any()
    made.eval()(x)
    assert (seen[1] == x).all()


def test_the_model_for_other_images_has_learned_from_the_sets(make_project: Callable[..., Project]) -> None:
    project = make_project({"a": ball()}, {"a": (4, 10)}, classes=("ball",))
    kept = []
    for dropout in (0.5, 0.0):
        events_of(project, sets_dropout=dropout)
        folder = project.run_folder(project.run_ids()[-1]) / "model"
        kept.append(load_file(folder / "weights.safetensors"))
        described = json.loads((folder / "network.json").read_text())["volume_network"]
        made = VolumeNetwork(VolumeNetworkConfig.model_validate(described))
        made.load_state_dict(kept[-1])
        assert made.config.image_channels == 1
    assert kept[0].keys() == kept[1].keys()
    # without dropout it is the network that learned from the annotation alone: the same seed, but two steps fewer
    assert any(not torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_what_a_human_painted_is_the_truth_in_every_set(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices along z and along another axis; pseudo-labels fill the rest."""
    truth = ball()
    project = make_project({"a": truth}, {"a": (4, 10)}, classes=("ball",))
    project.annotation("a").write_slice(SliceRef("y", 16), truth[:, 16], complete=True)
    blocks = []
    pool = self_train.BlockPool

    def spy(given: object, *args: object) -> object:
        blocks.extend(given)  # type: ignore[call-overload]
        return pool(iter(blocks), *args)  # type: ignore[arg-type]

    monkeypatch.setattr(self_train, "BlockPool", spy)
    events_of(project, range="2:18")
    (block,) = blocks
    assert block.box == Box((2, 0, 0), (18, 32, 32))
    assert block.targets.shape == (4, 16, 32, 32)
    human = np.zeros((16, 32, 32), bool)
    human[[2, 8]] = True
    human[:, 16] = True
    np.testing.assert_array_equal(block.human, human)
    for labels in block.targets:
        np.testing.assert_array_equal(labels[human], truth[2:18][human])
    assert not np.array_equal(block.targets[0], block.targets[3])


def test_disagreement_lowers_confidence(make_project: Callable[..., Project]) -> None:
    """With all of the consensus in the result confidence is the share of the sets; without, the meta-model's own."""
    project = make_project({"a": ball()}, {"a": (4, 10)}, classes=("ball",))
    found = {}
    for consensus in (0.0, 1.0):
        events_of(project, consensus=consensus, average="hard", shapes="off")
        store = run_store(project, project.run_folder(project.run_ids()[-1]), "confidence", "a", "z")
        found[consensus] = store.read(7)
    assert set(np.unique(found[1.0]).tolist()) <= {128, 191, 255}
    assert len(np.unique(found[0.0])) > 3


@pytest.mark.parametrize("meta_model", ["3d", "densevoxnet"])
def test_what_is_too_large_for_memory_gives_the_same_labels(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, meta_model: str
) -> None:
    project = make_project({"a": ball()}, {"a": (4, 10)}, classes=("ball",))
    found = []
    for most in (2**30, 0):
        monkeypatch.setattr(Scratch.__init__, "__kwdefaults__", {"most_in_memory": most})
        events_of(project, shapes="on", meta_model=meta_model)
        folder = project.run_folder(project.run_ids()[-1])
        store = run_store(project, folder, "prediction", "a", "z")
        found.append(np.stack([store.read(index) for index in range(20)]))
        assert not list(folder.glob(".*.part.*"))
    np.testing.assert_array_equal(*found)


def test_killed_while_the_sets_are_removed_it_is_done_already(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project({"a": ball()}, {"a": (4, 10, 16)}, classes=("ball",))
    rmtree = shutil.rmtree

    def half(folder: Path, **_: object) -> None:
        rmtree(folder / "z" / "labels")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            events_of(project)
    run_id = project.run_ids()[-1]
    labels = run_store(project, project.run_folder(run_id), "prediction", "a", "z").read(7)
    # what is painted meanwhile is for the next run: nothing can be filled anew
    project.annotation("a").write_slice(SliceRef("z", 12), ball()[12], complete=True)
    ends = [event for event in run(project, resume=run_id) if isinstance(event, Finished)]
    assert [event.outcome for event in ends] == ["finished"]
    assert not (project.run_folder(run_id) / "sets").exists()
    np.testing.assert_array_equal(
        run_store(project, project.run_folder(run_id), "prediction", "a", "z").read(7), labels
    )


@pytest.mark.parametrize("run_axis", ["z", "y", "x"])
def test_untrained_the_planes_of_every_axis_say_what_the_shapes_say(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, run_axis: str
) -> None:
    """Which holds only where shapes, planes and sets lie the same way round, whatever the axis of the run."""
    truth = ball((20, 28, 32))
    project = make_project({"a": truth}, {}, classes=("ball",))
    for index in (6, 10, 14):
        number = "zyx".index(run_axis)
        ref = SliceRef(run_axis, index)  # type: ignore[arg-type]
        project.annotation("a").write_slice(ref, truth.take(index, number), complete=True)
    found = {}
    write = LabelSets.write

    def spy(sets: LabelSets, which: str, name: str, index: int, labelled: Labelled) -> None:
        found.setdefault(which, {})[index] = labelled.channels
        write(sets, which, name, index, labelled)

    monkeypatch.setattr(LabelSets, "write", spy)
    events_of(project, axis=run_axis, shapes="on", learning_rate=1e-6)
    made = {
        which: np.stack([planes[i] for i in sorted(planes)], "zyx".index(run_axis if which == "3d" else which))
        for which, planes in found.items()
    }
    assert sorted(made) == ["3d", "x", "y", "z"]
    for which, labels in made.items():
        assert (labels == made["3d"]).mean() > 0.99, which
    assert (made["3d"] == 1).any()


def trial_events(project: Project, **settings: object) -> tuple[dict[str, float], list[str]]:
    """Return what a run with a trial measured, and what it said of it."""
    events = events_of(project, trial="auto", **settings)
    metrics = {event.name: event.value for event in events if isinstance(event, Metric)}
    stages = ("trial, choose sets", "choose model")
    return metrics, [event.message for event in events if isinstance(event, Progress) and event.stage in stages]


def without_a_clue(which: str) -> Callable[..., None]:
    """Return a `LabelSets.write` that turns the labels of a set upside down."""
    write = LabelSets.write

    def spoilt(sets: LabelSets, at: str, name: str, index: int, labelled: Labelled) -> None:
        channels = 1 - labelled.channels if at == which else labelled.channels
        write(sets, at, name, index, labelled._replace(channels=channels.astype(np.uint8)))

    return spoilt


def test_a_set_that_is_wrong_on_held_out_slices_has_no_vote(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project({"a": ball()}, {"a": (4, 7, 10, 15)}, classes=("ball",))
    monkeypatch.setattr(LabelSets, "write", without_a_clue("y"))
    metrics, said = trial_events(project, shapes="on", vote_margin=0.3)
    assert metrics["held_out_dice_y"] < metrics["held_out_dice_3d"] - 0.3
    assert "held-out slices: z " in said[0]
    assert said[0].count("(no vote)") == 1
    assert "(no vote), x" in said[0]


@pytest.mark.parametrize("best", ["3D network", "mean of the sets"])
def test_a_meta_model_worse_than_what_it_learned_from_is_not_used(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, best: str
) -> None:
    """The labels are those of what was best on held-out slices, and the run says so."""
    project = make_project({"a": ball()}, {"a": (4, 7, 10, 15)}, classes=("ball",))
    is_3d = best == "3D network"

    def all_ball(method: SelfTraining, tensors: Tensors, found: Tensors) -> Iterator[Event]:
        meta = method._meta()
        assert isinstance(meta.network, DenseVoxNet)
        with torch.no_grad():
            meta.network.classifier.bias[:] = torch.tensor([-99.0, 99.0])  # type: ignore[index]
        found.update(meta.state_dict() if method.model == "meta" else tensors)
        yield from ()

    def set_plane(method: SelfTraining, which: str, slot: Slot) -> NDArray[np.uint8]:
        truth = method.learner.known.human(slot)
        return truth if is_3d else np.zeros_like(truth)

    def mean(*args: object, **more: object) -> NDArray[np.float16]:
        right = averaged(*args, **more)  # type: ignore[arg-type]
        return np.roll(right, 1, 0) if is_3d else right

    monkeypatch.setattr(SelfTraining, "_learn_meta", all_ball)
    monkeypatch.setattr(SelfTraining, "_set_plane", set_plane)
    monkeypatch.setattr(self_train, "averaged", mean)
    metrics, said = trial_events(project, shapes="on", consensus=0.0, meta_model="densevoxnet")
    assert metrics["uses_meta"] == 0
    assert said[-1].startswith(f"the {best} labels, not the meta-model: Dice on held-out slices")
    store = run_store(project, project.run_folder(project.run_ids()[-1]), "prediction", "a", "z")
    # not all of it
    assert 0 < np.mean([store.read(index) for index in range(20)]) < 0.5


def test_nothing_learns_from_held_out_slices_in_the_trial(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither along z nor as lines of planes along other axes; afterwards everything does."""
    project = make_project({"a": ball()}, {"a": (4, 10, 15)}, classes=("ball",))
    planes: list[list[tuple[bool, bool]]] = []
    pool = self_train.PlanePool

    def spy(given: Iterator[Plane], *args: object) -> object:
        kept = list(given)
        known = [plane.target != IGNORE for plane in kept]
        planes.append([(mask.all(), mask[10].all()) for mask in known])
        return pool(iter(kept), *args)  # type: ignore[arg-type]

    monkeypatch.setattr(self_train, "PlanePool", spy)
    trial_events(project, shapes="off")
    in_trial, *later = planes
    assert sum(whole for whole, _ in in_trial) == 2
    assert not any(line for whole, line in in_trial if not whole)
    for pool_planes in later:
        assert sum(whole for whole, _ in pool_planes) == 3
        assert any(line for whole, line in pool_planes if not whole)
