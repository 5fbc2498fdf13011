"""The base of all methods: refusals, modes, learned buffers, other scores. The contract tests checks the methods themselves."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from normalcy.errors import DataError, SettingsError
from normalcy.method import Batches, Method, Scores, Stage, evaluation_copy
from normalcy.methods.deep_svdd import DeepSVDD, DeepSVDDSettings
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings


@dataclass(frozen=True)
class NearestSettings:
    score: str = "nearest"


class Part(nn.Module):
    """A part with a memory of its own, and weights that come from outside."""

    memory: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.empty(0))
        self.fetched = 0

    def load_pretrained(self) -> None:
        self.fetched += 1


class Nearest(Method):
    """Distance to the nearest training image."""

    name = "nearest"
    Settings = NearestSettings
    scores = ("nearest", "mean")
    settings: NearestSettings
    count: Tensor

    def __init__(self, settings: NearestSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.part = Part()
        self.dropout = nn.Dropout(0.5)
        self.learned("count")

    def stages(self) -> Sequence[Stage]:
        return [Stage("remember", prepare=self.remember)]

    def remember(self, batches: Batches) -> None:
        self.part.memory = torch.cat(list(batches)).flatten(1)
        self.count = torch.tensor(batches.count)

    def _score(self, x: Tensor) -> Scores:
        assert not torch.is_grad_enabled()
        distances = torch.cdist(self.dropout(x.flatten(1)), self.part.memory)
        return Scores(distances.amin(1) if self.settings.score == "nearest" else distances.mean(1))


def images(count: int, channels: int = 1) -> Tensor:
    return torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(count))


def fitted() -> Nearest:
    method = Nearest(NearestSettings(), (1, 4, 4))
    fit(method, images(6), TrainSettings(device="cpu"))
    return method


def test_refusals_are_one_sentence():
    with pytest.raises(SettingsError, match="nearest is not fitted yet"):
        Nearest(NearestSettings(), (1, 4, 4)).score(images(2))
    with pytest.raises(DataError, match=r"nearest works on 2D images, got images of shape \(1, 4, 4, 4\)"):
        Nearest(NearestSettings(), (1, 4, 4, 4))
    with pytest.raises(DataError, match=r"nearest expects images \(B, 1, 4, 4\), got \(2, 3, 4, 4\)"):
        fitted().score(images(2, channels=3))


def test_settings_made_in_python_are_checked():
    with pytest.raises(SettingsError, match="deep_svdd: objective must be one of one_class, soft_boundary"):
        DeepSVDD(DeepSVDDSettings(objective="soft-boundary"), (1, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="deep_svdd: latent must be a whole number"):
        DeepSVDD(DeepSVDDSettings(latent=2.5), (1, 8, 8))  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [True, False])
def test_scoring_is_evaluation_whatever_the_mode(training: bool):
    method = fitted().train(training)
    assert torch.equal(method.score(images(3)).image, method.score(images(3)).image)
    assert [module.training for module in method.modules()] == [training] * len(list(method.modules()))


def test_scoring_in_training_mode_leaves_modes_weights_and_parts_as_they_are():
    """A copy of the module tree scores, as switching the mode would disturb other threads."""
    method = fitted().train()
    parts = list(method.modules())
    expected = fitted().score(images(3)).image
    state = {k: v.clone() for k, v in method.state_dict().items()}
    assert torch.equal(method.score(images(3)).image, expected)
    method.dropout.eval()  # one part alone, and the others still in training mode
    assert torch.equal(method.score(images(3)).image, expected)
    assert list(method.modules()) == parts
    assert [part.training for part in parts] == [part is not method.dropout for part in parts]
    assert all(torch.equal(v, state[k]) for k, v in method.state_dict().items())


def test_evaluation_copy_shares_weights_and_keeps_shared_parts_shared():
    inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module = nn.ModuleDict({"one": inner, "other": inner, "last": nn.Dropout()})
    copied = evaluation_copy(module)
    assert copied["one"] is copied["other"] is not inner
    assert not any(part.training for part in copied.modules())
    assert all(part.training for part in module.modules())
    assert [id(p) for p in copied.parameters()] == [id(p) for p in module.parameters()]
    assert [id(b) for b in copied.buffers()] == [id(b) for b in module.buffers()]


class Gradient(Nearest):
    """Scores by a gradient with respect to the image, through a weight."""

    name = "gradient"

    def __init__(self, settings: NearestSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.layer = nn.Linear(16, 1)

    def _score(self, x: Tensor) -> Scores:
        with torch.enable_grad():
            x = x.requires_grad_()
            (gradient,) = torch.autograd.grad(self.layer(x.flatten(1)).square().sum(), x)
        return Scores(gradient.flatten(1).norm(dim=1))


def test_scores_by_gradients_in_inference_mode():
    method = Gradient(NearestSettings(), (1, 4, 4))
    fit(method, images(6), TrainSettings(device="cpu"))
    expected = method.score(images(3)).image
    with torch.inference_mode():
        x = images(3)
        assert x.is_inference()
        inside = method.score(x).image
        assert torch.is_inference_mode_enabled()
        assert torch.equal(x, images(3))
    assert torch.equal(inside, expected)
    assert not inside.is_inference(), "may be used in training"


def test_scores_integers_and_doubles_as_float32():
    method = fitted()
    for x in (images(2).double(), (images(2) * 9).to(torch.uint8)):
        assert method.score(x).image.dtype == torch.float32


def test_learned_buffers_take_the_shape_of_the_saved_ones():
    method, fresh = fitted(), Nearest(NearestSettings(), (1, 4, 4))
    assert fresh.count.numel() == 0
    fresh.load_state_dict(method.state_dict())
    assert fresh.part.memory.shape == (6, 16)
    assert fresh.count.dtype == torch.int64
    assert torch.equal(fresh.score(images(3)).image, method.score(images(3)).image)


def test_a_state_dict_of_something_else_is_refused():
    state = fitted().state_dict()
    with pytest.raises(RuntimeError, match="Missing key"):
        Nearest(NearestSettings(), (1, 4, 4)).load_state_dict({k: v for k, v in state.items() if k != "count"})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        Nearest(NearestSettings(), (1, 4, 4)).load_state_dict({**state, "part.other": torch.zeros(2)})


def test_fitting_again_replaces_what_was_learned():
    method = fitted()
    fit(method, images(3), TrainSettings(device="cpu"))
    assert method.part.memory.shape == (3, 16)


def test_with_score_shares_weights_and_leaves_the_original():
    method = fitted()
    twin = method.with_score("mean")
    assert type(twin) is Nearest
    assert twin.part is method.part
    assert method.settings.score == "nearest"
    assert bool((twin.score(images(3)).image > method.score(images(3)).image).all())
    with pytest.raises(SettingsError, match="nearest has no score 'median': it offers nearest, mean"):
        method.with_score("median")


def test_weights_from_outside_are_fetched_before_training_only():
    method = fitted()
    assert method.part.fetched == 1
    method.score(images(2))
    Nearest(NearestSettings(), (1, 4, 4)).load_state_dict(method.state_dict())
    assert method.part.fetched == 1


def test_device_and_shape():
    method = fitted()
    assert method.device == torch.device("cpu")
    assert method.shape == (1, 4, 4)


def test_summary_is_the_first_line_of_the_module_else_of_the_class():
    assert DeepSVDD.summary().startswith("Deep SVDD: network that maps normal images near a centre")
    assert "\n" not in DeepSVDD.summary()
    alone = type("Alone", (Nearest,), {"__module__": "nowhere", "__doc__": "Nearest image.\n\nMore about it."})
    assert alone.summary() == "Nearest image."
    assert type("Silent", (Nearest,), {"__module__": "nowhere"}).summary() == ""
