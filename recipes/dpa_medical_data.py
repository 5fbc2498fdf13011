"""Prepares the data of DPA's tables 2 to 4, Camelyon16 and ChestX-ray14 of the NIH, in layouts that normalcy reads.

    python recipes/dpa_medical_data.py camelyon16 SOURCE OUT       (hours; a slide at a time, little memory)
    python recipes/dpa_medical_data.py nih SOURCE OUT [--subset LISTS]                           (seconds)

Shvetsova et al. 2021, section IV-A1, and the authors' preparation of the data.

camelyon16. SOURCE holds training/normal/*.tif, training/tumor/*.tif, training/lesion_annotations/*.xml, testing/images/*.tif,
testing/lesion_annotations/*.xml and testing/reference.csv, as downloaded (camelyon16.grand-challenge.org, CC0). Tissue is
segmented by Otsu's threshold. From each slide, at most 50 tiles of 768x768 pixels at the finest level (40x) are drawn without
overlap, all of tissue; from slides with metastases, tiles inside an annotated metastasis. Tiles are stain-normalised (Vahadane)
and reduced to 192 pixels (10x, the authors' choice). Output:

    OUT/train/good/*.png             192x192, of normal training slides, for random crops of 64 (augment = ["crop:64"])
    OUT/test/good, OUT/test/tumour   the central 64x64 of tiles of test slides
    OUT/known                        the same of --known training slides with metastases (4), for ``normalcy select``

Slides that the authors excluded are excluded (no tissue found, black, blurred, annotation incomplete). Differences: tiles lie on
a grid of 768 pixels, theirs on a grid of tissue pixels; the stain reference is that of Macenko et al. instead of a chosen tile.

nih. SOURCE holds images*/*.png (or images/*.png) of ChestX-ray14, Data_Entry_2017*.csv, train_val_list.txt and test_list.txt, as
downloaded (nihcc.app.box.com/v/ChestXray-NIHCC). Output: OUT/PA.csv, OUT/AP.csv and, from the lists of Tang et al. as the
authors keep them (LISTS/normal/train, LISTS/normal/test, LISTS/anomaly/test: one image name per line), OUT/subset.csv; and
OUT/known_PA.csv, OUT/known_AP.csv, training images with Infiltration only, for ``normalcy select``. The tables refer to the
images in place. Images without finding are for training; resizing to 300, the central crop of 224 and resizing to 64 are
preprocessing steps (resize:300, centre_crop:0.7467, size=64), as is histogram_equalisation, which the authors also tried.
"""

from __future__ import annotations

import argparse
import csv
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from normalcy.data.slides import Slide, Tile, TileSettings
from normalcy.errors import DataError

SIDE, REDUCTION, SEEN, MOST = 768, 4, 64, 50
LEFT_OUT = {"normal_027", "normal_045", "normal_108", "normal_144", "normal_150", "normal_158", "test_114"}
COARSE = 64
"""Pixels of the finest level to a pixel of the mask of metastases."""
INSIDE = 0.99
"""Minimum fraction of a tile that must be tissue, and metastasis."""


# -- Camelyon16 ------------------------------------------------------------------------------------------------------


def camelyon16(source: Path, out: Path, known: int = 4) -> dict[str, int]:
    """Write the tiles; returns how many went where."""
    training, testing = source / "training", source / "testing"
    of_test = testing / "lesion_annotations"
    tumour = {row[0] for row in csv.reader((testing / "reference.csv").open()) if row[1:2] == ["Tumor"]}
    count = {
        "train/good": write_tiles(out / "train" / "good", slides(training / "normal"), None, whole=True),
        "known": write_tiles(out / "known", slides(training / "tumor")[:known], training / "lesion_annotations"),
    }
    tests = slides(testing / "images")
    normal = [path for path in tests if path.stem not in tumour]
    count["test/good"] = write_tiles(out / "test" / "good", normal, None)
    tumorous = [path for path in tests if path.stem in tumour]
    count["test/tumour"] = write_tiles(out / "test" / "tumour", tumorous, of_test)
    return count


def slides(folder: Path) -> list[Path]:
    found = [path for path in sorted(folder.glob("*.tif")) if path.stem not in LEFT_OUT]
    if not found:
        raise DataError(f"{folder}: expected slides *.tif of Camelyon16, got none.")
    return found


