"""Rates of a large set from a few reviewed images: against the truth, by simulation."""

import math

import numpy as np
import pytest

from normalcy.errors import DataError
from normalcy.metrics import sampling
from normalcy.metrics.sampling import Estimate, Rates, draw, guess, proposal, rates

TOTAL = 100_000
REVIEWED = 60
REPEATS = 300
NAMES = ("precision", "recall", "false_positive_rate", "anomalous")


class Folder:
    """100,000 scores of normal and anomalous images, p-values of 199 held-out images, flags."""

    def __init__(self, anomalous: float, shift: float, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.random(TOTAL) < anomalous
        self.scores = rng.normal(size=TOTAL) + shift * self.labels
        held_out = np.sort(rng.normal(size=199))
        self.p_values = (200 - np.searchsorted(held_out, self.scores)) / 200
        self.flagged = self.scores > np.quantile(held_out, 0.97)
        self.q = proposal(self.scores, self.flagged, self.p_values)

    @property
    def truth(self) -> dict[str, float]:
        y, f = self.labels, self.flagged
        return dict(zip(NAMES, map(float, (y[f].mean(), f[y].mean(), f[~y].mean(), y.mean()))))

    def estimate(self, seed: int, q: np.ndarray | None = None, count: int = REVIEWED) -> Rates:
        q = self.q if q is None else q
        drawn = draw(q, count, seed)
        return rates(drawn, q[drawn], self.labels[drawn], self.flagged[drawn], TOTAL, int(self.flagged.sum()))


def summary(found: list[Rates], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = np.array([[getattr(one, name).value, getattr(one, name).low, getattr(one, name).high] for one in found])
    return values[:, 0], values[:, 1], values[:, 2]


@pytest.mark.parametrize(("anomalous", "shift"), [(0.02, 2.5), (0.1, 3.0)])
def test_estimates_against_the_truth(anomalous: float, shift: float):
    """No bias beyond the error of the simulation, and 95 % intervals that hold in at least 91 % of the reviews."""
    folder = Folder(anomalous, shift)
    found = [folder.estimate(seed) for seed in range(REPEATS)]
    for name, truth in folder.truth.items():
        values, low, high = summary(found, name)
        assert np.mean((low <= truth) & (truth <= high)) >= 0.91, name
        if name != "recall":  # a ratio whose denominator rests on the few anomalies among images that are not flagged
            error = np.nanstd(values) / math.sqrt(REPEATS)
            assert abs(np.nanmean(values) - truth) < 4 * error + 1e-3, name


def test_recall_loses_its_bias_with_more_images():
    folder = Folder(0.1, 2.0)
    truth = folder.truth["recall"]
    bias = {}
    for count in (60, 600):
        values, _, _ = summary([folder.estimate(seed, count=count) for seed in range(200)], "recall")
        bias[count] = abs(float(np.nanmean(values)) - truth)
    assert bias[600] < 0.02
    assert bias[600] < bias[60]


def test_narrower_than_a_uniform_sample():
    """Of 60 images drawn evenly, two are flagged here: they say next to nothing of the precision."""
    folder = Folder(0.02, 2.5)
    uniform = np.full(TOTAL, 1 / TOTAL)
    for name in ("precision", "false_positive_rate"):
        widths = []
        for q in (folder.q, uniform):
            _, low, high = summary([folder.estimate(seed, q) for seed in range(100)], name)
            widths.append(float(np.mean(high - low)))
        assert widths[0] < 0.5 * widths[1], (name, widths)


def test_a_wrong_guess_costs_no_bias(monkeypatch: pytest.MonkeyPatch):
    """Probabilities from a guess that has it the wrong way round."""
    folder = Folder(0.1, 3.0)
    monkeypatch.setattr(sampling, "guess", lambda scores, p: np.clip(1 - guess(scores, p), 0.001, 0.999))
    q = proposal(folder.scores, folder.flagged, folder.p_values)
    found = [folder.estimate(seed, q, count=150) for seed in range(200)]
    for name in ("precision", "anomalous"):
        values, low, high = summary(found, name)
        truth = folder.truth[name]
        assert abs(np.nanmean(values) - truth) < 4 * np.nanstd(values) / math.sqrt(200) + 1e-3
        assert np.mean((low <= truth) & (truth <= high)) > 0.91


def test_all_images_reviewed_give_the_truth():
    """Every image drawn once with the same probability: the rates are the counts."""
    rng = np.random.default_rng(0)
    labels, flagged = rng.random(400) < 0.3, rng.random(400) < 0.4
    found = rates(np.arange(400), np.full(400, 1 / 400), labels, flagged, 400, int(flagged.sum()))
    assert found.precision.value == pytest.approx(labels[flagged].mean())
    assert found.recall.value == pytest.approx(flagged[labels].mean())
    assert found.false_positive_rate.value == pytest.approx(flagged[~labels].mean())
    assert found.anomalous.value == pytest.approx(labels.mean())
    assert (found.draws, found.images) == (400, 400)


def test_weights_by_hand():
    """Three flagged images drawn with probability 0.2 and one with 0.05, which counts four times as much."""
    drawn, q = np.arange(10), np.array([0.2, 0.2, 0.2, 0.05, *[0.1] * 6])
    labels, flagged = np.array([1, 0, 0, 1, *[0] * 6]), np.array([1, 1, 1, 1, *[0] * 6])
    found = rates(drawn, q, labels, flagged, 100, 40)
    assert found.precision.value == pytest.approx((5 + 20) / (5 + 5 + 5 + 20))
    assert found.recall.value == 1
    assert found.recall.low < 0.9  # six images that are not flagged cannot rule anomalies out among 60
    assert found.anomalous.value == pytest.approx(0.4 * found.precision.value)


def test_probabilities():
    folder = Folder(0.02, 2.5)
    assert folder.q.sum() == pytest.approx(1)
    assert folder.q.min() >= sampling.UNIFORM / TOTAL
    assert folder.q[folder.flagged].sum() > 5 * folder.flagged.mean()
    without = proposal(folder.scores, folder.flagged, np.full(TOTAL, np.nan))
    assert without.sum() == pytest.approx(1)
    near, far = np.argsort(folder.scores)[[-8000, 100]]
    assert without[near] > without[far]


def test_guess_follows_the_p_values():
    """Where small p-values are ten times as frequent as they should be, images with them are likely anomalies."""
    p = np.r_[np.linspace(0.001, 1, 1000), np.full(90, 0.01)]
    found = guess(-p, p)
    assert found[-1] > 0.8
    assert found[900] < 0.05


def test_the_same_draws_again():
    q = np.array([0.5, 0.25, 0.25])
    np.testing.assert_array_equal(draw(q, 50, 3), draw(q, 50, 3))
    assert not np.array_equal(draw(q, 50, 3), draw(q, 50, 4))


def test_too_few():
    with pytest.raises(DataError, match="at least 10 drawn images"):
        rates([0], [1.0], [1], [1], 5, 1)


def test_nothing_among_the_flagged():
    """No image that is flagged was drawn: nothing is known of the precision."""
    found = rates(np.arange(10), np.full(10, 0.1), np.zeros(10), np.zeros(10), 100, 10)
    assert math.isnan(found.precision.value)
    assert (found.precision.low, found.precision.high) == (0, 1)
    assert isinstance(found.recall, Estimate)
