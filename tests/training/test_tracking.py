"""Experiment tracking with the real packages: runs are opened again and their values compared."""

import csv
import json
import math
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normalcy import Detector, SettingsError
from normalcy.cli.app import main
from normalcy.errors import NormalcyWarning
from normalcy.files import read_json
from normalcy.training.log import Record, read_log
from normalcy.training.tracking import destinations, tracking

SETTINGS = {"method": "vae", "latent": 64, "lr": 0.001, "bias": True, "tile": None, "augment": ["flip"]}
RECORDS: list[Record] = [
    {"method": "vae", "stage": "prior", "event": "prepare"},
    {"method": "vae", "stage": "code", "step": 5, "steps": 10, "images_per_second": 100.0, "loss": 0.5, "kl": 0.25},
    {"method": "vae", "stage": "code", "step": 10, "steps": 10, "images_per_second": 90.0, "loss": 0.125, "kl": 0.0625},
    {"method": "vae", "stage": "prior", "step": 5, "steps": 5, "images_per_second": 80.0, "g/loss": -1.5},
    {"method": "vae", "stage": "prior", "step": 5, "held_out_loss": 2.0},
]
RESULTS = {"seconds": 3.5, "threshold": 0.75, "pixel_threshold": math.inf}
CURVES = {
    "code/loss": [(5, 0.5), (10, 0.125)],
    "code/kl": [(5, 0.25), (10, 0.0625)],
    "code/images_per_second": [(5, 100.0), (10, 90.0)],
    "prior/g/loss": [(5, -1.5)],
    "prior/images_per_second": [(5, 80.0)],
    "prior/held_out_loss": [(5, 2.0)],
}
FINAL = {"final/seconds": 3.5, "final/threshold": 0.75}  # an infinite threshold cannot be drawn


def write(*where: str) -> None:
    with tracking(where, SETTINGS, name="run") as log:
        for record in (*RECORDS, RECORDS[1]):  # the last as after a resumption
            log(record)
        log.results(RESULTS)


