"""The command that writes a model for deployment: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from normalcy.cli import completion as c
from normalcy.cli import options as o
from normalcy.cli.printing import show

Out = Annotated[Path, Option(help="Folder for the exported model.")]
To = Annotated[str, Option(help="Format of the graph: onnx or openvino.", autocompletion=c.chosen("onnx", "openvino"))]
Bits = Annotated[
    str,
    Option(
        "--precision",
        help="Of the computation: 32 or bf16 (OpenVINO, with --calibrate).",
        autocompletion=c.chosen("32", "bf16"),
    ),
]
Calibrate = Annotated[
    str | None,
    Option(
        metavar="DATA",
        help="Normal images not used for training: p-values and thresholds are computed again on the graph.",
        autocompletion=c.data,
    ),
]


def export(
    model: o.Model,
    out: Out,
    to: To = "onnx",
    precision: Bits = "32",
    score: o.Score = None,
    calibrate: Calibrate = None,
    data_root: o.DataRoot = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Export a model: a graph that scores without torch, compared with the model, and its calibration.

    The folder is scored by normalcy score and by normalcy-runtime. Nothing is written where the graph's outputs differ.
    """
    from normalcy.data.open import open_data
    from normalcy.export.write import export as write

    images = None if calibrate is None else open_data(calibrate, data_root)
    parity: dict[str, Any] = write(model, out, to, precision, score=score, calibrate=images, overwrite=overwrite)  # type: ignore[arg-type]
    worst = max((d["relative"], name) for name, d in parity["largest_differences"].items() if name != "p_value")
    inputs = parity["inputs"]
    show(
        f"Compared on {inputs['count']} images ({inputs['name']}): largest difference {worst[0]:.1g} of the {worst[1]}'s range"
    )
    show(f"Exported -> {out}")
