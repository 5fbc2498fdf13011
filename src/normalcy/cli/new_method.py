"""The command that starts a method: new-method."""

from __future__ import annotations

import keyword
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from normalcy.cli import options as o
from normalcy.cli.printing import show
from normalcy.errors import SettingsError

Name = Annotated[str, Argument(metavar="NAME", help="Name of the method and of its file, such as linear_autoencoder.")]
Out = Annotated[Path | None, Option(help="Folder for the package [NAME].")]

METHOD = '''\
"""Linear autoencoder; the anomaly score is the mean squared reconstruction error.

Source: Baldi and Hornik 1989. At the optimum it spans the subspace of the first principal components.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from normalcy import Method, Objective, Scores, SettingsError, Stage


@dataclass(frozen=True)
class LinearAutoencoderSettings:
    latent: int = 8
    """Latent dimension."""
    lr: float = 1e-3
    """Learning rate (Adam)."""

    def __post_init__(self) -> None:
        for name in ("latent", "lr"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"linear_autoencoder: {name} must be positive, got {getattr(self, name)}.")


class LinearAutoencoder(Method):
    name = "linear_autoencoder"
    family = "reconstruction"
    reference = "P. Baldi, K. Hornik. Neural networks and principal component analysis. Neural Networks 2, 1989."
    Settings = LinearAutoencoderSettings
    spatial_dims = (2, 3)
    settings: LinearAutoencoderSettings

    def __init__(self, settings: LinearAutoencoderSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.encoder = nn.Linear(prod(self.shape), settings.latent)
        self.decoder = nn.Linear(settings.latent, prod(self.shape))

    def reconstruct(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the same, float32."""
        restored: Tensor = self.decoder(self.encoder(x.flatten(1)))
        return restored.float().view(x.shape)

    def squared_error(self, x: Tensor) -> Mapping[str, Tensor]:
        return {"loss": (x - self.reconstruct(x)).square().mean()}

    def stages(self) -> Sequence[Stage]:
        objective = Objective(self.squared_error, self.parameters(), lr=self.settings.lr)
        return [Stage("reconstruction", [objective], epochs=100, batch_size=32)]

    def _score(self, x: Tensor) -> Scores:
        restored = self.reconstruct(x)
        map = (x - restored).square().mean(1)  # (B, *spatial)
        return Scores(image=map.flatten(1).mean(1), map=map, restored=restored)
'''
"""A complete method, which the documentation shows, too."""

TEST = '''\
"""The contract tests of normalcy, and a fact of the method itself."""

import torch
from linear_autoencoder import LinearAutoencoder, LinearAutoencoderSettings

from normalcy.testing import check_method


def test_contract():
    check_method(LinearAutoencoder, {"epochs": 100})


def test_image_score_is_the_mean_of_the_map():
    method = LinearAutoencoder(LinearAutoencoderSettings(latent=4), (1, 8, 8))
    method.mark_fitted(True)
    scores = method.score(torch.rand(3, 1, 8, 8))
    torch.testing.assert_close(scores.image, scores.map.mean((1, 2)))
'''

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "normalcy-linear-autoencoder"
version = "0.1.0"
description = "The method linear_autoencoder for normalcy."
requires-python = ">=3.11"
dependencies = ["normalcy"]

[project.entry-points."normalcy.methods"]
linear_autoencoder = "linear_autoencoder:LinearAutoencoder"

[tool.hatch.build.targets.wheel]
only-include = ["linear_autoencoder.py"]
"""


def new_method(name: Name, out: Out = None, overwrite: o.Overwrite = False) -> None:
    """Write a package with a method and its test, to start from.

    The method is a linear autoencoder under the new name; it is complete, and its test passes.
    """
    from normalcy.files import write_folder
    from normalcy.methods import available

    if not name.isidentifier() or not name.isascii() or name != name.lower() or keyword.iskeyword(name):
        raise SettingsError(f"NAME must be lower-case letters, digits and underscores, as in my_method, got {name!r}.")
    if name in available():
        raise SettingsError(f"There is already a method {name!r}; choose another name.")
    folder = out or Path(name)
    texts = {f"{name}.py": METHOD, f"test_{name}.py": TEST, "pyproject.toml": PROJECT}

    def fill(partial: Path) -> None:
        from normalcy.files import write_bytes

        for file, text in texts.items():
            write_bytes(partial / file, under_name(text, name).encode())

    write_folder(folder, fill, overwrite)
    show(f"Wrote {', '.join(texts)} -> {folder}")
    show(f"Test it with: python -m pytest {folder}; make it known to normalcy with: python -m pip install -e {folder}")


def under_name(text: str, name: str) -> str:
    """One of the texts above with the names of another method.

    >>> under_name("linear_autoencoder:LinearAutoencoder normalcy-linear-autoencoder", "my_2nd_method")
    'my_2nd_method:My2ndMethod normalcy-my-2nd-method'
    """
    words = [word for word in name.split("_") if word]
    spelled = {
        "linear_autoencoder": name,
        "linear-autoencoder": "-".join(words),
        "LinearAutoencoder": "".join(word[:1].upper() + word[1:] for word in words),
    }
    for old, new in spelled.items():
        text = text.replace(old, new)
    return text