def curves_of_csv(folder: Path) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    with (folder / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != "step" and value:
                    curves.setdefault(name, []).append((int(row["step"]), float(value)))
    return curves


def test_csv(tmp_path: Path):
    write(f"csv:{tmp_path}")
    assert curves_of_csv(tmp_path / "version_0") == {**CURVES, **{name: [(0, v)] for name, v in FINAL.items()}}
    assert read_json(tmp_path / "version_0" / "settings.json") == {**SETTINGS, "tile": "null", "augment": '["flip"]'}
    write(f"csv:{tmp_path}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["version_0", "version_1"]


def test_tensorboard(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    write(f"tensorboard:{tmp_path}")
    events = EventAccumulator(str(tmp_path / "version_0")).Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {**CURVES, **{name: [(0, v)] for name, v in FINAL.items()}}
    [table] = events.Tensors("settings/text_summary")
    assert "| latent | 64 |" in table.tensor_proto.string_val[0].decode()
    start = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    logged = start.session_start_info.hparams
    numbers = (logged["latent"].number_value, logged["bias"].number_value)  # TensorBoard's true is 1
    assert (*numbers, logged["method"].string_value) == (64, 1, "vae")


@pytest.fixture(scope="module")
def mlflow_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests: making it is slow."""
    return tmp_path_factory.mktemp("mlflow") / "ml"


@pytest.mark.slow
def test_mlflow(tmp_path: Path, mlflow_place: Path, monkeypatch: pytest.MonkeyPatch):
    from mlflow import MlflowClient

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    place = mlflow_place
    write(f"mlflow:{place}")
    client = MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")
    experiment = client.get_experiment_by_name("normalcy")
    [run] = client.search_runs([experiment.experiment_id], "attributes.run_name = 'run'")
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params == {"method": "vae", "latent": "64", "lr": "0.001", "bias": "True"} | {
        "tile": "null",
        "augment": '["flip"]',
    }
    names = {*CURVES, *FINAL}
    assert set(run.data.metrics) == names
    history = {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in names}
    assert history == {**CURVES, **{name: [(0, v)] for name, v in FINAL.items()}}
    assert list(elsewhere.iterdir()) == []
    # through an address, as of a server: the same experiment
    write(f"mlflow:sqlite:///{place}/mlflow.db")
    assert len(client.search_runs([experiment.experiment_id], "attributes.run_name = 'run'")) == 2


def records_of_wandb(file: Path) -> Iterator[Any]:
    """Records of an offline run: a log in the format of LevelDB, with a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if place > len(data):  # not yet written
            return
        if kind in (1, 4):  # whole, or the last part
            yield Message.FromString(parts)
            parts = b""


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    place = tmp_path / "wb"
    write(f"wandb:{place}")
    [file] = place.glob("wandb/offline-run-*/*.wandb")
    until = time.monotonic() + 60
    while not any(
        r.WhichOneof("record_type") == "exit" for r in records_of_wandb(file)
    ):  # its service writes a little later
        assert time.monotonic() < until, "the run was not written"
        time.sleep(0.1)
    found: dict[str, Any] = {"config": {}, "summary": {}, "rows": []}
    for record in records_of_wandb(file):
        kind = record.WhichOneof("record_type")
        if kind in ("config", "run"):
            update = record.config if kind == "config" else record.run.config
            found["config"] |= {"/".join(u.nested_key) or u.key: json.loads(u.value_json) for u in update.update}
        elif kind == "history":
            items = (
                (item.key or "/".join(item.nested_key), json.loads(item.value_json)) for item in record.history.item
            )
            found["rows"].append({k: v for k, v in items if not k.startswith("_")})
        elif kind == "summary":
            found["summary"] |= {
                "/".join(u.nested_key) or u.key: json.loads(u.value_json) for u in record.summary.update
            }
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    assert found["config"]["latent"] == 64
    assert found["config"]["augment"] == '["flip"]'
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in found["rows"]:
        stage = next(iter(row)).partition("/")[0]
        for name, value in row.items():
            if name != f"{stage}/step":
                curves.setdefault(name, []).append((row[f"{stage}/step"], value))
    assert curves == CURVES
    assert {name: found["summary"][name] for name in FINAL} == FINAL
    assert found["exit"] == 0
    assert [p for p in home.rglob("*") if p.is_file()] == []


@pytest.mark.slow
def test_a_fit_that_fails_is_a_failed_run(mlflow_place: Path):
    from mlflow import MlflowClient

    with pytest.raises(ZeroDivisionError), tracking([f"mlflow:{mlflow_place}"], SETTINGS, name="fails") as log:
        log({"stage": "code", "step": 1, "loss": 1 / 0})
    client = MlflowClient(tracking_uri=f"sqlite:///{mlflow_place}/mlflow.db")
    experiment = client.get_experiment_by_name("normalcy").experiment_id
    [run] = client.search_runs([experiment], "attributes.run_name = 'fails'")
    assert run.info.status == "FAILED"


def test_a_destination_that_fails_does_not_stop_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with tracking([f"csv:{tmp_path / 'a'}", f"csv:{tmp_path / 'b'}"], SETTINGS) as log:
        log(RECORDS[1])
        first = next(iter(log._sinks.values()))
        monkeypatch.setattr(first, "log", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.warns(NormalcyWarning, match=r"logging to csv:.*a ended: OSError: no space left"):
            log(RECORDS[2])
        log.results(RESULTS)
    assert curves_of_csv(tmp_path / "a" / "version_0")["code/loss"] == CURVES["code/loss"][:1]
    assert curves_of_csv(tmp_path / "b" / "version_0")["code/loss"] == CURVES["code/loss"]


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SettingsError, match="KIND one of csv, tensorboard, mlflow, wandb, got 'tensorbord'"):
        destinations(["tensorbord"], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="log-to cannot write to csv:"), tracking([f"csv:{tmp_path}/file"], {}):
        pass
    monkeypatch.setattr("normalcy.training.tracking.find_spec", lambda name: None)
    for kind in ("tensorboard", "mlflow", "wandb"):
        with pytest.raises(SettingsError, match=rf"needs the package {kind}.*pip install 'normalcy\[{kind}\]'"):
            destinations([kind], tmp_path)
    assert destinations(["csv", "csv:there"], tmp_path)[0].place == str(tmp_path / "csv")


def images(n: int) -> np.ndarray:
    return (100 + 20 * np.random.default_rng(0).random((n, 16, 16))).astype(np.uint8)


def test_fit_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    np.savez(tmp_path / "data.npz", x_train=images(60), y_train=np.zeros(60, int), x_test=images(2), y_test=[0, 1])
    monkeypatch.chdir(tmp_path)
    words = ["--method", "autoencoder", "--steps", "6", "--set", "log_steps=2", "--set", "latent=4", "--out", "model"]
    where = ["--log-to", "csv", "--log-to", "tensorboard:tb"]
    monkeypatch.setattr(sys, "argv", ["normalcy", "fit", "data.npz", *words, *where])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.npz", "model", "model.logs", "tb"]
    assert f"Logged to csv:{tmp_path / 'model.logs' / 'csv'}" in capsys.readouterr().out
    folder = tmp_path / "model.logs" / "csv" / "version_0"
    curves = curves_of_csv(folder)
    [stage] = {name.partition("/")[0] for name in curves} - {"final"}
    records = [r for r in read_log(tmp_path / "model" / "train.jsonl") if "loss" in r]
    assert curves[f"{stage}/loss"] == [(r["step"], r["loss"]) for r in records]
    assert [r["step"] for r in records] == [2, 4, 6]
    detector = Detector.load(tmp_path / "model")
    assert read_json(folder / "settings.json")["latent"] == 4
    final = {name: points[0][1] for name, points in curves.items() if name.startswith("final/")}
    assert final == {f"final/{name}": pytest.approx(v) for name, v in detector.outcome().items() if math.isfinite(v)}
    assert final["final/threshold"] == pytest.approx(detector.decide().threshold)
    assert next((tmp_path / "tb" / "version_0").glob("events*"))
