"""The report: true to the folder, whole in one file, safe against hostile text, and unbroken by odd results."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from normalcy.data.dataset import DataSet, Item
from normalcy.errors import DataError
from normalcy.report import figures, write_comparison, write_report
from normalcy.report.markup import Markup, join, tag
from normalcy.report.page import headline
from normalcy.report.pictures import LARGEST_SIDE, contour, display, load_picture, reduce
from normalcy.results.folder import read_results

FALSE_ALARMS = {"count": 99, "false_alarms": 0.05, "threshold": 0.6, "pixel_threshold": 0.5, "map_range": [0.1, 0.9]}
METRICS = {
    "format": 1,
    "image": {
        "normal": 4,
        "anomalous": 4,
        "auroc": {"value": 0.9312, "low": 0.912, "high": 0.953},
        "average_precision": {"value": 0.9, "low": 0.8, "high": 0.95},
        "f1_max": {"value": 0.88, "threshold": 0.55},
        "fpr_at_95_tpr": {"value": 0.25},
        "at_threshold": {
            "threshold": 0.6,
            "false_alarm_rate": 0.25,
            "detection_rate": 0.5,
            "mean_accuracy": 0.625,
            "f1": 0.57,
        },
    },
    "pixel": {
        "images": 8,
        "auroc": {"value": 0.97, "low": 0.95, "high": 0.98},
        "average_precision": {"value": 0.6},
        "f1_max": {"value": 0.61, "threshold": 0.52},
        "aupro": {"value": 0.81, "low": 0.7, "high": 0.9, "limit": 0.3},
        "at_threshold": {"threshold": 0.5, "dice": 0.44, "pro": 0.6, "false_positive_rate": 0.02},
        "mood_ap": None,
        "regions": {"total": 4, "hit": 3, "false_regions": 2, "threshold": 0.5},
    },
    "patch": {
        "size": 8,
        "share": 0.05,
        "normal": 90,
        "anomalous": 12,
        "left_out": 3,
        "auroc": {"value": 0.913, "low": 0.85, "high": 0.95},
        "average_precision": {"value": 0.7, "low": 0.6, "high": 0.8},
    },
    "region": {
        "total": 4,
        "images": 8,
        "sensitivity": [{"false_per_image": 1.0, "value": 0.75, "low": 0.5, "high": 1.0}],
        "mean_sensitivity": {"value": 0.662, "low": 0.4, "high": 0.8},
    },
    "types": {
        "dent": {"count": 4, "auroc": {"value": 0.93, "low": 0.9, "high": 0.96}, "pixel_auroc": 0.97, "aupro": 0.8}
    },
    "curves": {
        "roc": {"fpr": [0, 0.25, 1], "tpr": [0, 0.75, 1]},
        "pr": {"recall": [0, 0.5, 1], "precision": [1, 0.9, 0.5]},
        "pro": {"fpr": [0, 0.1, 0.3], "pro": [0, 0.7, 0.9]},
        "froc": {"false_per_image": [0, 0.5, 4], "sensitivity": [0.25, 0.75, 1]},
    },
    "notes": ["<i>noted</i>"],
}


def row(path, score, p="", flagged="", label="", kind="", case=None):
    return [path, path if case is None else case, repr(score), p, flagged, label, kind, "test"]


def eight(flag=True):
    """Four normal images, one of them flagged, and four anomalous ones, two found."""
    scores = [0.1, 0.2, 0.3, 0.7, 0.4, 0.5, 0.8, 0.9]
    return [
        row(
            f"part/{k}.png",
            s,
            repr(1 - s) if flag else "",
            int(s > 0.6) if flag else "",
            k // 4,
            "dent" if k > 3 else "good",
        )
        for k, s in enumerate(scores)
    ]


def make(folder, rows, metrics=None, calibration=FALSE_ALARMS, maps=None, masks=None, data=None, model=None):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "scores.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "case", "score", "p_value", "flagged", "label", "type", "split"], *rows])
    run = {
        "format": 1,
        "normalcy": "0.1.0",
        "created": "2025-01-02T03:04:05+00:00",
        "images_per_second": 12.5,
        "device": "cpu",
        "model": {
            "method": "pca",
            "description": "What it does.",
            "words": {"latent": 64, "size": None},
            **(model or {}),
        },
        "data": {"spec": None, "name": "parts", "count": len(rows), "has_masks": True, "failed": [], **(data or {})},
        "calibration": calibration and {"rule": "false_alarms", **calibration},
    }
    (folder / "run.json").write_text(json.dumps(run))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    for kind, arrays, suffix in (("maps", maps or {}, ".npy"), ("masks", masks or {}, ".png")):
        for path, array in arrays.items():
            file = folder / kind / (path + suffix)
            file.parent.mkdir(parents=True, exist_ok=True)
            if suffix == ".npy":
                np.save(file, array.astype(np.float32))
            else:
                Image.fromarray(np.where(array, 255, 0).astype(np.uint8)).save(file)
    return folder


def data_set(images, paths):
    return DataSet("parts", [Item(path, path) for path in paths], lambda i: images[i])


def spot(size=(20, 30), value=0.8):
    map = np.full(size, 0.2)
    map[..., 5:9, 10:16] = value
    return map


def full(folder, **more):
    """Everything that a results folder can hold."""
    rows = eight()
    paths = [r[0] for r in rows]
    maps = {path: spot() for path in paths}
    masks = {path: spot() > 0.5 for path in paths[4:]}
    make(folder, rows, METRICS, maps=maps, masks=masks, **more)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (1, 20, 30), dtype=np.uint8) for _ in rows]
    for kind in ("restored", "uncertainty"):
        for path in paths:
            file = folder / kind / (path + (".png" if kind == "restored" else ".npy"))
            file.parent.mkdir(parents=True, exist_ok=True)
            if kind == "restored":
                Image.fromarray(images[0][0]).save(file)
            else:
                np.save(file, spot(value=0.05).astype(np.float32))
    np.save(folder / "latents.npy", rng.normal(size=(len(rows), 5)).astype(np.float32))
    records = [{"method": "pca", "stage": "fit", "step": k, "steps": 9, "loss": 1 / k, "kl": 0.1} for k in range(1, 10)]
    records += [
        {"method": "pca", "stage": "fit", "event": "prepare"},
        {"stage": "fit", "step": 9, "held_out_loss": 0.2},
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, records)) + '\n{"stage": "f')
    return data_set(images, paths)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with everything, its data set and its page."""
    folder = tmp_path_factory.mktemp("full")
    data = full(folder)
    return folder, data, write_report(folder, data)


