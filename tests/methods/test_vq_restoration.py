"""Facts of restoration by samples; codes, prior and restoration have tests of their own in tests/nets."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from normalcy.errors import DataError, SettingsError
from normalcy.methods.vq_restoration import VQRestoration, VQRestorationSettings
from normalcy.nets.filters import gaussian_smooth, mean_filter, min_filter
from normalcy.testing import check_method

CONTRACT: dict[str, Any] = {
    "steps": 200,
    "batch_size": 8,
    "codes": 32,
    "dimension": 4,
    "width": 8,
    "residuals": 1,
    "prior_width": 8,
    "prior_blocks": 1,
    "dropout": 0.0,
    "copies": 3,
    "slices_per_step": 8,
    "lr": 0.005,
    "halvings": 2,
    "pixel_quantile": 0.95,
}
"""Settings that make the contract tests quick."""

SMALL: dict[str, Any] = {
    "codes": 8, "dimension": 4, "width": 8, "residuals": 1, "prior_width": 16, "prior_blocks": 1, "dropout": 0.0,
    "halvings": 1, "lr": 5e-3, "copies": 4, "slices_per_step": 4,
}  # fmt: skip
TRAINED: dict[str, Any] = {
    **SMALL, "pixel_quantile": 0.99, "sample_quantile": 0.998, "filter": "none", "steps": 720, "batch_size": 4,
}  # fmt: skip
VOLUME = (1, 6, 16, 16)


def _volumes(count: int, seed: int = 0) -> Tensor:
    """Slices of vertical stripes below and of horizontal ones above, more or less bright, a little noise."""
    generator = torch.Generator().manual_seed(seed)
    stripes = (torch.arange(16) // 4 % 2).float().expand(16, 16)
    slices = torch.stack([stripes if z < 3 else stripes.T for z in range(6)])
    brightness = 0.4 + 0.2 * torch.rand(count, 1, 1, 1, 1, generator=generator)
    return 0.2 + brightness * slices + 0.02 * torch.rand(count, *VOLUME, generator=generator)


@pytest.fixture(scope="module")
def method(fitted: Callable[..., VQRestoration]) -> VQRestoration:
    return fitted(VQRestoration, _volumes(64), validation=_volumes(8, seed=1), **TRAINED)


def test_a_slice_out_of_place_is_restored(method: VQRestoration) -> None:
    """Each slice is normal somewhere; only its position is wrong."""
    normal = _volumes(3, seed=2)
    wrong = normal.clone()
    wrong[:, :, 1] = normal[:, :, 4]
    good, bad = method.score(normal), method.score(wrong)
    assert bad.map is not None
    assert bad.restored is not None
    assert bad.uncertainty is not None
    assert float(bad.image.min()) > float(good.image.max())
    by_slice = bad.map.mean((2, 3))
    assert (by_slice.argmax(1) == 1).all()
    assert (bad.restored[:, :, 1] - normal[:, :, 1]).abs().mean() < 0.5 * (wrong - normal)[:, :, 1].abs().mean()
    assert bad.extra_maps["changed_codes"][:, 1].mean() > 5 * good.extra_maps["changed_codes"].mean()
    assert float(bad.uncertainty.max()) > 0


def test_scores_are_those_of_the_paper(method: VQRestoration) -> None:
    x = _volumes(2, seed=3)
    x[:, :, 2] = x[:, :, 5]
    scores, s = method.score(x), method.settings
    std = float(_volumes(64).std())
    assert float(method.deviation) == pytest.approx(std, rel=1e-3)
    with torch.no_grad():
        codes = method.to_codes(x)
        nll = method.nll(codes)
        for b in range(len(x)):
            unlikely = [v for v in nll[b].flatten().tolist() if v > float(method.sample_limit)]
            assert float(scores.image[b]) == pytest.approx(sum(unlikely), rel=1e-4)
        for z in (0, 2):
            tables, number = codes[1, z][None], torch.tensor([z])
            restored, _ = method.restore(tables, number)
            images = [method.images(restored[:, j], number)[0] for j in range(s.copies)]
            distances = [(x[1, :, z] - image).abs().mean(0) for image in images]
            weights = np.exp(
                [
                    s.sharpness * std / float(d.mean()) - s.sharpness * std / float(distances[0].mean())
                    for d in distances
                ]
            )
            weights = weights / weights.sum()
            expected = sum(w * d.numpy() for w, d in zip(weights, distances))
            np.testing.assert_allclose(scores.map[1, z].numpy(), expected, rtol=1e-3, atol=1e-4)  # type: ignore[index]
            spread = np.std([d.numpy() for d in distances], axis=0)
            np.testing.assert_allclose(scores.uncertainty[1, z].numpy(), spread, rtol=1e-3, atol=1e-4)  # type: ignore[index]


def test_limits_are_quantiles_of_held_out_codes(method: VQRestoration) -> None:
    with torch.no_grad():
        nll = method.nll(method.to_codes(_volumes(8, seed=1)))
    for limit, quantile in ((method.sample_limit, 0.998), (method.pixel_limit, 0.99)):
        next_below = nll[nll < limit].max()  # the limit is half-way between two likelihoods
        assert float((nll > limit).float().mean()) <= 1 - quantile <= float((nll > next_below - 1e-3).float().mean())
    given = VQRestoration(VQRestorationSettings(**SMALL, sample_limit=7.0, pixel_limit=5.0), VOLUME)
    assert (float(given.sample_limit), float(given.pixel_limit)) == (7.0, 5.0)
    assert given.stages()[1].finalise is None
    assert not given.notes()
    assert list(method.notes()) == [
        f"{name}: {float(limit):.3g} nats, quantile {quantile} of held-out normal codes"
        for name, limit, quantile in (
            ("sample_limit", method.sample_limit, 0.998),
            ("pixel_limit", method.pixel_limit, 0.99),
        )
    ]


def test_scores_do_not_depend_on_how_much_fits_at_once(method: VQRestoration, monkeypatch: pytest.MonkeyPatch) -> None:
    x = _volumes(2, seed=4)
    x[:, :, 1] = x[:, :, 4]
    whole = method.score(x)
    monkeypatch.setattr("normalcy.methods.vq_restoration.AT_ONCE", 1)
    one = method.score(x)
    for name in ("image", "map", "restored", "uncertainty"):
        torch.testing.assert_close(getattr(one, name), getattr(whole, name), rtol=1e-4, atol=1e-5)


def test_planes_are_slices_in_order(method: VQRestoration) -> None:
    x = torch.rand(2, *VOLUME)
    planes, numbers = method.planes(x)
    assert planes.shape == (12, 1, 16, 16)
    assert torch.equal(planes[7], x[1, :, 1])
    assert numbers.tolist() == 2 * list(range(6))
    assert torch.equal(method.whole(planes), x)
    assert method.condition(numbers)[:6, 0].tolist() == pytest.approx([-0.5, -0.3, -0.1, 0.1, 0.3, 0.5])
    drawn, which = method.draw(planes, numbers)
    assert drawn.shape[0] == 8
    assert all(len(set(part)) == 4 for part in (which[:4].tolist(), which[4:].tolist()))
    for k, (plane, number) in enumerate(zip(drawn, which)):
        assert torch.equal(plane, x[k // 4, :, number])


def test_true_3d_passes_the_contract_checks() -> None:
    words = {**SMALL, "volumes": "whole", "prior_width": 8, "copies": 3, "steps": 200, "batch_size": 8}
    check_method(VQRestoration, words, shapes=[(1, 16, 16, 16)])


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        ({**SMALL, "prior_width": 8, "copies": 3, "steps": 120, "batch_size": 8}, (1, 16, 16)),
        (CONTRACT, (1, 16, 16, 16)),
    ],
    ids=["images", "slices"],
)
def test_the_masked_prior_passes_the_contract_checks(words: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Volumes as a whole below."""
    check_method(VQRestoration, {**words, "prior": "masked"}, shapes=[shape])


