"""Choosing settings by a few anomalies: a planted best setting is found, and the choice says how sure it is."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from runner import Run
from torch import Tensor, nn

from normalcy import methods
from normalcy.config import build, read_toml
from normalcy.data.open import as_dataset
from normalcy.data.splits import folds
from normalcy.data.synthetic import SYNTHETIC
from normalcy.detector import Detector
from normalcy.errors import DataError, NormalcyError, SettingsError, WriteError
from normalcy.method import EarlyStop, Method, Objective, Scores, Stage
from normalcy.methods.dpa import DPASettings
from normalcy.methods.pca import PCA
from normalcy.studies.select import Selection, Trial, select, synthetic_anomalies
from normalcy.training.fit import plan_steps


@dataclass(frozen=True)
class PlantedSettings:
    level: int = 0
    kind: Literal["plain", "sharp", "broken"] = "plain"


class Planted(Method):
    """Sees the anomalies less well the farther ``level`` is from 3, best with ``kind="sharp"``. Source: this test."""

    name = "planted"
    Settings = PlantedSettings
    search: ClassVar = {"level": (0, 1, 2, 3, 4), "kind": ("plain", "sharp")}
    settings: PlantedSettings

    def stages(self) -> list[Stage]:
        def prepare(batches: Any) -> None:
            if self.settings.kind == "broken":
                raise SettingsError("planted: broken.")

        return [Stage("nothing", prepare=prepare)]

    def _score(self, x: Tensor) -> Scores:
        spread = 0.05 * abs(self.settings.level - 3) + (0.0 if self.settings.kind == "sharp" else 0.03)
        noise = torch.sin(1e4 * x.flatten(1)[:, 0])  # the same for an image each time
        return Scores(image=x.flatten(1).mean(1) + spread * noise)


class Stopping(Planted):
    """Its weight is ``start`` and grows by 0.1 with each step; the loss on held-out images is lowest where it is 1."""

    name = "stopping"

    def __init__(self, settings: PlantedSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.weight = nn.Parameter(torch.zeros(()))
        self.watched = 0

    def stages(self) -> list[Stage]:
        def held_out(x: Tensor) -> dict[str, Tensor]:
            SEEN.append(len(x))
            return {"loss": (self.weight - 1.0 + 0.1 * self.settings.level).square() + 0 * x.mean()}

        up = Objective(lambda x: {"loss": -self.weight}, [self.weight], lr=0.1, betas=(0.0, 0.0), optimiser="sgd")
        return [Stage("up", [up], steps=30, batch_size=40, early_stop=EarlyStop(held_out, patience=3))]


@dataclass(frozen=True)
class TwoStageSettings(PlantedSettings):
    last_steps: int = 30


class TwoStage(Stopping):
    """The same after a stage that changes nothing; a setting of its own holds the length of the last stage, as in dpa."""

    name = "two_stage"
    Settings = TwoStageSettings
    length_setting: ClassVar = methods.get("dpa").length_setting

    def stages(self) -> list[Stage]:
        still = Objective(lambda x: {"loss": 0 * self.weight}, [self.weight], lr=0.1, optimiser="sgd", name="still")
        [up] = super().stages()
        steps = self.settings.last_steps  # type: ignore[attr-defined]
        return [Stage("before", [still], steps=10, batch_size=40), replace(up, steps=steps)]


SEEN: list[int] = []


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "stopping", f"{__name__}:Stopping")  # type: ignore[arg-type]
    monkeypatch.setitem(methods.METHODS, "two_stage", f"{__name__}:TwoStage")  # type: ignore[arg-type]
    monkeypatch.setitem(methods.METHODS, "planted", f"{__name__}:Planted")  # type: ignore[arg-type]


def _images(count: int, brighter: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.4 + brighter + 0.1 * rng.random((count, 8, 8))).astype(np.float32)


NORMAL, STRANGE = _images(60), _images(18, brighter=0.02, seed=1)


def test_finds_the_planted_best(tmp_path: Path) -> None:
    seen = []
    found = select(NORMAL, "planted", as_dataset(STRANGE), tmp_path, trials=10, on_trial=seen.append)
    assert found.settings == {"level": 3, "kind": "sharp"}
    assert len(found.trials) == len(seen) == 10  # the whole space
    assert found.trials[0].settings == {"level": 0, "kind": "plain"}
    assert found.best.aurocs.shape == (3, 3)
    gain = found.gain()
    assert gain is not None
    assert gain[0] > 0.2
    assert read_toml(tmp_path / "best.toml") == {"method": "planted", "level": 3, "kind": "sharp"}


def test_mean_auroc_is_that_of_fits_by_hand(tmp_path: Path) -> None:
    found = select(NORMAL, "pca", as_dataset(STRANGE), tmp_path, trials=1, space={"components": [3]})
    default = found.trials[0]
    data, strange = as_dataset(NORMAL), as_dataset(STRANGE)
    normal_parts, strange_parts = folds(data.cases, 3), folds(strange.cases, 3)
    for k, left_out in enumerate(normal_parts):
        rest = np.concatenate([part for j, part in enumerate(normal_parts) if j != k])
        detector = Detector("pca", calibration=0.0).fit(data.subset(rest))
        normal = detector.score(data.subset(left_out)).scores
        for j, part in enumerate(strange_parts):
            scores = detector.score(strange.subset(part)).scores
            above = (scores[:, None] > normal).mean() + 0.5 * (scores[:, None] == normal).mean()
            assert default.aurocs[k, j] == pytest.approx(above)


def test_mean_best_number_of_steps_of_the_best_setting_goes_to_the_final_training(tmp_path: Path) -> None:
    """Each fit watches a fifth of its 40 images and would stop 3 steps after the best one."""
    SEEN.clear()
    found = select(NORMAL, "stopping", as_dataset(STRANGE), tmp_path, trials=5, space={"level": range(5)})
    assert [trial.steps for trial in found.trials] == [(10 - trial.settings["level"],) * 3 for trial in found.trials]
    assert set(SEEN) == {8}
    assert found.settings == {"level": 3}
    assert read_toml(tmp_path / "best.toml") == {"method": "stopping", "level": 3, "steps": 7}
    assert json.loads((tmp_path / "select.json").read_text())["steps"] == 7


@pytest.mark.parametrize("fixed", [{"steps": 40}, {"epochs": 40}])
def test_the_length_found_is_that_of_the_last_stage_whatever_the_trials_had(
    fixed: dict[str, int], tmp_path: Path
) -> None:
    assert TwoStage.length_setting == "last_steps"
    select(NORMAL, "two_stage", as_dataset(STRANGE), tmp_path, trials=5, space={"level": range(5)}, settings=fixed)
    best = read_toml(tmp_path / "best.toml")
    assert best == {"method": "two_stage", "level": 3, "last_steps": 7}
    stages = TwoStage(TwoStageSettings(last_steps=best["last_steps"]), (1, 8, 8)).stages()
    assert plan_steps(stages, Detector(**best).train, len(NORMAL)) == [10, 7]


def test_layers_to_search_are_distinct_at_full_resolution() -> None:
    dpa = methods.get("dpa")
    assert {4, 8} < set(dpa.search["latent"])  # the authors' choices for Camelyon16 and five classes of CIFAR-10
    for side in (32, 64, 128):
        used = [dpa(DPASettings(layers=layers), (1, side, side)).layer(0) for layers in dpa.search["layers"]]  # type: ignore[attr-defined]
        assert used == [0, 1, 2, 3]


def test_a_large_space_is_searched_and_bad_settings_are_given_up(tmp_path: Path) -> None:
    space = {"level": list(range(3, 40)), "kind": ["plain", "sharp"]}
    found = select(NORMAL, "planted", as_dataset(STRANGE), tmp_path, trials=25, space=space)
    assert found.best.mean > 0.9
    states = {t.state for t in found.trials}
    assert states == {"complete", "given up"}
    assert all(len(t.aurocs) < 3 for t in found.trials if t.state == "given up")


def test_goes_on_where_it_was_and_refuses_other_data(tmp_path: Path) -> None:
    strange = as_dataset(STRANGE)
    first = select(NORMAL, "planted", strange, tmp_path, trials=3, space={"level": range(9)})
    more = select(NORMAL, "planted", strange, tmp_path, trials=5, space={"level": range(9)})
    assert [t.settings for t in more.trials[:3]] == [t.settings for t in first.trials]
    assert len(more.trials) == 5
    again = select(NORMAL, "planted", strange, tmp_path, trials=5, space={"level": range(9)})
    assert len(again.trials) == 5
    with pytest.raises(SettingsError, match="other anomalies"):
        select(NORMAL, "planted", as_dataset(STRANGE[:9]), tmp_path, trials=5, space={"level": range(9)})
    with pytest.raises(SettingsError, match="other choices"):
        select(NORMAL, "planted", strange, tmp_path, trials=5, space={"level": range(8)})


def test_workers_share_a_database(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    strange = as_dataset(STRANGE)
    select(NORMAL, "planted", strange, tmp_path / "one", trials=2, space={"level": range(9)}, storage=storage)
    found = select(NORMAL, "planted", strange, tmp_path / "two", trials=4, space={"level": range(9)}, storage=storage)
    assert len(found.trials) == 4
    assert not (tmp_path / "two" / "study.db").exists()


def test_failed_settings_are_listed_not_fatal(tmp_path: Path) -> None:
    space = {"kind": ["plain", "broken"]}
    found = select(NORMAL, "planted", as_dataset(STRANGE), tmp_path, trials=2, space=space)
    assert [t.state for t in found.trials] == ["complete", "failed"]
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert rows[-1]["state"] == "failed: planted: broken."
    with pytest.raises(NormalcyError, match="broken"):
        select(NORMAL, "planted", as_dataset(STRANGE), tmp_path / "b", trials=1, settings={"kind": "broken"})


def test_synthetic_anomalies_are_the_images_with_a_defect() -> None:
    images = (255 * _images(12)).astype(np.uint8)
    data = as_dataset(images)
    planted = synthetic_anomalies(data, seed=3)
    assert {item.label for item in planted.items} == {1}
    assert len({item.type for item in planted.items}) == len(SYNTHETIC)
    for i in range(12):
        assert planted.read(i).dtype == np.uint8
        share = float((planted.read(i) != data.read(i)).mean())
        assert 0 < share < 0.2


def test_synthetic_study_prefers_what_sees_defects(tmp_path: Path) -> None:
    found = select(NORMAL, "pca", "synthetic", tmp_path, trials=3, space={"components": [1, 40]})
    assert found.synthetic
    assert "synthetic anomalies" in found.summary()


def test_test_images_choose_nothing(tmp_path: Path) -> None:
    data = as_dataset(np.concatenate([NORMAL, STRANGE]), labels=[0] * 60 + [1] * 18)
    with pytest.raises(DataError, match="test data choose nothing"):
        select(data, "planted", data.select(label=1), tmp_path, trials=1)


OWN = Trial(0, {"level": 0}, "complete", np.array([[0.60, 0.70], [0.80, 0.70]]))  # mean 0.7


@pytest.mark.parametrize(
    ("better", "said"),
    [
        ([0.05, 0.06, 0.04, 0.05], ["+0.050 +- 0.008", "(more than its", "ahead in 4 of 4 folds", "AUROC 0.750"]),
        (
            [0.30, -0.10, 0.10, -0.10],
            ["+0.050 +- 0.191", "(less than its", "so the choice is not sure; ahead in 2 of 4"],
        ),
    ],
)
def test_choice_is_sure_where_it_is_ahead_by_more_than_the_folds_differ(better: list[float], said: list[str]) -> None:
    best = Trial(1, {"level": 3}, "complete", OWN.aurocs + np.reshape(better, (2, 2)))
    text = Selection("planted", [OWN, best], best, OWN, 60, 18, False).summary()
    for part in ["Best of 2 settings of planted", "4 folds of 60 normal images and 18 anomalies", *said]:
        assert part in text
    assert ("not sure" in text) == ("less" in said[1])


def test_choice_of_the_own_settings_and_without_them() -> None:
    kept = Selection("planted", [OWN], OWN, OWN, 60, 18, True).summary()
    assert kept.endswith("4 folds of 60 normal images and 18 synthetic anomalies; these are the method's own settings.")
    lost = Selection("planted", [OWN], OWN, None, 60, 18, False).summary()
    assert lost.endswith("18 anomalies; the method's own settings were not tried to the end.")


def test_choice_by_anomalies_that_are_normal_is_not_sure(tmp_path: Path) -> None:
    found = select(NORMAL, "planted", as_dataset(_images(18, seed=5)), tmp_path, trials=5)
    gain = found.gain()
    assert gain is not None
    assert found.best is not found.default
    assert gain[0] < gain[1]
    assert "so the choice is not sure" in found.summary()


def test_refusals(tmp_path: Path) -> None:
    strange = as_dataset(STRANGE)
    with pytest.raises(SettingsError, match="no setting 'levle'"):
        select(NORMAL, "planted", strange, tmp_path, space={"levle": [1]})
    with pytest.raises(SettingsError, match="whole number"):
        select(NORMAL, "planted", strange, tmp_path, space={"level": ["much"]})
    with pytest.raises(SettingsError, match="declares no settings"):
        select(NORMAL, "zscore", strange, tmp_path)
    with pytest.raises(SettingsError, match="at least 1"):
        select(NORMAL, "planted", strange, tmp_path, trials=0)
    with pytest.raises(DataError, match="at least 3"):
        select(NORMAL, "planted", strange.subset([0, 1]), tmp_path)


def test_folds_keep_cases_together() -> None:
    cases = [f"case {i // 4}" for i in range(40)]
    parts = folds(cases, 3, seed=1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(40))
    owners = [{cases[i] for i in part} for part in parts]
    assert not owners[0] & owners[1] | owners[0] & owners[2] | owners[1] & owners[2]
    assert max(map(len, parts)) - min(map(len, parts)) <= 4


def test_search_of_methods_is_of_their_own_words() -> None:
    assert "latent" in methods.get("dpa").search
    assert not PCA.search
    assert build(DPASettings, {"layers": methods.get("dpa").search["layers"][0]}, "dpa").layers == (0,)


def test_command(tmp_path: Path, run: Run) -> None:
    np.savez(tmp_path / "normal.npz", x_train=(255 * NORMAL).astype(np.uint8))
    np.savez(tmp_path / "strange.npz", x_train=(255 * STRANGE).astype(np.uint8))
    out = tmp_path / "out"
    given = ("select", tmp_path / "normal.npz", "--method", "pca", "--anomalies", tmp_path / "strange.npz")
    assert "trial 0" in run.good(*given, "--out", out, "--trials", 3, "--try", "components=2|20")
    assert {p.name for p in out.iterdir()} == {"study.db", "trials.csv", "select.json", "best.toml", "report.html"}
    assert json.loads((out / "select.json").read_text())["trials"] == 3
    assert "Settings of pca" in (out / "report.html").read_text()
    Detector("pca", **{k: v for k, v in read_toml(out / "best.toml").items() if k != "method"})


def test_a_database_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("something else")
    with pytest.raises(WriteError, match=r"the study cannot be kept \(.*not a database.*\); free some space"):
        select(NORMAL, "pca", "synthetic", tmp_path, trials=1, space={"components": [1]})
