"""Where to paint next, read from a finished run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.events import Finished
from napari_slicelabel.engine.run import run
from napari_slicelabel.engine.select import rank, ranked_slices
from napari_slicelabel.engine.select.foreground import class_entropy, disagreement
from napari_slicelabel.engine.select.options import SelectOptions
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project

DEPTH = 24
PAINTED = (4, 12, 20)


def labels() -> NDArray[np.uint8]:
    found = np.zeros((DEPTH, 32, 32), np.uint8)
    found[:, 8:24, 8:24] = 1
    found[:, 12:16, 12:16] = 2
    return found


@pytest.fixture
def propagated(make_project: Callable[..., Project]) -> Project:
    """A volume with three painted slices and a finished run that is sure of everything."""
    project = make_project({"v": labels()}, {"v": PAINTED})
    finish(project)
    for index in set(range(DEPTH)) - set(PAINTED):
        set_confidence(project, index, 255)
    return project


def finish(project: Project, **settings: object) -> str:
    events = list(run(project, build_config("interpolate", settings)))
    return next(event.run_id for event in events if isinstance(event, Finished))


def set_confidence(project: Project, index: int, value: int, where: int | None = None) -> None:
    folder = project.run_folder(sorted(project.run_ids())[0])
    store = run_store(project, folder, "confidence", "v", "z")
    plane = store.read(index)
    shown = run_store(project, folder, "prediction", "v", "z").read(index)
    plane[slice(None) if where is None else shown == where] = value
    store.write(index, plane)


def proposed(project: Project, budget: int, **options: object) -> list[int]:
    return [ref.index for ref in ranked_slices(rank(project, "foreground", budget, **options))]  # type: ignore[arg-type]


def test_where_it_is_unsure_comes_first(propagated: Project) -> None:
    set_confidence(propagated, 7, 140)
    set_confidence(propagated, 16, 140)
    assert set(proposed(propagated, 2)) == {7, 16}
    assert proposed(propagated, 1) == [16]  # as unsure, and further from what is painted


def test_a_small_class_counts_as_much_as_a_large_one(propagated: Project) -> None:
    set_confidence(propagated, 8, 140, where=1)
    set_confidence(propagated, 16, 140, where=2)
    first = {proposed(propagated, 1, seed=seed)[0] for seed in range(20)}
    assert first == {8, 16}  # noise decides


def test_picks_keep_apart(propagated: Project) -> None:
    for index in (14, 15, 16, 17, 8):
        set_confidence(propagated, index, 140)
    order = proposed(propagated, 2)
    assert 8 in order
    assert len({14, 15, 16, 17} & set(order)) == 1


def test_doubt_about_background_does_not_count(propagated: Project) -> None:
    set_confidence(propagated, 16, 140, where=0)
    set_confidence(propagated, 5, 200, where=1)
    assert proposed(propagated, 1) == [5]


def test_slices_painted_since_the_run_count(propagated: Project) -> None:
    set_confidence(propagated, 7, 140)
    set_confidence(propagated, 16, 140)
    propagated.annotation("v").write_slice(SliceRef("z", 15), labels()[15], complete=True)
    assert proposed(propagated, 1) == [7]


def test_everything_can_be_proposed_and_the_run_is_named(propagated: Project) -> None:
    ranking = rank(propagated, "foreground", DEPTH - 3, seed=1)
    assert sorted(item.index for item in ranking.order) == [z for z in range(DEPTH) if z not in PAINTED]
    assert propagated.run_ids()[0] in ranking.notes[0]
    assert rank(propagated, "foreground", DEPTH - 3, seed=1) == ranking
    assert set(proposed(propagated, 3, options=SelectOptions(range="0:4"))) <= {0, 1, 2, 3}


def test_a_run_is_needed(make_project: Callable[..., Project]) -> None:
    project = make_project({"v": labels()}, {"v": PAINTED})
    with pytest.raises(InputError, match="foreground needs a finished run of v along z, and there is none"):
        rank(project, "foreground", 2)
    finish(project, range="2:20")
    with pytest.raises(InputError, match="foreground needs a finished run of v along y"):
        rank(project, "foreground", 2, "y")
    with pytest.raises(InputError, match=r"filled the slices 2:20 of v, not slice 0; give range=2:20"):
        rank(project, "foreground", 2)
    assert len(rank(project, "foreground", 2, options=SelectOptions(range="2:20")).order) == 2
    assert project.ranking_names() == ("foreground",)


def test_a_run_of_another_method_adds_its_disagreement(propagated: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same labels but for one slice, by a run that calls itself something else."""
    from napari_slicelabel.engine.record import RunRecord

    other = propagated.run_folder(finish(propagated))
    record = RunRecord.load(other)
    record.model_copy(update={"method": "self-label"}).save(other)
    older = propagated.run_folder(propagated.run_ids()[0])
    store = run_store(propagated, other, "prediction", "v", "z")
    store.write(9, np.zeros((32, 32), np.uint8))
    assert disagreement(store.read(9), run_store(propagated, older, "prediction", "v", "z").read(9)) == 1
    for index in set(range(DEPTH)) - set(PAINTED):
        run_store(propagated, other, "confidence", "v", "z").write(index, np.full((32, 32), 255, np.uint8))
    ranking = rank(propagated, "foreground", 1)
    assert ranking.order[0].index == 9
    assert " and " in ranking.notes[0]


def test_entropy_by_eye() -> None:
    plane = np.array([[0, 0, 1, 1, 2, 2]], np.uint8)
    sure, coin = np.full((1, 6), 255, np.uint8), np.array([[9, 9, 255, 255, 127, 20]], np.uint8)
    assert class_entropy(plane, sure) == pytest.approx(0, abs=1e-6)
    assert class_entropy(plane, coin) == pytest.approx(0.5, abs=1e-6)
    assert class_entropy(np.zeros_like(plane), coin) == 0