def write_tiles(out: Path, paths: Sequence[Path], annotations: Path | None, whole: bool = False) -> int:
    """PNG files of each slide's tiles, their centre unless ``whole``; existing files are kept, so that a second call
    continues. With ``annotations``, tiles of metastases alone."""
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for path in paths:
        done = out / f".{path.stem}.done"
        if not done.exists():
            drawn = None if annotations is None else metastases(path, annotations / f"{path.stem}.xml")
            slide = Slide(
                path, TileSettings(SIDE, most=MOST if drawn is None else None, tissue=INSIDE, stain="vahadane")
            )
            tiles = slide.tiles()
            if drawn is not None:
                tiles = [tile for tile in tiles if share(drawn, tile) >= INSIDE]
                tiles = [tiles[i] for i in np.sort(np.random.default_rng(0).permutation(len(tiles))[:MOST])]
            for tile in tiles:
                image = Image.fromarray(np.moveaxis(slide.read(tile), 0, -1)).reduce(REDUCTION)
                if not whole:
                    edge = (image.width - SEEN) // 2
                    image = image.crop((edge, edge, edge + SEEN, edge + SEEN))
                image.save(out / f"{path.stem}_x{tile.x}_y{tile.y}.png")
            done.touch()
            print(f"{path.name}: {len(tiles)} tiles", flush=True)
        count += len(list(out.glob(f"{path.stem}_x*.png")))
    return count


def metastases(path: Path, annotation: Path) -> npt.NDArray[np.bool_]:
    """Mask of the annotated metastases, one pixel per COARSE pixels of the finest level; (rows, columns). Annotations of the
    group _2 or Exclusion are holes."""
    width, height = Slide(path).size
    mask = Image.new("1", (-(-width // COARSE), -(-height // COARSE)))
    pen = ImageDraw.Draw(mask)
    found: list[tuple[bool, list[tuple[float, float]]]] = []
    for region in ElementTree.parse(annotation).iter("Annotation"):
        corners = [(float(c.get("X", 0)) / COARSE, float(c.get("Y", 0)) / COARSE) for c in region.iter("Coordinate")]
        found.append((region.get("PartOfGroup") not in ("_2", "Exclusion"), corners))
    for tumorous, corners in sorted(found, key=lambda pair: not pair[0]):  # holes last
        if len(corners) > 2:
            pen.polygon(corners, fill=int(tumorous))
    return np.asarray(mask)


def share(mask: npt.NDArray[np.bool_], tile: Tile) -> float:
    top, left, side = tile.y // COARSE, tile.x // COARSE, SIDE // COARSE
    return float(mask[top : top + side, left : left + side].mean())


# -- NIH -------------------------------------------------------------------------------------------------------------


def nih(source: Path, out: Path, subset: Path | None = None) -> dict[str, int]:
    """Write the tables; returns how many images each has."""
    files = {path.name: path for folder in sorted(source.glob("images*")) for path in folder.rglob("*.png")}
    tables = sorted(source.glob("Data_Entry_2017*.csv"))
    if not files or not tables:
        raise DataError(f"{source}: expected images*/*.png and Data_Entry_2017*.csv of ChestX-ray14.")
    with tables[0].open(newline="") as table:
        entries = [entry for entry in csv.DictReader(table) if entry["Image Index"] in files]
    training, testing = (set((source / name).read_text().split()) for name in ("train_val_list.txt", "test_list.txt"))
    out.mkdir(parents=True, exist_ok=True)

    def row(entry: dict[str, Any], split: str) -> list[Any]:
        finding = entry["Finding Labels"]
        kind = "good" if finding == "No Finding" else finding.replace("|", "+")
        return [files[entry["Image Index"]].resolve(), split, int(kind != "good"), entry["Patient ID"], kind]

    count = {}
    for view in ("PA", "AP"):
        here = [entry for entry in entries if entry["View Position"] == view]
        normal = [e for e in here if e["Finding Labels"] == "No Finding" and e["Image Index"] in training]
        tests = [e for e in here if e["Image Index"] in testing]
        known = [e for e in here if e["Finding Labels"] == "Infiltration" and e["Image Index"] in training]
        rows = [*(row(e, "train") for e in normal), *(row(e, "test") for e in tests)]
        count[view] = write_table(out / f"{view}.csv", rows)
        count[f"known_{view}"] = write_table(out / f"known_{view}.csv", [row(e, "") for e in known])
    if subset is not None:
        by_name = {entry["Image Index"]: entry for entry in entries}
        rows = []
        for kind, split in (("normal", "train"), ("normal", "test"), ("anomaly", "test")):
            names = (subset / kind / split).read_text().split()
            rows += [[files[n].resolve(), split, int(kind != "normal"), by_name[n]["Patient ID"], kind] for n in names]
        count["subset"] = write_table(out / "subset.csv", rows)
    return count


def write_table(path: Path, rows: Iterable[Sequence[Any]]) -> int:
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "split", "label", "case", "type"], *rows])
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=("camelyon16", "nih"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--known", type=int, default=4, help="training slides with metastases to choose settings by")
    parser.add_argument("--subset", type=Path, default=None, help="folder of the lists of the clearer cases")
    options = parser.parse_args()
    if options.data == "camelyon16":
        print(camelyon16(options.source, options.out, options.known))
    else:
        print(nih(options.source, options.out, options.subset))


if __name__ == "__main__":
    main()
