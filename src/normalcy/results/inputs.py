"""The images of a results folder opened again, for pages and DICOM results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from normalcy.data.dataset import DataSet
from normalcy.data.named import NAMED
from normalcy.data.open import open_data
from normalcy.data.splits import images_to_score, normal_training_images
from normalcy.errors import DataError
from normalcy.results.run import Run

LOCAL = ("elpv", "magnetic_tile")
"""Named sets that are never fetched."""


def reopen(run: Run, data_root: Path | None = None) -> tuple[DataSet | None, str]:
    """The data set that was scored, and a sentence about where it comes from, or why it is not opened.

    ``run.json`` may come from elsewhere, so what it names is opened only where it is there (nothing is fetched, no folder is
    made) and has the fingerprint of the data set that was scored. A relative name starts from the folder that was the working
    directory then, else from the one of now. ``data_root`` is where named sets lie.
    """
    spec = run.data.spec
    if not spec:
        return None, "run.json names no data set to read them from; name it with --data."
    if not run.data.fingerprint:
        return None, f"run.json has no fingerprint to compare {spec} with; name the data set with --data."
    name = spec.partition(":")[0]
    if name in NAMED and not Path(spec).exists():
        if name not in LOCAL:
            return None, f"{spec} is a named set, which might have to be fetched; name it with --data."
        places = [spec]
    else:
        places = list(dict.fromkeys(str(place) for place in (Path(run.data.base or ".") / spec, Path(spec))))
    reason = ""
    for place in places:
        if _is_special(place):
            reason = f"{place} is no regular file or folder."
            continue
        try:
            for data in _as_scored(open_data(place, data_root), run):
                if data.fingerprint() == run.data.fingerprint:
                    return data, f"Inputs: {place}, which has the fingerprint of the images that were scored."
        except DataError as error:
            reason = reason or str(error)
        else:
            reason = f"{place} has another fingerprint than the images that were scored; name the data set with --data."
    return None, reason


# -- private -----------------------------------------------------------------------------------------------------------


def _is_special(place: str) -> bool:
    """Whether what a name starts or ends with is a device, a pipe or the like, which could make reading wait for ever."""
    files = [
        Path(place),
        Path(place.rpartition(":")[0] or place),
        Path(place.partition(":")[2].partition(",")[0] or place),
    ]
    try:
        return any(file.exists() and not file.is_file() and not file.is_dir() for file in files)
    except (OSError, ValueError):  # a name too long or with a null byte, which opening will say
        return False


def _as_scored(data: DataSet, run: Run) -> Iterator[DataSet]:
    """The part of a data set that was scored, in the ways in which it is chosen."""
    yield data
    if run.audit is not None:
        images = normal_training_images(data)
        yield images.with_items([replace(item, label=None) for item in images.items])
    else:
        yield images_to_score(data, run.data.split, run.seed or 0)[0]
