"""A fitted detector over a data set -> a results folder (its files are described in docs/reference/files.md)."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image

from normalcy.arrays import Array, Float32, Mask
from normalcy.calibrate import Decision
from normalcy.data.dataset import DataSet
from normalcy.data.images import write_image, write_raw
from normalcy.data.volumes import Space, write_volume
from normalcy.detector import Detector
from normalcy.errors import DataError, SettingsError
from normalcy.files import write_bytes, write_folder
from normalcy.provenance import commit, versions
from normalcy.results.folder import COLUMNS, FORMAT, LATENTS, NIFTI, named
from normalcy.scoring import Result
from normalcy.training.log import TRAIN_LOG

_InCase = tuple[float, "float | None", "bool | None", "int | None"]
"""Score, p-value, decision and label of an image, kept for its case."""


def predict(
    detector: Detector,
    data: DataSet,
    out: Path,
    *,
    decision: Decision | None = None,
    spec: str | None = None,
    data_root: Path | None = None,
    split: str | None = None,
    tile: bool = False,
    batch_size: int = 32,
    maps: bool | Callable[[Result], bool] = True,
    more: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score ``data`` into the results folder ``out``, written whole or not at all; returns what ``run.json`` says.

    ``decision`` defaults to the detector's own false-alarm rate. ``spec`` and ``data_root`` are noted, so that the report
    can open the images again. ``maps=False`` writes the table alone, a function says of which images the rest is written too.
    ``more`` is added to ``run.json``. Images that cannot be read are listed in
    ``run.json``; raises DataError when all are bad.
    """
    decision = decision or detector.decide()
    calibration = detector.calibration
    if tile and not detector.tiled:  # thresholds of whole images do not hold for tiles
        calibration = decision = None
    span = calibration.map_range if calibration is not None else None
    facts: dict[str, Any] = {}
    images: set[str] = set()  # extra maps with channels; in a volume's file a single one cannot be told from a plane

    def fill(folder: Path) -> None:
        def write(result: Result) -> Result:
            if result.space is not None:
                images.update(name for name, p in result.extra_maps.items() if p.ndim > len(result.space.size))
            if maps if isinstance(maps, bool) else maps(result):
                _write_arrays(folder, result, span)
            return result

        def write_masks() -> None:
            for i, item in enumerate(data.items):
                mask = data.mask(i) if data.has_masks and item.label != 0 else None
                if mask is not None and mask.any():
                    _write_mask(folder / "masks", item.path, mask, data.space(i))

        failed: list[tuple[str, str]] = []
        latents: Array | None = None
        started, count = time.monotonic(), 0
        with ExitStack() as files:
            table = csv.writer(files.enter_context(open(folder / "scores.csv", "w", newline="", encoding="utf-8")))
            table.writerow(COLUMNS)
            slices = None
            cases: dict[str, list[_InCase]] = {}
            for r in detector.stream(data, batch_size=batch_size, tile=tile, decision=decision, then=write):
                if on_progress is not None:
                    on_progress(count + len(failed) + 1, len(data))
                if not isinstance(r, Result):
                    failed.append(r)
                    continue
                count += 1
                table.writerow(_row(r))
                cases.setdefault(r.item.case, []).append((r.score, r.p_value, r.flagged, r.item.label))
                if r.slices:
                    if slices is None:
                        file = files.enter_context(open(folder / "slices.csv", "w", newline="", encoding="utf-8"))
                        slices = csv.writer(file)
                        slices.writerow(("path", "axis", "slice", "score"))
                    slices.writerows((r.path, axis, index, repr(score)) for axis, index, score in r.slices)
                if r.latent is not None:
                    if latents is None:  # on disk: memory does not grow with the number of images
                        latents = open_memmap(folder / LATENTS, "w+", np.float32, (len(data), len(r.latent)))
                    latents[count - 1] = r.latent
            if len(cases) < count:
                file = files.enter_context(open(folder / "cases.csv", "w", newline="", encoding="utf-8"))
                writer = csv.writer(file)
                writer.writerow(("case", "images", "score", "p_value", "flagged", "label"))
                writer.writerows(_case_row(case, images) for case, images in cases.items())
        if count == 0:
            raise DataError(
                f"None of the {len(data)} images of {data.name} can be scored: {failed[0][0]}: {failed[0][1]}"
            )
        seconds = time.monotonic() - started
        if maps:
            write_masks()
        if latents is not None and failed:
            found = np.array(latents[:count])
            del latents
            np.save(folder / LATENTS, found)
        if detector.records:
            lines = "".join(json.dumps(record) + "\n" for record in detector.records)
            (folder / TRAIN_LOG).write_text(lines, encoding="utf-8")
        facts.update(_run_facts(detector, data, decision, calibration is not None, span), **(more or {}))
        facts["data"].update(
            spec=spec, data_root=None if data_root is None else str(data_root), split=split, count=count, failed=failed
        )
        facts["extra_maps_with_channels"] = sorted(images)
        facts.update(seconds=round(seconds, 3), images_per_second=round(count / max(seconds, 1e-9), 2))
        (folder / "run.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")

    write_folder(out, fill, overwrite)
    return facts


