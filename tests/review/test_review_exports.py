"""A review as files of other tools, read back by the readers of normalcy and of the tools' own formats."""

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from normalcy.data.open import open_data
from normalcy.errors import DataError
from normalcy.review import masks
from normalcy.review.exports import export
from normalcy.review.imports import import_decisions
from normalcy.review.labels import write_labels
from normalcy.review.session import Review
from normalcy.review.store import Decision


@pytest.fixture
def review(results: Path) -> Iterator[Review]:
    """Two anomalous images, one of whose masks has a hole, a normal one, an unsure one and one with no mask."""
    found = Review([results])
    assert found.known("00.png").is_file
    disc = np.zeros((48, 64), bool)
    disc[10:30, 10:30] = True
    disc[40:44, 50:60] = True
    ring = disc.copy()
    ring[15:20, 15:20] = False
    for image, mask, kind in (("00.png", disc, "crack"), ("03.png", ring, "stain")):
        name = masks.write(found.folder, masks.name_of("anna", image, False), mask, None)
        found.store.add(Decision(image, "anna", "anomalous", kind, mask=name))
    found.store.add(Decision("01.png", "anna", "normal"))
    found.store.add(Decision("02.png", "anna", "unsure"))
    found.store.add(Decision("06.png", "anna", "anomalous"))
    yield found
    found.store.close()


def own_mask(review: Review, image: str) -> np.ndarray:
    return masks.read(review.folder, f"masks/anna/{image}.png")


@pytest.mark.parametrize(("name", "spec"), [("coco", "{}/annotations.json"), ("labelme", "labelme:{}")])
def test_masks_come_back_exactly(review: Review, tmp_path: Path, made: Path, name: str, spec: str):
    count, failed = export(review, name, tmp_path / "out")
    assert count == 4
    assert [one.path for one in failed] == ["02.png"]
    data = open_data(spec.format(tmp_path / "out"))
    found = {Path(item.path).name: i for i, item in enumerate(data.items)}
    assert {name: data.items[i].label for name, i in found.items()} == {
        "00.png": 1,
        "01.png": 0,
        "03.png": 1,
        "06.png": 1,
    }
    assert data.items[found["03.png"]].type == "stain"
    for image in ("00.png", "03.png"):
        np.testing.assert_array_equal(data.mask(found[image]), own_mask(review, image))
        assert (tmp_path / f"out/images/{image}").read_bytes() == (made / "line" / image).read_bytes()
    assert data.mask(found["06.png"]).all()  # nothing marked: the whole image


def test_coco_says_what_it_must(review: Review, tmp_path: Path):
    export(review, "coco", tmp_path / "out")
    words = json.loads((tmp_path / "out/annotations.json").read_text())
    assert [one["name"] for one in words["categories"]] == ["anomaly", "crack", "stain"]
    crack = next(one for one in words["annotations"] if one["category_id"] == 2)
    assert crack["area"] == own_mask(review, "00.png").sum()
    assert crack["bbox"] == [10, 10, 50, 34]
    assert crack["iscrowd"] == 0
    assert sorted(len(polygon) for polygon in crack["segmentation"]) == [8, 8]


def test_geojson(review: Review, tmp_path: Path):
    import shapely.geometry

    count, failed = export(review, "geojson", tmp_path / "out")
    assert count == 2
    assert {one.path for one in failed} == {"02.png", "06.png"}
    words = json.loads((tmp_path / "out/03.png.geojson").read_text())
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in words["features"]]
    assert sum(shape.area for shape in shapes) == own_mask(review, "03.png").sum()
    assert all(shape.is_valid for shape in shapes)
    assert {feature["properties"]["classification"]["name"] for feature in words["features"]} == {"stain"}


def test_fiftyone(review: Review, tmp_path: Path):
    assert export(review, "fiftyone", tmp_path / "out")[0] == 4
    samples = json.loads((tmp_path / "out/samples.json").read_text())
    assert [one["label"] for one in samples] == ["anomalous", "normal", "anomalous", "anomalous"]
    for one in samples:
        assert (tmp_path / "out" / one["filepath"]).is_file()
        if "mask_path" in one:
            assert (tmp_path / "out" / one["mask_path"]).is_file()
    ast.parse((tmp_path / "out/load.py").read_text())


def test_nothing_to_export(results: Path, tmp_path: Path):
    empty = Review([results])
    with pytest.raises(DataError, match="decide some first"):
        export(empty, "coco", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    empty.store.close()


def test_photographs_are_no_dicom(review: Review, tmp_path: Path):
    with pytest.raises(DataError, match="is no DICOM image"):
        export(review, "dicomseg", tmp_path / "out")


def test_dicom_segmentation(dicom: Callable[[Path], tuple[str, str]], tmp_path: Path):
    """It refers to the source's instances, and its frames are the marked slices."""
    highdicom = pytest.importorskip("highdicom")
    dicom(tmp_path)
    review = Review([tmp_path / "results"])
    space = review.dicom_space(0)
    mask = np.zeros(space.size, bool)
    mask[1, 2:5, 3:8] = True
    name = masks.write(review.folder, masks.name_of("anna", review.read.files[0], True), mask, space)
    review.store.add(Decision(review.read.paths[0], "anna", "anomalous", "bleeding", mask=name))
    assert export(review, "dicomseg", tmp_path / "out")[0] == 1
    [file] = (tmp_path / "out").rglob("*.dcm")
    found = highdicom.seg.segread(file)
    assert found.SegmentSequence[0].SegmentLabel == "bleeding"
    assert found.SegmentSequence[0].SegmentAlgorithmType == "MANUAL"
    assert int(found.pixel_array.sum()) == 15
    review.store.close()


# -- imports


def test_decisions_of_another_review(review: Review, made: Path, copy_of, tmp_path: Path):
    review.store.add(Decision("01.png", "ben", "anomalous", blind=True))
    write_labels(review.store, review.known)
    other = Review([copy_of(made / "results")])
    assert import_decisions(other, review.folder / "decisions.csv") == 6
    assert import_decisions(other, review.folder / "decisions.csv") == 0
    assert {(d.image, d.reviewer, d.verdict, d.blind) for d in other.store.current()} == {
        (d.image, d.reviewer, d.verdict, d.blind) for d in review.store.current()
    }
    np.testing.assert_array_equal(other.mask(other.places["03.png"], "anna"), own_mask(review, "03.png"))
    other.store.close()


def test_annotations_of_another_tool(review: Review, made: Path, copy_of, tmp_path: Path):
    export(review, "coco", tmp_path / "out")
    other = Review([copy_of(made / "results")])
    assert import_decisions(other, tmp_path / "out/annotations.json") == 4
    found = {d.image: d for d in other.store.current()}
    assert (found["03.png"].verdict, found["03.png"].type) == ("anomalous", "stain")
    assert found["01.png"].verdict == "normal"
    np.testing.assert_array_equal(masks.read(other.folder, found["03.png"].mask), own_mask(review, "03.png"))
    other.store.close()


def test_decisions_about_other_images(review: Review, tmp_path: Path):
    (tmp_path / "labels.csv").write_text("path,label\nelsewhere.png,1\n")
    with pytest.raises(DataError, match="none of its images is in"):
        import_decisions(review, tmp_path / "labels.csv")
    (tmp_path / "decisions.csv").write_text("image,reviewer,verdict,mask\n00.png,x,anomalous,../../../etc/passwd\n")
    with pytest.raises(DataError, match="leads out of"):
        import_decisions(review, tmp_path / "decisions.csv")
