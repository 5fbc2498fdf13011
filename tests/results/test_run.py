"""run.json: what is written is read, folders of earlier versions too, and no damage ends in anything but a DataError."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from example_mutations import assert_one_sentence, deep, mutations, outcome
from example_parts import texture, write_table

from normalcy import DataError, Detector, SettingsError, open_data
from normalcy.calibrate import Decision
from normalcy.data.open import as_dataset
from normalcy.results.predict import finish_scores, score_into
from normalcy.results.run import CASE_COLUMNS, COLUMNS, Run, describe, read_run
from normalcy.results.schema import from_json, to_json
from normalcy.results.writer import Writer

OLD = Path(__file__).parents[1] / "fixtures" / "version_0" / "vq-results"


def test_what_is_written_is_read(detector: Detector, parts: Path) -> None:
    table = write_table(parts / "t.csv", "img/", "msk/")
    run = score_into(detector, open_data(table), parts / "R", spec=str(table), split="test")
    assert read_run(parts / "R") == run
    assert (run.data.count, run.data.split, run.data.spec, run.data.has_masks) == (8, "test", str(table), True)
    assert run.model.method == "pca"
    assert run.model.settings["components"] == 4
    assert run.model.shape == (1, 24, 24)
    assert run.model.fit is not None
    assert run.model.fit.device == "cpu"
    assert run.calibration is not None
    decision = detector.decide()
    assert decision is not None
    assert (run.calibration.rule, run.calibration.threshold) == ("false_alarms", decision.threshold)
    assert run.calibration.count == detector.facts["data"]["held_out"]
    assert run.map_range == run.calibration.map_range
    assert run.audit is None
    assert "audit" not in json.loads((parts / "R/run.json").read_text())


def test_a_run_of_the_version_before(tmp_path: Path) -> None:
    run = read_run(OLD)
    old = json.loads((OLD / "run.json").read_text())
    assert run.model.settings == old["model"]["words"]
    assert run.calibration is not None
    assert run.calibration.threshold == old["calibration"]["threshold"]
    assert run.data.count == 5
    audit = {"folds": 1, "rule": "share", "share": 0.02, "weight": 0.5, "with_sparse_part": 0.03, "rounds": 4, "constraint": 0.01,
             "path": [{"weight": 0.5, "with_sparse_part": 0.03, "rounds": 4, "constraint": 0.01}]}  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps({**old, "audit": audit}))
    again = read_run(tmp_path).audit
    assert again is not None
    assert (again.fraction, again.weight, again.path[0].with_sparse_part) == (0.02, 0.5, 0.03)


def test_thresholds_that_flag_nothing_are_null() -> None:
    few = Detector("zscore", false_alarms=0.01).fit(np.stack([texture(seed) for seed in range(60)]))
    decision = few.decide()
    assert decision == Decision("false_alarms", float("inf"), decision.pixel_threshold if decision else None, 0.01)
    data = as_dataset(texture(100)[None])
    run = describe(few, data, decision)
    assert run.calibration is not None
    assert run.calibration.threshold is None
    assert describe(few, data, tile=True).calibration is None, "thresholds of whole images do not hold for tiles"
    with pytest.raises(SettingsError, match="not fitted"):
        describe(Detector("zscore"), data)


def test_a_case_has_the_score_of_its_most_anomalous_image(tmp_path: Path) -> None:
    rows = ["1,p,0.3,0.02,0,0", "2,q,0.5,,,", "3,p,0.9,0.4,1,", "4,q,0.5,,,", "5,p,-1.0,,,1", "6,r,1e-5,0.7,0,0"]
    (tmp_path / "scores.csv").write_text("\n".join([",".join(COLUMNS), *(f"{row},,,{row[0]}" for row in rows)]) + "\n")
    finish_scores(Writer(tmp_path), len(rows))
    found = [",".join(CASE_COLUMNS), "p,3,0.9,0.04,1,1", "q,2,0.5,,,", "r,1,1e-05,0.7,0,0"]
    assert (tmp_path / "cases.csv").read_text().splitlines() == found


# -- damage ----------------------------------------------------------------------------------------------------------


def test_no_damage_of_run_json_ends_in_anything_but_a_data_error(detector: Detector, parts: Path) -> None:
    table = write_table(parts / "t.csv", "img/", "msk/")
    score_into(detector, open_data(table), parts / "R", spec=str(table))
    path = parts / "R" / "run.json"
    refused = 0
    for content in mutations(path.read_text(), 400, seed=0):
        path.write_text(content)
        found = outcome(lambda: read_run(parts / "R"))
        if isinstance(found, DataError):
            refused += 1
            assert_one_sentence(found, path)
        else:  # what is read can be written, and is then the same
            assert from_json(Run, to_json(found), "again", "no") == found
    assert refused > 150


def test_deep_and_huge_values(tmp_path: Path) -> None:
    old = json.loads((OLD / "run.json").read_text())
    for content in (
        deep(old, "data", "name"),
        deep(old, "model", "words"),
        '{"format": 1, "model": ' + "[" * 10_000 + "]" * 10_000 + "}",
    ):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(DataError, match=r"run\.json"):
            read_run(tmp_path)
