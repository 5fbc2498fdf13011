"""Calibration: exact p-values, and promised false-alarm rates that hold."""

import math

import numpy as np
import pytest

from normalcy.calibrate import Calibration, calibrate, decide, decide_on_validation
from normalcy.errors import ModelFileError, SettingsError


def test_p_values_count_ties_against_the_image() -> None:
    calibration = Calibration(np.array([1.0, 2.0, 2.0, 3.0]))
    assert calibration.p_values([0.0, 2.0, 2.5, 3.0, 4.0]).tolist() == [1.0, 0.8, 0.4, 0.4, 0.2]


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("n", [5, 19, 20, 99, 137])
def test_threshold_flags_exactly_the_p_values_up_to_alpha(n: int, alpha: float) -> None:
    rng = np.random.default_rng(n)
    calibration = Calibration(np.sort(rng.integers(0, 30, n).astype(float)))  # many ties
    scores = rng.integers(-5, 40, 500).astype(float)
    flagged = scores > calibration.threshold(alpha)
    assert (flagged == (calibration.p_values(scores) <= alpha + 1e-12)).all()


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_realised_false_alarm_rate_keeps_the_promise_over_1000_resamplings(alpha: float) -> None:
    """Held-out and new images exchangeable, scores heavy-tailed: the mean rate is at most alpha."""
    rng = np.random.default_rng(0)
    pool = rng.standard_t(2, 4000)
    rates = []
    for _ in range(1000):
        drawn = rng.permutation(pool)
        threshold = Calibration(np.sort(drawn[:60])).threshold(alpha)
        rates.append((drawn[60:] > threshold).mean())
    error = np.std(rates) / math.sqrt(len(rates))
    assert np.mean(rates) <= alpha + 3 * error
    assert np.mean(rates) >= alpha / 2  # and it is no empty promise


def test_realised_pixel_rate_keeps_the_promise_over_1000_resamplings() -> None:
    """Pixels of an image depend on each other (a shared offset): still, the mean flagged share is at most alpha."""
    rng = np.random.default_rng(1)
    alpha, n = 0.1, 30
    maps = (rng.normal(size=(400, 1, 1)) * 2 + rng.normal(size=(400, 8, 8))).astype(np.float32)
    shares = []
    for _ in range(1000):
        order = rng.permutation(len(maps))
        calibration = calibrate([(0.0, maps[i]) for i in order[:n]])
        threshold = calibration.pixel_threshold(alpha)
        assert threshold is not None
        shares.append((maps[order[n:]] > threshold).mean())
    error = np.std(shares) / math.sqrt(len(shares))
    assert alpha / 3 <= np.mean(shares) <= alpha + 3 * error


def test_too_few_images_flag_nothing_rather_than_break_the_promise() -> None:
    calibration = calibrate([(float(i), np.full((4, 4), i, np.float32)) for i in range(5)])
    decision = decide(calibration, 0.05)
    assert decision.threshold == math.inf
    assert decision.pixel_threshold == math.inf
    assert decision.to_json()["threshold"] is None
    assert not decision.flags(1e9, None)


def test_map_levels_bound_the_share_of_pixels_from_above() -> None:
    rng = np.random.default_rng(2)
    maps = rng.normal(size=(20, 40, 40)).astype(np.float32)
    calibration = calibrate([(0.0, m) for m in maps])
    assert calibration.levels is not None
    assert calibration.rates is not None
    for level, rate in list(zip(calibration.levels, calibration.rates))[::97]:
        assert np.mean(maps > np.float32(level)) == pytest.approx(rate, abs=1e-9)
    assert calibration.map_range is not None
    assert calibration.map_range[0] == pytest.approx(np.median(maps), abs=0.01)
    assert calibration.map_range[1] == pytest.approx(maps.max(), rel=0.003)


def test_json_round_trip_and_damage() -> None:
    calibration = calibrate([(float(i), np.random.default_rng(i).random((5, 5)).astype(np.float32)) for i in range(25)])
    again = Calibration.from_json(calibration.to_json())
    assert again.threshold(0.1) == calibration.threshold(0.1)
    assert again.pixel_threshold(0.1) == calibration.pixel_threshold(0.1)
    words = calibration.to_json()
    for damage in (
        {"scores": [3, 1]},
        {"scores": "abc"},
        {"rates": None},
        {"map_range": 3},
        {"scores": [float("nan")]},
    ):
        with pytest.raises(ModelFileError, match=r"calibration\.json is damaged"):
            Calibration.from_json({**words, **damage})


def test_other_rules_choose_on_validation_images() -> None:
    labels, scores = [0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.8, 0.9]
    assert 0.3 <= (decide_on_validation("max_f1", scores, labels, None, None).threshold or 0) < 0.8
    assert 0.3 <= (decide_on_validation("youden", scores, labels, None, None).threshold or 0) < 0.8
    spots = np.zeros((10, 10), np.float32)
    spots[2:4, 2:4] = 0.5  # a normal map with a spot of 4 pixels
    decision = decide_on_validation("minimum_area:3", [0.0], None, [spots], None)
    assert decision.pixel_threshold == pytest.approx(0.5)
    assert not decision.flags(0.0, spots)
    large = np.zeros((10, 10), np.float32)
    large[5:8, 5:8] = 0.6
    assert decision.flags(0.0, large)
    large[5:8, 5:7] = 0.0  # three pixels are left: not larger than the area
    assert not decision.flags(0.0, large)


@pytest.mark.parametrize(
    ("rule", "labels", "maps", "says"),
    [
        ("max_f1", [0, 0], None, "both kinds"),
        ("minimum_area", None, [np.ones((3, 3), np.float32)], "minimum_area:100"),
        ("minimum_area:5", None, None, "gives maps"),
        ("best", [0, 1], None, "rule must be"),
    ],
)
def test_rules_say_what_they_need(
    rule: str, labels: list[int] | None, maps: list[np.ndarray] | None, says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        decide_on_validation(rule, [0.1, 0.2], labels, maps, None)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(SettingsError, match="between 0 and 1"):
        Calibration(np.arange(3.0)).threshold(rate)
