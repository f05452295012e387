"""Networks, sampling, augmentation, losses, fitting, predicting: the parts that self-labelling is made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine.augment import NO_AUGMENTATION, Augmentation
from napari_slicelabel.engine.fit import FitConfig, Trainer, _RunningMean, check_loss
from napari_slicelabel.engine.instance_norm import InstanceNorm, with_instance_norm
from napari_slicelabel.engine.losses import masked_losses
from napari_slicelabel.engine.networks import ANDERSON, NetworkConfig, SliceNetwork, load_network
from napari_slicelabel.engine.planes import PlaneReader
from napari_slicelabel.engine.predict import Tiling, predict_bands, predict_tile, with_smaller_tiles
from napari_slicelabel.engine.sampling import Plane, PlanePool, SamplingConfig
from napari_slicelabel.errors import DeviceError, InputError, MissingFileError

CPU = torch.device("cpu")
SMALL = {"filters": (4, 4, 8, 8, 8), "in_slices": 1}


def network(**settings: object) -> SliceNetwork:
    return SliceNetwork(NetworkConfig(**{"classes": (1, 2), **SMALL, **settings})).eval()  # type: ignore[arg-type]


# -- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["plain", ANDERSON, "resnet18"])
def test_every_encoder_gives_a_logit_per_class_and_pixel(encoder: str) -> None:
    made = network(encoder=encoder, image_channels=2, in_slices=3, coordinates=True)
    size = made.stride * 2
    assert made(torch.zeros(2, 2 * 3 + 3, size, size)).shape == (2, 3, size, size)


def test_no_network_keeps_running_statistics() -> None:
    for encoder in ("plain", "resnet18"):
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network(encoder=encoder).modules())


def test_the_papers_network_has_the_published_size() -> None:
    made = network(encoder=ANDERSON, classes=(1,), filters=(8, 16, 32, 64, 128))
    convolutions = [module for module in made.modules() if isinstance(module, torch.nn.Conv2d)]
    # 5 x 2 on the way down, 4 x 3 on the way up, one head
    assert len(convolutions) == 23
    assert [conv.out_channels for conv in convolutions[:10:2]] == [8, 16, 32, 64, 128]


def test_untrained_network_reproduces_the_shapes_it_is_given() -> None:
    made = network(shape_classes=(2,))
    x = torch.randn(1, 2, 32, 32)
    x[:, 1] = -1
    x[:, 1, 8:20, 8:20] = 1
    expected = torch.where(x[:, 1] > 0, 2, 0)
    assert (made(x).argmax(1) == expected).all()


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"encoder": "no-such"}, "no-such"), ({"encoder_weights": "imagenet"}, "encoder_weights=none")],
)
def test_unknown_encoders_and_weights_are_refused_in_one_line(settings: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        network(**settings)
    assert "\n" not in str(caught.value)


def test_shape_classes_must_be_classes() -> None:
    with pytest.raises(ValueError, match="shape_classes"):
        NetworkConfig(classes=(1,), shape_classes=(2,))


def test_a_missing_model_is_named(tmp_path: object) -> None:
    with pytest.raises(MissingFileError, match=r"network\.json"):
        load_network(tmp_path)  # type: ignore[arg-type]


# -- losses -----------------------------------------------------------------------------------------------------------


def test_unknown_pixels_change_neither_loss_nor_gradient() -> None:
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    target = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    target[:, :4] = 255
    weight = torch.ones(2)
    loss = masked_losses(logits, target, weight)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[:, :, :4] == 0).all()
    assert (logits.grad[:, :, 4:] != 0).any()
    changed = logits.detach().clone()
    changed[:, :, :4] += 7
    assert torch.isclose(masked_losses(changed, target, weight), loss)


def test_cross_entropy_alone_is_torchs() -> None:
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    expected = torch.nn.functional.cross_entropy(logits, target.long())
    assert torch.isclose(masked_losses(logits, target, torch.ones(2), dice_weight=0), expected)


def test_a_perfect_answer_costs_nothing_and_an_absent_class_is_not_pushed() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.uint8)
    target[:, :4] = 1
    logits = torch.nn.functional.one_hot(target.long(), 4).permute(0, 3, 1, 2) * 50.0
    assert masked_losses(logits, target, torch.ones(1)) < 1e-3


def test_nothing_known_is_no_loss() -> None:
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = masked_losses(logits, torch.full((1, 4, 4), 255, dtype=torch.uint8), torch.ones(1))
    loss.backward()
    assert float(loss.detach()) == 0


# -- sampling ---------------------------------------------------------------------------------------------------------


def plane(size: tuple[int, int], *, human: bool = True, seed: int = 0) -> Plane:
    rng = np.random.default_rng(seed)
    target = np.zeros(size, np.uint8)
    target[size[0] // 3 : size[0] // 2, size[1] // 3 : size[1] // 2] = 1
    image = (target[None] + 0.01 * rng.standard_normal(size)).astype(np.float16)
    return Plane(image, target, 1.0 if human else 0.5, human)


def pool(
    *planes: Plane,
    crop: tuple[int, int] = (32, 32),
    augmentation: Augmentation = NO_AUGMENTATION,
    shape_dropout: float = 0.0,
) -> PlanePool:
    config = SamplingConfig(crop, 0.5, 0.5, (0.6, 1.0), augmentation, shape_dropout)
    return PlanePool(iter(planes), 1, config, CPU, 2**30, np.random.default_rng(0))


@pytest.mark.parametrize("size", [(80, 90), (20, 100), (33, 17)])
def test_without_augmentation_image_and_target_stay_aligned_pixel_by_pixel(size: tuple[int, int]) -> None:
    batch = pool(plane(size)).draw(16)
    known = batch.target != 255
    assert known.any()
    assert (batch.x[:, 0].round()[known] == batch.target[known]).all()
    assert set(batch.target[known].tolist()) == {0, 1}


def test_augmented_crops_keep_image_and_target_together() -> None:
    batch = pool(plane((90, 90)), augmentation=Augmentation(intensity=0)).draw(32)
    known = batch.target != 255
    agree = (batch.x[:, 0].round()[known] == batch.target[known]).float().mean()
    assert agree > 0.97


def test_crops_of_a_plane_that_holds_the_window_are_known_everywhere() -> None:
    batch = pool(plane((90, 90))).draw(16)
    assert (batch.target != 255).all()


def test_half_of_the_crops_are_human_and_weights_follow() -> None:
    drawn = pool(plane((64, 64)), *(plane((64, 64), human=False, seed=n) for n in range(9)))
    weights = torch.cat([drawn.draw(32).weight for _ in range(8)])
    assert set(weights.tolist()) == {0.5, 1.0}
    assert 0.4 < float((weights == 1).float().mean()) < 0.6


def test_planes_beyond_the_budget_are_not_even_read() -> None:
    read = []

    def planes() -> object:
        for number in range(100):
            read.append(number)
            yield plane((64, 64))

    config = SamplingConfig((32, 32), 0.5, 0.5, (0.6, 1.0), NO_AUGMENTATION)
    budget = 3 * plane((64, 64)).nbytes
    assert len(PlanePool(planes(), 1, config, CPU, budget, np.random.default_rng(0))) == 3  # type: ignore[arg-type]
    assert len(read) == 4


def test_large_planes_are_cut_and_parts_without_labels_left_out() -> None:
    large = plane((1500, 2500))
    large.target[:, 900:] = 255
    tiles = list(large.tiles())
    assert max(max(tile.target.shape) for tile in tiles) <= 1024
    assert sum(int((tile.target != 255).sum()) for tile in tiles) == int((large.target != 255).sum())
    assert len(tiles) < 6


def test_shape_input_lies_between_own_and_expected() -> None:
    made = plane((64, 64))
    own, around = np.zeros((1, 64, 64), np.float16), np.ones((1, 64, 64), np.float16)
    batch = pool(Plane(made.image, made.target, 1.0, True, own, around)).draw(64)
    mixes = batch.x[:, 1].mean((1, 2))
    assert float(mixes.min()) >= 0.599
    assert float(mixes.max()) <= 1.001
    assert float(mixes.max() - mixes.min()) > 0.2


def test_a_share_of_the_crops_shows_no_shapes() -> None:
    made = plane((64, 64))
    own = np.ones((1, 64, 64), np.float16)
    drawn = pool(Plane(made.image, made.target, 1.0, True, own, own), shape_dropout=0.3)
    without = torch.cat([~drawn.draw(64).x[:, 1].flatten(1).any(1) for _ in range(8)])
    assert 0.2 < float(without.float().mean()) < 0.4


# -- fitting ----------------------------------------------------------------------------------------------------------


def trainer(steps: int = 30, **settings: object) -> Trainer:
    config = NetworkConfig(**{"classes": (1,), **SMALL})  # type: ignore[arg-type]
    return Trainer(SliceNetwork(config), FitConfig(steps=steps, **settings), 4, CPU)  # type: ignore[arg-type]


def test_it_learns() -> None:
    learner = trainer(40, learning_rate=1e-2)
    losses = [float(loss) for loss in learner.steps(pool(plane((64, 64))), 40)]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    probability = predict_tile(learner.predictor, plane((64, 64), seed=3).image, CPU)
    assert (probability.argmax(0) == plane((64, 64)).target).mean() > 0.95


def test_the_running_mean_is_that_of_torch_and_follows_the_buffers() -> None:
    """And forgets the random start: the mean of the first t networks weighs the last one at least by 9 / (9 + t)."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    def lerped(means: list[Tensor], values: list[Tensor], count: Tensor) -> None:
        for mean, value in zip(means, values, strict=True):
            mean.lerp_(value, 1 - min(0.9, (float(count) + 1) / (10 + float(count))))

    ours, torchs = _RunningMean(network, 0.9), AveragedModel(network, multi_avg_fn=lerped)
    for seen in range(120):
        with torch.no_grad():
            network(torch.randn(4, 3))
            for value in network.parameters():
                value.normal_()
            torchs.update_parameters(network)
        ours.update(seen)
    for name, value in torchs.module.state_dict().items():
        torch.testing.assert_close(ours.module.state_dict()[name], value)


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened() -> None:
    first = trainer()
    list(first.steps(pool(plane((64, 64))), 3))
    torch.manual_seed(5)
    second = trainer()
    second.load_state(first.state())
    ends = []
    for learner in (first, second):
        torch.manual_seed(7)
        list(learner.steps(pool(plane((64, 64))), 2))
        ends.append(learner.state())
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_a_full_gpu_halves_the_batch_and_one_crop_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = trainer()
    step = learner._step

    def hungry(batch: object) -> torch.Tensor:
        if len(batch.weight) > 1:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(batch)  # type: ignore[arg-type]

    monkeypatch.setattr(learner, "_step", hungry)
    list(learner.steps(pool(plane((64, 64))), 2))
    assert learner.batch == 1

    def full(_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(learner, "_step", full)
    with pytest.raises(DeviceError, match="smaller crop"):
        list(learner.steps(pool(plane((64, 64))), 1))


def test_a_loss_that_is_no_number_is_an_error() -> None:
    assert check_loss(0.5) == 0.5
    with pytest.raises(InputError, match="learning rate"):
        check_loss(math.nan)


@pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
def test_the_rate_rises_then_never_rises_again(schedule: str) -> None:
    rates = [FitConfig(steps=100, schedule=schedule).rate(step) for step in range(100)]  # type: ignore[arg-type]
    top = rates.index(max(rates))
    assert max(rates) == 1
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


# -- predicting -------------------------------------------------------------------------------------------------------


@given(length=st.integers(1, 3000), tile=st.integers(32, 512), share=st.floats(0.05, 0.5))
def test_tiles_cover_everything_with_weights_that_fade(length: int, tile: int, share: float) -> None:
    tiling = Tiling.over(length, tile, max(1, int(tile * share)))
    total = np.zeros(length)
    for number, start in enumerate(tiling.starts):
        ramp = tiling.ramp(number)
        assert (ramp > 0).all()
        total[start : start + tiling.size] += ramp
    assert (total > 0).all()
    assert tiling.size <= tile
    assert tiling.starts[-1] + tiling.size == length


def test_tiled_prediction_of_what_needs_no_context_is_that_of_the_whole() -> None:
    made = network(shape_classes=(1, 2))  # its head is zero: the answer depends on the pixel alone
    x = np.random.default_rng(0).standard_normal((3, 150, 130)).astype(np.float16)
    whole = predict_tile(made, x, CPU)
    bands = list(predict_bands(made, lambda rows, columns: x[:, rows, columns], (150, 130), CPU, tile=64, overlap=16))
    assert [band.rows.start for band in bands[1:]] == [band.rows.stop for band in bands[:-1]]
    assert bands[-1].rows.stop == 150
    tiled = np.concatenate([band.probability for band in bands], axis=1)
    np.testing.assert_allclose(tiled, whole, atol=1e-2)
    np.testing.assert_allclose(tiled.sum(0), 1, atol=1e-5)


def test_tiles_shrink_until_they_fit_or_there_is_an_error() -> None:
    tried = []

    def work(tile: int) -> int:
        tried.append(tile)
        if tile > 256:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tile

    assert with_smaller_tiles(work, CPU) == 256
    assert tried == [1024, 512, 256]

    def never(_: int) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError, match="device=cpu"):
        with_smaller_tiles(never, CPU)


