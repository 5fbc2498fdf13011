"""Parquet parts beside scores.csv: the same results as without them, in bounded memory, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from example_parts import MASK, save, texture

from normalcy import DataError, Detector, open_data
from normalcy.errors import NormalcyWarning
from normalcy.report import write_report
from normalcy.results import columns, inputs, parts, shards
from normalcy.results.columns import Kinds, Places, Texts
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import read_results, read_rows_of
from normalcy.results.predict import finish_scores, score_into
from normalcy.results.run import COLUMNS, Model, Run, Scored, Shard, Thresholds
from normalcy.results.schema import dumps
from normalcy.results.shards import merge
from normalcy.results.writer import Writer

ODD = ["=sum(1).png", "ä, ö.png", "日本/1.png", 'a "quoted"\nname.png', "'x.png", " x .png"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts from 11 rows on, of three blocks of 4 rows."""
    monkeypatch.setattr(parts, "ALONE", 10)
    monkeypatch.setattr(parts, "BLOCKS", 3)
    for module in (columns, parts):
        monkeypatch.setattr(module, "ROWS", 4)
    monkeypatch.setattr(columns.read_rows, "__defaults__", (4,))
    monkeypatch.setattr(shards, "RANGE", 5)
    monkeypatch.setattr(inputs, "ALONE", 10**6)


