"""A results folder in memory: columns, base names of files, folders without them, and damaged tables."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from example_parts import save, texture, write_table

from normalcy import DataError, Detector, open_data
from normalcy.results.folder import MAPS, read_results
from normalcy.results.inputs import reopen
from normalcy.results.predict import score_into
from normalcy.results.run import COLUMNS


@pytest.fixture
def folder(detector: Detector, parts: Path) -> Path:
    score_into(detector, open_data(write_table(parts / "t.csv", f"{parts}/img/", f"{parts}/msk/")), parts / "R")
    return parts / "R"


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "scores.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(folder: Path, rows: list[dict[str, str]]) -> None:
    with open(folder / "scores.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def test_columns(folder: Path) -> None:
    rows, read = rows_of(folder), read_results(folder)
    assert list(rows[0]) == list(COLUMNS)
    assert COLUMNS[-1] == "file"
    assert read.paths == [row["path"] for row in rows]
    assert read.files == [row["file"] for row in rows]
    assert read.labels.tolist() == [0] * 4 + [1] * 4
    np.testing.assert_array_equal(read.scores, [float(row["score"]) for row in rows])
    np.testing.assert_array_equal(read.p_values, [float(row["p_value"]) for row in rows])
    assert read.run.data.count == len(read) == 8
    assert read.metrics is None


def test_without_the_column_a_file_is_called_as_its_image(folder: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "file"} for row in rows_of(folder)]
    for row in rows:
        row["path"] = Path(row["path"]).name
        (folder / "maps" / f"{row['path']}.npy").write_bytes(b"x")
    write_rows(folder, rows)
    read = read_results(folder)
    assert read.files == read.paths
    assert read.file("maps", 0, *MAPS) == folder / "maps" / "n0.png.npy"


def test_base_names_cannot_leave_the_folder(folder: Path, tmp_path: Path) -> None:
    rows = rows_of(folder)
    np.save(tmp_path / "secret.npy", np.zeros((2, 2)))
    for row, file in zip(rows, ("../../secret", str(tmp_path / "secret"), "x" * 400, "nul\0", "..", ".", "/", "")):
        row["file"] = file
    write_rows(folder, rows)
    read = read_results(folder)
    assert [read.file("maps", i, ".npy") for i in range(8)] == [None] * 8


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("score", "1e308", "line 2 has the score 1e+308, expected a number from -1e+100 to 1e+100"),
        ("score", "-1e200", "line 2 has the score"),
        ("score", "much", "line 2 has the score 'much', expected a number"),
        ("p_value", "1.5", "line 2 has the p_value 1.5, expected a number from 0 to 1"),
        ("p_value", "-1", "line 2 has the p_value"),
    ],
)
def test_numbers_that_cannot_be_are_named(folder: Path, column: str, value: str, says: str) -> None:
    rows = rows_of(folder)
    rows[0][column] = value
    write_rows(folder, rows)
    with pytest.raises(DataError) as caught:
        read_results(folder)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{folder / 'scores.csv'}: ")


def test_scores_that_are_not_finite_are_kept_to_be_counted(folder: Path) -> None:
    rows = rows_of(folder)
    rows[0]["score"], rows[1]["score"], rows[2]["score"] = "nan", "inf", "9" * 400
    write_rows(folder, rows)
    assert np.isfinite(read_results(folder).scores).sum() == 5


def test_cells_are_no_formulas_and_are_read_back(detector: Detector, parts: Path) -> None:
    """Of spreadsheets; for normalcy they mean what they meant."""
    names = ["=cmd|' calc'!A0.png", "@x.png", "+1.png", "-n.png", "'=y.png", "'z.png", "-1e5.png"]
    for k, name in enumerate(names):
        save(parts / "odd" / name, texture(k))
    with open(parts / "odd.csv", "w", newline="", encoding="utf-8") as file:
        rows = [[f"odd/{name}", 1, name, name] for name in names]
        csv.writer(file).writerows([["path", "label", "type", "case"], *rows])
    score_into(detector, open_data(parts / "odd.csv"), parts / "R", spec=str(parts / "odd.csv"))
    score_into(detector, open_data(parts / "odd"), parts / "R2", spec=str(parts / "odd"))
    for folder in (parts / "R", parts / "R2"):
        with open(folder / "scores.csv", newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell[:1] in "=+@\t\r" and cell]
        assert not [cell for cell in cells if cell.startswith("-") and not cell[1:].replace(".", "").isdigit()]
        assert reopen(read_results(folder))[0] is not None
    assert read_results(parts / "R").types == names
    assert read_results(parts / "R2").paths == sorted(names)