class Page(HTMLParser):
    """What a browser would make of it: elements with their attributes, and the text."""

    VOID = frozenset({"input", "meta"})

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.source, self.elements, self.words, self.open, self.faults = text, [], [], [], []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in self.VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_endtag(self, name):
        if not self.open or self.open.pop() != name:
            self.faults.append(name)

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open[-1:]):
            self.words.append(data)

    def having(self, name, **wanted):
        return [a for n, a in self.elements if n == name and all(a.get(k.rstrip("_")) == v for k, v in wanted.items())]


def read(path):
    page = Page(path.read_text(encoding="utf-8"))
    assert page.faults == []
    assert page.open == []
    return page


def assert_alone(page):
    """Nothing is fetched: all that is referred to lies inside the page, or is a file beside it that a reader may open."""
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    for name, attributes in page.elements:
        assert name not in ("link", "iframe", "object", "embed", "base", "img")
        for key, value in attributes.items():
            if key in ("href", "xlink:href", "src"):
                inside = value.startswith("#") and value[1:] in identifiers
                beside = name == "a" and re.fullmatch(r"(\./)?[\w%./-]+", value) is not None
                assert inside or beside or (name == "image" and value.startswith("data:image/")), (
                    name,
                    key,
                    value[:80],
                )
    for target in re.findall(r"url\(([^)]*)\)", page.source):
        assert target.startswith("#")
        assert target[1:] in identifiers
    assert "@import" not in page.source


# --- the whole page


