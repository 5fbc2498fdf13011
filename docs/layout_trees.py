"""Small trees in the published structures, and what is understood of each: the page of layouts and the tests are made from them.

A file is an image (``Image``), a mask (``Marked``), JSON (a list or mapping) or text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SIZE = (8, 10)
"""Rows and columns of every image."""

Box = tuple[int, int, int, int]
"""First row, row after the last, first column, column after the last."""


@dataclass(frozen=True)
class Image:
    """An image of one grey value, another one for each."""


@dataclass(frozen=True)
class Marked:
    """A mask with one box of a value."""

    box: Box
    value: int = 255


@dataclass(frozen=True)
class Read:
    """What an image is understood as."""

    split: str | None
    label: int | None
    type: str | None
    mask: tuple[Box, ...] | str = "none"
    """Boxes that are marked; "empty": nothing is; "none": there is no mask."""
    case: str = ""
    """Empty: the image is one of its own."""


@dataclass(frozen=True)
class Tree:
    title: str
    text: str
    files: Mapping[str, Any]
    read: Mapping[str, Read]
    folder: str = ""
    """What is opened, below the root of the tree."""
    names: tuple[str, ...] = ()
    """What it is called with the root as data root."""
    layout: str = ""
    """As ``normalcy check`` prints it; empty: the title."""
    without: tuple[str, str] | None = None
    """Text in paths -> text in its place, by which the layout is not recognised any more."""
    refused: str = "may be anomalous or a mask|may be an annotation"
    """What is said then."""


IMAGE = Image()
BOX, OTHER = (2, 5, 3, 7), (5, 8, 0, 2)
GOOD_TRAIN, GOOD_TEST = Read("train", 0, "good", "empty"), Read("test", 0, "good", "empty")

TREES = (
    Tree(
        "MVTec AD",
        "Also MPDD. `validation/good` is trained on, too. Other words are known: `ok` and `normal` for `good`, `training`, "
        "`testing`, `valid` and `val` for the splits, `masks` and the like for `ground_truth`.",
        {
            "mvtec/bottle/train/good/000.png": IMAGE,
            "mvtec/bottle/train/good/001.png": IMAGE,
            "mvtec/bottle/test/good/000.png": IMAGE,
            "mvtec/bottle/test/broken_large/000.png": IMAGE,
            "mvtec/bottle/test/contamination/000.png": IMAGE,
            "mvtec/bottle/ground_truth/broken_large/000_mask.png": Marked(BOX),
            "mvtec/bottle/ground_truth/contamination/000_mask.png": Marked(OTHER),
        },
        {
            "train/good/000.png": GOOD_TRAIN,
            "train/good/001.png": GOOD_TRAIN,
            "test/good/000.png": GOOD_TEST,
            "test/broken_large/000.png": Read("test", 1, "broken_large", (BOX,)),
            "test/contamination/000.png": Read("test", 1, "contamination", (OTHER,)),
        },
        "mvtec/bottle",
        ("mvtec:bottle",),
        without=("good/", "images/"),
    ),
    Tree(
        "BTAD",
        "The layout of MVTec AD with `ok` and `ko`. Masks have the names of their images, perhaps with another suffix.",
        {
            "BTech_Dataset_transformed/01/train/ok/0000.bmp": IMAGE,
            "BTech_Dataset_transformed/01/test/ok/0001.bmp": IMAGE,
            "BTech_Dataset_transformed/01/test/ko/0000.bmp": IMAGE,
            "BTech_Dataset_transformed/01/ground_truth/ko/0000.png": Marked(BOX),
        },
        {
            "train/ok/0000.bmp": GOOD_TRAIN,
            "test/ok/0001.bmp": GOOD_TEST,
            "test/ko/0000.bmp": Read("test", 1, "ko", (BOX,)),
        },
        "BTech_Dataset_transformed/01",
        ("btad:01",),
        "MVTec AD",
        ("ok/", "images/"),
    ),
    Tree(
        "MVTec LOCO AD",
        "A mask is several files, one for each region, whose values say which kind of defect it is. Their union is the mask. The "
        "saturation thresholds of `defects_config.json` are kept: `DataSet.regions(i)` gives each region with the number of "
        "pixels at which it counts as found. Pixel metrics use whole masks, not sPRO.",
        {
            "mvtec_loco_anomaly_detection/breakfast_box/train/good/000.png": IMAGE,
            "mvtec_loco_anomaly_detection/breakfast_box/validation/good/000.png": IMAGE,
            "mvtec_loco_anomaly_detection/breakfast_box/test/good/000.png": IMAGE,
            "mvtec_loco_anomaly_detection/breakfast_box/test/logical_anomalies/000.png": IMAGE,
            "mvtec_loco_anomaly_detection/breakfast_box/test/structural_anomalies/000.png": IMAGE,
            "mvtec_loco_anomaly_detection/breakfast_box/ground_truth/logical_anomalies/000/000.png": Marked(BOX, 255),
            "mvtec_loco_anomaly_detection/breakfast_box/ground_truth/logical_anomalies/000/001.png": Marked(OTHER, 250),
            "mvtec_loco_anomaly_detection/breakfast_box/ground_truth/structural_anomalies/000/000.png": Marked(
                OTHER, 250
            ),
            "mvtec_loco_anomaly_detection/breakfast_box/defects_config.json": [
                {"defect_name": "a", "pixel_value": 255, "saturation_threshold": 5, "relative_saturation": False},
                {"defect_name": "b", "pixel_value": 250, "saturation_threshold": 0.5, "relative_saturation": True},
            ],
        },
        {
            "train/good/000.png": GOOD_TRAIN,
            "validation/good/000.png": GOOD_TRAIN,
            "test/good/000.png": GOOD_TEST,
            "test/logical_anomalies/000.png": Read("test", 1, "logical_anomalies", (BOX, OTHER)),
            "test/structural_anomalies/000.png": Read("test", 1, "structural_anomalies", (OTHER,)),
        },
        "mvtec_loco_anomaly_detection/breakfast_box",
        ("loco:breakfast_box",),
        without=("good/", "images/"),
    ),
    Tree(
        "MVTec AD 2",
        "The public test set has labels and masks. Images of the private test sets are test images without labels: they are "
        "scored, and left out of metrics.",
        {
            "mvtec_ad_2/can/train/good/000_regular.png": IMAGE,
            "mvtec_ad_2/can/validation/good/000_regular.png": IMAGE,
            "mvtec_ad_2/can/test_public/good/000_regular.png": IMAGE,
            "mvtec_ad_2/can/test_public/bad/000_regular.png": IMAGE,
            "mvtec_ad_2/can/test_public/ground_truth/bad/000_regular_mask.png": Marked(BOX),
            "mvtec_ad_2/can/test_private/000_regular.png": IMAGE,
            "mvtec_ad_2/can/test_private_mixed/000_mixed.png": IMAGE,
        },
        {
            "train/good/000_regular.png": GOOD_TRAIN,
            "validation/good/000_regular.png": GOOD_TRAIN,
            "test_public/good/000_regular.png": GOOD_TEST,
            "test_public/bad/000_regular.png": Read("test", 1, "bad", (BOX,)),
            "test_private/000_regular.png": Read("test", None, "private"),
            "test_private_mixed/000_mixed.png": Read("test", None, "private_mixed"),
        },
        "mvtec_ad_2/can",
        ("mvtec_ad2:can",),
        without=("good/", "images/"),
    ),
    Tree(
        "VisA",
        "Splits and labels stand in `split_csv/1cls.csv` beside the folders of the objects, types in `image_anno.csv`. Without "
        "the split file labels and masks are read, and `fit` makes a split of its own. The set as reorganised by its authors' "
        "script has the layout of MVTec AD.",
        {
            "VisA/split_csv/1cls.csv": "object,split,label,image,mask\n"
            "capsules,train,normal,capsules/Data/Images/Normal/000.JPG,\n"
            "capsules,test,normal,capsules/Data/Images/Normal/001.JPG,\n"
            "capsules,test,anomaly,capsules/Data/Images/Anomaly/000.JPG,capsules/Data/Masks/Anomaly/000.png\n"
            "candle,train,normal,candle/Data/Images/Normal/000.JPG,\n",
            "VisA/capsules/Data/Images/Normal/000.JPG": IMAGE,
            "VisA/capsules/Data/Images/Normal/001.JPG": IMAGE,
            "VisA/capsules/Data/Images/Anomaly/000.JPG": IMAGE,
            "VisA/capsules/Data/Masks/Anomaly/000.png": Marked(BOX, 2),
            "VisA/capsules/image_anno.csv": "image,label,mask\n"
            "capsules/Data/Images/Normal/000.JPG,normal,\n"
            'capsules/Data/Images/Anomaly/000.JPG,"bubble,leak",capsules/Data/Masks/Anomaly/000.png\n',
        },
        {
            "Data/Images/Normal/000.JPG": GOOD_TRAIN,
            "Data/Images/Normal/001.JPG": GOOD_TEST,
            "Data/Images/Anomaly/000.JPG": Read("test", 1, "bubble,leak", (BOX,)),
        },
        "VisA/capsules",
        ("visa:capsules",),
        without=("Normal/", "images/"),
    ),
    Tree(
        "Real-IAD",
        "Splits and labels stand in `realiad_jsons/realiad_jsons/<category>.json`; a view in which a defect is not visible is "
        "normal. The views of a sample are one case. With several resolutions, name one: `real_iad:audiojack,size=512`. "
        "`json=realiad_jsons_sv` takes another of the authors' files, `view=C1` one of the views.",
        {
            "Real-IAD/realiad_jsons/realiad_jsons/audiojack.json": {
                "meta": {"prefix": "audiojack/", "normal_class": "OK"},
                "train": [
                    {
                        "category": "audiojack",
                        "anomaly_class": "OK",
                        "image_path": f"OK/S0001/audiojack_0001_OK_{view}_20231021.jpg",
                        "mask_path": None,
                    }
                    for view in ("C1", "C2")
                ],
                "test": [
                    {
                        "category": "audiojack",
                        "anomaly_class": kind,
                        "image_path": f"NG/BX/S0002/audiojack_0002_NG_BX_{view}_20231021.jpg",
                        "mask_path": mask,
                    }
                    for view, kind, mask in (
                        ("C1", "BX", "NG/BX/S0002/audiojack_0002_NG_BX_C1_20231021.png"),
                        ("C2", "OK", None),
                    )
                ],
            },
            "Real-IAD/realiad_256/audiojack/OK/S0001/audiojack_0001_OK_C1_20231021.jpg": IMAGE,
            "Real-IAD/realiad_256/audiojack/OK/S0001/audiojack_0001_OK_C2_20231021.jpg": IMAGE,
            "Real-IAD/realiad_256/audiojack/NG/BX/S0002/audiojack_0002_NG_BX_C1_20231021.jpg": IMAGE,
            "Real-IAD/realiad_256/audiojack/NG/BX/S0002/audiojack_0002_NG_BX_C1_20231021.png": Marked(BOX),
            "Real-IAD/realiad_256/audiojack/NG/BX/S0002/audiojack_0002_NG_BX_C2_20231021.jpg": IMAGE,
        },
        {
            "OK/S0001/audiojack_0001_OK_C1_20231021.jpg": Read("train", 0, "good", "empty", "OK/S0001"),
            "OK/S0001/audiojack_0001_OK_C2_20231021.jpg": Read("train", 0, "good", "empty", "OK/S0001"),
            "NG/BX/S0002/audiojack_0002_NG_BX_C1_20231021.jpg": Read("test", 1, "BX", (BOX,), "NG/BX/S0002"),
            "NG/BX/S0002/audiojack_0002_NG_BX_C2_20231021.jpg": Read("test", 0, "good", "empty", "NG/BX/S0002"),
        },
        "Real-IAD/realiad_256/audiojack",
        ("real_iad:audiojack", "real_iad:audiojack,size=256"),
        without=("realiad_jsons/realiad_jsons/", "elsewhere/"),
        refused="looks like Real-IAD, whose splits and labels stand in .*audiojack.json, which is missing",
    ),
    Tree(
        "BMAD",
        "With masks, images are in `img` and masks in `label`; without, directly in `good` and `Ungood`. The validation set has "
        "anomalous images: it is in no split, neither trained on nor scored (`--split all` scores it).",
        {
            "BMAD/Brain/train/good/img/00003_60.png": IMAGE,
            "BMAD/Brain/valid/good/img/00025_99.png": IMAGE,
            "BMAD/Brain/valid/Ungood/img/00124_60.png": IMAGE,
            "BMAD/Brain/valid/Ungood/label/00124_60.png": Marked(OTHER),
            "BMAD/Brain/test/good/img/00000_96.png": IMAGE,
            "BMAD/Brain/test/Ungood/img/00002_60.png": IMAGE,
            "BMAD/Brain/test/Ungood/label/00002_60.png": Marked(BOX),
        },
        {
            "train/good/img/00003_60.png": GOOD_TRAIN,
            "valid/good/img/00025_99.png": Read(None, 0, "good", "empty"),
            "valid/Ungood/img/00124_60.png": Read(None, 1, "Ungood", (OTHER,)),
            "test/good/img/00000_96.png": GOOD_TEST,
            "test/Ungood/img/00002_60.png": Read("test", 1, "Ungood", (BOX,)),
        },
        "BMAD/Brain",
        ("bmad:brain",),
        without=("good/", "images/"),
    ),
    Tree(
        "MedIAnomaly",
        "RSNA, VinCXR, BrainTumor and LAG: `data.json` lists the files of `images`. Camelyon16 has the layout of BMAD.",
        {
            "MedIAnomaly-Data/RSNA/data.json": {
                "train": {"0": ["0.png", "1.png"], "unlabeled": {"0": ["4.png"], "1": []}},
                "test": {"0": ["2.png"], "1": ["3.png"]},
            },
            **{f"MedIAnomaly-Data/RSNA/images/{k}.png": IMAGE for k in range(5)},
        },
        {
            "images/0.png": Read("train", 0, "good"),
            "images/1.png": Read("train", 0, "good"),
            "images/2.png": Read("test", 0, "good"),
            "images/3.png": Read("test", 1, "anomaly"),
        },
        "MedIAnomaly-Data/RSNA",
        ("medianomaly:RSNA", "medianomaly:rsna"),
    ),
    Tree(
        "MedIAnomaly (BraTS2021)",
        "The mask of `<a>flair<b>` is `<a>seg<b>`.",
        {
            "MedIAnomaly-Data/BraTS2021/train/00000_flair_50.png": IMAGE,
            "MedIAnomaly-Data/BraTS2021/test/normal/00001_flair_50.png": IMAGE,
            "MedIAnomaly-Data/BraTS2021/test/tumor/00002_flair_50.png": IMAGE,
            "MedIAnomaly-Data/BraTS2021/test/annotation/00002_seg_50.png": Marked(BOX),
        },
        {
            "train/00000_flair_50.png": GOOD_TRAIN,
            "test/normal/00001_flair_50.png": GOOD_TEST,
            "test/tumor/00002_flair_50.png": Read("test", 1, "tumor", (BOX,)),
        },
        "MedIAnomaly-Data/BraTS2021",
        ("medianomaly:brats2021",),
        without=("normal/", "images/"),
    ),
    Tree(
        "MedIAnomaly (ISIC2018_Task3)",
        "Nevi (`NV`) are normal; training images of other classes are in no split.",
        {
            "MedIAnomaly-Data/ISIC2018_Task3/ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv": (
                "image,MEL,NV,BCC\nISIC_0,0.0,1.0,0.0\nISIC_1,1.0,0.0,0.0\n"
            ),
            "MedIAnomaly-Data/ISIC2018_Task3/ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv": (
                "image,MEL,NV,BCC\nISIC_2,0.0,1.0,0.0\nISIC_3,0.0,0.0,1.0\n"
            ),
            **{
                f"MedIAnomaly-Data/ISIC2018_Task3/ISIC2018_Task3_{word}_Input/ISIC_{k}.jpg": IMAGE
                for word, numbers in (("Training", (0, 1)), ("Test", (2, 3)))
                for k in numbers
            },
        },
        {
            "ISIC2018_Task3_Training_Input/ISIC_0.jpg": Read("train", 0, "good"),
            "ISIC2018_Task3_Training_Input/ISIC_1.jpg": Read(None, 1, "MEL"),
            "ISIC2018_Task3_Test_Input/ISIC_2.jpg": Read("test", 0, "good"),
            "ISIC2018_Task3_Test_Input/ISIC_3.jpg": Read("test", 1, "BCC"),
        },
        "MedIAnomaly-Data/ISIC2018_Task3",
        ("medianomaly:isic2018_task3",),
        without=("GroundTruth.csv", "notes.csv"),
        refused="looks like ISIC2018_Task3, but .* with the labels is missing",
    ),
    Tree(
        "Folder",
        "As anomalib's `Folder`, with the usual words: `normal`, `good` or `ok`; `abnormal`, `bad`, `defect`, `anomaly`, `ng`, "
        "`ko` and the like; `mask`, `ground_truth`, `gt`. Folders in `abnormal` are types. There is no split: `fit` sets the "
        "anomalous images and a fifth of the normal ones aside.",
        {
            "parts/normal/0.png": IMAGE,
            "parts/normal/1.png": IMAGE,
            "parts/abnormal/0.png": IMAGE,
            "parts/abnormal/dent/0.png": IMAGE,
            "parts/mask/0.png": Marked(BOX),
            "parts/mask/dent/0.png": Marked(OTHER),
        },
        {
            "normal/0.png": Read(None, 0, "good", "empty"),
            "normal/1.png": Read(None, 0, "good", "empty"),
            "abnormal/0.png": Read(None, 1, "abnormal", (BOX,)),
            "abnormal/dent/0.png": Read(None, 1, "dent", (OTHER,)),
        },
        "parts",
        without=("/normal/", "/images/"),
    ),
    Tree(
        "Folder (normal_test)",
        "With normal test images of their own, these and the anomalous ones are the test set.",
        {
            "parts/normal/0.png": IMAGE,
            "parts/normal_test/0.png": IMAGE,
            "parts/abnormal/0.png": IMAGE,
            "parts/mask/abnormal/0_mask.png": Marked(BOX),
        },
        {
            "normal/0.png": GOOD_TRAIN,
            "normal_test/0.png": GOOD_TEST,
            "abnormal/0.png": Read("test", 1, "abnormal", (BOX,)),
        },
        "parts",
        without=("/normal", "/images"),
    ),
    Tree(
        "Folder (types)",
        "A folder for each type beside `good`, with masks in folders of the same names, as anomalib's toy sets.",
        {
            "hazelnut_toy/good/0.png": IMAGE,
            "hazelnut_toy/crack/0.png": IMAGE,
            "hazelnut_toy/colour/0.png": IMAGE,
            "hazelnut_toy/mask/crack/0.png": Marked(BOX),
        },
        {
            "good/0.png": Read(None, 0, "good", "empty"),
            "crack/0.png": Read(None, 1, "crack", (BOX,)),
            "colour/0.png": Read(None, 1, "colour"),
        },
        "hazelnut_toy",
        without=("good/", "images/"),
    ),
    Tree(
        "COCO annotations",
        "Polygons, run lengths (compressed or not) and boxes. The JSON file lies beside the images, above them or in "
        "`annotations`; its name or a folder tells the split, which is used where there is a test split.",
        {
            "coco/annotations/instances_default.json": {
                "categories": [{"id": 1, "name": "scratch"}, {"id": 2, "name": "no defect"}],
                "images": [{"id": k, "file_name": f"{k}.png", "height": 8, "width": 10} for k in (0, 1, 2, 3, 4)],
                "annotations": [
                    {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[3, 2, 7, 2, 7, 5, 3, 5]]},
                    {
                        "id": 2,
                        "image_id": 2,
                        "category_id": 1,
                        "segmentation": {"size": [8, 10], "counts": [5, 3, 5, 3, 64]},
                    },
                    {"id": 3, "image_id": 3, "category_id": 1, "segmentation": {"size": [8, 10], "counts": "5350k1"}},
                    {"id": 4, "image_id": 4, "category_id": 2, "bbox": [0, 0, 3, 3]},
                ],
            },
            **{f"coco/images/{k}.png": IMAGE for k in range(5)},
        },
        {
            "images/0.png": Read(None, 0, None, "empty"),
            "images/1.png": Read(None, 1, "scratch", (BOX,)),
            "images/2.png": Read(None, 1, "scratch", (OTHER,)),
            "images/3.png": Read(None, 1, "scratch", (OTHER,)),
            "images/4.png": Read(None, 0, "no defect", "empty"),
        },
        "coco",
        without=("instances_default.json", "instances_default.txt"),
    ),
    Tree(
        "LabelMe annotations",
        "A JSON file beside each image that has something to mark; images without one are normal.",
        {
            "labelme/0.png": IMAGE,
            "labelme/1.png": IMAGE,
            "labelme/1.json": {
                "version": "5.5.0",
                "flags": {},
                "shapes": [{"label": "dent", "shape_type": "rectangle", "points": [[3, 2], [7, 5]]}],
                "imagePath": "1.png",
                "imageData": None,
                "imageHeight": 8,
                "imageWidth": 10,
            },
        },
        {"0.png": Read(None, 0, None, "empty"), "1.png": Read(None, 1, "dent", (BOX,))},
        "labelme",
    ),
    Tree(
        "YOLO annotations",
        "`images/...` with `labels/...`, lines of a class and either a polygon or a box, as fractions; names of classes in "
        "`data.yaml` or `classes.txt`. Images without a text file, or with an empty one, are normal.",
        {
            "yolo/data.yaml": "path: .\ntrain: images/train\ntest: images/test\nnames:\n  0: dent\n  1: good\n",
            "yolo/images/train/0.png": IMAGE,
            "yolo/images/test/1.png": IMAGE,
            "yolo/images/test/2.png": IMAGE,
            "yolo/images/test/3.png": IMAGE,
            "yolo/labels/train/0.txt": "",
            "yolo/labels/test/1.txt": "0 0.3 0.25 0.7 0.25 0.7 0.625 0.3 0.625\n",
            "yolo/labels/test/2.txt": "0 0.1 0.8125 0.2 0.375\n1 0.5 0.5 0.2 0.2\n",
        },
        {
            "images/train/0.png": Read("train", 0, None, "empty"),
            "images/test/1.png": Read("test", 1, "dent", (BOX,)),
            "images/test/2.png": Read("test", 1, "dent", (OTHER,)),
            "images/test/3.png": Read("test", 0, None, "empty"),
        },
        "yolo",
        without=("/images/", "/photos/"),
    ),
    Tree(
        "Datumaro annotations",
        "`annotations/<subset>.json` with `images/<subset>`, as Intel Geti and CVAT export it: polygons, boxes, ellipses, masks "
        "and labels of whole images.",
        {
            "datumaro/annotations/default.json": {
                "dm_format_version": "1.0",
                "infos": {},
                "categories": {"label": {"labels": [{"name": "Normal"}, {"name": "Anomalous"}]}},
                "items": [
                    {
                        "id": str(k),
                        "annotations": [{"id": 0, "type": kind, "label_id": label, **shape}],
                        "image": {"path": f"{k}.png", "size": [8, 10]},
                    }
                    for k, kind, label, shape in (
                        (0, "label", 0, {}),
                        (1, "polygon", 1, {"points": [3, 2, 7, 2, 7, 5, 3, 5]}),
                        (2, "mask", 1, {"rle": {"size": [8, 10], "counts": "5350k1"}}),
                        (3, "label", 1, {}),
                    )
                ],
            },
            **{f"datumaro/images/default/{k}.png": IMAGE for k in range(4)},
        },
        {
            "images/default/0.png": Read(None, 0, "Normal", "empty"),
            "images/default/1.png": Read(None, 1, "Anomalous", (BOX,)),
            "images/default/2.png": Read(None, 1, "Anomalous", (OTHER,)),
            "images/default/3.png": Read(None, 1, "Anomalous"),
        },
        "datumaro",
        without=("default.json", "default.txt"),
    ),
)


def drawn(tree: Tree) -> str:
    """The files as an indented list of folders."""

    def lines(paths: list[list[str]], depth: int) -> Iterator[str]:
        for name in dict.fromkeys(path[0] for path in paths):
            below = [path[1:] for path in paths if path[0] == name and len(path) > 1]
            yield f"{'    ' * depth}{name}{'/' if below else ''}"
            yield from lines(below, depth + 1)

    return "\n".join(lines(sorted(path.split("/") for path in tree.files), 0))
