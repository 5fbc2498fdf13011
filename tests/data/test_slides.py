"""Slides: tiles lie in tissue and come from where they say, stains are found, results lie on the slide."""

import csv
import json
import shutil
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from normalcy import Detector
from normalcy.cli.app import app
from normalcy.data.open import open_data
from normalcy.data.slides import Slide, Tile, TileSettings
from normalcy.data.stain import FAINT, REFERENCE, WHITE, normalise, optical_density, stain_vectors
from normalcy.errors import DataError
from normalcy.results.slides import outlines, score_slides, write_pyramid

TISSUE = (256, 256, 1024, 768)  # left, top, right, bottom
SIZE = (1280, 1024)  # width, height
MPP = 0.5


def write_slide(path: Path, strange: tuple[int, int, int, int] | None = None, seed: int = 0) -> Path:
    """A tiled TIFF with two coarser levels: white, pink noise where there is tissue, blue where it is strange."""
    rng = np.random.default_rng(seed)
    pixels = np.full((SIZE[1], SIZE[0], 3), 245, np.uint8)
    left, top, right, bottom = TISSUE
    noise = rng.normal(0, 6, (bottom - top, right - left, 1))
    pixels[top:bottom, left:right] = np.clip(np.array([200, 130, 170]) + noise, 0, 255).astype(np.uint8)
    if strange is not None:
        left, top, right, bottom = strange
        pixels[top:bottom, left:right] = (40, 60, 160)
    with tifffile.TiffWriter(path) as file:
        for level in range(3):
            k = 2**level
            file.write(
                pixels[::k, ::k],
                tile=(128, 128),
                photometric="rgb",
                compression="zlib",
                subfiletype=int(level > 0),
                resolution=(1e4 / (MPP * k), 1e4 / (MPP * k)),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slides")
    (root / "normal").mkdir()
    for i in range(4):
        write_slide(root / "normal" / f"{i}.tif", seed=i)
    write_slide(root / "strange.tif", strange=(512, 384, 640, 512), seed=9)
    return root


def test_tiles_lie_in_tissue(folder: Path):
    slide = Slide(folder / "normal/0.tif", TileSettings(tile=128))
    assert slide.size == SIZE
    assert slide.mpp == pytest.approx(MPP, rel=1e-3)
    left, top, right, bottom = TISSUE
    expected = [Tile(x, y) for y in range(top, bottom, 128) for x in range(left, right, 128)]
    assert slide.tiles() == expected
    pixels = tifffile.imread(folder / "normal/0.tif", key=0)
    tile = expected[7]
    np.testing.assert_array_equal(
        slide.read(tile), np.moveaxis(pixels[tile.y : tile.y + 128, tile.x : tile.x + 128], -1, 0)
    )


def test_coarser_tiles(folder: Path):
    slide = Slide(folder / "normal/0.tif", TileSettings(tile=64, mpp=1.0))
    assert slide.downsample == pytest.approx(2, rel=1e-3)
    tile = slide.tiles()[5]
    level = tifffile.imread(folder / "normal/0.tif", key=1)
    expected = level[tile.y // 2 : tile.y // 2 + 64, tile.x // 2 : tile.x // 2 + 64]
    np.testing.assert_array_equal(slide.read(tile), np.moveaxis(expected, -1, 0))


def test_data_set_of_tiles(folder: Path):
    data = open_data(f"slides:{folder / 'normal'},tile=128,most=5")
    assert len(data) == 20
    assert sorted(set(data.cases)) == [f"{i}.tif" for i in range(4)]
    assert len({item.path for item in data.items}) == 20
    assert data.read(3).shape == (3, 128, 128)
    again = open_data(f"slides:{folder / 'normal'},tile=128,most=5")
    assert data.items == again.items
    with pytest.raises(DataError, match="no slide that can be read"):
        open_data(f"slides:{folder / 'normal'},tile=2048")


def painted(stains: np.ndarray, seed: int = 0) -> np.ndarray:
    """uint8 (3, 64, 64) of two stains, each alone in places."""
    rng = np.random.default_rng(seed)
    amounts = rng.gamma(2.0, 0.4, (2, 64 * 64)) * (rng.random((2, 64 * 64)) > 0.4)
    pixels = WHITE * np.exp(-stains.T @ amounts) - 1
    return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8).reshape(3, 64, 64)


OTHER = np.array([[0.75, 0.60, 0.28], [0.10, 0.95, 0.30]])
OTHER = OTHER / np.linalg.norm(OTHER, axis=1, keepdims=True)


@pytest.mark.parametrize("way", ["macenko", "vahadane"])
@pytest.mark.parametrize("stains", [REFERENCE, OTHER], ids=["reference", "other"])
def test_stains_are_found(way: str, stains: np.ndarray):
    density = optical_density(painted(stains))
    found = stain_vectors(density[(density > FAINT).any(1)], way)
    angles = np.degrees(np.arccos(np.clip((found * stains).sum(1) / np.linalg.norm(stains, axis=1), -1, 1)))
    assert angles.max() < 6, "degrees between the stains that were painted and those that were found"


@pytest.mark.parametrize("way", ["macenko", "vahadane"])
def test_two_stainings_look_alike(way: str):
    one, other = painted(REFERENCE), painted(OTHER)
    before = np.abs(one.astype(float) - other).mean()
    after = np.abs(normalise(one, way).astype(float) - normalise(other, way)).mean()
    assert after < 0.35 * before
    white = np.full((3, 32, 32), 245, np.uint8)
    np.testing.assert_array_equal(normalise(white, way), white)


def test_pyramid_and_outlines(tmp_path: Path):
    heat = np.full((600, 700), np.nan, np.float32)
    heat[100:400, 100:500] = 1
    heat[200:220, 300:340] = 5
    heat[208:212, 310:320] = 1
    write_pyramid(tmp_path / "a.tif", heat, 8.0)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [(600, 700), (300, 350), (150, 175)]
        np.testing.assert_array_equal(levels[0].asarray(), heat)
        assert np.nanmax(levels[2].asarray()) == 5
        assert file.pages[0].is_tiled
    (feature,) = outlines(heat, 2.0, 16.0)["features"]
    rings = feature["geometry"]["coordinates"]
    assert len(rings) == 2, "a region and its hole"
    x, y = np.array(rings[0]).T / 16
    assert (x.min(), x.max(), y.min(), y.max()) == (300, 340, 200, 220)
    area = 0.5 * abs(float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()))  # shoelace
    assert area == pytest.approx(20 * 40, abs=1), "but for the corners"
    assert all(ring[0] == ring[-1] for ring in rings)