def test_full_report_says_what_the_folder_says_and_needs_no_other_file(written):
    folder, _, path = written
    assert path == folder / "report.html"
    page = read(path)
    assert "t-SNE of 8 latent codes of 5 numbers" in page.text
    assert "t-SNE of 8 restored images" in page.text
    assert_alone(page)
    assert (
        "AUROC 0.931 [0.912, 0.953] on 8 images: 4 normal, 4 anomalous. The threshold guarantees at most 5 % false alarms: "
        "1 of 4 normal images flagged, 2 of 4 anomalous detected."
    ) in page.text
    for heading in (
        "Summary", "Scores and curves", "Types of anomaly", "Images", "Missed anomalies", "False alarms", "Most anomalous",
        "Most normal", "Latent space", "Training", "Settings, data and notes",
    ):  # fmt: skip
        assert heading in page.text
    assert "<i>noted</i>" in page.text
    assert "3 of 4" in page.text  # regions
    assert "of 4 true regions, with at most 1 false ones per image" in page.text
    assert "0.662" in page.text
    assert "12 patches of side 8 with at least 5 % marked, 90 with nothing marked, 3 between left out" in page.text
    assert len(page.having("a", href="scores.csv")) == 1
    drawn = [a["aria-label"] for a in page.having("svg", role="img")]
    assert all(drawn)
    for words in (
        "ROC curve",
        "precision-recall curve",
        "per-region overlap curve",
        "free-response curve",
        "p-values of",
        "t-SNE",
        "training curves",
    ):
        assert any(words in label for label in drawn)
    # every image's pixels stand once: input, restored, map and spread of eight images
    assert len(page.having("image")) == 4 * 8
    assert not list(folder.glob(".report*"))  # nothing half-written is left


def test_galleries_show_the_right_images_in_the_right_order(written):
    text = read(written[2]).text
    missed, alarms, most, least = (
        text.split(title)[1]
        for title in (
            "Missed anomalies 2 Anomalous", "False alarms 1 Normal", "Most anomalous The highest", "Most normal The lowest"
        )
    )  # fmt: skip
    shown = [re.findall(r"part/(\d)\.png", part) for part in (missed, alarms, most, least)]
    assert shown[0][:2] == ["4", "5"]  # lowest score first
    assert shown[1][:1] == ["3"]
    assert shown[2][:3] == ["7", "6", "3"]
    assert shown[3][:3] == ["0", "1", "2"]
    assert "anomalous: dent" in missed
    assert "⚑ flagged score 0.7 · p = 0.3 · map up to 0.8 · uncertainty up to 0.2" in alarms


def test_without_inputs_the_maps_are_shown_and_the_reason_given(tmp_path):
    rows = eight()
    make(tmp_path, rows, maps={r[0]: spot() for r in rows}, data={"spec": str(tmp_path / "gone")})
    page = read(write_report(tmp_path))
    assert_alone(page)
    assert "Inputs are not shown:" in page.text
    assert "gone" in page.text
    assert len(page.having("image")) == 8
    assert page.having("path", class_="contour")  # the outline is drawn on the map then


def test_one_input_that_cannot_be_read_leaves_the_others(tmp_path):
    data = full(tmp_path)
    (tmp_path / "latents.npy").unlink()
    (tmp_path / "train.jsonl").unlink()

    def some(i):
        if i == 2:
            raise DataError("part/2.png: damaged <badly>.")
        return data.read(i)

    page = read(write_report(tmp_path, DataSet("parts", data.items, some)))
    assert "input not shown: part/2.png: damaged <badly>." in page.text
    assert len([a for a in page.having("image") if a["id"].startswith("input-")]) == 7


def test_text_from_files_never_becomes_markup(tmp_path):
    evil = "<script>alert(1)</script>&\"'/$x_1$.png"
    rows = [row(evil, 0.9, "0.01", 1, 1, "<b>bold</b> $\\frac$", case="<u>case"), row("_b.png", 0.1, "0.9", 0, 0)]
    make(
        tmp_path, rows, {**METRICS, "types": {"<b>bold</b> $\\frac$": {"count": 1}}},
        data={"name": "<i>data", "failed": [["<q>", "</section>"]]},
        model={"method": "<em>", "description": "</header>", "words": {"<k>": "<v>"}},
    )  # fmt: skip
    (tmp_path / "train.jsonl").write_text(json.dumps({"stage": "</svg>$\\", "step": 1, "<loss>": 1.0}))
    np.save(tmp_path / "latents.npy", np.zeros((2, 3)))
    page = read(write_report(tmp_path, data_set([np.zeros((1, 8, 8), np.uint8)] * 2, [evil, "_b.png"])))
    assert_alone(page)
    assert [name for name, _ in page.elements].count("script") == 1
    assert not {"b", "i", "em", "u", "q", "k", "v"} & {name for name, _ in page.elements}
    for text in (evil, "<b>bold</b>", "<i>data", "</section>", "<em>", "<k>", "case <u>case"):
        assert text in page.text


