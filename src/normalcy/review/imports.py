"""Decisions that were made elsewhere, added to a review: tables of other reviews, COCO and LabelMe files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from normalcy.arrays import Mask
from normalcy.data.annotations import read_annotations
from normalcy.errors import DataError
from normalcy.files import read_bytes
from normalcy.results.labels import LARGEST, read_any_mask, read_labels
from normalcy.results.names import meant
from normalcy.review import masks
from normalcy.review.session import Review
from normalcy.review.store import Decision

WORDS = {0: "normal", 1: "anomalous", None: "unsure"}


def import_decisions(review: Review, file: Path) -> int:
    """Add the decisions of a file that this review does not have yet, their masks included; returns how many.

    A decision is known where its reviewer has decided the image. Raises DataError where no image of the file is in the results.
    """
    known = {(one.image, one.reviewer) for one in review.store.current()}
    added, matched = [], 0
    for decision, mask in _decisions(review, file):
        i = review.places.get(decision.image)
        if i is None:
            continue
        matched += 1
        decision = decision.checked()
        if (decision.image, decision.reviewer) in known:
            continue
        known.add((decision.image, decision.reviewer))
        added.append(_with_mask(review, i, decision, mask))
    if not matched:
        raise DataError(
            f"{file}: none of its images is in {review.read.folder}; its paths must be those of scores.csv."
        )
    if added:
        review.store.add_all(added)
    return len(added)


# -- private -----------------------------------------------------------------------------------------------------------


def _decisions(review: Review, file: Path) -> Iterator[tuple[Decision, Mask | None]]:
    if file.suffix.lower() == ".json":
        yield from _annotated(review, file)
        return
    text = read_bytes(file, LARGEST).decode("utf-8-sig", "surrogateescape")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    head = reader.fieldnames or []
    if "verdict" in head and "image" in head:  # decisions.csv: one row for each reviewer
        rows = list(reader)
        review.places.find(meant(row["image"] or "") for row in rows)  # together: one by one takes long among millions
        for row in rows:
            image, reviewer, verdict, kind, note, time, mask = (
                meant(row.get(name) or "") for name in ("image", "reviewer", "verdict", "type", "note", "time", "mask")
            )
            decision = Decision(image, reviewer, verdict, kind, note, blind=row.get("blind") == "1", time=time)
            yield decision, masks.read(file.parent, mask) if mask else None
        return
    labels = read_labels(file)
    review.places.find(one.image for one in labels.rows)
    for one in labels.rows:
        mask_here = read_any_mask(one.mask) if one.mask is not None and one.mask.exists() else None
        yield Decision(one.image, f"from {file.name}", WORDS[one.label], one.type), mask_here


def _annotated(review: Review, file: Path) -> Iterator[tuple[Decision, Mask | None]]:
    annotated = read_annotations(file)
    review.places.find(one.file for one in annotated)
    by_name: dict[str, list[str]] = {PurePosixPath(one.file).name: [] for one in annotated}
    for path in review.read.paths:
        if (own := by_name.get(PurePosixPath(path).name)) is not None:
            own.append(path)
    for one in annotated:
        image = one.file if one.file in review.places else None
        if image is None:
            same = by_name.get(PurePosixPath(one.file).name, [])
            image = same[0] if len(same) == 1 else one.file
        kinds = sorted({shape.kind for shape in one.anomalies if shape.kind})
        verdict = "anomalous" if one.anomalies else "normal"
        yield Decision(image, f"from {file.name}", verdict, ", ".join(kinds)[:60]), one.mask() if one.has_area else None


def _with_mask(review: Review, i: int, decision: Decision, mask: Mask | None) -> Decision:
    if mask is None or not mask.any():
        return decision
    size = review.spatial(i)
    if mask.shape != size:
        raise DataError(f"{decision.image}: its mask has the size {mask.shape}, the image {size}; mend the file.")
    space = review.space(i) if len(size) == 3 else None
    name = masks.name_of(decision.reviewer, review.read.files[i], space is not None)
    return Decision(**{**vars(decision), "mask": masks.write(review.folder, name, mask, space)})
