"""The battery over all methods of the registry, and the battery itself tried on wrong methods."""

from collections.abc import Callable
from functools import lru_cache
from textwrap import dedent
from typing import Any

import pytest
import wrong_methods as wrong

from normalcy import testing
from normalcy.errors import SettingsError
from normalcy.methods import METHODS, available, get
from normalcy.testing import CHECKS, ContractError, Trial, check_method, default_shapes

TINY: dict[str, dict[str, Any]] = {
    "adgan": {"steps": 20, "batch_size": 8, "latent": 8, "width": 4, "restarts": 2, "search_steps": 3},
    "alocc": {"steps": 20, "batch_size": 8, "latent": 8, "width": 4, "lr": 1e-3},
    "anogan": {"steps": 20, "batch_size": 8, "latent": 8, "width": 4, "search_steps": 20, "search_lr": 0.05},
    "autoencoder": {"steps": 30, "batch_size": 8, "width": 4, "latent": 8, "lr": 0.01},
    "cavga": {"steps": 40, "batch_size": 8, "latent": 3, "width": 4, "lr": 0.003},  # attention: see its docstring
    "cnn_dictionary": {"words": 20, "patches": 1000, "layer": 1},
    "dagmm": {"steps": 60, "batch_size": 16, "width": 4, "latent": 2, "components": 2, "lr": 0.005},
    "ddr_id": {"steps": 40, "batch_size": 8, "width": 4, "latent": 8, "lr": 0.003},
    "deep_geo": {"steps": 200, "batch_size": 32, "widen": 1, "lr": 0.003},
    "deep_if": {"trees": 30, "magnify": 2},
    "deep_svdd": {"steps": 40, "batch_size": 8, "width": 8, "lr": 0.003},
    "dpa": {
        "steps": 150,
        "batch_size": 16,
        "width": 8,
        "latent": 8,
        "blocks": 1,
        "lr": 0.01,
        "layers": (0,),
        "magnify": 2,
    },
    "dsebm": {"steps": 40, "batch_size": 8, "width": 4, "features": 16, "lr": 5e-3},
    "f_anogan": {"steps": 20, "batch_size": 8, "latent": 8, "width": 4, "critic_steps": 2},
    "ganomaly": {"steps": 40, "batch_size": 8, "latent": 8, "width": 4, "lr": 2e-3},
    "gpnd": {"steps": 6, "batch_size": 8, "width": 2, "latent": 4, "lr": 0.01},
    "lsr": {
        "steps": 120,
        "batch_size": 8,
        "codes": 16,
        "dimension": 4,
        "width": 8,
        "residuals": 1,
        "prior_width": 8,
        "prior_blocks": 1,
        "lr": 0.005,
        "prior_lr": 0.005,
        "halvings": 2,
        "local": False,
        "eta": "quantile",
        "quantile": 0.02,
        "score": "input",  # so little training is not enough for the paper's map
    },
    "oc_cnn": {"steps": 30, "batch_size": 16, "hidden": 16, "lr": 0.003},
    "oc_nn": {
        "steps": 80,
        "batch_size": 8,
        "width": 4,
        "latent": 8,
        "hidden": 8,
        "pretraining_lr": 0.01,
        "lr": 0.01,
        "activation": "linear",
        "score": "two_sided",  # the paper's score does not find the defect: see its docstring
    },
    "ocgan": {"steps": 40, "batch_size": 8, "latent": 6, "width": 4, "mining_steps": 2},
    "patchwise": {"patch": 8, "stride": 4},
    "piad": {"steps": 80, "batch_size": 8, "latent": 4, "width": 8, "layer": 0, "lr": 2e-3},
    "qspace_vae": {"steps": 40, "batch_size": 8, "hidden": (16,), "latent": 2, "memory": 500, "lr": 0.01},
    "rda": {"steps": 60, "batch_size": 8, "width": 4, "latent": 4, "rounds": 2, "lr": 0.01},
    "spatial_uae": {"steps": 40, "batch_size": 8, "width": 4, "latent": 2, "halvings": 3, "lr": 0.01},
    "texture_gmm": {"components": 3, "patches": 1000, "projections": 8, "levels": 2},
    "vae": {"steps": 20, "batch_size": 8, "width": 4, "latent": 4, "samples": 2, "lr": 0.01},
    "vae_attention": {
        "steps": 40,
        "batch_size": 8,
        "width": 4,
        "latent": 4,
        "lr": 0.005,
        "score": "reconstruction",  # attention passes on images; on volumes it needs a longer training
    },
    "vq_restoration": {
        "steps": 200,
        "batch_size": 8,
        "codes": 32,
        "dimension": 4,
        "width": 8,
        "residuals": 1,
        "prior_width": 8,
        "prior_blocks": 1,
        "dropout": 0.0,
        "copies": 3,
        "slices_per_step": 8,
        "lr": 0.005,
        "halvings": 2,
        "pixel_quantile": 0.95,
    },
}
"""Settings that make a method quick; the defaults where there are none."""


