"""Annotations of other tools as masks: COCO, LabelMe, YOLO (segmentation and boxes) and Datumaro.

An image is anomalous where something is annotated, unless the category says that it is normal (``normal``, ``good``, ``no
defect``, ``background`` and the like). An image without annotation is normal. Coordinates are those of
:mod:`normalcy.data.polygons`.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from normalcy.arrays import Array, Float64, Mask
from normalcy.data.dataset import DataSet, Item, Origin
from normalcy.data.formats import LIMITS, Limits, is_image, stem
from normalcy.data.images import decode_image
from normalcy.data.layouts import SPLITS
from normalcy.data.polygons import decode_rle, rasterise
from normalcy.data.stores import Files, Folder
from normalcy.errors import DataError
from normalcy.files import parse_json, read_bytes

LARGEST = 2**28
"""Bytes of a file of annotations."""
FOLDERS = frozenset({"annotations", "annotation"})
"""Folders of annotation files, whose images lie beside them."""
_NORMAL = frozenset(
    {
        "good",
        "ok",
        "normal",
        "healthy",
        "background",
        "no defect",
        "no defects",
        "no anomaly",
        "no object",
        "defect free",
    }
)
"""Categories that mark nothing anomalous, in lower case with spaces."""
_YOLO_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
_HEAD = 2**16


@dataclass(frozen=True)
class Shape:
    """An annotation: polygons [(N, 2)], or a mask, and what it is of. Neither of both: the image as a whole."""

    kind: str
    polygons: tuple[Float64, ...] = ()
    mask: Mask | None = None
    """(H, W)"""

    @property
    def is_normal(self) -> bool:
        return " ".join(re.split(r"[\W_]+", self.kind.casefold())).strip() in _NORMAL


@dataclass(frozen=True)
class Annotated:
    """An image and its annotations."""

    file: str
    """As the annotations name it."""
    size: tuple[int, int] | None
    """(H, W); None: coordinates are fractions of the image's width and height."""
    shapes: tuple[Shape, ...]

    @property
    def anomalies(self) -> tuple[Shape, ...]:
        return tuple(shape for shape in self.shapes if not shape.is_normal)

    @property
    def has_area(self) -> bool:
        """Whether something anomalous is marked, not only named."""
        return any(shape.polygons or shape.mask is not None for shape in self.anomalies)

    def mask(self, size: tuple[int, ...] = ()) -> Mask:
        """(H, W): all shapes together but those of normal categories; ``size`` of the image where the annotations give none."""
        height, width = self.size or size
        scale = np.array([1.0, 1.0] if self.size else [width, height])
        whole = np.zeros((height, width), bool)
        for shape in self.anomalies:
            for polygon in shape.polygons:
                whole |= rasterise([polygon * scale], (height, width))
            if shape.mask is not None:
                whole |= shape.mask
        return whole


def open_annotations(path: Path, limits: Limits = LIMITS) -> DataSet:
    """A COCO, LabelMe or Datumaro file as a data set: images with annotations are anomalous and marked, others normal.

    Images are looked for beside the file, in a folder ``images`` beside it, and, for a file in a folder ``annotations``,
    beside that folder. Raises DataError for a file that is none of these.
    """
    root = path.parent.parent if path.parent.name.casefold() in FOLDERS else path.parent
    layout, found = _read(path)
    return _data_set(path.stem, root, f"{layout} annotations", [(path, one) for one in found], limits)


def open_labelme(path: Path, limits: Limits = LIMITS) -> DataSet:
    """A folder with a LabelMe file for each image that has something to mark. Raises DataError where there are none."""
    names = Folder(path, limits).names()
    files = [name for name in names if name.lower().endswith(".json")]
    if not files:
        raise DataError(f"{path}: expected a LabelMe file (.json) for each image, got none.")
    return _labelme_folder(path, names, files, limits)