# -- private ---------------------------------------------------------------------------------------------------------


def _run_facts(
    detector: Detector, data: DataSet, decision: Decision | None, calibrated: bool, span: tuple[float, float] | None
) -> dict[str, Any]:
    method = detector.method
    if method is None:
        raise SettingsError(f"The {detector.name} detector is not fitted yet.")
    calibration = detector.calibration if calibrated else None
    words = detector.words()
    return {
        "format": FORMAT,
        "normalcy": versions()["normalcy"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": str(method.device),
        "score": words.get("score"),
        "seed": detector.train.seed,
        "model": {
            "method": detector.name,
            "description": method.summary(),
            "words": words,
            "shape": list(method.shape),
            "preprocess": [str(step) for step in detector.preprocess.plan],
            "training_data": {k: v for k, v in detector.facts["data"].items() if k != "failed"},
            "fit": detector.facts["fit"],
        },
        "data": {
            "name": data.name,
            "medical": data.is_medical,
            "fingerprint": data.fingerprint(),
            "has_masks": data.has_masks,
        },
        "calibration": None
        if calibration is None and decision is None
        else {
            "count": None if calibration is None else calibration.count,
            "map_range": span,
            **(decision.to_json() if decision is not None else {}),
        },
        "versions": versions(),
    }


def _row(r: Result) -> list[Any]:
    item = r.item
    flagged = "" if r.flagged is None else int(r.flagged)
    p_value = "" if r.p_value is None else repr(r.p_value)
    label = "" if item.label is None else item.label
    return [item.path, item.case, repr(r.score), p_value, flagged, label, item.type or "", item.split or ""]


def _case_row(case: str, images: list[_InCase]) -> list[Any]:
    """The score of a case is its strangest image's, its p-value the least one times their number (Bonferroni)."""
    scores, *others = zip(*images)
    p_values, flagged, labels = ([value for value in column if value is not None] for column in others)
    return [
        case,
        len(images),
        repr(max(scores)),
        repr(min(1.0, len(p_values) * min(p_values))) if p_values else "",
        int(any(flagged)) if flagged else "",
        max(labels) if labels else "",
    ]


def _write_arrays(folder: Path, r: Result, span: tuple[float, float] | None) -> None:
    """Of a volume all as NIfTI with the axes, shape and affine of its file; of other images as .npy and pictures."""
    planes = {
        "maps": r.map,
        "uncertainty": r.uncertainty,
        **{f"extra_maps/{name}": p for name, p in r.extra_maps.items()},
    }
    for kind, values in planes.items():
        if values is None:
            continue
        if r.space is not None:
            write_volume(folder / kind / named(r.path, NIFTI), values, r.space)
        else:
            write_raw(folder / kind / named(r.path, ".npy"), values)
    if r.map is not None and r.map.ndim == 2:
        write_bytes(folder / "maps" / f"{r.path}.png", _picture(r.map, span))
    if r.restored is not None and r.space is not None:
        write_volume(folder / "restored" / named(r.path, NIFTI), r.restored, r.space, like_file=True)
    elif r.restored is not None:
        _write_restored(folder / "restored", r.path, r.restored)


def _write_restored(folder: Path, path: str, image: Array) -> None:
    """PNG for what PNG holds, TIFF for other bit depths and channels, .npy for volumes; never another value range."""
    if image.ndim == 3 and image.dtype == np.uint8 and len(image) in (1, 3, 4):
        write_image(folder / f"{path}.png", image)
    elif image.ndim == 3:
        import tifffile

        buffer = io.BytesIO()
        tifffile.imwrite(buffer, image if len(image) > 1 else image[0], photometric="minisblack", compression="zlib")
        write_bytes(folder / f"{path}.tiff", buffer.getvalue())
    else:
        buffer = io.BytesIO()
        np.save(buffer, image, allow_pickle=False)
        write_bytes(folder / f"{path}.npy", buffer.getvalue())


def _write_mask(folder: Path, path: str, mask: Mask, space: Space | None) -> None:
    if space is not None and mask.shape == space.size:
        write_volume(
            folder / named(path, NIFTI), mask, replace(space, dtype=np.dtype(np.uint8), scale=None), like_file=True
        )
    elif mask.ndim == 2:
        write_image(folder / named(path, ".png"), np.where(mask, 255, 0).astype(np.uint8))
    else:
        write_raw(folder / named(path, ".npy"), mask.astype(np.float32))


def _picture(values: Float32, span: tuple[float, float] | None) -> bytes:
    """A map as a PNG in the inferno colours; ``span`` is the common range, so that pictures can be compared."""
    low, high = span or (float(values.min()), float(values.max()))
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    picture = Image.fromarray(np.rint(scaled * 255).astype(np.uint8), "P")
    picture.putpalette(_palette())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_type=3)  # run lengths: fast
    return buffer.getvalue()


@cache
def _palette() -> list[int]:
    from matplotlib import colormaps

    colours: list[int] = (colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(int).ravel().tolist()
    return colours