def test_paths_cannot_leave_the_folder(tmp_path):
    (tmp_path / "R" / "maps").mkdir(parents=True)
    secret = tmp_path / "secret.npy"
    np.save(secret, spot().astype(np.float32))
    (tmp_path / "R" / "maps" / "link.npy").symlink_to(secret)
    rows = [
        row("../../secret", 0.5),
        row(str(tmp_path / "secret"), 0.6),
        row("link", 0.7),
        row("nul\0l", 0.8),
        row("x" * 400, 0.9),
    ]
    results = read_results(make(tmp_path / "R", rows))
    assert [results.file("maps", i, ".npy") for i in range(5)] == [None] * 5
    page = read(write_report(tmp_path / "R"))
    assert page.having("image") == []


# --- headlines


def sentence(folder, rows, **more):
    return re.sub("<[^>]+>", "", headline(read_results(make(folder, rows, **more))))


def test_headlines_without_labels_metrics_or_threshold(tmp_path):
    unlabelled = [row(f"{k}.png", k / 10, "0.5", int(k > 6)) for k in range(10)]
    assert sentence(tmp_path / "a", unlabelled) == (
        "10 images scored, of unknown label. The threshold guarantees at most 5 % false alarms: 3 of 10 images flagged."
    )
    assert sentence(tmp_path / "b", eight(flag=False), calibration=None) == (
        "8 images scored: 4 normal, 4 anomalous. There is no threshold, so nothing is flagged: the detector was not calibrated."
    )
    assert sentence(tmp_path / "c", eight()[:4]) == (
        "4 images scored: 4 normal, 0 anomalous. The threshold guarantees at most 5 % false alarms: 1 of 4 normal images flagged."
    )
    mixed = sentence(tmp_path / "d", [*eight(), row("new.png", 0.9, "0.01", 1)])
    assert mixed.endswith("2 of 4 anomalous detected, 1 of 1 unlabelled images flagged.")
    by_rule = sentence(tmp_path / "e", eight(), calibration={**FALSE_ALARMS, "rule": "youden", "false_alarms": None})
    assert by_rule.endswith("At the threshold: 1 of 4 normal images flagged, 2 of 4 anomalous detected.")


def test_too_few_calibration_images_are_named_as_the_reason(tmp_path):
    rows = [row(f"{k}.png", k / 10, "0.5", 0) for k in range(3)]
    few = {"count": 10, "false_alarms": 0.05, "threshold": None, "pixel_threshold": None, "map_range": None}
    assert (
        "10 calibration images are too few to guarantee at most 5 % false alarms; at least 19 are needed."
        in sentence(tmp_path, rows, calibration=few)
    )
    assert "Only 10 images to calibrate on" in read(write_report(tmp_path)).text


def test_a_broken_promise_is_called_out_only_when_chance_does_not_explain_it(tmp_path):
    def rows(flagged):
        return [row(f"{k}.png", k / 100, "0.5", int(k < flagged), 0) for k in range(100)]

    assert "more than chance explains" in read(write_report(make(tmp_path / "a", rows(20)))).text
    assert "more than chance explains" not in read(write_report(make(tmp_path / "b", rows(8)))).text


# --- odd results


@pytest.mark.parametrize("labels", ["", "0", "1"])
@pytest.mark.parametrize("count", [1, 2])
def test_tiny_sets_and_single_classes(tmp_path, labels, count):
    rows = [row(f"{k}.png", 0.5, "0.5", 0, labels) for k in range(count)]
    make(tmp_path, rows, maps={r[0]: np.zeros((4, 4)) for r in rows})
    np.save(tmp_path / "latents.npy", np.zeros((count, 3)))
    page = read(write_report(tmp_path, data_set([np.zeros((1, 4, 4), np.uint8)] * count, [r[0] for r in rows])))
    assert_alone(page)
    assert f"{count} image" in page.text


def test_constant_scores_maps_and_latents(tmp_path):
    rows = [row(f"{k}.png", 0.0, "1.0", 0, k % 2) for k in range(12)]
    make(
        tmp_path, rows, maps={r[0]: np.full((9, 9), 3.0) for r in rows}, calibration={**FALSE_ALARMS, "map_range": None}
    )
    np.save(tmp_path / "latents.npy", np.ones((12, 4)))
    page = read(write_report(tmp_path))
    assert "t-SNE of 12 latent codes" in page.text


