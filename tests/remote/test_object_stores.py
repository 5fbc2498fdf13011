"""Data, models and results in a real S3 server and a web server of this machine, which fail as networks do."""

import json
import logging
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from faulty import Faulty
from moto.server import ThreadedMotoServer
from PIL import Image
from runner import Run

from normalcy import DataError, Detector, open_data
from normalcy.remote import mirror, store

KEY, SECRET = "AKIAOFTESTSALONE1234", "0secretOfTestsAlone0/+abcdefghijklmnopqr"
BOUND = 60_000
"""Bytes of the cache: less than the data set has."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MVTec AD's layout: 24 normal images for training, 6 normal and 6 anomalous ones to test."""
    root = tmp_path_factory.mktemp("local") / "parts"
    rng = np.random.default_rng(0)
    for part, count in (("train/good", 24), ("test/good", 6), ("test/hole", 6)):
        (root / part).mkdir(parents=True)
        for k in range(count):
            x = rng.integers(90, 120, (32, 32, 3), dtype=np.uint8)
            x[8:20, 8:20] = 250 if "hole" in part else x[8:20, 8:20]
            Image.fromarray(x).save(root / part / f"{k:03}.png")
    (root / "ground_truth/hole").mkdir(parents=True)
    for k in range(6):
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 8:20] = 255
        Image.fromarray(mask).save(root / f"ground_truth/hole/{k:03}_mask.png")
    return root


