"""Model folders: ``detector.json``, ``weights.safetensors``, ``calibration.json``, ``CARD.md`` and ``train.jsonl``.

Written whole or not at all. Reading runs no code from the files: JSON, and tensors that must match, by name and shape,
what the method builds from its settings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from normalcy.errors import ModelFileError
from normalcy.files import read_json, write_folder, write_json
from normalcy.provenance import NOTICE

FORMAT = 1
DESCRIPTION, WEIGHTS, CALIBRATION = "detector.json", "weights.safetensors", "calibration.json"
OLD_NAMES = {"input": {"piece_score": "view_score"}, "data": {"made": "scheme"}}
"""Part of ``detector.json`` -> names in folders of earlier versions -> names today."""

ALWAYS_MEAN = ("alocc", "dsebm", "ganomaly", "ocgan")
"""Methods whose models of earlier versions have no setting ``reduce`` and score by the mean of the map."""


def save(
    folder: Path,
    description: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    calibration: Mapping[str, Any] | None,
    texts: Mapping[str, str],
    overwrite: bool = False,
) -> None:
    """Write a model folder. ``description`` and ``calibration`` hold JSON values, ``texts`` further files by name."""

    def fill(partial: Path) -> None:
        save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, partial / WEIGHTS)
        digest = hashlib.sha256((partial / WEIGHTS).read_bytes()).hexdigest()
        write_json(partial / DESCRIPTION, {"format": FORMAT, **description, "weights_sha256": digest})
        if calibration is not None:
            write_json(partial / CALIBRATION, calibration)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")

    write_folder(folder, fill, overwrite)


def read_description(folder: Path) -> dict[str, Any]:
    """``detector.json``. Raises ModelFileError when it is missing, damaged or of another format version."""
    if not folder.is_dir():
        raise ModelFileError(f"There is no model folder {folder}: give the folder that fit wrote with --out.")
    description = read_json(folder / DESCRIPTION)
    if description.get("format") != FORMAT:
        raise ModelFileError(
            f"{folder} has format version {description.get('format')!r}, this normalcy reads {FORMAT}: "
            "use the version of normalcy that wrote it, or fit again."
        )
    for part, names in OLD_NAMES.items():
        values = description.get(part)
        if isinstance(values, dict):
            description[part] = {names.get(name, name): value for name, value in values.items()}
    settings = description.get("settings")
    if description.get("method") == "pca" and isinstance(settings, dict) and "quantile" in settings:
        quantile = settings.pop("quantile")  # none was the mean
        settings["reduce"] = "mean" if quantile is None else quantile
    if description.get("method") in ALWAYS_MEAN and isinstance(settings, dict):
        settings.setdefault("reduce", "mean")
    return description


def read_weights(folder: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by name. Raises ModelFileError when the file is missing or not the one that was saved."""
    path = folder / WEIGHTS
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != description.get("weights_sha256"):
            raise ModelFileError(f"{path} is damaged or was exchanged (its checksum is another): copy the model again.")
        return load_file(path)
    except OSError as error:
        raise ModelFileError(f"Cannot read {path}: {error.strerror}.") from error
    except SafetensorError as error:
        raise ModelFileError(f"{path} is not a valid safetensors file ({error}).") from error


def read_calibrations(folder: Path) -> dict[str, Any]:
    """``calibration.json``: score -> what :class:`~normalcy.calibrate.Calibration` reads; empty where there is none."""
    path = folder / CALIBRATION
    return read_json(path) if path.exists() else {}


def card(
    name: str,
    shape: Sequence[int],
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    threshold: float | None,
    held_out: int,
    false_alarms: float,
) -> str:
    """``CARD.md``. ``facts`` as in ``detector.json``; ``threshold`` from ``held_out`` normal images, None without them."""
    data, fit = facts.get("data", {}), facts.get("fit", {})
    lines = [
        f"# {name} detector",
        "",
        f"Trained on {data.get('count')} normal images of {data.get('name')} (fingerprint {data.get('fingerprint')}), "
        f"in {fit.get('seconds', 0):.0f} s on {fit.get('device')} in {fit.get('precision')}.",
        "",
        f"Input: images of shape {tuple(shape)} (channels, then space). Higher scores are more anomalous.",
    ]
    if threshold is not None:
        lines += [
            "",
            f"Calibrated on {held_out} held-out normal images: a score above {threshold:.6g} flags an image, with a "
            f"guaranteed false-positive rate of at most {false_alarms:g} for images like these.",
        ]
    if data.get("medical"):
        lines += ["", NOTICE]
    lines += ["", "## Use", "", "```", "normalcy score MODEL IMAGES --out RESULTS", "```", "", "## Settings", ""]
    lines += [f"- {setting}: {value}" for setting, value in settings.items()]
    return "\n".join(lines) + "\n"
