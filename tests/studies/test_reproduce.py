"""Tables: their files, the choice of cells, what is run and what is not, failures, intervals, and the printed result."""

import json
import math
import os
import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from normalcy import Detector, open_data
from normalcy.cli.app import main
from normalcy.data.splits import hold_out
from normalcy.errors import DataError, SettingsError
from normalcy.methods import get
from normalcy.metrics import minimum_area_threshold
from normalcy.studies.claims import claimed
from normalcy.studies.kept_scores import read_scores
from normalcy.studies.reproduce import CellRecord, Number, Reproduced, _Fit, interval, reproduce, side_by_side, tabulate
from normalcy.studies.tables import USUAL_SEEDS, Cell, Row, Table, cells_of, read_table, select, tables
from normalcy.training.batches import steps_per_epoch
from normalcy.training.checkpoint import Checkpoint, State
from normalcy.training.fit import plan_steps

TOML = """
paper = "Somebody 2020"
number = 1
shows = "Bars of two directions"
protocol = "One direction is normal in turn."
seeds = 2
settings = { calibration = 0 }
notes = ["The bars are ours."]

[columns.Bars]
data = "bars.npz"
classes = ["0", "1"]
where = "Draw them."

[[rows]]
name = "PCA, few"
method = "pca"
settings = { components = 2 }
published = { Bars = 90.0 }

[[rows]]
name = "Z"
method = "zscore"
seeds = 1
published = { Bars = 80.0 }

[[rows]]
name = "Old"
published = { Bars = 70.0 }

[quick]
rows = ["PCA, few", "Old"]
classes = { Bars = ["1"] }
seeds = 1
settings = { components = 1 }
"""

