"""Folders of images: the layout of MVTec AD, or any other, where nothing is known of the images but their pixels."""

from pathlib import Path

from ..errors import DataError
from .dataset import DataSet, Files, Folder, Item, case_of
from .images import IMAGE_SUFFIXES, VOLUME_SUFFIXES, is_image, stem


def open_folder(path: Path) -> DataSet:
    """A folder with ``train/good`` or ``test/good`` is read as MVTec AD's layout, any other searched for images.

    MVTec AD: ``train/good`` and ``validation/good`` are normal training images; ``test/good`` is normal and every
    other ``test/<type>`` anomalous; the mask of ``test/<type>/<name>.png`` is ``ground_truth/<type>/<name>_mask.png``
    or ``<name>.png``, of any image type. Elsewhere labels and splits are unknown. Hidden files are passed over.
    """
    folder = Folder(path)
    files = folder.names()
    images = [file for file in files if is_image(file)]
    ignored = [file for file in files if not is_image(file)]
    if not images:
        found = f"{len(files)} other files, such as {files[0]}" if files else "an empty folder"
        raise DataError(
            f"{path}: expected images ({' '.join(sorted((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES)))}), got {found}."
        )
    name = path.resolve().name
    if any(file.startswith(("train/good/", "test/good/")) for file in images):
        return _mvtec(name, folder, images, ignored)
    inside = sorted({file.split("/")[0] for file in images if file.split("/")[1:3] == ["train", "good"]})
    if inside:
        raise DataError(
            f"{path}: expected one data set, got {len(inside)} in its folders {', '.join(inside)}; "
            f"name one of them, for example {path / inside[0]}."
        )
    return Files(folder, images).data_set(name, [Item(file, case_of(file)) for file in images], ignored)


def _mvtec(name: str, folder: Folder, files: list[str], ignored: list[str]) -> DataSet:
    truth = {stem(file): file for file in files if file.startswith("ground_truth/")}
    images, items, masks = [], [], []
    for file in files:
        part, kind, *rest = file.split("/")
        if part not in ("train", "validation", "test") or not rest:
            if part != "ground_truth":
                ignored.append(file)
            continue
        marked = f"ground_truth/{kind}/{stem('/'.join(rest))}"
        split = "test" if part == "test" else "train"
        images.append(file)
        items.append(Item(file, case_of(file), int(kind != "good"), kind, split))
        masks.append(truth.get(f"{marked}_mask", truth.get(marked)) if part == "test" else None)
    return Files(folder, images, masks if truth else None).data_set(name, items, ignored)
