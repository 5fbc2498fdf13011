"""Fits that torchrun has started, on two local "nodes" of two processes each, against those of one process."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from under_torchrun import AUTOENCODER

from normalcy import Detector
from normalcy.detector import load

SECONDS = 240
"""More than a loaded machine takes."""


def start(folder: Path, *, nodes: int = 2, per_node: int = 2) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--nnodes", str(nodes), "--nproc_per_node", str(per_node), "--master_addr", "127.0.0.1"]
    words += ["--master_port", str(port)]
    script = str(Path(__file__).with_name("under_torchrun.py"))
    return [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *words, "--node_rank", str(node), script, str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for node in range(nodes)
    ]


def write_images(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    slope = np.linspace(60, 180, 32)[:, None] + np.linspace(0, 30, 32)
    for i in range(30):
        Image.fromarray((slope + rng.normal(0, 12, slope.shape)).clip(0, 255).astype(np.uint8)).save(
            folder / f"{i}.png"
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the fits were run."""
    folder = tmp_path_factory.mktemp("torchrun")
    write_images(folder / "parts", 0)
    write_images(folder / "others", 1)
    launchers = start(folder)
    try:
        for launcher in launchers:
            printed, _ = launcher.communicate(timeout=SECONDS)
            assert launcher.returncode == 0, printed
    finally:
        for launcher in launchers:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    """What each process saw."""
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(4)]


@pytest.fixture(scope="module")
def alone(folder: Path) -> Detector:
    return Detector("autoencoder", **AUTOENCODER).fit(folder / "parts")


def same_weights(one: Detector, other: Detector, tolerance: float) -> None:
    weights = other.method.state_dict()
    for name, value in one.method.state_dict().items():
        torch.testing.assert_close(weights[name], value, atol=tolerance, rtol=0, msg=name)


def test_gradients_of_all_processes_are_those_of_one(folder: Path, alone: Detector):
    together = load(folder / "autoencoder")
    same_weights(together, alone, 1e-4)
    losses = [[r["loss"] for r in one.records if "loss" in r] for one in (together, alone)]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert together.calibration.scores == pytest.approx(alone.calibration.scores, abs=1e-4)


@pytest.mark.parametrize(("method", "words"), [("patchcore", {"memory": 50}), ("kde", {"features": "backbone"})])
def test_features_of_all_processes_are_those_of_one_bit_by_bit(folder: Path, method: str, words: dict[str, Any]):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: sums are then added in the same order
    try:
        alone = Detector(method, device="cpu", batch_size=4, **words).fit(folder / "parts")
    finally:
        torch.set_num_threads(threads)
    together = load(folder / method)
    same_weights(together, alone, 0)
    assert together.calibration.scores == pytest.approx(alone.calibration.scores, rel=1e-5)
    assert together.facts["data"] == alone.facts["data"]


def test_first_process_alone_writes_and_prints(folder: Path, seen: list[dict[str, Any]]):
    assert [one["zscore"][0] for one in seen] == [0] * 4
    assert seen[0]["zscore"][1].startswith("Fitted zscore on ")
    assert [one["zscore"][1:] for one in seen[1:]] == [["", ""]] * 3
    written = {"zscore", "patchcore", "kde", "autoencoder", "resumed", "run"}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == written | {"parts", "others"}


def test_an_error_of_the_command_ends_all_and_is_said_once_per_node(seen: list[dict[str, Any]]):
    assert [one["again"][0] for one in seen] == [2] * 4
    said = [one["again"][2] for one in seen]
    assert said[0] == said[2]
    assert "zscore exists and is not empty" in said[0]
    assert said[1] == said[3] == ""


def test_score_names_shards(seen: list[dict[str, Any]]):
    assert [one["score"][0] for one in seen] == [2] * 4
    assert "score runs in one process, got 4 by torchrun" in seen[0]["score"][2]
    assert "--shard K/N" in seen[0]["score"][2]


def test_an_error_of_one_process_is_that_of_all(seen: list[dict[str, Any]]):
    for what, beginning in {
        "missing": "DataError: 'nowhere' is neither a file or folder",
        "other images": "DataError: fit expects the same images on all nodes, got other ones in process 2 than in",
        "other settings": "SettingsError: fit expects the same settings in all processes, got other ones of smoothing in",
        "devices": "SettingsError: fit expects no --devices beside torchrun, which has started 4 processes, got 3",
    }.items():
        assert [one[what].startswith(beginning) for one in seen] == [True] * 4, [one[what] for one in seen]


def test_an_interrupted_fit_resumes(folder: Path, seen: list[dict[str, Any]], alone: Detector):
    assert seen[0]["interrupted"] == "Interrupt: "
    for one in seen[1:]:
        assert one["interrupted"] == "TrainingError: Process 0 of 4 has failed: Interrupt:"
    assert all(one["checkpoint"] for one in seen)
    assert [one["steps"] for one in seen] == [[5, 6], [], [], []], (
        "the log of the first process, from the checkpoint on"
    )
    same_weights(load(folder / "resumed"), load(folder / "autoencoder"), 0)
