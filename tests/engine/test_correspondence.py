"""Features, weights and what is carried: against plain loops, and against what must hold for any slices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_slicelabel.engine.correspondence import (
    CorrespondenceConfig,
    CorrespondenceNetwork,
    edge_profile,
    estimate_noise,
    gradient_profile,
    padded_to,
    reconstruction_loss,
)

PUBLISHED = CorrespondenceConfig(encoder="resnet", profile="edges", stride=1, radius=2)
OURS = CorrespondenceConfig(stride=2, radius=2)


@pytest.fixture(params=[PUBLISHED, OURS], ids=["published", "ours"])
def network(request: pytest.FixtureRequest) -> CorrespondenceNetwork:
    torch.manual_seed(0)
    return CorrespondenceNetwork(request.param).eval()


def test_weights_and_what_is_carried_are_those_of_plain_loops(network: CorrespondenceNetwork) -> None:
    radius, stride = network.config.radius, network.config.stride
    query, keys = torch.randn(1, 5, 4, 6), torch.randn(1, 2, 5, 4, 6)
    values = torch.rand(1, 2, 3, 4 * stride, 6 * stride)
    with torch.no_grad():
        weights = network.weights(query, keys)
        carried = network.carry(weights, values)
        temperature, reach = network.log_temperature.exp(), network.log_reach.exp()
        for y in range(4):
            for x in range(6):
                logits, patches = [], []
                for n in range(2):
                    for dy in range(-radius, radius + 1):
                        for dx in range(-radius, radius + 1):
                            inside = 0 <= y + dy < 4 and 0 <= x + dx < 6
                            if not inside and not network.config.is_published:
                                continue
                            product = query[0, :, y, x] @ keys[0, n, :, y + dy, x + dx] if inside else torch.tensor(0.0)
                            if not network.config.is_published:
                                product = product / temperature - (dy**2 + dx**2) / (2 * reach**2)
                            logits.append(product)
                            rows = slice((y + dy) * stride, (y + dy + 1) * stride)
                            columns = slice((x + dx) * stride, (x + dx + 1) * stride)
                            patches.append(values[0, n, :, rows, columns] if inside else torch.zeros(3, stride, stride))
                share = torch.stack(logits).softmax(0)
                expected = (share[:, None, None, None] * torch.stack(patches)).sum(0)
                got = carried[0, :, y * stride : (y + 1) * stride, x * stride : (x + 1) * stride]
                torch.testing.assert_close(got, expected)


def test_weights_sum_to_one(network: CorrespondenceNetwork) -> None:
    with torch.no_grad():
        weights = network.weights(torch.randn(2, 5, 6, 6), torch.randn(2, 3, 5, 6, 6))
    assert weights.shape == (2, 3 * 25, 6, 6)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 6, 6))
    assert (weights >= 0).all()


def test_probabilities_stay_probabilities() -> None:
    """Ours takes nothing from outside of the slice; the published one fades towards the border."""
    network = CorrespondenceNetwork(OURS)
    values = torch.rand(1, 1, 3, 12, 12).softmax(2)
    with torch.no_grad():
        features = network.features(torch.rand(2, 1, 12, 12))
        carried = network.carry(network.weights(features[:1], features[None, 1:]), values)
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


def test_padding_repeats_the_border() -> None:
    grown = padded_to(torch.arange(6.0).reshape(1, 2, 3), 4)
    assert grown.shape == (1, 4, 4)
    assert grown[0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]


def test_some_places_are_places_of_the_whole(network: CorrespondenceNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every place drawn once the loss is that of whole slices."""
    target, sources = torch.rand(2, 1, 12, 8), torch.rand(2, 3, 1, 12, 8)
    seen = torch.cat([target[:, None], sources], 1)
    count = 12 * 8 // network.config.stride**2
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.stack([torch.randperm(count), torch.arange(count)]))
    with torch.no_grad():
        whole, some = (reconstruction_loss(network, target, sources, seen, places=n) for n in (0, count))
    torch.testing.assert_close(whole, some)


@pytest.mark.parametrize("config", [PUBLISHED, OURS], ids=["published", "ours"])
def test_it_learns_to_put_shifted_slices_together(config: CorrespondenceConfig) -> None:
    torch.manual_seed(1)
    network = CorrespondenceNetwork(config)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(40):
        large = torch.nn.functional.interpolate(torch.rand(4, 1, 14, 14), size=(28, 28), mode="bicubic")
        target, source = large[..., 2:26, 2:26], large[..., 4:28, 2:26][:, None]
        loss = reconstruction_loss(network, target, source, torch.cat([target[:, None], source], 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
