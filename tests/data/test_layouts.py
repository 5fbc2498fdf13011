"""Every tree of the page of layouts, read: splits, labels, types, cases and masks; and trees that are damaged or hostile."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from normalcy.data.check import check, check_and_survey, counts
from normalcy.data.layouts import LAYOUTS, is_suspect
from normalcy.data.open import open_data
from normalcy.errors import DataError

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "docs"))
from layout_trees import SIZE, TREES, Image, Marked, Read, Tree  # noqa: E402

NAMES = [tree.title for tree in TREES]


def tree_of(title: str) -> Tree:
    return next(tree for tree in TREES if tree.title == title)


def picture(path: Path, value: int = 9, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


def written(tree: Tree, root: Path, change: Callable[[str], str] = str) -> Path:
    """The files of a tree below ``root``, with ``change``d paths; the folder that is opened."""
    for number, (name, content) in enumerate(tree.files.items()):
        path = root / change(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Image):
            picture(path, 100 + number)
        elif isinstance(content, Marked):
            mask = np.zeros(SIZE, np.uint8)
            top, bottom, left, right = content.box
            mask[top:bottom, left:right] = content.value
            Pillow.fromarray(mask).save(path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    top = change(f"{tree.folder or next(iter(tree.files)).split('/')[0]}/")
    return root / top


def faults(folder: Path) -> dict[str, str]:
    return {fault.path: fault.problem for fault in check(open_data(folder))}


@pytest.fixture(params=NAMES)
def tree(request: pytest.FixtureRequest) -> Tree:
    return tree_of(request.param)


# -- the trees as published ----------------------------------------------------------------------------------------------


def test_a_tree_is_read_as_the_page_says(tree: Tree, tmp_path: Path):
    folder = written(tree, tmp_path)
    for spec in (folder, *tree.names):
        data = open_data(spec, tmp_path)
        assert data.origin.layout == (tree.layout or tree.title)
        assert data.origin.doubt == ""
        assert data.name == (folder.name if spec == folder else str(spec).partition(",")[0])
        assert {item.path for item in data.items} == set(tree.read)
        order = list(tree.files)
        base = f"{tree.folder or order[0].split('/')[0]}/"
        for i, item in enumerate(data.items):
            expected: Read = tree.read[item.path]
            assert (item.split, item.label, item.type) == (expected.split, expected.label, expected.type), item.path
            assert item.case == (expected.case or item.path)
            assert abs(int(data.read(i)[0, 0, 0]) - (100 + order.index(base + item.path))) <= 1  # this image, no other
            mask = data.mask(i)
            if expected.mask == "none":
                assert mask is None, item.path
                continue
            whole = np.zeros(SIZE, bool)
            for top, bottom, left, right in expected.mask if expected.mask != "empty" else ():
                whole[top:bottom, left:right] = True
            assert mask is not None, item.path
            np.testing.assert_array_equal(mask, whole, err_msg=item.path)
        assert [fault for fault in check(data) if fault.severity == "error"] == []


@pytest.mark.parametrize(
    "title", [tree.title for tree in TREES if not any(name.endswith((".json", ".csv", ".yaml")) for name in tree.files)]
)
def test_a_tree_in_upper_case(title: str, tmp_path: Path):
    """Folders and suffixes. What an index file names must be spelled as it says, so these are left out."""
    tree = tree_of(title)
    folder = written(tree, tmp_path, lambda name: name if name.endswith("/") else _upper(name, tree.folder))
    data = open_data(folder)
    assert data.origin.layout == (tree.layout or tree.title)
    assert Counter((item.split, item.label) for item in data.items) == Counter(
        (read.split, read.label) for read in tree.read.values()
    )
    assert sum(mask is not None and mask.any() for mask in map(data.mask, range(len(data)))) == sum(
        isinstance(read.mask, tuple) for read in tree.read.values()
    )


def _upper(name: str, folder: str) -> str:
    below = name[len(folder) :]
    place, _, last = below.rpartition("/")
    stem, _, suffix = last.rpartition(".")
    return f"{folder}{place.upper()}/{stem}.{suffix.upper()}"


@pytest.mark.parametrize("title", [tree.title for tree in TREES if tree.without])
def test_without_what_marks_the_layout_it_is_refused(title: str, tmp_path: Path):
    tree = tree_of(title)
    assert tree.without is not None
    old, new = tree.without
    folder = written(tree, tmp_path, lambda name: name.replace(old, new))
    with pytest.raises(DataError, match=tree.refused):
        open_data(folder)
    if tree.refused.startswith("may be"):
        data = open_data(folder, as_normal=True)
        assert data.origin.layout == "plain folder"
        assert {item.label for item in data.items} == {None}


def test_a_folder_of_all_categories_names_them(tmp_path: Path):
    for title, root, inside in (
        ("VisA", "VisA", "capsules"),
        ("MVTec AD 2", "mvtec_ad_2", "can"),
        ("Real-IAD", "Real-IAD", "realiad_256/audiojack"),
        ("BMAD", "BMAD", "Brain"),
    ):
        written(tree_of(title), tmp_path)
        with pytest.raises(DataError, match=rf"got 1 in its folders {inside}; name one of them"):
            open_data(tmp_path / root)


def test_every_layout_has_a_tree():
    assert {layout.name for layout in LAYOUTS} <= {tree.layout or tree.title for tree in TREES}


def test_the_numbers_that_check_prints(tmp_path: Path):
    data = open_data(written(tree_of("BMAD"), tmp_path))
    assert counts(data) == {
        "train": {"normal": 1},
        "test": {"normal": 1, "Ungood": 1},
        "": {"normal": 1, "Ungood": 1},
    }
    masks = check_and_survey(data).masks
    assert (masks.there, masks.missing, masks.another_size, masks.unreadable) == (2, 0, 0, 0)


# -- facts of single layouts ---------------------------------------------------------------------------------------------


def test_saturation_of_loco(tmp_path: Path):
    """255: 5 pixels at most; 250: half of a region."""
    folder = written(tree_of("MVTec LOCO AD"), tmp_path)
    data = open_data(folder)
    of_type = {item.type: i for i, item in enumerate(data.items)}
    first, second = data.regions(of_type["logical_anomalies"])
    assert (first.mask.sum(), first.saturation) == (12, 5.0)
    assert (second.mask.sum(), second.saturation) == (6, 3.0)
    part = data.select(split="test", label=1)
    np.testing.assert_array_equal(part.regions(0)[0].mask, first.mask)
    assert data.regions(of_type["good"]) == []
    assert "saturation thresholds of defects_config.json: 2 kinds" in data.origin.notes[0]
    (folder / "defects_config.json").write_text('[{"pixel_value": 255}]')
    with pytest.raises(DataError, match="expected a list with pixel_value"):
        open_data(folder)
    (folder / "defects_config.json").unlink()
    assert "the saturation thresholds of the masks are not known" in open_data(folder).origin.notes[0]


def test_visa_without_its_split(tmp_path: Path):
    folder = written(tree_of("VisA"), tmp_path)
    (folder.parent / "split_csv" / "1cls.csv").unlink()
    data = open_data(folder)
    assert counts(data) == {"": {"normal": 2, "anomaly": 1}}
    assert data.mask(0) is not None
    assert data.origin.notes == ("split_csv/1cls.csv was not found: the published split is not known",)


def test_real_iad_of_several_sizes_and_views(tmp_path: Path):
    tree = tree_of("Real-IAD")
    written(tree, tmp_path)
    written(tree, tmp_path, lambda name: name.replace("realiad_256", "realiad_512"))
    with pytest.raises(DataError, match=r"realiad_256/audiojack and .*realiad_512/audiojack; say which with size="):
        open_data("real_iad:audiojack", tmp_path)
    data = open_data("real_iad:audiojack,size=512,view=C1", tmp_path)
    assert data.root == tmp_path / "Real-IAD/realiad_512/audiojack"
    assert ["_C1_" in item.path for item in data.items] == [True, True]
    for options, message in (
        ("size=300", "expected one of the sizes 256, 512, 1024, raw"),
        ("size=512,views=C1", "Real-IAD has no option 'views'. Available: json, view"),
        ("size=512,view=C9", "has no images of the view 'C9'"),
        ("size", "say which with size="),  # without "=" another data set, beside the first
        ("size=512,json=other", "audiojack.json, which is missing"),
    ):
        with pytest.raises(DataError, match=message):
            open_data(f"real_iad:audiojack,{options}", tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mvtec", r"expected a category, got none. Available: bottle, cable"),
        ("mvtec:botle", r"got 'botle'.*Did you mean mvtec:bottle\?"),
        ("mvtec:cable", r"expected its folder in .*, found none; get the set from https://www.mvtec.com"),
        ("loco:pushpins", r"in the layout MVTec LOCO AD, got MVTec AD"),
        ("pathmnist:0", r"pathmnist.npz, which is missing; get it from"),
    ],
)
def test_names_that_lead_to_nothing(tmp_path: Path, spec: str, message: str):
    written(tree_of("MVTec AD"), tmp_path)
    written(tree_of("MVTec AD"), tmp_path, lambda name: name.replace("mvtec/bottle", "mvtec_loco/pushpins"))
    with pytest.raises(DataError, match=message):
        open_data(spec, tmp_path)


def test_the_data_root_may_be_the_set_itself(tmp_path: Path):
    written(tree_of("BTAD"), tmp_path)
    assert len(open_data("btad:01", tmp_path / "BTech_Dataset_transformed")) == 3


def test_medmnist_by_name(tmp_path: Path):
    """2D of one and of three channels, volumes, and findings in columns."""
    rng = np.random.default_rng(0)
    for name, shape, labels in (
        ("pneumoniamnist", (4, 6, 6), np.array([[0], [1], [0], [1]])),
        ("pathmnist_64", (4, 6, 6, 3), np.array([[3], [0], [3], [8]])),
        ("organmnist3d", (4, 5, 6, 7), np.array([[3], [1], [3], [1]])),
        ("chestmnist", (4, 6, 6), np.array([[0, 0], [0, 1], [0, 0], [1, 1]])),
    ):
        arrays: dict[str, Any] = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = rng.integers(0, 255, shape, np.uint8)
            arrays[f"{split}_labels"] = labels
        np.savez(tmp_path / f"{name}.npz", **arrays)
        normal = 3 if name.startswith(("path", "organ")) else 0
        data = open_data(f"{name}:{normal}", tmp_path)
        assert counts(data)["train"] == {"normal": 4}  # two of train, two of val
        assert sorted(item.label for item in data.select(split="test").items) == [0, 0, 1, 1]
        stack = arrays["train_images"][0]
        expected = stack[None] if name != "pathmnist_64" else np.moveaxis(stack, -1, 0)
        np.testing.assert_array_equal(data.read(0), expected)
        assert data.name == f"{name}:{normal}"
    with pytest.raises(DataError, match="expected the number of the normal class, as in pneumoniamnist:0, got none"):
        open_data("pneumoniamnist", tmp_path)


# -- words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["tango", "label_printer_good", "maskless", "kong", "unmasked", "labelled", "bong_01", "no_ng"]
)
def test_words_that_only_contain_others_are_not_refused(tmp_path: Path, name: str):
    assert not is_suspect(name)
    picture(tmp_path / "set" / name / "0.png")
    assert len(open_data(tmp_path / "set")) == 1


@pytest.mark.parametrize(
    "name", ["bad", "DEFECT", "abnormal-2", "anomaly", "ko", "NG 1", "mask", "ground truth", "image_labels"]
)
def test_a_plain_folder_with_such_words_is_refused_unless_asked_for(tmp_path: Path, name: str):
    picture(tmp_path / "set" / "a" / "0.png")
    picture(tmp_path / "set" / name / "0.png", 7)
    with pytest.raises(
        DataError, match=r"0.png may be anomalous or a mask, .*\(MVTec AD\), .* \(Folder\).*--as-normal"
    ):
        open_data(tmp_path / "set")
    data = open_data(tmp_path / "set", as_normal=True)
    assert [item.label for item in data.items] == [None, None]
    assert data.origin.doubt


def test_as_normal_changes_nothing_where_a_layout_is_known(tmp_path: Path):
    folder = written(tree_of("Folder"), tmp_path)
    assert open_data(folder, as_normal=True).items == open_data(folder).items


# -- hostile variants ----------------------------------------------------------------------------------------------------


def test_masks_that_are_missing_or_of_another_size(tmp_path: Path):
    folder = written(tree_of("MVTec AD"), tmp_path)
    (folder / "ground_truth/broken_large/000_mask.png").unlink()
    picture(folder / "ground_truth/contamination/000_mask.png", 255, (4, 4))
    data = open_data(folder)
    said = {fault.path: fault.problem for fault in check(data)}
    assert said["test/broken_large/000.png"] == "anomalous, but its mask is missing"
    assert said["test/contamination/000.png"] == "mask is 4 x 4, the image 8 x 10 (rows x columns)"
    masks = check_and_survey(data).masks
    assert (masks.there, masks.missing, masks.another_size, masks.unreadable) == (0, 1, 1, 0)


def test_parts_of_a_mask_of_other_sizes(tmp_path: Path):
    folder = written(tree_of("MVTec LOCO AD"), tmp_path)
    picture(folder / "ground_truth/logical_anomalies/000/001.png", 255, (4, 4))
    assert "expected the size (8, 10) of the other parts" in faults(folder)["test/logical_anomalies/000.png"]


def test_two_suffixes_of_one_name(tmp_path: Path):
    """Two masks of an image: one is used and the other listed; two images of a mask: it is said."""
    folder = written(tree_of("MVTec AD"), tmp_path)
    picture(folder / "ground_truth/broken_large/000_mask.bmp", 255)
    picture(folder / "test/contamination/000.bmp", 77)
    data = open_data(folder)
    assert data.reasons["ground_truth/broken_large/000_mask.png"] == (
        "another mask of test/broken_large/000.png, of which ground_truth/broken_large/000_mask.bmp is used"
    )
    assert data.origin.notes == (
        "2 images share their masks with others of the same name, as test/contamination/000.bmp",
    )


def test_two_images_of_one_yolo_file(tmp_path: Path):
    folder = written(tree_of("YOLO annotations"), tmp_path)
    picture(folder / "images/test/1.bmp")
    with pytest.raises(DataError, match=r"1.png have the same annotations, labels/test/1.txt; rename or remove one"):
        open_data(folder)


@pytest.mark.parametrize("title", ["MVTec LOCO AD", "MVTec AD 2", "BMAD", "Folder", "MVTec AD"])
def test_empty_categories(tmp_path: Path, title: str):
    """Masks without their images are listed, and an empty folder changes nothing."""
    tree = tree_of(title)
    folder = written(tree, tmp_path)
    gone = {path for path, read in tree.read.items() if read.label == 1 and isinstance(read.mask, tuple)}
    (tmp_path / tree.folder / "test" / "empty").mkdir(parents=True, exist_ok=True)
    keep = sorted(gone)[0]
    for path in gone - {keep}:
        (folder / path).unlink()
    data = open_data(folder)
    assert data.origin.layout == title
    listed = [path for path, reason in data.reasons.items() if reason.startswith("a mask that matches no")]
    parts = sum(len(tree.read[path].mask) for path in gone - {keep})
    assert len(listed) == parts


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("capsules/Data/Images/Normal/000.JPG", "capsules/../../secret.png", "leads out of"),
        ("capsules/Data/Images/Normal/000.JPG", "/etc/passwd", "leads out of capsules"),
        ("capsules/Data/Images/Normal/000.JPG", "candle/Data/Images/Normal/000.JPG", "leads out of capsules"),
        ("Normal/001.JPG", "Normal/000.JPG", "Data/Images/Normal/000.JPG is named more than once"),
        ("capsules,", "pcb1,", "has no images of capsules; its objects are candle, pcb1"),
        ("train,normal", "training,normal", "expected the split train or test"),
        ("object,split", "a,b", "expected the columns object, split, label, image, mask, got a, b"),
        ("capsules,train", "capsules,test", "expected training images of capsules, got none"),
    ],
)
def test_hostile_splits_of_visa(tmp_path: Path, old: str, new: str, message: str):
    folder = written(tree_of("VisA"), tmp_path)
    index = folder.parent / "split_csv" / "1cls.csv"
    index.write_text(index.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        open_data(folder)


@pytest.mark.parametrize(
    ("title", "index", "old", "new", "message"),
    [
        ("MedIAnomaly", "data.json", '"0.png"', '"../../0.png"', "leads out of"),
        ("MedIAnomaly", "data.json", '"1.png"', '"0.png"', "is named more than once"),
        ("MedIAnomaly", "data.json", "{", "", "is not valid JSON"),
        ("Real-IAD", "../../realiad_jsons/realiad_jsons/audiojack.json", "OK/S0001", "../S0001", "leads out of"),
        ("Real-IAD", "../../realiad_jsons/realiad_jsons/audiojack.json", '"image_path"', '"path"', "expected train and test"),
        ("Datumaro annotations", "annotations/default.json", '"0.png"', '"../../../0.png"', "leads out of"),
        ("Datumaro annotations", "annotations/default.json", "5350k1", "5350", "run lengths of 16 pixels, expected 80"),
        ("Datumaro annotations", "annotations/default.json", "5350k1", "5350k", "its annotations are damaged"),
        ("Datumaro annotations", "annotations/default.json", '"polygon"', '"polyline"', "'polyline' has no area"),
        ("COCO annotations", "annotations/instances_default.json", '"1.png"', '"0.png"', "is annotated more than once"),
        ("COCO annotations", "annotations/instances_default.json", "{", "", "is not valid JSON"),
        ("COCO annotations", "annotations/instances_default.json", '"images"', '"pictures"', "expected COCO"),
        ("LabelMe annotations", "1.json", '"1.png"', '"../1.png"', "leads out of"),
        ("YOLO annotations", "labels/test/1.txt", "0 0.3", "0 nan", "labels/test/1.txt, line 1: expected a class"),
        ("YOLO annotations", "labels/test/1.txt", "0.3 0.625\n", "0.3\n", "labels/test/1.txt, line 1: expected a class"),
        ("YOLO annotations", "labels/test/1.txt", "0 0.3", "0 30", "labels/test/1.txt, line 1: expected a class"),
    ],
)  # fmt: skip
def test_hostile_indices(tmp_path: Path, title: str, index: str, old: str, new: str, message: str):
    folder = written(tree_of(title), tmp_path)
    file = folder / index
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        open_data(folder)


@pytest.mark.parametrize(
    ("title", "file"),
    [
        ("VisA", "Data/Images/Normal/001.JPG"),
        ("MedIAnomaly", "images/2.png"),
        ("Real-IAD", "NG/BX/S0002/audiojack_0002_NG_BX_C2_20231021.jpg"),
        ("COCO annotations", "images/2.png"),
    ],
)
def test_images_that_an_index_names_and_that_are_absent_are_listed(tmp_path: Path, title: str, file: str):
    folder = written(tree_of(title), tmp_path)
    (folder / file).unlink()
    absent = {path: problem for path, problem in faults(folder).items() if path.endswith(Path(file).name)}
    assert len(absent) == 1
    assert "no such file" in next(iter(absent.values())).lower()


def test_images_that_no_index_names_are_listed(tmp_path: Path):
    for title in ("VisA", "COCO annotations"):
        folder = written(tree_of(title), tmp_path)
        picture(folder / "images/new.png", 3)
        assert "name" in faults(folder)["images/new.png"]


def test_splits_of_annotations(tmp_path: Path):
    """Anomalous images of a training split belong to none; without a test split there are none at all."""
    folder = written(tree_of("YOLO annotations"), tmp_path)
    picture(folder / "images/train/9.png", 3)
    (folder / "labels/train/9.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    data = open_data(folder)
    assert {item.path: item.split for item in data.items}["images/train/9.png"] is None
    assert "anomalous images of the training split, which are neither trained on nor scored: 1" in data.origin.notes
    written(tree_of("YOLO annotations"), tmp_path / "b", lambda name: name.replace("test", "val"))
    assert {item.split for item in open_data(tmp_path / "b" / "yolo").items} == {None}


def test_other_json_beside_images_is_no_annotation(tmp_path: Path):
    picture(tmp_path / "set" / "0.png")
    (tmp_path / "set" / "0.json").write_text('{"exposure": 3}')
    (tmp_path / "set" / "camera.json").write_text('{"images": 3}')
    assert open_data(tmp_path / "set").origin.layout == "plain folder"
