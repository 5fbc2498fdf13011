"""Settings that every method accepts: ranges, old files, and which settings concern which method."""

import json
from dataclasses import fields
from typing import Any

import pytest

from normalcy import config
from normalcy.errors import SettingsError
from normalcy.methods import METHODS, get
from normalcy.settings import COMMON, DecisionSettings, InputSettings, settings_for_method


@pytest.mark.parametrize("cls", COMMON.values(), ids=COMMON)
def test_defaults_survive_json(cls: type):
    settings = cls()
    assert config.build(cls, json.loads(json.dumps(config.to_dict(settings))), "test") == settings


def test_no_setting_stands_in_two_parts():
    names = [field.name for cls in COMMON.values() for field in fields(cls)]
    assert len(names) == len(set(names))
    for method in METHODS:
        assert not set(names) & set(config.fields_of(get(method).Settings)), method


@pytest.mark.parametrize(
    ("cls", "given", "sentence"),
    [
        (InputSettings, {"size": 7}, "input: size must be at least 8, got 7"),
        (InputSettings, {"tile": 0}, "input: tile must be at least 8, got 0"),
        (InputSettings, {"tile_overlap": 1.0}, r"input: tile_overlap must be in \[0, 1\), got 1.0"),
        (InputSettings, {"tile_overlap": -0.1}, r"tile_overlap must be in \[0, 1\), got -0.1"),
        (InputSettings, {"slices": "z", "tile": 16}, "slices=z and tile=16 exclude each other"),
        (InputSettings, {"slice_range": (0.6, 0.6)}, r"two increasing numbers in \[0, 1\], got \(0.6, 0.6\)"),
        (InputSettings, {"slice_range": (0.6, 1.1)}, r"two increasing numbers in \[0, 1\], got \(0.6, 1.1\)"),
        (InputSettings, {"slice_body": 1.0}, r"slice_body must be in \[0, 1\), got 1.0"),
        (InputSettings, {"view_score": 1.5}, r"max, mean or a quantile in \[0, 1\], got 1.5"),
        (DecisionSettings, {"calibration": 1.0}, r"decision: calibration must be in \[0, 1\), got 1.0"),
        (DecisionSettings, {"false_alarms": 0.0}, "decision: false_alarms must be .*got 0.0"),
        (DecisionSettings, {"false_alarms": 1.0}, "decision: false_alarms must be .*got 1.0"),
    ],
)
def test_refusals(cls: type, given: dict[str, Any], sentence: str):
    with pytest.raises(SettingsError, match=sentence):
        cls(**given)


def test_limits_that_are_allowed():
    InputSettings(size=8, tile=8, tile_overlap=0.0, slice_range=(0.0, 1.0), slice_body=0.0, view_score=1.0)
    DecisionSettings(calibration=0.0, false_alarms=0.999)


def test_steps_of_earlier_versions_are_converted():
    old = {"preprocess": ["window:40,80", "centre_crop:0.75"], "augment": ["rotate:10"], "size": 32}
    read = InputSettings.from_json(old)
    assert read == InputSettings(preprocess=("window:40:80", "centre_crop:0.75"), augment=("rotate:10",), size=32)
    assert InputSettings.from_json(json.loads(json.dumps(config.to_dict(read)))) == read
    assert InputSettings.from_json({}) == InputSettings()
    with pytest.raises(SettingsError, match="sise"):
        InputSettings.from_json({"sise": 32})


# -- settings of several methods -------------------------------------------------------------------------------------

PAIR = ("vae", "pca")


def test_a_setting_goes_to_every_method_that_has_it():
    given = {"latent": 64, "components": 3, "seed": 5, "size": 32}
    assert settings_for_method("vae", given, PAIR) == {"latent": 64, "seed": 5, "size": 32}
    assert settings_for_method("pca", given, PAIR) == {"components": 3, "seed": 5, "size": 32}


def test_a_setting_with_a_method_goes_to_that_one():
    given = {"seed": 5, "vae.latent": 64, "pca.seed": 7}
    assert settings_for_method("vae", given, PAIR) == {"latent": 64, "seed": 5}
    assert settings_for_method("pca", given, PAIR) == {"seed": 7}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"latnet": 3}, "latent"),
        ({"ocsvm.nu": 0.1}, r"'ocsvm' is not among the methods compared \(vae, pca\)"),
        ({"pca.latent": 3}, "pca.*latent"),
    ],
)
def test_settings_that_no_method_has_are_refused(given: dict[str, Any], sentence: str):
    for method in PAIR:
        with pytest.raises(SettingsError, match=sentence):
            settings_for_method(method, given, PAIR)
