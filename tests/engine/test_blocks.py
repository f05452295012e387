"""Blocks of volumes: reading, shapes, tiled prediction, scratch arrays, training crops."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from napari_slicelabel.data.boxes import Box
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine import blocks
from napari_slicelabel.engine.augment import NO_AUGMENTATION, Augmentation
from napari_slicelabel.engine.block_sampling import Block, BlockPool, BlockSampling, ShapesOf
from napari_slicelabel.engine.blocks import BlockPredictor, BlockReader, ShapeBlocks, crop_size, predict_blocks
from napari_slicelabel.engine.losses import IGNORE, masked_losses
from napari_slicelabel.engine.networks import NetworkConfig
from napari_slicelabel.engine.planes import PlaneReader
from napari_slicelabel.engine.scratch import Scratch
from napari_slicelabel.engine.shapes import Shapes
from napari_slicelabel.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from numpy.typing import NDArray

CPU = torch.device("cpu")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_a_block_is_a_stack_of_planes(rng: np.random.Generator, axis: str) -> None:
    volume = Volume.from_array(rng.integers(0, 255, (2, 9, 10, 11)).astype(np.uint8), axes="czyx")
    reader = BlockReader(volume, axis, coordinates=True)  # type: ignore[arg-type]
    config = NetworkConfig(classes=(1,), image_channels=2, in_slices=1)
    planes = PlaneReader(volume, axis, config)  # type: ignore[arg-type]
    whole = reader.read(Box.whole(reader.shape))
    assert whole.shape == (5, *reader.shape)
    np.testing.assert_array_equal(whole[:2, 4], planes.read_whole(4))
    assert [float(whole[2 + i].min()) for i in range(3)] == [-1, -1, -1]
    part = Box((2, 1, 3), (7, 6, 8))
    np.testing.assert_array_equal(reader.read(part), whole[:, *part.slices])


def test_shapes_of_a_block_are_those_between_slices(tmp_path: Path) -> None:
    truth = np.zeros((9, 20, 20), np.uint8)
    for z in range(9):
        truth[z, 5 : 8 + z, 5:15] = 1
    shapes = Shapes((1, 5, 8), lambda index: truth[index], (1,), (1.0, 1.0))
    block = ShapeBlocks(shapes, lambda index: {8} if index < 5 else set(), (9, 20, 20), tmp_path / "s.part.zarr")
    found = block.read(Box((0, 2, 3), (9, 20, 18)))
    for z in range(9):
        expected = shapes.at(z) if z in shapes.anchors else shapes.around(z, {8} if z < 5 else set())
        assert expected is not None
        np.testing.assert_allclose(found[:, z], expected[:, 2:20, 3:18], atol=2e-3)
    without = block.read(Box((0, 0, 0), (9, 20, 20)), {5})
    np.testing.assert_allclose(without[:, 5], shapes.around(5), atol=2e-3)  # type: ignore[arg-type]
    # all that is left lies behind a stop
    assert not block.read(Box((0, 0, 0), (1, 20, 20)), {1, 5}).any()


class Pointwise(nn.Module):
    """Needs no context, so that tiles must give what the whole gives."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x, x * x], 1) * 3


def predictor(x: NDArray[np.float16], tmp_path: Path, **settings: object) -> BlockPredictor:
    values: dict[str, object] = {"tile": (6, 16, 16), "stride": (2, 4, 4), "device": CPU, **settings}
    shape = x.shape[1:]
    return BlockPredictor(
        Pointwise(),
        lambda box: x[:, *box.slices],
        (shape[0], shape[1], shape[2]),
        3,
        scratch=tmp_path / "p.part.zarr",
        **values,  # type: ignore[arg-type]
    )


def planes_of(made: BlockPredictor, order: Collection[int]) -> dict[int, NDArray[np.float32]]:
    found = {}
    for index in order:
        list(made.prepare(index))
        found[index] = np.concatenate([band.probability for band in made.bands(index)], axis=1)
        made.release(index)
    made.close()
    return found


