"""Slides: tiles lie in tissue and come from where they say, results lie on the slide."""

import csv
import json
import math
import shutil
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from runner import Run
from scipy import ndimage

from normalcy import Detector
from normalcy.data.open import open_data
from normalcy.data.slides import Slide, Tile, TileSettings
from normalcy.errors import DataError
from normalcy.results.slides import _Heat, outlines, score_slides, write_pyramid

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


def test_black_is_no_tissue(tmp_path: Path):
    """Scanners fill what they did not scan with black, which is darker than any tissue."""
    pixels = tifffile.imread(write_slide(tmp_path / "a.tif"))
    pixels[:, :200] = np.random.default_rng(0).integers(0, 6, (SIZE[1], 200, 3))
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(pixels, tile=(128, 128), photometric="rgb", compression="zlib", metadata=None)
    mask = Slide(tmp_path / "b.tif", TileSettings(tile=64)).tissue
    rows, columns = np.nonzero(mask)
    down = SIZE[1] / mask.shape[0]
    np.testing.assert_allclose(
        [columns.min() * down, rows.min() * down, (columns.max() + 1) * down, (rows.max() + 1) * down],
        TISSUE,
        atol=2 * down,
    )
    assert mask.mean() == pytest.approx((TISSUE[2] - TISSUE[0]) * (TISSUE[3] - TISSUE[1]) / math.prod(SIZE), abs=0.01)


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
    assert area == 20 * 40
    assert all(ring[0] == ring[-1] for ring in rings)


def polygons(heat: np.ndarray, side: float = 32.0, **words: Any) -> list[Any]:
    return [
        shapely.geometry.shape(f["geometry"]) for f in outlines(heat.astype(np.float32), 0.5, side, **words)["features"]
    ]


def test_cells_that_touch_at_a_corner_are_two_regions():
    first, second = polygons(np.array([[1, 0], [0, 1]]))
    assert first.bounds == (0, 0, 32, 32)
    assert second.bounds == (32, 32, 64, 64)
    (alone,) = polygons(np.array([[1]]))
    assert alone.area == 32**2


@pytest.mark.parametrize("side", [32.0, 32.5468])
def test_outlines_are_valid_and_have_the_area_of_their_cells(side: float):
    """1,000 random masks, with holes, islands in holes and cells that touch at corners."""
    rng = np.random.default_rng(0)
    for _ in range(1000):
        mask = rng.random(rng.integers(1, 14, 2)) < rng.uniform(0.2, 0.9)
        found = polygons(mask, side)
        labels, count = ndimage.label(mask)
        assert len(found) == count
        for k, polygon in enumerate(found, start=1):
            assert polygon.is_valid, shapely.validation.explain_validity(polygon)
            assert polygon.exterior.is_ccw
            assert polygon.area == pytest.approx((labels == k).sum() * side**2, rel=1e-7)
        whole = shapely.union_all(found)
        for y, x in np.ndindex(*mask.shape):
            assert whole.contains(shapely.Point((x + 0.5) * side, (y + 0.5) * side)) == mask[y, x]


def test_a_ring_that_meets_itself_is_an_outer_ring_and_a_hole():
    """The pocket reaches the border at a corner alone."""
    mask = np.ones((4, 4), bool)
    mask[0, 1] = mask[1, 2] = False
    (polygon,) = polygons(mask, 1.0)
    assert polygon.is_valid
    assert len(polygon.interiors) == 1
    assert polygon.area == 14


def test_outlines_end_at_the_border_of_the_slide():
    found = polygons(np.ones((2, 3)), 32.5, size=(90, 60))
    assert found[0].bounds == (0, 0, 90, 60)


def unread(width: int, height: int, tile: int, mpp: float | None, own: float) -> Slide:
    """A slide of tissue alone, of which nothing is read."""
    slide = Slide(Path("none"), TileSettings(tile=tile, mpp=mpp))
    slide.__dict__.update(size=(width, height), mpp=own, tissue=np.ones((16, 16), bool))
    return slide


def test_every_pixel_of_tissue_is_in_the_heat_map():
    """Over sizes and scales: no pixel that no tile reaches but for a last fraction of one, and no empty cell."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        tile, cell = [(64, 32), (64, 8), (32, 32), (96, 16)][rng.integers(4)]
        own, mpp = 0.4916, float(rng.uniform(0.48, 2.0))
        slide = unread(*(int(n) for n in rng.integers(400, 2000, 2)), tile=tile, mpp=mpp, own=own)
        width, height = slide.size
        heat = _Heat(slide.size, cell * slide.downsample, slide.downsample)
        reached = np.zeros((height, width), bool)
        side = tile * slide.downsample
        for place in slide.tiles(cover=True):
            assert place.x + side <= width + 0.5
            assert place.y + side <= height + 0.5
            reached[place.y : math.ceil(place.y + side), place.x : math.ceil(place.x + side)] = True
            heat.add(np.full((tile, tile), 1.0, np.float32), place.x, place.y)
        assert reached[: height - 1, : width - 1].all()
        found = heat.mean()
        np.testing.assert_allclose(found, 1.0, rtol=1e-6)
        for length, cells in zip((height, width), found.shape):
            assert length / heat.side <= cells < length / heat.side + 1


def test_cells_of_a_large_slide_at_a_fraction():
    """100,000 pixels at 0.4916 um, tiles at 0.5 um: 3,073 columns of 32 x 0.5 / 0.4916 pixels."""
    slide = unread(100_000, 50_000, 256, 0.5, 0.4916)
    heat = _Heat(slide.size, 32 * slide.downsample, slide.downsample)
    assert heat.count.shape == (1537, 3073)


def test_heat_is_the_mean_of_the_cell_and_of_overlapping_tiles():
    heat = _Heat((100, 64), 16.0, 1.0)
    values = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    heat.add(values, 0, 0)
    heat.add(values + 1, 36, 0)
    found = heat.mean()
    assert found.shape == (4, 7)
    np.testing.assert_allclose(found[0, 0], values[:16, :16].mean(), rtol=1e-6)
    np.testing.assert_allclose(
        found[1, 3], np.r_[values[16:32, 48:64].ravel(), values[16:32, 12:28].ravel() + 1].mean(), rtol=1e-6
    )
    np.testing.assert_allclose(found[3, 6], values[48:64, 60:64].mean() + 1, rtol=1e-6)


def test_finer_tiles_than_the_slide_are_refused(tmp_path: Path):
    """Else tiles of 128 um would be scored as if of 32."""
    write_slide(tmp_path / "a.tif")
    with pytest.raises(
        DataError, match=r"expected mpp of at least the 0\.5 micrometres per pixel of its finest level, got 0"
    ):
        open_data(f"slides:{tmp_path / 'a.tif'},tile=64,mpp=0.25")
    slide = Slide(tmp_path / "a.tif", TileSettings(tile=128, mpp=0.49))
    assert slide.downsample == pytest.approx(0.98, rel=1e-3)
    assert slide.read(slide.tiles()[0]).shape == (3, 128, 128)


def test_fit_on_tiles_and_score_a_slide(folder: Path, tmp_path: Path, run: Run):
    run.said("fit", f"slides:{folder / 'normal'},tile=64,most=30", "--method", "zscore", "--out", tmp_path / "model")
    given = tmp_path / "given"
    given.mkdir()
    for name in ("strange.tif", "normal/0.tif"):
        shutil.copy(folder / name, given)
    (given / "cut_off.tif").write_bytes((folder / "strange.tif").read_bytes()[:3000])
    said = run.said("slides", tmp_path / "model", given, "--cell", 16, "--quantile", 1, "--out", tmp_path / "results")
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
