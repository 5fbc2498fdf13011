"""Recipes of DPA: data of Camelyon16 and the NIH are laid out as its tables expect, and anomalies choose the planted best."""

import csv
import sys
import zipfile
from collections.abc import Mapping
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
from normalcy.preprocessing.pipeline import Preprocess
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


# -- tables 2 to 5 as the authors ran them (anomaly_detection@ada9201, configs/*/*/final/*/class_*/run_0) --------------

COLUMNS = ("Camelyon16", "NIH-subset", "NIH-PA", "NIH-AP")
NIH = ("resize:300", "centre_crop:0.7467", "resize:64")
EQUALISED = (*NIH[:2], "histogram_equalisation", NIH[2])  # of the 224 pixels, before they are reduced to 64
R32, R42 = 1, 2


def as_run(number: int, row: str, column: str) -> tuple[DPA, dict[str, Any], list[int]]:
    """The method of a row on a column, its settings, and the steps of its stages for 5,000 images."""
    cells = select(read_table(f"dpa/table-{number}"), columns=[column], seeds=[0])
    [cell] = [cell for cell in cells if cell.row == row]
    settings = plain(cell.settings)
    own = {name: settings[name] for name in config.fields_of(DPASettings)}
    method = DPA(config.build(DPASettings, own, "dpa"), (3 if column == "Camelyon16" else 1, 64, 64))
    return method, settings, plan_steps(method.stages(), TrainSettings(steps=settings["steps"]), 5000)


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def widths(method: DPA) -> tuple[int, ...]:
    """Channels from the full resolution down to the bottleneck."""
    return tuple(part[0].out_channels for part in method.autoencoder.from_image)  # type: ignore[index, union-attr, misc]


def batch_sizes(method: DPA, settings: dict[str, Any]) -> set[int]:
    return {settings["batch_size"] or stage.batch_size for stage in method.stages()}


def rates(method: DPA) -> set[float]:
    return {objective.lr for stage in method.stages() for objective in stage.objectives}


WEIGHTS = {  # row of table 4 -> weights of the pixel and of the adversarial term
    "3 PL": (0.0, 0.0),
    "4 PL + adv": (0.0, 1.0),
    "5 PL + 0.1 adv": (0.0, 0.1),
    "6 PL + L1": (1.0, 0.0),
    "7 PL + 0.1 L1": (0.1, 0.0),
    "8 PL + L1 + adv": (1.0, 1.0),
    "9 PL + 0.1 L1 + 0.1 adv": (0.1, 0.1),
}
NOT_GROWING = [(2, "DPA without growing"), (3, "DPA without growing"), *((4, row) for row in WEIGHTS)]


@pytest.mark.parametrize(("number", "row"), NOT_GROWING)
@pytest.mark.parametrize(
    ("column", "code", "width", "lr", "batch", "steps", "layer"),
    [
        ("Camelyon16", (4, 8, 8), (4,) * 4, 1e-3, 128, 34_666, R42),
        ("NIH-subset", (16, 1, 1), (16,) * 5, 2e-3, 128, 16_000, R42),
        ("NIH-PA", (16, 1, 1), (16,) * 5, 2e-3, 128, 33_000, R32),
        ("NIH-AP", (64, 1, 1), (64,) * 5, 5e-4, 56, 27_000, R32),
    ],
)
def test_chosen_settings_without_growing(
    number: int,
    row: str,
    column: str,
    code: tuple[int, ...],
    width: tuple[int, ...],
    lr: float,
    batch: int,
    steps: int,
    layer: int,
) -> None:
    method, settings, planned = as_run(number, row, column)
    l1, adversarial = WEIGHTS.get(row, (0.0, 0.0))
    check_common(method, settings, code)
    assert not settings["grow"]
    assert (settings["perceptual"], settings["l1"], settings["adversarial"]) == (1, l1, adversarial)
    assert rates(method) == {2e-4 if adversarial else lr}
    assert settings["critic_steps"] == 2
    assert widths(method) == width
    assert batch_sizes(method, settings) == {batch}
    assert planned == [steps]
    assert method.layer(0) == layer
    assert settings["preprocess"] == {"Camelyon16": (), "NIH-AP": EQUALISED}.get(column, NIH)