@pytest.mark.parametrize("in_memory", [True, False])
def test_tiles_blend_to_what_the_whole_gives_in_any_order(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    if not in_memory:
        monkeypatch.setattr(blocks, "Scratch", lambda *args: Scratch(*args, most_in_memory=0))
    x = rng.standard_normal((1, 15, 37, 29)).astype(np.float16)
    (whole,) = predict_blocks(Pointwise(), x[None], CPU, stride=(2, 4, 4))
    one = planes_of(predictor(x, tmp_path), range(15))
    other = planes_of(predictor(x, tmp_path), rng.permutation(15).tolist())
    for index in range(15):
        np.testing.assert_array_equal(one[index], other[index])
        np.testing.assert_allclose(one[index], whole[:, index], atol=5e-3)
        np.testing.assert_allclose(one[index].sum(0), 1, atol=1e-5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mirror", [False, True])
def test_what_a_block_gets_does_not_depend_on_what_is_predicted_beside_it(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, mirror: bool
) -> None:
    monkeypatch.setattr(blocks, "working_dtype", lambda _: torch.float32)
    monkeypatch.setattr(blocks, "autocast", lambda _: nullcontext())
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.ReLU(), nn.Conv3d(8, 3, 3, padding=1)
    ).eval()
    x = rng.standard_normal((3, 1, 6, 18, 20)).astype(np.float16)
    seen = []
    network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    settings: dict[str, Any] = {"stride": (2, 4, 4), "mirror": mirror}
    first, second = predict_blocks(network, x[:2], CPU, **settings)
    (lone,) = predict_blocks(network, x[1:2], CPU, **settings)
    _, beside_another = predict_blocks(network, x[[2, 1]], CPU, **settings)
    assert lone.shape == (3, 6, 18, 20)
    np.testing.assert_array_equal(second, lone)
    np.testing.assert_array_equal(second, beside_another)
    assert not np.array_equal(first, second)
    # one float32 block alone would not go through oneDNN
    assert set(seen) == {2}


def test_on_a_cpu_tiles_go_in_pairs_where_that_is_faster(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rng.standard_normal((1, 12, 40, 24)).astype(np.float16)
    made, told = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(blocks, "working_dtype", lambda _, dtype=dtype: dtype)
        one = predictor(x, tmp_path)
        told[dtype] = list(one.prepare(0))
        made[dtype] = planes_of(one, range(12))
    assert told == {torch.float32: [(2, 6), (4, 6), (6, 6)], torch.bfloat16: [(n, 6) for n in range(1, 7)]}
    for index in range(12):
        np.testing.assert_array_equal(made[torch.float32][index], made[torch.bfloat16][index])


def test_only_wanted_tiles_are_predicted(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 12, 40, 40)).astype(np.float16)
    corner = Box((0, 0, 0), (3, 8, 8))
    made = predictor(x, tmp_path, wanted=lambda tile: tile.intersect(corner).size > 0)
    assert list(made.prepare(1)) == [(1, 1)]
    (band,) = made.bands(1)
    assert (band.probability[:, :8, :8].sum(0) > 0.99).all()
    assert not band.probability[:, 20:].any()
    assert list(made.prepare(9)) == []


def test_a_full_gpu_gets_smaller_tiles_until_there_is_an_error(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rng.standard_normal((1, 4, 64, 64)).astype(np.float16)
    real, tried = predict_blocks, []

    def hungry(network: nn.Module, part: NDArray[np.float16], *args: object, **settings: object) -> object:
        tried.append(part.shape[3])
        if part.shape[3] > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(network, part, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(blocks, "predict_blocks", hungry)
    found = planes_of(predictor(x, tmp_path, tile=(4, 64, 64)), [2])
    assert tried[:2] == [64, 32]
    np.testing.assert_allclose(found[2], real(Pointwise(), x[None], CPU, stride=(2, 4, 4))[0, :, 2], atol=5e-3)

    def full(*_args: object, **_settings: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(blocks, "predict_blocks", full)
    with pytest.raises(DeviceError, match="device=cpu"):
        planes_of(predictor(x, tmp_path, tile=(4, 64, 64)), [2])


def test_what_is_released_takes_no_room(tmp_path: Path) -> None:
    with Scratch(tmp_path / "s.part.zarr", (4, 2, 30, 30), np.uint16, most_in_memory=0) as scratch:
        assert scratch.on_disk
        scratch.write(1, np.ones((2, 5, 5), np.uint16), slice(3, 8), slice(2, 7))
        assert scratch.read(1).sum() == 50
        written = {path for path in tmp_path.rglob("*") if path.is_file()}
        scratch.release(1)
        assert scratch.read(1).sum() == 0
        assert {path for path in tmp_path.rglob("*") if path.is_file()} < written
    assert not list(tmp_path.iterdir())


# -- crops ------------------------------------------------------------------------------------------------------------


def sampling(**settings: object) -> BlockSampling:
    values: dict[str, object] = {
        "crop": (4, 16, 16),
        "foreground": 0.5,
        "human": 1.0,
        "pseudo_weight": 0.3,
        "shape_mix": (0.5, 0.5),
        "shape_dropout": 0.0,
        "augmentation": NO_AUGMENTATION,
    }
    return BlockSampling(**{**values, **settings})  # type: ignore[arg-type]


def block(shape: tuple[int, int, int] = (10, 40, 40), human: tuple[int, ...] = (2, 7)) -> Block:
    """The image is the plane's number and the target the parity of the column; two planes are human."""
    depth, _, width = shape
    image = np.broadcast_to(np.arange(depth, dtype=np.float16)[:, None, None], shape)[None].copy()
    target = np.broadcast_to((np.arange(width) % 2).astype(np.uint8), shape).copy()
    mask = np.zeros(shape, bool)
    mask[list(human)] = True
    return Block("a", Box.whole(shape), image, target[None], mask)


def pool(given: Block, config: BlockSampling, shapes: ShapesOf | None = None) -> BlockPool:
    return BlockPool(iter([given]), 1, shapes or ShapesOf(), config, CPU, 2**20, np.random.default_rng(0))


def test_crops_keep_image_target_and_weight_together() -> None:
    batch = pool(block(), sampling()).draw(6)
    assert batch.x.shape == (6, 1, 4, 16, 16)
    assert batch.target.shape == batch.weight.shape == (6, 4, 16, 16)
    # whole pixels, but for what single precision makes of their places
    torch.testing.assert_close(batch.x, batch.x.round(), atol=1e-4, rtol=0)
    is_human = torch.isin(batch.x[:, 0].round(), torch.tensor([2.0, 7.0]))
    assert torch.equal(is_human, batch.weight == 1)
    assert is_human.flatten(1).any(1).all(), "every crop holds something that a human painted"
    assert torch.equal(batch.target[..., 1:] != batch.target[..., :-1], torch.ones(6, 4, 16, 15, dtype=torch.bool))


@pytest.mark.parametrize("width", [17, 20, 22, 40])
def test_crops_reach_every_border_of_a_block(width: int) -> None:
    """Also where the block is larger than the crop and smaller than the window around it."""
    image = np.broadcast_to(np.arange(width, dtype=np.float16), (6, 20, width))[None].copy()
    given = Block(
        "a", Box.whole((6, 20, width)), image, np.zeros((1, 6, 20, width), np.uint8), np.ones((6, 20, width), bool)
    )
    batch = pool(given, sampling(crop=(4, 16, 16))).draw(60)
    torch.testing.assert_close(batch.x, batch.x.round(), atol=1e-4, rtol=0)  # whole pixels, nothing interpolated
    assert set(batch.x.round().unique().tolist()) == set(range(width))
    assert (batch.target != IGNORE).all()


def test_flips_and_bends_leave_no_label_behind() -> None:
    batch = pool(block(), sampling(augmentation=Augmentation())).draw(8)
    assert batch.x.isfinite().all()
    assert set(batch.target.unique().tolist()) <= {0, 1, IGNORE}


def test_a_block_that_is_smaller_than_the_crop_is_unknown_outside() -> None:
    batch = pool(block((3, 10, 12), human=(1,)), sampling(crop=(8, 16, 16))).draw(2)
    known = batch.target != IGNORE
    assert known.flatten(1).sum(1).tolist() == [360, 360]


def test_several_sets_are_cut_alike() -> None:
    given = block()
    sets = np.concatenate([given.targets, 1 - given.targets])
    batch = pool(Block("a", given.box, given.image, sets, given.human), sampling()).draw(3)
    assert batch.target.shape == (3, 2, 4, 16, 16)
    assert torch.equal(batch.target[:, 0], 1 - batch.target[:, 1])


class Telling(ShapesOf):
    """Every plane with its own shape shows its number, all others 0."""

    classes = 1

    def read(self, volume: str, box: Box, without: Collection[int] = ()) -> NDArray[np.float16]:
        found = np.zeros((1, *box.shape), np.float16)
        for anchor in self.anchors(volume):
            if box.start[0] <= anchor < box.stop[0] and anchor not in without:
                found[0, anchor - box.start[0]] = anchor
        return found

    def anchors(self, volume: str) -> tuple[int, ...]:
        return (2, 4, 7)


def test_a_slice_that_gives_itself_away_teaches_nothing() -> None:
    config = sampling(crop=(8, 16, 16))
    batch = pool(block(human=(2, 4, 7)), config, Telling()).draw(12)
    image, shape = batch.x[:, 0], batch.x[:, 1]
    for anchor in (2, 4, 7):
        here = image == anchor
        told = here & (shape == anchor)
        assert (batch.target[told] == IGNORE).all()
        # the slice that the crop is there for is shown halfway between its own shape and what others say
        asked = here & (shape == anchor / 2)
        assert asked.any()
        assert (batch.target[asked] != IGNORE).all()
        assert torch.equal(here, told | asked)


def test_without_shapes_nothing_is_given_away() -> None:
    batch = pool(block(human=(2, 4, 7)), sampling(shape_dropout=1.0), Telling()).draw(4)
    assert not batch.x[:, 1].any()
    assert (batch.target != IGNORE).all()


def test_losses_of_volumes_weigh_voxels() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6)
    target = torch.randint(0, 3, (2, 4, 5, 6)).to(torch.uint8)
    target[0, 0] = IGNORE
    weight = torch.ones(2, 4, 5, 6)
    flat = masked_losses(logits.flatten(2, 3), target.flatten(1, 2), torch.ones(2))
    assert torch.isclose(masked_losses(logits, target, weight), flat)
    weight[1, 2] = 0
    unknown = target.clone()
    unknown[1, 2] = IGNORE
    assert torch.isclose(masked_losses(logits, target, weight), masked_losses(logits, unknown, torch.ones(2)))


def test_crops_keep_four_features_of_depth() -> None:
    assert crop_size((16, 50, 80), (4, 8, 8)) == (16, 56, 80)
    assert crop_size((5, 16, 16), (4, 4, 4)) == (16, 16, 16)
    assert crop_size((2, 16, 16), (1, 4, 4)) == (4, 16, 16)
