"""Recipes of DPA: data of Camelyon16 and the NIH are laid out as its tables expect, and anomalies choose the planted best."""

import csv
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from normalcy import Detector, config, open_data
from normalcy.methods.dpa import DPA, DPASettings
from normalcy.studies.tables import read_table, select
from normalcy.training.fit import plan_steps
from normalcy.training.settings import TrainSettings

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))


def recipe(name: str) -> ModuleType:
    sys.modules.pop(name, None)
    return __import__(name)


# -- Camelyon16 ------------------------------------------------------------------------------------------------------

METASTASIS = (768, 0, 1536, 768)  # left, top, right, bottom: the second tile


def write_slide(path: Path, seed: int) -> None:
    """Three tiles of tissue side by side, white below."""
    pixels = np.full((1536, 2304, 3), 245, np.uint8)
    noise = np.random.default_rng(seed).normal(0, 12, (768, 2304, 1))
    pixels[:768] = np.clip(np.array([200, 120, 170]) + noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for level in range(2):
            k = 4**level
            file.write(
                pixels[::k, ::k], tile=(128, 128), photometric="rgb", compression="zlib", subfiletype=int(level > 0)
            )


def write_annotation(path: Path) -> None:
    left, top, right, bottom = METASTASIS
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    points = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(corners))
    hole = '<Annotation PartOfGroup="_2"><Coordinates><Coordinate X="0" Y="0"/></Coordinates></Annotation>'
    region = f'<Annotation PartOfGroup="_0"><Coordinates>{points}</Coordinates></Annotation>'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<ASAP_Annotations><Annotations>{region}{hole}</Annotations></ASAP_Annotations>")


