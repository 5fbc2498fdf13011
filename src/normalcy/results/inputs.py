"""The images of a results folder opened again, for pages and DICOM results."""

from __future__ import annotations

from pathlib import Path

from normalcy.data.dataset import DataSet, Item
from normalcy.data.named import LOCAL, NAMED
from normalcy.data.open import open_recorded
from normalcy.errors import NormalcyError
from normalcy.remote.urls import is_url
from normalcy.results.folder import ResultsFolder
from normalcy.results.names import original
from normalcy.results.parts import ALONE


def reopen(results: ResultsFolder) -> tuple[DataSet | None, str]:
    """The images that were scored, and a sentence about where they come from, or why they are not opened.

    The folder may come from elsewhere, so of what ``run.json`` names only the images of ``scores.csv`` are opened, and used only
    where they have the fingerprint of those that were scored; see :func:`~normalcy.data.open.open_recorded`. That takes an object
    for each image, so more than a million are not opened. A relative name starts from the folder that was the working directory
    then, else from the one of now. What a file of this machine is or holds is not said.
    """
    run = results.run
    spec = run.data.spec
    if not spec:
        return None, "run.json names no data set to read them from; name it with --data."
    if not run.data.fingerprint:
        return None, f"run.json has no fingerprint to compare {spec} with; name the data set with --data."
    name = spec.partition(":")[0]
    if is_url(spec):
        return None, f"{spec} would have to be fetched, which is not done unasked; name it with --data."
    if name in NAMED and name not in LOCAL:
        return None, f"{spec} is a named set, which might have to be fetched; name it with --data."
    if len(results) > ALONE:
        return (
            None,
            f"{len(results):,} images are not compared with their fingerprint unasked; name the data set with --data.",
        )
    items = [
        Item(original(path), original(case), None if label < 0 else int(label), kind or None, split or None)
        for path, case, label, kind, split in zip(
            results.paths, results.cases, results.labels, results.types, results.splits
        )
    ]
    for base in dict.fromkeys((Path(run.data.base or "."), Path("."))):
        try:
            data = open_recorded(spec, items, base)
        except (NormalcyError, OSError, ValueError):
            continue
        if data is not None and data.fingerprint() == run.data.fingerprint:
            place = spec if spec.startswith(("slides:", "diffusion:")) else base / spec
            return data, f"Inputs: {place}, which has the fingerprint of the images that were scored."
    return None, (
        f"{spec} is not there or has another fingerprint than the images that were scored; name the data set with --data."
    )