def test_scores_that_are_not_finite_are_left_out_and_counted(tmp_path):
    rows = [*eight(), row("nan.png", float("nan")), row("inf.png", float("inf"))]
    page = read(write_report(make(tmp_path, rows)))
    assert "2 images have no finite score" in page.text
    assert "nan.png" not in page.text


def test_damaged_arrays_do_not_stop_the_page(tmp_path):
    data = full(tmp_path)
    (tmp_path / "maps/part/0.png.npy").write_bytes(b"\x93NUMPY nonsense")
    (tmp_path / "restored/part/1.png.png").write_bytes(b"no image")
    (tmp_path / "masks/part/5.png.png").write_bytes(b"")
    (tmp_path / "latents.npy").write_bytes(b"")
    page = read(write_report(tmp_path, data))
    assert len(page.having("image")) == 4 * 8 - 2
    assert "latents.npy cannot be read" in page.text


def test_latents_of_another_length_are_refused_in_words(tmp_path):
    make(tmp_path, eight())
    np.save(tmp_path / "latents.npy", np.zeros((7, 3)))
    assert "latents.npy has shape (7, 3), expected 8 rows" in read(write_report(tmp_path)).text


def test_many_rows_read_only_the_maps_that_are_shown(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    scores = rng.gamma(2, size=30_000)
    rows = [row(f"{k:05}.png", float(s), repr(float(p)), int(p < 0.05), int(k % 50 == 0), "dent" if k % 50 == 0 else "") for k, (s, p) in enumerate(zip(scores, rng.uniform(size=30_000)))]  # fmt: skip # noqa: E501
    shown = {f"{k:05}.png": spot() for k in range(0, 30_000, 100)}
    make(tmp_path, rows, maps=shown)
    opened = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda file, *a, **k: opened.append(file) or load(file, *a, **k))
    path = write_report(tmp_path)
    assert len(opened) <= 12 + 12 + 12 + 6
    assert path.stat().st_size < 1_000_000
    assert "30,000 images scored: 29,400 normal, 600 anomalous." in read(path).text


# --- pictures


def test_of_a_volume_the_slice_with_the_peak_is_shown(tmp_path):
    volume = np.zeros((7, 20, 30))
    volume[4] = spot()
    make(tmp_path, [row("scan", 0.5, "0.1", 0, 1)], maps={"scan": volume})
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks/scan.npy", (volume > 0.5).astype(np.float32))
    image = np.arange(7, dtype=np.uint8)[None, :, None, None] * np.ones((1, 7, 20, 30), np.uint8)
    picture = load_picture(read_results(tmp_path), 0, data_set([image], ["scan"]), 0)
    assert picture.slice == (4, 7)
    assert (picture.input == 4).all()
    np.testing.assert_allclose(picture.map, spot(), rtol=1e-6)
    assert (picture.mask == (spot() > 0.5)).all()
    text = read(write_report(tmp_path, data_set([image], ["scan"]))).text
    assert "slice 4 of 0–6, where the map is largest" in text


