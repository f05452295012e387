"""What correspondence flow does beyond the promises of every method."""

from __future__ import annotations

import csv
import errno
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.files import storage_errors
from napari_slicelabel.data.project import Project
from napari_slicelabel.data.samples import synthetic_em
from napari_slicelabel.engine import flow_carrier
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.events import Progress, SliceDone
from napari_slicelabel.engine.plan import plan
from napari_slicelabel.engine.record import RunRecord
from napari_slicelabel.engine.run import run
from napari_slicelabel.engine.scratch import Scratch
from napari_slicelabel.errors import InputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_slicelabel.data.samples import Sample

TINY: dict[str, object] = {
    "device": "cpu",
    "iterations": 2,
    "batch": 2,
    "crop_px": 32,
    "calibrate": "off",
    "reuse": "off",
}


@pytest.fixture
def tiny_stack() -> Sample:
    """A quarter of that of other tests."""
    return synthetic_em((16, 32, 32), seed=0)


def confidence(project: Project, index: int) -> NDArray[np.uint8]:
    return run_store(project, project.run_folder(project.run_ids()[-1]), "confidence", "tiny", "z").read(index)


def test_it_is_not_sure_of_what_nobody_painted(project: Project, tiny_stack: Sample) -> None:
    """One half of the only annotated slice is painted: nothing is known of the other half."""
    half = tiny_stack.labels[7].copy()
    half[:, :16][half[:, :16] == 0] = 255
    half[:, 16:] = 0
    project.annotation("tiny").write_slice(SliceRef("z", 7), half)
    list(run(project, build_config("flow", {**TINY, "masks": "hard"})))
    sure = confidence(project, 7)
    assert (sure[:, :16] == 255).all()
    assert (sure[:, 16:] <= 255 // 3 + 1).all()


def test_a_full_disk_between_two_annotated_slices(
    painted: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One clear error, what was written stays, nothing else is left behind, and the run goes on once there is room."""

    def full(self: Scratch, *_: object) -> None:
        assert self.on_disk
        with storage_errors(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(flow_carrier, "_GAP_BYTES", 0)
        patch.setattr(Scratch, "write", full)
        with pytest.raises(StorageError, match="the disk is full"):
            list(run(painted, build_config("flow", TINY)))
    folder = painted.run_folder(painted.run_ids()[-1])
    assert not list(folder.glob(".flow.*"))
    done = [event.index for event in run(painted, resume=folder.name) if isinstance(event, SliceDone)]
    # the annotated slices and those before the first of them were written by then
    assert sorted(done) == sorted(set(range(16)) - {0, 1, 2, 7, 12})
    assert confidence(painted, 4).any()


def test_a_correction_recomputes_only_its_gaps(painted: Project, tiny_stack: Sample) -> None:
    """Slices 2, 7 and 12 are annotated; 9 is added: what lies below 7 and above 12 is taken over as it was."""
    config = build_config("flow", {**TINY, "reuse": "on", "calibrate": "auto"})
    first = list(run(painted, config))
    assert any(isinstance(event, Progress) and event.stage == "learn what corresponds" for event in first)
    painted.annotation("tiny").write_slice(SliceRef("z", 9), tiny_stack.labels[9], complete=True)
    second = list(run(painted, config))
    stages = {event.stage for event in second if isinstance(event, Progress)}
    assert stages == {"carry"}
    carried = {event.message for event in second if isinstance(event, Progress)}
    assert carried == {f"tiny z{index}" for index in range(7, 13)}
    assert sorted(event.index for event in second if isinstance(event, SliceDone)) == list(range(16))
    stores = [
        [run_store(painted, painted.run_folder(events[-1].run_id), kind, "tiny", "z") for events in (first, second)]
        for kind in ("prediction", "confidence")
    ]
    for before, after in stores:
        for index in (*range(8), *range(12, 16)):
            np.testing.assert_array_equal(before.read(index), after.read(index))
    np.testing.assert_array_equal(stores[0][1].read(9), tiny_stack.labels[9])
    assert any(not np.array_equal(stores[0][0].read(index), stores[0][1].read(index)) for index in (8, 10, 11))


def test_the_labels_are_those_of_a_run_of_its_own(painted: Project, tiny_stack: Sample) -> None:
    """Whatever is taken over, labels do not depend on it."""
    settings = {**TINY, "reuse": "on"}
    list(run(painted, build_config("flow", settings)))
    painted.annotation("tiny").write_slice(SliceRef("z", 5), tiny_stack.labels[5], complete=True)
    ends = [list(run(painted, build_config("flow", {**settings, "reuse": reuse})))[-1] for reuse in ("on", "off")]
    stores = [run_store(painted, painted.run_folder(end.run_id), "prediction", "tiny", "z") for end in ends]
    for index in range(16):
        np.testing.assert_array_equal(stores[0].read(index), stores[1].read(index))


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"iterations": 3}, {"range": "0:15"}, {"stops": "4"}], ids=lambda change: next(iter(change))
)
def test_nothing_is_taken_over_from_a_run_of_another_kind(painted: Project, change: dict[str, object]) -> None:
    settings = {**TINY, "reuse": "on"}
    list(run(painted, build_config("flow", settings)))
    events = list(run(painted, build_config("flow", {**settings, **change})))
    assert any(isinstance(event, Progress) and event.stage == "learn what corresponds" for event in events)


def test_nothing_is_taken_over_from_another_image(
    painted: Project, forget_fingerprints: Callable[[Project], Project]
) -> None:
    config = build_config("flow", {**TINY, "reuse": "on"})
    list(run(painted, config))
    image = painted.volume("tiny")
    other = np.stack([255 - image.read_slice(SliceRef("z", z))[0, 0] for z in range(16)])
    np.save(image.source, other)
    with pytest.raises(InputError, match="other values"):
        list(run(Project.open(painted.path), config))
    events = list(run(forget_fingerprints(painted), config))
    assert any(isinstance(event, Progress) and event.stage == "learn what corresponds" for event in events)


def test_a_slice_painted_along_another_axis_fills_everything_again(painted: Project) -> None:
    """Its paint was pasted over the labels, and has to go from them when it is erased."""
    config = build_config("flow", {**TINY, "reuse": "on"})
    annotation = painted.annotation("tiny")
    annotation.write_slice(SliceRef("y", 20), np.full((16, 32), 2, np.uint8))
    list(run(painted, config))
    annotation.write_slice(SliceRef("y", 20), np.zeros((16, 32), np.uint8))
    carried = {event.message for event in run(painted, config) if isinstance(event, Progress)}
    assert {f"tiny z{index}" for index in (3, 6, 8, 11)} <= carried


def moving_disc(depth: int = 12, size: int = 48) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a textured stack with a bright disc that moves by a pixel from slice to slice, and its labels."""
    rng = np.random.default_rng(0)
    y, x = np.indices((size, size))
    texture = gaussian_filter(rng.normal(size=(size, size)), 2)
    texture *= 20 / texture.std()
    discs = np.stack([(y - 24) ** 2 + (x - 18 - z) ** 2 < 100 for z in range(depth)])
    image = np.clip(90 + texture + 70 * discs + rng.normal(0, 3, discs.shape), 0, 255)
    return image.astype(np.uint8), discs.astype(np.uint8)


def followed(folder: Path, image: NDArray[np.uint8], labels: NDArray[np.uint8], **settings: object) -> Project:
    """Return a project in which the first and the last slice were painted and everything between carried."""
    np.save(folder / "disc.npy", image)
    project = Project.create(folder / "disc.slicelabel", [folder / "disc.npy"], names=["tiny"], classes=["disc"])
    for z in (0, len(image) - 1):
        project.annotation("tiny").write_slice(SliceRef("z", z), labels[z], complete=True)
    list(run(project, build_config("flow", {**TINY, "iterations": 8, "crop_px": 48, **settings})))
    return project


def predicted(project: Project) -> NDArray[np.uint8]:
    store = run_store(project, project.run_folder(project.run_ids()[-1]), "prediction", "tiny", "z")
    return np.stack([store.read(index) for index in range(12)])


def dice(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)))


