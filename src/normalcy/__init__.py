"""normalcy learns what normal images look like from normal images alone, then finds, shows and explains what is not.

>>> import normalcy
>>> normalcy.Detector("vae", latent=64)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normalcy.data.dataset import DataSet, Item, open_data
    from normalcy.detector import Detector, Result, Results, load
    from normalcy.errors import DataError, ModelFileError, NormalcyError, SettingsError, TrainingError
    from normalcy.method import EarlyStop, Method, Objective, Scores, Stage
    from normalcy.methods import METHODS
    from normalcy.train import TrainSettings, fit

__version__ = "0.1.0"

_HOME = {
    "DataSet": "data.dataset",
    "Item": "data.dataset",
    "open_data": "data.dataset",
    "Detector": "detector",
    "Result": "detector",
    "Results": "detector",
    "load": "detector",
    "DataError": "errors",
    "ModelFileError": "errors",
    "NormalcyError": "errors",
    "SettingsError": "errors",
    "TrainingError": "errors",
    "EarlyStop": "method",
    "Method": "method",
    "Objective": "method",
    "Scores": "method",
    "Stage": "method",
    "METHODS": "methods",
    "TrainSettings": "train",
    "fit": "train",
}

__all__ = [
    "METHODS",
    "DataError",
    "DataSet",
    "Detector",
    "EarlyStop",
    "Item",
    "Method",
    "ModelFileError",
    "NormalcyError",
    "Objective",
    "Result",
    "Results",
    "Scores",
    "SettingsError",
    "Stage",
    "TrainSettings",
    "TrainingError",
    "__version__",
    "fit",
    "load",
    "open_data",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that ``import normalcy`` is instant."""
    if name not in _HOME:
        raise AttributeError(f"module 'normalcy' has no attribute {name!r}")
    return getattr(import_module(f"normalcy.{_HOME[name]}"), name)