@pytest.mark.parametrize("score", ["restored", "surprise"])
def test_the_masked_prior_fits_the_same_for_the_same_seed(fitted: Callable[..., VQRestoration], score: str) -> None:
    words = {**SMALL, "prior": "masked", "dropout": 0.1, "steps": 12, "batch_size": 4, "score": score}
    first, second = (fitted(VQRestoration, _volumes(8), validation=_volumes(2, seed=1), **words) for _ in range(2))
    weights = second.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())
    x = _volumes(2, seed=2)
    one, other = first.score(x), second.score(x)
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.map, other.map)


def test_likelihoods_are_computed_once_for_an_image(
    bidirectional: VQRestoration, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, likelihoods = [], bidirectional._likelihoods
    monkeypatch.setattr(bidirectional, "_likelihoods", lambda *parts: calls.append(1) or likelihoods(*parts))
    x = _volumes(1, seed=5)
    scores = bidirectional.score(x)
    assert len(calls) == 1
    tables, numbers = bidirectional._tables(bidirectional.to_codes(x))
    changed = bidirectional.restore(tables, numbers)[1].float().mean(1)  # which computes them itself
    torch.testing.assert_close(scores.extra_maps["changed_codes"], bidirectional._to_pixels(changed))


def test_sizes() -> None:
    brain = VQRestoration(VQRestorationSettings(), (1, 4, 160, 160))
    assert brain.grid == (20, 20)
    assert brain.quantiser.book.shape == (128, 256)
    assert VQRestoration(VQRestorationSettings(**SMALL, volumes="whole"), (1, 4, 8, 8)).grid == (2, 4, 4)
    with pytest.raises(DataError, match="vq_restoration halves images 3 times"):
        VQRestoration(VQRestorationSettings(), (1, 20, 100, 100))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pixel_limit": 0.0}, 'pixel_limit must be "quantile" or a number of nats greater than 0, got 0.0.'),
        ({"sample_quantile": 1.0}, "sample_quantile must be between 0 and 1, both excluded, got 1.0."),
        ({"copies": 0}, "copies must be at least 1, got 0."),
        ({"lr": 0.0}, "lr must be greater than 0, got 0.0."),
        ({"ema": 1.5}, "ema must be between 0 and 1, both excluded, got 1.5."),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0."),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^vq_restoration: {re.escape(message)}$"):
        VQRestorationSettings(**settings)


