"""Recipes of DDR-ID: rows of a result file are not run again, and an epoch has all images."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture
def first_weights(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RECIPES))
    for name in ("ddr_id_first_weights", "ddr_id_finetuning"):
        sys.modules.pop(name, None)
    return __import__("ddr_id_first_weights")


def test_rows_of_several_data_sets_are_run_once(
    first_weights: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ran: list[tuple[Any, ...]] = []

    def measure(
        spec: str, root: Path, epochs: int, wanted: Sequence[str], changed: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        ran.append((spec, epochs, tuple(wanted), dict(changed)))
        for name in wanted:
            about = {"data": spec, "epochs": epochs, **changed, "first_weights": name}
            yield {**about, "as_l": 1.0, "algorithm_2": "image"}

    monkeypatch.setattr(first_weights, "measure", measure)
    file = tmp_path / "result.json"
    old = {"words": {**first_weights.WORDS, "epochs": 12}, "digit": 5, "rows": [{"first_weights": "he", "as_l": 2.0}]}
    file.write_text(json.dumps(old), "utf-8")
    options = ["--data-root", str(tmp_path), "--result", str(file)]
    wide = ["--width", "32", "--first-weights", "he"]
    for more in ([], [], ["--data", "cifar10:frog"], ["--epochs", "28"], wide, wide):
        first_weights.main([*options, *more])
    every = ("he", "torch", "dcgan")
    assert ran == [
        ("mnist:5", 12, every[1:], {}),
        ("cifar10:frog", 12, every, {}),
        ("mnist:5", 28, every, {}),
        ("mnist:5", 12, ("he",), {"width": 32}),
    ]
    found = json.loads(file.read_text("utf-8"))
    assert found["words"] == first_weights.WORDS
    assert found["rows"][0] == {"data": "mnist:5", "epochs": 12, "first_weights": "he", "as_l": 2.0}
    assert len(found["rows"]) == 10
    with pytest.raises(SystemExit):
        first_weights.main([*options, "--data", "cifar10:submarine"])
    assert "got cifar10:submarine" in capsys.readouterr().err


def test_an_epoch_has_every_image(first_weights: ModuleType) -> None:
    seen: list[torch.Tensor] = []
    weight = torch.nn.Parameter(torch.zeros(1))

    def loss(x: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(x)
        return {"loss": (x * weight).sum()}

    x = torch.arange(150.0).view(-1, 1)
    sys.modules["ddr_id_finetuning"].epoch(torch.nn.Identity(), x, [loss], [torch.optim.SGD([weight], lr=0.1)])
    assert [len(batch) for batch in seen] == [64, 64, 64]
    assert set(torch.cat(seen).flatten().tolist()) == set(range(150))
