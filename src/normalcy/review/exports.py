"""A review as files of other tools: COCO, LabelMe, FiftyOne, GeoJSON (QuPath) and DICOM segmentations.

COCO, LabelMe and FiftyOne get a copy of each reviewed image, so that the folder is complete. Their masks are polygons along the
sides of pixels, run lengths or images where a region has holes; all give back exactly the pixels that were marked.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from normalcy.arrays import Array, Mask
from normalcy.data.dataset import Failure
from normalcy.data.images import write_image, write_raw
from normalcy.data.polygons import encode_rle, outlines, polygons_of
from normalcy.errors import DataError
from normalcy.files import read_bytes, write_bytes, write_folder
from normalcy.provenance import versions
from normalcy.results.writer import Writer
from normalcy.review import masks
from normalcy.review.labels import Consensus, by_image, consensus
from normalcy.review.session import Review

UNTYPED = "anomaly"
"""The type of anomalies that have none."""


@dataclass(frozen=True)
class Reviewed:
    """An image with what its reviewers say together."""

    index: int
    path: str
    file: str
    """Base name of its files."""
    said: Consensus
    mask: Mask | None


def export(review: Review, name: str, out: Path, *, overwrite: bool = False) -> tuple[int, list[Failure]]:
    """Write the review as ``name`` into the folder ``out``, whole or not at all: how many images, and those that do not go.

    Images whose reviewers are unsure or disagree are left out. Raises DataError where there is nothing to write.
    """
    failed: list[Failure] = []
    written = 0

    def fill(folder: Path) -> None:
        nonlocal written
        written = FORMATS[name](review, folder, list(_reviewed(review, failed)), failed)
        if not written:
            first = f": {failed[-1].path}: {failed[-1].reason}" if failed else "; decide some first."
            raise DataError(f"{review.folder}: there is no image to write as {name}{first}")

    write_folder(out, fill, overwrite)
    return written, failed


def write_coco(review: Review, out: Path, images: list[Reviewed], failed: list[Failure]) -> int:
    """``annotations.json`` and the images; a type of anomaly is a category."""
    kinds = sorted({one.said.type or UNTYPED for one in images if one.said.label == 1}) or [UNTYPED]
    content: dict[str, Any] = {
        "info": {"description": f"review of {review.read.run.data.name}", "version": versions()["normalcy"]},
        "categories": [{"id": k, "name": kind} for k, kind in enumerate(kinds, start=1)],
        "images": [],
        "annotations": [],
    }
    for one in images:
        copied = _flat_copy(review, out, one, failed)
        if copied is None:
            continue
        name, (height, width) = copied
        number = len(content["images"]) + 1
        content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        if one.said.label != 1:
            continue
        mask = np.ones((height, width), bool) if one.mask is None else one.mask  # no mask: the whole image
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        rings = polygons_of(mask)
        holes = any(len(ring) > 1 for ring in rings)
        segmentation: Any = [np.round(ring[0], 3).ravel().tolist() for ring in rings]
        if holes:
            segmentation = {"counts": encode_rle(mask), "size": [height, width]}
        content["annotations"].append(
            {
                "id": len(content["annotations"]) + 1,
                "image_id": number,
                "category_id": kinds.index(one.said.type or UNTYPED) + 1,
                "iscrowd": int(holes),
                "area": int(mask.sum()),
                "bbox": [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1],
                "segmentation": segmentation,
                "marked": one.mask is not None,
            }
        )
    write_bytes(out / "annotations.json", json.dumps(content).encode())
    return len(content["images"])


def write_labelme(review: Review, out: Path, images: list[Reviewed], failed: list[Failure]) -> int:
    """A JSON file beside each image."""
    count = 0
    for one in images:
        copied = _flat_copy(review, out, one, failed)
        if copied is None:
            continue
        name, (height, width) = copied
        shapes = []
        if one.said.label == 1:
            mask = np.ones((height, width), bool) if one.mask is None else one.mask
            for rings in polygons_of(mask):
                shapes.append(_labelme_shape(rings, one.said.type or UNTYPED, mask))
        content = {
            "version": "5.5.0",
            "flags": {"normal": one.said.label == 0},
            "shapes": shapes,
            "imagePath": Path(name).name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write_bytes(out / f"{name}.json", json.dumps(content).encode())
        count += 1
    return count


def write_fiftyone(review: Review, out: Path, images: list[Reviewed], failed: list[Failure]) -> int:
    """``samples.json``, images and masks, and ``load.py``, which makes a FiftyOne dataset of them."""
    samples = []
    for one in images:
        copied = _flat_copy(review, out, one, failed)
        if copied is None:
            continue
        name, _ = copied
        sample: dict[str, Any] = {
            "filepath": name,
            "label": "anomalous" if one.said.label == 1 else "normal",
            "type": one.said.type,
            "score": float(review.read.scores[one.index]),
            "reviewer": one.said.reviewer,
            "note": one.said.note,
        }
        if one.mask is not None:
            place = Writer(out).path("masks", f"{one.file}.png")
            write_image(place, np.where(one.mask, 255, 0).astype(np.uint8))
            sample["mask_path"] = place.relative_to(out).as_posix()
        samples.append(sample)
    write_bytes(out / "samples.json", json.dumps(samples, indent=1).encode())
    write_bytes(out / "load.py", _LOAD.encode())
    return len(samples)


def write_geojson(review: Review, out: Path, images: list[Reviewed], failed: list[Failure]) -> int:
    """``<file>.geojson`` for each image with a mask: its regions in pixels, as QuPath reads them."""
    count = 0
    for one in images:
        if one.said.label != 1:
            continue
        if one.mask is None or one.mask.ndim != 2:
            failed.append(Failure(one.path, "nothing is marked." if one.mask is None else "is a volume; use dicomseg."))
            continue
        found = outlines(one.mask.astype(np.float32), 0.5, 1.0)
        for feature in found["features"]:
            feature["properties"]["classification"]["name"] = one.said.type or UNTYPED
            del feature["properties"]["measurements"]
        Writer(out).bytes(f"{one.file}.geojson", json.dumps(found).encode())
        count += 1
    return count


def write_dicomseg(review: Review, out: Path, images: list[Reviewed], failed: list[Failure]) -> int:
    """``<file>.dcm`` for each DICOM image with a mask: a segmentation that refers to its instances; it names the patient."""
    from normalcy.results.dicom import write_segmentation

    count = 0
    for one in images:
        if one.said.label != 1 or one.mask is None:
            continue
        try:
            space = review.dicom_space(one.index)
            path = Writer(out).path(f"{one.file}.dcm")
            write_segmentation(path, one.path, one.mask, space, one.said.type or UNTYPED)
        except DataError as error:
            failed.append(Failure(one.path, str(error)))
            continue
        count += 1
    return count


FORMATS: dict[str, Callable[[Review, Path, list[Reviewed], list[Failure]], int]] = {
    "coco": write_coco,
    "labelme": write_labelme,
    "fiftyone": write_fiftyone,
    "geojson": write_geojson,
    "dicomseg": write_dicomseg,
}


# -- private -----------------------------------------------------------------------------------------------------------


def _reviewed(review: Review, failed: list[Failure]) -> Iterator[Reviewed]:
    """In the order of scores.csv."""
    decided = by_image(review.store.current())
    for i, path in enumerate(review.read.paths):
        if path not in decided:
            continue
        said = consensus(decided[path])
        if said.label is None:
            failed.append(Failure(path, "its reviewers are unsure or disagree."))
            continue
        try:
            mask = masks.read(review.folder, said.mask) if said.mask else None
        except (DataError, OSError) as error:
            failed.append(Failure(path, f"its mask cannot be read ({error})."))
            continue
        yield Reviewed(i, path, review.read.files[i], said, mask)


def _flat_copy(review: Review, out: Path, one: Reviewed, failed: list[Failure]) -> tuple[str, tuple[int, int]] | None:
    """Copy an image: its name in ``out`` and its size. None for what is no 2D image."""
    try:
        image = np.asarray(review.array(one.index, "input"))
        if image.ndim != 3:
            raise DataError("is a volume; its masks in review/masks are NIfTI, and dicomseg is for DICOM.")
        known = review.known(one.path)
        writer = Writer(out)
        if known.is_file and Path(known.path).is_file():
            place = writer.path("images", one.file)
            write_bytes(place, read_bytes(known.path))
        else:
            place = _write_pixels(writer, one.file, image)
    except (DataError, OSError) as error:
        failed.append(Failure(one.path, str(error)))
        return None
    return place.relative_to(out).as_posix(), (image.shape[1], image.shape[2])


def _write_pixels(writer: Writer, file: str, image: Array) -> Path:
    """An image that is no file of its own: PNG, or .npy for what PNG does not hold."""
    if image.dtype == np.uint8 and len(image) in (1, 3, 4):
        place = writer.path("images", f"{Path(file).with_suffix('')}.png")
        write_image(place, image)
    else:
        place = writer.path("images", f"{Path(file).with_suffix('')}.npy")
        write_raw(place, np.moveaxis(image, 0, -1) if len(image) > 1 else image[0])
    return place


def _labelme_shape(rings: list[Any], kind: str, mask: Mask) -> dict[str, Any]:
    """A polygon, or for a region with holes its mask."""
    shape: dict[str, Any] = {"label": kind, "group_id": None, "description": "", "flags": {}, "mask": None}
    if len(rings) == 1:
        return {**shape, "shape_type": "polygon", "points": np.round(rings[0], 3).tolist()}
    left, top = (int(v) for v in rings[0].min(0))
    right, bottom = (int(v) for v in rings[0].max(0))
    part = mask[top:bottom, left:right]
    buffer = io.BytesIO()
    Image.fromarray(part.astype(np.uint8) * np.uint8(255)).save(buffer, "PNG")
    coded = base64.b64encode(buffer.getvalue()).decode()
    return {**shape, "shape_type": "mask", "points": [[left, top], [right - 1, bottom - 1]], "mask": coded}


_LOAD = '''"""Make a FiftyOne dataset of a review: python load.py"""

import json
from pathlib import Path

import fiftyone as fo

here = Path(__file__).resolve().parent
samples = []
for one in json.loads((here / "samples.json").read_text(encoding="utf-8")):
    sample = fo.Sample(filepath=str(here / one["filepath"]), score=one["score"], note=one["note"], reviewer=one["reviewer"])
    sample["review"] = fo.Classification(label=one["label"])
    if one["type"]:
        sample["type"] = fo.Classification(label=one["type"])
    if "mask_path" in one:
        sample["mask"] = fo.Segmentation(mask_path=str(here / one["mask_path"]))
    samples.append(sample)
dataset = fo.Dataset(here.parent.name + " review", overwrite=True)
dataset.add_samples(samples)
fo.launch_app(dataset).wait()
'''
