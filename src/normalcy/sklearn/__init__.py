"""Every method as a scikit-learn estimator.

scikit-learn and normalcy count in opposite directions, and PyOD counts as normalcy does:

==========================================  ==================================================================
``AnomalyDetector.score_samples(X)``        higher is **more normal**, as for every outlier detector of scikit-learn
``AnomalyDetector.decision_function(X)``    the same, less ``offset_``: negative where anomalous
``normalcy.Detector.score(X).scores``       higher is **more anomalous**: the negative of ``score_samples``
PyOD ``decision_function(X)``               higher is **more anomalous**: the negative of ``score_samples``, too
==========================================  ==================================================================
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from normalcy import config
from normalcy.arrays import Array, Float64
from normalcy.data.dataset import DataSet, unnamed
from normalcy.data.open import as_dataset
from normalcy.data.samples import is_samples
from normalcy.data.stores import Arrays
from normalcy.detector import Detector
from normalcy.errors import DataError, NormalcyWarning, SettingsError
from normalcy.methods import get
from normalcy.settings import COMMON

__all__ = ["AnomalyDetector"]

VECTOR_METHODS = ("dsebm", "gmm", "isolation_forest", "kde", "ocsvm", "pca", "zscore")
"""Methods that make sense of the rows of a 2D array as feature vectors."""


class AnomalyDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """A :class:`normalcy.Detector` as an outlier (novelty) detector of scikit-learn.

    Sign: ``score_samples`` and ``decision_function`` are higher for **more normal** images, as everywhere in scikit-learn;
    normalcy's scores (``detector_.score(X).scores``) and PyOD's ``decision_function`` are higher for more anomalous ones.

    Threshold: ``predict`` says -1 (anomalous) where ``decision_function`` is negative. ``offset_`` comes from the calibration:
    a fraction of the training images (setting ``calibration``) is held out, and a new normal image gets -1 with a probability
    of at most the setting ``false_alarms`` (0.05). Fewer than 1 / false_alarms - 1 held-out images (19 at 0.05) guarantee
    nothing: ``offset_`` is then -inf, ``predict`` is 1 for all images, and ``fit`` warns.

    Parameters
    ----------
    method : str
        Name of the method, as ``normalcy methods`` lists them.
    image_shape : tuple of int, optional
        Of 2D ``X`` (N, values): the shape of the image that each row is, (H, W) or with channels where ``channel_axis`` says.
        Without it rows are feature vectors, for the methods in ``VECTOR_METHODS``.
    channel_axis : int
        Axis of the channels of one image in NumPy arrays: -1 for (H, W, C), 0 for (C, H, W). Torch tensors are (C, H, W).
    **settings
        Settings of the method and those common to all methods (``size``, ``epochs``, ``seed``, ``false_alarms``, ...). They
        are parameters: ``set_params(latent=64)``, and ``{"latent": [16, 64]}`` in a grid. Checked by ``fit``.

    Attributes
    ----------
    detector_ : normalcy.Detector
        The fitted detector: maps, p-values, restored images, ``save``.
    offset_ : float
        ``decision_function(X) = score_samples(X) - offset_``.
    n_features_in_ : int
        Values of an image; not set for paths and data sets.
    feature_names_in_ : ndarray of str
        Names of the columns, where ``X`` is a data frame.

    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> estimator = AnomalyDetector("kde").fit(X)
    >>> estimator.predict([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    array([ 1, -1])
    >>> estimator.score_samples([[9.0, 9.0, 9.0]]) < estimator.score_samples([[0.0, 0.0, 0.0]])
    array([ True])
    """

    def __init__(
        self,
        method: str = "patchcore",
        *,
        image_shape: tuple[int, ...] | None = None,
        channel_axis: int = -1,
        **settings: Any,
    ) -> None:
        self.method = method
        self.image_shape = image_shape
        self.channel_axis = channel_axis
        self._settings = settings  # no attributes: some are called score

    # -- parameters

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; with ``deep`` also the settings that were not given, with their defaults.

        A clone takes the given ones alone, so that a grid can change the method.
        """
        own = {name: getattr(self, name) for name in _OWN}
        return {**own, **(self._defaults() if deep else {}), **self._settings}

    def set_params(self, **params: Any) -> AnomalyDetector:
        """Change parameters; raises SettingsError (a ValueError) for one that the method does not have."""
        for name in _OWN:
            if name in params:
                setattr(self, name, params.pop(name))
        if params:
            valid = self._defaults()
            for name in params:
                if name not in valid:
                    raise config.unknown_setting(name, [*_OWN, *valid], f"AnomalyDetector({self.method!r})")
            self._settings = {**self._settings, **params}
        return self

    def _defaults(self) -> dict[str, Any]:
        """Every setting of the method and its default; those common to all methods where there is no such method."""
        parts = list(COMMON.values())
        with suppress(SettingsError, TypeError):  # an unknown method is an error of fit
            parts.insert(0, get(self.method).Settings)
        return {name: config.default_of(field) for part in parts for name, field in config.fields_of(part).items()}

    # -- learning and scoring

    def fit(self, X: Any, y: Any = None) -> AnomalyDetector:
        """Learn from normal images.

        ``X``: arrays (N, H, W) or with channels (``channel_axis``), Torch tensors (N, C, H, W), 2D arrays (see
        ``image_shape``), lists of paths, or a data set, of which the normal training images are used. ``y``: rows where it is
        -1 are left out, so that grids can be scored by labels; other values have no effect.
        """
        images = self._images(X, reset=True)
        if y is not None:
            images = images.subset(_not_anomalous(y, images))
        detector = Detector(self.method, **self._settings).fit(images)
        if detector.calibration is None:
            self.offset_ = math.nan
        else:
            self.offset_ = -detector.calibration.threshold(detector.decision.false_alarms)
        self.detector_ = detector
        return self

    def score_samples(self, X: Any) -> Float64:
        """(N,) how normal each image is: higher is more normal, the negative of normalcy's anomaly score.

        Raises DataError where an image cannot be read.
        """
        check_is_fitted(self)
        images = self._images(X, reset=False)
        results = self.detector_.score(images)
        if results.failed:
            first = results.failed[0]
            raise DataError(
                f"{len(results.failed)} of {len(images)} images cannot be scored: {first.path}: {first.reason}"
            )
        return -results.scores

    def decision_function(self, X: Any) -> Float64:
        """(N,) ``score_samples(X) - offset_``: negative where anomalous, at the false-alarm rate of the settings."""
        check_is_fitted(self)
        if math.isnan(self.offset_):
            raise SettingsError(
                "AnomalyDetector has no threshold with calibration=0: use score_samples, or hold out a fraction of the "
                "images (calibration=0.1)."
            )
        decided: Float64 = self.score_samples(X) - self.offset_
        return decided

    def predict(self, X: Any) -> npt.NDArray[np.int_]:
        """(N,) 1 for normal, -1 for anomalous images."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    # -- private

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "detector_")

    def _images(self, X: Any, reset: bool) -> DataSet:
        if isinstance(X, np.ndarray) and X.ndim == 1 and len(X) and isinstance(X[0], str | Path):
            X = X.tolist()  # how scikit-learn indexes a list of paths
        if not _holds_images(X):
            return self._rows(X, reset)
        if reset:
            for name in ("n_features_in_", "feature_names_in_"):
                self.__dict__.pop(name, None)
            if hasattr(X, "shape"):
                self.n_features_in_ = math.prod(X.shape[1:])
        return self._stack(X) if isinstance(X, np.ndarray) else as_dataset(X)

    def _stack(self, X: Array) -> DataSet:
        if self.channel_axis == -1 or X.ndim == 3:
            return as_dataset(X)
        if self.channel_axis != 0:
            raise SettingsError(f"channel_axis must be -1 (channels last) or 0 (first), got {self.channel_axis!r}.")
        return as_dataset(np.moveaxis(X, 1, -1))

    def _rows(self, X: Any, reset: bool) -> DataSet:
        """A 2D array: each row a flat image, or the features of a vector method."""
        vectors = self.image_shape is None
        X = validate_data(
            self,
            X,
            reset=reset,
            dtype=np.float64 if vectors else "numeric",
            ensure_min_samples=2 if reset else 1,
        )
        if self.image_shape is None:
            if self.method not in VECTOR_METHODS:
                raise SettingsError(
                    f"AnomalyDetector({self.method!r}) expects images, got rows of {X.shape[1]} values: give image_shape=(H, W) "
                    f"or (H, W, C), or use a method for feature vectors ({', '.join(VECTOR_METHODS)})."
                )
            # (C, 1, 1): no resizing, whatever the number of features
            return Arrays(X[:, :, None, None], first=True).data_set("rows", unnamed("rows", len(X)))
        shape: Sequence[int] = self.image_shape
        if math.prod(shape) != X.shape[1]:
            raise DataError(
                f"AnomalyDetector expects rows of {math.prod(shape)} values for image_shape={tuple(shape)}, got {X.shape[1]}."
            )
        return self._stack(X.reshape(len(X), *shape))


# -- private ---------------------------------------------------------------------------------------------------------

_OWN = ("method", "image_shape", "channel_axis")
"""Parameters that are no settings."""


def _holds_images(X: Any) -> bool:
    if isinstance(X, DataSet | str | Path):
        return True
    if isinstance(X, list | tuple):
        known = len(X) > 0 and (isinstance(X[0], str | Path) or getattr(X[0], "ndim", 0) >= 2)
        return known or (len(X) > 0 and not isinstance(X[0], list | tuple) and is_samples(X))
    return getattr(X, "ndim", 0) > 2 or (not hasattr(X, "__array__") and not hasattr(X, "shape") and is_samples(X))


def _not_anomalous(y: Any, images: DataSet) -> Array:
    """True where y is not -1."""
    check_consistent_length(y, images.items)
    labels = np.asarray(y)
    values = set(np.unique(labels[:1000]).tolist()) if labels.dtype.kind in "biu" else set()
    if values == {0, 1}:
        warnings.warn(
            "y holds 0 and 1, which have no effect: as in scikit-learn, 1 is normal and -1 anomalous",
            NormalcyWarning,
            stacklevel=3,
        )
    kept: Array = np.asarray(labels != -1)
    if not kept.any():
        raise DataError("AnomalyDetector learns from normal images alone, got y = -1 for all of them.")
    return kept
