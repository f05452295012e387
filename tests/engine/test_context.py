from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import zarr

from napari_slicelabel.data.boxes import Box, SliceRef
from napari_slicelabel.engine import state as state_module
from napari_slicelabel.engine.config import MethodConfig
from napari_slicelabel.engine.context import REVIEW_BELOW, RunContext
from napari_slicelabel.engine.events import SliceDone
from napari_slicelabel.engine.record import RunRecord
from napari_slicelabel.engine.run import never
from napari_slicelabel.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from napari_slicelabel.data.boxes import Axis
    from napari_slicelabel.data.project import Project


def make(project: Project, folder: Path, axis: Axis = "z", done: tuple[SliceDone, ...] = ()) -> RunContext:
    depth = project.volume("tiny").depth(axis)
    record = RunRecord(
        run_id="r",
        method="interpolate",
        config={},
        seed=0,
        device="cpu",
        axis=axis,
        spans={"tiny": (0, depth)},
        annotated={"tiny": project.annotation("tiny").annotated(axis)},
        versions={},
        started="2026-01-01T00:00:00Z",
    )
    return RunContext(project, MethodConfig(), folder, record, torch.device("cpu"), never, done)


@pytest.fixture
def context(painted: Project, tmp_path: Path) -> RunContext:
    (tmp_path / "run").mkdir()
    return make(painted, tmp_path / "run")


def plane(value: int) -> Any:
    return np.full((64, 64), value, np.uint8)


class TestSlices:
    def test_unwritten(self, context: RunContext) -> None:
        assert not context.read_prediction("tiny", 3).any()
        assert not context.read_confidence("tiny", 3).any()
        assert (context.read_accepted("tiny", 3) == 255).all()
        assert not (context.folder / "prediction").exists()

    def test_written(self, context: RunContext) -> None:
        event = context.write_slice("tiny", 3, plane(2), plane(99), provenance="round 1", score=0.5)
        assert event == SliceDone("tiny", "z", 3, 0.5, "round 1")
        assert (context.read_prediction("tiny", 3) == 2).all()
        assert (context.read_confidence("tiny", 3) == 99).all()
        assert not context.read_prediction("tiny", 4).any()
        assert context.done("tiny") == {3}

    def test_accepted(self, context: RunContext) -> None:
        context.write_accepted("tiny", 3, plane(0))
        assert not context.read_accepted("tiny", 3).any()
        assert (context.read_accepted("tiny", 4) == 255).all()

    def test_complete_human_slice(self, context: RunContext) -> None:
        event = context.write_slice("tiny", 7, plane(2), plane(99), provenance="round 1", score=0.5)
        assert event == SliceDone("tiny", "z", 7, 1.0, "human")
        target = context.annotation("tiny").supervision(SliceRef("z", 7)).target
        np.testing.assert_array_equal(context.read_prediction("tiny", 7), target)
        assert (context.read_confidence("tiny", 7) == 255).all()

    def test_painted_pixels_of_an_unfinished_slice(self, context: RunContext) -> None:
        strokes = plane(0)
        strokes[3, 4], strokes[5, 6] = 1, 255
        context.annotation("tiny").write_slice(SliceRef("z", 9), strokes)
        labels, confidence = plane(2), plane(99)
        event = context.write_slice("tiny", 9, labels, confidence, provenance="m", score=0.5)
        assert event.provenance == "m"
        expected = plane(2)
        expected[3, 4], expected[5, 6] = 1, 0
        np.testing.assert_array_equal(context.read_prediction("tiny", 9), expected)
        assert context.read_confidence("tiny", 9)[3, 4] == 255
        assert (labels == 2).all()
        assert (confidence == 99).all()

    @pytest.mark.parametrize(("axis", "shape"), [("y", (16, 64)), ("x", (16, 64))])
    def test_other_axes(self, project: Project, tmp_path: Path, axis: Axis, shape: tuple[int, int]) -> None:
        context = make(project, tmp_path, axis)
        labels = np.random.default_rng(0).integers(0, 3, shape, np.uint8)
        context.write_slice("tiny", 5, labels, labels, provenance="m", score=1)
        np.testing.assert_array_equal(context.read_prediction("tiny", 5), labels)
        array = zarr.open_array(tmp_path / "prediction" / "tiny.zarr" / "0", mode="r")
        number = SliceRef(axis, 5).axis_number
        assert array.shape == (16, 64, 64)
        assert array.chunks[number] == 1
        np.testing.assert_array_equal(np.asarray(array).take(5, number), labels)

    def test_ome_metadata(self, context: RunContext) -> None:
        context.write_slice("tiny", 3, plane(2), plane(99), provenance="m", score=0.5)
        attributes = zarr.open_group(context.folder / "prediction" / "tiny.zarr", mode="r").attrs["ome"]
        scale = attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]  # type: ignore[index, call-overload]
        assert tuple(scale) == context.volume("tiny").voxel_size  # type: ignore[arg-type]

    def test_damaged_chunk(self, context: RunContext) -> None:
        context.write_slice("tiny", 3, plane(2), plane(99), provenance="m", score=0.5)
        chunks = [path for path in (context.folder / "prediction").rglob("c/3/*/*") if path.is_file()]
        chunks[0].write_bytes(chunks[0].read_bytes()[:-6])
        with pytest.raises(StorageError, match="damaged"):
            context.read_prediction("tiny", 3)

    def test_block(self, context: RunContext) -> None:
        for index in (3, 4):
            context.write_slice("tiny", index, plane(index), plane(9), provenance="m", score=0.5)
        block = context._store("prediction", "tiny").read_box(Box((2, 0, 0), (6, 1, 1)))
        assert block.ravel().tolist() == [0, 3, 4, 0]