@pytest.fixture(scope="module")
def bidirectional(fitted: Callable[..., VQRestoration]) -> VQRestoration:
    return fitted(VQRestoration, _volumes(64), validation=_volumes(8, seed=1), **TRAINED, prior="masked")


def test_the_masked_prior_restores_a_square_out_of_place(bidirectional: VQRestoration) -> None:
    normal = _volumes(3, seed=2)
    wrong, inside = normal.clone(), (slice(None), slice(None), 1, slice(2, 12), slice(4, 14))
    wrong[inside] = normal[:, :, 4, 2:12, 4:14]
    good, bad = bidirectional.score(normal), bidirectional.score(wrong)
    assert bad.map is not None
    assert bad.restored is not None
    assert float(bad.image.min()) > float(good.image.max())
    assert (bad.map.mean((2, 3)).argmax(1) == 1).all()
    assert (bad.restored - normal)[inside].abs().mean() < 0.5 * (wrong - normal)[inside].abs().mean()
    again = bidirectional.score(wrong)
    assert torch.equal(again.restored, bad.restored)
    surprise = bidirectional.with_score("surprise").score(wrong).map
    assert surprise is not None
    assert (surprise.mean((2, 3)).argmax(1) == 1).all()


def test_masked_true_3d_passes_the_contract_checks() -> None:
    words = {
        **SMALL,
        "prior": "masked",
        "volumes": "whole",
        "prior_width": 8,
        "copies": 3,
        "steps": 200,
        "batch_size": 8,
    }
    check_method(VQRestoration, words, shapes=[(1, 16, 16, 16)])


def test_copies_differ_where_codes_are_drawn_anew(bidirectional: VQRestoration) -> None:
    x = _volumes(2, seed=5)
    x[:, :, 1, 4:12, 4:12] = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tables, numbers = bidirectional._tables(bidirectional.to_codes(x))
        restored, changed = bidirectional.restore(tables, numbers)
    assert restored.shape == (12, 4, 8, 8)
    same = (restored == restored[:, :1]).all(1)
    assert not bool(same.all())
    assert not bool(same.flatten(1).all(1)[[1, 7]].any())  # in the slices with noise
    assert not bool((~same & ~changed.any(1)).any())


def test_the_filter_of_the_paper_and_the_mean_of_the_map(method: VQRestoration) -> None:
    x = _volumes(1, seed=6)
    plain = method.score(x).map
    assert plain is not None
    for name, wanted in (
        ("paper", mean_filter(min_filter(plain, (3, 3, 3)), (3, 7, 7))),
        ("gaussian", gaussian_smooth(plain, 0.8)),
    ):
        twin = VQRestoration(VQRestorationSettings(**SMALL, filter=name, smoothing=0.8, sample="map"), VOLUME)
        twin.load_state_dict(method.state_dict())
        scores = twin.score(x)
        torch.testing.assert_close(scores.map, wanted)
        torch.testing.assert_close(scores.image, wanted.flatten(1).mean(1))
