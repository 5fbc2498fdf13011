"""The demo: defective solar cells, found by methods that saw functional ones only.

Data: electroluminescence images of solar cells from the package ``elpv-dataset`` (Deitsch et al. 2019), CC BY-NC-SA 4.0.
"""

from __future__ import annotations

SPEC = "elpv"
METHODS = ("patchcore", "gmm", "autoencoder", "pca")
SETTINGS: dict[str, object] = {"size": 128, "gmm.features": "backbone", "autoencoder.epochs": 5}
