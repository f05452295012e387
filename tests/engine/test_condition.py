"""Slices that are empty or damaged: found by looking at few, skipped by every selector, and named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.run import run
from napari_slicelabel.engine.select import SELECTORS, rank
from napari_slicelabel.engine.select.condition import EMPTY, UNLIKE, Condition
from napari_slicelabel.engine.select.options import SelectOptions
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

DEPTH = 38
BAD = {7: "empty", 19: "unlike its neighbours", 25: "unlike its neighbours", 26: "unlike its neighbours"}
NOTES = ("v z: skipped 7 (empty)", "v z: skipped 19, 25, 26 (unlike its neighbours)")
METHODS = [name for name in SELECTORS if name != "mae"]  # the same as representative


def smooth(depth: int = DEPTH, side: int = 48) -> NDArray[np.uint8]:
    """A stack that changes slowly, with some noise."""
    rng = np.random.default_rng(0)
    one, other = (np.kron(rng.integers(40, 200, (8, 8)), np.ones((side // 8, side // 8))) for _ in range(2))
    share = np.linspace(0, 1, depth)[:, None, None]
    return ((1 - share) * one + share * other + rng.normal(0, 4, (depth, side, side))).clip(0, 255).astype(np.uint8)


def with_damage() -> NDArray[np.uint8]:
    """With an empty slice, one from elsewhere, and two such in a row."""
    image, rng = smooth(), np.random.default_rng(5)
    image[7] = 0
    for index in (19, 25, 26):
        image[index] = rng.integers(0, 255, image[index].shape)
    return image


def make(folder: Path, **images: NDArray[np.uint8]) -> Project:
    for name, image in images.items():
        np.save(folder / f"{name}.npy", image)
    return Project.create(folder / "bad.slicelabel", [folder / f"{name}.npy" for name in images], classes=["one"])


@pytest.fixture
def bad(tmp_path: Path) -> Project:
    return make(tmp_path, v=with_damage())


def condition(image: NDArray[np.uint8], looked: list[int] | None = None) -> Condition:
    def picture(index: int) -> NDArray[np.uint8]:
        if looked is not None:
            looked.append(index)
        return image[index][None]

    return Condition(len(image), picture)


def problems(image: NDArray[np.uint8]) -> dict[int, str]:
    found = condition(image)
    return {index: problem for index in range(len(image)) if (problem := found.problem(index))}


def test_what_is_found() -> None:
    assert problems(with_damage()) == BAD
    assert (BAD[7], BAD[19]) == (EMPTY, UNLIKE)
    assert problems(smooth()) == {}


def test_a_change_of_scene_is_no_damage() -> None:
    assert problems(np.concatenate([smooth(12), smooth(12)[:, ::-1], smooth(12)[:, :, ::-1]])) == {}


def test_slices_that_have_nothing_in_common_are_no_damage() -> None:
    assert problems(np.random.default_rng(0).integers(0, 255, (DEPTH, 48, 48)).astype(np.uint8)) == {}


def test_what_is_usual_in_a_stack_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices are more and less noisy, all through the stack: the worst of them are not far worse than usual."""
    rng = np.random.default_rng(0)
    share = rng.uniform(0, 0.6, DEPTH)[:, None, None]
    image = ((1 - share) * smooth() + share * rng.integers(0, 255, (DEPTH, 48, 48))).astype(np.uint8)
    assert problems(image) == {}
    monkeypatch.setattr("napari_slicelabel.engine.select.condition._OUTLIER", 0.0)
    assert problems(image) != {}


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_of_few_slices_nothing_is_said_but_that_they_are_empty(depth: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (depth, 48, 48)).astype(np.uint8)
    image[-1] = 9
    assert problems(image) == {depth - 1: EMPTY}


def test_few_slices_are_looked_at() -> None:
    """A slice and two on each side; what is usual is asked only where something is unusual."""
    looked: list[int] = []
    image = with_damage()
    assert not condition(image, looked).problem(12)
    assert sorted(looked) == [10, 11, 12, 13, 14]
    deep = np.concatenate([smooth(400), with_damage()])
    looked.clear()
    assert condition(deep, looked).problem(419) == UNLIKE
    assert len(looked) < 200