def find_annotations(path: Path, limits: Limits = LIMITS) -> DataSet | None:
    """A folder with annotations beside its images as a data set; None where it has none.

    YOLO: ``labels/*.txt`` for ``images/*``, or ``.txt`` beside the images and a list of classes. LabelMe: ``.json`` beside the
    images. COCO and Datumaro: ``.json`` in the folder itself, in ``annotations`` or in the folders of the images. Raises
    DataError for a file in ``annotations`` that cannot be read.
    """
    folder = Folder(path, limits)
    names = folder.names()
    images = [name for name in names if is_image(name)]
    there = {name.casefold(): name for name in names}
    text_of = {image: text for image in images if (text := _yolo_file(image, there)) is not None}
    if text_of:
        return _yolo(path, images, text_of, there, limits)
    stems = {stem(image) for image in images}
    in_places, sidecars = [], []
    for name in names:
        if not name.lower().endswith(".json"):
            continue
        if stem(name) in stems:
            sidecars.append(name)
        else:
            in_places.append(name)
    labelme = [name for name in sidecars if _says(folder, name, b'"shapes"', b'"imagePath"')]
    if labelme:
        return _labelme_folder(path, names, labelme, limits)
    layouts: Counter[str] = Counter()
    found: list[tuple[Path, Annotated]] = []
    for name in in_places:
        if not _says(folder, name, b'"images"', b'"annotations"', b'"items"', b'"imagePath"') and not _in_folder(name):
            continue
        try:
            layout, annotated = _read(path / name)
        except DataError:
            if _in_folder(name):
                raise
            continue  # some other file of JSON
        layouts[layout] += 1
        found += [(path / name, one) for one in annotated]
    if not found:
        return None
    if len(layouts) > 1:
        raise DataError(f"{path}: expected annotations of one tool, got {' and '.join(sorted(layouts))}; keep one.")
    return _data_set(path.resolve().name, path, f"{next(iter(layouts))} annotations", found, limits, images)


def read_annotations(path: Path) -> list[Annotated]:
    """The images of a COCO, LabelMe or Datumaro file. Raises DataError for what is none of them."""
    return _read(path)[1]


# -- private -----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[str, list[Annotated]]:
    try:
        content = parse_json(read_bytes(path, LARGEST))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: is not valid JSON ({error}); write it again.") from None
    try:
        if isinstance(content, dict) and "images" in content and "annotations" in content:
            return "COCO", _coco(content)
        if isinstance(content, dict) and "shapes" in content and "imagePath" in content:
            return "LabelMe", [_labelme(content, str(path))]
        if isinstance(content, dict) and "items" in content and "categories" in content:
            return "Datumaro", _datumaro(content, str(path))
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        raise DataError(f"{path}: its annotations are damaged ({reason}); export them again.") from None
    raise DataError(
        f"{path}: expected COCO (images, annotations), LabelMe (imagePath, shapes) or Datumaro (categories, items), got neither."
    )


def _says(folder: Folder, name: str, *words: bytes) -> bool:
    head = folder.head(name, _HEAD)
    return any(word in head for word in words)


def _in_folder(name: str) -> bool:
    return PurePosixPath(name).parent.name.casefold() in FOLDERS


def _data_set(
    name: str,
    root: Path,
    layout: str,
    found: Sequence[tuple[Path, Annotated]],
    limits: Limits,
    present: Sequence[str] = (),
    without: Sequence[str] = (),
) -> DataSet:
    """``present``: images of the folder, of which those that no annotation names are passed over; ``without``: images without
    a file of annotations, which are normal."""
    items: dict[str, Item] = {}
    shapes: list[Annotated] = []
    for source, one in found:
        path = _place(root, source, one.file)
        if path in items:
            raise DataError(f"{source}: {path} is annotated more than once; keep one.")
        kinds = sorted({shape.kind for shape in one.anomalies or one.shapes if shape.kind})
        split = _split_of(source.relative_to(root).as_posix(), path)
        items[path] = Item(path, path, int(bool(one.anomalies)), ", ".join(kinds) or None, split)
        shapes.append(one)
    for path in without:
        items[path] = Item(path, path, 0, None, _split_of("", path))
        shapes.append(Annotated(path, None, ()))
    if not items:
        raise DataError(f"{root}: expected annotated images, got none.")
    items, notes = _usable_splits(items)
    empty = sum(not one.shapes for one in shapes)
    if empty:
        notes.append(f"images without annotation, which are taken as normal: {empty}")
    ignored = {path: "an image that the annotations do not name" for path in present if path not in items}
    files = Files(Folder(root, limits), list(items))

    def mask(i: int) -> Mask | None:
        if not shapes[i].has_area:
            return None
        return shapes[i].mask(() if shapes[i].size else files.size(i))

    return DataSet(
        name,
        list(items.values()),
        files.read,
        mask,
        root,
        size=files.size,
        stamp=files.stamp,
        space=files.space,
        ignored=ignored,
        origin=Origin(layout, tuple(notes)),
    )


