"""An exported model folder: the graph, what describes and calibrates it, and the proof that it scores as the model does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from normalcy.arrays import Array
from normalcy.data.dataset import DataSet
from normalcy.data.open import as_dataset
from normalcy.data.roi import ROI
from normalcy.detector import Detector
from normalcy.engines.cached import BOUND, write_graph
from normalcy.engines.graph import Engine, GraphFile, Precision, available
from normalcy.engines.probe import largest_differences, probes
from normalcy.engines.trace import check_exportable, to_onnx
from normalcy.errors import DataError, SettingsError
from normalcy.files import (
    prepare_target,
    read_bytes,
    read_json,
    refuse_source,
    temporary_folder,
    write_bytes,
    write_folder,
    write_json,
)
from normalcy.model_folder import CALIBRATION, DESCRIPTION, literal
from normalcy.provenance import versions
from normalcy.results.writer import refuse_inputs
from normalcy.scoring import Results

PARITY = "parity.json"
COMPARED = 16
"""Images that are scored by both."""
FORMATS: dict[str, Engine] = {"onnx": "onnxruntime", "openvino": "openvino"}


def export(
    model: Path | str | Detector,
    out: Path | str,
    to: str = "onnx",
    precision: Precision = "32",
    *,
    score: str | None = None,
    calibrate: Any = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the model folder ``model`` as the exported folder ``out``; returns what ``parity.json`` says.

    ``to``: "onnx" (runs by onnxruntime and OpenVINO) or "openvino". ``precision`` "bf16" computes in bfloat16 by OpenVINO.
    ``score``: another of the method's scores. ``calibrate``: normal images that the method was not trained on, as
    :meth:`Detector.fit` takes them. p-values and thresholds are then computed again on the exported graph, which bf16 requires,
    and the outputs compared on them; without, on smooth random textures.

    Written whole or not at all. Raises SettingsError for a method that cannot be exported, for bf16 without images to calibrate,
    and in 32 bits when an output differs by more than 1e-4 of its largest value.
    """
    out = Path(out)
    if to not in FORMATS:
        raise SettingsError(f"to must be one of {', '.join(FORMATS)}, got {to!r}.")
    if precision not in ("32", "bf16"):
        raise SettingsError(f"precision must be 32 or bf16, got {precision!r}.")
    if precision == "bf16" and to != "openvino":
        raise SettingsError("bf16 runs by OpenVINO alone: export with --to openvino.")
    prepare_target(out, overwrite)
    if isinstance(model, Detector):
        with temporary_folder() as folder:
            saved = model.save(Path(folder) / "model")
            return export(saved, out, to, precision, score=score, calibrate=calibrate, overwrite=overwrite)
    engine = FORMATS[to]
    if engine not in available():
        raise SettingsError(f"Exporting to {to} needs {engine}: pip install 'normalcy[export]' {engine}.")
    model, detector = Path(model), Detector.load(model)
    refuse_source(out, model)
    if score is not None:
        detector = detector.with_score(score)
    method = detector.method
    assert method is not None
    check_exportable(method)
    held_out = None if calibrate is None else as_dataset(calibrate)
    if held_out is not None:
        refuse_inputs(out, held_out)
    if precision == "bf16" and held_out is None:
        raise SettingsError(
            "bf16 changes scores in the third digit, so p-values and thresholds must be computed on the exported graph: give "
            "normal images that were not used for training with --calibrate."
        )
    graph, outputs = to_onnx(method)
    parity: dict[str, Any] = {}

    def fill(partial: Path) -> None:
        contents = write_graph(graph, partial, engine)
        used = method.settings.score if method.scores else ""
        facts = GraphFile(
            engine=engine,
            precision=precision,
            score=used,
            outputs=outputs,
            files=tuple(contents),
            sha256=tuple(hashlib.sha256(content).hexdigest() for content in contents.values()),
            reduction=method.reduction,
        )
        words = read_json(model / DESCRIPTION)
        words.pop("weights_sha256", None)
        if method.scores:
            words["settings"]["score"] = used
        words["views"] = asdict(detector._view_settings(scoring=True))
        write_json(partial / DESCRIPTION, {**words, "graph": asdict(facts)})
        if (model / CALIBRATION).exists():
            write_bytes(partial / CALIBRATION, read_bytes(model / CALIBRATION))
        if detector.roi is not None:
            write_bytes(partial / ROI, read_bytes(model / ROI))
        exported = Detector.load(partial)
        if held_out is not None:
            exported.calibrate(held_out)
            write_json(partial / CALIBRATION, {used: exported.calibrations[used].to_json()})
        parity.update(_compare(detector, exported, held_out, precision))
        write_bytes(partial / PARITY, json.dumps(parity, indent=1).encode())
        write_bytes(partial / "CARD.md", (exported.card() + _card(facts, parity)).encode())

    write_folder(out, fill, overwrite)
    return parity


