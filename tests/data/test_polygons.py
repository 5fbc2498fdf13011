"""Annotations of COCO and LabelMe as masks, and masks as polygons."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from normalcy.data.annotations import read_annotations
from normalcy.data.open import open_data
from normalcy.data.polygons import decode_rle, encode_rle, polygons_of, rasterise
from normalcy.errors import DataError

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_polygons_give_back_the_mask(mask: np.ndarray):
    """Holes and regions that touch at corners included."""
    found = np.zeros(mask.shape, bool)
    for rings in polygons_of(mask):
        found |= rasterise(rings, mask.shape)
    np.testing.assert_array_equal(found, mask)


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_run_lengths_give_back_the_mask(mask: np.ndarray):
    np.testing.assert_array_equal(decode_rle(encode_rle(mask), mask.shape), mask)


def test_compressed_run_lengths():
    """As pycocotools writes them, by its algorithm restated here."""

    def compress(counts: list[int]) -> str:
        text = ""
        for i, count in enumerate(counts):
            x = count - counts[i - 2] if i > 2 else count
            more = True
            while more:
                c = x & 0x1F
                x >>= 5
                more = x != -1 if c & 0x10 else x != 0
                text += chr((c | 0x20 if more else c) + 48)
        return text

    mask = np.zeros((60, 50), bool)
    mask[5:40, 10:30] = mask[50:, 40:] = True
    np.testing.assert_array_equal(decode_rle(compress(encode_rle(mask)), mask.shape), mask)
    assert compress([0, 4]) == "04"


def test_a_pixel_belongs_to_the_polygon_of_its_centre():
    triangle = np.array([[0, 0], [4, 0], [0, 4]], float)
    np.testing.assert_array_equal(
        rasterise([triangle], (4, 4)), [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    )


def test_a_polygon_that_leaves_the_image():
    square = np.array([[-5, -5], [2, -5], [2, 50], [-5, 50]], float)
    found = rasterise([square], (6, 7))
    assert found[:, :2].all()
    assert not found[:, 2:].any()


def coco(path: Path) -> Path:
    """Three images: a polygon and a box, run lengths, nothing."""
    content: dict[str, Any] = {
        "categories": [{"id": 7, "name": "crack"}, {"id": 9, "name": "stain"}],
        "images": [{"id": k, "file_name": f"{k}.png", "height": 20, "width": 30} for k in (1, 2, 3)],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 7,
                "segmentation": [[2, 3, 6, 3, 6, 8, 2, 8]],
                "bbox": [2, 3, 4, 5],
            },
            {"id": 2, "image_id": 1, "category_id": 9, "bbox": [20, 10, 4, 2]},
            {"id": 3, "image_id": 2, "category_id": 7, "segmentation": {"counts": [40, 5, 555], "size": [20, 30]}},
        ],
    }
    (path / "images").mkdir(parents=True, exist_ok=True)
    for k in (1, 2, 3):
        Image.fromarray(np.full((20, 30), 50 * k, np.uint8)).save(path / f"images/{k}.png")
    (path / "coco.json").write_text(json.dumps(content))
    return path / "coco.json"


def test_coco_as_data(tmp_path: Path):
    data = open_data(coco(tmp_path))
    assert [item.path for item in data.items] == ["images/1.png", "images/2.png", "images/3.png"]
    assert [item.label for item in data.items] == [1, 1, 0]
    assert [item.type for item in data.items] == ["crack, stain", "crack", None]
    expected = np.zeros((20, 30), bool)
    expected[3:8, 2:6] = expected[10:12, 20:24] = True
    np.testing.assert_array_equal(data.mask(0), expected)
    np.testing.assert_array_equal(np.argwhere(data.mask(1)), [[k, 2] for k in range(5)])
    mask = data.mask(2)
    assert mask is not None
    assert not mask.any()
    assert data.read(2)[0, 0, 0] == 150


def test_labelme_as_data(tmp_path: Path):
    """Every shape with an area; an image without shapes is normal."""
    part = np.zeros((3, 4), np.uint8)
    part[1, 1:3] = 255
    buffer = io.BytesIO()
    Image.fromarray(part).save(buffer, "PNG")
    coded = base64.b64encode(buffer.getvalue()).decode()
    shapes = [
        {"label": "a", "shape_type": "polygon", "points": [[0, 0], [3, 0], [3, 3], [0, 3]]},
        {"label": "b", "shape_type": "rectangle", "points": [[12, 8], [10, 5]]},
        {"label": "c", "shape_type": "circle", "points": [[20, 10], [20, 13]]},
        {"label": "d", "shape_type": "mask", "points": [[24, 15], [27, 17]], "mask": coded},
    ]
    for name, own in (("x", shapes), ("y", [])):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / f"{name}.png")
        words = {"imagePath": f"{name}.png", "imageHeight": 20, "imageWidth": 30, "shapes": own, "imageData": None}
        (tmp_path / f"{name}.json").write_text(json.dumps(words))
    data = open_data(f"labelme:{tmp_path}")
    assert [(item.path, item.label) for item in data.items] == [("x.png", 1), ("y.png", 0)]
    mask = data.mask(0)
    assert mask is not None
    assert mask[:3, :3].all()
    assert mask[5:8, 10:12].sum() == 6
    assert mask[16, 25:27].all()
    disc = mask[6:14, 16:24].sum()
    assert abs(disc - np.pi * 9) < 4
    assert mask.sum() == 9 + 6 + 2 + disc
    assert open_data(tmp_path / "x.json").items[0].type == "a, b, c, d"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "expected COCO"),
        ("[1]", "expected COCO"),
        ("{", "not valid JSON"),
        ('{"images": [{"id": 1}], "annotations": []}', "damaged"),
        ('{"images": [], "annotations": [{"image_id": 4}]}', "damaged"),
        ('{"imagePath": "a.png", "shapes": [{"label": "p", "shape_type": "line", "points": [[0, 0], [1, 1]]}], "imageHeight": 4, '
         '"imageWidth": 4}', "has no area"),
        ('{"imagePath": "../../a.png", "shapes": [], "imageHeight": 4, "imageWidth": 4}', "leads out of"),
        ('{"imagePath": "/etc/passwd", "shapes": [], "imageHeight": 4, "imageWidth": 4}', "leads out of"),
    ],
)  # fmt: skip
def test_what_is_no_annotation(tmp_path: Path, text: str, message: str):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        open_data(file)


def test_run_lengths_of_another_size(tmp_path: Path):
    file = coco(tmp_path)
    words = json.loads(file.read_text())
    words["annotations"][2]["segmentation"]["counts"] = [40, 5]
    file.write_text(json.dumps(words))
    with pytest.raises(DataError, match="run lengths of 45 pixels, expected 600"):
        read_annotations(file)
