"""Facts of DDR-ID, by the numbers of its paper's equations; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.methods.ddr_id import DDRID, DDRIDSettings
from normalcy.nets.reconstruction import ReconstructionNetwork
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {"steps": 40, "batch_size": 8, "width": 4, "latent": 8, "lr": 0.003}
"""Settings that make the contract tests quick."""

SHAPE = (1, 16, 16)
SMALL: dict[str, Any] = {"width": 4, "latent": 8}


def _images(count: int = 48, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    phase = 6.28 * torch.rand(count, 1, 1, 1, generator=generator)
    return (0.5 + 0.3 * torch.sin(phase + torch.linspace(0, 9, SHAPE[-1]))).expand(count, *SHAPE).clone()


def _method(**words: Any) -> DDRID:
    torch.manual_seed(0)
    return DDRID(DDRIDSettings(**{**SMALL, **words}), SHAPE)


def _fitted(steps: int = 60, held_out: Tensor | None = None, **words: Any) -> DDRID:
    method = _method(lr=3e-3, **words)
    settings = TrainSettings(steps=steps, batch_size=16, precision="32-true", device="cpu")
    fit(method, _images(), settings, held_out=held_out)
    return method


def test_networks_of_table_1() -> None:
    method = DDRID(DDRIDSettings(), (3, 32, 32))
    net = method.class_specific
    down = [m for m in net.encoder.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [m.out_channels if isinstance(m, nn.Conv2d) else m.out_features for m in down] == [64, 128, 256, 512, 512]
    up = [m for m in net.decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert net.decoder[0].out_features == 512 * 4 * 4
    assert [(m.out_channels, m.kernel_size, m.stride) for m in up] == [
        (256, (4, 4), (2, 2)),
        (128, (4, 4), (2, 2)),
        (3, (4, 4), (2, 2)),  # the table says 64
    ]
    halving = [(m.kernel_size, m.stride, m.padding) for m in down[:-1] if isinstance(m, nn.Conv2d)]
    assert halving == [((4, 4), (2, 2), (1, 1))] * 4
    kinds = [
        [type(m).__name__ for m in part.modules() if not list(m.children())] for part in (net.encoder, net.decoder)
    ]
    norm = ["BatchNorm2d", "LeakyReLU"]
    up_and_norm = ["DoublingConv2d", *norm]
    assert kinds[0] == ["HalvingConv2d", "LeakyReLU", *(["HalvingConv2d", *norm] * 3), "Flatten", "Linear"]
    assert kinds[1] == ["Linear", "Unflatten", *norm, *up_and_norm, *up_and_norm, "DoublingConv2d", "Tanh"]
    assert {m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}
    assert _judges(method) == [128, 32, 16, 1]
    mnist = DDRID(DDRIDSettings(), (1, 28, 28))
    assert mnist.class_specific.inside == [32, 32]
    assert mnist.centre.shape == (128,)
    assert _judges(mnist) == [64, 32, 16, 1]
    assert _judges(DDRID(DDRIDSettings(latent=512), (1, 32, 32))) == [128, 32, 16, 1]  # Endosome


def _judges(method: DDRID) -> list[int]:
    return [m.out_features for m in method.discriminator.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize(
    ("words", "lengths"), [({}, (150, 100)), ({"pretraining_epochs": 100, "finetuning_epochs": 450}, (100, 450))]
)
def test_lengths_and_the_rate_that_drops_after_50_epochs(words: dict[str, int], lengths: tuple[int, int]) -> None:
    stages = _method(**words).stages()
    assert tuple(stage.epochs for stage in stages) == lengths
    for stage, length in zip(stages, lengths):
        for objective in stage.objectives:
            assert [objective.schedule(epoch / length) for epoch in (0, 49, 50, length - 1)] == [1, 1, 0.1, 0.1]


@pytest.mark.parametrize("first_weights", ["he", "torch", "dcgan"])
def test_first_weights(first_weights: Any) -> None:
    torch.manual_seed(0)
    net = ReconstructionNetwork((1, 32, 32), 16, 8, first_weights=first_weights)
    convolutions = [m for m in net.encoder.modules() if isinstance(m, nn.Conv2d)]
    he = (2 / (1.04 * convolutions[-1].weight[0].numel())) ** 0.5
    expected = {"he": he, "torch": (1 / (3 * convolutions[-1].weight[0].numel())) ** 0.5, "dcgan": 0.02}[first_weights]
    assert float(convolutions[-1].weight.detach().std()) == pytest.approx(expected, rel=0.05)
    norm = next(m for m in net.encoder.modules() if isinstance(m, nn.BatchNorm2d))
    assert (norm.weight == 1).all() == (first_weights != "dcgan")
    bias = next(m for m in net.encoder.modules() if isinstance(m, nn.Linear)).bias
    assert (bias == 0).all() == (first_weights != "torch")


def test_first_weights_set_the_scale_of_the_codes() -> None:
    """Which is the unit of AS_l, and so of the choice of Algorithm 2."""
    scales = {}
    for first_weights in ("he", "dcgan"):
        method = _method(first_weights=first_weights)
        with torch.no_grad():
            scales[first_weights] = float(method.train().class_specific.encode(_images()).std())
    assert scales["he"] > 5 * scales["dcgan"]


@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 8, 40), (1, 9, 13), (3, 100, 64)])
def test_any_size_comes_back(shape: tuple[int, ...]) -> None:
    net = ReconstructionNetwork(shape, 6, 4)
    image = torch.rand(2, *shape)
    assert net.encode(image).shape == (2, 6)
    assert net(image).shape == image.shape


def test_digits_are_resized_for_the_networks_and_back() -> None:
    """28 pixels do not halve four times; what does is left alone."""
    net = ReconstructionNetwork((1, 28, 28), 6, 4).eval()
    image = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        larger = F.interpolate(image, (32, 32), mode="bilinear")
        torch.testing.assert_close(net.encode(image), net.encoder(larger))
        made = net.decoder(net.encode(image))
        assert made.shape == (2, 1, 32, 32)
        torch.testing.assert_close(net(image).mean(), made.mean(), rtol=0, atol=0.02)
        whole = ReconstructionNetwork((1, 32, 32), 6, 4).eval()
        torch.testing.assert_close(whole(larger), whole.decoder(whole.encoder(larger)), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_trains_in_bfloat16(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    method = DDRID(DDRIDSettings(**SMALL), shape)
    fit(method, torch.rand(32, *shape), TrainSettings(steps=6, batch_size=16, precision="bf16-mixed", device="cpu"))
    assert method.score(torch.rand(2, *shape)).image.isfinite().all()


def test_loss_is_equations_3_to_5() -> None:
    method = _method(joint_batches=False).eval()
    method.centre.copy_(torch.linspace(-1, 1, 8))
    x = _images(6)
    with torch.no_grad():
        terms = method.autoencoder_loss(x)
        code = method.class_specific.encode(x)
        one_class = sum(float((z - method.centre).pow(2).sum()) for z in code) / 6
        class_specific, residual = method.decompose(x)
        rest = sum(float(d.pow(2).sum()) for d in class_specific + residual - x) / 6
        judged = torch.sigmoid(method.discriminator(code)).squeeze(1)
        constraint = float(torch.log(1 - judged).mean())
    assert float(terms["one_class"]) == pytest.approx(one_class, rel=1e-5)
    assert float(terms["reconstruction"]) == pytest.approx(rest, rel=1e-5)
    assert float(terms["latent_constraint"]) == pytest.approx(constraint, rel=1e-4)
    assert float(terms["loss"]) == pytest.approx(one_class + rest + constraint, rel=1e-4)


@pytest.mark.parametrize("non_saturating", [False, True])
def test_signs_of_equation_4_by_finite_differences(non_saturating: bool) -> None:
    """A step of the discriminator down its loss raises L_LSC; a step of the encoder down its term raises D_L of its codes."""
    method = _method(joint_batches=False, non_saturating=non_saturating).eval()
    x = _images(16)

    def constraint() -> Tensor:
        torch.manual_seed(1)
        code = method.class_specific.encode(x)
        z = method.centre + method.settings.sigma * torch.randn_like(code)
        sample, coded = torch.sigmoid(method.discriminator(z)), torch.sigmoid(method.discriminator(code))
        return (torch.log(sample) + torch.log(1 - coded)).mean()

    def difference_along(parameters: list[nn.Parameter], loss: str, value: Any) -> float:
        torch.manual_seed(1)
        if loss == "discriminator":
            term = method.discriminator_loss(x)["loss"]
        else:
            term = method.autoencoder_loss(x)["latent_constraint"]
        gradients = torch.autograd.grad(term, parameters, allow_unused=True)
        known = [(p, g) for p, g in zip(parameters, gradients) if g is not None]
        length = torch.cat([g.flatten() for _, g in known]).norm()
        with torch.no_grad():
            before = value()
            for p, g in known:
                p.sub_(0.01 * g / length)
            return float(value() - before)

    judge = list(method.discriminator.parameters())
    assert difference_along(judge, "discriminator", constraint) > 0
    coder = list(method.class_specific.encoder.parameters())
    judged = lambda: torch.sigmoid(method.discriminator(method.class_specific.encode(x))).mean()
    assert difference_along(coder, "autoencoder", judged) > 0


def test_scores_are_equations_7_and_8() -> None:
    method = _fitted()
    x = _images(7, seed=2)
    with torch.no_grad():
        code = method.class_specific.encode(x)
        template = method.class_specific.decode(method.centre[None])
        latent = (code - method.centre).pow(2).sum(1)
        image = (method.class_specific(x) - template).pow(2).sum((1, 2, 3))
    torch.testing.assert_close(method.with_score("latent").score(x).image, latent)
    torch.testing.assert_close(method.with_score("image").score(x).image, image)
    torch.testing.assert_close(method.with_score("sum").score(x).image, latent + image)


def test_validation_takes_the_score_with_the_smaller_mean_on_held_out_images() -> None:
    held_out = _images(9, seed=5)
    method = _fitted(held_out=held_out)
    means = [method.with_score(name).score(held_out).image.mean() for name in ("latent", "image")]
    torch.testing.assert_close(method.validation_means, torch.stack(means))
    x = _images(4, seed=6)
    for order, name in (([1.0, 2.0], "latent"), ([2.0, 1.0], "image"), ([1.0, 1.0], "image")):
        method.validation_means.copy_(torch.tensor(order))
        assert torch.equal(method.score(x).image, method.with_score(name).score(x).image)


def test_the_score_that_validation_took_is_noted() -> None:
    method = _method()
    for means, chosen in (([1.0, 2.5], "latent"), ([3.0, 2.5], "image")):
        method.validation_means.copy_(torch.tensor(means))
        (note,) = method.notes()
        assert note.startswith(f"score: `{chosen}`")
        assert f"`latent` {means[0]:g}, `image` {means[1]:g}" in note
    assert not method.with_score("sum").notes()


def test_components_add_up_to_the_image() -> None:
    method = _fitted(steps=400)
    x = _images(16, seed=3)
    scores = method.score(x)
    assert scores.restored is not None
    total = scores.restored + scores.extra_maps["residual"]
    assert (total - x).square().mean() < 0.25 * x.var()
    torch.testing.assert_close(scores.map, (x - scores.restored).abs().mean(1))
    residual = DDRID(DDRIDSettings(**SMALL, map="residual"), SHAPE)
    residual.load_state_dict(method.state_dict())
    torch.testing.assert_close(residual.score(x).map, scores.extra_maps["residual"].abs().mean(1))


def test_finetuning_draws_codes_to_the_centre() -> None:
    method = _method(lr=3e-3)
    x = _images()
    stages = method.stages()
    assert [stage.name for stage in stages] == ["pretraining", "finetuning"]
    method.place_centre([x])  # type: ignore[arg-type]
    fitted = _fitted(steps=200)
    with torch.no_grad():
        code = fitted.class_specific.encode(x)
    assert (code - fitted.centre).square().sum(1).mean() < 0.5 * (fitted.centre.square().sum() + 1)


def test_rate_of_the_discriminator() -> None:
    def rates(**words: Any) -> list[float]:
        return [objective.lr for stage in _method(**words).stages() for objective in stage.objectives]

    assert rates(lr=2e-4) == [2e-4, 2e-4, 2e-4]
    assert rates(lr=2e-4, discriminator_lr=1e-3) == [2e-4, 1e-3, 2e-4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"latent": 0}, "ddr_id: latent must be at least 1, got 0."),
        ({"lr": 0.0}, "ddr_id: lr must be greater than 0, got 0.0."),
        ({"discriminator_lr": 0.0}, "ddr_id: discriminator_lr must be greater than 0, got 0.0."),
        ({"sigma": 0.0}, "ddr_id: sigma must be greater than 0, got 0.0."),
        ({"width": 0}, "ddr_id: width must be at least 1, got 0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        DDRIDSettings(**words)
