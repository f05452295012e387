"""Preset ``sli2vol+`` of flow: pseudo-labels, their refinement, the guide; and networks of other runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.samples import synthetic_em
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import Slot, run_store
from napari_slicelabel.engine.events import Finished, Progress, SliceDone
from napari_slicelabel.engine.flow import Flow
from napari_slicelabel.engine.losses import IGNORE
from napari_slicelabel.engine.plan import plan
from napari_slicelabel.engine.run import run
from napari_slicelabel.engine.stores import SliceStore
from napari_slicelabel.errors import InputError, MissingFileError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project
    from napari_slicelabel.data.samples import Sample

PLUS: dict[str, object] = {
    "preset": "sli2vol+",
    "device": "cpu",
    "encoder": "compact",
    "stride": "2",
    "batch": 2,
    "crop_px": 32,
    "iterations": 2,
    "guide_iterations": 2,
    "refine_iterations": 2,
    "refine_width": 4,
}


@pytest.fixture
def tiny_stack() -> Sample:
    """A quarter of that of other tests."""
    return synthetic_em((16, 32, 32), seed=0)


def labels_of(project: Project, volume: str = "tiny", kind: str = "prediction") -> NDArray[np.uint8]:
    folder = project.run_folder(project.run_ids()[-1])
    store = run_store(project, folder, kind, volume, "z")
    return np.stack([store.read(index) for index in range(project.record(volume).shape[0])])


def refined_of(project: Project, volume: str = "tiny") -> NDArray[np.uint8]:
    folder = project.run_folder(project.run_ids()[-1])
    store = SliceStore(folder / "refined" / f"{volume}.zarr", project.volume(volume), "z", fill=IGNORE)
    return np.stack([store.read(index) for index in range(project.record(volume).shape[0])])


def stages(events: list[object]) -> list[str]:
    return list(dict.fromkeys(event.stage for event in events if isinstance(event, Progress)))


@pytest.mark.parametrize("guide", ["off", "pseudo", "refined"])
def test_the_arms_of_the_ablation(painted: Project, guide: str) -> None:
    events = list(run(painted, build_config("flow", {**PLUS, "guide": guide})))
    learned = {
        "off": ["learn what corresponds"],
        "pseudo": ["learn what corresponds", "pseudo-label", "learn with a guide"],
        "refined": ["learn what corresponds", "pseudo-label", "refine", "learn with a guide"],
    }[guide]
    assert stages(events)[: len(learned)] == learned
    accepted, refined = labels_of(painted, kind="accepted"), refined_of(painted)
    assert (accepted != IGNORE).all() == (guide != "off")
    assert (refined != IGNORE).all() == (guide == "refined")
    for index in (2, 7, 12):
        human = painted.annotation("tiny").supervision(SliceRef("z", index)).target
        if guide != "off":
            np.testing.assert_array_equal(accepted[index], human)
        if guide == "refined":
            np.testing.assert_array_equal(refined[index], human)


def test_what_was_guided_differs_and_can_be_left_out(painted: Project) -> None:
    """Without the guide at the end, the image branch carries alone."""
    found = []
    for carry in ("on", "off"):
        settings = {**PLUS, "guide": "pseudo", "guide_carry": carry, "masks": "soft", "guide_iterations": 10}
        list(run(painted, build_config("flow", {**settings, "learning_rate": 0.01, "verify": "off"})))
        found.append(labels_of(painted, kind="confidence"))
    assert (found[0] != found[1]).any()


def test_a_class_nobody_painted_is_said_at_once(make_project: Callable[..., Project]) -> None:
    """Before anything is learned. Carrying alone does not mind."""
    volume = np.zeros((6, 32, 32), np.uint8)
    volume[:, 8:20, 8:20] = 1
    project = make_project({"a": volume}, {"a": (3,)})
    with pytest.raises(InputError, match="no annotated slice along z shows the class two"):
        next(event for event in run(project, build_config("flow", PLUS)) if isinstance(event, Progress))
    list(run(project, build_config("flow", {**PLUS, "guide": "pseudo"})))


def boxes(number: int) -> NDArray[np.uint8]:
    """A stack with two boxes of two classes, moved a little from volume to volume."""
    volume = np.zeros((10, 40, 40), np.uint8)
    volume[1:9, 6 + number : 20 + number, 6:20], volume[2:8, 22:34, 18 + number : 34] = 1, 2
    return volume


def test_refinement_finds_what_wrong_labels_have_in_common(
    make_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three volumes with an annotated slice each; of the pseudo-labels of the others a third is drawn at random."""
    volumes = {name: boxes(number) for number, name in enumerate("abc")}
    project = make_project(volumes, dict.fromkeys("abc", (5,)))
    rng = np.random.default_rng(0)
    accept = Flow._accept

    def wrong(self: Flow, slot: Slot, _channels: NDArray[np.uint8]) -> None:
        truth = volumes[slot.volume][slot.index]
        drawn = rng.integers(0, 3, truth.shape, np.uint8)
        accept(self, slot, np.where(rng.random(truth.shape) < 1 / 3, drawn, truth))

    monkeypatch.setattr(Flow, "_accept", wrong)
    settings = {**PLUS, "refine_iterations": 60, "refine_width": 8, "verify": "off", "seed": 1}
    list(run(project, build_config("flow", settings)))
    for name, truth in volumes.items():
        given, refined = labels_of(project, name, "accepted"), refined_of(project, name)
        assert (given == truth).mean() < 0.82
        assert (refined == truth).mean() > 0.95
        np.testing.assert_array_equal(refined[5], truth[5])