def test_tiles_of_camelyon16(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "root" / "camelyon16"
    for seed, name in enumerate(("normal_001", "normal_027")):
        write_slide(source / "training" / "normal" / f"{name}.tif", seed)
    write_slide(source / "training" / "tumor" / "tumor_001.tif", 2)
    write_annotation(source / "training" / "lesion_annotations" / "tumor_001.xml")
    for seed, name in enumerate(("test_001", "test_002"), 3):
        write_slide(source / "testing" / "images" / f"{name}.tif", seed)
    write_annotation(source / "testing" / "lesion_annotations" / "test_002.xml")
    (source / "testing" / "reference.csv").write_text("test_001,Normal,None\ntest_002,Tumor,IDC\n")
    module = recipe("dpa_medical_data")
    count = module.camelyon16(source, out)
    assert count == {"train/good": 3, "known": 1, "test/good": 3, "test/tumour": 1}  # 027 is left out
    assert {path.name for path in out.rglob("*.png") if "tumo" in path.name} == {"tumor_001_x768_y0.png"}
    assert [path.name for path in (out / "test" / "tumour").glob("*.png")] == ["test_002_x768_y0.png"]
    sides = {path.parent.name: Image.open(path).size for path in sorted(out.rglob("*.png"))}
    assert sides["tumour"] == sides["known"] == (64, 64)
    assert Image.open(next((out / "train" / "good").glob("*.png"))).size == (192, 192)
    assert module.camelyon16(source, out) == count  # what is there is not made again
    column = read_table("dpa/table-2").columns["Camelyon16"]
    words = {**column.settings, "steps": 2, "batch_size": 2, "latent": 4, "bottleneck": "spatial", "grow": False}
    detector = Detector("dpa", **words, calibration=0.0).fit(open_data(out))
    scores = detector.score(open_data(out).select(split="test")).scores
    assert scores.shape == (4,)
    assert np.isfinite(scores).all()


def test_metastases_have_holes(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif", 0)
    text = '<Annotation PartOfGroup="{}"><Coordinates>{}</Coordinates></Annotation>'
    square = lambda a, b: "".join(f'<Coordinate X="{x}" Y="{y}"/>' for x, y in ((a, a), (b, a), (b, b), (a, b)))
    regions = text.format("Exclusion", square(256, 512)) + text.format("Tumor", square(0, 768))
    (tmp_path / "a.xml").write_text(f"<A>{regions}</A>")
    mask = recipe("dpa_medical_data").metastases(tmp_path / "a.tif", tmp_path / "a.xml")
    assert mask.shape == (24, 36)
    assert mask[1, 1]
    assert not mask[6, 6]  # pixel 384 of the slide
    assert not mask[20, 20]


# -- NIH -------------------------------------------------------------------------------------------------------------


def test_tables_of_the_nih(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "nih"
    (source / "images_001").mkdir(parents=True)
    entries = [
        ("1_0.png", "No Finding", "1", "PA", "train"),
        ("1_1.png", "Infiltration", "1", "PA", "train"),
        ("2_0.png", "No Finding", "2", "AP", "train"),
        ("3_0.png", "No Finding", "3", "PA", "test"),
        ("3_1.png", "Mass|Nodule", "3", "PA", "test"),
    ]
    for name, *_ in entries:
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(source / "images_001" / name)
    with (source / "Data_Entry_2017_v2020.csv").open("w", newline="") as file:
        rows = [["Image Index", "Finding Labels", "Patient ID", "View Position"], *(entry[:4] for entry in entries)]
        csv.writer(file).writerows(rows)
    for split, name in (("train", "train_val_list.txt"), ("test", "test_list.txt")):
        (source / name).write_text("\n".join(entry[0] for entry in entries if entry[4] == split))
    lists = tmp_path / "lists"
    for kind, split, name in (
        ("normal", "train", "1_0.png"),
        ("normal", "test", "3_0.png"),
        ("anomaly", "test", "3_1.png"),
    ):
        (lists / kind).mkdir(parents=True, exist_ok=True)
        (lists / kind / split).write_text(f"{name}\n")
    count = recipe("dpa_medical_data").nih(source, out, lists)
    assert count == {"PA": 3, "known_PA": 1, "AP": 1, "known_AP": 0, "subset": 3}
    data = open_data(out / "PA.csv")
    assert [(Path(i.path).name, i.label, i.split, i.case) for i in data.items] == [
        ("1_0.png", 0, "train", "1"), ("3_0.png", 0, "test", "3"), ("3_1.png", 1, "test", "3")
    ]  # fmt: skip
    assert data.read(0).shape == (1, 8, 8)
    assert open_data(out / "known_PA.csv").labels.tolist() == [1]
    columns = read_table("dpa/table-2").columns
    assert {column.data for column in columns.values()} == {
        "camelyon16", "nih/subset.csv", "nih/PA.csv", "nih/AP.csv"
    }  # fmt: skip


# -- tables 2 to 4 as the authors ran them (their configuration files, anomaly_detection@6fa35f3) --------------------


def as_run(number: int, row: str, column: str) -> tuple[DPA, dict[str, Any], list[int]]:
    """The method of a row on a column, its settings, and the steps of its stages for 5,000 images."""
    cells = select(read_table(f"dpa/table-{number}"), columns=[column], seeds=[0])
    [cell] = [cell for cell in cells if cell.row == row]
    settings = cell.settings
    own = {name: settings[name] for name in config.fields_of(DPASettings)}
    method = DPA(config.build(DPASettings, own, "dpa"), (3 if column == "Camelyon16" else 1, 64, 64))
    return method, settings, plan_steps(method.stages(), TrainSettings(steps=settings["steps"]), 5000)


ROWS = (
    (2, "DPA without growing"),
    (2, "DPA"),
    (3, "DPA without growing"),
    (3, "DPA"),
    (4, "3 PL"),
    (4, "10 PL, growing"),
)


@pytest.mark.parametrize(("number", "row"), ROWS)
@pytest.mark.parametrize("column", ["Camelyon16", "NIH-subset", "NIH-PA", "NIH-AP"])
def test_chosen_settings_are_the_authors(number: int, row: str, column: str) -> None:
    method, settings, steps = as_run(number, row, column)
    growing = settings["grow"]
    assert (settings["shrink"], settings["start"], settings["anneal"]) == (1, "authors", False)
    assert settings["statistics"] == "natural"
    assert all(stage.early_stop is None for stage in method.stages())  # a fixed length
    latent = {"Camelyon16": 4, "NIH-AP": 64}.get(column, 16)
    assert settings["latent"] == latent
    code = method.autoencoder.encode(torch.zeros(1, *method.shape)).shape
    assert tuple(code) == ((1, 4, 8, 8) if column == "Camelyon16" else (1, latent, 1, 1))
    assert (settings["lr"] == 5e-4) == (column == "NIH-AP")
    equalised = "histogram_equalisation" in settings["preprocess"]
    assert equalised == (column == "NIH-AP")
    alone = {"Camelyon16": 34_666, "NIH-subset": 16_000, "NIH-PA": 33_000, "NIH-AP": 27_000}
    whole = {"Camelyon16": 88_666, "NIH-subset": 123_500, "NIH-PA": 130_000, "NIH-AP": 127_000}
    assert sum(steps) == (whole if growing else alone)[column]
    if growing:
        assert set(steps[:-1]) == {20_000}
        assert len(steps) == (5 if column == "Camelyon16" else 7)  # from 16 or from 8 pixels
    r32, r42 = 1, 2
    assert method.layer(0) == (r42 if column in ("Camelyon16", "NIH-subset") else r32)
    if growing and column == "Camelyon16":
        assert method.layer(2) == r32  # at 16 pixels


@pytest.mark.parametrize(
    ("row", "column", "code", "lr", "steps"),
    [
        ("1 L1, unsupervised", "NIH-subset", (64, 4, 4), 5e-4, 31_000),
        ("1 L1, unsupervised", "NIH-PA", (64, 4, 4), 5e-4, 28_333),
        ("1 L1, unsupervised", "NIH-AP", (64, 4, 4), 5e-4, 32_333),
        ("1 L1, unsupervised", "Camelyon16", (32, 16, 16), 2e-4, 46_000),
        ("2 PL, unsupervised", "NIH-subset", (64, 4, 4), 5e-4, 64_333),
        ("2 PL, unsupervised", "NIH-PA", (64, 4, 4), 5e-4, 57_666),
        ("2 PL, unsupervised", "NIH-AP", (64, 4, 4), 5e-4, 24_333),
        ("2 PL, unsupervised", "Camelyon16", (64, 16, 16), 1e-4, 77_000),
    ],
)
def test_unsupervised_settings_of_table_4(row: str, column: str, code: tuple[int, ...], lr: float, steps: int) -> None:
    method, settings, planned = as_run(4, row, column)
    assert tuple(method.autoencoder.encode(torch.zeros(1, *method.shape)).shape[1:]) == code
    assert settings["lr"] == lr
    assert planned == [steps]
    assert (settings["l1"], settings["perceptual"]) == ((1.0, 0.0) if row.startswith("1") else (0.0, 1.0))


def test_baselines_of_table_2_are_the_authors() -> None:
    cells = {cell.method: cell.settings for cell in select(read_table("dpa/table-2"), columns=["NIH-PA"], seeds=[0])}
    assert (cells["deep_geo"]["blocks"], cells["deep_geo"]["widen"]) == (2, 8)  # a WRN-16-8
    assert cells["piad"]["preset"] == "paper"


# -- chest X-rays at hand, figure 5 ----------------------------------------------------------------------------------


def test_chest_xrays_keep_patients_together(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "chest.zip", "w") as archive:
        for k in range(20):
            for kind in ("No_findings", "Pneumonia", "Covid-19"):
                content = BytesIO()
                Image.fromarray(np.full((8, 8), k, np.uint8)).save(content, "PNG")
                archive.writestr(f"{kind}/{k + (0 if kind == 'No_findings' else 15):08}_000.png", content.getvalue())
    data = recipe("chest_xray").open_chest(tmp_path / "chest.zip")
    assert len(data) == 40
    train, test = data.select(split="train"), data.select(split="test")
    assert not set(train.cases) & set(test.cases)
    assert train.labels.max() == 0
    assert test.labels.sum() == 20


def test_the_planted_best_setting_is_chosen() -> None:
    chosen_by = recipe("dpa_choice").chosen_by
    rng = np.random.default_rng(0)
    normal = [[rng.normal(size=50) for _ in range(3)] for _ in range(3)]
    anomalies = [[rng.normal(shift, 1.0, (9, 100)) for _ in range(3)] for shift in (0.0, 2.0, 0.5)]
    assert [chosen_by(anomalies, normal, kinds, 20, seed) for kinds in (1, 9) for seed in range(3)] == [1] * 6
