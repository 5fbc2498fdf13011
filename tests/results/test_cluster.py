"""Work on a Ray cluster of two nodes: the results of one process, also where a worker, a node or the driver is killed."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from runner import Run

from normalcy.cli.score import _OpenImages
from normalcy.detector import Detector
from normalcy.errors import NormalcyError, SettingsError
from normalcy.results.cluster import Shards, connected, each, score_on_cluster, shards_for

ray = pytest.importorskip("ray", reason="needs normalcy[ray]") if not os.environ.get("CI") else __import__("ray")
COUNT, PARTS = 48, 8


@dataclass(frozen=True)
class Slow:
    """Opens what scores shards, each in ``delay`` seconds more; writes down who works on which."""

    open: Callable[[], Callable[..., int]]
    log: Path
    delay: float
    nodes: int = 1
    """The first shards wait until workers on this number of nodes have begun."""

    def __call__(self) -> Callable[..., int]:
        score = self.open()

        def slow(folder: Path, shard: Any, on_progress: Any) -> int:
            with self.log.open("a") as file:
                print(shard.index, os.getpid(), ray.get_runtime_context().get_node_id(), file=file, flush=True)
            time.sleep(self.delay)
            until(lambda: len({node for _, _, node in begun(self.log)}) >= self.nodes)
            return score(folder, shard=shard, on_progress=on_progress)

        return slow


def begun(log: Path) -> list[tuple[int, int, str]]:
    """Shard, process and node of each attempt."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(int(shard), int(process), node) for shard, process, node in lines]


