"""normalcy learns what normal images look like from normal images alone, then finds, shows and explains what is not.

>>> import normalcy
>>> normalcy.Detector("vae", latent=64)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normalcy.data.dataset import DataSet as DataSet
    from normalcy.data.dataset import Failure as Failure
    from normalcy.data.dataset import Item as Item
    from normalcy.data.open import open_data as open_data
    from normalcy.data.samples import open_samples as open_samples
    from normalcy.data.union import union as union
    from normalcy.detector import Detector as Detector
    from normalcy.detector import load as load
    from normalcy.errors import DataError as DataError
    from normalcy.errors import ModelFileError as ModelFileError
    from normalcy.errors import NormalcyError as NormalcyError
    from normalcy.errors import SettingsError as SettingsError
    from normalcy.errors import TrainingError as TrainingError
    from normalcy.method import EarlyStop as EarlyStop
    from normalcy.method import Method as Method
    from normalcy.method import Objective as Objective
    from normalcy.method import Scores as Scores
    from normalcy.method import Stage as Stage
    from normalcy.methods import METHODS as METHODS
    from normalcy.scoring import Result as Result
    from normalcy.scoring import Results as Results
    from normalcy.training.fit import fit as fit
    from normalcy.training.settings import TrainSettings as TrainSettings

__version__ = "0.1.0"

_HOME = {
    "data.dataset": ("DataSet", "Failure", "Item"),
    "data.open": ("open_data",),
    "data.samples": ("open_samples",),
    "data.union": ("union",),
    "detector": ("Detector", "load"),
    "errors": ("DataError", "ModelFileError", "NormalcyError", "SettingsError", "TrainingError"),
    "method": ("EarlyStop", "Method", "Objective", "Scores", "Stage"),
    "methods": ("METHODS",),
    "scoring": ("Result", "Results"),
    "training.fit": ("fit",),
    "training.settings": ("TrainSettings",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that ``import normalcy`` is instant."""
    if name not in _MODULE:
        raise AttributeError(f"module 'normalcy' has no attribute {name!r}")
    return getattr(import_module(f"normalcy.{_MODULE[name]}"), name)
