"""Facts of latent space resampling; codes, prior and restoration have tests of their own in tests/nets."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy.data.synthetic import SYNTHETIC
from normalcy.detector import Detector
from normalcy.errors import DataError, SettingsError
from normalcy.methods.lsr import AREAS, ETAS, LSR, MAPS, LSRSettings, _auroc
from normalcy.metrics import auroc
from normalcy.nets.filters import bilateral, gaussian_smooth
from normalcy.nets.masked import MaskedPrior
from normalcy.nets.pixelsnail import PixelSNAIL
from normalcy.testing import check_method, smooth_textures
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {
    "steps": 120,
    "batch_size": 8,
    "codes": 16,
    "dimension": 4,
    "width": 8,
    "residuals": 1,
    "prior_width": 8,
    "prior_blocks": 1,
    "lr": 0.005,
    "prior_lr": 0.005,
    "halvings": 2,
    "local": False,
    "eta": "quantile",
    "quantile": 0.02,
    "score": "input",  # so little training is not enough for the paper's map
}
"""Settings that make the contract tests quick."""

SHAPE = (1, 16, 16)
SMALL: dict[str, Any] = {
    "codes": 8, "dimension": 4, "width": 8, "residuals": 1, "prior_width": 16, "prior_blocks": 1, "halvings": 1, "lr": 5e-3,
    "prior_lr": 5e-3,
}  # fmt: skip


def _stripes(count: int, seed: int = 0) -> Tensor:
    """Vertical stripes four pixels wide, at one of two places, a little noise."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randint(0, 2, (count, 1, 1, 1), generator=generator) * 4
    stripes = ((torch.arange(16) + shift) // 4 % 2).float().expand(count, *SHAPE)
    return 0.2 + 0.5 * stripes + 0.02 * torch.rand(count, *SHAPE, generator=generator)


@pytest.fixture(scope="module")
def method(fitted: Callable[..., LSR]) -> LSR:
    settings = {**SMALL, "score": "restored", "reduce": "max", "eta": "quantile", "quantile": 0.002, "filter": False}
    return fitted(LSR, _stripes(64), validation=_stripes(16, seed=1), steps=400, **settings)


def _with_break(x: Tensor) -> tuple[Tensor, Tensor]:
    """Stripes turned dark to bright in a square, with codes that are all known: in a place where they do not belong."""
    x = x.clone()
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[6:12, 4:12] = True
    x[:, :, mask] = 0.92 - x[:, :, mask]
    return x, mask


def test_a_break_is_restored_and_shown(method: LSR) -> None:
    normal = _stripes(8, seed=2)
    broken, mask = _with_break(normal)
    good, bad = method.score(normal), method.score(broken)
    assert bad.map is not None
    assert bad.restored is not None
    assert (bad.image > good.image.max()).float().mean() > 0.8
    assert (bad.map[:, mask].mean(1) > 3 * bad.map[:, ~mask].mean(1)).float().mean() > 0.8
    assert (bad.restored - normal).square().mean() < 0.5 * (broken - normal).square().mean()
    assert bad.extra_maps["changed_codes"].sum() > 5 * good.extra_maps["changed_codes"].sum()


def test_the_prior_is_kept_as_it_suits_held_out_codes_best() -> None:
    """Noise can only be learned by heart."""
    torch.manual_seed(0)
    method, looks = LSR(LSRSettings(**SMALL), SHAPE), []
    held_out = torch.rand(8, *SHAPE)
    settings = TrainSettings(steps=800, batch_size=16, precision="32-true", device="cpu")
    fit(
        method,
        torch.rand(16, *SHAPE),
        settings,
        held_out=held_out,
        log=lambda row: looks.append(row.get("held_out_loss")),
    )
    losses = [loss for loss in looks if loss is not None]
    assert losses[-1] > min(losses)
    with torch.no_grad():
        kept = method.eval().prior_likelihood(method.to_codes(held_out))["loss"]
    assert float(kept) == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize(
    ("words", "rate", "late"), [({}, 3e-4, 1), ({"preset": "small"}, 1.5e-3, 0.1), ({"prior_lr": 0.1}, 0.1, 1)]
)
def test_rate_of_the_prior(words: dict[str, Any], rate: float, late: float) -> None:
    (objective,) = LSR(LSRSettings(**{**SMALL, "prior_lr": None, **words}), SHAPE).stages()[1].objectives
    assert objective.lr == rate
    assert (objective.schedule(0.9) if objective.schedule else 1) == pytest.approx(late)


def test_map_is_equation_6(method: LSR) -> None:
    x, _ = _with_break(_stripes(3, seed=3))
    with torch.no_grad():
        codes = method.to_codes(x)
        distance = (method.decode(method.restore(codes).codes) - method.decode(codes)).norm(dim=1)
    scores = method.score(x)
    torch.testing.assert_close(scores.map, distance)
    torch.testing.assert_close(scores.image, distance.flatten(1).amax(1))
    torch.testing.assert_close(scores.extra_maps["reconstruction"], method.decode(codes))
    filtered = LSR(LSRSettings(**SMALL, score="restored"), SHAPE)
    filtered.load_state_dict(method.state_dict())
    torch.testing.assert_close(filtered.score(x).map, bilateral(distance, 1, 75 / 16, 75 / 255))  # 10 of 256 pixels


FEATURES: dict[str, Any] = {**SMALL, "coded": "features", "layers": (0, 1), "components": 6, "halvings": 2}


@pytest.fixture(scope="module")
def of_features(fitted: Callable[..., LSR]) -> LSR:
    return fitted(LSR, _stripes(64), validation=_stripes(16, seed=1), steps=300, **{**FEATURES, "filter": False})


def test_residuals_are_of_features(of_features: LSR) -> None:
    x, _ = _with_break(_stripes(3, seed=3))
    m = of_features
    assert m.features is not None
    with torch.no_grad():
        codes = m.to_codes(x)
        features = m.features(x)
        assert codes.shape == (3, 4, 4)
        assert features.shape == (3, 6, 4, 4)
        decoded = m.decoder(m.quantiser.look_up(codes))
        error = (features - decoded).square().sum(1, keepdim=True)
        expected = F.interpolate(error, size=(16, 16), mode="bilinear")[:, 0].sqrt()
        restored = m.restore(codes).codes
        changed = m.decoder(m.quantiser.look_up(restored)) - decoded
        moved = F.interpolate(changed.square().sum(1, keepdim=True), size=(16, 16), mode="bilinear")[:, 0].sqrt()
        shown = m.decode(restored)
    for name, map in (("residual", expected), ("restored", moved)):
        scores = LSR(replace(m.settings, score=name), SHAPE)
        scores.load_state_dict(m.state_dict())
        found = scores.eval().score(x)
        torch.testing.assert_close(found.map, map)
        torch.testing.assert_close(found.restored, shown)


def test_features_show_a_break_and_images_of_the_codes(of_features: LSR) -> None:
    normal = _stripes(8, seed=2)
    broken, mask = _with_break(normal)
    good, bad = of_features.score(normal), of_features.score(broken)
    assert bad.map is not None
    assert (bad.image > good.image.max()).float().mean() > 0.8
    assert bad.map[:, mask].mean() > 1.4 * bad.map[:, ~mask].mean()  # each feature sees much of so small an image
    shown = good.extra_maps["reconstruction"]
    assert (shown - normal).square().mean() < 0.2 * (normal - normal.mean()).square().mean()


def test_images_that_are_shown_do_not_change_the_codes() -> None:
    torch.manual_seed(0)
    method = LSR(LSRSettings(**FEATURES), SHAPE)
    assert method.features is not None
    method.features.backbone.load_pretrained()
    x = _stripes(4)
    method.begin(x.split(2))
    rows = method._with_features(x)
    images, features = method._unpack(rows)
    torch.testing.assert_close(images, x)
    torch.testing.assert_close(features, method.features(x))
    losses = method.reconstruction(rows)
    picture = torch.autograd.grad(
        losses["picture"], [*method.encoder.parameters(), method.quantiser.book], allow_unused=True
    )
    assert all(g is None or not bool(g.any()) for g in picture)
    assert set(losses) == set(method.reconstruction(x))
    for name, loss in losses.items():
        assert float(method.reconstruction(x)[name].detach()) == pytest.approx(float(loss.detach()), rel=1e-3), name


def test_quantile_is_of_held_out_codes(method: LSR) -> None:
    with torch.no_grad():
        nll = method._nll(method.to_codes(_stripes(16, seed=1)))
    limit = -method.eta.log()
    next_below = nll[nll < limit].max()  # the limit is half-way between two likelihoods; many codes are equally likely
    assert float((nll > limit).float().mean()) <= 0.002 <= float((nll > next_below - 1e-3).float().mean())


def test_search_takes_the_best_of_its_choices(method: LSR, monkeypatch: pytest.MonkeyPatch) -> None:
    """eta and ``local``, by the pixel AUROC with rectangles."""
    twin, tried = copy.deepcopy(method), []
    restore, measured = twin.restore, []

    def recorded(codes: Tensor, eta: float, local: bool) -> Any:
        tried.append((eta, local))
        return restore(codes, eta, local)

    def auroc_of(scores: Tensor, anomalous: Tensor) -> float:
        measured.append(_auroc(scores, anomalous))
        return measured[-1]

    monkeypatch.setattr(twin, "restore", recorded)
    monkeypatch.setattr("normalcy.methods.lsr._auroc", auroc_of)
    with torch.no_grad():
        twin._search_eta(_stripes(8, seed=4))
    assert sorted(tried) == sorted((eta, local) for eta in ETAS for local in (False, True))
    eta, local = tried[measured.index(max(measured))]
    assert float(twin.eta) == pytest.approx(eta)
    assert bool(twin.local) is local
    chosen = LSR(replace(twin.settings, eta="search"), SHAPE)
    chosen.load_state_dict(twin.state_dict())
    assert list(chosen.notes()) == [
        f"eta: {eta:.3g}, `local` {str(local).lower()}, the best on held-out normal images with rectangles"
    ]


def test_eta_is_the_papers_multiple_of_the_uniform_probability() -> None:
    assert float(LSR(LSRSettings(), (1, 64, 64)).eta) == pytest.approx(0.0005)
    assert float(LSR(LSRSettings(codes=64), (1, 64, 64)).eta) == pytest.approx(0.004)
    assert LSRSettings(preset="small").eta_rule == "quantile"
    assert LSRSettings(preset="small", prior="causal").eta_rule == pytest.approx(0.004)


def test_its_auroc_is_that_of_metrics() -> None:
    scores = torch.randint(0, 20, (300,), generator=torch.Generator().manual_seed(0)).float()
    anomalous = torch.arange(300) % 3 == 0
    assert _auroc(scores, anomalous) == pytest.approx(auroc(anomalous.numpy(), scores.numpy()))


def test_sizes_and_presets() -> None:
    paper = LSR(LSRSettings(), (3, 256, 256))
    assert paper.grid == (32, 32)
    assert paper.quantiser.book.shape == (512, 32)
    assert LSRSettings(preset="small", width=20).number("width") == 20
    assert LSRSettings(preset="small").number("prior_width") == 48
    small = LSR(LSRSettings(preset="small"), (3, 64, 64))
    assert small.grid == (16, 16)
    assert small.quantiser.book.shape == (64, 32)
    assert isinstance(small.prior, MaskedPrior)
    assert isinstance(paper.prior, PixelSNAIL)
    assert [stage.epochs for stage in small.stages()] == [200, 100]
    assert [stage.objectives[0].lr for stage in small.stages()] == [1e-3, 1.5e-3]
    assert [stage.objectives[0].lr for stage in paper.stages()] == [3e-4, 3e-4]
    assert [(stage.steps, stage.epochs, stage.batch_size) for stage in paper.stages()] == [
        (3_900, None, 256),
        (23_400, None, 64),
    ]
    with pytest.raises(DataError, match=r"^lsr halves images 3 times.*size=96"):
        LSR(LSRSettings(), (1, 100, 100))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": 0.0}, 'eta must be "quantile", "search" or between 0 and 1, both excluded, got 0.0.'),
        ({"quantile": 1.0}, "quantile must be between 0 and 1, both excluded, got 1.0."),
        ({"codes": 0}, "codes must be at least 1, got 0."),
        ({"width": 0}, "width must be at least 1, got 0."),
        ({"ema": 1.5}, "ema must be between 0 and 1, both excluded, got 1.5."),
        ({"beta": float("nan")}, "beta must be greater than 0, got nan."),
        ({"reduce": 2.0}, 'reduce must be "auto", "mean", "top", "max" or a quantile between 0 and 1, got 2.0.'),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^lsr: {re.escape(message)}$"):
        LSRSettings(**settings)


def test_codes_do_not_collapse_at_the_start_of_training() -> None:
    """A hundred steps explain more than half of the images' variance; with vectors as they leave the encoder, an eighth."""
    torch.manual_seed(0)
    words = {"width": 32, "residuals": 1, "codes": 64, "dimension": 16, "prior_width": 8, "prior_blocks": 1, "lr": 1e-3}
    method = LSR(LSRSettings(**words), (1, 64, 64))
    images = smooth_textures(32, (1, 64, 64), seed=0)
    settings = TrainSettings(
        steps=700, batch_size=8, precision="32-true", device="cpu"
    )  # 100 of them in the first stage
    fit(method, images, settings)
    with torch.no_grad():
        error = (
            (method.standardise(images) - method.standardise(method.decode(method.to_codes(images)))).square().mean()
        )
    assert float(error) < 0.6


@pytest.fixture(scope="module")
def bidirectional(fitted: Callable[..., LSR]) -> LSR:
    settings = {**SMALL, "prior": "masked", "eta": "quantile", "quantile": 0.002, "filter": False}
    return fitted(LSR, _stripes(64), validation=_stripes(16, seed=1), steps=400, **settings)


def test_the_masked_prior_restores_the_inside_of_a_break(bidirectional: LSR) -> None:
    normal = _stripes(8, seed=2)
    broken, mask = _with_break(normal)
    with torch.no_grad():
        codes = bidirectional.to_codes(broken)
        restored = bidirectional.restore(codes)
    assert (bidirectional.decode(restored.codes) - normal).square().mean() < 0.5 * (broken - normal).square().mean()
    again = bidirectional.restore(codes)
    assert torch.equal(restored.codes, again.codes)
    good, bad = (bidirectional.with_score("restored").score(x) for x in (normal, broken))
    assert (bad.image > good.image.max()).float().mean() > 0.8
    assert bad.map is not None
    assert (bad.map[:, mask].mean(1) > 3 * bad.map[:, ~mask].mean(1)).float().mean() > 0.8


@pytest.mark.parametrize("name", MAPS)
def test_every_map_shows_the_break(bidirectional: LSR, name: str) -> None:
    broken, mask = _with_break(_stripes(8, seed=2))
    map = bidirectional.with_score(name).score(broken).map
    assert map is not None
    if name == "residual":  # the codes of both stripes are known, so that they are reconstructed wherever they are
        return
    assert map[:, mask].mean() > 1.5 * map[:, ~mask].mean()


def test_surprise_is_the_likelihood_beyond_what_was_expected(method: LSR) -> None:
    x = _stripes(3, seed=3)
    with torch.no_grad():
        codes = method.to_codes(x)
        logs = method.prior(codes).log_softmax(1)
    nll = -logs.gather(1, codes[:, None])[:, 0]
    expected = nll + (logs.exp() * logs).sum(1)
    size = {"size": (16, 16), "mode": "bilinear"}
    torch.testing.assert_close(
        method.with_score("surprise").score(x).map, torch.nn.functional.interpolate(expected[:, None], **size)[:, 0]
    )
    smooth = LSR(LSRSettings(**SMALL, score="surprise"), SHAPE)
    smooth.load_state_dict(method.state_dict())
    wanted = torch.nn.functional.interpolate(gaussian_smooth(expected, 1.0)[:, None], **size)[:, 0]
    torch.testing.assert_close(smooth.score(x).map, gaussian_smooth(wanted, 0.5))


def test_fused_maps_are_in_units_of_held_out_normal_images(method: LSR) -> None:
    held_out = _stripes(16, seed=1)
    with torch.no_grad():
        reconstruction = method.decode(method.to_codes(held_out))
    error = (held_out - reconstruction).square().sum(1)
    residual, surprise = error.sqrt(), method.with_score("surprise").score(held_out).map
    assert surprise is not None
    assert float(method.spread[0]) == pytest.approx(float(residual.std()), rel=1e-3)
    assert float(method.spread[2]) == pytest.approx(float(surprise.std()), rel=1e-3)
    torch.testing.assert_close(
        method.with_score("mixed").score(held_out).map,
        residual / residual.std() + 2 * surprise / surprise.std(),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize(
    "words", [{"prior": "masked"}, {"coded": "features", "layers": (0, 1), "components": 4, "steps": 60}], ids=str
)
def test_passes_the_contract_checks_with_the_masked_prior_and_with_features(words: dict[str, Any]) -> None:
    check_method(LSR, {**CONTRACT, "score": "residual", **words}, shapes=[(1, 32, 32)])


def test_the_masked_prior_fits_the_same_for_the_same_seed(fitted: Callable[..., LSR]) -> None:
    words = {**SMALL, "prior": "masked", "dropout": 0.1, "score": "auto", "steps": 20}
    first, second = (fitted(LSR, _stripes(16), validation=_stripes(4, seed=1), **words) for _ in range(2))
    weights = second.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())
    x = _stripes(3, seed=2)
    for name in MAPS:
        one, other = (m.with_score(name).score(x) for m in (first, second))
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.map, other.map)


