from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine import evaluate as evaluate_module
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.evaluate import evaluate
from napari_slicelabel.engine.run import run
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project

DEPTH = 7


def column() -> NDArray[np.uint8]:
    """Class 1: 2 x 4 pixels in every slice."""
    labels = np.zeros((DEPTH, 6, 8), np.uint8)
    labels[:, 2:4, 2:6] = 1
    return labels


@pytest.fixture
def copied(make_project: Callable[..., Project]) -> Project:
    """Slices z0 and z6 are painted, and a run copied them to z1 .. z5."""
    project = make_project({"v": column()}, {"v": (0, 6)}, voxel_size=(10, 2, 1))
    list(run(project, build_config("interpolate", {"mode": "nearest"})))
    return project


def volume(labels: NDArray[Any]) -> Volume:
    return Volume.from_array(labels, name="truth")


def test_perfect(copied: Project) -> None:
    scores = evaluate(copied, truth=volume(column()))
    assert scores["slices"] == 5
    assert scores["not_predicted"] == 0
    assert (scores["mean_dice"], scores["mean_slice_dice"], scores["mean_iou"]) == (1, 1, 1)
    assert (scores["mean_hd95"], scores["mean_assd"]) == (0, 0)
    assert scores["classes"]["two"] == {
        "id": 2,
        "dice": None,
        "iou": None,
        "hd95": None,
        "assd": None,
        "note": "absent in prediction and truth",
    }
    assert [(row["distance"], row["slices"]) for row in scores["by_distance"]] == [(1, 2), (2, 2), (3, 1)]
    assert scores["confidence"]["spearman"] is None
    json.dumps(scores, allow_nan=False)


def test_by_hand(copied: Project) -> None:
    truth = column()
    truth[3, 2:4, 2:4] = 0  # half of the middle slice is missing: 4 hits, 8 predicted, 4 true
    truth[5, 0, 0] = 2
    scores = evaluate(copied, truth=volume(truth))
    one = scores["classes"]["one"]
    assert one["dice"] == pytest.approx(2 * 36 / (40 + 36))
    assert one["iou"] == pytest.approx(36 / 40)
    # prediction to truth: the missing pixels are 1 or 2 away in the slice, the slices below and above 10 away
    assert one["hd95"] == pytest.approx(np.percentile([1, 2] * 2 + [0] * 36, 95))
    two = scores["classes"]["two"]
    assert (two["dice"], two["hd95"], two["note"]) == (0, None, "absent in prediction")
    assert scores["mean_dice"] == pytest.approx(one["dice"] / 2)
    last = (1 + 0) / 2
    assert scores["mean_slice_dice"] == pytest.approx((1 + 1 + 2 / 3 + 1 + last) / 5)
    assert scores["by_distance"][2]["mean_dice"] == pytest.approx(2 / 3)
    confidence = scores["confidence"]
    assert confidence["slices"] == 5
    assert -1 <= confidence["spearman"] <= 1
    assert 0 <= confidence["calibration_error"] <= 1


def test_annotated_slices_do_not_count(copied: Project) -> None:
    truth = column()
    truth[[0, 6]] = 2
    assert evaluate(copied, truth=volume(truth))["mean_dice"] == 1


def test_voxels_settled_by_a_slice_across_do_not_count(make_project: Callable[..., Project]) -> None:
    project = make_project({"v": column()}, {"v": (0, 6)})
    wrong = np.full((DEPTH, 8), 2, np.uint8)
    project.annotation("v").write_slice(SliceRef("y", 1), wrong, complete=True)
    list(run(project, build_config("interpolate", {"axis": "z", "mode": "nearest"})))
    scores = evaluate(project, truth=volume(column()))
    # what was painted into row 1 of z0 and z6 was copied there, and row 1 itself is human everywhere
    assert scores["mean_dice"] == 1