def write_scores(folder: Path, count: int, cases: int = 0) -> None:
    """A results folder with scores of ``count`` images, of ``cases`` cases, without maps."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    kinds = ["", "crack", "scratch, deep", "Ä"]
    with Writer(folder).table("scores.csv", COLUMNS) as add:
        for i in range(count):
            kind = int(rng.integers(1, 4)) if rng.random() < 0.2 else 0
            score = float(np.round(rng.normal() + 2 * (kind > 0), 2))  # with ties
            path = ODD[i] if i < len(ODD) else f"line-{i % 7}/{i:07d}.png"
            case = f"patient {i % cases}" if cases else path
            p = "" if i == 3 else repr(float(rng.integers(1, 100)) / 100)
            label = "" if i % 11 == 0 else int(kind > 0)
            add((path, case, repr(score), p, int(score > 1), label, kinds[kind], "test", f"{i}.png"))
    finish_scores(Writer(folder), count)
    limits = Thresholds(count=99, threshold=1.0, rule="false_alarms", false_alarms=0.05)
    (folder / "run.json").write_bytes(dumps(Run(Model("pca"), Scored("line", count=count), limits)))


def both(tmp_path: Path, count: int = 100, cases: int = 0) -> tuple[Path, Path]:
    """The same results without parts and with them."""
    write_scores(tmp_path / "with", count, cases)
    shutil.copytree(tmp_path / "with", tmp_path / "without")
    shutil.rmtree(tmp_path / "without" / "scores")
    return tmp_path / "without", tmp_path / "with"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    return text


# -- the same as without -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("cases", [0, 30])
def test_the_same_columns_metrics_and_report(tmp_path: Path, cases: int):
    csv, parquet = both(tmp_path, cases=cases)
    assert [name for name in names(parquet) if name.startswith("scores/")] == [
        f"scores/part-{k:05d}.parquet" for k in range(9)
    ]
    one, other = read_rows_of(csv), read_rows_of(parquet)
    for name, values in vars(one).items():
        same = getattr(other, name)
        if isinstance(values, np.ndarray):
            np.testing.assert_array_equal(values, same)
            assert values.dtype == same.dtype
        else:
            assert list(values) == list(same)
            assert values == same
    assert list(other.paths)[: len(ODD)] == ODD
    for folder in (csv, parquet):
        evaluate(folder, resamples=100)
        write_report(folder)
    assert (csv / "metrics.json").read_bytes() == (parquet / "metrics.json").read_bytes()
    assert (csv / "report.html").read_text().replace(str(csv), "") == (parquet / "report.html").read_text().replace(
        str(parquet), ""
    )
    assert (json.loads((csv / "metrics.json").read_text())["case"] is None) == (cases == 0)


@pytest.mark.usefixtures("small")
def test_the_same_labels_by_review(tmp_path: Path):
    csv, parquet = both(tmp_path)
    table = "path,label,type\n" + "".join(f"line-{i % 7}/{i:07d}.png,{i % 2},dent\n" for i in range(10, 90))
    (tmp_path / "labels.csv").write_text(table + "elsewhere.png,1,\n")
    found = [evaluate(folder, labels=tmp_path / "labels.csv", resamples=50) for folder in (csv, parquet)]
    assert found[0] == found[1]
    assert found[0].image.normal == found[0].image.anomalous == 40
    assert list(found[0].types) == ["dent"]


@pytest.mark.usefixtures("small")
def test_parquet_is_read_by_others_as_the_table(tmp_path: Path):
    write_scores(tmp_path / "R", 30)
    table = pyarrow.parquet.read_table(tmp_path / "R" / "scores").to_pydict()
    read = read_results(tmp_path / "R")
    assert list(table) == list(COLUMNS)
    assert table["path"] == list(read.paths)
    assert table["score"] == read.scores.tolist()
    assert table["p_value"][3] is None
    assert [-1 if label is None else label for label in table["label"]] == read.labels.tolist()


def test_no_parts_up_to_a_million_rows(tmp_path: Path):
    assert parts.ALONE == 1_000_000
    write_scores(tmp_path / "R", 30)
    assert names(tmp_path / "R") == ["run.json", "scores.csv"]


@pytest.mark.usefixtures("small")
def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_scores(tmp_path / "R", 30)
    rows = list(read_rows_of(tmp_path / "R").paths)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert list(read_rows_of(tmp_path / "R").paths) == rows
    with pytest.warns(NormalcyWarning, match=r'30 rows and no Parquet parts.*pip install "normalcy\[parquet\]"'):
        write_scores(tmp_path / "R2", 30)
    assert names(tmp_path / "R2") == ["run.json", "scores.csv"]
    assert list(read_rows_of(tmp_path / "R2").paths) == rows


@pytest.mark.usefixtures("small")
def test_a_million_inputs_are_not_opened_unasked(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for k in range(12):
        save(tmp_path / "img" / f"{k:02d}.png", texture(k))
    score_into(detector, open_data(str(tmp_path / "img")), tmp_path / "R", spec=str(tmp_path / "img"))
    read = read_results(tmp_path / "R")
    assert inputs.reopen(read)[0] is not None
    monkeypatch.setattr(inputs, "ALONE", 10)
    data, why = inputs.reopen(read)
    assert data is None
    assert "12 images are not compared with their fingerprint unasked" in why
    assert "Inputs are not shown" in write_report(tmp_path / "R").read_text()
    page = write_report(tmp_path / "R", open_data(str(tmp_path / "img"))).read_text()
    assert "Inputs are not shown" not in page


# -- shards and killed runs --------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """26 images, six with a defect and its mask, some of one case, one that cannot be read; and their table."""
    rows = ["path,label,mask,case"]
    for k in range(26):
        save(tmp_path / "img" / f"{k:02d}.png", texture(k, defect=k < 6))
        save(tmp_path / "msk" / f"{k:02d}.png", MASK)
        rows.append(
            f"img/{k:02d}.png,{int(k < 6)},{f'msk/{k:02d}.png' if k < 6 else ''},case {k // 2 if k < 10 else k}"
        )
    (tmp_path / "img" / "07.png").write_bytes(b"no image")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "table.csv"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [2, 5])
def test_merged_shards_with_parts_are_one_run(images: Path, tmp_path: Path, count: int):
    exact = Detector("zscore").fit(np.stack([texture(seed) for seed in range(60)]))
    data = open_data(str(images))
    score_into(exact, data, tmp_path / "one")
    made = []
    for k in range(1, count + 1):
        made.append(tmp_path / f"shard-{k}")
        score_into(exact, data, made[-1], shard=Shard(k, count))
    merge(made, tmp_path / "all")
    assert "scores/part-00002.parquet" in names(tmp_path / "one")
    assert any((folder / "scores").exists() for folder in made) == (count == 2)
    assert names(tmp_path / "all") == names(tmp_path / "one")
    for name in names(tmp_path / "one"):
        if name != "run.json":
            assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert evaluate(tmp_path / "all") == evaluate(tmp_path / "one")


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_shards_with_other_rows_than_they_scored(detector: Detector, images: Path, tmp_path: Path, change: str):
    data = open_data(str(images))
    made = [tmp_path / f"shard-{k}" for k in (1, 2)]
    for k, folder in enumerate(made, start=1):
        score_into(detector, data, folder, shard=Shard(k, 2))
    for folder in made:  # the last one, too
        table = folder / "scores.csv"
        whole = table.read_text()
        lines = whole.splitlines(keepends=True)
        table.write_text("".join([*lines, lines[-1]] if change == "more" else lines[:-1]))
        count = len(lines) - 1
        got = "more" if change == "more" else count - 1
        with pytest.raises(DataError, match=rf"scores\.csv: expected {count} rows, got {got}; score this shard again"):
            merge(made, tmp_path / "all")
        table.write_text(whole)
    assert not (tmp_path / "all").exists()


_KILLED = """
import os, signal, sys
import numpy as np
import pyarrow.parquet
from pathlib import Path
from normalcy import Detector, open_data
from normalcy.results import columns, parts
from normalcy.results.predict import score_into
from normalcy.results.shards import merge
parts.ALONE, parts.BLOCKS, parts.ROWS, columns.ROWS = 10, 3, 4, 4
columns.read_rows.__defaults__ = (4,)
wrote = []
class Killed(pyarrow.parquet.ParquetWriter):
    def write_table(self, *args, **options):
        super().write_table(*args, **options)
        wrote.append(1)
        if len(wrote) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