def _place(root: Path, source: Path, file: str) -> str:
    """Path of an image from ``root``, by the name that ``source`` gives it. Raises DataError where it leads out of ``root``."""
    subset = source.stem.rpartition("_")[2]  # annotations/train.json, annotations/instances_train2017.json
    below = (root, root / "images", root / "images" / subset, root / subset)
    places = [folder / file for folder in (source.parent, source.parent / "images", *below)]
    image = next((place for place in places if place.is_file()), places[0])
    try:
        return image.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise DataError(f"{source}: {file} leads out of {root}; move the image beside its annotations.") from None


def _split_of(source: str, path: str) -> str | None:
    """By a folder of the image, else by the name of the annotation file: ``train/``, ``instances_test.json``."""
    for part in path.split("/")[:-1]:
        if part.casefold() in SPLITS:
            return SPLITS[part.casefold()]
    words = re.findall(r"[a-z]+", source.casefold())
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _usable_splits(items: Mapping[str, Item]) -> tuple[dict[str, Item], list[str]]:
    """Splits are kept where there is a test split; anomalous images of the training split belong to none, with a note."""
    if not any(item.split == "test" for item in items.values()):
        return {path: Item(*_fields(item), None) for path, item in items.items()}, []
    kept = {
        path: Item(*_fields(item), None if item.split == "train" and item.label == 1 else item.split)
        for path, item in items.items()
    }
    out = sum(item.split == "train" and item.label == 1 for item in items.values())
    return kept, [
        f"anomalous images of the training split, which are neither trained on nor scored: {out}"
    ] if out else []


def _fields(item: Item) -> tuple[str, str, int | None, str | None]:
    return item.path, item.case, item.label, item.type


def _labelme_folder(path: Path, names: Sequence[str], files: Sequence[str], limits: Limits) -> DataSet:
    found = [(path / file, one) for file in files for one in read_annotations(path / file)]
    named = {_place(path, source, one.file) for source, one in found}
    without = [name for name in names if is_image(name) and name not in named]
    return _data_set(path.resolve().name, path, "LabelMe annotations", found, limits, without=without)


def _coco(content: Mapping[str, Any]) -> list[Annotated]:
    names = {one["id"]: str(one["name"]) for one in content.get("categories", [])}
    shapes: dict[Any, list[Shape]] = {}
    sizes = {one["id"]: (int(one["height"]), int(one["width"])) for one in content["images"]}
    for one in content["annotations"]:
        size, kind = sizes[one["image_id"]], names.get(one.get("category_id"), "")
        of = one.get("segmentation")
        if isinstance(of, dict):
            shape = Shape(kind, mask=_run_lengths(of, size))
        elif of:
            shape = Shape(kind, tuple(_points(np.reshape(np.asarray(ring, np.float64), (-1, 2))) for ring in of))
        else:
            x, y, wide, tall = (float(n) for n in one["bbox"])
            shape = Shape(kind, (_box(x, y, x + wide, y + tall),))
        shapes.setdefault(one["image_id"], []).append(shape)
    return [
        Annotated(str(one["file_name"]).replace("\\", "/"), sizes[one["id"]], tuple(shapes.get(one["id"], ())))
        for one in content["images"]
    ]


