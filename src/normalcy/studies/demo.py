"""The demo: defective solar cells, found by methods that saw functional ones only.

Data: electroluminescence images of solar cells from the package ``elpv-dataset`` (Deitsch et al. 2019), CC BY-NC-SA 4.0.
"""

from __future__ import annotations

from collections.abc import Sequence

SPEC = "elpv"
METHODS = ("patchcore", "gmm", "autoencoder", "dpa", "pca")
LONGER = ("lsr",)
"""What the full demo adds: methods that need some minutes more."""
SETTINGS: dict[str, object] = {
    "size": 128,
    "gmm.features": "backbone",
    "autoencoder.epochs": 5,
    "dpa.size": 64,
    "dpa.grow": False,
    "dpa.steps": 150,
    "dpa.batch_size": 32,
    "lsr.preset": "small",
    "lsr.eta": "quantile",
    "lsr.steps": 1500,
}


def settings_for(methods: Sequence[str]) -> dict[str, object]:
    """The demo's settings that concern these methods.

    >>> settings_for(["pca"])
    {'size': 128}
    """
    return {word: value for word, value in SETTINGS.items() if "." not in word or word.partition(".")[0] in methods}
