"""metrics.json and compare.json: what is written is read, and no damage ends in anything but a DataError."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from example_mutations import assert_one_sentence, deep, mutations, outcome

from normalcy import DataError
from normalcy.metrics import Interval as Found
from normalcy.report import write_comparison, write_report
from normalcy.results.comparison import COMPARISON, Compared, ComparedData, Comparison, Paired, read_comparison
from normalcy.results.evaluate import evaluate
from normalcy.results.metrics import AUPRO, Interval, Metrics, Sensitivity, read_metrics
from normalcy.results.schema import dumps, from_json, to_json

OLD = Path(__file__).parents[1] / "fixtures" / "version_0" / "vq-results"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with labels, masks, maps and metrics."""
    out = tmp_path_factory.mktemp("results") / "R"
    shutil.copytree(OLD, out)
    evaluate(out, resamples=50)
    return out


def test_an_interval_keeps_its_kind() -> None:
    found = Found(0.5, 0.4, 0.6, 0.95, 0.01)
    assert Interval.of(found) == Interval(0.5, 0.4, 0.6, 0.01)
    assert AUPRO.of(found, 0.55, limit=0.1) == AUPRO(0.55, 0.4, 0.6, 0.01, 0.1)
    assert Sensitivity.of(found, false_per_image=2.0).false_per_image == 2.0


def test_what_is_written_is_read(folder: Path) -> None:
    found = evaluate(folder, resamples=50)
    assert read_metrics(folder) == found
    tree = json.loads((folder / "metrics.json").read_text())
    assert "error" not in tree["image"]["auroc"], "only where binning may have moved something"
    assert "error" in tree["pixel"]["aupro"]


def test_metrics_of_the_version_before_are_those_of_today(folder: Path) -> None:
    """The same numbers, under the names of today where they changed."""
    old = read_metrics(OLD)
    assert old.image.at_threshold is not None
    assert (old.image.at_threshold.false_positives, old.image.at_threshold.true_positives) == (1, 0)
    assert old.patch is not None
    assert old.patch.fraction == 0.05
    again = folder.with_name("again")
    shutil.copytree(OLD, again)
    new = evaluate(again)
    assert to_json(new) == to_json(old)


def test_no_damage_of_metrics_json_ends_in_anything_but_a_data_error(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "metrics.json", tmp_path)
    path = tmp_path / "metrics.json"
    refused = 0
    for content in mutations(path.read_text(), 400, seed=1):
        path.write_text(content)
        found = outcome(lambda: read_metrics(tmp_path))
        if isinstance(found, DataError):
            refused += 1
            assert_one_sentence(found, path)
        else:  # what is read can be written, and is then the same
            assert from_json(Metrics, to_json(found), "again", "no") == found
    assert refused > 150


def test_no_damage_breaks_the_page(folder: Path, tmp_path: Path) -> None:
    """Of what is still read, a page can be made."""
    shutil.copytree(folder, tmp_path / "R")
    made = 0
    for name, seed in (("metrics.json", 2), ("run.json", 3)):
        path = tmp_path / "R" / name
        whole = path.read_text()
        for content in mutations(whole, 15, seed, most=1):
            path.write_text(content)
            found = outcome(lambda: write_report(tmp_path / "R"))
            if isinstance(found, DataError):
                assert_one_sentence(found, path)
            else:
                made += 1
        path.write_text(whole)
    assert made > 4


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"hit": 2', '"hit": 7', r"pixel\.regions: expected at most 2 regions hit"),
        ('"fpr": [', '"fpr": [0.5,', r"curves\.\w+: expected two lists of the same length"),
        ('"normal": 3', '"normal": 1e999', r"image\.normal: expected a whole number"),
        ('"limit": 0.3', '"limit": -1', r"pixel\.aupro\.limit: expected a number in \[0, 1\], got -1"),
        ('"notes": [', '"notes": [7, ', r"notes\.0: expected text, got 7"),
    ],
)
def test_impossible_numbers_are_named(folder: Path, tmp_path: Path, old: str, new: str, says: str) -> None:
    text = json.dumps(json.loads((folder / "metrics.json").read_text()))
    assert old in text
    (tmp_path / "metrics.json").write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=says) as caught:
        read_metrics(tmp_path)
    assert "evaluate again" in str(caught.value)


def test_nesting_without_end(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(deep(json.loads((folder / "metrics.json").read_text()), "image", "auroc"))
    with pytest.raises(DataError, match=r"metrics\.json: (is not valid JSON|image\.auroc)"):
        read_metrics(tmp_path)


# -- comparisons -----------------------------------------------------------------------------------------------------

COMPARED = Comparison(
    ComparedData("parts", "parts", "0f", 8),
    (
        Compared("a", {"size": 8}, Interval(0.8, 0.7, 0.9), folder="a", against_best=Paired("b", -0.1, -0.2, 0.0, 0.04)),
        Compared("b", {}, Interval(0.9, 0.8, 1.0), aupro=AUPRO(0.5), folder="b"),
        Compared("c", {}, None, folder="../../secret"),
    ),
)  # fmt: skip


def test_a_comparison_is_read_and_ranked(tmp_path: Path) -> None:
    (tmp_path / COMPARISON).write_bytes(dumps(COMPARED))
    found = read_comparison(tmp_path)
    assert found == COMPARED
    assert [one.name for one in found.ranked()] == ["b", "a", "c"]


def test_a_comparison_reads_nothing_outside_its_folder(tmp_path: Path, folder: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    methods = (Compared("x", {}, Interval(0.5), folder="../R"), Compared("y", {}, Interval(0.6), folder=str(folder)))
    (inside / COMPARISON).write_bytes(dumps(Comparison(ComparedData("parts"), methods)))
    shutil.copytree(folder, tmp_path / "R")
    (tmp_path / "R/report.html").write_text("x")
    page = write_comparison(inside).read_text()
    assert "ROC curve" not in page
    assert "<a " not in page


def test_no_damage_of_compare_json_breaks_the_page(tmp_path: Path) -> None:
    path = tmp_path / COMPARISON
    for content in mutations(dumps(COMPARED).decode(), 200, seed=4):
        path.write_text(content)
        found = outcome(lambda: write_comparison(tmp_path))
        if isinstance(found, DataError):
            assert_one_sentence(found, path)
