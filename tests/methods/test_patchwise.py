"""Facts of patch-wise scoring: against brute force, and with inner methods of every kind of training."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normalcy.config import build
from normalcy.errors import SettingsError
from normalcy.method import EarlyStop, Method, Objective, Scores, Stage
from normalcy.methods import METHODS
from normalcy.methods.patchwise import Patchwise, PatchwiseSettings, starts
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {"patch": 8, "stride": 4}
"""Settings that make the contract tests quick."""


def textures(count: int, seed: int, *shape: int) -> Tensor:
    """Stripes of random phase with some noise."""
    rng = torch.Generator().manual_seed(seed)
    phase = 6.3 * torch.rand(count, *[1] * len(shape), generator=rng)
    stripes = 0.5 + 0.3 * torch.sin(torch.arange(shape[-1]) * 1.2 + phase)
    return (stripes + 0.03 * torch.randn(count, *shape, generator=rng)).clamp(0, 1)


def by_hand(method: Patchwise, x: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Patch scores (B, patches) and the blended map of 2D images, one patch at a time."""
    side, stride = method.patch[0], method.strides[0]
    total, weight, scores = torch.zeros(x.shape[0], *x.shape[2:]), torch.zeros(x.shape[2:]), []
    for i in starts(x.shape[2], side, stride):
        for j in starts(x.shape[3], side, stride):
            score = method.inner._score(x[..., i : i + side, j : j + side]).image
            total[:, i : i + side, j : j + side] += window * score[:, None, None]
            weight[i : i + side, j : j + side] += window
            scores.append(score)
    return torch.stack(scores, 1), total / weight


def test_patches_cover_the_image() -> None:
    for side in range(8, 40):
        covered = {pixel for start in starts(side, 8, 5) for pixel in range(start, start + 8)}
        assert covered == set(range(side))
    assert starts(8, 8, 3) == [0]