def test_a_stage_that_is_done_is_not_done_again(painted: Project) -> None:
    config = build_config("flow", PLUS)
    whole = list(run(painted, config))
    expected = labels_of(painted)
    order = stages(whole)
    assert order == ["learn what corresponds", "pseudo-label", "refine", "learn with a guide"]
    ends = [max(n for n, event in enumerate(whole) if getattr(event, "stage", "") == stage) for stage in order]
    for number, end in enumerate(ends[:-1], 1):
        events = run(painted, config)
        # a first event of the next stage: the one before it is on disk
        for _ in range(end + 3):
            next(events)
        events.close()
        again = list(run(painted, resume=painted.run_ids()[-1]))
        assert stages(again) == order[number:]
        np.testing.assert_array_equal(labels_of(painted), expected)


def test_what_is_painted_since_is_carried_and_refined_but_not_learned_again(painted: Project) -> None:
    events = run(painted, build_config("flow", PLUS))
    for event in events:
        if isinstance(event, SliceDone):
            break
    events.close()
    plane = np.zeros((32, 32), np.uint8)
    plane[10:20, 10:20] = 1
    painted.annotation("tiny").write_slice(SliceRef("z", 9), plane, complete=True)
    again = run(painted, resume=painted.run_ids()[-1])
    for event in again:
        # interrupted once more: what was written before the change must not count after that either
        if isinstance(event, Progress) and event.stage == "refine":
            break
    again.close()
    again = list(run(painted, resume=painted.run_ids()[-1]))
    assert stages(again) == ["refine"]
    np.testing.assert_array_equal(labels_of(painted)[9], plane)
    # what belongs to the run is what was annotated when it began
    assert sum(isinstance(event, SliceDone) for event in again) == 16


class TestModel:
    def trained(self, project: Project, **settings: object) -> str:
        list(run(project, build_config("flow", {**PLUS, "masks": "soft", **settings})))
        return project.run_ids()[-1]

    def weights(self, project: Project) -> dict[str, torch.Tensor]:
        return load_file(project.run_folder(project.run_ids()[-1]) / "model" / "weights.safetensors")

    @pytest.mark.parametrize("guide", ["off", "refined"])
    def test_another_run_of_the_project(self, painted: Project, guide: str) -> None:
        run_id = self.trained(painted, guide=guide)
        expected = self.weights(painted)
        config = build_config("flow", {**PLUS, "guide": guide, "model": run_id, "seed": 5})
        work = plan(painted, config).work
        events = list(run(painted, config))
        assert work.steps == (2 if guide == "refined" else 0)
        assert not {"learn what corresponds", "learn with a guide"} & set(stages(events))
        assert self.weights(painted).keys() == expected.keys()
        for name, value in self.weights(painted).items():
            torch.testing.assert_close(value, expected[name])

    def test_another_project(self, painted: Project, make_project: Callable[..., Project]) -> None:
        """Other images, other classes: the image branch of a guided network is enough."""
        folder = painted.run_folder(self.trained(painted)) / "model"
        other = make_project({"a": boxes(0).clip(max=1)}, {"a": (5,)}, classes=("one",))
        events = list(run(other, build_config("flow", {**PLUS, "guide": "off", "model": str(folder)})))
        assert isinstance(events[-1], Finished)
        assert not any(name.startswith("guide.") for name in self.weights(other))
        assert labels_of(other, "a")[4].any()
        with pytest.raises(InputError, match="of 2 classes for a guide, this run has 1; set guide=off"):
            list(run(other, build_config("flow", {**PLUS, "model": str(folder)})))

    def test_a_resume_does_not_need_it(self, painted: Project, tmp_path: Path) -> None:
        run_id = self.trained(painted, guide="pseudo")
        moved = tmp_path / "model"
        (painted.run_folder(run_id) / "model").rename(moved)
        events = run(painted, build_config("flow", {**PLUS, "guide": "pseudo", "model": str(moved)}))
        for event in events:
            if isinstance(event, SliceDone):
                break
        events.close()
        moved.rename(tmp_path / "gone")
        assert isinstance(list(run(painted, resume=painted.run_ids()[-1]))[-1], Finished)

    def test_nothing_there(self, painted: Project, tmp_path: Path) -> None:
        with pytest.raises(MissingFileError, match="does not exist; give the id"):
            list(run(painted, build_config("flow", {**PLUS, "model": str(tmp_path)})))
