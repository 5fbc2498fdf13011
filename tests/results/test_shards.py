"""Shards of a data set, and their merge: the rows, cases, maps and metrics of one run."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from example_parts import save, texture

from normalcy import Detector
from normalcy.data.dataset import DataSet
from normalcy.data.open import as_dataset, open_data
from normalcy.errors import DataError, SettingsError
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import read_results
from normalcy.results.pictures import write_pictures
from normalcy.results.predict import score_into
from normalcy.results.run import Shard, read_run, read_shard, shard_of
from normalcy.results.shards import merge


@pytest.fixture(scope="module")
def exact() -> Detector:
    """A method whose scores do not change with the rounding of other batches."""
    return Detector("zscore").fit(np.stack([texture(seed) for seed in range(60)]))


@pytest.fixture
def table(parts: Path) -> Path:
    """The parts with masks and cases of two images each, and a file that cannot be read."""
    (parts / "img" / "n9.png").write_bytes(b"no image")
    rows = [f"img/n{k}.png,0,,normal{k // 2}" for k in range(4)]
    rows += [f"img/d{k}.png,1,msk/d{k}.png,=part{k // 2}" for k in range(4)] + ["img/n9.png,0,,normal9"]
    path = parts / "parts.csv"
    path.write_text("path,label,mask,case\n" + "\n".join(rows) + "\n")
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in ("run.json", "metrics.json")
    }


def facts(folder: Path) -> dict[str, Any]:
    """run.json without times, and without the fingerprint of images of which some could not be scored."""
    run = json.loads((folder / "run.json").read_text())
    if run.get("data", {}).get("failed"):
        del run["data"]["fingerprint"]
    return {key: value for key, value in run.items() if key not in ("created", "seconds", "images_per_second")}


def shards(detector: Detector, data: Any, folder: Path, count: int, **options: Any) -> list[Path]:
    made = []
    for k in range(1, count + 1):
        made.append(folder / f"shard{k}")
        score_into(detector, data, made[-1], shard=Shard(k, count), **options)
    return made


@pytest.mark.parametrize("count", [2, 3, 7])
def test_merged_shards_are_one_run(exact: Detector, table: Path, tmp_path: Path, count: int):
    data = open_data(str(table))
    score_into(exact, data, tmp_path / "one", spec=str(table))
    made = shards(exact, data, tmp_path, count, spec=str(table))
    counts = [read_run(folder).data.count for folder in made]
    assert sum(counts) == 8
    assert count < 7 or 0 in counts  # five cases: some of seven shards are empty
    merge(made[::-1], tmp_path / "all")
    assert files_of(tmp_path / "all") == files_of(tmp_path / "one")
    assert facts(tmp_path / "all") == facts(tmp_path / "one")
    metrics = [evaluate(tmp_path / name).image for name in ("all", "one")]
    assert metrics[0] == metrics[1]
    assert [len(list(csv.reader((folder / "scores.csv").open()))) for folder in made] == [n + 1 for n in counts]


def test_restored_images_are_merged(detector: Detector, table: Path, tmp_path: Path):
    data = open_data(str(table))
    score_into(detector, data, tmp_path / "one")
    merge(shards(detector, data, tmp_path, 3), tmp_path / "all")
    one, together = files_of(tmp_path / "one"), files_of(tmp_path / "all")
    assert one.keys() == together.keys()
    assert {name: one[name] for name in one if "restored" in name} == {
        name: together[name] for name in one if "restored" in name
    }
    scores = [read_results(tmp_path / name).scores for name in ("one", "all")]
    assert np.allclose(*scores, rtol=1e-5)


def test_pictures_of_an_uncalibrated_model_get_the_range_of_all(parts: Path, tmp_path: Path):
    detector = Detector("zscore", calibration=0).fit(np.stack([texture(seed) for seed in range(20)]))
    data = open_data(str(parts / "img"))
    score_into(detector, data, tmp_path / "one")
    made = shards(detector, data, tmp_path, 3)
    for folder in (tmp_path / "one", *made):
        write_pictures(read_results(folder))
    before = [files_of(folder) for folder in made]
    merge(made, tmp_path / "all")
    assert files_of(tmp_path / "all") == files_of(tmp_path / "one")
    assert len(list((tmp_path / "all" / "maps").rglob("*.png"))) == len(data)
    assert read_run(tmp_path / "all").map_range == read_run(tmp_path / "one").map_range
    assert [files_of(folder) for folder in made] == before  # the files are shared with the merged folder


def test_slices_and_latents_come_in_order(tmp_path: Path):
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 255, (n, 6, 16, 16), dtype=np.uint8) for n in (8, 5))
    volumes = Detector("zscore", slices="z", calibration=0).fit(as_data(train))
    score_into(volumes, as_data(test), tmp_path / "one")
    merge(shards(volumes, as_data(test), tmp_path, 3), tmp_path / "all")
    assert "slices.csv" in files_of(tmp_path / "one")
    assert files_of(tmp_path / "all") == files_of(tmp_path / "one")

    latent = Detector("autoencoder", steps=1, calibration=0, latent=4).fit(train[:, 0])
    score_into(latent, as_data(test[:, 0]), tmp_path / "two")
    merge(shards(latent, as_data(test[:, 0]), tmp_path / "b", 3), tmp_path / "both")
    assert np.allclose(np.load(tmp_path / "both/latents.npy"), np.load(tmp_path / "two/latents.npy"), atol=1e-4)


def as_data(images: Any) -> DataSet:
    return as_dataset(images[..., None])


def test_a_case_is_never_divided_and_every_image_in_one_shard():
    cases = [f"patient {i // 3}" for i in range(300)]
    for count in (1, 2, 7, 500):
        places = [shard_of(cases, Shard(k, count)) for k in range(1, count + 1)]
        assert sorted(np.concatenate(places).tolist()) == list(range(300))
        assert sum(len({cases[i] for i in part}) for part in places) == 100
    assert shard_of([], Shard(1, 2)).tolist() == []


@pytest.mark.parametrize(
    "text", ["", "1", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/b", "1.0/2", "²/3", "1/" + "9" * 40]
)
def test_what_is_no_shard_is_refused(text: str):
    with pytest.raises(SettingsError, match="--shard expects K/N"):
        read_shard(text)


def test_shards_that_do_not_belong_together_are_refused(detector: Detector, parts: Path, tmp_path: Path):
    data = open_data(str(parts / "img"))
    made = shards(detector, data, tmp_path, 3)
    out = tmp_path / "all"
    with pytest.raises(DataError, match=r"all 3 shards, got 2; missing: 2\."):
        merge([made[0], made[2]], out)
    with pytest.raises(DataError, match="are both shard 1 of 3"):
        merge([*made, made[0]], out)
    score_into(detector, data, tmp_path / "whole")
    with pytest.raises(DataError, match="whole: was not scored with --shard"):
        merge([tmp_path / "whole", *made], out)
    score_into(detector, data, tmp_path / "half", shard=Shard(2, 2))
    with pytest.raises(DataError, match="one of 2 shards"):
        merge([made[0], tmp_path / "half", made[2]], out)
    other = Detector("pca", components=3).fit(np.stack([texture(seed) for seed in range(60)]))
    score_into(other, data, tmp_path / "other", shard=Shard(2, 3))
    with pytest.raises(DataError, match="other: has another model"):
        merge([made[0], tmp_path / "other", made[2]], out)
    save(parts / "img" / "more.png", texture(1))
    score_into(detector, open_data(str(parts / "img")), tmp_path / "later", shard=Shard(2, 3))
    with pytest.raises(DataError, match="later: has another data set"):
        merge([made[0], tmp_path / "later", made[2]], out)
    with pytest.raises(SettingsError, match="got none"):
        merge([], out)
    assert not out.exists()
    (made[1] / "positions.npy").unlink()
    with pytest.raises(DataError, match=r"positions\.npy"):
        merge(made, out)
    np.save(made[1] / "positions.npy", np.load(made[0] / "positions.npy"))
    with pytest.raises(DataError, match="positions"):
        merge(made, out)
    assert not out.exists()


def test_an_existing_folder_is_kept(detector: Detector, parts: Path, tmp_path: Path):
    made = shards(detector, open_data(str(parts / "img")), tmp_path, 2)
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "mine.txt").write_text("mine")
    with pytest.raises(SettingsError, match="--overwrite"):
        merge(made, tmp_path / "all")
    assert [p.name for p in (tmp_path / "all").iterdir()] == ["mine.txt"]
    with pytest.raises(SettingsError, match="which is read"):
        merge(made, made[0], overwrite=True)
    assert (made[0] / "positions.npy").exists()


def test_files_of_a_shard_that_are_links_are_not_followed(detector: Detector, parts: Path, tmp_path: Path):
    made = shards(detector, open_data(str(parts / "img")), tmp_path, 2)
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (made[0] / "maps" / "private.npy").symlink_to(secret)
    merge(made, tmp_path / "all")
    assert not (tmp_path / "all" / "maps" / "private.npy").exists()


def test_slides(tmp_path: Path):
    from normalcy.data.slides import Slide, TileSettings
    from normalcy.results.slides import score_slides

    rng = np.random.default_rng(0)
    files = []
    for k in range(3):
        pixels = rng.integers(60, 180, (256, 256, 3), dtype=np.uint8)
        files.append(tmp_path / f"slide{k}.tif")
        tifffile.imwrite(files[-1], pixels, tile=(64, 64), photometric="rgb")
    settings = TileSettings(tile=64, mpp=None, tissue=0)
    slides = [Slide(file, settings) for file in files]
    detector = Detector("pca", components=2).fit(rng.integers(60, 180, (40, 64, 64, 3), dtype=np.uint8))
    score_slides(detector, slides, tmp_path / "one")
    made = []
    for k in range(1, 8):
        made.append(tmp_path / f"shard{k}")
        score_slides(detector, slides, made[-1], shard=Shard(k, 7))
    assert merge(made, tmp_path / "all") == 3
    assert files_of(tmp_path / "all") == files_of(tmp_path / "one")
    assert facts(tmp_path / "all") == facts(tmp_path / "one")
    with pytest.raises(DataError, match="missing: 7"):
        merge(made[:-1], tmp_path / "again")
    shutil.rmtree(made[0])
    with pytest.raises(DataError):
        merge(made, tmp_path / "again")