pyarrow.parquet.ParquetWriter = Killed
root = Path(sys.argv[1])
if sys.argv[2] == "score":
    model = np.load(root / "train.npy")
    score_into(Detector("zscore").fit(model), open_data(str(root / "table.csv")), root / "R")
else:
    merge([root / "shard-1", root / "shard-2"], root / "R")
"""


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("command", ["score", "merge"])
def test_killed_while_a_part_is_written(images: Path, tmp_path: Path, command: str):
    """No folder appears; the next run removes what was left, and has no row twice or missing."""
    train = np.stack([texture(seed) for seed in range(60)])
    np.save(tmp_path / "train.npy", train)
    exact, data = Detector("zscore").fit(train), open_data(str(images))
    for k in (1, 2):
        score_into(exact, data, tmp_path / f"shard-{k}", shard=Shard(k, 2))
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path), command], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "R").exists()
    left = [path for path in tmp_path.glob(".R.partial-*/scores/*") if path.is_file()]
    assert len(left) == 2  # a whole part, and one that was cut off
    if command == "score":
        score_into(exact, data, tmp_path / "R")
    else:
        merge([tmp_path / "shard-1", tmp_path / "shard-2"], tmp_path / "R")
    assert not list(tmp_path.glob(".R.*"))
    assert list(read_rows_of(tmp_path / "R").paths) == [f"img/{k:02d}.png" for k in range(26) if k != 7]


# -- damage ------------------------------------------------------------------------------------------------------------


def _cut(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-40])


def _empty(part: Path) -> None:
    part.write_bytes(b"")


def _swap(part: Path) -> None:
    part.write_bytes(part.with_name("part-00000.parquet").read_bytes())


def _flip(part: Path) -> None:
    data = bytearray(part.read_bytes())
    data[4 : len(data) // 2] = os.urandom(len(data) // 2 - 4)
    part.write_bytes(data)


def _another_table(part: Path) -> None:
    table = pyarrow.table({"path": ["a.png"], "score": [1.0]})
    pyarrow.parquet.write_table(table, part)


def _texts_for_numbers(part: Path) -> None:
    about = pyarrow.parquet.read_schema(part).metadata
    read = pyarrow.parquet.ParquetFile(part)
    schema = read.schema_arrow.set(2, pyarrow.field("score", "string"))
    with pyarrow.parquet.ParquetWriter(part.with_suffix(".new"), schema.with_metadata(about)) as file:
        for k in range(read.num_row_groups):
            file.write_table(read.read_row_group(k).cast(schema))
    part.with_suffix(".new").replace(part)


def _out_of_range(part: Path) -> None:
    about = pyarrow.parquet.read_schema(part).metadata
    read = pyarrow.parquet.ParquetFile(part)
    with pyarrow.parquet.ParquetWriter(part.with_suffix(".new"), read.schema_arrow.with_metadata(about)) as file:
        for k in range(read.num_row_groups):
            table = read.read_row_group(k)
            file.write_table(table.set_column(3, "p_value", [pyarrow.array([7.0] * table.num_rows)]))
    part.with_suffix(".new").replace(part)


def _link(part: Path) -> None:
    elsewhere = part.parents[2] / "elsewhere.parquet"
    part.rename(elsewhere)
    part.symlink_to(elsewhere)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, "is missing"),
        (_cut, "is damaged or cut off"),
        (_empty, "is damaged or cut off"),
        (_flip, "is damaged or cut off"),
        (_swap, "does not belong to this scores.csv"),
        (_another_table, "is damaged or cut off"),
        (_texts_for_numbers, "is damaged or cut off"),
        (_out_of_range, "has a p_value outside 0 to 1"),
        (_link, "is a link to another place"),
    ],
)
def test_a_damaged_part_is_named_and_the_table_remains(tmp_path: Path, damage: Callable[[Path], Any], says: str):
    csv, parquet = both(tmp_path)
    damage(parquet / "scores" / "part-00002.parquet")
    with pytest.raises(DataError) as caught:
        list(read_results(parquet).paths)
    text = one_sentence(caught.value)
    assert text.startswith(f"{parquet}/scores/part-00002.parquet: {says}")
    assert text.endswith(f"remove the folder {parquet}/scores to read the same rows from scores.csv.")
    shutil.rmtree(parquet / "scores")
    assert read_results(parquet).paths == read_results(csv).paths


@pytest.mark.usefixtures("small")
def test_parts_of_another_table(tmp_path: Path):
    write_scores(tmp_path / "R", 30)
    with (tmp_path / "R" / "scores.csv").open("a") as file:
        file.write("new.png,,1.0,,,,,,\n")
    with pytest.raises(DataError, match=r"part-00000\.parquet: does not belong to this scores\.csv; remove the folder"):
        read_results(tmp_path / "R")


# -- memory ------------------------------------------------------------------------------------------------------------

_MEASURED = """
import sys
from pathlib import Path
from normalcy.results import inputs, parts
from normalcy.results.evaluate import evaluate
from normalcy.report import write_report
from normalcy.review.queue import Asked
from normalcy.review.session import Review
inputs.ALONE = 1000
folder = Path(sys.argv[1])
evaluate(folder, resamples=2)
write_report(folder)
review = Review([folder], read_only=True)
review.facts()
for asked in (Asked(), Asked(filter="flagged"), Asked(order="random", search="png")):
    queue = review.queues.open(asked)
    assert len(review.rows(review.queues.images(queue["queue"], queue["count"] // 2, 100))["path"]) == 100
# not getrusage: its maximum is that of the parent where that was larger
print(next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""
MOST_BYTES = 160
"""A row may add to the peak memory of evaluation, report and review, one after the other in a process."""


def test_memory_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parts, "ALONE", 1000)
    sizes, peaks = (100_000, 300_000), []
    for count in sizes:
        write_scores(tmp_path / str(count), count)
        assert (tmp_path / str(count) / "scores").is_dir()
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, str(tmp_path / str(count))], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout))
    assert (peaks[1] - peaks[0]) / (sizes[1] - sizes[0]) < MOST_BYTES


