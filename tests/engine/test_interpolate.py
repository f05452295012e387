"""What only `interpolate` promises, on stacks that a person can check by eye."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.events import Metric, SliceDone
from napari_slicelabel.engine.run import run
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project


def interpolated(project: Project, volume: str = "v", depth: int = 9, **settings: object) -> NDArray[np.uint8]:
    list(run(project, build_config("interpolate", settings)))
    folder = project.run_folder(project.run_ids()[-1])
    store = run_store(project, folder, "prediction", volume, "z")
    return np.stack([store.read(index) for index in range(depth)])


@pytest.fixture
def bars(make_project: Callable[..., Project]) -> Project:
    """A bar whose right end moves from column 2 in slice 2 to column 6 in slice 6."""
    labels = np.zeros((9, 3, 9), np.uint8)
    labels[2, :, :2], labels[6, :, :6] = 1, 1
    return make_project({"v": labels}, {"v": (2, 6)})


def test_a_border_that_moves(bars: Project) -> None:
    labels = interpolated(bars, radius_px=20)
    assert (labels == labels[:, :1]).all()
    assert ["".join(map(str, row)) for row in labels[:, 0]] == [
        "110000000",
        "110000000",
        "110000000",  # painted
        "111000000",
        "111100000",
        "111110000",
        "111111000",  # painted
        "111111000",
        "111111000",
    ]


def test_nearest(bars: Project) -> None:
    labels = interpolated(bars, mode="nearest")
    assert [int(row.sum()) for row in labels[:, 0]] == [2, 2, 2, 2, 2, 6, 6, 6, 6]


def test_wide_pixels(make_project: Callable[..., Project]) -> None:
    # A square, and the same one pixel larger all around; pixels are 4 high and 1 wide. A quarter of the way nothing has
    # reached a pixel centre. After three quarters the sides have; the corners, 4.1 from the small square, have not.
    labels = np.zeros((5, 9, 9), np.uint8)
    labels[0, 3:6, 3:6], labels[4, 2:7, 2:7] = 1, 1
    project = make_project({"v": labels}, {"v": (0, 4)}, voxel_size=(40, 4, 1))
    found = interpolated(project, depth=5, radius_px=24)
    np.testing.assert_array_equal(found[1], labels[0])
    assert ["".join(map(str, row)) for row in found[3]] == [
        "000000000",
        "000000000",
        "000111000",
        "001111100",
        "001111100",
        "001111100",
        "000111000",
        "000000000",
        "000000000",
    ]


def test_confidence_falls_with_the_distance(make_project: Callable[..., Project], tiny_stack: object) -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros((13, 24, 24), np.uint8)
    for z in range(13):
        low, high = rng.integers(3, 8), rng.integers(14, 20)
        labels[z, low:high, low:high] = 1
    project = make_project({"v": labels}, {"v": (0, 6, 12)})
    events = list(run(project, build_config("interpolate", {})))
    scores = {event.index: event.confidence for event in events if isinstance(event, SliceDone)}
    assert scores[0] == scores[6] == scores[12] == 1
    assert scores[1] > scores[3]
    assert scores[5] > scores[3]
    slopes = [event.value for event in events if isinstance(event, Metric)]
    assert 0.02 < slopes[0] < 50


def test_a_straight_column_is_sure_and_a_wandering_one_is_not(make_project: Callable[..., Project]) -> None:
    straight, wandering = np.zeros((2, 13, 24, 24), np.uint8)
    for z in range(13):
        straight[z, 8:16, 8:16] = 1
        wandering[z, 8:16, (3 * z) % 14 : (3 * z) % 14 + 8] = 1
    volumes = {"straight": straight, "wandering": wandering}
    project = make_project(volumes, dict.fromkeys(volumes, (0, 4, 8, 12)))
    events = list(run(project, build_config("interpolate", {})))
    slopes = [event.value for event in events if isinstance(event, Metric)]
    assert slopes[0] < slopes[1] / 3
    scores = {(e.volume, e.index): e.confidence for e in events if isinstance(e, SliceDone)}
    assert scores["straight", 2] > 0.95
    assert scores["wandering", 2] < 0.9


def test_few_slices_take_the_slope_that_is_given(bars: Project) -> None:
    events = list(run(bars, build_config("interpolate", {"slope": 3})))
    assert [event.value for event in events if isinstance(event, Metric)] == [3]


def test_every_volume_needs_a_slice(make_project: Callable[..., Project]) -> None:
    labels = np.zeros((4, 5, 5), np.uint8)
    labels[:, 1:3] = 1
    project = make_project({"a": labels, "b": labels}, {"a": (1,)})
    with pytest.raises(InputError, match="volume b has no annotated slice along z"):
        list(run(project, build_config("interpolate", {})))
    assert interpolated(project, "a", 4, volumes="a")[3].sum() == 10


def test_classes_that_nobody_declared(make_project: Callable[..., Project]) -> None:
    labels = np.zeros((4, 5, 5), np.uint8)
    labels[:, 1:3], labels[:, 4] = 7, 200
    project = make_project({"v": labels}, {"v": (1,)}, classes=())
    np.testing.assert_array_equal(interpolated(project, depth=4), labels)


def test_only_background(make_project: Callable[..., Project]) -> None:
    project = make_project({"v": np.eye(5, dtype=np.uint8)[None].repeat(4, 0)}, {}, classes=())
    project.annotation("v").set_complete(SliceRef("z", 1), True)
    with pytest.raises(InputError, match="no class is painted"):
        list(run(project, build_config("interpolate", {})))


def test_a_resume_after_new_paint_begins_anew(bars: Project) -> None:
    events = run(bars, build_config("interpolate", {}))
    for event in events:
        if isinstance(event, SliceDone) and event.index == 3:
            break
    events.close()
    run_id = bars.run_ids()[0]
    bars.annotation("v").write_slice(SliceRef("z", 0), np.full((3, 9), 2, np.uint8), complete=True)
    done = [event.index for event in run(bars, resume=run_id) if isinstance(event, SliceDone)]
    assert done == list(range(9))
    assert (run_store(bars, bars.run_folder(run_id), "prediction", "v", "z").read(0) == 2).all()


def test_a_resume_without_new_paint_goes_on(bars: Project) -> None:
    events = run(bars, build_config("interpolate", {}))
    for event in events:
        if isinstance(event, SliceDone) and event.index == 3:
            break
    events.close()
    done = [event.index for event in run(bars, resume=bars.run_ids()[0]) if isinstance(event, SliceDone)]
    assert done == list(range(4, 9))
