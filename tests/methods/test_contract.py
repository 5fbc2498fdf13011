"""The contract tests over all methods of the registry, themselves tried on wrong methods."""

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from textwrap import dedent
from typing import Any

import pytest
import wrong_methods as wrong

from normalcy import testing
from normalcy.errors import SettingsError
from normalcy.methods import METHODS, available, get
from normalcy.testing import CHECKS, ContractError, Trial, check_method, default_shapes


def contract_settings(name: str) -> dict[str, Any]:
    """Settings that make a method quick, from its own test; the defaults where it has none."""
    settings: dict[str, Any] = import_module(f"test_{name}").CONTRACT
    return settings


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
    return Trial(get(name), contract_settings(name), shape)


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
        (wrong.NotesInAttributes, testing.check_save_load),
        (wrong.NotesOfSeveralLines, testing.check_save_load),
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
        (wrong.KeepsItsWork, testing.check_threads),
        (wrong.SwitchesTheMode, testing.check_threads),
        (wrong.HooksItself, testing.check_threads),
        (wrong.NeedsGradients, testing.check_inference_mode),
        (wrong.SetsThreads, testing.check_global_generators),
        (wrong.ReseedsNumPy, testing.check_global_generators),
        (wrong.ScoresUnfitted, testing.check_refuses),
        (wrong.SharedParameters, testing.check_stages),
        (wrong.NoLength, testing.check_stages),
        (wrong.KeepsTheScore, testing.check_scores_by_name),
        (wrong.ReservedWord, testing.check_settings),
        (wrong.SettingsNotFrozen, testing.check_settings),
        (wrong.UnknownDefaultScore, testing.check_settings),
        (wrong.SettingWithoutMeaning, testing.check_documented),
    ],
    ids=lambda value: value.__name__,
)
def test_contract_tests_catch(method: type[wrong.Honest], check: Callable[[Trial], None]):
    check(Trial(wrong.Honest))
    with pytest.raises(ContractError, match="honest"):
        check(Trial(method))


def test_contract_tests_want_a_source():
    silent = type("Silent", (wrong.Honest,), {"__module__": "nowhere", "__doc__": None})
    with pytest.raises(ContractError, match="docstring"):
        testing.check_documented(Trial(silent))


def test_contract_tests_want_a_sentence_first():
    doc = "Title\n\nDistance to the mean image, after a pointless little network. Source: this test."
    headless = type("Headless", (wrong.Honest,), {"__module__": "nowhere", "__doc__": doc})
    with pytest.raises(ContractError, match="full stop, got 'Title'"):
        testing.check_documented(Trial(headless))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (wrong.WithoutFamily, "family must be one of reconstruction"),
        (wrong.WithoutReference, "reference must be the full citation"),
        (wrong.VagueMeaning, "not of what: lr"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_methods_of_normalcy_name_family_and_reference(
    method: type[wrong.Honest], message: str, monkeypatch: pytest.MonkeyPatch
):
    testing.check_documented(Trial(method))  # methods of other packages need neither
    monkeypatch.setattr(testing, "METHODS", {"honest": f"wrong_methods:{method.__name__}"})
    with pytest.raises(ContractError, match=message):
        testing.check_documented(Trial(method))


def test_batches_first_would_miss_a_running_range():
    """Why the contract tests score single images before batches."""
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