def test_the_card_names_the_default_map_and_how_it_was_chosen(tmp_path: Path) -> None:
    words = {**SMALL, "steps": 10, "batch_size": 8, "size": 16, "calibration": 0, "device": "cpu"}
    images = _stripes(30)[:, 0].numpy()
    folder = Detector("lsr", **words, prior="masked").fit(images).save(tmp_path / "model")
    method = Detector.load(folder).method
    assert isinstance(method, LSR)
    card = (folder / "CARD.md").read_text()
    count = 3 * len(SYNTHETIC) * len(AREAS)  # a tenth of the images is held out, also without calibration
    found = re.search(r"^- default map: `(\w+)`, the best of 7 on (\d+) images with synthetic .*: (.*)$", card, re.M)
    assert found is not None
    assert int(found[2]) == int(method.tried) == count
    aurocs = {name: float(value) for name, value in re.findall(r"`(\w+)` ([\d.]+)", found[3])}
    assert list(aurocs) == list(MAPS)
    assert found[1] == MAPS[int(method.chosen)] == max(aurocs, key=lambda name: aurocs[name])
    assert f"- eta: {float(method.eta):.3g}, likelihood quantile 0.03 of held-out normal codes\n" in card
    given = LSR(LSRSettings(**SMALL, score="residual", eta=0.1), SHAPE)
    assert not given.notes()


def test_the_default_map_is_chosen_on_synthetic_anomalies_in_held_out_images(bidirectional: LSR) -> None:
    with torch.no_grad():
        assert int(bidirectional.chosen) == bidirectional._best_map(_stripes(16, seed=1))
    x = _with_break(_stripes(3, seed=3))[0]
    chosen = MAPS[int(bidirectional.chosen)]
    torch.testing.assert_close(bidirectional.score(x).map, bidirectional.with_score(chosen).score(x).map)