def _compare(detector: Detector, exported: Detector, held_out: DataSet | None, precision: Precision) -> dict[str, Any]:
    """Largest differences of all outputs. Raises SettingsError in 32 bits beyond :data:`BOUND`."""
    assert detector.method is not None
    assert exported.method is not None
    if held_out is None:
        images = probes(detector.method, COMPARED)
        facts: dict[str, Any] = {"name": "smooth random textures, preprocessed", "count": COMPARED}
        differences = largest_differences(detector.method.score(images), exported.method.score(images))
    else:
        chosen = np.unique(np.linspace(0, len(held_out) - 1, min(COMPARED, len(held_out))).astype(int))
        data = held_out.subset(chosen)
        before, after = detector.score(data), exported.score(data)
        facts = {"name": data.name, "count": len(before), "fingerprint": data.fingerprint()}
        differences = _of_results(before, after)
        facts["flags_changed"] = int((before.flagged != after.flagged).sum())
    worst = max(((d["relative"], name) for name, d in differences.items() if name != "p_value"), default=(0.0, ""))
    if precision == "32" and not worst[0] <= BOUND:
        raise SettingsError(
            f"{detector.name}: nothing was exported, as the graph's {worst[1]} differs by {worst[0]:.2g} of its largest "
            f"value, and {BOUND:g} is allowed. Try the other of --to onnx and --to openvino."
        )
    return {
        "bound": BOUND if precision == "32" else None,
        "inputs": facts,
        "largest_differences": differences,
        "versions": {**versions(), **{name: version(name) for name in ("onnx", "onnxscript", *available())}},
    }


def _of_results(before: Results, after: Results) -> dict[str, dict[str, float]]:
    if len(before) != len(after):
        raise DataError(f"The model can read {len(before)} of the images for the comparison, its graph {len(after)}.")
    columns: dict[str, tuple[Any, Any]] = {
        "score": (before.scores, after.scores),
        "p_value": (before.p_values, after.p_values),
        **{
            name: ([getattr(r, name) for r in before], [getattr(r, name) for r in after])
            for name in ("map", "restored", "uncertainty", "latent")
        },
    }
    return {
        name: _difference([np.asarray(v) for v in a], [np.asarray(v) for v in b])
        for name, (a, b) in columns.items()
        if a[0] is not None and not (name == "p_value" and np.isnan(a).any())
    }


def _difference(before: Sequence[Array], after: Sequence[Array]) -> dict[str, float]:
    """Absolute, and relative to the largest value. Restored images of whole numbers may differ by 1, which is rounding."""
    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(before, after, strict=True)]
    largest = max(float(np.abs(a - b).max()) for a, b in pairs)
    scale = max(float(np.abs(a).max()) for a, _ in pairs)
    counted = max(0.0, largest - 1) if before[0].dtype.kind in "iu" else largest
    return {"largest": largest, "relative": counted / max(scale, 1e-12)}


def _card(facts: GraphFile, parity: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {d['largest']:.3g} | {d['relative']:.2g} |" for name, d in parity["largest_differences"].items()
    ]
    inputs = parity["inputs"]
    return "\n".join(
        [
            "",
            "## Exported graph",
            "",
            f"{' and '.join(facts.files)}: input `images` (B, C, *spatial), float32, preprocessed; outputs "
            f"{', '.join(f'`{name}`' for name in facts.outputs)}. Engine {facts.engine}, precision {facts.precision}.",
            "",
            f"Largest differences from the model on {inputs['count']} images ({literal(inputs['name'])}):",
            "",
            "| output | absolute | relative to the largest value |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