@pytest.fixture(scope="module")
def model(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    detector = Detector("pca", false_alarms=0.2)
    detector.fit(open_data(images))
    folder = tmp_path_factory.mktemp("model") / "pca"
    detector.save(folder)
    return folder


@pytest.fixture(scope="module")
def local(model: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of scoring the local folder."""
    from normalcy.results.predict import score_into

    out = tmp_path_factory.mktemp("results") / "local"
    from normalcy.detector import load

    score_into(load(model), open_data(images).select("test"), out)
    return out


@pytest.fixture(scope="module")
def s3(images: Path) -> Iterator[Faulty]:
    """A real S3 server behind a faulty line, with the images at s3://bucket/parts."""
    patch = pytest.MonkeyPatch()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = Faulty(server.get_host_and_port()[1])
    patch.setenv("AWS_ACCESS_KEY_ID", KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    for setting, value in (("FIRST_PAUSE", 0.01), ("LONGEST_PAUSE", 0.05), ("STALLED", 1.0)):
        patch.setattr(store, setting, value)
    fs = plain()
    fs.mkdir("bucket")
    fs.put(f"{images}/", "bucket/parts/", recursive=True)
    store.FILE_SYSTEMS.clear()
    yield proxy
    proxy.close()
    server.stop()
    patch.undo()
    store.FILE_SYSTEMS.clear()


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Each test with a cache of its own; no faults are left of another."""
    monkeypatch.setattr(mirror, "SETTING", mirror.Setting(mirror.Cache(tmp_path / "cache", BOUND)))
    if "s3" in request.fixturenames:
        request.getfixturevalue("s3").reset()


def plain() -> Any:
    return fsspec.filesystem("s3", use_listings_cache=False)


def stored(prefix: str) -> dict[str, bytes]:
    """Name -> content of what is below a folder of the bucket."""
    fs = plain()
    base = f"bucket/{prefix}"
    return {path[len(base) + 1 :]: fs.cat_file(path) for path in fs.find(base)}


def cached(folder: Path) -> int:
    return sum(
        file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.name.startswith("index.db")
    )


def test_scores_over_a_faulty_line_are_the_local_ones(s3: Faulty, run: Run, model: Path, local: Path, tmp_path: Path):
    s3.fail("GET", "test/good/001.png", "503", "503")
    s3.fail("GET", "test/good/002.png", "cut")
    s3.fail("GET", "test/hole/000.png", "stall", "503", "cut")
    s3.fail("GET", "test/hole/003.png", "slow")
    s3.fail("GET", "ground_truth/hole/001_mask.png", "cut", "503")
    s3.fail("PUT", "maps/test/good/003.png.npy", "503", "503")
    s3.fail("PUT", "run.json", "503")
    sizes = []
    with watched(tmp_path / "cache", sizes):
        said = run.said("--cache", tmp_path / "cache", "--cache-size", f"{BOUND}B", "score", model, "s3://bucket/parts",
                        "--out", "s3://bucket/results/a")  # fmt: skip
    assert "Scored 12 images" in said, said
    assert "-> s3://bucket/results/a" in said
    assert s3.count("GET", "test/good/001.png") >= 3
    assert s3.count("GET", "test/good/002.png") >= 2
    assert s3.count("GET", "test/hole/000.png") >= 4
    assert not any(s3.faults.values())
    assert 0 < max(sizes) <= BOUND
    files = stored("results/a")
    here = {path.relative_to(local).as_posix(): path.read_bytes() for path in local.rglob("*") if path.is_file()}
    assert files.keys() == here.keys()
    assert files["scores.csv"] == here["scores.csv"]
    assert all(files[name] == here[name] for name in here if name.startswith(("maps/", "masks/")))
    ours = json.loads(files["run.json"])
    assert ours["data"]["spec"] == "s3://bucket/parts"
    assert ours["data"]["fingerprint"] == json.loads(here["run.json"])["data"]["fingerprint"]
    for secret in (KEY, SECRET):
        assert not any(secret.encode() in content for content in files.values())
        assert secret not in said
        assert not any(secret.encode() in f.read_bytes() for f in (tmp_path / "cache").rglob("*") if f.is_file())


class watched:
    """Notes the bytes of a cache again and again, while the block runs."""

    def __init__(self, folder: Path, sizes: list[int]) -> None:
        self.folder, self.sizes, self.end = folder, sizes, threading.Event()

    def __enter__(self) -> None:
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self) -> None:
        while not self.end.wait(0.01):
            try:
                self.sizes.append(cached(self.folder))
            except OSError:  # it went while it was looked at
                continue

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.thread.join()


def test_an_image_that_always_fails_is_listed(s3: Faulty, run: Run, model: Path, tmp_path: Path):
    s3.fail("GET", "test/good/001.png", *["503"] * 500)
    s3.fail("GET", "test/hole/002.png", *["cut"] * 500)
    run.good("score", model, "s3://bucket/parts", "--out", tmp_path / "out")
    failed = {
        one["path"]: one["reason"] for one in json.loads((tmp_path / "out/run.json").read_text())["data"]["failed"]
    }
    assert failed.keys() == {"test/good/001.png", "test/hole/002.png"}
    for path, reason in failed.items():
        assert reason.startswith(f"s3://bucket/parts/{path}: cannot be reached after 6 tries (")
    assert run.err.count("Skipped") == 2
    assert len((tmp_path / "out/scores.csv").read_text().splitlines()) == 11


def test_a_store_that_is_gone_is_one_error(s3: Faulty, run: Run, model: Path, tmp_path: Path):
    s3.fail("GET", ".png", *["503"] * 5000)
    assert run("score", model, "s3://bucket/parts", "--out", tmp_path / "out") == 1
    assert "None of the 12 images" in run.err
    assert not (tmp_path / "out").exists()
    listed = sum(n for (method, path), n in s3.counts.items() if method == "GET" and path.endswith(".png"))
    assert listed < 36 * store.TRIES  # given up at some time


def test_nothing_partial_looks_complete(s3: Faulty, run: Run, model: Path, tmp_path: Path):
    """An upload that fails in the middle; then again over it; then again over what is complete."""
    out = "s3://bucket/results/b"
    s3.fail("PUT", "maps/test/hole/001.png.npy", *["503"] * 50)
    assert run("score", model, "s3://bucket/parts", "--out", out) == 1
    assert "cannot be reached after 6 tries" in run.err
    half = stored("results/b")
    assert "run.json" not in half
    s3.reset()
    assert run("evaluate", out) == 1
    assert run("score", model, "s3://bucket/parts", "--out", out) == 2
    assert "is not empty" in run.err
    s3.reset()
    run.good("score", model, "s3://bucket/parts", "--out", out, "--overwrite")
    written = [path for method, path in s3.seen if method == "PUT"]
    assert written[0].endswith(".normalcy-uploading")
    assert written[-1].endswith("run.json")
    whole = stored("results/b")
    assert "run.json" in whole
    assert ".normalcy-uploading" not in whole
    s3.reset()
    run.good("score", model, "s3://bucket/parts", "--out", out, "--overwrite", "--no-maps")
    changed = [(method, path) for method, path in s3.seen if method in ("PUT", "DELETE") and "uploading" not in path]
    assert changed[0] == ("DELETE", "/bucket/results/b/run.json")
    assert changed[-1] == ("PUT", "/bucket/results/b/run.json")
    assert stored("results/b").keys() == {"scores.csv", "run.json", "train.jsonl"}


def test_two_processes_do_not_mix(s3: Faulty, tmp_path: Path):
    from normalcy.errors import SettingsError
    from normalcy.remote.transfer import Upload

    one = Upload("s3://bucket/results/c")
    with pytest.raises(SettingsError, match="going on, or did not end"):
        Upload("s3://bucket/results/c")
    other = Upload("s3://bucket/results/c", overwrite=True)
    with pytest.raises(SettingsError, match="written by another process"):
        one.send(tmp_path)
    one.give_up()
    (tmp_path / "run.json").write_text("{}")
    other.send(tmp_path)
    assert stored("results/c").keys() == {"run.json"}


def test_models_and_reports(s3: Faulty, run: Run, images: Path, tmp_path: Path):
    url = "s3://bucket/models/pca"
    assert "-> s3://bucket/models/pca" in run.good("fit", "s3://bucket/parts", "--out", url, "--method", "pca")
    assert "pca" in run.good("info", url)
    run.good("score", url, images, "--out", "s3://bucket/results/d")
    assert "image AUROC" in run.good("evaluate", "s3://bucket/results/d")
    run.good("report", "s3://bucket/results/d", "--data", "s3://bucket/parts")
    assert "s3://bucket/results/d/report.html" in run.out
    assert {"metrics.json", "report.html", "run.json"} <= stored("results/d").keys()
    assert run("fit", "s3://bucket/parts", "--out", url, "--method", "pca") == 2
    assert run("fit", "s3://bucket/parts", "--out", "s3://bucket/models/x", "--resume") == 2
    assert "--resume needs a local --out" in run.err
    # run.json opens no URL by itself
    run.good("score", url, "s3://bucket/parts", "--out", tmp_path / "e")
    s3.reset()
    run.good("report", tmp_path / "e")
    assert "would have to be fetched" in (tmp_path / "e/report.html").read_text()
    assert not s3.seen


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("s3://bucket", "a whole bucket"),
        ("s3://bucket/parts", "holds s3://bucket/parts, which is read"),
        ("s3://bucket/other", "holds files that normalcy did not write"),
        ("https://host/x", "nothing is written to https://"),
        ("zip://x::s3://bucket/a.zip", "nothing is written to zip://"),
        ("sftp://me:secret@host/x", "expected a URL of"),
    ],
)
def test_where_nothing_is_written(s3: Faulty, run: Run, model: Path, out: str, words: str):
    plain().pipe_file("bucket/other/a.txt", b"a")
    s3.reset()
    assert run("score", model, "s3://bucket/parts", "--out", out, "--overwrite") != 0
    assert words in run.err, run.err
    assert "secret" not in run.err
    assert not [path for method, path in s3.seen if method in ("PUT", "DELETE", "POST")]


def test_commands_that_need_a_local_path_say_so(s3: Faulty, run: Run):
    assert run("review", "s3://bucket/results/a") == 2
    assert "review takes a local path as results, not a URL" in run.err
    assert run("select", "s3://bucket/parts", "--out", "s3://bucket/study") == 2
    assert "select takes a local path as out" in run.err


def test_every_layout(s3: Faulty, images: Path, tmp_path: Path):
    """A table, arrays, a single image, a pattern and a zip, as from this machine."""
    fs = plain()
    table = "path,label,mask\ntest/good/000.png,0,\ntest/hole/001.png,1,ground_truth/hole/001_mask.png\n"
    fs.pipe_file("bucket/parts/some.csv", table.encode())
    (images.parent / "arrays").mkdir()
    np.savez(images.parent / "arrays/a.npz", images=np.zeros((4, 8, 8), np.uint8), labels=[0, 1, 2, 2])
    fs.put_file(str(images.parent / "arrays/a.npz"), "bucket/arrays/a.npz")
    import shutil

    shutil.make_archive(str(tmp_path / "z"), "zip", images.parent, "parts")
    fs.put_file(str(tmp_path / "z.zip"), "bucket/z.zip")
    listed = open_data("s3://bucket/parts/some.csv")
    fs.rm_file("bucket/parts/some.csv")
    assert [item.label for item in listed.items] == [0, 1]
    assert listed.mask(1).sum() == 144
    assert len(open_data("s3://bucket/arrays/a.npz:2").select(label=0)) == 2
    assert len(open_data("s3://bucket/parts/test/good/*.png")) == 6
    assert np.array_equal(
        open_data("s3://bucket/parts/test/good/003.png").read(0), listed_local(images, "test/good/003.png")
    )
    whole = open_data(images).fingerprint()
    assert open_data("zip://parts::s3://bucket/z.zip").fingerprint() == whole
    assert open_data(f"zip://parts::{tmp_path / 'z.zip'}").fingerprint() == whole


def listed_local(images: Path, name: str) -> Any:
    return open_data(images / name).read(0)


def test_tars(s3: Faulty, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In blocks through the cache, over a faulty line, as the local ones; a bound smaller than the tars."""
    fs = plain()
    for k in range(3):
        with tarfile.open(tmp_path / f"p-{k:03}.tar", "w") as tar:
            for file in sorted((images / "test/hole").iterdir())[2 * k : 2 * k + 2]:
                tar.add(file, file.name)
                tar.add(images / f"ground_truth/hole/{file.stem}_mask.png", f"{file.stem}.mask.png")
        fs.put_file(str(tmp_path / f"p-{k:03}.tar"), f"bucket/tars/p-{k:03}.tar")
    monkeypatch.setattr(mirror, "BLOCK", 4096)
    monkeypatch.setattr(mirror.SETTING.cache, "limit", 12_000)
    here = open_data(f"{tmp_path}/p-{{000..002}}.tar")
    s3.fail("GET", "p-001.tar", "503", "cut")
    for text in ("s3://bucket/tars/p-{000..002}.tar", "s3://bucket/tars/p-*.tar"):
        there = open_data(text)
        assert there.items == here.items
        assert there.fingerprint() == here.fingerprint()
        assert all(np.array_equal(there.read(i), here.read(i)) for i in range(6))
        assert all(np.array_equal(there.mask(i), here.mask(i)) for i in range(6))
    assert 0 < cached(mirror.SETTING.cache.folder) <= 12_000
    with pytest.raises(DataError, match=r"p-003.tar: no such file"):
        open_data("s3://bucket/tars/p-{000..007}.tar")


@pytest.fixture
def web(images: Path) -> Iterator[Faulty]:
    """A web server with index pages, behind a faulty line."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(images.parent)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    proxy = Faulty(server.server_address[1])
    yield proxy
    proxy.close()
    server.shutdown()
    server.server_close()


def test_a_web_server(web: Faulty, run: Run, images: Path, model: Path, local: Path, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(store, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(store, "STALLED", 1.0)
    host = f"127.0.0.1:{web.port}"
    web.fail("GET", "test/good/002.png", "cut", "503", "stall")
    run.good("score", model, f"http://me:hidden-word@{host}/parts/", "--out", tmp_path / "out")
    assert (tmp_path / "out/scores.csv").read_bytes() == (local / "scores.csv").read_bytes()
    assert web.count("GET", "test/good/002.png") >= 4
    (images / "list.csv").write_text("path,label\ntest/good/000.png,0\ntest/hole/000.png,1\n")
    try:
        url = f"http://{host}/parts/list.csv?X-Amz-Signature=hidden-word"
        assert len(open_data(url)) == 2
        run.good("score", model, url, "--out", tmp_path / "signed")
    finally:
        (images / "list.csv").unlink()
    assert len((tmp_path / "signed/scores.csv").read_text().splitlines()) == 3
    web.fail("GET", "000.png", *["503"] * 50)
    run(
        "score", model, f"http://me:hidden-word@{host}/parts/test/good/000.png?sig=hidden-word", "--out", tmp_path / "c"
    )
    assert "cannot be reached" in run.err
    assert "hidden-word" not in run.err
    for folder in ("out", "signed"):
        spec = json.loads((tmp_path / folder / "run.json").read_text())["data"]["spec"]
        assert spec in (f"http://{host}/parts/", f"http://{host}/parts/list.csv")
        assert not any(b"hidden-word" in file.read_bytes() for file in (tmp_path / folder).rglob("*") if file.is_file())