def test_restored_takes_the_range_of_the_input(tmp_path):
    make(tmp_path, [row("a", 0.5)])
    (tmp_path / "restored").mkdir()
    image = np.linspace(100, 4000, 200, dtype=np.uint16).reshape(1, 10, 20)
    Image.fromarray((image[0] // 2).astype(np.uint16)).save(tmp_path / "restored/a.png")
    picture = load_picture(read_results(tmp_path), 0, data_set([image], ["a"]), 0)
    assert picture.input.max() == 255
    assert 120 < picture.restored.max() < 130


@pytest.mark.parametrize(
    ("shape", "dtype", "expected", "words"),
    [
        ((1, 6, 5), np.uint8, (6, 5), ""),
        ((3, 6, 5), np.uint8, (6, 5, 3), ""),
        ((4, 6, 5), np.uint8, (6, 5, 3), "first 3 of 4 channels"),
        ((2, 6, 5), np.uint8, (6, 5), "mean of 2 channels"),
        ((7, 6, 5), np.float32, (6, 5), "mean of 7 channels; float32"),
        ((1, 6, 5), np.uint16, (6, 5), "uint16, "),
    ],
)
def test_every_kind_of_image_can_be_shown(shape, dtype, expected, words):
    image = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    shown, _, said = display(image)
    assert shown.shape == expected
    assert shown.dtype == np.uint8
    assert said.startswith(words)
    assert bool(said) == bool(words)
    if dtype == np.uint8 and shape[0] == 1:
        assert (shown == image[0]).all()


def test_nan_in_an_image_is_black_and_moves_no_limit():
    image = np.linspace(0, 1, 100, dtype=np.float32).reshape(1, 10, 10).copy()
    image[0, 0, 0] = np.nan
    shown, limits, _ = display(image)
    assert shown[0, 0] == 0
    assert shown.max() == 255
    assert 0 <= limits[0] < limits[1] <= 1


def test_large_images_shrink_and_a_single_hot_pixel_survives():
    map = np.zeros((1000, 1500), np.float32)
    map[777, 1234] = 5
    small = reduce(map, np.max)
    assert max(small.shape) <= LARGEST_SIDE
    assert small.max() == 5
    path = contour(small, 1.0, map.shape)
    xs, ys = np.array(re.findall(r"([\d.]+) ([\d.]+)", path), float).T
    assert xs.min() <= 1234 <= xs.max()
    assert ys.min() <= 777 <= ys.max()
    assert xs.max() - xs.min() < 20


def test_contours_close_at_the_border_and_stay_small():
    assert contour(np.ones((5, 8)), 0.5, (5, 8)).count("M") == 1
    assert contour(np.zeros((5, 8)), 0.5, (5, 8)) == ""
    assert contour(np.ones((5, 8)), np.inf, (5, 8)) == ""
    noise = np.random.default_rng(0).random((150, 150))
    assert len(contour(noise, 0.5, (150, 150))) < 100_000


def test_pixels_in_the_page_are_those_of_the_image(tmp_path):
    make(tmp_path, [row("a", 0.5)])
    image = np.random.default_rng(0).integers(0, 255, (1, 28, 28), dtype=np.uint8)
    [shown] = read(write_report(tmp_path, data_set([image], ["a"]))).having("image")
    decoded = Image.open(io.BytesIO(base64.b64decode(shown["href"].split(",")[1])))
    assert (np.asarray(decoded.convert("L")) == image[0]).all()
    assert shown["image-rendering"] == "pixelated"


# --- figures and numbers


def test_figures_keep_text_and_take_their_colours_from_the_page():
    svg = figures.roc_figure(
        [figures.Curve("a < b", [0, 0.5, 1], [0, 1, 1]), figures.Curve("c", [0, 1], [0, 1])], (0.1, 0.4)
    )
    assert "a &lt; b" in svg
    assert "var(--ink)" in svg
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]", svg)
    assert "http://www.w3.org/1999/xlink" in svg  # of namespaces alone
    assert len(re.findall("https?://", svg)) == 1


def test_same_input_same_bytes(written):
    folder, data, path = written
    first = path.read_bytes()
    assert write_report(folder, data).read_bytes() == first


def test_p_value_plot_takes_one_calibration_image_or_none():
    for count in (0, 1):
        svg = figures.p_value_figure(np.array([0.5, 1.0, np.nan]), np.array([0, 1, 0], np.int8), count, None)
        assert "p-value" in svg


def test_markup_escapes_all_but_markup():
    assert tag("b", "<i>", Markup("<u>"), title='">') == '<b title="&quot;&gt;">&lt;i&gt;<u></b>'
    assert join("broken \udcff name").encode("utf-8")  # a name that is not UTF-8 can be written


# --- faults


def test_faults_of_the_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"run\.json: cannot be read .* score the images again"):
        write_report(tmp_path)
    make(tmp_path, eight())
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"metrics\.json: is not valid JSON .* evaluate again"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match="expected format 1, got 2"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").unlink()
    for content, words in (
        ("path,case\na,a\n", "got no score"),
        ("path,case,score\na,a\n", "line 2 has 2 fields, expected 3"),
        ("path,case,score\na,a,much\n", "line 2 .* 'much'"),
        ("path,case,score\n", "at least one image"),
    ):
        (tmp_path / "scores.csv").write_text(content)
        with pytest.raises(DataError, match=words):
            write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


# --- comparison


def method(name, value, against=None, **more):
    auroc = {"value": value, "low": value - 0.05, "high": min(1, value + 0.05)} if value is not None else None
    return {"name": name, "words": {"latent": 8}, "auroc": auroc, "fit_seconds": 200.0, "folder": name, "against_best": against, **more}  # fmt: skip # noqa: E501