def _run_lengths(of: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    height, width = (int(n) for n in of["size"])
    if (height, width) != size:
        raise DataError(f"an annotation has the size {(height, width)}, its image {size}.")
    return decode_rle(of["counts"], size)


def _datumaro(content: Mapping[str, Any], name: str) -> list[Annotated]:
    """Items of one subset; coordinates are pixels, ``rle`` is COCO's compressed text."""
    labels = [str(one["name"]) for one in content["categories"].get("label", {}).get("labels", [])]
    found = []
    for item in content["items"]:
        image = item.get("image") or item.get("media") or {}
        if "path" not in image:
            raise DataError(
                f"{name}: the item {str(item['id'])[:50]!r} has no image; only annotations of images are read."
            )
        size = tuple(int(n) for n in image["size"]) if image.get("size") else None
        shapes = []
        for one in item["annotations"]:
            number = one.get("label_id")
            kind = labels[number] if isinstance(number, int) and 0 <= number < len(labels) else ""
            match one["type"]:
                case "label":
                    shapes.append(Shape(kind))
                case "polygon":
                    shapes.append(Shape(kind, (_points(np.reshape(np.asarray(one["points"], np.float64), (-1, 2))),)))
                case "bbox":
                    x, y, wide, tall = (float(n) for n in one["bbox"])
                    shapes.append(Shape(kind, (_box(x, y, x + wide, y + tall),)))
                case "ellipse":
                    left, top, right, bottom = (float(n) for n in one["points"])
                    shapes.append(Shape(kind, (_ellipse(left, top, right, bottom),)))
                case "mask":
                    height, width = (int(n) for n in one["rle"]["size"])
                    size = size or (height, width)
                    shapes.append(Shape(kind, mask=_run_lengths(one["rle"], (size[0], size[1]))))
                case "caption":
                    pass
                case other:
                    raise DataError(f"{name}: an annotation of the type {str(other)[:20]!r} has no area; use polygons.")
        if size is None and any(shape.polygons for shape in shapes):
            raise DataError(
                f"{name}: {str(image['path'])[:80]} has shapes but no size; export it with the sizes of images."
            )
        path = str(image["path"]).replace("\\", "/")
        found.append(Annotated(path, None if size is None else (size[0], size[1]), tuple(shapes)))
    return found


def _labelme(content: Mapping[str, Any], name: str) -> Annotated:
    size = (int(content["imageHeight"]), int(content["imageWidth"]))
    shapes = []
    for one in content["shapes"]:
        points, kind = np.asarray(one["points"], np.float64), str(one.get("label") or "")
        match one.get("shape_type", "polygon"):
            case "polygon":
                shapes.append(Shape(kind, (_points(points),)))
            case "rectangle":
                shapes.append(Shape(kind, (_box(*points.min(0), *points.max(0)),)))
            case "circle":
                radius = float(np.linalg.norm(points[1] - points[0]))
                (x, y) = points[0]
                shapes.append(Shape(kind, (_ellipse(x - radius, y - radius, x + radius, y + radius),)))
            case "mask":
                part = decode_image(base64.b64decode(one["mask"]), name)[0] != 0
                left, top = (int(n) for n in points[0])
                whole = np.zeros(size, bool)
                target = whole[top : top + part.shape[0], left : left + part.shape[1]]
                target |= part[: target.shape[0], : target.shape[1]]
                shapes.append(Shape(kind, mask=whole))
            case other:  # points and lines have no area
                raise DataError(f"{name}: a shape of the type {str(other)[:20]!r} has no area; use polygons.")
    return Annotated(str(content["imagePath"]).replace("\\", "/"), size, tuple(shapes))


def _yolo_file(image: str, there: Mapping[str, str]) -> str | None:
    """The text file of an image: ``images`` in its path replaced by ``labels``, or beside it where there is a list of classes."""
    parts = stem(image).casefold().split("/")
    places = [k for k, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        text = there.get("/".join((*parts[: places[-1]], "labels", *parts[places[-1] + 1 :])) + ".txt")
        if text is not None:
            return text
    return there.get("/".join(parts) + ".txt") if any(name in there for name in _YOLO_NAMES) else None


def _yolo(
    path: Path, images: Sequence[str], text_of: Mapping[str, str], there: Mapping[str, str], limits: Limits
) -> DataSet:
    lists = next((there[name] for name in _YOLO_NAMES if name in there), None)
    names = {} if lists is None else _yolo_names(read_bytes(path / lists, LARGEST).decode("utf-8", "replace"))
    known = {text_of[image]: image for image in images if image in text_of}
    if len(known) < len(text_of):
        twice = next(image for image in text_of if known[text_of[image]] != image)
        raise DataError(
            f"{path}: {twice} and {known[text_of[twice]]} have the same annotations, {text_of[twice]}; rename or remove one."
        )
    found = [
        (path / text, Annotated(image, None, tuple(_yolo_shapes(path / text, names))))
        for image, text in text_of.items()
    ]
    without = [image for image in images if image not in text_of]
    return _data_set(path.resolve().name, path, "YOLO annotations", _from_root(path, found), limits, without=without)


def _from_root(root: Path, found: Sequence[tuple[Path, Annotated]]) -> list[tuple[Path, Annotated]]:
    """YOLO names its images from the root, not from the files of annotations."""
    return [(root / "labels.txt", one) for _, one in found]


def _yolo_shapes(file: Path, names: Mapping[int, str]) -> list[Shape]:
    """Lines ``class x1 y1 x2 y2 x3 y3 ...`` (polygon) or ``class x y width height`` (box around its centre), as fractions."""
    shapes = []
    for number, line in enumerate(read_bytes(file, LARGEST).decode("utf-8", "replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            kind, values = int(words[0]), np.array([float(word) for word in words[1:]])
        except ValueError:
            values, kind = np.zeros(0), -1
        if (
            kind < 0
            or len(values) < 4
            or (len(values) > 4 and (len(values) % 2 or len(values) < 6))
            or not (np.isfinite(values).all() and (abs(values - 0.5) <= 1).all())
        ):
            raise DataError(
                f"{file}, line {number}: expected a class and fractions of the image's size, x y width height or at least three "
                f"points x y, got {line[:60]!r}; export the annotations again."
            )
        name = names.get(kind, f"class {kind}")
        if len(values) == 4:
            x, y, wide, tall = values.tolist()
            shapes.append(Shape(name, (_box(x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2),)))
        else:
            shapes.append(Shape(name, (_points(values.reshape(-1, 2)),)))
    return shapes


def _yolo_names(text: str) -> dict[int, str]:
    """Names of classes: one in a line, or the entry ``names`` of ``data.yaml`` in its three spellings.

    >>> _yolo_names("nc: 2\\nnames: ['good', \\"dent\\"]"), _yolo_names("names:\\n  0: good\\n  1: dent\\npath: x")
    ({0: 'good', 1: 'dent'}, {0: 'good', 1: 'dent'})
    >>> _yolo_names("names:\\n- good\\n- dent"), _yolo_names("good\\ndent\\n")
    ({0: 'good', 1: 'dent'}, {0: 'good', 1: 'dent'})
    """
    entry = re.search(r"^names[ \t]*:(.*(?:\n(?:[ \t]|-|#).*)*)", text, re.MULTILINE)
    if entry is None:
        lines = [line.strip() for line in text.splitlines()]
        return {} if any(re.match(r"\w+[ \t]*:", line) for line in lines) else dict(enumerate(filter(None, lines)))
    body = re.sub(r"(?:^|[ \t])#.*", "", entry[1])
    pairs = re.findall(r"(?:^|[{,\n])[ \t]*(\d+)[ \t]*:[ \t]*([^\n,}]+)", body)
    if pairs:
        return {int(number): name.strip().strip("'\"") for number, name in pairs}
    listed = re.findall(r"[^\[\],\n]+", body) if "[" in body else re.findall(r"^[ \t]*-[ \t]*(.+)$", body, re.MULTILINE)
    return dict(enumerate(name for word in listed if (name := word.strip().strip("'\""))))


def _points(points: Array) -> Float64:
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise DataError(f"a polygon needs at least three points (x, y), got shape {points.shape}.")
    return np.asarray(points, np.float64)


def _box(left: float, top: float, right: float, bottom: float) -> Float64:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)


def _ellipse(left: float, top: float, right: float, bottom: float) -> Float64:
    angle = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    centre, half = np.array([left + right, top + bottom]) / 2, np.array([right - left, bottom - top]) / 2
    return np.asarray(centre + half * np.stack([np.cos(angle), np.sin(angle)], 1), np.float64)