def test_fit_on_tiles_and_score_a_slide(folder: Path, tmp_path: Path):
    def run(*words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.output

    run("fit", f"slides:{folder / 'normal'},tile=64,most=30", "--method", "zscore", "--out", tmp_path / "model")
    given = tmp_path / "given"
    given.mkdir()
    for name in ("strange.tif", "normal/0.tif"):
        shutil.copy(folder / name, given)
    (given / "cut_off.tif").write_bytes((folder / "strange.tif").read_bytes()[:3000])
    said = run("slides", tmp_path / "model", given, "--cell", 16, "--quantile", 1, "--out", tmp_path / "results")
    assert "cut_off.tif: cannot be read as a slide" in said
    assert not (tmp_path / "results/cut_off").exists()
    lines = [line.split(": ") for line in said.splitlines() if line.startswith(("strange: ", "0: "))]
    scores = {name: float(score) for name, score in lines}
    assert scores["strange"] > 2 * scores["0"]
    heat = tifffile.imread(tmp_path / "results/strange/heatmap.tif")
    assert heat.shape == (SIZE[1] // 16, SIZE[0] // 16)
    left, top, right, bottom = (n // 16 for n in TISSUE)
    assert np.isfinite(heat).sum() == (right - left) * (bottom - top)
    rows, columns = np.nonzero(np.nan_to_num(heat) > 5)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (24, 32, 32, 40)
    with open(tmp_path / "results/strange/tiles.csv", encoding="utf-8") as file:
        strangest = max(csv.DictReader(file), key=lambda row: float(row["score"]))
    assert 512 <= int(strangest["x"]) < 640
    assert 384 <= int(strangest["y"]) < 512
    features = json.loads((tmp_path / "results/strange/regions.geojson").read_text())["features"]
    largest = max(features, key=lambda f: f["properties"]["measurements"]["mean"])
    (xs, ys) = np.array(largest["geometry"]["coordinates"][0]).T
    assert abs(xs.min() - 512) <= 16
    assert abs(ys.max() - 512) <= 16


def write_gigapixel_slide(path: Path, side: int = 32768, tile: int = 512) -> tuple[int, int, int, int]:
    """A slide of side^2 pixels, compressed tile by tile, white but for tissue in a square of 4x4 tiles, with a strange one in it.

    Returns left, top, right and bottom of the tissue. Two coarser levels; some 15 MB on disk, one tile in memory.
    """
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 6, (tile, tile, 1))
    kinds = {
        "white": np.full((tile, tile, 3), 245),
        "tissue": np.array([200, 130, 170]) + noise,
        "strange": np.array([40, 60, 160]) + noise,
    }
    encoded = {kind: zlib.compress(values.astype(np.uint8).tobytes(), 1) for kind, values in kinds.items()}
    count = side // tile
    first = count // 2 + 3  # of the tissue, in tiles of the finest level

    def kind(row: int, column: int) -> str:
        if (row, column) == (first + 1, first + 2):
            return "strange"
        return "tissue" if 0 <= row - first < 4 and 0 <= column - first < 4 else "white"

    def coarse(down: int) -> Iterator[bytes]:
        picture = np.full((side // down, side // down, 3), 245, np.uint8)
        low, high = (k * tile // down for k in (first, first + 4))
        picture[low:high, low:high] = (200, 130, 170)
        for row in range(0, len(picture), tile):
            for column in range(0, len(picture), tile):
                yield zlib.compress(picture[row : row + tile, column : column + tile].tobytes(), 1)

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for down in (1, 8, 32):
            tiles = (encoded[kind(row, column)] for row in range(count) for column in range(count))
            file.write(
                tiles if down == 1 else coarse(down), shape=(side // down, side // down, 3), dtype=np.uint8,
                tile=(tile, tile), photometric="rgb", compression="zlib", subfiletype=int(down > 1), metadata=None,
            )  # fmt: skip
    low, high = first * tile, (first + 4) * tile
    return low, low, high, high


def test_a_gigapixel_in_bounded_memory(folder: Path, tmp_path: Path):
    left, top, right, bottom = write_gigapixel_slide(tmp_path / "large.tif")
    assert (tmp_path / "large.tif").stat().st_size < 50e6
    detector = Detector("zscore").fit(f"slides:{folder / 'normal'},tile=256")
    steps: list[tuple[int, int]] = []
    tracemalloc.start()
    try:
        slide = Slide(tmp_path / "large.tif", TileSettings(tile=256))
        (scored,), failed = score_slides(
            detector, [slide], tmp_path / "results", batch_size=8, on_progress=lambda *step: steps.append(step)
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert slide.size[0] * slide.size[1] > 1e9
    assert peak < 300e6, "all of it would take 3 GB"
    assert (scored[0], failed) == ("large", [])
    with open(tmp_path / "results/large/tiles.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 * 8
    assert steps[-1] == (64, 64)
    assert {int(row["x"]) for row in rows} == set(range(left, right, 256))
    assert {int(row["y"]) for row in rows} == set(range(top, bottom, 256))
    strangest = sorted(rows, key=lambda row: -float(row["score"]))[:4]
    assert {(int(row["x"]) - left) // 512 for row in strangest} == {2}
    assert {(int(row["y"]) - top) // 512 for row in strangest} == {1}


def test_damaged_slides_are_a_sentence(folder: Path, tmp_path: Path):
    (tmp_path / "a.tif").write_bytes((folder / "strange.tif").read_bytes()[:3000])
    write_slide(tmp_path / "b.tif")
    data = open_data(f"slides:{tmp_path},tile=128")
    assert data.ignored == ("a.tif",)
    assert set(data.cases) == {"b.tif"}
    with pytest.raises(DataError, match=r"a\.tif: cannot be read as a slide"):
        Slide(tmp_path / "a.tif").tiles()
