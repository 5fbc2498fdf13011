import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from normalcy.data.open import open_data
from normalcy.errors import DataError

ROWS = [
    {"path": "img/a.png", "split": "train", "label": "normal", "mask": "", "case": "p1", "type": ""},
    {"path": "img/b.png", "split": "test", "label": "0", "mask": "", "case": "p2", "type": "good"},
    {"path": "img/c.png", "split": "Test", "label": "Anomalous", "mask": "m/c.png", "case": "p3", "type": "crack"},
    {"path": "img/d, e.png", "split": "", "label": "", "mask": "", "case": "", "type": ""},
]


@pytest.fixture
def images(tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "m").mkdir()
    for i, name in enumerate(("img/a.png", "img/b.png", "img/c.png", "img/d, e.png", "m/c.png")):
        Image.fromarray(np.full((6, 8), i + 1, np.uint8)).save(tmp_path / name)
    return tmp_path


def csv_text(rows, separator=","):
    quoted = [list(rows[0])] + [[f'"{value}"' for value in row.values()] for row in rows]
    return "\n".join(separator.join(line) for line in quoted) + "\n"


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tab", "bom", "parquet"])
def test_all_columns(images, kind):
    path = images / ("t.parquet" if kind == "parquet" else "t.csv")
    if kind == "parquet":
        typed = [
            {**row, "label": {"normal": 0, "0": 0, "Anomalous": 1, "": None}[row["label"]], "case": row["case"] or None}
            for row in ROWS
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(typed), path)
    else:
        text = csv_text(ROWS, {"semicolon": ";", "tab": "\t"}.get(kind, ","))
        path.write_text(text, encoding="utf-8-sig" if kind == "bom" else "utf-8")
    data = open_data(path)
    assert [(i.path, i.case, i.label, i.type, i.split) for i in data.items] == [
        ("img/a.png", "p1", 0, None, "train"),
        ("img/b.png", "p2", 0, "good", "test"),
        ("img/c.png", "p3", 1, "crack", "test"),
        ("img/d, e.png", "img/d, e.png", None, None, None),
    ]
    assert data.read(3)[0, 0, 0] == 4
    assert data.mask(2).all()
    assert not data.mask(0).any()
    assert data.mask(3) is None
    assert data.source(0) == images / "img/a.png"


def test_only_paths_and_other_columns(images):
    (images / "t.csv").write_text("Path ,age\nimg/a.png,61\nimg/b.png,\n")
    data = open_data(images / "t.csv")
    assert [item.path for item in data.items] == ["img/a.png", "img/b.png"]
    assert not data.has_masks


def test_numbers_as_pandas_writes_them(images):
    (images / "t.csv").write_text("path,label\nimg/a.png,1.0\nimg/b.png,0.0\nimg/c.png,\n")
    assert open_data(images / "t.csv").labels.tolist() == [1, 0, -1]
    table = pyarrow.table({"path": ["a.png", "b.png"], "label": [float("nan"), 1.0]})
    pyarrow.parquet.write_table(table, images / "t.parquet")
    assert open_data(images / "t.parquet").labels.tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a column 'path'.*an empty table"),
        ("file,label\na.png,0\n", "expected a column 'path'.*got file, label"),
        ("path\n", "expected a row"),
        ("path,labels\na.png,0\n", "'labels' is close to 'label'"),
        ("path,label,label\na.png,0,0\n", "'label' is there more than once"),
        ("path,label\na.png,0\nb.png,maybe\n", "image 2: expected the label 0, 1, .* got 'maybe'"),
        ("path,split\na.png,val\n", "image 1: expected the split train, test or nothing, got 'val'"),
        ("path,label\na.png,0\na.png,1\n", r"image 2: a\.png is named by an earlier row"),
        ("path,label\n,0\n", "image 1: expected a path"),
        ("path\n\udcff.png\n", "UTF-8"),
    ],
)
def test_faults_of_a_table(tmp_path, text, words):
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=words):
        open_data(tmp_path / "t.csv")


def test_a_table_that_is_none(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_data(tmp_path / "t.parquet")


def test_a_missing_image_is_found_when_read(images):
    (images / "t.csv").write_text("path\nimg/a.png\nimg/none.png\n")
    data = open_data(images / "t.csv")
    assert data.read(0).shape == (1, 6, 8)
    with pytest.raises(DataError, match=r"none\.png"):
        data.read(1)
