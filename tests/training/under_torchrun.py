"""Fits that torchrun starts on two local "nodes" of two processes; see test_torchrun.py.

``torchrun ... under_torchrun.py FOLDER`` works in FOLDER and writes what each process saw to ``rank-R.json`` there. All fits run
in one start of the processes, as a start takes seconds.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import normalcy.detector
from normalcy import Detector
from normalcy.cli.app import main
from normalcy.errors import NormalcyError

RANK = int(os.environ.get("RANK", 0))
AUTOENCODER = {"steps": 6, "batch_size": 8, "seed": 1, "precision": "32-true", "device": "cpu", "log_steps": 1}


def command(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    sys.argv = ["normalcy", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("main returns by SystemExit")


def sentence(**words: object) -> str:
    """The error of a fit."""
    data, settings = words.pop("data", "parts"), {"method": "zscore", **words}
    try:
        Detector(**settings).fit(data)
    except NormalcyError as error:
        return f"{type(error).__name__}: {error}"
    return ""


class Interrupt(Exception):
    pass


def interrupted(record: dict) -> None:
    if record.get("step") == 5:
        raise Interrupt


def run() -> dict:
    seen = {"zscore": command("fit", "parts", "--method", "zscore", "--out", "zscore", "--device", "cpu")}
    seen["again"] = command("fit", "parts", "--method", "zscore", "--out", "zscore", "--device", "cpu")
    seen["score"] = command("score", "zscore", "parts", "--out", "results")
    for method in ("patchcore", "kde"):
        words = {"features": "backbone"} if method == "kde" else {"memory": 50}
        Detector(method, device="cpu", batch_size=4, **words).fit("parts").save(method)
    Detector("autoencoder", **AUTOENCODER).fit("parts").save("autoencoder")
    seen["missing"] = sentence(data="parts" if RANK != 3 else "nowhere")
    seen["other images"] = sentence(data="parts" if RANK < 2 else "others")
    seen["other settings"] = sentence(smoothing=2.0 if RANK == 1 else 1.0)
    seen["devices"] = sentence(devices=3)
    try:
        fit = Detector("autoencoder", checkpoint_steps=2, **AUTOENCODER)
        fit.fit("parts", run_dir="run", log=interrupted)
    except (Interrupt, NormalcyError) as error:
        seen["interrupted"] = f"{type(error).__name__}: {error}"
    seen["checkpoint"] = Path("run", "checkpoint.pt").exists()
    steps = []
    Detector("autoencoder", checkpoint_steps=2, **AUTOENCODER).fit(
        "parts", run_dir="run", resume=True, log=lambda record: steps.append(record.get("step"))
    ).save("resumed")
    seen["steps"] = steps
    return seen


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    normalcy.detector.BATCH = 4  # so that all processes score held-out images
    Path(f"rank-{RANK}.json").write_text(json.dumps(run()))
