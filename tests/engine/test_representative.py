"""Thumbnails, the features made of them, and the slices that are chosen by them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from napari_slicelabel.data.boxes import AXES, SliceRef
from napari_slicelabel.data.project import Project
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine.events import Progress, drain
from napari_slicelabel.engine.select import FEATURE_NAMES, Ranking, rank, rank_in_steps
from napari_slicelabel.engine.select.autoencoders import ConvAutoencoder, MaskedAutoencoder, learn_features, seeded
from napari_slicelabel.engine.select.candidates import Candidates, Stack
from napari_slicelabel.engine.select.coverage import greedy_cover
from napari_slicelabel.engine.select.features import FEATURES
from napari_slicelabel.engine.select.options import SelectOptions
from napari_slicelabel.engine.select.similarities import Similarities
from napari_slicelabel.engine.select.thumbnails import SIDE_PX, Thumbnails, make_thumbnails, small_picture
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


pytestmark = pytest.mark.usefixtures("_short_training")


def test_the_names_of_features_are_listed_without_torch() -> None:
    assert tuple(FEATURES) == FEATURE_NAMES


OFFLINE = [name for name in FEATURES if name != "pretrained"]
"""Features that need no weights; tests/engine/test_pretrained.py has the others."""


@pytest.fixture
def _few_steps(_short_training: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests to which it does not matter what is learned."""
    monkeypatch.setattr("napari_slicelabel.engine.select.features.MOST_STEPS", 4)