def scores_of(project: Project) -> list[float]:
    """Return the expected Dice of all slices of the last run."""
    with (project.run_folder(project.run_ids()[-1]) / "slices.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["index"]))
    return [float(row["confidence"]) for row in rows]


@pytest.mark.parametrize("kind", ["moves", "jumps", "vanishes"])
def test_from_one_slice_it_tells_how_sure_it_may_be(tmp_path: Path, kind: str) -> None:
    """Less is expected where labels do not come back that were carried away, and nowhere more."""
    image, labels = moving_disc()
    jumps = np.random.default_rng(1).integers(12, 36, (12, 2))
    for z in (z for z in range(12) if z != 6):
        if kind == "jumps":
            image[z] = np.roll(image[z], tuple(jumps[z]), (0, 1))
        if kind == "vanishes":
            image[z][labels[z] == 1] = 90
    np.save(tmp_path / "disc.npy", image)
    project = Project.create(tmp_path / "disc.slicelabel", [tmp_path / "disc.npy"], names=["tiny"], classes=["disc"])
    project.annotation("tiny").write_slice(SliceRef("z", 6), labels[6], complete=True)
    expected, steps = {}, 20 if kind == "jumps" else 8
    for calibrate in ("off", "auto"):
        settings = {
            **TINY,
            "iterations": steps,
            "crop_px": 48,
            "align": "off",
            "damaged": "keep",
            "calibrate": calibrate,
        }
        size = plan(project, build_config("flow", settings))
        events = list(run(project, build_config("flow", settings)))
        carried = sum(isinstance(event, Progress) and event.stage == "there and back" for event in events)
        # 6 slices below and 5 above, 3 of each on average
        assert carried == (12 if calibrate == "auto" else 0)
        assert size.work.predictions == 12 + carried
        assert RunRecord.load(project.run_folder(project.run_ids()[-1])).measured is (calibrate == "auto")
        expected[calibrate] = np.array(scores_of(project))
    assert (expected["auto"] <= expected["off"] + 1e-6).all()
    assert expected["auto"][6] == 1
    if kind == "moves":
        assert (expected["auto"] > 0.9).all()
    if kind == "jumps":
        assert expected["auto"].mean() < expected["off"].mean() - 0.02


def test_slices_are_held_out_as_soon_as_they_can_be(project: Project, tiny_stack: Sample) -> None:
    """Two annotated slices, then a third between them: what came back no longer counts."""
    config = build_config("flow", {**TINY, "reuse": "on", "calibrate": "auto"})
    for slices, stage in (((2, 12), "there and back"), ((7,), "calibrate")):
        for z in slices:
            project.annotation("tiny").write_slice(SliceRef("z", z), tiny_stack.labels[z], complete=True)
        stages = {event.stage for event in run(project, config) if isinstance(event, Progress)}
        assert stages & {"there and back", "calibrate"} == {stage}


@pytest.mark.parametrize("kind", ["missing", "white"])
def test_a_damaged_slice_is_stepped_over(tmp_path: Path, kind: str) -> None:
    image, labels = moving_disc()
    image[5] = 0 if kind == "missing" else 255
    for name in ("skip", "keep"):
        (tmp_path / name).mkdir()
    skipped, kept = (predicted(followed(tmp_path / name, image, labels, damaged=name)) for name in ("skip", "keep"))
    # not only the slice itself: what is behind it is reached through it
    behind = list(range(1, 11))
    assert dice(skipped[behind], labels[behind]) > 0.9
    assert dice(skipped[behind], labels[behind]) > dice(kept[behind], labels[behind])


def test_slices_that_jump_are_followed(tmp_path: Path) -> None:
    """From slice to slice the picture jumps by far more than the window of features reaches."""
    image, labels = moving_disc()
    for number, (row, column) in enumerate([(0, 0), (13, -11), (-12, 14), (2, 17)] * 3):
        for stack in (image, labels):
            stack[number] = np.roll(stack[number], (row, column), (0, 1))
    scores = []
    for align in ("on", "off"):
        (tmp_path / align).mkdir()
        found = predicted(followed(tmp_path / align, image, labels, align=align, shapes=0))
        scores.append(dice(found[1:11], labels[1:11]))
    assert scores[0] > 0.85
    assert scores[0] > scores[1] + 0.2


def test_what_no_neighbour_explains_is_in_doubt(tmp_path: Path) -> None:
    """Something bright turns up that no annotated slice shows: it gets no label, but its confidence falls."""
    image, labels = moving_disc()
    image[4:8, 4:12, 36:46] = 255
    project = followed(tmp_path, image, labels)
    assert not predicted(project)[4:8, 4:12, 36:46].any()
    new, old = confidence(project, 5)[5:11, 37:45], confidence(project, 5)[36:46, 4:12]
    assert new.mean() < 200
    assert old.mean() > 245
