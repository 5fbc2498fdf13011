"""Folders of images: the layout of MVTec AD, or any other, where nothing is known of the images but their pixels."""

from pathlib import Path

from normalcy.data.dataset import DataSet, Item
from normalcy.data.formats import DICOM_SUFFIXES, IMAGE_SUFFIXES, VOLUME_SUFFIXES, stem
from normalcy.data.stores import Files, Folder, Found, find_images
from normalcy.errors import DataError


def open_folder(path: Path) -> DataSet:
    """A folder with ``train/good`` or ``test/good`` is read as MVTec AD's layout, any other searched for images.

    MVTec AD: ``train/good`` and ``validation/good`` are normal training images; ``test/good`` is normal and every
    other ``test/<type>`` anomalous; the mask of ``test/<type>/<name>.png`` is ``ground_truth/<type>/<name>_mask.png``
    or ``<name>.png``, of any image type. Elsewhere labels and splits are unknown. Hidden files are passed over.
    """
    folder = Folder(path)
    images, ignored = find_images(folder)
    if not images:
        found = f"{len(ignored)} other files, such as {ignored[0]}" if ignored else "an empty folder"
        raise DataError(
            f"{path}: expected images ({' '.join(sorted((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES, *DICOM_SUFFIXES)))}), got {found}."
        )
    name = path.resolve().name
    if any(file.startswith(("train/good/", "test/good/")) for file, _, _ in images):
        return _mvtec(name, folder, images, ignored)
    inside = sorted({file.split("/")[0] for file, _, _ in images if file.split("/")[1:3] == ["train", "good"]})
    if inside:
        raise DataError(
            f"{path}: expected one data set, got {len(inside)} in its folders {', '.join(inside)}; "
            f"name one of them, for example {path / inside[0]}."
        )
    files = [image for _, _, image in images]
    return Files(folder, files).data_set(name, [Item(file, case) for file, case, _ in images], ignored)


def _mvtec(name: str, folder: Folder, found: list[Found], ignored: list[str]) -> DataSet:
    truth = {stem(file): file for file, _, image in found if file.startswith("ground_truth/") and image == file}
    images, items, masks = [], [], []
    for file, case, image in found:
        part, kind, *rest = file.split("/")
        if part not in ("train", "validation", "test") or not rest:
            if part != "ground_truth":
                ignored.append(file)
            continue
        name_of = "/".join(rest)
        marked = f"ground_truth/{kind}/{stem(name_of) if image in (file, (file,)) else name_of}"
        split = "test" if part == "test" else "train"
        images.append(image)
        items.append(Item(file, case, int(kind != "good"), kind, split))
        masks.append(truth.get(f"{marked}_mask", truth.get(marked)) if part == "test" else None)
    return Files(folder, images, masks if truth else None).data_set(name, items, ignored)