def test_unwritten_slices_are_background(make_project: Callable[..., Project]) -> None:
    project = make_project({"v": column()}, {"v": (0,)})
    count = iter(range(100))
    list(run(project, build_config("interpolate", {"mode": "nearest"}), stop=lambda: next(count) >= 4))
    run_id = project.run_ids()[0]
    scores = evaluate(project, truth=volume(column()), run_id=run_id)
    assert scores["not_predicted"] == 4
    assert scores["mean_dice"] == pytest.approx(2 * 16 / (16 + 48))
    with pytest.raises(InputError, match=r"no finished run.*\(stopped\)"):
        evaluate(project, truth=volume(column()))


def test_along_another_axis(make_project: Callable[..., Project]) -> None:
    project = make_project({"v": column()}, {"v": (1, 4, 6)}, axis="x", voxel_size=(3, 2, 1))
    list(run(project, build_config("interpolate", {"mode": "nearest"})))
    scores = evaluate(project, truth=volume(column()))
    assert scores["axis"] == "x"
    # x2 takes after x1, which is empty: 1 of 3 unannotated slices with the class (2, 3, 5) is missed
    assert scores["mean_dice"] == pytest.approx(2 * 28 / (28 + 42))
    assert scores["mean_hd95"] == 1


def test_surfaces_too_large(copied: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_module, "MOST_VOXELS", 10)
    scores = evaluate(copied, truth=volume(column()))
    assert scores["mean_hd95"] is None
    assert "56 voxels, above 10" in scores["classes"]["one"]["note"]


def test_truth_from_a_file(copied: Project, tmp_path: Path) -> None:
    np.save(tmp_path / "truth.npy", column())
    assert evaluate(copied, truth=tmp_path / "truth.npy")["mean_dice"] == 1


def test_classes_that_nobody_declared(make_project: Callable[..., Project]) -> None:
    project = make_project({"v": column() * 9}, {"v": (0, 6)}, classes=())
    list(run(project, build_config("interpolate", {})))
    scores = evaluate(project, truth=volume(column() * 9))
    assert scores["classes"]["class 9"]["dice"] == 1


def test_instances(make_project: Callable[..., Project]) -> None:
    labels, truth = np.zeros((DEPTH, 6, 9), np.uint8), np.zeros((DEPTH, 6, 9), np.uint16)
    labels[:, :, 4] = 1
    truth[:, :, :4], truth[:, :, 5:] = 3000, 4000
    project = make_project({"v": labels}, {"v": (0, 6)}, classes=("Cell membrane", "two"))
    list(run(project, build_config("interpolate", {})))
    scores = evaluate(project, truth=volume(truth))
    assert scores["mean_dice"] is None
    assert scores["instances"] == {
        "membrane": "Cell membrane",
        "slices": 5,
        "rand_error": pytest.approx(0),
        "split": pytest.approx(0),
        "merge": pytest.approx(0),
    }
    json.dumps(scores, allow_nan=False)


class TestRefused:
    def test_another_shape(self, copied: Project) -> None:
        with pytest.raises(InputError, match=r"truth has shape \(3, 6, 8\), volume v has \(7, 6, 8\)"):
            evaluate(copied, truth=volume(column()[:3]))

    def test_unknown_labels(self, copied: Project) -> None:
        with pytest.raises(InputError, match="holds 5, which are no class of the project"):
            evaluate(copied, truth=volume(column() * 5))

    def test_unknown_volume_or_run(self, copied: Project) -> None:
        with pytest.raises(InputError, match="no volume 'w'; it has v"):
            evaluate(copied, truth=volume(column()), volume="w")
        with pytest.raises(InputError, match="this project has"):
            evaluate(copied, truth=volume(column()), run_id="r")

    def test_which_of_several_volumes(self, make_project: Callable[..., Project]) -> None:
        project = make_project({"a": column(), "b": column()}, {"a": (0,), "b": (0, 6)})
        list(run(project, build_config("interpolate", {})))
        with pytest.raises(InputError, match="volumes a, b; say which one"):
            evaluate(project, truth=volume(column()))
        assert evaluate(project, truth=volume(column()), volume="b")["slices"] == 5

    def test_nothing_left_to_score(self, make_project: Callable[..., Project]) -> None:
        project = make_project({"v": column()}, {"v": (0, 1)})
        list(run(project, build_config("interpolate", {"range": "0:2"})))
        with pytest.raises(InputError, match="nothing to score"):
            evaluate(project, truth=volume(column()))