# -- columns -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [["a.png", "", "B.PNG", "a.png"], ODD, ["caf\udce9.png", "é", "ÉA"], []])
def test_texts(texts: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(columns, "ROWS", 2)
    column = Texts.of(texts)
    assert (len(column), list(column), column[0:2]) == (len(texts), texts, texts[:2])
    assert [column[k] for k in range(-len(texts), len(texts))] == texts + texts
    assert column == texts
    assert column == Texts.of(texts)
    assert column != [*texts, "x"]
    assert column != [text + "x" for text in texts] or not texts
    with pytest.raises(IndexError):
        column[len(texts)]
    for words in (["a"], ["é"], [".png", "b"], ["gb"], []):  # "gB" begins in one text and ends in the next
        assert column.containing(words).tolist() == [all(word in text.lower() for word in words) for text in texts]
    last = {text: i for i, text in enumerate(texts)}
    assert column.find([*texts, "no"]) == last
    places = Places(column)
    assert places.find(["no", *texts]) == last
    assert "no" not in places
    assert places.get("no") is None
    numbers: dict[str, int] = {}
    assert column.numbers().tolist() == [numbers.setdefault(text, len(numbers)) for text in texts]
    different = list(dict.fromkeys(texts))
    if different:
        found = column.places_in(Texts.of([*different[::-1], "other"]))
        assert found.tolist() == [different[::-1].index(text) for text in texts]
        assert Texts.of(["none"]).places_in(Texts.of(different)).tolist() == [-1]


def test_kinds():
    kinds = Kinds.of(["b", "", "a", "b"])
    assert (list(kinds), kinds[3], kinds[1:3]) == (["b", "", "a", "b"], "b", ["", "a"])
    assert kinds == ["b", "", "a", "b"]
    assert kinds.among(np.array([True, True, False, True])) == ["", "b"]
    assert kinds.are("b").tolist() == [True, False, False, True]
    assert not kinds.are("none").any()
    assert Kinds.joined([kinds, Kinds.of(["c", "a"])]) == ["b", "", "a", "b", "c", "a"]
    assert kinds.changed({1: "c", 0: "a"}) == ["a", "c", "a", "b"]
    assert list(kinds) == ["b", "", "a", "b"]


def test_a_table_of_many_blocks_names_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_scores(tmp_path / "R", 30)
    monkeypatch.setattr(columns.read_rows, "__defaults__", (4,))
    lines = (tmp_path / "R" / "scores.csv").read_text().splitlines()
    row = next(k for k, line in enumerate(lines) if "0000021" in line)
    lines[row] = re.sub(r"png,-?[\d.]+,", "png,many,", lines[row], count=1)
    path = tmp_path / "R" / "scores.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"line 23 has the score 'many', expected a number"):
        read_results(tmp_path / "R")
    path.write_text("\n".join([*lines[:row], "a,b", *lines[row + 1 :]]) + "\n")
    with pytest.raises(DataError, match=r"has 2 fields, expected 9"):
        read_results(tmp_path / "R")
