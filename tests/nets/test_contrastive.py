"""SimCLR features: the loss by brute force, views, resolutions."""

from __future__ import annotations

import math

import pytest
import torch

from normalcy.errors import SettingsError
from normalcy.nets.contrastive import SelfTaught, nt_xent, view


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_by_brute_force(temperature: float) -> None:
    """Equation 1 of SimCLR, mean over all views."""
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    unit = [row / row.norm() for row in z]
    losses = []
    for i in range(8):
        j = (i + 4) % 8
        similar = [float(unit[i] @ unit[k]) / temperature for k in range(8)]
        total = sum(math.exp(s) for k, s in enumerate(similar) if k != i)
        losses.append(-similar[j] + math.log(total))
    assert float(nt_xent(z, temperature)) == pytest.approx(sum(losses) / 8, rel=1e-5)


def test_nt_xent_is_least_where_views_agree_and_images_differ() -> None:
    codes = torch.eye(4)
    agree = nt_xent(torch.cat([codes, codes]), 0.1)
    assert agree < 0.01
    assert nt_xent(torch.cat([codes, codes.roll(1, 0)]), 0.1) > agree + 5
    assert float(nt_xent(torch.ones(8, 4), 0.1)) == pytest.approx(math.log(7), rel=1e-5)


def test_views_are_random_crops_of_their_own_image() -> None:
    torch.manual_seed(0)
    dark, bright = torch.full((1, 2, 16, 16), 0.2), torch.full((1, 2, 16, 16), 0.9)
    views = torch.cat([view(torch.cat([dark, bright])) for _ in range(20)])
    assert views.shape == (40, 2, 16, 16)
    for values, level in ((views[0::2], 0.2), (views[1::2], 0.9)):
        assert values.std((2, 3)).max() < 1e-5, "a flat image stays flat"
        brightness = values.mean((2, 3)) / level
        assert 0.6 - 1e-5 <= float(brightness.min()) < 0.8
        assert 1.2 < float(brightness.max()) <= 1.4 + 1e-5


def test_views_show_a_part_and_are_mirrored_half_of_the_time() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 32).expand(400, 1, 32, 32)
    row = view(ramp)[:, 0, 16]
    rising = row[:, -1] > row[:, 0]
    assert 0.4 < float(rising.float().mean()) < 0.6
    extent = (row.amax(1) - row.amin(1)) / row.mean(1).clamp(min=0.05)
    assert float(extent.std()) > 0.1, "crops have different sizes and places"


@pytest.mark.parametrize("layers", [(0,), (1, 3), (0, 1, 2, 3)], ids=str)
def test_resolutions_and_widths(layers: tuple[int, ...]) -> None:
    maps = SelfTaught(layers, 3)(torch.rand(2, 3, 16, 24))
    assert [tuple(m.shape) for m in maps] == [(2, 32 * 2**i, 16 >> i, 24 >> i) for i in layers]


def test_training_makes_views_of_an_image_alike() -> None:
    """Waves of 16 frequencies; at first each view is as near to all 31 others: log 31 nats."""
    torch.manual_seed(0)
    network, k = SelfTaught((3,), 1), torch.arange(16)
    x = (0.5 + 0.5 * torch.sin((0.2 + 0.1 * k)[:, None] * k))[:, None, None].expand(-1, 1, 16, -1)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(40):
        loss = network.contrast(x)["loss"]
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(31), rel=0.05)
    assert sum(losses[-5:]) / 5 < 0.85 * losses[0]


@pytest.mark.parametrize("layers", [(), (4,), (2, 1), (1, 1)], ids=str)
def test_no_other_layers(layers: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError, match=r"Backbone self has the layers 0 to 3, ascending"):
        SelfTaught(layers, 1)