RESULTS = Path(__file__).parents[2] / "recipes" / "results"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with bars.npz: rows (class 0) or columns (class 1) of random brightness, and noise."""
    folder = tmp_path_factory.mktemp("root")
    rng = np.random.default_rng(0)

    def images(n: int) -> tuple[np.ndarray, np.ndarray]:
        classes = np.arange(n) % 2
        bars = np.repeat(rng.uniform(0, 200, (n, 8, 1)), 8, 2)
        bars = np.where(classes[:, None, None] == 0, bars, bars.transpose(0, 2, 1))
        return (bars + rng.uniform(0, 55, bars.shape)).astype(np.uint8), classes

    (x_train, y_train), (x_test, y_test) = images(40), images(60)
    np.savez(folder / "bars.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "bars.toml"
    path.write_text(TOML.replace("components", component_word()), encoding="utf-8")
    return path


def component_word() -> str:
    """The setting of pca that counts components."""
    from normalcy.config import fields_of
    from normalcy.methods import get

    return next(word for word in fields_of(get("pca").Settings) if word in ("components", "latent"))


@pytest.fixture
def table(file: Path) -> Table:
    return read_table(str(file))


def run(table: Table, out: Path, root: Path, **words: Any) -> tuple[Reproduced, list[Cell]]:
    ran: list[Cell] = []
    found = reproduce(table, out, data_root=root, jobs=1, on_cell=lambda cell, record: ran.append(cell), **words)
    return found, ran


# -- table files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tables())
def test_packaged_tables_are_sound(name: str):
    table = read_table(name)
    cells = cells_of(table)
    numbers = {(str(cell.settings), cell.score, cell.method, cell.spec, cell.seed) for cell in cells}
    assert len({cell.file for cell in cells}) == len(numbers)  # rows may show two metrics of one cell
    most = 1000 if table.metric == "fit_minutes" else 100
    assert all(most > number >= 0 for row in table.rows for number in row.published.values())
    quick = table.reduced()
    assert 0 < len(cells_of(quick)) < len(cells)
    assert "reduction" in quick.reduction
    for cell in {(cell.row, cell.column): cell for cell in cells}.values():
        if cell.method in ("kde", "ocsvm", "isolation_forest", "autoencoder", "dpa"):
            Detector(cell.method, **cell.given)


def test_table_2_of_ddr_id_is_the_papers():
    table = read_table("ddr_id/table-2")
    assert [(row.name, *row.published.values()) for row in table.rows][-1] == ("DDR-ID", 96.2, 65.4)
    assert len(table.rows) == 10
    assert len(select(table, rows=["DDR-ID"])) == 2 * 10 * 10
    assert {c.spec for c in select(table, ["ocsvm"], ["cifar-10"], ["3"], [0])} == {"cifar10:cat"}
    dcae = {c.column: c.given["latent"] for c in select(table, ["DCAE"])}
    assert dcae == {"MNIST": 32, "CIFAR-10": 128}
    ours = {c.column: (c.given["calibration"], c.given.get("size")) for c in select(table, ["DDR-ID"])}
    assert ours == {"MNIST": (0, 32), "CIFAR-10": (0, None)}  # the method itself holds out the tenth of section 4.1


def test_table_5_of_ddr_id_has_the_network_of_gtsrb():
    """Ruff et al. 2018, section 4.3: three modules of 16, 32 and 64 5x5 filters, a dense layer of 32."""
    cells = select(read_table("ddr_id/table-5"), rows=["autoencoder", "deep_svdd"], seeds=[0])
    assert [cell.row for cell in cells] == ["DCAE", "Soft-bound Deep SVDD", "One-class Deep SVDD"]
    for cell in cells:
        encoder = get(cell.method)(Detector(cell.method, **cell.given).settings, (3, 32, 32)).encoder
        layers = [m for m in encoder.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        shapes = [tuple(m.weight.shape) for m in layers]
        assert shapes == [(16, 3, 5, 5), (32, 16, 5, 5), (64, 32, 5, 5), (32, 64 * 4 * 4)]
        assert sum(isinstance(m, torch.nn.MaxPool2d) for m in encoder.modules()) == 3


def test_published_numbers_of_classes_agree_with_their_means():
    again = {("DCAE", "MNIST"): 89.65, ("DCAE", "CIFAR-10"): 59.39, ("IF", "MNIST"): 92.3}  # run again by DDR-ID
    checked = 0
    for row in read_table("ddr_id/table-2").rows:
        for column, numbers in row.published_classes.items():
            mean = again.get((row.name, column), row.published[column])
            assert statistics.fmean(numbers.values()) == pytest.approx(mean, abs=0.14), (row.name, column)
            assert len(numbers) == 10
            checked += 1
    assert checked == 15


def test_tables_of_lsr_are_the_papers_and_share_their_cells():
    read = [read_table(f"lsr/table-{k}") for k in range(1, 5)]
    means = [[row.published["mean"] for row in table.rows if row.method == "lsr"] for table in read]
    assert means == [[85.0], [50.0], [94.0], [89.0, 37.0]]
    assert read[1].rows[0].published["screw"] == 47.0
    assert all(len(table.columns) == 15 for table in read)
    files = [{cell.file for cell in cells_of(table)} for table in read]
    assert len(files[3]) == 3 * 15  # LSR and two autoencoders
    assert all(files[3] <= own for own in files)
    methods = {"cavga", "vae_attention"}
    attention = [{cell.file for cell in cells_of(table) if cell.method in methods} for table in read[:3]]
    assert [len(own) for own in attention] == [15, 30, 15]
    assert attention[1] == attention[0] | attention[2]  # CAVGA and the VAE with attention, of the same fits


def test_tables_that_quote_others():
    dpa = {row.name: row.published for row in read_table("dpa/table-1").rows}
    assert (dpa["DSEBM"], dpa["OCGAN"]) == ({"CIFAR-10": 58.8, "SVHN": 57.1}, {"CIFAR-10": 65.7})
    [ocgan] = [row for row in read_table("ocgan/table-2").rows if row.published]
    assert ocgan.published == {"MNIST": 97.5, "CIFAR-10": 65.7}


def test_tables_of_dpa_are_the_papers():
    one, two, three, four, five = (read_table(f"dpa/table-{k}") for k in range(1, 6))
    published = {row.name: row.published for row in one.rows}
    for name in ("DPA", "PIAD", "Deep IF, chosen", "Deep GEO"):  # table 5 is table 1 class by class
        [row] = [row for row in five.rows if row.name == name]
        numbers = list(row.published.values())
        assert statistics.fmean(numbers[:10]) == pytest.approx(published[name]["CIFAR-10"], abs=0.11)
        assert statistics.fmean(numbers[10:]) == pytest.approx(published[name]["SVHN"], abs=0.11)
    ours = [{cell.file for cell in cells_of(table) if cell.row == "DPA"} for table in (one, five)]
    assert ours[0] == ours[1]  # the same cells
    growing = [cells_of(replace(table, rows=table.rows[-1:])) for table in (two, three, four)]
    assert len({frozenset(cell.file for cell in cells) for cells in growing}) == 1
    assert all(cell.given["grow"] for cell in growing[0])
    assert three.rows[-1].published["NIH-subset"] == 177
    assert not three.needs_maps
    assert [row.published["NIH-subset"] for row in four.rows][2] == 92.0


def test_minutes_of_training_are_a_metric(table: Table, tmp_path: Path, root: Path):
    timed = replace(table, metric="fit_minutes")
    found, _ = run(timed, tmp_path, root)
    assert found.unit == "minutes"
    line = found.lines[0]
    records = [json.loads((tmp_path / cell.file).read_text()) for cell in select(timed, rows=["PCA, few"])]
    assert line.measured.value == pytest.approx(statistics.fmean(r["fit"]["seconds"] / 60 for r in records), abs=1e-3)
    assert "in minutes" in (tmp_path / f"{timed.name}.md").read_text()


def test_scores_of_one_model_share_a_fit():
    cells = select(read_table("ddr_id/table-6"), columns=["MNIST"], classes=["3"], seeds=[0])
    assert [cell.score for cell in cells] == ["latent", "image", "sum", "validation"]
    assert len({cell.fit_key for cell in cells}) == 1
    assert len({cell.file for cell in cells}) == 4


def test_tables_share_cells_and_fits():
    [two] = select(read_table("ddr_id/table-2"), ["DDR-ID"], ["MNIST"], ["3"], [0])
    [three] = select(read_table("ddr_id/table-3"), ["DDR-ID"], ["MNIST"], ["3"], [0])
    [six] = select(read_table("ddr_id/table-6"), ["DDR-ID (val)"], ["MNIST"], ["3"], [0])
    if two.score is not None:  # the default score is known once the method is there
        assert two.file == six.file
        assert two.fit_key == three.fit_key
    assert two.file != three.file


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('method = "pca"', 'methd = "pca"', "did you mean 'method'"),
        ("{ Bars = 90.0 }", "{ Bar = 90.0 }", "no column 'Bar'"),
        ('name = "Z"', 'name = "Old"', "a name of its own"),
        ('rows = ["PCA, few"', 'rows = ["PCA"', "no row 'PCA'"),
        ('Bars = ["1"]', 'Bars = ["2"]', "no class '2'"),
        ("{ Bars = 90.0 }", '{ Bars = 90.0 }\npublished_classes = { Bars = { "2" = 1.0 } }', "no class '2'"),
        ("number = 1", "", "needs the keys number"),
        ("[columns.Bars]", "[columns.Bars", "not valid TOML"),
        ("seeds = 2", 'metric = "f1"', "there is no metric"),
    ],
)
def test_faults_of_a_table_are_named(tmp_path: Path, old: str, new: str, fault: str):
    path = tmp_path / "bad.toml"
    path.write_text(TOML.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SettingsError, match=fault):
        read_table(str(path))


def test_an_unknown_table_names_the_known_ones():
    with pytest.raises(SettingsError, match="ddr_id/table-2"):
        read_table("ddr_id/table-1")


# -- choosing and changing -------------------------------------------------------------------------------------------


def test_choice_of_cells(table: Table):
    assert len(cells_of(table)) == 2 * 2 + 2  # two classes, two seeds; the row Z has one
    assert {cell.row for cell in select(table, rows=["zscore"])} == {"Z"}
    assert {cell.row for cell in select(table, rows=["pca, few"])} == {"PCA, few"}
    assert {cell.spec for cell in select(table, classes=["1"])} == {"bars.npz:1"}
    assert {cell.seed for cell in select(table, seeds=[1])} == {1}
    assert [cell.seed for cell in cells_of(table)] == sorted(cell.seed for cell in cells_of(table))
    for words in ({"rows": ["vae"]}, {"columns": ["MNIST"]}, {"classes": ["2"]}, {"seeds": [2]}):
        with pytest.raises(SettingsError, match="there is no"):
            select(table, **words)  # type: ignore[arg-type]


def test_the_reduction_says_what_it_leaves_out(table: Table):
    quick = table.reduced()
    assert [(c.row, c.spec, c.seed) for c in cells_of(quick)] == [("PCA, few", "bars.npz:1", 0)]
    for part in ("2 of 3 rows", "1 of the classes of Bars", "1 of 2 seeds", f"{component_word()}=1 for all"):
        assert part in quick.reduction


def test_committed_cells_belong_to_the_tables():
    """A new setting changes no name of a file: at its default it belongs into ADDED."""
    committed = {path.relative_to(RESULTS) for part in ("cells", "scores") for path in RESULTS.glob(f"{part}/*/*.json")}
    methods = {path.parent.name for path in committed}
    read = [table for table in map(read_table, tables()) if methods & {row.method for row in table.rows}]
    cells = [cell for table in read for cell in cells_of(table)]
    assert committed
    assert committed <= {file for cell in cells for file in (cell.file, cell.scores_file)}


SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "gtsrb_stop_attacked.npz": (3, 32, 32)}


def least_and_most_steps(method: str, settings: dict[str, Any], data: str, count: int) -> tuple[int, int]:
    """Steps that today's code takes on ``count`` training images: fewer than most only where a stage may end early."""
    detector = Detector(method, **settings)
    assert not detector.decision.calibration
    size, (channels, *sides) = detector.input.size, SHAPES[data]
    shape = (channels, size, size) if size else (channels, *sides)
    with torch.device("meta"):
        stages = get(method)(detector.settings, shape).stages()
    held_out = any(stage.early_stop or stage.finalise for stage in stages)
    count -= held_out * round(0.1 * count)
    least, planned = 0, plan_steps(stages, detector.train, count)
    for stage, steps in zip(stages, planned):
        if stage.skip is not None:
            continue
        if (rule := stage.early_stop) is not None:
            per_look = 1 if stage.steps else steps_per_epoch(stage, detector.train, count)
            every = max(1, round(rule.every * per_look))
            first = max(2, math.ceil(rule.after * steps / every))  # the first look is the best so far
            steps = min(steps, (first + rule.patience - 1) * every)
        least += steps
    return least, sum(planned)