@pytest.mark.parametrize(("number", "row"), [(2, "DPA"), (3, "DPA"), (4, "10 PL, growing")])
@pytest.mark.parametrize(
    ("column", "code", "width", "lr", "batch", "last", "layers"),
    [
        ("Camelyon16", (4, 8, 8), (4,) * 4, 1e-3, 128, 8_666, (R42, R32, R32)),
        ("NIH-subset", (16, 1, 1), (16,) * 5, 1e-3, 128, 3_500, (R42, R32, 0, 0)),
        ("NIH-PA", (16, 1, 1), (16,) * 5, 1e-3, 128, 10_000, (R32, R32, 0, 0)),
        ("NIH-AP", (64, 1, 1), (32, 64, 64, 64, 64), 5e-4, 56, 7_000, (R32, R32, 0, 0)),  # authors: 32, 32, 64, 64, 64
    ],
)
def test_chosen_settings_when_growing(
    number: int,
    row: str,
    column: str,
    code: tuple[int, ...],
    width: tuple[int, ...],
    lr: float,
    batch: int,
    last: int,
    layers: tuple[int, ...],
) -> None:
    method, settings, planned = as_run(number, row, column)
    check_common(method, settings, code)
    assert rates(method) == {lr}
    assert widths(method) == width
    assert batch_sizes(method, settings) == {batch}
    assert planned == [20_000] * (2 * len(layers) - 2) + [last]  # from 16 or from 8 pixels
    assert tuple(map(method.layer, range(len(layers)))) == layers
    assert settings["preprocess"] == {"Camelyon16": (), "NIH-AP": EQUALISED}.get(column, NIH)


def check_common(method: DPA, settings: dict[str, Any], code: tuple[int, ...]) -> None:
    assert (settings["shrink"], settings["start"], settings["anneal"]) == (1, "authors", False)
    assert settings["statistics"] == "natural"
    assert settings["blocks"] == 2  # "residual18"
    assert all(stage.early_stop is None for stage in method.stages())  # a fixed length
    assert tuple(method.autoencoder.encode(torch.zeros(1, *method.shape)).shape[1:]) == code
    assert settings["augment"] == (("crop:64", "flip") if method.shape[0] == 3 else ())
    assert settings["size"] is None


@pytest.mark.parametrize(
    ("row", "column", "code", "lr", "batch", "steps", "layer"),
    [
        ("1 L1, unsupervised", "NIH-subset", (64, 4, 4), 5e-4, 56, 32_333, None),
        ("1 L1, unsupervised", "NIH-PA", (64, 4, 4), 5e-4, 56, 31_000, None),
        ("1 L1, unsupervised", "NIH-AP", (64, 4, 4), 5e-4, 56, 28_333, None),
        ("1 L1, unsupervised", "Camelyon16", (32, 16, 16), 2e-4, 128, 46_000, None),
        ("2 PL, unsupervised", "NIH-subset", (64, 4, 4), 5e-4, 56, 24_333, R42),
        ("2 PL, unsupervised", "NIH-PA", (64, 4, 4), 5e-4, 56, 64_333, R32),
        ("2 PL, unsupervised", "NIH-AP", (64, 4, 4), 5e-4, 56, 57_666, R32),
        ("2 PL, unsupervised", "Camelyon16", (64, 16, 16), 1e-4, 128, 77_000, R42),
    ],
)
def test_unsupervised_settings_of_table_4(
    row: str, column: str, code: tuple[int, ...], lr: float, batch: int, steps: int, layer: int | None
) -> None:
    method, settings, planned = as_run(4, row, column)
    check_common(method, settings, code)
    assert set(widths(method)) == {code[0]}
    assert rates(method) == {lr}
    assert batch_sizes(method, settings) == {batch}
    assert planned == [steps]
    assert layer is None or method.layer(0) == layer
    assert (settings["l1"], settings["perceptual"]) == ((1.0, 0.0) if row.startswith("1") else (0.0, 1.0))
    assert settings["preprocess"] == (() if column == "Camelyon16" else NIH)  # nothing is equalised