@pytest.mark.parametrize("blend", ["average", "hann"])
def test_map_of_image_scores_equals_brute_force(fitted: Callable[..., Patchwise], blend: str) -> None:
    method = fitted(Patchwise, textures(12, 0, 1, 22, 27), inner="kde", patch=8, stride=5, blend=blend)
    x = textures(3, 1, 1, 22, 27)
    bell = torch.hann_window(17, periodic=False)[1::2] if blend == "hann" else torch.ones(8)
    scores, expected = by_hand(method, x, bell[:, None] * bell)
    given = method.score(x)
    torch.testing.assert_close(given.map, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(given.image, scores.amax(1), rtol=1e-4, atol=1e-3)
    assert given.restored is None


@pytest.mark.parametrize(("reduce", "expected"), [("mean", 2.5), ("max", 4.0), ("quantile", 3.0)])
def test_image_score_from_patch_scores(reduce: str, expected: float) -> None:
    method = Patchwise(PatchwiseSettings(reduce=reduce, quantile=0.5), (1, 16, 16))
    assert method._reduce(torch.tensor([[4.0, 2.0, 1.0, 3.0]])).tolist() == [expected]


@pytest.mark.parametrize("inner", ["gmm", "ocsvm", "isolation_forest"])
def test_a_defect_is_found_where_it_is(fitted: Callable[..., Patchwise], inner: str) -> None:
    method = fitted(Patchwise, textures(20, 0, 3, 32, 32), inner=inner, patch=8, stride=4)
    good = textures(4, 1, 3, 32, 32)
    bad = good.clone()
    bad[..., 20:27, 5:12] = 0.5
    assert (method.score(bad).image > method.score(good).image).all()
    highest = method.score(bad).map.flatten(1).argmax(1)
    assert ((highest // 32 >= 16) & (highest // 32 < 31) & (highest % 32 < 16)).all()


def test_maps_and_restored_of_the_inner_method_are_blended(fitted: Callable[..., Patchwise]) -> None:
    x = textures(20, 0, 1, 24, 24)
    method = fitted(Patchwise, x, inner="pca", inner_settings=("components=3",), patch=8, stride=4)
    scores = method.score(x[:2])
    assert scores.restored.shape == x[:2].shape
    torch.testing.assert_close(scores.restored, x[:2], atol=0.2, rtol=0)
    only_scores = fitted(
        Patchwise,
        x,
        inner="pca",
        inner_settings=("components=3",),
        patch=8,
        stride=4,
        inner_map=False,
    ).score(x[:2])
    torch.testing.assert_close(only_scores.image, scores.image)
    assert scores.map.flatten(1).std(1).min() > only_scores.map.flatten(1).std(1).max()


def test_volumes(fitted: Callable[..., Patchwise]) -> None:
    x = textures(6, 0, 1, 12, 12, 12)
    scores = fitted(Patchwise, x, inner="pca", patch=6, stride=6).score(x[:2])
    assert scores.map.shape == (2, 12, 12, 12)
    assert scores.restored.shape == (2, 1, 12, 12, 12)


def test_around_a_method_that_learns_by_gradients(fitted: Callable[..., Patchwise]) -> None:
    x = textures(24, 0, 1, 32, 32)
    method = fitted(Patchwise, x, steps=3, inner="autoencoder", inner_settings=("latent=4",), patch=16, stride=8)
    assert method.inner.shape == (1, 16, 16)
    (stage,) = method.stages()
    assert stage.batch_size == max(1, method.inner.stages()[0].batch_size // 16)
    scores, alone = method.score(x[:3]), method.score(x[:1])
    assert scores.restored.shape == (3, 1, 32, 32)
    torch.testing.assert_close(scores.map[:1], alone.map, rtol=1e-3, atol=1e-5)


def test_scores_of_the_inner_method_by_name(fitted: Callable[..., Patchwise]) -> None:
    x = textures(8, 0, 1, 32, 32)
    method = fitted(Patchwise, x, steps=2, inner="vae", inner_settings=("latent=4",), patch=16, stride=8)
    assert method.scores == method.inner.scores
    other = method.with_score("kl")
    assert (other.settings.score, method.settings.score) == ("kl", method.inner.settings.score)
    assert not torch.equal(other.score(x[:2]).image, method.score(x[:2]).image)
    own = Patchwise(other.settings, x.shape[1:])
    own.load_state_dict(method.state_dict())
    torch.testing.assert_close(own.score(x[:2]).image, other.score(x[:2]).image)
    with pytest.raises(SettingsError, match="no score"):
        method.with_score("beauty")


def test_notes_are_those_of_the_inner_method() -> None:
    method = Patchwise(PatchwiseSettings(inner="ddr_id", inner_settings=("width=4", "latent=4"), patch=16), (1, 32, 32))
    assert list(method.notes()) == list(method.inner.notes())
    assert method.notes()


def test_state_of_the_inner_method_travels_with_it(fitted: Callable[..., Patchwise]) -> None:
    x = textures(12, 0, 1, 20, 20)
    method = fitted(Patchwise, x, inner="isolation_forest", patch=8)
    other = Patchwise(method.settings, x.shape[1:])
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.score(x[:3]).map, method.score(x[:3]).map)


def test_training_patches_are_different_places_of_each_image() -> None:
    method = Patchwise(PatchwiseSettings(patch=2, patches_per_image=9), (1, 4, 4))
    x = torch.arange(32.0).view(2, 1, 4, 4)
    patches = method.random_patches(x, Random(0))
    assert patches.shape == (2, 9, 1, 2, 2)
    assert sorted(patches[0, :, 0, 0, 0].tolist()) == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert (patches[1].flatten() >= 16).all()
    assert Patchwise(PatchwiseSettings(patch=2, patches_per_image=99), (1, 4, 4)).patch_count == 9


@dataclass(frozen=True)
class RecorderSettings:
    pass


class Recorder(Method):
    """Learns the mean of an input derived from the images, and notes what it is given."""

    name = "recorder"
    Settings = RecorderSettings

    def __init__(self, settings: RecorderSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.centre = nn.Parameter(torch.zeros(3))
        self.seen: dict[str, set[tuple[int, ...]]] = {}

    def note(self, where: str, x: Tensor) -> None:
        self.seen.setdefault(where, set()).add(tuple(x.shape))

    def stages(self) -> Sequence[Stage]:
        def passes(batches) -> None:
            first, second = ([x.clone() for x in batches] for _ in range(2))
            self.note("prepare", torch.cat(first))
            self.note("same" if all(map(torch.equal, first, second)) else "different", first[0])
            assert batches.count == sum(map(len, first))

        def inputs(x: Tensor) -> Tensor:
            self.note("inputs", x)
            return x.flatten(1)[:, :3]

        def loss(z: Tensor) -> dict[str, Tensor]:
            self.note("loss", z)
            return {"loss": (z - self.centre).square().mean()}

        def held_out(x: Tensor) -> dict[str, Tensor]:
            self.note("held out", x)
            return {"loss": x.mean()}

        return [
            Stage(
                "record",
                [Objective(loss, [self.centre], lr=0.1)],
                steps=4,
                batch_size=8,
                prepare=passes,
                derive=inputs,
                on_progress=lambda fraction: self.note("progress", torch.empty(round(4 * fraction))),
                early_stop=EarlyStop(held_out, every=2),
            )
        ]

    def _score(self, x: Tensor) -> Scores:
        return Scores(image=x.flatten(1).mean(1))


def test_every_part_of_a_stage_sees_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "recorder", f"{__name__}:Recorder")
    x = textures(10, 0, 1, 20, 20)
    method = Patchwise(PatchwiseSettings(inner="recorder", patch=6, stride=3, patches_per_image=4), x.shape[1:])
    fit(method, x, TrainSettings(device="cpu", precision="32-true"), held_out=x[:2])
    assert method.inner.seen == {
        "prepare": {(40, 1, 6, 6)},
        "same": {(8, 1, 6, 6)},
        "inputs": {(8, 1, 6, 6)},
        "loss": {(8, 3)},
        "held out": {(8, 3)},
        "progress": {(0,), (1,), (2,), (3,)},
    }
    assert (method.inner.centre != 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 0}, "patch must be at least 1, got 0."),
        ({"stride": 0}, "stride must be at least 1, got 0."),
        ({"patch": 8, "stride": 9}, "stride must be at most patch=8, got 9."),
        ({"patches_per_image": 0}, "patches_per_image must be at least 1, got 0."),
        ({"quantile": -1.0}, "quantile must be between 0 and 1, got -1.0."),
        ({"inner": "patchwise"}, "inner must be another method, got 'patchwise'."),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^patchwise: {re.escape(message)}$"):
        PatchwiseSettings(**settings)


def test_unknown_words_for_the_inner_method_are_refused() -> None:
    with pytest.raises(SettingsError, match="patchwise, kde has no setting 'bandwidht'"):
        Patchwise(PatchwiseSettings(inner="kde", inner_settings=("bandwidht=1",)), (1, 32, 32))
    with pytest.raises(SettingsError, match="no method"):
        Patchwise(PatchwiseSettings(inner="kdee"), (1, 32, 32))


def test_patch_and_stride_fit_small_images() -> None:
    method = Patchwise(PatchwiseSettings(patch=32, stride=20), (1, 18, 100))
    assert (method.patch, method.strides) == ((9, 32), (9, 20))
    assert Patchwise(PatchwiseSettings(patch=2), (1, 18, 18)).strides == (1, 1)


def test_a_list_for_the_inner_method_survives_the_command_line() -> None:
    settings = build(
        PatchwiseSettings, {"inner": "kde", "inner_settings": "bandwidths=0.5,1,variance=0.9"}, "patchwise"
    )
    assert settings.of_inner().bandwidths == (0.5, 1.0)
    assert settings.of_inner().variance == 0.9
