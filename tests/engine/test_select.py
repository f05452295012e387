from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_slicelabel.data.project import Project
from napari_slicelabel.data.samples import synthetic_em
from napari_slicelabel.engine.select import SELECTORS, Ranking, rank, ranked_slices
from napari_slicelabel.engine.select.candidates import Candidates, Stack
from napari_slicelabel.engine.select.interval import interval
from napari_slicelabel.engine.select.options import SelectOptions
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_slicelabel.data.boxes import SliceRef

RNG = np.random.default_rng(0)


def stack(depth: int, taken: tuple[int, ...] = (), volume: str = "v") -> Stack:
    return Stack(volume, "z", depth, tuple(index for index in range(depth) if index not in taken))


def indices(chosen: list[tuple[str, SliceRef]]) -> list[int]:
    return [ref.index for _, ref in chosen]


class TestInterval:
    @pytest.mark.parametrize(
        ("depth", "budget", "expected"),
        [
            (9, 1, [4]),
            (10, 2, [7, 2]),
            (9, 3, [4, 1, 7]),
            (100, 4, [62, 12, 37, 87]),
            (3, 3, [1, 0, 2]),
        ],
    )
    def test_by_eye(self, depth: int, budget: int, expected: list[int]) -> None:
        assert indices(interval(Candidates((stack(depth),)), budget, RNG)) == expected

    def test_annotated_slices_give_way(self) -> None:
        assert indices(interval(Candidates((stack(9, (4,)),)), 1, RNG)) == [3]
        assert indices(interval(Candidates((stack(9, (3, 4)),)), 1, RNG)) == [5]

    def test_volumes_take_turns(self) -> None:
        chosen = interval(Candidates((stack(20, volume="a"), stack(10, volume="b"))), 3, RNG)
        assert [volume for volume, _ in chosen] == ["a", "b", "a"]

    @given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.data())
    def test_as_many_as_wanted_and_all_different(self, depths: list[int], data: st.DataObject) -> None:
        candidates = Candidates(tuple(stack(depth, volume=f"v{k}") for k, depth in enumerate(depths)))
        budget = data.draw(st.integers(1, sum(depths)))
        chosen = interval(candidates, budget, RNG)
        assert len(set(chosen)) == len(chosen) == budget


@pytest.fixture
def _hardly_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is learned does not matter here."""
    monkeypatch.setattr("napari_slicelabel.engine.select.features.MOST_STEPS", 3)


@pytest.mark.usefixtures("_hardly_trained")
@pytest.mark.parametrize("method", [name for name in SELECTORS if name != "foreground"])  # test_foreground.py
class TestEverySelector:
    def test_keeps_its_promises(self, painted: Project, method: str) -> None:
        ranking = rank(painted, method, 6, "z", seed=1)
        slices = ranked_slices(ranking)
        assert len(set(slices)) == 6
        assert not {ref.index for ref in slices} & {2, 7, 12}
        assert painted.ranking(method) == ranking.model_dump(mode="json")
        assert Ranking.model_validate(painted.ranking(method)) == ranking
        assert ranked_slices(painted.ranking(method)) == slices
        assert rank(painted, method, 6, "z", seed=1) == ranking

    def test_everything_that_is_left(self, painted: Project, method: str) -> None:
        slices = ranked_slices(rank(painted, method, 13, "z"))
        assert sorted(ref.index for ref in slices) == [z for z in range(16) if z not in (2, 7, 12)]

    def test_all_axes(self, project: Project, method: str) -> None:
        slices = ranked_slices(rank(project, method, 100, "all", name="mine"))
        assert {ref.axis for ref in slices} == {"z", "y", "x"}
        assert project.ranking_names() == ("mine",)

    def test_several_volumes(self, make_project: Callable[..., Project], method: str) -> None:
        volumes = {name: np.eye(8, dtype=np.uint8)[None].repeat(8, 0) for name in ("a", "b", "c")}
        project = make_project(volumes, {})
        ranking = rank(project, method, 10, "z", volumes=("a", "c"))
        found = {volume: ranked_slices(ranking, volume) for volume in ("a", "b", "c")}
        assert len(found["a"]) + len(found["c"]) == 10
        assert not found["b"]
        with pytest.raises(InputError, match="volumes a, c; say which one"):
            ranked_slices(ranking)


def test_random_depends_on_the_seed(project: Project) -> None:
    first, again, other = (ranked_slices(rank(project, "random", 8, "z", seed)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "representativ"}, "unknown selection method 'representativ'"),
        ({"method": "best"}, "unknown selection method 'best'.*Known: interval, random"),
        ({"axis": "w"}, "axis 'w': expected z, y, x or all"),
        ({"budget": 0}, "budget 0: there are 16 slices"),
        ({"budget": 17}, "budget 17: there are 16 slices"),
        ({"volumes": ("w",)}, "volume 'w'"),
    ],
)
def test_refused(project: Project, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rank(project, **{"method": "interval", "budget": 3, **values})
    assert project.ranking_names() == ()


@pytest.mark.parametrize("method", ["interval", "random", "representative"])
def test_a_ranking_is_made_again_when_slices_are_done_or_skipped(project: Project, method: str) -> None:
    """What is done is not proposed again and covers; what is skipped is replaced; the file holds the new one."""
    first = rank(project, method, 4, features="intensity")
    done, skipped = ranked_slices(first)[:2]
    project.annotation("tiny").write_slice(done, np.ones((64, 64), np.uint8), complete=True)
    again = Project.open(project.path)
    second = rank(again, method, 3, features="intensity", options=SelectOptions(skip=(str(skipped),)))
    assert not {done, skipped} & set(ranked_slices(second))
    assert len(ranked_slices(second)) == 3
    assert Ranking.model_validate(again.ranking(method)) == second != first
    if method == "representative":
        # the one painted slice covers from the start: the first proposal adds to it
        assert second.coverage[0] > first.coverage[0]
        stood_for = {item.index for items in second.stands_for for item in items}
        assert done.index not in stood_for


def test_rankings_of_another_version_are_refused(project: Project) -> None:
    ranking = rank(project, "interval", 3).model_dump(mode="json")
    assert ranking["format_version"] == 1
    with pytest.raises(InputError, match=r"not a ranking.*make it again"):
        ranked_slices({**ranking, "format_version": 2})


def test_the_example_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = synthetic_em((32, 64, 64)).image
    image[9] = 0
    np.save(tmp_path / "mystack.npy", image)
    Project.create(tmp_path / "mystack.slicelabel", [tmp_path / "mystack.npy"], classes=["one"])
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).resolve().parents[2] / "docs" / "selection.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    said = capsys.readouterr().out
    assert len(re.findall(r"mystack z\d+: with those before it stands for \d+%", said)) == 5
    assert "mystack z: skipped 9 (empty)" in said


def test_no_ranking() -> None:
    with pytest.raises(InputError, match="not a ranking"):
        ranked_slices({"order": "z1"})
