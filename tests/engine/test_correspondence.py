"""Features, weights and what is carried: against plain loops, and against what must hold for any slices."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_slicelabel.engine import correspondence
from napari_slicelabel.engine.correspondence import (
    CorrespondenceConfig,
    CorrespondenceNetwork,
    edge_profile,
    estimate_noise,
    gradient_profile,
    misalignment,
    padded_to,
    reconstruction_loss,
)

PUBLISHED = CorrespondenceConfig(encoder="resnet", profile="edges", stride=1, radius=2)
OURS = CorrespondenceConfig(stride=2, radius=2)


@pytest.fixture(params=[PUBLISHED, OURS], ids=["published", "ours"])
def network(request: pytest.FixtureRequest) -> CorrespondenceNetwork:
    torch.manual_seed(0)
    return CorrespondenceNetwork(request.param).eval()


@pytest.mark.parametrize("size", [(4, 6), (8, 8), (11, 17)], ids=str)
def test_what_is_taken_over_is_that_of_plain_loops(network: CorrespondenceNetwork, size: tuple[int, int]) -> None:
    radius, stride = network.config.radius, network.config.stride
    query, keys = torch.randn(2, 5, *size), torch.randn(2, 2, 5, *size)
    values = torch.rand(2, 2, 3, size[0] * stride, size[1] * stride)
    with torch.no_grad():
        taken = network.attend(query, keys, values)
        temperature, reach = network.log_temperature.exp() * network.config.soften, network.config.reach
    for y, x in product(range(size[0]), range(size[1])):
        logits, patches = [], []
        for n, dy, dx in product(range(2), range(-radius, radius + 1), range(-radius, radius + 1)):
            inside = 0 <= y + dy < size[0] and 0 <= x + dx < size[1]
            if not inside and not network.config.is_published:
                continue
            alike = query[1, :, y, x] @ keys[1, n, :, y + dy, x + dx] if inside else torch.tensor(0.0)
            if not network.config.is_published:
                alike = alike / temperature - (dy**2 + dx**2) / (2 * reach**2)
            logits.append(alike)
            rows, columns = (slice((at) * stride, (at + 1) * stride) for at in (y + dy, x + dx))
            patches.append(values[1, n, :, rows, columns] if inside else torch.zeros(3, stride, stride))
        share = torch.stack(logits).softmax(0)
        expected = (share[:, None, None, None] * torch.stack(patches)).sum(0)
        got = taken[1, :, y * stride : (y + 1) * stride, x * stride : (x + 1) * stride]
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("at_once", [2, 3, 100])
def test_rows_of_tiles_that_are_compared_together_give_the_same(
    network: CorrespondenceNetwork, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """As on a GPU, which gets many at once."""
    query, keys = torch.randn(2, 5, 35, 18), torch.randn(2, 2, 5, 35, 18)
    stride = network.config.stride
    values = torch.rand(2, 2, 3, 35 * stride, 18 * stride)
    with torch.no_grad():
        one_by_one = network.attend(query, keys, values)
        monkeypatch.setattr(correspondence, "_rows_at_once", lambda device, row_bytes: at_once)
        torch.testing.assert_close(network.attend(query, keys, values), one_by_one)


def test_probabilities_stay_probabilities() -> None:
    """Ours takes nothing from outside of the slice; the published one fades towards the border."""
    network = CorrespondenceNetwork(OURS)
    values = torch.rand(1, 1, 3, 12, 12).softmax(2)
    with torch.no_grad():
        features = network.features(torch.rand(2, 1, 12, 12))
        carried = network.attend(features[:1], features[None, 1:], values)
    torch.testing.assert_close(carried.sum(1), torch.ones(1, 12, 12))


@settings(deadline=None, max_examples=25)
@given(shift=st.floats(-50, 50), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_profiles_do_not_see_brightness(shift: float, rows: int, columns: int) -> None:
    image = torch.rand(1, 1, rows, columns, dtype=torch.float64)
    for profile in (edge_profile, lambda x: gradient_profile(x, 0.01)):
        torch.testing.assert_close(profile(image), profile(image + shift), atol=1e-6, rtol=1e-6)


def test_edge_profile_is_the_released_one() -> None:
    """One pixel by hand: differences to its 48 neighbours, their softmax."""
    image = torch.rand(1, 1, 9, 9)
    patch = image[0, 0, 1:8, 1:8].flatten()
    differences = image[0, 0, 4, 4] - torch.cat([patch[:24], patch[25:]])
    torch.testing.assert_close(edge_profile(image)[0, :, 4, 4], differences.softmax(0))


def test_noise_is_measured_despite_structure() -> None:
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    disc = ((y - 64) ** 2 + (x - 64) ** 2 < 900).float()
    assert estimate_noise(disc + 0.05 * torch.randn(128, 128)) == pytest.approx(0.05, rel=0.1)
    assert estimate_noise(torch.ones(16, 16)) > 0


@given(row=st.integers(-5, 5), column=st.integers(-8, 8))
def test_a_slice_that_lies_elsewhere_is_found(row: int, column: int) -> None:
    features = torch.nn.functional.normalize(torch.randn(8, 12, 18, generator=torch.Generator().manual_seed(0)), dim=0)
    assert misalignment(features.roll((row, column), (-2, -1)), features) == (row, column)


def test_unlike_slices_are_left_where_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.nn.functional.normalize(torch.randn(2, 8, 64, 64, generator=generator), dim=1)
    assert misalignment(one, other) == (0, 0)


def test_padding_repeats_the_border() -> None:
    grown = padded_to(torch.arange(6.0).reshape(1, 2, 3), 4)
    assert grown.shape == (1, 4, 4)
    assert grown[0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]


@pytest.mark.parametrize("config", [PUBLISHED, OURS], ids=["published", "ours"])
def test_it_learns_to_put_shifted_slices_together(config: CorrespondenceConfig) -> None:
    torch.manual_seed(1)
    network = CorrespondenceNetwork(config)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(20):
        large = torch.nn.functional.interpolate(torch.rand(4, 1, 14, 14), size=(28, 28), mode="bicubic")
        slices = torch.stack([large[..., 2:26, 2:26], large[..., 4:28, 2:26]], 1)
        loss = reconstruction_loss(network, slices, slices)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_a_slice_is_put_together_from_one_that_was_put_together() -> None:
    """What is only in the middle slice cannot come through: its intensities are those of the last."""
    network = CorrespondenceNetwork(OURS)
    seen = torch.rand(2, 3, 1, 24, 24)
    slices = seen.clone()
    with torch.no_grad():
        before = reconstruction_loss(network, slices, seen)
        slices[:, 1] = 0
        assert reconstruction_loss(network, slices, seen) == before
        slices[:, 2] = 0
        assert reconstruction_loss(network, slices, seen) > before