ENTRY_POINT_FILES = {
    "outside_methods.py": """
        from dataclasses import dataclass
        from wrong_methods import Honest, HonestSettings

        class Outside(Honest):
            "A method of another package. Source: this test."
            name = "outside"
    """,
    "outside-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n",
    "outside-1.0.dist-info/entry_points.txt": """
        [normalcy.methods]
        outside = outside_methods:Outside
        zscore = outside_methods:Outside
    """,
}


@lru_cache(maxsize=2)
def trial(name: str, shape: tuple[int, ...]) -> Trial:
    return Trial(get(name), TINY.get(name), shape)


def cases() -> list[Any]:
    return [
        pytest.param(name, shape, check, id=f"{name}-{'x'.join(map(str, shape))}-{check.__name__[6:]}")
        for name in METHODS
        for shape in default_shapes(get(name))
        for check in CHECKS
    ]


@pytest.mark.parametrize(("name", "shape", "check"), cases())
def test_contract(name: str, shape: tuple[int, ...], check: Callable[[Trial], None]):
    check(trial(name, shape))


def test_honest_method_passes():
    check_method(wrong.Honest)


@pytest.mark.parametrize(
    ("method", "check"),
    [
        (wrong.BatchMinMax, testing.check_batch_independence),
        (wrong.RunningMinMax, testing.check_batch_independence),
        (wrong.BatchNormInTraining, testing.check_batch_independence),
        (wrong.NeedsOneLayout, testing.check_batch_independence),
        (wrong.RunningBuffer, testing.check_scoring_changes_nothing),
        (wrong.RunningBatchNorm, testing.check_scoring_changes_nothing),
        (wrong.GlobalNoise, testing.check_scoring_changes_nothing),
        (wrong.NoisyScore, testing.check_scoring_changes_nothing),
        (wrong.ChangesImages, testing.check_scoring_changes_nothing),
        (wrong.StateInAttributes, testing.check_save_load),
        (wrong.RandomPart, testing.check_save_load),
        (wrong.SmallerIsStranger, testing.check_finds_defect),
        (wrong.MapUpsideDown, testing.check_finds_defect),
        (wrong.MapOfWrongShape, testing.check_shapes),
        (wrong.DoubleScores, testing.check_shapes),
        (wrong.NotFinite, testing.check_shapes),
        (wrong.CarriesGradient, testing.check_shapes),
        (wrong.UnseededFit, testing.check_same_seed),
        (wrong.SquareOnly, testing.check_oblong_images),
        (wrong.BreaksOnFlatImages, testing.check_poor_data),
        (wrong.CrashesOnFewImages, testing.check_poor_data),
        (wrong.CannotTravel, testing.check_processes),
        (wrong.ScoresUnfitted, testing.check_refuses),
        (wrong.SharedParameters, testing.check_stages),
        (wrong.NoLength, testing.check_stages),
        (wrong.KeepsTheScore, testing.check_scores_by_name),
        (wrong.ReservedWord, testing.check_settings),
        (wrong.SettingsNotFrozen, testing.check_settings),
        (wrong.UnknownDefaultScore, testing.check_settings),
    ],
    ids=lambda value: value.__name__,
)
def test_battery_catches(method: type[wrong.Honest], check: Callable[[Trial], None]):
    check(Trial(wrong.Honest))
    with pytest.raises(ContractError, match="honest"):
        check(Trial(method))


def test_battery_wants_a_source():
    silent = type("Silent", (wrong.Honest,), {"__module__": "nowhere", "__doc__": None})
    with pytest.raises(ContractError, match="docstring"):
        testing.check_documented(Trial(silent))


def test_batches_first_would_miss_a_running_range():
    """Why the battery scores single images before batches."""
    method = Trial(wrong.RunningMinMax).fitted()
    x = Trial(wrong.RunningMinMax).mixed
    batch = method.score(x).image
    assert all(method.score(image[None]).image == value for image, value in zip(x, batch))


def test_method_of_another_package(tmp_path, monkeypatch: pytest.MonkeyPatch):
    for name, text in ENTRY_POINT_FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    assert available()["outside"] == "outside_methods:Outside"
    check_method(get("outside"), shapes=[(1, 32, 32)])
    assert get("zscore").__module__ == "normalcy.methods.zscore", "other packages must not replace methods of normalcy"
    with pytest.raises(SettingsError, match="outside"):
        get("outsid")