def ready(project: Project, method: str) -> None:
    """`foreground` reads a run."""
    if method == "foreground":
        for index in (2, 34):
            plane = np.zeros((48, 48), np.uint8)
            plane[10:30, 10:30] = 1
            project.annotation("v").write_slice(SliceRef("z", index), plane, complete=True)
        list(run(project, build_config("interpolate", {})))


@pytest.mark.parametrize("method", METHODS)
class TestEverySelector:
    def test_skips_them_and_says_so(self, bad: Project, method: str) -> None:
        ready(bad, method)
        painted = bad.annotation("v").annotated("z")
        good = set(range(DEPTH)) - set(BAD) - set(painted)
        ranking = rank(bad, method, len(good), features="intensity")
        assert {item.index for item in ranking.order} == good
        assert ranking.notes[-2:] == NOTES
        with pytest.raises(InputError, match=f"only {len(good)} slices are neither annotated, skipped, empty nor"):
            rank(bad, method, len(good) + 1, features="intensity")

    def test_keeps_them_when_told_to(self, bad: Project, method: str) -> None:
        ready(bad, method)
        left = DEPTH - len(bad.annotation("v").annotated("z"))
        ranking = rank(bad, method, left, features="intensity", options=SelectOptions(damaged="keep"))
        assert {item.index for item in ranking.order} >= set(BAD)
        assert not any("skipped" in note for note in ranking.notes)


def proposed(project: Project, method: str, budget: int, **options: object) -> list[int]:
    ranking = rank(project, method, budget, options=SelectOptions.of(**options))
    return [item.index for item in ranking.order]


def test_an_interval_takes_the_nearest_good_slice(bad: Project) -> None:
    """One of 38 is the one in the middle, which is damaged: the lower of its neighbours is not."""
    assert proposed(bad, "interval", 1, damaged="keep") == [19]
    assert proposed(bad, "interval", 1) == [18]
    assert proposed(bad, "interval", 1, skip=("z18",)) == [20]
    kept, skipped = (proposed(bad, "interval", 6, damaged=damaged) for damaged in ("keep", "skip"))
    assert all(abs(a - b) <= 2 for a, b in zip(sorted(kept), sorted(skipped), strict=True))
    assert not set(skipped) & set(BAD)


def test_random_draws_stay_when_others_drop_out(bad: Project) -> None:
    kept = proposed(bad, "random", 20, damaged="keep")
    good = [index for index in kept if index not in BAD]
    assert len(good) < 20
    assert proposed(bad, "random", 20)[: len(good)] == good


def test_a_stack_with_few_good_slices_leaves_its_share_to_others(tmp_path: Path) -> None:
    image = smooth(30)
    image[3:] = 0
    project = make(tmp_path, empty=image, full=smooth(30)[:, ::-1].copy())
    ranking = rank(project, "interval", 20)
    assert {item.index for item in ranking.order if item.volume == "empty"} <= {0, 1, 2}
    assert len({(item.volume, item.index) for item in ranking.order}) == 20


@pytest.mark.parametrize("method", ["interval", "random"])
def test_most_of_a_long_stack_is_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, read: Callable[[], Sequence[int]]
) -> None:
    project = make(tmp_path, v=smooth(300))
    project.volume("v").intensity()  # a sample of its own
    ranking = rank(project, method, 4)
    near = {item.index + apart for item in ranking.order for apart in range(-2, 3)}
    assert set(read()) <= near
    assert len(read()) <= 20


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Sequence[int]]:
    """Tells which slices were read."""
    seen: list[int] = []
    original = Volume.read_slice

    def reading(self: Volume, ref: SliceRef, *, halo: int = 0) -> object:
        seen.append(ref.index)
        return original(self, ref, halo=halo)

    monkeypatch.setattr(Volume, "read_slice", reading)
    return lambda: seen
