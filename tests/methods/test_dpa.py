"""Facts of DPA, by the equations of its paper; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import DataError, SettingsError
from normalcy.methods.dpa import DPA, DPASettings, Residual
from normalcy.nets.contrastive import SelfTaught, nt_xent, view
from normalcy.nets.perceptual import relative_l1
from normalcy.testing import smooth_textures
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {
    "steps": 150,
    "batch_size": 16,
    "width": 8,
    "latent": 8,
    "blocks": 1,
    "lr": 0.01,
    "layers": (0,),
    "magnify": 2,
}
"""Settings that make the contract tests quick."""

SHAPE = (1, 32, 32)
SMALL: dict[str, Any] = {"width": 4, "latent": 8, "lr": 0.003}


def _method(shape: tuple[int, ...] = SHAPE, **words: Any) -> DPA:
    torch.manual_seed(0)
    method = DPA(DPASettings(**{**SMALL, **words}), shape)
    method.load_pretrained()
    return method


def _fitted(steps: int = 4, shape: tuple[int, ...] = SHAPE, **words: Any) -> DPA:
    method = _method(shape, **words)
    settings = TrainSettings(steps=steps, batch_size=8, precision="32-true", device="cpu")
    fit(method, smooth_textures(24, shape, seed=0), settings)
    return method


@pytest.mark.parametrize("factor", [1e-2, 1.0, 300.0])
def test_relative_loss_does_not_know_the_scale_of_features(factor: float) -> None:
    a, b = torch.randn(3, 5, 4, 4), torch.randn(3, 5, 4, 4)
    expected = torch.stack([(x - y).abs().sum() / x.abs().sum() for x, y in zip(a, b)])
    torch.testing.assert_close(relative_l1(factor * a, factor * b), expected)


def test_no_gradient_through_the_divisor() -> None:
    wanted, found = torch.tensor([[1.0, -3.0]], requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    relative_l1(wanted, found).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(wanted.grad, torch.tensor([[0.25, -0.25]]))  # sign / (2 * mean |f(x)|)
    torch.testing.assert_close(found.grad, torch.tensor([[-0.25, 0.25]]))


@pytest.mark.parametrize("channels", [1, 3])
def test_score_is_equation_1_step_by_step(channels: int) -> None:
    method = _fitted(shape=(channels, 32, 32), magnify=None)
    x = smooth_textures(3, method.shape, seed=1)
    scores = method.score(x)
    low, high = float(method.range.low), float(method.range.high)
    with torch.no_grad():
        y = 2 * (x - low) / (high - low) - 1
        restored = method.autoencoder(y)
        maps = []
        for image in (y, restored):
            in_unit = F.interpolate((image + 1) / 2, size=(64, 64), mode="bilinear").expand(-1, 3, -1, -1)
            (features,) = method.perceptual.backbone(in_unit)
            maps.append((features - method.perceptual.mean.view(1, -1, 1, 1)) / method.perceptual.std.view(1, -1, 1, 1))
    expected = (maps[0] - maps[1]).abs().sum((1, 2, 3)) / maps[0].abs().sum((1, 2, 3))
    torch.testing.assert_close(scores.image, expected, rtol=1e-4, atol=1e-6)
    assert scores.map is not None
    assert maps[0].shape[1:] == (40, 8, 8)  # the third layer, at a quarter of the side
    coarse = (maps[0] - maps[1]).abs().mean(1) / maps[0].abs().mean((1, 2, 3))[:, None, None]
    torch.testing.assert_close(coarse.mean((1, 2)), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        scores.map, F.interpolate(coarse[:, None], (32, 32), mode="bilinear")[:, 0], rtol=1e-3, atol=1e-4
    )


def test_statistics_are_those_of_all_pixels_of_all_images() -> None:
    method = _fitted(grow=True, shrink=1, statistics="training")
    x = smooth_textures(24, SHAPE, seed=0)
    with torch.no_grad():
        maps = method.perceptual.maps(method.range(x))
    assert [m.shape[1] for m in maps] == [16, 24, 40]
    means = torch.cat([m.mean((0, 2, 3)) for m in maps])
    stds = torch.cat([m.std((0, 2, 3), correction=0) for m in maps])
    torch.testing.assert_close(method.perceptual.mean, means, rtol=1e-4, atol=1e-5)
    alive = stds > 0.02 * stds.mean()
    assert alive.float().mean() > 0.8
    torch.testing.assert_close(method.perceptual.std[alive], stds[alive], rtol=1e-3, atol=1e-5)


def test_statistics_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    np.savez(path, **{"2_mean": np.arange(40.0), "2_std": np.arange(1.0, 41.0)})
    method = _fitted(steps=1, statistics=str(path))
    torch.testing.assert_close(method.perceptual.mean, torch.arange(40.0))
    torch.testing.assert_close(method.perceptual.std, torch.arange(1.0, 41.0))
    with pytest.raises(SettingsError, match="0_mean"):
        _fitted(steps=1, statistics=str(path), layers=(0,))


def test_paper_layers_of_vgg19_have_the_authors_names() -> None:
    method = DPA(DPASettings(backbone="vgg19", layers=(1, 3, 5, 9), grow=True, shrink=1), (3, 64, 64))
    assert method.perceptual.backbone.names == ("r12", "r22", "r32", "r42")
    assert method.perceptual.backbone.widths == (64, 128, 256, 512)
    assert method.perceptual.magnify == 1
    assert [method.layer(level) for level in (3, 2, 1, 0)] == [1, 3, 5, 9]


def _on_grown(**words: Any) -> tuple[DPA, Tensor]:
    method = _fitted(**{"grow": True, "shrink": 1, **words})
    return method, method.range(smooth_textures(3, SHAPE, seed=1))


@pytest.mark.parametrize(("level", "shrink"), [(0, 1), (1, 1), (0, 2)])
def test_alpha_0_and_1_are_the_two_fixed_resolutions(level: int, shrink: int) -> None:
    method, y = _on_grown(shrink=shrink, layers=(0, 0, 0) if shrink == 2 else (0, 1, 2))
    y = F.avg_pool2d(y, 2**level) if level else y
    with torch.no_grad():
        for alpha, fixed in (
            (1.0, method.reconstruction(y, level)),
            (0.0, method.reconstruction(F.avg_pool2d(y, 2), level + 1)),
        ):
            assert float(method.fading(y, level, alpha)["loss"]) == pytest.approx(float(fixed["loss"]), rel=1e-5)
            halfway, fine = method.fading(y, level, 0.5)["loss"], method.reconstruction(y, level)["loss"]
    assert float(halfway) != pytest.approx(float(fine), rel=1e-3)


def test_equation_3_in_between() -> None:
    method, y = _on_grown()
    alpha = 0.3
    with torch.no_grad():
        coarse = F.avg_pool2d(y, 2)
        mixed = alpha * y + (1 - alpha) * F.interpolate(coarse, scale_factor=2)
        restored = method.autoencoder(mixed, 0, alpha)
        down, restored_down = F.avg_pool2d(mixed, 2), F.avg_pool2d(restored, 2)
        fine = relative_l1(method.features(mixed, 0), method.features(restored, 0)).mean()
        rough = relative_l1(method.features(down, 1), method.features(restored_down, 1)).mean()
        found = method.fading(y, 0, alpha)["loss"]
    torch.testing.assert_close(found, alpha * fine + (1 - alpha) * rough)


def test_score_of_the_highest_errors() -> None:
    method = _fitted(steps=1, top=0.25)
    x = smooth_textures(3, SHAPE, seed=1)
    with torch.no_grad():
        y = method.range(x)
        wanted, found = method.features(y), method.features(method.restore(y))
    error = ((wanted - found).abs().mean(1) / wanted.abs().mean((1, 2, 3))[:, None, None]).flatten(1)  # 4x4
    torch.testing.assert_close(method.score(x).image, error.sort(1).values[:, -4:].mean(1), rtol=1e-4, atol=1e-6)


def test_default_score_is_equation_1_for_small_images_and_the_mean_of_the_highest_errors_above() -> None:
    assert [_method((1, side, side)).top for side in (28, 32, 40, 128)] == [1, 1, 0.3, 0.3]
    assert _method((1, 64, 64), top=1.0).top == 1


def test_learning_rate_of_the_last_stage_falls_to_0() -> None:
    stages = _method((1, 64, 64), anneal=True).stages()
    assert [s.objectives[0].schedule is None for s in stages] == [True] * 4 + [False]
    (last,) = stages[-1].objectives
    assert last.schedule is not None
    assert [last.schedule(f) for f in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]
    assert stages[-1].early_stop is not None
    assert stages[-1].early_stop.after == 0.5  # a plateau at a high rate is no reason to stop
    constant = _method().stages()[-1]
    assert constant.objectives[0].schedule is None
    assert constant.early_stop is not None
    assert constant.early_stop.after == 0


def test_lengths_of_stages_are_settings() -> None:
    stages = _method((1, 64, 64), shrink=1, stage_steps=7, last_steps=3).stages()
    assert [s.steps for s in stages] == [7] * 6 + [3]
    assert _method(last_steps=3).stages()[0].steps == 3


def test_stages_of_growing() -> None:
    method = _method((1, 64, 64), shrink=1)
    stages = method.stages()
    assert [s.name for s in stages] == [
        "stabilise 8", "fade 16", "stabilise 16", "fade 32", "stabilise 32", "fade 64", "stabilise 64"
    ]  # fmt: skip
    assert [s.steps for s in stages] == [20_000] * 6 + [10_000]
    assert [method.layer(level) for level in (3, 2, 1, 0)] == [0, 1, 2, 2]
    assert [s.name for s in _method().stages()] == ["stabilise 32"]
    assert [s.name for s in _method((1, 64, 64)).stages()][:2] == ["stabilise 16", "fade 32"]  # the autoencoder sees 8


def test_cached_features_change_nothing() -> None:
    x = smooth_textures(3, SHAPE, seed=1)
    cached, afresh = _fitted(cache=True).score(x), _fitted(cache=False).score(x)
    torch.testing.assert_close(cached.image, afresh.image, rtol=1e-4, atol=1e-6)


def test_training_lowers_the_loss_also_when_growing() -> None:
    x = smooth_textures(12, SHAPE, seed=1)
    longer, shorter = (_fitted(steps=steps, grow=True, lr=0.01).score(x).image.mean() for steps in (100, 1))
    assert longer < 0.85 * shorter


@pytest.mark.parametrize(
    ("latent", "rate"),
    [
        (8, 1e-2),  # the authors' rate
        (16, 5e-3),  # the authors' rate
        # The authors' 2e-4 is less than 16 channels' rate / 16: theirs falls faster than in inverse proportion to the channels.
        (256, 5e-3 / 16),
    ],
)
def test_default_learning_rates(latent: int, rate: float) -> None:
    assert DPA(DPASettings(latent=latent), SHAPE).rate() == pytest.approx(rate, rel=1e-12)
    assert DPA(DPASettings(latent=latent, grow=True), SHAPE).rate() == 1e-3


def test_backbone_follows_the_precision_of_training_and_scores_in_32_bits() -> None:
    method = _fitted()
    y = method.range(smooth_textures(4, SHAPE, seed=1)).requires_grad_()
    exact = method.features(y)
    with torch.autocast("cpu", torch.bfloat16):
        fast = method.features(y)
        slow = _fitted(bf16=False).features(y)
    torch.testing.assert_close(slow, exact)
    assert not torch.equal(fast, exact)
    assert (fast - exact).abs().mean() < 0.1  # of features with standard deviation 1
    gradients = [torch.autograd.grad(f.abs().mean(), y)[0] for f in (fast, exact)]
    assert torch.nn.functional.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.9


def test_ablations_are_settings() -> None:
    method = _fitted(steps=2, l1=0.1, adversarial=0.1)
    assert method.critic is not None
    y = method.range(smooth_textures(4, SHAPE, seed=1))
    method.train()
    with torch.no_grad():
        terms = method.reconstruction(y, 0)
        restored = method.restore(y)
        adversarial, l1 = -method.critic(restored).mean(), (y - restored).abs().mean()
    assert float(terms["loss"]) == pytest.approx(float(terms["perceptual"] + 0.1 * l1 + 0.1 * adversarial), rel=1e-5)
    pixels = _fitted(steps=2, perceptual=0.0, l1=1.0)
    x = smooth_textures(4, SHAPE, seed=1)
    scores = pixels.score(x)
    assert scores.restored is not None
    half_range = (pixels.range.high - pixels.range.low) / 2
    torch.testing.assert_close(
        scores.image, (x - scores.restored).abs().mean((1, 2, 3)) / half_range, rtol=1e-4, atol=1e-6
    )


def test_bottlenecks() -> None:
    y = torch.rand(2, 3, 32, 48)
    assert _method((3, 32, 48)).autoencoder.encode(y).shape == (2, 8, 1, 1)
    assert _method((3, 32, 48), bottleneck="spatial").autoencoder.encode(y).shape == (2, 8, 8, 12)
    assert _method((1, 28, 28)).autoencoder(torch.rand(2, 1, 28, 28)).shape == (2, 1, 28, 28)
    assert _method((3, 64, 64), bottleneck="spatial", grow=True, shrink=1).levels == [
        2,
        1,
        0,
    ]  # begins above the bottleneck
    assert [
        _method((3, 64, 64), bottleneck="spatial", grid=grid).autoencoder.encode(torch.rand(1, 3, 64, 64)).shape[2]
        for grid in (4, 8, 16)
    ] == [4, 8, 16]
    widths = [
        part[0].out_channels for part in _method((3, 64, 64), width=8, latent=32, shrink=1).autoencoder.from_image
    ]  # type: ignore[index, union-attr]
    assert widths == [8, 16, 32, 32, 32]
    for part in _method((3, 32, 48)).autoencoder.modules():
        assert not isinstance(part, nn.BatchNorm2d | nn.GroupNorm)


def test_autoencoder_of_half_size_is_the_whole_one_between_reduced_and_enlarged_images() -> None:
    whole, half = _method((3, 16, 24), shrink=1), _method((3, 32, 48))
    assert half.autoencoder.shrink == 2
    half.autoencoder.load_state_dict(whole.autoencoder.state_dict())
    y = 2 * torch.rand(2, 3, 32, 48) - 1
    small = whole.autoencoder(F.avg_pool2d(y, 2))
    expected = F.interpolate(small, size=(32, 48), mode="bilinear")
    torch.testing.assert_close(half.autoencoder(y), expected)
    assert _method((3, 8, 8), bottleneck="spatial").autoencoder.shrink == 1  # 4 pixels would be below the grid
    with pytest.raises(DataError, match=re.escape("divided by 3, halve to 4 to 7 pixels")):
        _method((3, 32, 32), shrink=3)


def test_zero_start_is_a_chain_of_shortcuts() -> None:
    """Each block starts as its shortcut, so that the output of the untrained network stays near the size of an image."""
    y = 2 * torch.rand(8, 3, 64, 64) - 1
    with torch.no_grad():
        sizes = {
            start: [
                float(DPA(DPASettings(start=start, shrink=1), (3, 64, 64)).autoencoder(y).std())  # type: ignore[arg-type]
                for _ in range(5)
            ]
            for start in ("authors", "zero")
        }
    assert np.median(sizes["zero"]) < 0.3 * np.median(sizes["authors"])
    block = Residual(3, 5)
    autoencoder = _method(start="zero").autoencoder
    assert all(
        float(part.second.weight.abs().max()) == 0 for part in autoencoder.modules() if isinstance(part, Residual)
    )
    assert float(block.second.weight.abs().max()) > 0


def test_self_taught_backbone_learns_to_tell_images_apart() -> None:
    torch.manual_seed(0)
    net = SelfTaught((0, 2), 1)
    x = torch.rand(16, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = net.contrast(x)["loss"]
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < sum(losses[:5]) - 1.5
    assert [m.shape for m in net.eval()(x)] == [(16, 32, 16, 16), (16, 128, 4, 4)]


def test_self_taught_backbone_is_a_stage_of_its_own() -> None:
    method = _fitted(steps=6, backbone="self")
    assert [s.name for s in method.stages()] == ["simclr", "stabilise 32"]
    taught = {id(p) for p in method.perceptual.backbone.parameters()}
    assert not taught & {id(p) for p in method.stages()[1].objectives[0].parameters}
    assert method.score(smooth_textures(3, SHAPE, seed=1)).image.isfinite().all()


def test_nt_xent_is_equation_1_of_simclr_pair_by_pair() -> None:
    z = torch.randn(8, 5)
    total = 0.0
    for i in range(8):
        j = (i + 4) % 8
        similar = [float(torch.cosine_similarity(z[i], z[k], dim=0) / 0.5) for k in range(8)]
        total -= np.log(np.exp(similar[j]) / sum(np.exp(s) for k, s in enumerate(similar) if k != i))
    assert float(nt_xent(z, 0.5)) == pytest.approx(total / 8, rel=1e-5)


def test_views_differ_and_stay_finite() -> None:
    x = torch.rand(4, 3, 16, 24)
    a, b = view(x), view(x)
    assert a.shape == x.shape
    assert (a - b).abs().mean() > 0.01
    assert a.isfinite().all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"latent": 0}, "dpa: latent must be at least 1, got 0."),
        ({"lr": 0.0}, "dpa: lr must be greater than 0, got 0.0."),
        ({"perceptual": 0.0}, "dpa: perceptual must be greater than 0 where l1 is 0, got 0.0."),
        ({"l1": -1.0}, "dpa: l1 must be at least 0, got -1.0."),
        ({"layers": ()}, "dpa: layers must be a list of at least one layer, got ()."),
        ({"magnify": 0}, "dpa: magnify must be at least 1, got 0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        DPASettings(**words)
