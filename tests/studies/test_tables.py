"""Tables as TOML files: keys of today and of earlier versions, cells and their files, and damaged records of cells."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from normalcy.errors import SettingsError
from normalcy.results.schema import FORMAT, dumps, load
from normalcy.studies.reproduce import Reproduced, cells_as_text, markdown, tabulate
from normalcy.studies.tables import cells_of, read_table

TOML = """
paper = "Somebody 2020"
number = 1
shows = "Two columns"
protocol = "As they are."
seeds = 2
settings = { calibration = 0 }

[columns.A]
data = "a.npz"
settings = { size = 16 }
[columns.B]
data = "b.npz"

[[rows]]
name = "PCA"
method = "pca"
settings = { components = 2 }
settings_on = { B = { components = 3 } }
published = { A = 90.0, B = 80.5 }

[quick]
settings = { components = 1 }
settings_of = { PCA = { components = 1 } }
"""


def write(path: Path, text: str = TOML) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def record(auroc: float, **more: object) -> str:
    whole = {"format": FORMAT, "auroc": auroc, "low": auroc, "high": auroc, "error": 0.01, "score_seconds": 2.0,
             "fit": {"seconds": 3.0, "steps": 0, "precision": "32-true", "device": "cpu"}, "hardware": {"processor": "P"},
             "versions": {"normalcy": "0", "torch": "2"}, "commit": "c", **more}  # fmt: skip
    return json.dumps(whole)


def test_later_settings_win(tmp_path: Path) -> None:
    cells = cells_of(read_table(write(tmp_path / "t.toml")))
    assert {(cell.column, cell.given["components"], cell.given.get("size")) for cell in cells} == {
        ("A", 2, 16),
        ("B", 3, None),
    }
    assert all(cell.given["calibration"] == 0 for cell in cells)


def test_keys_of_earlier_versions_are_the_same_cells(tmp_path: Path) -> None:
    old = TOML.replace("settings_on", "words_on").replace("settings_of", "words_of").replace("settings =", "words =")
    assert "settings" not in old
    before, after = (cells_of(read_table(write(tmp_path / f"{k}.toml", text))) for k, text in enumerate((old, TOML)))
    assert [cell.file for cell in before] == [cell.file for cell in after]


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("ddr_id/table-2", []),
        ("dpa/table-3", []),
        ("vq_restoration/mood", ["maps, smallest area None"]),
        ("lsr/table-4", ["maps, smallest area 0.001"]),
    ],
)
def test_the_name_of_a_cell_says_whether_there_are_maps(name: str, maps: list[str]) -> None:
    """Another rule would leave the files of finished cells without a cell. All rows of a table share it, whatever they show."""
    for cell in cells_of(read_table(name)):
        parts = json.dumps([cell.fit_key, cell.score, cell.test_images, *maps])
        assert cell.file.stem.endswith(f"-{hashlib.sha256(parts.encode()).hexdigest()[:12]}")


def test_metrics_of_scores_share_a_cell(tmp_path: Path) -> None:
    tables = [
        read_table(write(tmp_path / f"{metric}.toml", TOML.replace("seeds = 2", f'seeds = 2\nmetric = "{metric}"')))
        for metric in ("image_auroc", "image_ap", "pixel_ap")
    ]
    auroc, ap, pixels = ([cell.file for cell in cells_of(table)] for table in tables)
    assert auroc == ap
    assert not {*ap} & {*pixels}
    assert {cell.metric for cell in cells_of(tables[1])} == {"image_ap"}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("number = 1", "", "needs the keys number"),
        ('data = "b.npz"', "", "needs the keys data"),
        ("settings_on", "settngs_on", "did you mean 'settings_on'"),
        ("{ B = { components = 3 } }", "{ C = { components = 3 } }", "no column 'C'; available: A, B"),
        ("settings_of = { PCA", "settings_of = { KDE", "no row 'KDE'"),
    ],
)
def test_faults_are_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        read_table(write(tmp_path / "t.toml", TOML.replace(old, new, 1)))


def test_what_is_tabulated_is_read_back(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.toml"))
    cells = [cell for cell in cells_of(table) if cell.column == "A"]
    for cell, auroc in zip(cells, (0.9, 0.92)):
        (tmp_path / cell.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / cell.file).write_text(record(auroc, seed=cell.seed))
    found = tabulate(table, tmp_path)
    line, empty = found.lines
    assert line.measured is not None
    assert (line.measured.value, line.measured.over, line.difference) == (91.0, "seeds", 1.0)
    assert (line.cells.done, line.cells.of, line.cells.seconds) == (2, 2, 10.0)
    assert (empty.measured, empty.difference, empty.cells.done) == (None, None, 0)
    assert (found.hardware, found.commits, found.seeds) == (("P",), ("c",), (0, 1))
    assert cells_as_text(line) == ["PCA", "A", "90.0", "90.0", "91.0 [78.3, 100.0]", "+1.0", "2/2"]
    assert cells_as_text(empty) == ["PCA", "B", "80.5", "–", "–", "–", "0/2"]
    assert "| PCA | A | 90.0 | 90.0 | 91.0 [78.3, 100.0] | +1.0 | 2/2 |" in markdown(found)
    (tmp_path / "t.json").write_bytes(dumps(found))
    assert load(Reproduced, tmp_path / "t.json", "again") == found


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 9}', record(1.5), record(float("nan")), record(0.9, fit=3), record(0.9, metrics=[])],
)
def test_a_damaged_record_is_no_cell(tmp_path: Path, content: str) -> None:
    """It is run again."""
    table = read_table(write(tmp_path / "t.toml"))
    cell = cells_of(table)[0]
    (tmp_path / cell.file).parent.mkdir(parents=True)
    (tmp_path / cell.file).write_text(content)
    assert [line.cells.done for line in tabulate(table, tmp_path).lines] == [0, 0]
