"""The benchmark of three tasks: a row stands for all of its data sets or gives the reason why it does not."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
DIGITS = ("mnist:0", "mnist:3", "mnist:8")


@pytest.fixture
def three_tasks(module_of: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RECIPES))
    return module_of("recipes/three_tasks.py")


def record(method: str, column: str, value: float, width: float = 0.03, **more: Any) -> dict[str, Any]:
    interval = {"value": value, "low": value - width, "high": value + width / 3}
    used = {"fit_processor_seconds": 10.0, "images_per_second": 100.0, "memory_gib": 1.0}
    return {"method": method, "column": column, "seconds": None, "image_auroc": interval, **used, **more}


def test_a_row_is_the_mean_over_all_columns(three_tasks: ModuleType) -> None:
    cells = [record("kde", column, value) for column, value in zip(DIGITS, (0.9, 0.8, 0.7))]
    better = [
        record("pca", column, 0.95, fit_processor_seconds=seconds) for column, seconds in zip(DIGITS, (1.0, 2.0, 6.0))
    ]
    first, second = three_tasks.means([*cells, *better], DIGITS)
    assert (first["row"], first["fit_processor_seconds"]) == ("pca", 3.0)
    # Three independent estimates, each 0.03 below and 0.01 above: their mean has those over the root of three.
    assert second["image_auroc"] == {
        "value": 0.8,
        "low": round(0.8 - 0.03 / 3**0.5, 4),
        "high": round(0.8 + 0.01 / 3**0.5, 4),
    }


def test_a_mean_over_some_columns_is_none(three_tasks: ModuleType) -> None:
    cells = [record("kde", column, 0.9) for column in DIGITS[:2]]
    failed = {"method": "adgan", "column": "mnist:0", "seconds": 15.0, "failed": "out of memory"}
    rows = three_tasks.means([failed, *(record("adgan", c, 0.9, seconds=15.0) for c in DIGITS[1:]), *cells], DIGITS)
    assert [row["failed"] for row in rows] == ["mnist:0: out of memory", "mnist:8: not run"]
    assert not any("image_auroc" in row for row in rows)


def test_a_method_without_gradients_has_one_row_where_it_failed(three_tasks: ModuleType) -> None:
    failed = three_tasks.failure("kde", "mnist:8", 60.0, "out of memory")
    rows = three_tasks.means([*(record("kde", column, 0.9) for column in DIGITS[:2]), failed], DIGITS)
    assert [row["failed"] for row in rows] == ["mnist:8: out of memory"]


def test_the_committed_table_is_of_the_committed_cells(three_tasks: ModuleType, tmp_path: Path) -> None:
    collected = three_tasks.collected(argparse.Namespace(out=three_tasks.CELLS, seconds=[]))
    committed = json.loads(three_tasks.CELLS.with_suffix(".json").read_text("utf-8"))
    assert committed["parts"] == collected
    three_tasks.figure(collected, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_figure_of_failures_alone(three_tasks: ModuleType, tmp_path: Path) -> None:
    failed = three_tasks.failure("dpa", "chest X-rays", 60.0, "out of memory")
    three_tasks.figure({"medical": {"rows": three_tasks.means([failed], ("chest X-rays",))}}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()


def test_tasks_name_columns_and_methods_alike(three_tasks: ModuleType) -> None:
    assert set(three_tasks.COLUMNS) == set(three_tasks.METHODS) == set(three_tasks.SECONDS)
    assert not any("," in task for task in three_tasks.COLUMNS)  # --task separates by commas
    assert all(len(set(methods)) == len(methods) for methods in three_tasks.METHODS.values())


def test_other_training_times_need_a_folder_of_their_own(
    three_tasks: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["three_tasks.py", "--data-root", "data", "--seconds", "5"])
    with pytest.raises(SystemExit) as ended:
        three_tasks.main()
    assert ended.value.code == 2
    assert "--seconds expects an --out of its own" in capsys.readouterr().err


def test_a_training_time_without_cells_is_told(three_tasks: ModuleType, tmp_path: Path) -> None:
    cell = record("vae", "chest X-rays", 0.7, seconds=60.0)
    (tmp_path / "vae-chest-X-rays-60.json").write_text(json.dumps(cell), encoding="utf-8")
    part = three_tasks.collected(argparse.Namespace(out=tmp_path, seconds=[]))["medical"]
    assert [(row["row"], row["training_seconds"], row.get("failed")) for row in part["rows"]] == [
        ("vae", 60.0, None),
        ("vae", 240.0, "not run"),
    ]
    assert "vae" not in part["not_run"]
