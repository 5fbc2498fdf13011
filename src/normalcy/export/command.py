"""The command ``normalcy-runtime``: scores images by an exported model into a results folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from normalcy.data.open import as_dataset
from normalcy.errors import NormalcyError
from normalcy.export.scorer import load
from normalcy.files import refuse_existing
from normalcy.results.predict import predict
from normalcy.results.run import Model, Run, Scored, thresholds
from normalcy.settings import InputSettings


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits: 0, or 1 or 2 with a sentence on stderr."""
    parser = argparse.ArgumentParser("normalcy-runtime", description=__doc__)
    commands = parser.add_subparsers(required=True)
    score = commands.add_parser("score", help="scores.csv, anomaly maps and restored images")
    score.add_argument("model", type=Path, help="a folder that normalcy export wrote")
    score.add_argument("images", nargs="+", help="images, folders, a table or .npz")
    score.add_argument("--out", type=Path, required=True, help="folder for the results")
    score.add_argument("--engine", default="auto", choices=("auto", "onnxruntime", "openvino"))
    score.add_argument("--threads", type=int, help="threads of the engine [all cores]")
    score.add_argument("--batch-size", type=int, default=32)
    score.add_argument("--false-alarms", type=float, help="bound of the false-positive rate")
    score.add_argument("--no-maps", action="store_true", help="write the tables alone")
    score.add_argument("--overwrite", action="store_true")
    given = parser.parse_args(arguments)
    try:
        run = score_into(given)
    except NormalcyError as error:
        sys.exit(_say(str(error), error.exit_code))
    for path, reason in ((f.path, f.reason) for f in run.data.failed):
        _say(f"Skipped {path}: {reason}", 0)
    _say(f"Scored {run.data.count} images at {run.images_per_second:g} images/s -> {given.out}", 0)


def score_into(given: argparse.Namespace) -> Run:
    """A results folder as ``normalcy score`` writes it."""
    refuse_existing(given.out, given.overwrite)
    scorer = load(given.model, given.engine, given.threads)
    data = as_dataset(given.images if len(given.images) > 1 else given.images[0])
    words, decision = scorer.description, scorer.decide(given.false_alarms)
    settings = {**words["settings"], **words["input"], **words["train"], **words["decision"]}
    run = Run(
        model=Model(
            method=words["method"],
            settings=settings,
            shape=tuple(words["shape"]),
            preprocess=tuple(InputSettings.from_json(words["input"]).preprocess),
            training_data={key: value for key, value in words["data"].items() if key != "failed"},
        ),
        data=Scored(
            name=data.name,
            spec=given.images[0] if len(given.images) == 1 else None,
            base=str(Path.cwd()),
            fingerprint=data.fingerprint(),
            medical=data.is_medical,
            has_masks=data.has_masks,
        ),
        calibration=thresholds(scorer.calibration, decision),
        map_range=None if scorer.calibration is None else scorer.calibration.map_range,
        score=words["graph"]["score"] or None,
        normalcy=words["normalcy"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=f"cpu ({scorer.graph.engine})",
    )
    results = scorer.stream(data, batch_size=given.batch_size, false_alarms=given.false_alarms)
    return predict(results, run, data, given.out, maps=not given.no_maps, overwrite=given.overwrite)


def _say(text: str, code: int) -> int:
    sys.stderr.write(text + "\n")
    return code


if __name__ == "__main__":
    main()