def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    # By default, workers wait for everything else that the machine does.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    own = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    found = Cluster(initialize_head=True, head_node_args={**own, "include_dashboard": False})
    try:
        found.add_node(**own)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, 48 images of 24 cases and one that cannot be read, and the results of one process."""
    folder = tmp_path_factory.mktemp("cluster")
    rng = np.random.default_rng(0)
    (folder / "img").mkdir()
    rows = []
    for k in range(COUNT):
        image = rng.uniform(0, 100, (16, 16))
        image[4:8, 4:8] += 120 * (k % 3 == 0)
        Image.fromarray(image.astype(np.uint8)).save(folder / "img" / f"{k}.png")
        rows.append(f"img/{k}.png,{int(k % 3 == 0)},case{k // 2}")
    (folder / "img" / "bad.png").write_bytes(b"no image")
    (folder / "images.csv").write_text("path,label,case\n" + "\n".join([*rows, "img/bad.png,0,bad"]) + "\n")
    Detector("zscore").fit(rng.uniform(0, 100, (60, 16, 16)).astype(np.uint8)).save(folder / "model")
    opening(folder)()(folder / "one", shard=None, on_progress=None)
    return folder


def opening(root: Path) -> _OpenImages:
    decision = Detector.load(root / "model").decide()
    how = {"decision": decision, "spec": str(root / "images.csv"), "batch_size": 4}
    return _OpenImages(root / "model", "cpu", "torch", None, [str(root / "images.csv")], None, None, how)


def shards(root: Path, log: Path, delay: float, nodes: int = 1) -> Shards:
    return Shards(Slow(opening(root), log, delay, nodes), PARTS, COUNT + 1, ["the same"], gpu=False)


def equals_one_run(root: Path, out: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file() and p.name != "run.json"}
        return {name: path.read_bytes() for name, path in found.items()}

    assert files(out) == files(root / "one")
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["path"] for row in rows).total() == COUNT
    assert [failure["path"] for failure in json.loads((out / "run.json").read_text())["data"]["failed"]] == [
        "img/bad.png"
    ]
    assert not out.with_name(f"{out.name}.run").exists()


def at_most_one_again(log: Path) -> None:
    """Every shard was begun; the one that was lost, twice."""
    counts = Counter(shard for shard, _, _ in begun(log))
    assert set(counts) == {*range(1, PARTS + 1)}
    assert counts.total() <= PARTS + 1


def test_a_killed_worker(cluster: Any, root: Path, tmp_path: Path):
    log, shown = tmp_path / "log", list[tuple[int, int]]()

    def kill(done: int, total: int) -> None:
        shown.append((done, total))
        if len(begun(log)) > 2 and not killed:
            killed.append(begun(log)[-1])
            os.kill(killed[0][1], signal.SIGKILL)

    killed = list[tuple[int, int, str]]()
    score_on_cluster(shards(root, log, 2), tmp_path / "out", cluster.address, on_progress=kill)
    equals_one_run(root, tmp_path / "out")
    [(_, process, _)] = killed
    at_most_one_again(log)
    assert begun(log)[-1][1] != process
    assert shown == sorted(shown)
    assert shown[-1] == (COUNT + 1, COUNT + 1)


def test_a_killed_node(cluster: Any, root: Path, tmp_path: Path):
    log = tmp_path / "log"
    node = next(one for one in cluster.list_all_nodes() if one is not cluster.head_node)
    removed = []

    def kill(done: int, total: int) -> None:
        last = [shard for shard, _, where in begun(log) if where == node.node_id][-1:]
        if last and not removed:
            removed.append(last[0])
            cluster.remove_node(node, allow_graceful=False)

    try:
        score_on_cluster(shards(root, log, 1.5, nodes=2), tmp_path / "out", cluster.address, on_progress=kill)
    finally:
        if removed:
            cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    assert len(removed) == 1
    equals_one_run(root, tmp_path / "out")
    at_most_one_again(log)


def drive(root: Path, log: Path, out: Path, address: str) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    score_on_cluster(shards(root, log, 1.0), out, address)


def test_a_killed_driver(cluster: Any, root: Path, tmp_path: Path):
    log, out = tmp_path / "log", tmp_path / "out"
    driver = get_context("spawn").Process(target=drive, args=(root, log, out, cluster.address), daemon=True)
    driver.start()
    try:
        until(lambda: len(list(out.with_name("out.run").glob("*/shard-*"))) >= 2)
    finally:
        driver.kill()
        driver.join()
    before = begun(log)
    done = {path.name for path in out.with_name("out.run").glob("*/shard-*")}
    assert not out.exists()
    with pytest.raises(SettingsError, match="unfinished run of other model, data or options"):
        score_on_cluster(Shards(shards(root, log, 0.0).open, PARTS, COUNT, ["another"]), out, cluster.address)
    score_on_cluster(shards(root, log, 0.0), out, cluster.address)
    equals_one_run(root, out)
    again = {f"shard-{shard}" for shard, _, _ in begun(log)[len(before) :]}
    assert 2 <= len(done) < PARTS
    assert done.isdisjoint(again)  # what was done is not done again


def test_errors_of_a_task_and_tasks_that_kill(cluster: Any):
    from collections import deque

    def make() -> Callable[[Any, Any], Any]:
        def work(task: str, on_done: Any) -> str:
            if task == "refuse":
                raise SettingsError("no")
            if task == "die":
                os._exit(1)
            return task

        return work

    with connected(cluster.address) as module:
        found = dict(each(module, make, deque(["a", "refuse", "die", "b"])))
    assert (found["a"], found["b"], str(found["refuse"])) == ("a", "b", "no")
    assert isinstance(found["refuse"], SettingsError)
    assert "died 3 times" in str(found["die"])


def test_a_cluster_that_is_not_there():
    with pytest.raises(NormalcyError, match="cannot connect"), connected("127.0.0.1:1"):
        pass


def test_number_of_shards():
    assert [shards_for(n) for n in (0, 1, 100, 10_000, 1_000_000, 10**9)] == [1, 1, 7, 64, 1000, 10_000]


# -- the commands ------------------------------------------------------------------------------------------------------


def test_score(cluster: Any, root: Path, tmp_path: Path, run: Run):
    words = ["score", root / "model", root / "images.csv", "--device", "cpu", "--engine", "torch", "--batch-size", 4]
    said = run.said(*words, "--out", tmp_path / "out", "--ray", cluster.address)
    assert f"Scored {COUNT} images" in said
    assert "Skipped img/bad.png" in said
    equals_one_run(root, tmp_path / "out")
    assert run(*words, "--out", tmp_path / "other", "--ray", cluster.address, "--shard", "1/2") == 2
    assert "exclude each other" in run.err


def test_slides(cluster: Any, tmp_path: Path, run: Run):
    rng = np.random.default_rng(0)
    detector = Detector("zscore").fit(rng.integers(0, 90, (30, 32, 32, 3), dtype=np.uint8))
    detector.save(tmp_path / "model")
    (tmp_path / "slides").mkdir()
    for k in range(3):
        tifffile.imwrite(
            tmp_path / "slides" / f"s{k}.tif",
            rng.integers(0, 90, (64, 96, 3), dtype=np.uint8),
            tile=(32, 32),
            photometric="rgb",
        )
    words = ["slides", tmp_path / "model", tmp_path / "slides", "--set", "tile=32", "--set", "tissue=0"]
    words += ["--device", "cpu", "--engine", "torch"]
    alone = run.good(*words, "--out", tmp_path / "one")
    assert run.good(*words, "--out", tmp_path / "out", "--ray", cluster.address) == alone
    files = {str(p.relative_to(tmp_path / "one")) for p in (tmp_path / "one").rglob("*") if p.is_file()}
    assert len(files) > 6
    for name in files - {"run.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_compare(cluster: Any, root: Path, tmp_path: Path, run: Run):
    words = ["compare", root / "images.csv", "--methods", "zscore,pca,patchcore_of_nobody", "--device", "cpu"]
    assert run(*words, "--out", tmp_path / "out", "--ray", cluster.address) == 2
    words[3] = "zscore,pca"
    run.good(*words, "--out", tmp_path / "one")
    run.good(*words, "--out", tmp_path / "out", "--ray", cluster.address)
    one, out = (json.loads((tmp_path / name / "compare.json").read_text()) for name in ("one", "out"))
    assert [row["name"] for row in out["methods"]] == ["zscore", "pca"]
    for ours, theirs in zip(one["methods"], out["methods"]):
        assert ours["auroc"] == theirs["auroc"]
    assert (tmp_path / "out" / "pca" / "report.html").exists()


def test_reproduce(cluster: Any, tmp_path: Path, run: Run):
    rng = np.random.default_rng(0)
    classes = np.arange(80) % 2
    bars = np.repeat(rng.uniform(0, 200, (80, 8, 1)), 8, 2)
    bars = np.where(classes[:, None, None] == 0, bars, bars.transpose(0, 2, 1)).astype(np.uint8)
    words = {"x_train": bars[:40], "y_train": classes[:40], "x_test": bars[40:], "y_test": classes[40:]}
    np.savez(tmp_path / "bars.npz", **words)
    (tmp_path / "bars.toml").write_text(TABLE)
    words = ["reproduce", tmp_path / "bars.toml", "--data-root", tmp_path]
    run.good(*words, "--out", tmp_path / "one", "--jobs", 1)
    run.good(*words, "--out", tmp_path / "out", "--ray", cluster.address)

    def values(name: str) -> list[float]:
        return [line["measured"]["value"] for line in json.loads((tmp_path / name / "bars.json").read_text())["lines"]]

    assert values("out") == values("one")
    assert len(values("out")) == 1
    assert not (tmp_path / "out" / "running").exists()


TABLE = """
paper = "Somebody 2020"
number = 1
shows = "Bars of two directions"
protocol = "One direction is normal in turn."
seeds = 2
settings = { calibration = 0 }

[columns.Bars]
data = "bars.npz"
classes = ["0", "1"]

[[rows]]
name = "Z"
method = "zscore"
published = { Bars = 80.0 }
"""


def test_select(cluster: Any, tmp_path: Path, run: Run):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "normal.npz", x_train=rng.random((60, 8, 8)).astype(np.float32), y_train=np.zeros(60, int))
    words = [
        "select",
        tmp_path / "normal.npz",
        "--method",
        "pca",
        "--try",
        "components=1|2",
        "--trials",
        3,
    ]

    def tried(name: str) -> dict[str, str]:
        with (tmp_path / name / "trials.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 3
        return {row["components"]: row["auroc"] for row in rows}

    run.good(*words, "--out", tmp_path / "one")  # the method's own value, 1 and 2
    assert run.good(*words, "--out", tmp_path / "out", "--ray", cluster.address).count("trial ") == 3
    assert (tmp_path / "out" / "study.log").exists()
    assert tried("out").items() <= tried("one").items()  # two workers may have begun the same
    assert run.good(*words, "--out", tmp_path / "out", "--ray", cluster.address).count("trial ") == 0  # all were made