def compare(folder, methods, failed=()):
    folder.mkdir(exist_ok=True)
    content = {"format": 1, "data": {"name": "parts", "test_images": 8}, "methods": methods, "failed": list(failed)}
    (folder / "compare.json").write_text(json.dumps(content))
    return folder


def test_comparison_ranks_links_and_says_how_sure(tmp_path):
    def against(p):
        return {"best": "pca", "difference": -0.03, "low": -0.08, "high": 0.02, "p": p}

    methods = [
        method("kde", 0.88, against(0.2)),
        method("pca", 0.91, aupro={"value": 0.8}),
        method("vae<", 0.7, against(0.001)),
    ]
    compare(tmp_path, methods, [{"name": "gmm", "reason": "<out> of memory"}])
    for name in ("kde", "pca"):
        make(tmp_path / name, eight(), METRICS)
        write_report(tmp_path / name)
    page = read(write_comparison(tmp_path))
    assert_alone(page)
    assert "pca is best with AUROC 0.910 [0.860, 0.960]. These images do not tell it apart from kde." in page.text
    rows = page.text.split("AUPRO")[1]
    assert rows.index("pca") < rows.index("kde") < rows.index("vae<")
    assert "−0.030 [−0.080, +0.020]" in page.text
    assert "3.3 min" in page.text
    assert "<out> of memory" in page.text
    assert [a["href"] for a in page.having("a")] == ["./pca/report.html", "./kde/report.html"]
    assert "ROC curve" in [a["aria-label"] for a in page.having("svg", role="img")]


def test_comparison_without_an_area_or_with_none_at_all(tmp_path):
    page = read(write_comparison(compare(tmp_path, [method("pca", None)], [{"name": "kde", "reason": "no"}])))
    assert "No method has an AUROC" in page.text
    with pytest.raises(DataError, match="at least one method"):
        write_comparison(compare(tmp_path, []))
    with pytest.raises(DataError, match=r"compare\.json: cannot be read"):
        write_comparison(tmp_path / "nowhere")


def test_pictures_stand_between_input_and_conclusion(tmp_path):
    """Input, direct reconstruction, restored image, what is known of codes, map, overlay, spread."""
    data = full(tmp_path)
    for path in [item.path for item in data.items]:
        for name, shape in (("code_nll", (20, 30)), ("changed_codes", (20, 30)), ("reconstruction", (1, 20, 30))):
            file = tmp_path / "extra_maps" / name / f"{path}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, np.random.default_rng(0).random(shape).astype(np.float32))
    page = write_report(tmp_path, data).read_text()
    figure = page[page.index('<figure class="card">') :].partition("</figure>")[0]
    names = re.findall(r'<span class="name">([^<]*)</span>', figure)
    wanted = ["input", "reconstruction", "restored", "changed codes", "code nll", "map", "overlay", "uncertainty"]
    assert names == wanted


@pytest.mark.parametrize("radiological", [True, False])
@pytest.mark.parametrize("flat", [None, 0, 1, 2])
def test_sides_of_a_patient(tmp_path, flat, radiological):
    """A bright voxel at the right, the front and the head is shown where the letters say, for every plane."""
    from normalcy.data.volumes import Space, write_volume

    shape = [6, 8, 10]  # z, y, x
    if flat is not None:
        shape[flat] = 1
    space = Space((shape[2], shape[1], shape[0]), np.diag([1.0, 1.0, 1.0, 1.0]))
    volume = np.zeros(shape, np.float32)
    volume[-1, -1, -1] = 5
    values = volume if flat is None else volume.squeeze(flat)
    make(tmp_path, [row("scan", 0.5)])
    (tmp_path / "maps").mkdir()
    write_volume(tmp_path / "maps/scan.nii.gz", values, space)
    picture = load_picture(read_results(tmp_path), 0, None, None, radiological)
    left, right, top, bottom = picture.letters
    expected = {None: "ALPR", 0: "ALPR", 1: "ILRS", 2: "AIPS"}
    assert "".join(sorted(picture.letters)) == expected[flat]
    assert top in "AS"
    assert bottom in "PI"
    assert (left, right) == (("A", "P") if flat == 2 else ("R", "L") if radiological else ("L", "R"))
    line, column = np.argwhere(picture.map == 5)[0]
    assert line == 0
    assert column == (0 if left in "RA" else picture.map.shape[1] - 1)
    page = write_report(tmp_path, radiological=radiological).read_text()
    assert all(f'class="side">{letter}</text>' in page for letter in picture.letters)
