"""A region of interest: what is outside of it changes no score, map or flag; what is inside is found as before."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normalcy import Detector, load, open_data
from normalcy.arrays import Array, Mask
from normalcy.data.images import read_image, write_image
from normalcy.data.roi import decode_roi, encode_roi, scaled_roi
from normalcy.errors import DataError, ModelFileError
from normalcy.scoring import Result

SIDE = 32
METHODS: dict[str, dict[str, Any]] = {
    "pca": {},
    "autoencoder": {"steps": 80, "width": 4, "latent": 8, "lr": 0.01},
    "vae": {"steps": 40, "width": 4, "latent": 4, "lr": 0.01, "score": "elbo"},
    "zscore": {},
    "gmm": {},
    "isolation_forest": {"trees": 50},
    "padim": {"layers": (1, 2), "dimensions": 20},
    "patchcore": {"patches": 1000, "memory": 200},
    "ocsvm": {},
    "deep_svdd": {"steps": 80, "width": 8, "lr": 0.003},
    "ddr_id": {"steps": 60, "width": 4, "latent": 8, "lr": 0.003},
    "ganomaly": {"steps": 40, "latent": 8, "width": 4, "lr": 2e-3},
    "lsr": {"steps": 2},
}
"""Several of each family, fitted for a moment."""
FLAGGING = [name for name in METHODS if name not in ("vae", "ganomaly", "lsr", "isolation_forest", "ddr_id")]
"""Those that find a bright square after a moment of training."""


def region() -> Mask:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[4:28, 3:19] = True
    return mask


def images(count: int, seed: int = 0, channels: int = 3) -> Array:
    """(count, SIDE, SIDE, channels) uint8: stripes with noise inside of the region, and anything outside."""
    rng = np.random.default_rng(seed)
    stripes = 120 + 40 * np.sin(np.arange(SIDE) / 2)[:, None, None]
    normal = stripes + 10 * rng.normal(size=(count, SIDE, SIDE, channels))
    wild = rng.uniform(0, 255, (count, 1, 1, channels)) + 20 * rng.normal(size=normal.shape)
    return np.where(region()[..., None], normal, wild).clip(0, 255).astype(np.uint8)


def other_outside(x: Array, seed: int = 7) -> Array:
    noise = np.random.default_rng(seed).integers(0, 256, x.shape, dtype=np.uint8)
    return np.where(region()[..., None], x, noise)


def defect(x: Array, rows: slice, columns: slice) -> Array:
    changed = x.copy()
    changed[:, rows, columns] = 255
    return changed


@pytest.fixture(scope="module")
def mask_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("roi") / "mask.png"
    write_image(file, region()[None].astype(np.uint8) * 7)
    return file


def detector(name: str, roi: Path | None, **words: Any) -> Detector:
    settings = {"calibration": 0.4, "preprocess": (), **METHODS.get(name, {}), **words}
    return Detector(name, roi=None if roi is None else str(roi), **settings)


@pytest.mark.filterwarnings("ignore:no image can be flagged")
@pytest.mark.parametrize("name", METHODS)
def test_what_is_outside_changes_nothing(name: str, mask_file: Path):
    few = {"calibration": 0.0} if name == "lsr" else {}
    fitted = detector(name, mask_file, **few).fit(images(24 if few else 60))
    x = images(3, seed=1)
    before, after = fitted.score(x), fitted.score(other_outside(x))
    assert len(before) == len(after) == 3
    for a, b in zip(before, after):
        assert a.score == b.score
        assert (a.p_value, a.flagged) == (b.p_value, b.flagged)
        for first, second in (
            (a.map, b.map),
            (a.uncertainty, b.uncertainty),
            *((m, b.extra_maps[k]) for k, m in a.extra_maps.items()),
        ):
            assert (first is None) == (second is None)
            if first is not None and second is not None:
                assert np.array_equal(first, second)
                if first.min() >= 0:
                    assert not first[..., ~region()].any()
        if a.map is not None:
            assert a.map[region()].std() > 0
        if b.restored is not None:  # outside, the image itself
            original = np.moveaxis(other_outside(x)[list(after).index(b)], -1, 0)
            assert np.array_equal(b.restored[:, ~region()], original[:, ~region()])
    assert fitted.score(255 - x).scores.tolist() != before.scores.tolist()


@pytest.mark.parametrize("name", FLAGGING)
def test_a_defect_inside_is_flagged_and_one_outside_is_not(name: str, mask_file: Path):
    fitted = detector(name, mask_file).fit(images(60))
    held_out = fitted.calibration
    assert held_out is not None
    x = images(8, seed=2)
    inside, outside = defect(x, slice(10, 18), slice(7, 15)), defect(x, slice(10, 18), slice(22, 30))
    assert fitted.score(inside).flagged.all()
    assert fitted.score(outside).flagged.tolist() == fitted.score(x).flagged.tolist()
    assert fitted.score(outside).flagged.mean() <= 0.25


def test_training_sees_nothing_outside(mask_file: Path):
    x = images(60)
    a, b = (detector("pca", mask_file).fit(part) for part in (x, other_outside(x)))
    test = images(4, seed=3)
    assert a.score(test).scores.tolist() == b.score(test).scores.tolist()
    assert a.calibration is not None
    assert b.calibration is not None
    assert a.calibration.to_json() == b.calibration.to_json()


def test_the_score_is_the_reduction_over_the_region_alone(mask_file: Path):
    fitted = detector("zscore", mask_file, quantile=0.5, smoothing=0.0).fit(images(60))
    (result,) = fitted.score(images(1, seed=4))
    assert result.map is not None
    inside = np.sort(result.map[region()])
    assert result.score == inside[int(0.5 * len(inside))]


def test_pixel_threshold_is_that_of_the_region(mask_file: Path):
    """Zeros outside are no pixels that a normal image may have flagged."""
    fitted = detector("zscore", mask_file, false_alarms=0.3, smoothing=0.0).fit(images(60))
    decision = fitted.decide()
    assert decision is not None
    assert decision.pixel_threshold is not None
    maps = fitted.score(images(40, seed=5)).maps
    fractions = [(m[region()] > decision.pixel_threshold).mean() for m in maps if m is not None]
    assert 0.15 < np.mean(fractions) <= 0.3


@pytest.mark.parametrize("values", [np.uint16, np.float32])
def test_other_kinds_of_values_and_statistics(values: Any, mask_file: Path):
    """The range of values and the statistics of each image are those of the region."""
    x = (images(40, channels=1) * np.float32(3)).astype(values) + values(1000)
    wild = np.where(region()[..., None], x, values(60000))
    fitted = detector("zscore", mask_file, preprocess=("percentile",)).fit(wild)
    assert fitted.preprocess.constants.high < 2000
    test = x[:2]
    assert (
        fitted.score(test).scores.tolist()
        == fitted.score(np.where(region()[..., None], test, values(0))).scores.tolist()
    )


def test_geometry_is_that_of_the_image(mask_file: Path):
    """Resizing, cropping and padding take the region along; maps come back at the size of the image."""
    fitted = detector("pca", mask_file, preprocess=("centre_crop:0.9", "pad:8"), size=24).fit(images(60))
    x = images(2, seed=6)
    a, b = fitted.score(x), fitted.score(other_outside(x))
    assert a.scores.tolist() == b.scores.tolist()
    for map in a.maps:
        assert map is not None
        assert map.shape == (SIDE, SIDE)
        assert not map[~region()].any()
        assert map[region()].any()


def test_tiles_outside_are_neither_learnt_nor_scored(mask_file: Path):
    # of 16 tiles of 8 pixels, those in the last column see nothing of the region
    fitted = detector("kde", mask_file, tile=8, tile_overlap=0.0).fit(images(60))
    x = images(3, seed=8)
    before, after = fitted.score(x), fitted.score(other_outside(x))
    assert before.scores.tolist() == after.scores.tolist()
    assert fitted.method is not None
    seen = 4 * 3  # rows and columns of tiles
    assert len(fitted.method.points) == 36 * seen
    mean = detector("kde", mask_file, tile=8, tile_overlap=0.0, view_score="mean").fit(images(60))
    assert mean.score(x).scores.tolist() == mean.score(other_outside(x)).scores.tolist()


def test_a_mask_at_another_scale(tmp_path: Path):
    small = tmp_path / "small.png"
    write_image(small, region()[None, ::2, ::2].astype(np.uint8) * 255)
    fitted = detector("pca", small).fit(images(60))
    (result,) = fitted.score(images(1))
    expected = np.repeat(np.repeat(region()[::2, ::2], 2, 0), 2, 1)
    assert result.roi is not None
    assert np.array_equal(result.roi, expected)


def test_scaling_is_by_the_nearest_pixel_and_keeps_the_aspect_ratio():
    mask = np.random.default_rng(0).random((6, 9)) > 0.5
    assert np.array_equal(scaled_roi(mask, (12, 18), "a"), np.kron(mask, np.ones((2, 2))) > 0)
    assert np.array_equal(scaled_roi(scaled_roi(mask, (12, 18), "a"), (6, 9), "a"), mask)
    assert scaled_roi(np.ones((667, 1000), bool), (333, 500), "a").shape == (333, 500)
    for size in ((9, 6), (7, 9), (6, 10), (64, 64)):
        with pytest.raises(DataError, match="its aspect ratio"):
            scaled_roi(mask, size, "a")
    with pytest.raises(DataError, match="single slices"):
        scaled_roi(mask, (4, 6, 9), "a")


def test_impossible_regions_are_refused(tmp_path: Path):
    empty, wide = tmp_path / "empty.png", tmp_path / "wide.png"
    write_image(empty, np.zeros((1, SIDE, SIDE), np.uint8))
    write_image(wide, np.ones((1, SIDE, 2 * SIDE), np.uint8))
    with pytest.raises(DataError, match="not zero somewhere"):
        detector("pca", empty).fit(images(40))
    with pytest.raises(DataError, match=r"32 x 32 or of its aspect ratio, got 32 x 64"):
        detector("pca", wide).fit(images(40))
    with pytest.raises(DataError, match="missing"):
        detector("pca", tmp_path / "missing.png").fit(images(40))
    corner = tmp_path / "corner.png"
    mask = np.zeros((1, SIDE, SIDE), np.uint8)
    mask[:, :2, :2] = 1
    write_image(corner, mask)
    with pytest.raises(DataError, match="outside of what preprocessing keeps"):
        detector("pca", corner, preprocess=("centre_crop:0.5",)).fit(images(40))
    with pytest.raises(DataError, match="single slices"):
        detector("zscore", corner, size=8).fit(np.zeros((30, 8, 8, 8, 1), np.uint8))


def test_images_of_another_shape_are_listed(mask_file: Path):
    fitted = detector("pca", mask_file, size=24).fit(images(40))
    other = np.zeros((SIDE, SIDE + 8, 3), np.uint8)
    results = fitted.score([images(1)[0], other])
    assert len(results) == 1
    assert "aspect ratio" in results.failed[0].reason


def test_a_moved_model_keeps_its_region(tmp_path: Path, mask_file: Path):
    mine = shutil.copy(mask_file, tmp_path / "mine.png")
    fitted = detector("pca", Path(mine)).fit(images(60))
    x = images(2, seed=9)
    expected = fitted.score(x)
    saved = fitted.save(tmp_path / "model")
    Path(mine).unlink()
    moved = Path(shutil.move(saved, tmp_path / "elsewhere"))
    description = json.loads((moved / "detector.json").read_text())
    assert description["input"]["roi"] == "roi.png"
    assert str(tmp_path) not in (moved / "detector.json").read_text()
    again = load(moved)
    assert again.score(x).scores.tolist() == expected.scores.tolist()
    assert again.score(other_outside(x)).scores.tolist() == expected.scores.tolist()
    assert "Region of interest: 37.5% of the image (roi.png, 32 x 32)" in again.card()
    twice = load(again.save(tmp_path / "twice"))
    assert twice.roi is not None
    assert np.array_equal(twice.roi, region())
    (moved / "roi.png").write_bytes(encode_roi(~region()))
    with pytest.raises(ModelFileError, match="exchanged"):
        load(moved)
    (moved / "roi.png").unlink()
    with pytest.raises(ModelFileError, match=r"roi\.png"):
        load(moved)


def test_models_without_a_region_have_none(tmp_path: Path):
    saved = detector("pca", None).fit(images(60)).save(tmp_path / "model")
    description = json.loads((saved / "detector.json").read_text())
    assert "roi_sha256" not in description
    assert not (saved / "roi.png").exists()
    del description["input"]["roi"]  # as earlier versions wrote it
    (saved / "detector.json").write_text(json.dumps(description))
    again = load(saved)
    assert again.roi is None
    assert "Region" not in again.card()
    assert again.score(images(1))[0].roi is None


def test_encoding_keeps_the_mask():
    assert np.array_equal(decode_roi(encode_roi(region()), "a"), region())


@pytest.mark.filterwarnings("ignore:no image can be flagged")
@pytest.mark.parametrize("name", ["pca", "deep_svdd"])
def test_exported_models_apply_it(name: str, tmp_path: Path, mask_file: Path):
    pytest.importorskip("onnxruntime")
    from normalcy.export import export
    from normalcy.export.scorer import load as load_scorer

    fitted = detector(name, mask_file, **({"steps": 5} if name == "deep_svdd" else {})).fit(images(60))
    model = fitted.save(tmp_path / "model")
    export(model, tmp_path / "exported")
    x = images(3, seed=10)
    scorer = load_scorer(tmp_path / "exported")
    for by in (scorer, load(tmp_path / "exported")):
        found = by.score(other_outside(x))
        assert found.scores == pytest.approx(fitted.score(x).scores, rel=1e-3)
        assert found.scores.tolist() == by.score(x).scores.tolist()
        for map in found.maps:
            assert map is None or not map[~region()].any()
    assert "Region of interest" in (tmp_path / "exported" / "CARD.md").read_text()
    (tmp_path / "exported" / "roi.png").write_bytes(encode_roi(~region()))
    with pytest.raises(ModelFileError, match="exchanged"):
        load_scorer(tmp_path / "exported")


def written(folder: Path, x: Array, regions: list[Mask | None]) -> Path:
    """A table of images as files, with a region for each."""
    (folder / "rois").mkdir(parents=True)
    rows = [("path", "roi")]
    for i, (image, mask) in enumerate(zip(x, regions)):
        write_image(folder / f"{i:03}.png", np.moveaxis(image, -1, 0))
        if mask is not None:
            write_image(folder / "rois" / f"{i:03}.png", mask[None].astype(np.uint8) * 255)
        rows.append((f"{i:03}.png", "" if mask is None else f"rois/{i:03}.png"))
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "table.csv"


def test_a_region_for_each_image_in_a_table(tmp_path: Path, mask_file: Path):
    rng = np.random.default_rng(0)
    shifted = [np.roll(region(), int(k), axis=1) for k in rng.integers(0, 8, 60)]
    data = open_data(written(tmp_path / "train", images(60), shifted))
    assert data.has_rois
    assert data.subset([3]).has_rois
    fitted = detector("autoencoder", None).fit(data)
    assert "column roi of the table" in fitted.card()
    x = images(2, seed=11)
    part = open_data(written(tmp_path / "test", x, shifted[:2]))
    changed = open_data(written(tmp_path / "changed", np.where(np.stack(shifted[:2])[..., None], x, 0), shifted[:2]))
    assert fitted.score(part).scores.tolist() == fitted.score(changed).scores.tolist()
    for result, mask in zip(fitted.score(part), shifted):
        assert isinstance(result, Result)
        assert result.map is not None
        assert not result.map[~mask].any()
        assert result.map[mask].any()
    again = load(fitted.save(tmp_path / "model"))
    with pytest.raises(DataError, match="a table with a column roi"):
        again.score(x)


def test_the_region_of_an_image_wins_over_the_setting(tmp_path: Path, mask_file: Path):
    own = np.roll(region(), 8, axis=1)
    fitted = detector("pca", mask_file).fit(images(60))
    data = open_data(written(tmp_path / "t", images(2), [own, None]))
    first, second = fitted.score(data)
    assert first.roi is not None
    assert np.array_equal(first.roi, own)
    assert second.roi is not None
    assert np.array_equal(second.roi, region())


def test_a_bad_region_in_a_table_is_listed(tmp_path: Path):
    fitted = detector("pca", None).fit(images(60))
    data = open_data(written(tmp_path / "t", images(2), [np.zeros_like(region()), region()]))
    results = fitted.score(data)
    assert len(results) == 1
    assert "000.png" in results.failed[0].reason
    assert read_image(tmp_path / "t" / "rois" / "000.png").max() == 0
