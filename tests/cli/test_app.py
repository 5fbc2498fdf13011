"""The command line from end to end on a small MVTec-style data set, and one sentence for each mistake."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runner import Run


def test_fit_score_evaluate_report(run: Run, tiles: Path, model: Path, tmp_path: Path) -> None:
    results = tmp_path / "R"
    assert run("score", model, tiles, "--out", results) == 0
    assert "24 images" in run.out
    with open(results / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "case", "score", "p_value", "flagged", "label", "type", "split", "file"]
    assert {row["split"] for row in rows} == {"test"}  # a labelled set scores its test split by default
    assert sorted({(row["label"], row["type"]) for row in rows}) == [("0", "good"), ("1", "spot")]
    maps = sorted(p.relative_to(results / "maps").as_posix() for p in (results / "maps").rglob("*.npy"))
    assert len(maps) == 24
    values = np.load(results / "maps" / "test/spot/003.png.npy")
    assert values.shape == (40, 48)
    assert values.dtype == np.float32
    assert Image.open(results / "restored" / "test/spot/003.png.png").size == (48, 40)
    assert len(list((results / "masks").rglob("*.png"))) == 12
    facts = json.loads((results / "run.json").read_text())
    assert facts["model"]["settings"]["size"] == 32
    assert facts["data"]["count"] == 24
    assert run("evaluate", results) == 0
    assert "image AUROC" in run.out
    found = json.loads((results / "metrics.json").read_text())
    assert found["image"]["auroc"]["value"] > 0.9
    assert found["pixel"]["auroc"]["value"] > 0.9
    assert found["image"]["auroc"]["low"] <= found["image"]["auroc"]["value"] <= found["image"]["auroc"]["high"]
    assert found["types"]["spot"]["count"] == 12
    assert (found["patch"]["size"], found["patch"]["fraction"]) == (5, 0.05)  # an eighth of 40 pixels
    assert found["patch"]["auroc"]["value"] > 0.9
    assert found["region"]["total"] == 12
    sensitivity = [entry["value"] for entry in found["region"]["sensitivity"]]
    assert sensitivity == sorted(sensitivity)
    assert (
        found["region"]["mean_sensitivity"]["low"]
        <= np.mean(sensitivity)
        <= found["region"]["mean_sensitivity"]["high"]
    )
    assert len(found["curves"]["froc"]["sensitivity"]) == 12
    assert run("evaluate", results, "--patch", 8, "--patch-share", 0.5) == 0
    assert "patch AUROC (side 8" in run.out
    assert json.loads((results / "metrics.json").read_text())["patch"]["left_out"] > 0
    assert not list(results.glob("maps/**/*.png"))
    assert run("report", results, "--pictures") == 0
    assert Image.open(results / "maps" / "test/spot/003.png.png").size == (48, 40)
    assert {f.with_suffix(".npy") for f in results.glob("maps/**/*.png")} == set(results.glob("maps/**/*.npy"))
    page = (results / "report.html").read_text()
    assert "test/spot/003.png" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert run("info", model) == 0
    assert "pca detector" in run.out


def test_evaluation_agrees_with_scikit_learn(run: Run, tiles: Path, model: Path, tmp_path: Path) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    results = tmp_path / "R"
    assert run("score", model, tiles, "--out", results) == 0
    assert run("evaluate", results) == 0
    found = json.loads((results / "metrics.json").read_text())
    with open(results / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    labels, scores = [int(r["label"]) for r in rows], [float(r["score"]) for r in rows]
    assert found["image"]["auroc"]["value"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["image"]["average_precision"]["value"] == pytest.approx(average_precision_score(labels, scores))
    pixels, truth = [], []
    for row in rows:
        pixels.append(np.load(results / "maps" / f"{row['path']}.npy").ravel())
        mask = results / "masks" / f"{row['path']}.png"
        truth.append(np.asarray(Image.open(mask)).ravel() > 0 if mask.exists() else np.zeros(pixels[-1].size, bool))
    assert found["pixel"]["auroc"]["value"] == pytest.approx(
        roc_auc_score(np.concatenate(truth), np.concatenate(pixels))
    )
    decided = found["image"]["at_threshold"]
    flagged = np.array([row["flagged"] == "1" for row in rows])
    assert decided["false_positives"] == flagged[np.array(labels) == 0].sum()
    assert decided["true_positive_rate"] == flagged[np.array(labels) == 1].mean()


def test_own_images_without_labels(run: Run, tiles: Path, model: Path, tmp_path: Path) -> None:
    assert run("score", model, tiles / "test/spot/000.png", tiles / "test/good", "--out", tmp_path / "R") == 0
    with open(tmp_path / "R/scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13
    assert {row["label"] for row in rows} == {""}
    assert run("report", tmp_path / "R") == 0
    assert run("evaluate", tmp_path / "R") == 1
    assert "has no labels" in run.err


def test_a_labelled_table_without_splits_is_scored_whole(run: Run, tiles: Path, model: Path, tmp_path: Path) -> None:
    files = sorted(tiles.glob("test/*/*.png"))
    for labels in ([int("spot" in str(file)) for file in files], ["1"] * 24, ["", *["1"] * 3, *["0"] * 20]):
        table = "path,label\n" + "".join(f"{file},{label}\n" for file, label in zip(files, labels))
        (tmp_path / "t.csv").write_text(table)
        for words in ((), ("--split", "all")):
            run.good("score", model, tmp_path / "t.csv", "--out", tmp_path / "R", "--overwrite", "--no-maps", *words)
            assert "Scored 24 images" in run.out
            assert ("--split test scores those that it has not seen" in run.err) == (words == () and labels[5] != "1")


def test_check_says_what_fit_will_do(run: Run, tmp_path: Path) -> None:
    data, rng = tmp_path / "data", np.random.default_rng(0)
    data.mkdir()
    for i in range(60):
        shape = (16, 16) if i < 3 else (16, 16, 3) if i < 59 else (24, 24, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(data / f"{i:02d}.png")
    (data / "07.png").write_bytes((data / "07.png").read_bytes()[:60])
    assert run("check", data) == 1
    assert (
        "fit would train on 35 images as 3 x 16 x 16 (channels x size), 20 held out for calibration; 5 would be skipped."
        in run.out
    )
    would = {
        line.split(":")[0].removeprefix("Would skip ") for line in run.out.splitlines() if line.startswith("Would")
    }
    assert would == {"00.png", "01.png", "02.png", "07.png", "59.png"}
    words = "fit", data, "--method", "pca", "--out", tmp_path / "m"
    assert "on 35 images (20 held out for calibration, 5 skipped)" in run.good(*words)
    assert {line.split(":")[0].removeprefix("Skipped ") for line in run.err.splitlines() if "Skipped" in line} == would
    assert run(*words, "--overwrite", "--set", "max_skipped=0.05") == 1
    assert "5 of 60 training images cannot be used" in run.err
    assert not (tmp_path / "m.run").exists()
    for i in range(30, 60):
        (data / f"{i:02d}.png").unlink()
    run.good(*words, "--overwrite", "--set", "max_skipped=0.2", "--false-alarms", "0.01")
    assert (
        "Note: no image can be flagged with 13 held-out images at false-alarm rate 0.01: at least 99 are needed"
        in run.err
    )
    assert "no image can be flagged with 13" in (tmp_path / "m/CARD.md").read_text()


def test_bad_files_are_listed_and_skipped(run: Run, tiles: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("000.png", "001.png"):
        (folder / name).write_bytes((tiles / "test/good" / name).read_bytes())
    (folder / "cut.png").write_bytes((tiles / "test/good/002.png").read_bytes()[:200])
    (folder / "empty.png").write_bytes(b"")
    assert run("score", model, folder, "--out", tmp_path / "R") == 0
    assert "Skipped cut.png" in run.err
    assert "Skipped empty.png" in run.err
    assert "2 images" in run.out
    for name in ("000.png", "001.png"):
        (folder / name).unlink()
    assert run("score", model, folder, "--out", tmp_path / "R2") == 1
    assert not (tmp_path / "R2").exists()


def test_thresholds_by_other_rules(run: Run, tiles: Path, model: Path, tmp_path: Path) -> None:
    assert run("score", model, tiles, "--out", tmp_path / "a", "--rule", "minimum_area:30") == 2
    assert "--validation" in run.err
    normal = tiles / "test/good"
    assert run("score", model, tiles, "--out", tmp_path / "a", "--rule", "minimum_area:30", "--validation", normal) == 0
    facts = json.loads((tmp_path / "a/run.json").read_text())["calibration"]
    assert facts["minimum_area"] == 30
    assert run("score", model, tiles, "--out", tmp_path / "b", "--rule", "max_f1", "--validation", tiles) == 2
    assert "proves nothing" in run.err
    shutil.copytree(tiles / "test", tmp_path / "other/test")
    shutil.copytree(tiles / "ground_truth", tmp_path / "other/ground_truth")
    shutil.copytree(tiles / "train", tmp_path / "other/train")
    other = tmp_path / "other"
    assert run("score", model, tiles, "--out", tmp_path / "b", "--rule", "max_f1", "--validation", other) == 0
    assert run("evaluate", tmp_path / "b") == 0
    assert run("score", model, tiles, "--out", tmp_path / "c", "--false-alarms", "0.4") == 0
    c = json.loads((tmp_path / "c/run.json").read_text())["calibration"]
    assert c["false_alarms"] == 0.4
    assert c["threshold"] is not None


def test_nothing_is_overwritten_unasked(run: Run, tiles: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "R").mkdir()
    (tmp_path / "R/mine.txt").write_text("mine")
    before = (model / "detector.json").read_text()
    assert run("score", model, tiles, "--out", tmp_path / "R") == 2
    assert run("fit", tiles, "--method", "zscore", "--out", model, "--set", "size=32") == 2
    assert (model / "detector.json").read_text() == before
    assert (tmp_path / "R/mine.txt").read_text() == "mine"
    assert run("score", model, tiles, "--out", tmp_path / "R", "--overwrite") == 0


def test_compare_tabulates_and_tests(run: Run, tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "C"
    words = ("--set", "size=32", "--set", "pca.components=3")
    assert run("compare", tiles, "--methods", "zscore,pca", "--out", out, *words) == 0
    found = json.loads((out / "compare.json").read_text())
    assert [row["name"] for row in found["methods"]] == ["zscore", "pca"]
    assert sum(row["against_best"] is None for row in found["methods"]) == 1
    assert (out / "report.html").exists()
    assert (out / "pca/report.html").exists()
    assert found["methods"][1]["settings"]["components"] == "3"
    assert run("compare", tiles, "--methods", "zscore,pca", "--out", tmp_path / "D", "--set", "colour=red") == 2
    assert run("compare", tiles, "--methods", "", "--out", tmp_path / "D") == 2


def test_check_lists_faults(run: Run, tiles: Path, tmp_path: Path) -> None:
    assert run("check", tiles) == 0
    assert "0 errors" in run.out
    broken = tmp_path / "broken"
    shutil.copytree(tiles, broken)
    (broken / "train/good/000.png").write_bytes((broken / "train/good/000.png").read_bytes()[:100])
    shutil.copy(broken / "train/good/001.png", broken / "test/good/copy.png")
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(broken / "ground_truth/spot/001_mask.png")
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(broken / "ground_truth/spot/002_mask.png")
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(broken / "train/good/colour.png")
    assert run("check", broken) == 1
    for path in (
        "train/good/000.png",
        "test/good/copy.png",
        "test/spot/001.png",
        "test/spot/002.png",
        "train/good/colour.png",
    ):
        assert path in run.out


def test_settings_from_a_file_and_the_command_line(run: Run, tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('method = "pca"\nsize = 24\ncomponents = 5\nseed = 3\n')
    assert run("fit", tiles, "--out", tmp_path / "M", "--config", tmp_path / "run.toml", "--set", "components=4") == 0
    words = json.loads((tmp_path / "M/detector.json").read_text())
    assert words["method"] == "pca"
    assert words["input"]["size"] == 24
    assert words["settings"]["components"] == 4
    assert words["train"]["seed"] == 3
    assert not (tmp_path / "M.run").exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["fit", "DATA", "--method", "pcaa", "--out", "X"], 2, "did you mean 'pca'"),
        (["fit", "DATA", "--method", "pca", "--out", "X", "--set", "latnt=3"], 2, "has no setting 'latnt'"),
        (["fit", "DATA", "--method", "pca", "--out", "X", "--set", "latent"], 2, "key=value"),
        (["fit", "DATA", "--method", "autoencoder", "--out", "X", "--set", "latent=many"], 2, "whole number"),
        (["fit", "DATA", "--method", "autoencoder", "--out", "X", "--epochs", "-3"], 2, "positive"),
        (["fit", "DATA", "--method", "pca", "--out", "X", "--config", "none.toml"], 2, "Cannot read the settings file"),
        (["fit", "DATA", "--method", "pca"], 2, "--out"),
        (["fit", "nowhere", "--method", "pca", "--out", "X"], 1, "neither a file or folder"),
        (["fit", "mnist:11", "--method", "pca", "--out", "X"], 1, "mnist"),
        (["fit", "DATA", "--method", "pca", "--out", "X", "--device", "tpu"], 2, "device must be"),
        (["score", "nowhere", "DATA", "--out", "X"], 1, "There is no model folder"),
        (["score", "MODEL", "DATA", "--out", "X", "--split", "dev"], 1, "no images of split"),
        (["score", "MODEL", "DATA", "--out", "X", "--score", "kl"], 2, "no score"),
        (["score", "MODEL", "DATA", "--out", "X", "--false-alarms", "7"], 2, "between 0 and 1"),
        (["evaluate", "nowhere"], 1, "cannot be read"),
        (["report", "nowhere"], 1, "cannot be read"),
        (["methods", "nothing"], 2, "There is no method"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_mistakes_get_one_sentence(
    run: Run,
    tiles: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"DATA": str(tiles), "MODEL": str(model)}
    assert run(*[known.get(word, word) for word in words]) == code
    assert says in run.err
    assert not (tmp_path / "X").exists()


def test_methods_lists_every_method_with_its_settings(run: Run) -> None:
    from normalcy import METHODS

    assert run("methods") == 0
    assert all(name in run.out for name in METHODS)
    assert run("methods", "vae") == 0
    assert "latent" in run.out
    assert "false_alarms" in run.out