def test_slices_csv(context: RunContext) -> None:
    for index, score in ((5, REVIEW_BELOW), (3, REVIEW_BELOW - 0.01), (7, 0.0)):
        context.write_slice("tiny", index, plane(2), plane(99), provenance="round 1", score=score)
    context.save_slices()
    with (context.folder / "slices.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["volume", "axis", "index", "confidence", "provenance", "needs_review"]
    assert [(row["index"], row["provenance"], row["needs_review"]) for row in rows] == [
        ("3", "round 1", "yes"),
        ("5", "round 1", "no"),
        ("7", "human", "no"),
    ]


def test_rows_of_an_earlier_part(painted: Project, tmp_path: Path) -> None:
    context = make(painted, tmp_path, done=(SliceDone("tiny", "z", 4, 0.1, "a"), SliceDone("tiny", "z", 4, 0.2, "b")))
    assert context.rows() == (SliceDone("tiny", "z", 4, 0.2, "b"),)


def test_annotation_digest(context: RunContext) -> None:
    digests = [context.annotation_digest(), context.annotation_digest()]
    assert digests[0] == digests[1]
    annotation = context.annotation("tiny")
    annotation.set_complete(SliceRef("x", 3), True)
    digests.append(context.annotation_digest())
    labels = annotation.read_slice(SliceRef("z", 7))
    labels[0, 0] = 255
    annotation.write_slice(SliceRef("z", 7), labels)
    digests.append(context.annotation_digest())
    assert len(set(digests)) == 3


class TestState:
    def test_none(self, context: RunContext) -> None:
        assert context.load_state() is None

    def test_round_trip(self, context: RunContext) -> None:
        weights = torch.arange(6.0).reshape(2, 3)
        context.save_state({"w": weights.T, "same": weights}, {"round": 3, "names": ["a"]})
        loaded = context.load_state()
        assert loaded is not None
        tensors, extra = loaded
        assert set(tensors) == {"w", "same"}
        assert torch.equal(tensors["w"], weights.T)
        assert extra == {"round": 3, "names": ["a"]}
        assert (context.folder / "slices.csv").exists()

    def test_only_the_newest_is_kept(self, context: RunContext) -> None:
        for number in range(4):
            context.save_state({"w": torch.tensor([number])}, {"round": number})
        assert sorted(path.name for path in (context.folder / "state").iterdir()) == [
            "000003.safetensors",
            "state.json",
        ]

    def test_random_generators_go_along(self, context: RunContext) -> None:
        context.save_state({}, {})
        expected = (context.rng.random(), float(torch.rand(())))
        context.rng.random(9)
        context.load_state()
        assert (context.rng.random(), float(torch.rand(()))) == expected

    def test_killed_between_the_two_files(self, context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
        context.save_state({"w": torch.tensor([1])}, {"round": 1})

        def killed(path: Path, text: str) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(state_module, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            context.save_state({"w": torch.tensor([2])}, {"round": 2})
        monkeypatch.undo()
        loaded = context.load_state()
        assert loaded is not None
        assert (int(loaded[0]["w"]), loaded[1]) == (1, {"round": 1})
        context.save_state({"w": torch.tensor([3])}, {"round": 3})
        assert len(list((context.folder / "state").iterdir())) == 2

    def test_damaged(self, context: RunContext) -> None:
        context.save_state({"w": torch.zeros(4)}, {})
        tensors = context.folder / "state" / "000000.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:20])
        with pytest.raises(StorageError, match="damaged or missing"):
            context.load_state()
        (context.folder / "state" / "state.json").write_text("{")
        with pytest.raises(StorageError, match="damaged"):
            context.load_state()

    def test_values_that_the_disk_has_changed(self, context: RunContext) -> None:
        context.save_state({"w": torch.zeros(4)}, {"round": 1, "rows": [{"z": 0.1}]})
        index = context.folder / "state" / "state.json"
        index.write_text(index.read_text().replace('"round": 1', '"round": 3'))
        with pytest.raises(StorageError, match="not those that were written"):
            context.load_state()

    def test_no_folder_to_write_to(self, context: RunContext) -> None:
        (context.folder / "state").write_text("in the way")
        with pytest.raises(StorageError):
            context.save_state({"w": torch.zeros(4)}, {})

    def test_model(self, context: RunContext) -> None:
        context.save_model({"w": torch.zeros(4)}, {"architecture": "none", "classes": [1, 2]})
        assert sorted(path.name for path in (context.folder / "model").iterdir()) == [
            "network.json",
            "weights.safetensors",
        ]