def test_baselines_are_the_authors() -> None:
    for number in (1, 2, 3, 5):
        cells = [cell for cell in select(read_table(f"dpa/table-{number}"), seeds=[0]) if cell.method != "dpa"]
        for cell in cells:
            if cell.method == "piad":
                assert (cell.settings["preset"], cell.settings["lr_generator"]) == ("paper", 2e-4)
            elif cell.method == "deep_geo" and number == 2:
                assert (cell.settings["blocks"], cell.settings["widen"]) == (2, 8)  # a WRN-16-8
            if cell.column == "Camelyon16":  # the central 64 of 192 pixels train, too
                assert Preprocess(cell.settings["preprocess"]).size_of((192, 192)) == (64, 64)
                assert not cell.settings["augment"]
            elif cell.column.startswith("NIH"):
                assert tuple(cell.settings["preprocess"]) == NIH


@pytest.mark.parametrize(
    ("column", "latent", "width", "lr", "layer", "steps"),
    [
        ("plane", 32, (32,) * 4, 2e-3, 5, 5_666),
        ("car", 8, (8,) * 4, 1e-2, 9, 7_333),
        ("bird", 16, (16,) * 4, 5e-3, 9, 5_000),
        ("cat", 256, (32, 64, 128, 256), 2e-4, 5, 4_666),
        ("deer", 16, (16,) * 4, 5e-3, 5, 6_666),
        ("dog", 8, (8,) * 4, 1e-2, 9, 4_666),
        ("frog", 64, (32, 64, 64, 64), 1e-3, 5, 3_666),
        ("horse", 8, (8,) * 4, 1e-2, 9, 7_666),
        ("ship", 8, (8,) * 4, 1e-2, 9, 8_000),
        ("truck", 8, (8,) * 4, 1e-2, 9, 5_000),
        ("digit-0", 256, (32, 64, 128, 256), 2e-4, 9, 25_333),
        ("digit-1", 16, (16,) * 4, 5e-3, 9, 16_666),  # 1, 2 and 4 to 7: r32 (5), too
        ("digit-2", 16, (16,) * 4, 5e-3, 9, 15_333),
        ("digit-3", 32, (32,) * 4, 2e-3, 9, 9_666),
        ("digit-4", 16, (16,) * 4, 5e-3, 9, 10_333),
        ("digit-5", 32, (32,) * 4, 2e-3, 9, 8_333),
        ("digit-6", 32, (32,) * 4, 2e-3, 9, 7_333),
        ("digit-7", 16, (16,) * 4, 5e-3, 9, 12_000),
        ("digit-8", 16, (16,) * 4, 5e-3, 9, 6_666),
        ("digit-9", 64, (32, 64, 64, 64), 1e-3, 9, 18_000),
    ],
)
def test_choices_of_each_class_of_table_5(
    column: str, latent: int, width: tuple[int, ...], lr: float, layer: int, steps: int
) -> None:
    cells = select(read_table("dpa/table-5"), columns=[column], seeds=[0])
    [settings] = [plain(cell.settings) for cell in cells if cell.row == "DPA, VGG19"]
    grey = column.startswith("digit")
    own = {name: settings[name] for name in config.fields_of(DPASettings)} | {"backbone": "self"}  # builds no VGG19
    method = DPA(config.build(DPASettings, {**own, "layers": (0,)}, "dpa"), (1 if grey else 3, 32, 32))
    assert (settings["backbone"], settings["latent"], settings["layers"], settings["steps"]) == (
        "vgg19", latent, (layer,), steps
    )  # fmt: skip
    assert settings["preprocess"] == (("grey",) if grey else ())
    assert widths(method) == width
    assert rates(method) - {1e-3} == {lr} - {1e-3}  # SimCLR of "self" has 1e-3
    assert settings["batch_size"] is None
    assert method.stages()[-1].batch_size == 128
    assert (settings["shrink"], settings["start"], settings["early_stop"]) == (1, "authors", False)


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