def test_a_tenth_of_the_steps_is_not_as_planned():
    for method, settings, count in [("dpa", {"calibration": 0}, 5000), ("autoencoder", {"calibration": 0}, 5000)]:
        least, most = least_and_most_steps(method, settings, "cifar10", count)
        assert most / 10 < least <= most


def test_committed_cells_were_trained_as_planned():
    """As many steps as today's code plans."""
    groups: dict[tuple[str, str, str], list[tuple[str, int, int]]] = defaultdict(list)
    for path in sorted(RESULTS.glob("cells/*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if steps := (record.get("fit") or {}).get("steps"):  # without steps nothing is trained but statistics
            group = record["method"], record["data"].partition(":")[0], json.dumps(record["settings"])
            groups[group].append((path.stem, record["train"]["count"], steps))
    assert groups
    wrong = []
    for (method, data, settings), trained in groups.items():
        for name, count, steps in trained:
            least, most = least_and_most_steps(method, json.loads(settings), data, count)
            if not least <= steps <= most:
                wrong.append(f"{method} {name}: {steps} steps, planned {least} to {most}")
    assert not wrong, "\n".join([f"{len(wrong)} cells to run again:", *wrong])


def test_changed_settings_are_other_cells_and_are_told(table: Table):
    changed = table.changed({f"pca.{component_word()}": "3"})
    assert f"pca.{component_word()}=3" in changed.reduction
    before, after = cells_of(table), cells_of(changed)
    same = {(c.row, c.normal, c.seed) for c, d in zip(before, after) if c.file == d.file}
    assert {row for row, _, _ in same} == {"Z"}
    idle = table.changed({"device": "cpu", "log_steps": "7"})
    assert [c.file for c in cells_of(idle)] == [c.file for c in before]
    with pytest.raises(SettingsError, match="--seeds"):
        table.changed({"seed": "3"})
    with pytest.raises(SettingsError, match="no setting 'latnt'"):
        table.changed({"latnt": "3"})


# -- running ---------------------------------------------------------------------------------------------------------


def test_cells_are_run_once(table: Table, tmp_path: Path, root: Path):
    found, ran = run(table, tmp_path, root)
    assert len(ran) == 6
    line = found.lines[0]
    assert line.cells.done == line.cells.of == 4
    own = [
        json.loads((tmp_path / cell.file).read_text(encoding="utf-8"))
        for cell in cells_of(table)
        if cell.row == line.row
    ]
    spent = sum(record["fit"]["seconds"] + record["score_seconds"] for record in own)
    assert line.cells.seconds == pytest.approx(spent, abs=0.1)
    assert found.seeds == (0, 1)
    assert len(found.commits) == 1
    assert line.measured.over == "seeds"
    expected = []
    for seed in (0, 1):
        for normal in (0, 1):
            data = open_data(f"{root / 'bars.npz'}:{normal}")
            words = {component_word(): 2, "calibration": 0, "seed": seed}
            test = data.select(split="test")
            expected.append(roc_auc_score(test.labels, Detector("pca", **words).fit(data).score(test).scores))
    assert line.measured.value == pytest.approx(100 * statistics.fmean(expected), abs=1e-3)
    assert line.difference == pytest.approx(line.measured.value - 90)
    assert found.lines[2].measured is None  # published only
    again, ran = run(table, tmp_path, root)
    assert ran == []
    assert again == found
    [gone, *_] = cells_of(table)
    (tmp_path / gone.file).unlink()
    assert tabulate(table, tmp_path).lines[0].cells.done == 3
    assert run(table, tmp_path, root)[1] == [gone]
    assert len(run(table, tmp_path, root, overwrite=True)[1]) == 6
    assert not (tmp_path / "running").exists()


def test_a_record_says_where_it_comes_from(table: Table, tmp_path: Path, root: Path):
    [cell] = select(table, ["pca"], classes=["1"], seeds=[1])
    run(table, tmp_path, root, cells=[cell])
    record = json.loads((tmp_path / cell.file).read_text(encoding="utf-8"))
    assert record["low"] <= record["auroc"] <= record["high"]
    assert record["test"] == {"normal": 30, "anomalous": 30, "unread": 0}
    assert record["train"]["count"] == 20
    assert (record["seed"], record["data"], record["settings"][component_word()]) == (1, "bars.npz:1", 2)
    assert {"hardware", "versions", "commit", "date"} <= set(record)
    assert [p.name for p in (tmp_path / "cells").rglob("*") if p.is_file()] == [cell.file.name]


def test_a_sample_of_the_test_images_for_each_seed(table: Table, tmp_path: Path, root: Path):
    part = replace(table, test_images=20)
    cells = select(part, ["zscore", "pca"], classes=["0"], seeds=[0, 1])
    run(part, tmp_path, root, cells=cells)
    records = [json.loads((tmp_path / cell.file).read_text(encoding="utf-8")) for cell in cells]
    assert all(r["test"]["normal"] + r["test"]["anomalous"] == 20 for r in records)
    assert {c.file for c in cells}.isdisjoint(c.file for c in cells_of(table))


def test_rows_that_share_a_fit_are_fitted_once(
    table: Table, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
):
    first = replace(table.rows[0], name="one", method="vae", settings={"epochs": 1}, seeds=1)
    scores = ("elbo", "l1") if "l1" in _scores("vae") else _scores("vae")[:2]
    rows = tuple(replace(first, name=score, score=score) for score in scores)
    fits = []
    fit = Detector.fit
    monkeypatch.setattr(Detector, "fit", lambda self, *a, **k: (fits.append(self.name), fit(self, *a, **k))[1])
    found, ran = run(replace(table, rows=rows), tmp_path, root)
    assert len(ran) == 4
    assert len(fits) == 2  # one for each class
    assert [line.cells.done for line in found.lines] == [2, 2]


def test_kept_scores_serve_other_cells_without_a_fit(
    table: Table, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
):
    row = replace(table.rows[0], name="one", method="vae", settings={"epochs": 1}, seeds=1, score="elbo", keep=("kl",))
    first, other, kept = (replace(table, rows=(r,)) for r in (row, replace(row, score="kl"), replace(row, score="l1")))
    run(first, tmp_path, root)
    fits = []
    fit = Detector.fit
    monkeypatch.setattr(Detector, "fit", lambda self, *a, **k: (fits.append(self.name), fit(self, *a, **k))[1])
    run(other, tmp_path, root)
    run(replace(other, test_images=20), tmp_path, root)
    assert fits == [], "the score is kept, and fewer images are some of those that are kept"
    run(other, tmp_path / "alone", root)
    assert len(fits) == 2
    for cell in cells_of(other):
        mine, alone = (json.loads((out / cell.file).read_text()) for out in (tmp_path, tmp_path / "alone"))
        assert mine["auroc"] == alone["auroc"]
        assert mine["test"] == alone["test"]
    run(kept, tmp_path, root)
    assert len(fits) == 4, "a score that was not kept"
    run(other, tmp_path, root, overwrite=True)
    assert len(fits) == 6


def test_average_precision_of_images_needs_no_fit(
    table: Table, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
):
    run(table, tmp_path, root)
    asked = replace(table, metric="image_ap")
    with monkeypatch.context() as patch:
        patch.setattr(Detector, "fit", lambda *a, **k: pytest.fail("fitted"))
        found, ran = run(asked, tmp_path, root)
        few, _ = run(replace(asked, test_images=20), tmp_path, root)
    assert ran == []
    assert found.failed == few.failed == ()
    lines = {line.row: line for line in found.lines}
    for row, line in [("PCA, few", few.lines[0]), ("PCA, few", lines["PCA, few"]), ("Z", lines["Z"])]:
        values = []
        for cell in select(asked, rows=[row]):
            kept = read_scores(tmp_path / cell.scores_file)
            chosen = np.sort(np.random.default_rng(cell.seed).permutation(60)[: 20 if line is few.lines[0] else 60])
            values.append(average_precision_score(np.array(kept.labels)[chosen], kept.scores[""][chosen]))
        assert line.cells.done == line.cells.of == len(values)
        assert line.measured.value == pytest.approx(100 * statistics.fmean(values), abs=1e-3)
    [cell, *_] = cells_of(asked)
    (tmp_path / cell.scores_file).unlink()
    assert tabulate(asked, tmp_path).lines[0].cells.done == 3
    assert run(table, tmp_path, root)[1] == []
    assert run(asked, tmp_path, root)[1] == [cell], "neither the number nor the scores are there"


@pytest.fixture
def vae(table: Table) -> Row:
    return replace(table.rows[0], name="one", method="vae", settings={"epochs": 1}, seeds=1, score="elbo")


def test_kept_scores_are_completed(table: Table, vae: Row, tmp_path: Path, root: Path):
    first, more = (replace(table, rows=(row,)) for row in (vae, replace(vae, keep=("kl", "reconstruction"))))
    cells = cells_of(first)
    run(first, tmp_path, root)
    assert {*read_scores(tmp_path / cells[0].scores_file).scores} == {"elbo"}
    assert [cell.file for cell in run(more, tmp_path, root)[1]] == [cell.file for cell in cells]
    assert all({*read_scores(tmp_path / cell.scores_file).scores} == {"elbo", "kl", "reconstruction"} for cell in cells)
    assert run(more, tmp_path, root)[1] == []
    other = replace(table, rows=(replace(vae, score="gradient_kl"),))
    run(other, tmp_path, root)
    kept = read_scores(tmp_path / cells[0].scores_file).scores
    assert {*kept} == {"elbo", "kl", "reconstruction", "gradient_kl"}, "the new fit keeps what the file had"
    for cell in cells:
        (tmp_path / cell.scores_file).unlink()
    assert run(more, tmp_path, root)[1] == [], "finished cells without a file of scores are left alone"


def test_rows_that_share_a_cell_keep_the_scores_of_both(table: Table, vae: Row, tmp_path: Path, root: Path):
    both = replace(table, rows=(replace(vae, keep=("kl",)), replace(vae, name="two", keep=("reconstruction",))))
    assert len(run(both, tmp_path, root)[1]) == 2
    assert {*read_scores(tmp_path / cells_of(both)[0].scores_file).scores} == {"elbo", "kl", "reconstruction"}
    assert run(both, tmp_path, root)[1] == []


def test_a_failure_leaves_the_number_of_an_earlier_run(
    table: Table, vae: Row, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
):
    first, more = (replace(table, rows=(row,)) for row in (vae, replace(vae, keep=("kl",))))
    [before] = run(first, tmp_path, root)[0].lines
    with monkeypatch.context() as patch:
        patch.setattr(Detector, "fit", lambda *a, **k: (_ for _ in ()).throw(SettingsError("not today")))
        found, ran = run(more, tmp_path, root)
    assert len(ran) == found.failed[0].cells == 2
    assert found.lines == (before,)
    assert len(run(more, tmp_path, tmp_path)[0].failed) == 1, "no data"
    again, ran = run(more, tmp_path, root)
    assert len(ran) == 2
    assert again.failed == ()


def _seed_99(name: str, **settings: Any) -> Detector:
    """As on another machine: a fit of the same settings gives other scores."""
    return Detector(name, **{**settings, "seed": 99})


@pytest.mark.parametrize("cell_is_there", [True, False])
def test_a_new_fit_loses_no_scores(table: Table, vae: Row, tmp_path: Path, root: Path, cell_is_there: bool):
    """A cell of another score and fewer images follows."""
    whole = replace(table, rows=(replace(vae, metric="image_ap"),))
    before, _ = run(whole, tmp_path, root)
    cells = cells_of(whole)
    if not cell_is_there:
        (tmp_path / cells[0].file).unlink()
    run(replace(table, test_images=20, rows=(replace(vae, score="kl"),)), tmp_path, root)
    for cell in cells:
        scores = read_scores(tmp_path / cell.scores_file).scores
        assert {name: int(np.isfinite(values).sum()) for name, values in scores.items()} == {"elbo": 60, "kl": 60}
    assert run(whole, tmp_path, root)[0].lines[0].measured == before.lines[0].measured


def test_numbers_and_kept_scores_are_of_one_fit(
    table: Table, vae: Row, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
):
    one, few = replace(table, rows=(vae,)), replace(table, name="few", rows=(vae,), test_images=20, reduction="Few.")
    records = [
        (cell, run(made, tmp_path, root, cells=[cell]) and json.loads((tmp_path / cell.file).read_text()))
        for made in (one, few)
        for cell in cells_of(made)
    ]
    monkeypatch.setattr("normalcy.studies.reproduce.Detector", _seed_99)
    run(replace(table, rows=(replace(vae, keep=("kl",)),)), tmp_path, root)
    for cell, before in records:
        record, kept = json.loads((tmp_path / cell.file).read_text()), read_scores(tmp_path / cell.scores_file)
        chosen = np.sort(np.random.default_rng(cell.seed).permutation(60)[: cell.test_images or 60])
        auroc = roc_auc_score(np.array(kept.labels)[chosen], kept.scores["elbo"][chosen])
        assert record["auroc"] == pytest.approx(auroc)
        assert record["auroc"] != before["auroc"]
        assert {key: record.get(key) for key in ("made_for", "reduction", "test_images", "settings")} == {
            key: before.get(key) for key in ("made_for", "reduction", "test_images", "settings")
        }


def test_overwriting_without_data_keeps_the_scores(table: Table, tmp_path: Path, root: Path):
    asked = replace(table, metric="image_ap")
    before, _ = run(asked, tmp_path, root)
    found, ran = run(asked, tmp_path, tmp_path, overwrite=True)
    assert len(ran) == 6
    assert found.lines == before.lines
    assert len(found.failed) == 2
    assert all(one.reason.endswith("The number shown is of an earlier run.") for one in found.failed)
    again, ran = run(asked, tmp_path, root, overwrite=True)
    assert len(ran) == 6
    assert again.failed == ()


def test_a_failure_is_listed_where_scores_for_the_number_are_missing(table: Table, tmp_path: Path, root: Path):
    run(table, tmp_path, root)
    asked = replace(table, metric="image_ap")
    for cell in cells_of(asked):
        (tmp_path / cell.scores_file).unlink()
    found, _ = run(asked, tmp_path, tmp_path)
    assert [one.cells for one in found.failed] == [4, 2]
    assert not any("earlier run" in one.reason for one in found.failed)


def test_two_calls_keep_the_scores_of_both(table: Table, vae: Row, tmp_path: Path, root: Path):
    """Both have begun before one of them has finished the cell."""
    for keep in ("kl", "reconstruction"):
        named = replace(table, rows=(replace(vae, keep=(keep,)),))
        [record] = _Fit(named, tmp_path, (cells_of(named)[0],), root).run()
        assert record.done
    assert {*read_scores(tmp_path / cells_of(named)[0].scores_file).scores} == {"elbo", "kl", "reconstruction"}


def test_a_failure_leaves_what_another_process_has_made(
    table: Table, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, _ = run(table, tmp_path / "other", root)
    here = tmp_path / "here"

    def late(*_: object) -> None:
        shutil.copytree(tmp_path / "other" / "cells", here / "cells", dirs_exist_ok=True)
        raise DataError("No data on this machine.")

    monkeypatch.setattr("normalcy.studies.reproduce._open", late)
    found, _ = run(table, here, root)
    assert found == whole
    one, two = cells_of(table)[:2]
    (here / two.file).unlink()
    made, failed = _Fit(table, here, (one, two), root).fail("Killed.")
    assert (made.done, failed.failed) == (True, "Killed.")
    assert json.loads((here / two.file).read_text())["failed"] == "Killed."


def test_missing_data_do_not_fail_a_cell_that_another_process_runs(table: Table, tmp_path: Path):
    [cell, *others] = cells_of(table)
    with claimed(_Fit(table, tmp_path, (cell,), tmp_path).claim) as owned:
        assert owned
        assert run(table, tmp_path, tmp_path)[1] == others
    assert not (tmp_path / cell.file).exists()


def test_a_mean_over_some_classes_is_compared_with_the_same_classes(table: Table, tmp_path: Path, root: Path):
    published = {"Bars": {"0": 80.0, "1": 96.0}}
    by_class = replace(table, rows=(replace(table.rows[0], published={"Bars": 88.2}, published_classes=published),))
    part, _ = run(by_class, tmp_path / "part", root, cells=select(by_class, classes=["1"], seeds=[0]))
    [line] = part.lines
    assert (line.published, line.published_same_classes) == (88.2, 96.0)
    assert line.measured is not None
    assert line.difference == pytest.approx(line.measured.value - 96.0)
    page = (tmp_path / "part" / f"{by_class.name}.md").read_text()
    assert "| PCA, few, published | 80.0 | 96.0 |" in page or "| PCA, few, published | 96.0 |" in page
    whole, _ = run(by_class, tmp_path / "whole", root)
    assert whole.lines[0].published_same_classes == 88.2, "over all classes the published mean itself"
    quick, _ = run(by_class.reduced(), tmp_path / "quick", root)
    assert quick.lines[0].published_same_classes == 96.0, "the only class of the quick version"
    no_classes, _ = run(table.reduced(), tmp_path / "quick", root)
    assert no_classes.lines[0].difference is None
    only_mean, _ = run(table, tmp_path / "mean", root, cells=select(table, ["pca"], classes=["1"], seeds=[0]))
    assert only_mean.lines[0].published == 90.0
    assert only_mean.lines[0].published_same_classes is None
    assert only_mean.lines[0].difference is None, "a mean over one class says nothing about one over two"


def _scores(name: str) -> tuple[str, ...]:
    from normalcy.methods import get

    return get(name).scores


def test_failures_are_recorded_and_tried_again(table: Table, tmp_path: Path, root: Path):
    wrong = replace(table, rows=(replace(table.rows[0], name="new", method="not_yet"), *table.rows))
    found, ran = run(wrong, tmp_path, root)
    assert len(ran) == 10
    [failure] = found.failed
    assert failure.cells == 4
    assert "not_yet" in failure.reason
    assert [line.cells.done for line in found.lines] == [0, 4, 2, 0]
    assert {cell.row for cell in run(wrong, tmp_path, root)[1]} == {"new"}
    unknown_score = replace(table, rows=(replace(table.rows[0], score="nothing"),))
    assert "no score 'nothing'" in run(unknown_score, tmp_path, root)[0].failed[0].reason


def test_missing_data_are_named_with_their_place(table: Table, tmp_path: Path, root: Path):
    found, _ = run(table, tmp_path / "out", tmp_path)
    assert all(f"expected {tmp_path / 'bars.npz'}" in f.reason for f in found.failed)
    assert all("Draw them." in f.reason for f in found.failed)
    found, ran = run(table, tmp_path / "out", root)
    assert len(ran) == 6
    assert found.failed == ()


@dataclass(frozen=True)
class Deadly(_Fit):
    """A fit whose process dies."""

    def run(self) -> list[Any]:
        os._exit(9)


@dataclass(frozen=True)
class Telling(_Fit):
    """A fit that tells how it is run."""

    def run(self) -> list[Any]:
        return [{"pid": os.getpid(), "threads": torch.get_num_threads(), "gpu": os.environ["CUDA_VISIBLE_DEVICES"]}]


def test_processes_side_by_side(table: Table, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8")
    one, two, three, four = cells_of(table)[:4]
    work = [
        _Fit(table, tmp_path, (one,), root),
        Deadly(table, tmp_path, (two,), root),
        Telling(table, tmp_path, (three,), root),
        Telling(table, tmp_path, (four,), root),
    ]
    records = {fit.cells[0].file: found for fit, [found] in side_by_side(work, 2)}
    assert len(records) == 4
    assert "killed" in records[two.file].failed
    assert json.loads((tmp_path / two.file).read_text(encoding="utf-8"))["failed"] == records[two.file].failed
    alone, _ = run(table, tmp_path / "alone", root, cells=[one])
    assert records[one.file].auroc == pytest.approx(alone.lines[0].measured.value / 100, abs=1e-4)
    assert os.getpid() not in {records[cell.file]["pid"] for cell in (three, four)}
    assert {records[cell.file]["gpu"] for cell in (three, four)} <= {"7", "8"}


@dataclass(frozen=True)
class Counting(_Fit):
    """Leaves a file for each shared stage that is trained."""

    def run(self) -> Any:
        share = Checkpoint.share

        def counted(checkpoint: Checkpoint, state: State) -> None:
            if checkpoint._shared(state.stage) is not None:
                (self.out / f"{checkpoint.method.settings.objective}-{uuid4().hex}.trained").touch()
            share(checkpoint, state)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoint, "share", counted)
            return super().run()


def test_jobs_train_a_shared_stage_once(table: Table, tmp_path: Path, root: Path):
    """Both objectives of Deep SVDD start from one autoencoder, of each class."""
    first = replace(table.rows[0], method="deep_svdd", seeds=1)
    rows = tuple(
        replace(first, name=name, settings={"objective": name, "epochs": 2, "batch_size": 8, "latent": 2})
        for name in ("one_class", "soft_boundary")
    )
    cells = cells_of(replace(table, rows=rows))
    work = [Counting(table, tmp_path, (cell,), root) for cell in cells]
    records = [record for _, [record] in side_by_side(work, 2)]
    assert [record.failed for record in records] == [None] * 4
    assert len(list((tmp_path / "running").glob("shared/*/*.pt"))) == 2
    assert len(list(tmp_path.glob("*.trained"))) == 2
    assert not list((tmp_path / "running").rglob("*.claim*"))


# -- the table -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def categories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with two categories in MVTec AD's layout: noise, with a bright square in some test images."""
    root = tmp_path_factory.mktemp("mvtec")
    rng = np.random.default_rng(0)
    for category in ("a", "b"):

        def save(name: str, square: bool = False, category: str = category) -> None:
            path = root / category / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image = rng.integers(90, 110, (16, 16), dtype=np.uint8)
            mask = np.zeros_like(image)
            if square:
                mask[4:9, 6:11] = 255
                image[mask > 0] = 200
                truth = root / category / "ground_truth/square" / f"{path.stem}_mask.png"
                truth.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(truth)
            Image.fromarray(image).save(path)

        for k in range(30):
            save(f"train/good/{k}.png")
        for k in range(5):
            save(f"test/good/{k}.png")
            save(f"test/square/{k}.png", square=True)
    return root


def test_metrics_of_maps(categories: Path, tmp_path: Path):
    """Each row another metric of the same cells, which see a threshold from held-out normal images; and the mean column."""
    metrics = ["mean_accuracy", "pro", "pixel_auroc", "pixel_ap", "image_f1", "pixel_f1", "image_ap"]
    head = TOML[: TOML.index("[columns")].replace("seeds = 2", "seeds = 1\nminimum_area = 0.008\nmean = true")
    columns = "".join(f'[columns.{c}]\ndata = "{c}"\n' for c in "ab")
    rows = "".join(
        f'[[rows]]\nname = "{m}"\nmethod = "zscore"\nmetric = "{m}"\npublished = {{ mean = 50.0 }}\n' for m in metrics
    )
    (tmp_path / "t.toml").write_text(head + columns + rows)
    table = read_table(str(tmp_path / "t.toml"))
    empty = [line.measured for line in tabulate(table, tmp_path / "nothing").lines]
    assert empty == 7 * 3 * [None]
    found, ran = run(table, tmp_path / "out", categories)
    assert len(ran) == 2
    ours = {(line.row, line.column): line.measured.value for line in found.lines}
    assert len(ours) == 7 * 3
    detector = Detector("zscore", calibration=0)
    data = open_data(categories / "a")
    train = data.select("train")
    kept, carved = hold_out(train.cases, 0.1, minimum=1, seed=0)
    detector.fit(train.subset(kept))
    maps = [r.map for r in detector.score(train.subset(carved))]
    threshold = minimum_area_threshold(maps, 2)  # 0.8 % of 256 pixels
    test = data.select("test")
    results = detector.score(test)
    truth = np.stack([np.zeros((16, 16), bool) if test.mask(i) is None else test.mask(i) for i in range(len(test))])
    values, flags = np.stack(results.maps), np.stack(results.maps) > threshold
    labels = np.array([item.label for item in test.items])
    flagged = np.array([np.bincount(label(f, np.ones((3, 3)))[0].ravel())[1:].max(initial=0) > 2 for f in flags])
    mean_accuracy = ((flagged[labels == 1]).mean() + (~flagged[labels == 0]).mean()) / 2
    expected = {
        "mean_accuracy": mean_accuracy,
        "image_f1": f1_score(labels, flagged),
        "pixel_f1": f1_score(truth.ravel(), flags.ravel()),
        "pixel_auroc": roc_auc_score(truth.ravel(), values.ravel()),
        "pixel_ap": average_precision_score(truth.ravel(), values.ravel()),
        "image_ap": average_precision_score(labels, results.scores),
        "pro": np.mean([f[t].mean() for f, t in zip(flags, truth) if t.any()]),
    }
    for metric, value in expected.items():
        assert ours[metric, "a"] == pytest.approx(100 * value, abs=1e-3), metric
        assert ours[metric, "mean"] == pytest.approx((ours[metric, "a"] + ours[metric, "b"]) / 2, abs=1e-3)
    text = (tmp_path / "out" / "t.md").read_text()
    assert "Per-region overlap" in text
    assert "intervals: none" in text


def test_metrics_at_a_threshold_need_an_area(tmp_path: Path):
    (tmp_path / "t.toml").write_text(TOML.replace("seeds = 2", 'seeds = 2\nmetric = "pro"', 1))
    with pytest.raises(SettingsError, match="minimum_area"):
        read_table(str(tmp_path / "t.toml"))


def test_interval_over_seeds_needs_seeds_of_every_class():
    rng = np.random.default_rng(0)
    values = rng.uniform(0.6, 0.9, (3, 5))
    classes = [{k: Number(float(v), 0.02) for k, v in enumerate(row)} for row in values]
    found = interval(classes)
    assert found is not None
    means = values.mean(0)
    half = 2.7764451 * means.std(ddof=1) / 5**0.5  # t(0.975) with 4 degrees of freedom
    assert found.value == pytest.approx(100 * means.mean(), abs=1e-3)
    assert found.high - found.value == pytest.approx(100 * half, abs=2e-3)
    ragged = interval([*classes, {0: Number(0.5, 0.04)}])
    assert ragged is not None
    assert ragged.over == "test images"
    half = 1.959964 * (3 * 0.02**2 + 0.04**2) ** 0.5 / 4
    assert ragged.high - ragged.value == pytest.approx(100 * half, abs=2e-3)
    assert interval([]) is None


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["normalcy", "reproduce", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command(file: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    options = ("--out", tmp_path, "--data-root", root, "--jobs", 1)
    assert command(monkeypatch, file, "--quick", *options) == 0
    printed = capsys.readouterr()
    assert "PCA, few, Bars 1, seed 0: " in printed.err
    sentence = read_table(str(file)).reduced().reduction
    assert sentence in printed.out
    assert sentence in (tmp_path / "quick/bars.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "quick/bars.json").read_text(encoding="utf-8"))["reduction"] == sentence
    [cell] = (tmp_path / "quick/cells").rglob("*.json")
    assert json.loads(cell.read_text(encoding="utf-8"))["reduction"] == sentence
    assert not (tmp_path / "cells").exists()

    assert command(monkeypatch, file, "--rows", "zscore", "--classes", "1", "--seeds", "0-0", *options) == 0
    printed = capsys.readouterr()
    assert "1/2" in printed.out
    assert "Quick" not in printed.out
    page = (tmp_path / "bars.md").read_text(encoding="utf-8")
    assert "| Z | Bars | 80.0 | " in page
    assert "Bars, class by class" in page
    assert "The bars are ours." in page

    assert command(monkeypatch, file, "--rows", "pca", "--set", f"{component_word()}=5", *options) == 0
    assert "Settings changed by the user" in capsys.readouterr().out
    assert (tmp_path / "changed/bars.md").exists()


def test_the_command_tells_failures_beside_numbers(
    file: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    options = ("--rows", "zscore", "--classes", "1", "--seeds", "0", "--out", tmp_path, "--jobs", 1)
    assert command(monkeypatch, file, "--data-root", root, *options) == 0
    capsys.readouterr()

    def fail(*_: object, **__: object) -> None:
        raise SettingsError("Not today.")

    monkeypatch.setattr(Detector, "fit", fail)
    assert command(monkeypatch, file, "--data-root", root, "--overwrite", *options) == 1
    printed = capsys.readouterr().err
    assert "Z, Bars 1, seed 0: failed: Not today." in printed
    assert command(monkeypatch, file, "--data-root", root, "--list", *options) == 0
    sentence = "Z on Bars: Not today. The number shown is of an earlier run. Cells: 1."
    assert sentence in (tmp_path / "bars.md").read_text(encoding="utf-8")


def test_the_command_does_not_call_a_number_of_an_earlier_run_a_success(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    def both(table: Table, out: Path, cells: list[Cell], on_cell: Callable[[Cell, CellRecord], None], **_: Any) -> None:
        on_cell(cells[0], CellRecord(failed="Not today.", auroc=0.9))

    monkeypatch.setattr("normalcy.studies.reproduce.reproduce", both)
    command(monkeypatch, file, "--out", tmp_path)
    assert "seed 0: failed: Not today." in capsys.readouterr().err


def test_the_command_runs_three_seeds_of_ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    planned: list[Cell] = []
    monkeypatch.setattr("normalcy.studies.reproduce.reproduce", lambda table, out, cells, **_: planned.extend(cells))
    assert command(monkeypatch, "ddr_id/table-5", "--out", tmp_path) == 0
    assert (read_table("ddr_id/table-5").seeds, USUAL_SEEDS) == (10, 3)
    seeds = {row: {cell.seed for cell in planned if cell.row == row} for row in {cell.row for cell in planned}}
    assert seeds.pop("KDE") == {0}, "its row has one"
    assert set(map(frozenset, seeds.values())) == {frozenset({0, 1, 2})}


def test_the_command_lists(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    assert command(monkeypatch) == 0
    assert "ddr_id/table-6" in capsys.readouterr().out
    assert command(monkeypatch, file, "--list", "--out", tmp_path / "out") == 0
    assert "row Old: published only" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_mistakes_and_failures_have_exit_codes(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    out = ("--out", tmp_path / "out")
    assert command(monkeypatch, "ddr_id/table-1", *out) == 2
    assert command(monkeypatch, file, "--seeds", "a", *out) == 2
    assert command(monkeypatch, file, "--jobs", "0", *out) == 2
    assert command(monkeypatch, file, "--rows", "vae", *out) == 2
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert command(monkeypatch, "ddr_id/table-4", "--rows", "autoencoder", "--data-root", tmp_path, *out) == 1
    printed = capsys.readouterr()
    assert "endosome/test/non_endosome" in printed.err


# -- the boundary attack of table 5 ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attack(module_of: Callable[[str], ModuleType]) -> ModuleType:
    return module_of("recipes/gtsrb_boundary_attack.py")


def test_boundary_attack_finds_the_nearest_point_across_a_plane(attack: ModuleType):
    """Against a linear classifier the nearest adversarial image is the projection onto its plane."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(48, generator=generator)
    normal /= normal.norm()
    images = torch.rand(4, 3, 4, 4, generator=generator) * 0.4 + 0.3
    offset = (images.flatten(1) @ normal).max() + 0.3
    asked = 0

    def adversarial(x: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += 1
        return x.flatten(1) @ normal > offset

    start = (images + 2 * normal.reshape(3, 4, 4)).clone()
    found = attack.boundary_attack(adversarial, images, start, steps=1500, generator=generator, bounds=(-9, 9))
    assert bool(adversarial(found).all())
    distance = (found - images).flatten(1).norm(dim=1)
    nearest = offset - images.flatten(1) @ normal
    assert bool((distance >= nearest - 1e-5).all())
    assert bool((distance < 1.15 * nearest).all()), (distance / nearest).tolist()
    assert bool(((start - images).flatten(1).norm(dim=1) > 1.5 * nearest).any())


def test_changes_of_an_attack_are_scaled(attack: ModuleType):
    images = torch.full((2, 3, 8, 8), 0.5)
    attacked = images + 0.1 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = attack.scaled(images, attacked, 2 / 255) - images
    torch.testing.assert_close(found.flatten(1).square().mean(1).sqrt() * 255, torch.full((2,), 2.0))
    cosine = torch.nn.functional.cosine_similarity(found.flatten(1), (attacked - images).flatten(1))
    torch.testing.assert_close(cosine, torch.ones(2))
