"""Exported folders of other hands: one error message, and nothing of this machine is opened by their names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normalcy import Detector, ModelFileError, NormalcyError
from normalcy.export import export
from normalcy.export.command import main
from normalcy.export.scorer import load

IMAGES = (100 + 20 * np.random.default_rng(0).random((44, 16, 16))).astype(np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Detector("zscore").fit(IMAGES).save(tmp_path_factory.mktemp("m") / "model")


@pytest.fixture(scope="module")
def exported(model: Path) -> dict[str, bytes]:
    export(model, model.parent / "exported")
    return {path.name: path.read_bytes() for path in (model.parent / "exported").iterdir()}


@pytest.fixture
def folder(exported: dict[str, bytes], tmp_path: Path) -> Path:
    (tmp_path / "e").mkdir()
    for name, content in exported.items():
        (tmp_path / "e" / name).write_bytes(content)
    return tmp_path / "e"


PARTS = (
    "method",
    "normalcy",
    "settings",
    "input",
    "train",
    "decision",
    "data",
    "preprocess",
    "views",
    "graph",
    "shape",
)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [None, 3, "x", [1], {"x": 1}], ids=str)
def test_parts_of_another_type_are_one_error(
    folder: Path, part: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = json.loads((folder / "detector.json").read_text())
    if part in ("method", "normalcy") and value == "x":
        return
    if part in ("settings", "data", "train") and value == {"x": 1}:
        return
    (folder / "detector.json").write_text(json.dumps({**words, part: value}))
    with pytest.raises(NormalcyError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(SystemExit) as stopped:
        main(["score", str(folder), str(folder), "--out", str(folder.parent / "out")])
    assert stopped.value.code in (1, 2)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("file", ["detector.json", "model.onnx"])
def test_files_that_lead_away(folder: Path, file: str) -> None:
    (folder / file).unlink()
    (folder / file).symlink_to("/dev/zero")
    with pytest.raises(ModelFileError, match="is not a regular file"):
        load(folder)


def test_graph_files_lie_in_the_folder(folder: Path) -> None:
    words = json.loads((folder / "detector.json").read_text())
    for name in ("../model.onnx", "/etc/hosts", "..", ".hidden"):
        words["graph"]["files"] = [name]
        (folder / "detector.json").write_text(json.dumps(words))
        with pytest.raises(ModelFileError, match="outside of the folder"):
            load(folder)


@pytest.mark.parametrize("name", ["mnist:3", "/", "private", "../private"])
def test_the_data_that_a_model_names_are_not_opened(
    model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither fetched nor walked: a model folder may come from elsewhere."""
    words = json.loads((model / "detector.json").read_text())
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    words["data"]["name"] = name
    (copy / "detector.json").write_text(json.dumps(words))

    def refuse(*given: Any, **words: Any) -> Callable[..., Any]:
        raise AssertionError(f"opened {given}")

    monkeypatch.setattr("normalcy.data.open.open_data", refuse)
    monkeypatch.chdir(tmp_path)
    assert export(copy, tmp_path / "out")["inputs"]["name"] == "smooth random textures, preprocessed"
