"""The estimator in scikit-learn's own checks and in the places where people use estimators."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, ParameterGrid, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.utils.data import TensorDataset

from normalcy import DataError, DataSet, Detector, SettingsError
from normalcy.data.images import write_image
from normalcy.data.open import as_dataset
from normalcy.errors import NormalcyWarning
from normalcy.sklearn import VECTOR_METHODS, AnomalyDetector


def expected_failures(estimator: AnomalyDetector) -> dict[str, str]:
    reasons = {
        "check_do_not_raise_errors_in_init_or_set_params": "it sets a parameter called settings, the name of **settings, which "
        "is none; set_params refuses unknown names as BaseEstimator.set_params does"
    }
    if estimator.method == "dsebm":
        reasons["check_methods_subset_invariance"] = (
            "scores are float32, where 2e-7 is one rounding; the check asks for 1e-7"
        )
    return reasons


# a tenth: the checks want a training row flagged, which a threshold for held-out rows at 0.05 need not do
CHECKED = [AnomalyDetector(method, false_alarms=0.1) for method in VECTOR_METHODS]


@parametrize_with_checks(CHECKED, expected_failed_checks=expected_failures)
def test_scikit_learn_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NormalcyWarning)  # few images for calibration
        check(estimator)


def images(n: int, seed: int, side: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (100 + 20 * rng.random((n, side, side))).astype(np.uint8)


def labelled(seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """60 normal images and 20 with a bright square; 1 and -1."""
    x = images(80, seed)
    x[60:, 3:7, 3:7] = 255
    return x, np.r_[np.ones(60, int), -np.ones(20, int)]


# -- signs and thresholds --------------------------------------------------------------------------------------------


def test_scores_are_the_negative_of_the_detectors():
    x, y = labelled()
    estimator = AnomalyDetector("pca", false_alarms=0.1, components=3).fit(images(80, 0))
    detector = Detector("pca", false_alarms=0.1, components=3).fit(images(80, 0))
    results = detector.score(x)
    np.testing.assert_array_equal(estimator.score_samples(x), -results.scores)
    np.testing.assert_array_equal(estimator.predict(x), np.where(results.flagged, -1, 1))
    np.testing.assert_array_equal(estimator.decision_function(x), estimator.score_samples(x) - estimator.offset_)
    assert estimator.offset_ == -detector.decide().threshold
    assert roc_auc_score(y, estimator.score_samples(x)) == 1
    assert (estimator.predict(x) == y).mean() > 0.9


def test_fit_predict_is_fit_and_predict():
    x, _ = labelled()
    estimator = AnomalyDetector("pca", false_alarms=0.2)
    np.testing.assert_array_equal(estimator.fit_predict(x), clone(estimator).fit(x).predict(x))


def test_a_threshold_that_cannot_be_guaranteed_flags_nothing():
    estimator = AnomalyDetector("pca", false_alarms=0.01)
    with pytest.warns(NormalcyWarning, match="no image can be flagged"):
        estimator.fit(images(60, 0))
    assert estimator.offset_ == -np.inf
    assert (estimator.predict(labelled()[0]) == 1).all()


def test_without_calibration_there_are_scores_but_no_threshold():
    estimator = AnomalyDetector("pca", calibration=0).fit(images(30, 0))
    assert np.isfinite(estimator.score_samples(images(3, 1))).all()
    with pytest.raises(SettingsError, match="no threshold with calibration=0"):
        estimator.predict(images(3, 1))


def test_unfitted():
    with pytest.raises(NotFittedError):
        AnomalyDetector("pca").predict(images(3, 0))


# -- what X may be ---------------------------------------------------------------------------------------------------


def test_all_forms_of_the_same_images_score_alike(tmp_path: Path):
    x, colour = images(60, 0), np.stack([images(60, seed) for seed in (0, 1, 2)], axis=-1)
    for i, image in enumerate(x):
        write_image(tmp_path / f"{i:02d}.png", image)
    paths = sorted(tmp_path.iterdir())
    pairs = [
        (AnomalyDetector("pca"), x, as_dataset(x)),
        (AnomalyDetector("pca"), x, x[..., None]),
        (AnomalyDetector("pca"), x, torch.from_numpy(x)[:, None]),
        (AnomalyDetector("pca"), x, list(x)),
        (AnomalyDetector("pca"), x, TensorDataset(torch.from_numpy(x)[:, None])),
        (AnomalyDetector("pca"), x, paths),
        (AnomalyDetector("pca"), x, np.array([str(path) for path in paths])),
    ]
    for estimator, plain, other in pairs:
        expected = clone(estimator).fit(plain).score_samples(plain)
        np.testing.assert_allclose(clone(estimator).fit(other).score_samples(other), expected, rtol=1e-5)
    first = AnomalyDetector("pca", channel_axis=0).fit(colour.transpose(0, 3, 1, 2))
    last = AnomalyDetector("pca").fit(colour)
    flat = AnomalyDetector("pca", image_shape=(12, 12, 3)).fit(colour.reshape(60, -1))
    expected = last.score_samples(colour)
    np.testing.assert_array_equal(first.score_samples(colour.transpose(0, 3, 1, 2)), expected)
    np.testing.assert_array_equal(flat.score_samples(colour.reshape(60, -1)), expected)
    assert first.n_features_in_ == last.n_features_in_ == flat.n_features_in_ == 12 * 12 * 3


def test_rows_are_images_or_vectors_or_refused():
    rows = np.random.default_rng(0).normal(size=(60, 400))
    assert AnomalyDetector("pca").fit(rows).detector_.method.shape == (400, 1, 1)  # not resized
    with pytest.raises(SettingsError, match=r"expects images, got rows of 400 values: give image_shape"):
        AnomalyDetector("autoencoder").fit(rows)
    with pytest.raises(DataError, match=r"rows of 256 values for image_shape=\(16, 16\), got 400"):
        AnomalyDetector("pca", image_shape=(16, 16)).fit(rows)
    with pytest.raises(SettingsError, match="channel_axis must be -1"):
        AnomalyDetector("pca", channel_axis=1).fit(np.zeros((30, 3, 8, 8)))


def test_an_image_that_cannot_be_read_has_no_score(tmp_path: Path):
    estimator = AnomalyDetector("pca").fit(images(60, 0))
    write_image(tmp_path / "good.png", images(1, 1)[0])
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"1 of 2 images cannot be scored: bad\.png"):
        estimator.score_samples([tmp_path / "good.png", tmp_path / "bad.png"])


def test_rows_labelled_anomalous_are_not_trained_on():
    x, y = labelled()
    with_labels = AnomalyDetector("pca").fit(x, y)
    normal_alone = AnomalyDetector("pca").fit(x[y == 1])
    np.testing.assert_allclose(with_labels.score_samples(x), normal_alone.score_samples(x), rtol=1e-4)
    with pytest.warns(NormalcyWarning, match="1 is normal and -1 anomalous"):
        AnomalyDetector("pca").fit(x, (y == -1).astype(int))
    with pytest.raises(DataError, match="got y = -1 for all"):
        AnomalyDetector("pca").fit(x[60:], y[60:])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        AnomalyDetector("pca").fit(x, y[:5])


def test_of_a_labelled_data_set_normal_training_images_are_used():
    x, y = labelled()
    data: DataSet = as_dataset(x, labels=(y == -1).astype(int))
    estimator = AnomalyDetector("pca").fit(data)
    facts = estimator.detector_.facts["data"]
    assert facts["count"] + facts["held_out"] == 48  # four fifths of the normal ones


# -- parameters ------------------------------------------------------------------------------------------------------


def test_settings_are_parameters():
    estimator = AnomalyDetector("pca", components=3)
    assert estimator.get_params(deep=False) == {
        "method": "pca",
        "image_shape": None,
        "channel_axis": -1,
        "components": 3,
    }
    assert estimator.get_params()["false_alarms"] == 0.05
    assert estimator.set_params(components=5, seed=7, image_shape=(4, 4)) is estimator
    assert estimator.get_params()["components"] == 5
    assert estimator.get_params()["seed"] == 7
    assert estimator.image_shape == (4, 4)
    assert repr(estimator) == "AnomalyDetector(components=5, image_shape=(4, 4), method='pca', seed=7)"
    with pytest.raises(ValueError, match=r"has no setting 'latnet'.*did you mean 'latent'"):
        AnomalyDetector("vae").set_params(latnet=3)
    with pytest.raises(ValueError, match="has no setting 'latent'"):
        AnomalyDetector("pca", latent=3).fit(images(30, 0))
    estimator.fit(images(60, 0))
    assert estimator.detector_.settings.components == 5
    assert estimator.detector_.train.seed == 7


def test_a_clone_is_not_fitted_and_has_its_own_settings():
    estimator = AnomalyDetector("pca", components=3).fit(images(60, 0))
    other = clone(estimator).set_params(components=4)
    assert not hasattr(other, "detector_")
    assert estimator.get_params()["components"] == 3


def test_grid_search_over_settings_and_methods():
    x, y = labelled()
    grid = [{"components": [1, 40]}, {"method": ["zscore", "kde"]}]
    folds = StratifiedKFold(3)  # an outlier detector gets plain folds by default, in the order of the rows
    search = GridSearchCV(AnomalyDetector("pca", false_alarms=0.1), grid, scoring="roc_auc", cv=folds).fit(x, y)
    assert search.cv_results_["params"] == list(ParameterGrid(grid))
    assert search.best_score_ > 0.95
    assert search.best_estimator_.score_samples(x).shape == (80,)
    assert (search.predict(x) == y).mean() > 0.8


def test_pipelines():
    rows = np.random.default_rng(0).normal(size=(80, 5)) * [1, 10, 100, 1e3, 1e4]
    pipeline = make_pipeline(StandardScaler(), AnomalyDetector("kde", false_alarms=0.1)).fit(rows)
    outlier = np.zeros((1, 5))
    outlier[0, 0] = 9  # hidden by the scale of the others
    assert pipeline.predict(np.r_[np.zeros((1, 5)), outlier]).tolist() == [1, -1]
    pipeline.set_params(anomalydetector__false_alarms=0.2)
    assert pipeline.get_params()["anomalydetector__false_alarms"] == 0.2
    x, y = labelled()
    halves = make_pipeline(FunctionTransformer(lambda x: x[:, ::2, ::2]), AnomalyDetector("pca")).fit(images(80, 0))
    assert roc_auc_score(y, halves.score_samples(x)) == 1


def test_pickle_keeps_the_fitted_detector():
    x, _ = labelled()
    estimator = AnomalyDetector("autoencoder", steps=2, latent=4, size=16).fit(images(60, 0))
    loaded = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(loaded.predict(x), estimator.predict(x))
    np.testing.assert_array_equal(loaded.score_samples(x), estimator.score_samples(x))
    assert loaded.detector_.score(x)[0].map.shape == (12, 12)