# -- planes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_a_part_of_a_plane_is_the_part_of_the_plane(axis: str) -> None:
    values = np.random.default_rng(0).integers(0, 255, (2, 9, 10, 11)).astype(np.uint8)
    volume = Volume.from_array(values, axes="czyx")
    config = NetworkConfig(classes=(1,), image_channels=2, in_slices=3, coordinates=True)
    reader = PlaneReader(volume, axis, config)  # type: ignore[arg-type]
    whole = reader.read_whole(4)
    assert whole.shape == (9, *volume.plane_shape(axis))  # type: ignore[arg-type]
    np.testing.assert_array_equal(reader.read(4, slice(2, 7), slice(3, 9)), whole[:, 2:7, 3:9])
    # neighbours in order, each with all its channels; the last slice repeats beyond the end
    assert np.array_equal(reader.read_whole(0)[0:2], reader.read_whole(0)[2:4])
    np.testing.assert_array_equal(reader.read_whole(3)[2:4], whole[0:2])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("norm", "shape"), [(nn.InstanceNorm2d, (2, 6, 5, 7)), (nn.InstanceNorm3d, (2, 6, 3, 5, 7))])
def test_our_instance_norm_is_that_of_torch(
    norm: type[nn.InstanceNorm2d | nn.InstanceNorm3d], shape: tuple[int, ...], affine: bool
) -> None:
    torch.manual_seed(0)
    plain = norm(6, affine=affine)
    for value in plain.parameters():
        nn.init.normal_(value)
    network = with_instance_norm(nn.Sequential(nn.ReLU(), nn.Sequential(plain)))
    own = network[1][0]  # type: ignore[index]
    assert isinstance(own, InstanceNorm)
    # so that models saved before can be read
    assert own.state_dict().keys() == plain.state_dict().keys()
    results = []
    for layer in (plain, own):
        torch.manual_seed(1)
        x = (3 * torch.randn(shape) + 1).requires_grad_()
        found = layer(x)
        (found**3).sum().backward()
        results.append([found, x.grad, *(value.grad.clone() for value in layer.parameters())])  # type: ignore[union-attr]
        layer.zero_grad()
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)