def scenes(seed: int = 0, lengths: tuple[int, ...] = (20, 12, 6), side: int = 48) -> NDArray[np.uint8]:
    """A stack that shows one scene after another, with some noise: one slice of each stands for all."""
    rng = np.random.default_rng(seed)
    pictures = [np.kron(rng.integers(40, 200, (8, 8)), np.ones((side // 8, side // 8))) for _ in lengths]
    stack = np.concatenate([np.repeat(p[None], n, 0) for p, n in zip(pictures, lengths, strict=True)])
    return (stack + rng.normal(0, 4, stack.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def staged(tmp_path: Path) -> Project:
    np.save(tmp_path / "scenes.npy", scenes())
    return Project.create(tmp_path / "scenes.slicelabel", [tmp_path / "scenes.npy"], classes=["one"])


def stack_of(project: Project, axis: str = "z") -> Stack:
    return Candidates.of(project, project.names, (axis,)).stacks[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_thumbnails_are_the_slices_made_small(staged: Project, axis: str) -> None:
    made = drain(make_thumbnails(staged, stack_of(staged, axis)))
    assert isinstance(made, Thumbnails)
    volume = staged.volume("scenes")
    assert made.pictures.shape == (volume.depth(axis), 1, SIDE_PX, SIDE_PX)  # type: ignore[arg-type]
    plane = volume.read_slice(SliceRef(axis, 3))[0, 0].astype(float)  # type: ignore[arg-type]
    assert np.corrcoef([made.pictures[3, 0].mean(), 0], [plane.mean(), 0])[0, 1] == pytest.approx(1)
    rows = np.linspace(0, len(plane) - 1, SIDE_PX).round().astype(int)
    columns = np.linspace(0, plane.shape[1] - 1, SIDE_PX).round().astype(int)
    assert np.corrcoef(made.pictures[3, 0].ravel(), plane[np.ix_(rows, columns)].ravel())[0, 1] > 0.9


@pytest.mark.parametrize("shape", [(48, 60), (96, 96), (200, 131), (384, 97)])
def test_thumbnails_are_means(shape: tuple[int, int]) -> None:
    """As torch's pooling makes them, from larger and from smaller slices."""
    plane = np.random.default_rng(0).integers(0, 255, (1, *shape)).astype(np.uint8)
    volume = Volume.from_array(plane)
    scale = volume.intensity()
    shares = torch.from_numpy(plane).float().sub(scale.low[0]).div(scale.high[0] - scale.low[0]).clamp(0, 1)
    expected = 255 * torch.nn.functional.adaptive_avg_pool2d(shares, SIDE_PX).numpy()
    assert np.abs(small_picture(volume, SliceRef("z", 0)) - expected).max() < 0.51


def test_thumbnails_go_on_where_they_were_stopped(staged: Project) -> None:
    steps = make_thumbnails(staged, stack_of(staged))
    note = staged.path / "selection" / "thumbnails" / "scenes-z.json"
    whole = drain(make_thumbnails(staged, stack_of(staged)))
    assert isinstance(whole, Thumbnails)
    expected = whole.pictures.copy()
    file = note.with_suffix(".npy")
    # as a kill after half of them would leave it
    broken = np.load(file)
    broken[20:] = 0
    np.save(file, broken)
    note.write_text(json.dumps({**json.loads(note.read_text()), "done": 20}))
    progress = list(steps)
    assert [event.done for event in progress if isinstance(event, Progress)] == list(range(21, 39))
    again = drain(make_thumbnails(staged, stack_of(staged)))
    assert isinstance(again, Thumbnails)
    np.testing.assert_array_equal(again.pictures, expected)
    assert list(make_thumbnails(staged, stack_of(staged))) == []


def test_thumbnails_of_an_image_that_changed_are_made_again(
    staged: Project, tmp_path: Path, forget_fingerprints: Callable[[Project], Project]
) -> None:
    drain(make_thumbnails(staged, stack_of(staged)))
    np.save(tmp_path / "scenes.npy", scenes(seed=1))
    opened = forget_fingerprints(staged)
    assert len(list(make_thumbnails(opened, stack_of(opened)))) == 38


@pytest.mark.parametrize("features", OFFLINE)
def test_one_slice_of_each_scene(staged: Project, features: str) -> None:
    ranking = rank(staged, "representative", 3, features=features)
    scene = np.repeat([0, 1, 2], [20, 12, 6])
    assert sorted(scene[item.index] for item in ranking.order) == [0, 1, 2]
    assert list(ranking.coverage) == sorted(ranking.coverage)
    assert ranking.features == features
    for item, others in zip(ranking.order, ranking.stands_for, strict=True):
        assert item in others
        assert {int(scene[other.index]) for other in others} == {int(scene[item.index])}
    assert Ranking.model_validate(staged.ranking("representative")) == ranking


@pytest.mark.usefixtures("_few_steps")
@pytest.mark.parametrize("features", OFFLINE)
def test_the_same_seed_gives_the_same_ranking_and_leaves_torch_alone(staged: Project, features: str) -> None:
    before = torch.random.get_rng_state()
    first = rank(staged, "representative", 5, features=features, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert rank(staged, "representative", 5, features=features, seed=3) == first


def test_annotated_slices_count_as_covered(staged: Project) -> None:
    staged.annotation("scenes").write_slice(SliceRef("z", 4), np.ones((48, 48), np.uint8), complete=True)
    ranking = rank(staged, "representative", 2, features="intensity")
    scene = np.repeat([0, 1, 2], [20, 12, 6])
    assert sorted(scene[item.index] for item in ranking.order) == [1, 2]


def test_all_planes_share_one_budget(staged: Project) -> None:
    ranking = rank(staged, "representative", 6, "all", features="intensity")
    assert len({(item.axis, item.index) for item in ranking.order}) == 6
    assert {item.axis for item in ranking.order} > {"z"}


def test_it_covers_more_than_equal_intervals(staged: Project) -> None:
    made = drain(make_thumbnails(staged, stack_of(staged)))
    assert isinstance(made, Thumbnails)
    rows = drain(
        FEATURES["intensity"].compute([made], torch.device("cpu"), np.random.default_rng(0), SelectOptions(), None)
    )
    assert isinstance(rows, np.ndarray)
    similarities = Similarities(rows - rows.mean(0))
    for budget in (1, 2, 3, 5, 9):
        chosen = [item.index for item in rank(staged, "interval", budget).order]
        interval = greedy_cover(similarities, 0, annotated=chosen).start
        assert rank(staged, "representative", budget, features="intensity").coverage[-1] >= interval - 1e-9


def test_a_range_is_all_there_is(staged: Project) -> None:
    """Slices outside are neither proposed nor stood for, and the annotated ones there do not count."""
    staged.annotation("scenes").write_slice(SliceRef("z", 4), np.ones((48, 48), np.uint8), complete=True)
    for method in ("interval", "random", "representative"):
        ranking = rank(staged, method, 3, features="intensity", options=SelectOptions(range="18:36"))
        assert {item.index for item in ranking.order} <= set(range(18, 36))
    stood_for = [item.index for items in ranking.stands_for for item in items]
    assert sorted(stood_for) == list(range(18, 36))
    assert rank(staged, "interval", 2, options=SelectOptions(range="18:36")).order[0].index == 31
    with pytest.raises(InputError, match=r"range=18:39: scenes along z has 38 slices"):
        rank(staged, "interval", 3, options=SelectOptions(range="18:39"))


def test_skipped_slices_want_to_be_covered(staged: Project) -> None:
    skip = tuple(f"scenes:z{index}" for index in range(32, 37))
    for method in ("interval", "random", "representative"):
        ranking = rank(staged, method, 3, features="intensity", options=SelectOptions(skip=(*skip, "y5")))
        assert not {item.index for item in ranking.order} & set(range(32, 37))
    assert 37 in {item.index for item in ranking.order}  # the one of the last scene that is left
    assert {item.index for item in ranking.stands_for[[item.index for item in ranking.order].index(37)]} >= {32, 36}
    with pytest.raises(InputError, match=r"skip=.*'5' is no slice: expected axis and number"):
        SelectOptions.of(skip=("5",))


def test_position_keeps_proposals_apart(staged: Project) -> None:
    """Three scenes, six slices: by looks alone some would crowd."""

    def gap(reach: float) -> int:
        options = SelectOptions(reach=reach)
        order = rank(staged, "representative", 6, features="intensity", options=options).order
        places = sorted(item.index for item in order)
        return min(b - a for a, b in pairwise(places))

    assert gap(0.5) >= 4


@pytest.mark.parametrize("budget", [2, 5, 8, 13])
def test_area_is_a_cost(tmp_path: Path, budget: int) -> None:
    """Slices along z have 48 x 48 pixels, those along x a sixth of that, and show as much."""
    np.save(tmp_path / "flat.npy", scenes(lengths=(4, 4)))
    project = Project.create(tmp_path / "flat.slicelabel", [tmp_path / "flat.npy"], classes=["one"])
    stacks = [drain(make_thumbnails(project, stack)) for stack in Candidates.of(project, ("flat",), AXES).stacks]
    rows = drain(
        FEATURES["intensity"].compute(stacks, torch.device("cpu"), np.random.default_rng(0), SelectOptions(), None)
    )
    similarities = Similarities(rows - rows.mean(0))

    def coverage_and_pixels(method: str, cost: str) -> tuple[float, int]:
        options = SelectOptions.of(cost=cost)
        order = rank(project, method, budget, "all", features="intensity", options=options).order
        first = {"z": 0, "y": 8, "x": 56}
        chosen = [first[item.axis] + item.index for item in order]
        pixels = sum(48 * 48 if item.axis == "z" else 8 * 48 for item in order)
        return greedy_cover(similarities, 0, annotated=chosen).start, pixels

    coverage, pixels = coverage_and_pixels("representative", "area")
    equally_spaced, most = coverage_and_pixels("interval", "equal")
    assert coverage >= equally_spaced
    assert pixels <= most


def test_an_even_budget_gives_every_volume_its_share(tmp_path: Path) -> None:
    """One volume shows one thing throughout, the other three: pooled, the first gets little."""
    np.save(tmp_path / "dull.npy", scenes(lengths=(38,)))
    np.save(tmp_path / "rich.npy", scenes(1))
    project = Project.create(
        tmp_path / "two.slicelabel", [tmp_path / "dull.npy", tmp_path / "rich.npy"], classes=["one"]
    )

    def counts(spread: str) -> tuple[Ranking, list[int]]:
        options = SelectOptions.of(spread=spread)
        ranking = rank(project, "representative", 4, features="intensity", options=options)
        return ranking, [sum(item.volume == name for item in ranking.order) for name in ("dull", "rich")]

    pooled, by_volume = counts("pooled")
    assert by_volume == [1, 3]
    even, by_volume = counts("even")
    assert by_volume == [2, 2]
    assert list(even.coverage) == sorted(even.coverage)
    assert even.coverage[-1] < pooled.coverage[-1]
    for item, others in zip(even.order, even.stands_for, strict=True):
        assert {other.volume for other in others} == {item.volume}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"range": "9:3"}, "range=9:3: expected all, or a:b"),
        ({"reach": -1}, "reach=-1"),
        ({"spread": "odd"}, "spread=odd"),
        ({"costs": 1}, "unknown option 'costs'. Did you mean cost"),
    ],
)
def test_bad_options(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SelectOptions.of(**values)


# -- features that are kept -----------------------------------------------------------------------------------------


LEARN = "learn what slices look like"


def stages_of(project: Project, **options: object) -> dict[str, list[int]]:
    """Rank, and return the stages with the numbers of their steps."""
    found: dict[str, list[int]] = {}
    for event in rank_in_steps(project, "representative", 3, **options):  # type: ignore[arg-type]
        if isinstance(event, Progress):
            found.setdefault(event.stage, []).append(event.done)
    return found


@pytest.mark.usefixtures("_few_steps")
def test_features_are_learned_once(staged: Project) -> None:
    first = rank(staged, "representative", 3)
    assert set(stages_of(staged)) == {"compare"}
    staged.annotation("scenes").write_slice(SliceRef("z", 4), np.ones((48, 48), np.uint8), complete=True)
    again = Project.open(staged.path)
    assert set(stages_of(again, options=SelectOptions(range="2:38"))) == {"compare"}
    assert LEARN in stages_of(again, seed=1)
    assert rank(Project.open(staged.path), "representative", 3).features == first.features


@pytest.mark.usefixtures("_few_steps")
def test_features_of_an_image_that_changed_or_in_a_damaged_file_are_learned_again(
    staged: Project, tmp_path: Path, forget_fingerprints: Callable[[Project], Project]
) -> None:
    first = rank(staged, "representative", 3)
    (file,) = (staged.path / "selection" / "features").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert LEARN in stages_of(staged)
    assert rank(staged, "representative", 3) == first
    np.save(tmp_path / "scenes.npy", scenes(seed=1))
    assert LEARN in stages_of(forget_fingerprints(staged))


def learned(project: Project) -> NDArray[np.float32]:
    (file,) = (project.path / "selection" / "features").glob("*.safetensors")
    found: NDArray[np.float32] = load_file(file)["features"]
    return found


@pytest.mark.parametrize("features", ["autoencoder", "mae"])
def test_an_interrupted_training_goes_on(staged: Project, monkeypatch: pytest.MonkeyPatch, features: str) -> None:
    """It ends with the very same features, and leaves nothing behind."""
    monkeypatch.setattr("napari_slicelabel.engine.select.features.MOST_STEPS", 8)
    rank(staged, "representative", 3, features=features)
    expected = learned(staged)
    shutil.rmtree(staged.path / "selection" / "features")
    monkeypatch.setattr("napari_slicelabel.engine.select.autoencoders.SAVE_EVERY_S", 0.0)
    steps = rank_in_steps(staged, "representative", 3, features=features)
    next(event for event in steps if isinstance(event, Progress) and (event.stage, event.done) == (LEARN, 6))
    steps.close()
    assert stages_of(staged, features=features)[LEARN][0] == 6  # the 6th had not been saved yet
    np.testing.assert_array_equal(learned(staged), expected)
    assert [path.suffix for path in (staged.path / "selection" / "features").iterdir()] == [".safetensors"]


@pytest.mark.usefixtures("_few_steps")
def test_a_damaged_training_is_begun_again(staged: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_slicelabel.engine.select.autoencoders.SAVE_EVERY_S", 0.0)
    steps = rank_in_steps(staged, "representative", 3)
    next(event for event in steps if isinstance(event, Progress) and (event.stage, event.done) == (LEARN, 3))
    steps.close()
    (unfinished,) = (staged.path / "selection" / "features").glob("*.training")
    for file in unfinished.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert stages_of(staged)[LEARN][0] == 1


def test_a_killed_training_goes_on(staged: Project, tmp_path: Path) -> None:
    """Killed in another process, which does not tell anybody."""
    rank(staged, "representative", 3)
    expected = learned(staged)
    shutil.rmtree(staged.path / "selection" / "features")
    killed = subprocess.run([sys.executable, "-c", TRAIN_UNTIL_KILLED, str(staged.path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (unfinished,) = (staged.path / "selection" / "features").glob("*.training")
    assert unfinished.is_dir()
    assert stages_of(Project.open(staged.path))[LEARN][0] >= 9
    np.testing.assert_array_equal(learned(staged), expected)
    assert not unfinished.exists()


TRAIN_UNTIL_KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from napari_slicelabel.data.project import Project
from napari_slicelabel.engine.select import autoencoders, features, rank_in_steps
autoencoders.SAVE_EVERY_S = 0
features.MOST_STEPS = 12
for event in rank_in_steps(Project.open(sys.argv[1]), "representative", 3):
    if getattr(event, "stage", "") == "learn what slices look like" and event.done == 10:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("_few_steps")
def test_old_features_are_deleted(staged: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_slicelabel.engine.select.feature_store.KEPT", 2)
    for seed in range(4):
        rank(staged, "representative", 3, seed=seed)
    assert len(list((staged.path / "selection" / "features").iterdir())) == 2
    assert set(stages_of(staged, seed=3)) == {"compare"}


def test_volumes_must_have_the_same_channels(tmp_path: Path) -> None:
    import tifffile

    np.save(tmp_path / "grey.npy", scenes())
    two = np.stack([scenes(), scenes(1)], 1)
    tifffile.imwrite(tmp_path / "two.tif", two, imagej=True, metadata={"axes": "ZCYX"})
    project = Project.create(tmp_path / "p.slicelabel", [tmp_path / "grey.npy", tmp_path / "two.tif"], classes=["one"])
    with pytest.raises(InputError, match=r"\[1, 2\] channels"):
        rank(project, "representative", 3, features="intensity")
    assert len(rank(project, "representative", 3, volumes=("two",), features="intensity").order) == 3


def test_unknown_features(staged: Project) -> None:
    with pytest.raises(InputError, match="intensity"):
        rank(staged, "representative", 3, features="intensty")


@pytest.mark.usefixtures("_few_steps")
def test_it_tells_how_far_it_is(staged: Project) -> None:
    stages = [event.stage for event in rank_in_steps(staged, "representative", 3) if isinstance(event, Progress)]
    assert list(dict.fromkeys(stages)) == ["look at scenes z", "learn what slices look like", "compare"]


@pytest.mark.parametrize("network", [ConvAutoencoder, MaskedAutoencoder])
def test_autoencoders_learn(network: type[ConvAutoencoder | MaskedAutoencoder]) -> None:
    rng = np.random.default_rng(0)
    pictures = torch.from_numpy(scenes(side=network.side)).float()[:, None] / 60 - 2
    model = seeded(lambda: network(1), rng)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        before = float(model.loss(pictures, generator))
    steps = learn_features(model, lambda numbers: pictures[numbers], 38, steps=20, device=torch.device("cpu"), rng=rng)
    features = drain(steps)
    assert isinstance(features, np.ndarray)
    assert features.shape[0] == 38
    with torch.inference_mode():
        assert float(model.loss(pictures, generator)) < 0.8 * before


def test_a_loss_that_is_no_number_is_an_error() -> None:
    rng = np.random.default_rng(0)
    pictures = torch.full((8, 1, 64, 64), torch.nan)
    steps = learn_features(
        ConvAutoencoder(1), lambda numbers: pictures[numbers], 8, steps=20, device=torch.device("cpu"), rng=rng
    )
    with pytest.raises(InputError, match="astray"):
        drain(steps)
