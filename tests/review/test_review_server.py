"""The server: what it answers, and whom."""

import gzip
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normalcy.data.images import read_mask
from normalcy.review.server import HEADERS, MARK, make_app
from normalcy.review.session import Review, dice, kappa

TestClient = pytest.importorskip("starlette.testclient").TestClient
HOST = "127.0.0.1:8417"
TOKEN = "secret-token"
OWN = {MARK: "1", "origin": f"http://{HOST}", "sec-fetch-site": "same-origin"}


class Client:
    """A browser with the cookie."""

    def __init__(self, folders: list[Path], **options: Any) -> None:
        self.review = Review(folders, **options)
        self.app = make_app(self.review, token=TOKEN, hosts={HOST, "localhost:8417"}, reviewer="anna")
        self.http = TestClient(self.app, base_url=f"http://{HOST}", follow_redirects=False)
        answer = self.http.get(f"/?token={TOKEN}")
        assert answer.status_code == 303
        self.http.cookies = answer.cookies

    def json(self, address: str) -> Any:
        answer = self.http.get(address)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def array(self, address: str) -> np.ndarray:
        answer = self.http.get(address)
        assert answer.status_code == 200, answer.text
        return np.load(io.BytesIO(answer.content))

    def decide(self, image: int, mask: np.ndarray | None = None, **words: Any) -> Any:
        head = {"reviewer": "anna", "verdict": "normal", **words, "mask": mask is not None}
        body = json.dumps(head).encode() + b"\n"
        if mask is not None:
            body += gzip.compress(mask.astype(np.uint8).tobytes())
        return self.http.post(f"/api/decide/{image}", content=body, headers=OWN)

    def close(self) -> None:
        self.app.close()
        self.review.store.close()


@pytest.fixture
def client(results: Path) -> Iterator[Client]:
    found = Client([results])
    yield found
    found.close()


# -- what it answers


def test_rows_and_facts(client: Client):
    facts, rows = client.json("/api/facts"), client.json("/api/rows")
    assert (facts["kind"], facts["count"], facts["method"], facts["reviewer"]) == ("image", 30, "pca", "anna")
    assert facts["guaranteed"] == 0.1
    assert facts["informative"] is True
    assert rows["path"][:2] == ["00.png", "01.png"]
    np.testing.assert_allclose(rows["score"], client.review.read.scores, rtol=1e-5)
    assert rows["flagged"] == client.review.read.flagged.tolist()


def test_images_are_the_values_of_the_files(client: Client, made: Path):
    from PIL import Image

    shown = client.array("/image/4/input")
    np.testing.assert_array_equal(shown, np.asarray(Image.open(made / "line/04.png")))
    np.testing.assert_array_equal(client.array("/image/4/map"), np.load(made / "results/maps/04.png.npy"))
    assert client.array("/image/4/restored").shape == (48, 64)
    assert client.json("/about/4")["kinds"] == ["input", "restored", "map"]
    thumbnail = client.http.get("/thumb/4")
    assert thumbnail.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(thumbnail.content)).size == (64, 48)


def test_sixteen_bits_arrive_whole(tmp_path: Path, results: Path):
    import tifffile

    from normalcy.data.open import open_data

    (tmp_path / "deep").mkdir()
    values = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20
    tifffile.imwrite(tmp_path / "deep/04.png", values)  # under the name of an image that was scored
    client = Client([results], data=lambda: open_data(str(tmp_path / "deep")))
    np.testing.assert_array_equal(client.array("/image/4/input"), values)
    client.close()


def test_a_decision_and_its_mask(client: Client, results: Path):
    mask = np.zeros((48, 64), bool)
    mask[10:20, 5:30] = True
    answer = client.decide(3, mask, verdict="anomalous", type="crack", note="left")
    assert answer.status_code == 200, answer.text
    assert answer.json()["mask"] is True
    np.testing.assert_array_equal(read_mask(results / "review/masks/anna/03.png.png"), mask)
    body = gzip.decompress(client.http.get("/mask/3?reviewer=anna").content)
    np.testing.assert_array_equal(np.frombuffer(body, np.uint8).reshape(48, 64) != 0, mask)
    found = client.json("/api/decisions")
    assert found["last"] == 1
    assert found["rows"][0][1:8] == [3, "anna", "anomalous", "crack", "left", True, False]
    client.close()
    text = (results / "review/labels.csv").read_text()
    assert "03.png,,1,crack,masks/anna/03.png.png" in text


def test_a_decision_without_a_mask_leaves_it(client: Client):
    mask = np.ones((48, 64), bool)
    client.decide(3, mask, verdict="anomalous")
    client.decide(3, verdict="anomalous", type="scratch")
    assert client.review.mask(3, "anna").all()
    client.decide(3, np.zeros((48, 64), bool), verdict="anomalous")
    assert client.http.get("/mask/3?reviewer=anna").status_code == 404


def test_what_is_no_decision(client: Client):
    assert client.decide(3, verdict="perhaps").status_code == 400
    assert client.decide(99).status_code == 400
    assert client.decide(3, np.ones((5, 5), bool)).status_code == 400
    assert client.http.post("/api/decide/3", content=b"[1]", headers=OWN).status_code == 400
    assert client.http.post("/api/decide/3", content=b"\xff\n", headers=OWN).status_code == 400
    head = b'{"verdict":"normal","reviewer":"a","mask":true}\n'
    assert client.http.post("/api/decide/3", content=head + b"not gzip", headers=OWN).status_code == 400
    bomb = head + gzip.compress(b"\0" * 2**26)
    assert client.http.post("/api/decide/3", content=bomb, headers=OWN).status_code == 400
    assert client.review.store.after() == []


def test_two_reviewers(client: Client):
    for image in range(8):
        client.decide(image, verdict="anomalous" if image < 4 else "normal")
        client.decide(image, verdict="anomalous" if image in (0, 1, 2, 7) else "normal", reviewer="ben")
    for reviewer, columns in (("anna", slice(0, 32)), ("ben", slice(16, 48))):
        mask = np.zeros((48, 64), bool)
        mask[:, columns] = True
        client.decide(0, mask, verdict="anomalous", reviewer=reviewer)
    [pair] = client.json("/api/agreement")["pairs"]
    assert (pair["first"], pair["second"], pair["images"]) == ("anna", "ben", 8)
    assert pair["counts"] == [[3, 1, 0], [1, 3, 0], [0, 0, 0]]
    assert pair["kappa"] == pytest.approx(0.5)
    assert pair["apart"] == [3, 7]
    assert pair["masks"] == [{"image": 0, "dice": 0.5}]


def test_kappa_and_dice():
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    a = rng.integers(0, 3, 200)
    b = np.where(rng.random(200) < 0.7, a, rng.integers(0, 3, 200))
    counts = [[int(((a == x) & (b == y)).sum()) for y in range(3)] for x in range(3)]
    assert kappa(counts) == pytest.approx(cohen_kappa_score(a, b))
    assert np.isnan(kappa([[5, 0], [0, 0]]))
    assert dice(np.array([True, True]), np.array([True, False])) == pytest.approx(2 / 3)
    assert dice(np.array([True]), np.array([True, False])) == 0


def test_informative_order_and_estimates(client: Client, results: Path):
    """The order is that of the draws, and estimates come from a prefix of them alone."""
    order = client.json("/api/order")["order"]
    assert len(order) == len(set(order))
    assert client.json("/api/estimates") == {"reason": "0 of the first draws are reviewed; estimates start at 10."}
    truth = [int(image % 3 == 0) for image in range(30)]
    for image in order[1:]:  # all but the first: no prefix
        client.decide(image, verdict="anomalous" if truth[image] else "normal")
    assert "reason" in client.json("/api/estimates")
    client.decide(order[0], verdict="anomalous" if truth[order[0]] else "normal")
    found = client.json("/api/estimates")
    flagged = client.review.read.flagged == 1
    assert found["images"] == 30
    assert found["precision"]["value"] == pytest.approx(np.array(truth)[flagged].mean(), abs=0.1)
    assert found["recall"]["low"] <= flagged[np.array(truth) == 1].mean() <= found["recall"]["high"]
    first = (results / "review/sampling.csv").read_bytes()
    client.close()
    again = Client([results])
    assert again.json("/api/order")["order"] == order
    assert (results / "review/sampling.csv").read_bytes() == first
    again.close()


def test_several_results(made: Path, results: Path, copy_of: Callable[[Path], Path]):
    other = copy_of(made / "results")
    text = (other / "scores.csv").read_text().splitlines()
    (other / "scores.csv").write_text("\n".join([text[0], *reversed(text[1:])]) + "\n")
    client = Client([results, other])
    rows = client.json("/api/rows")
    assert rows["others"] == [rows["score"]]
    assert max(rows["disagreement"]) == 0
    np.testing.assert_array_equal(client.array("/image/4/map?result=1"), client.array("/image/4/map"))
    client.close()


def test_images_that_moved_away(results: Path):
    """The page says so and shows the map."""
    words = json.loads((results / "run.json").read_text())
    words["data"]["spec"] = words["data"]["base"] = "/nowhere"
    (results / "run.json").write_text(json.dumps(words))
    client = Client([results])
    answer = client.http.get("/image/3/input")
    assert answer.status_code == 404
    assert "is not there" in answer.json()["error"]
    assert client.array("/image/3/map").shape == (48, 64)
    assert client.json("/api/facts")["inputs"] is False
    assert client.http.get("/thumb/3").status_code == 200
    assert client.decide(3).status_code == 200
    client.close()


def test_volumes_along_the_patients_axes(volumes: Path, copy_of: Callable[[Path], Path]):
    """All orientations of one head are sent as the same array; a mask goes to the voxel at the same millimetres."""
    import nibabel

    client = Client([copy_of(volumes / "results")])
    arrays: dict[str, Any] = {}
    for i, path in enumerate(client.review.read.paths):
        facts = client.json(f"/about/{i}")
        assert facts["volume"] is True
        assert facts["size"] == list(client.review.spatial(i))
        assert facts["peak"] == [5, 8, 12]
        body = client.http.get(f"/volume/{i}/input.nii.gz").content
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(body))
        arrays[path] = (np.asarray(image.dataobj), image.affine)
        mask = np.zeros(facts["size"], bool)
        mask[5, 8, 12] = True
        assert client.decide(i, mask, verdict="anomalous").status_code == 200
        written = nibabel.load(client.review.folder / f"masks/anna/{path}")
        source = nibabel.load(volumes / "data" / path)
        assert written.shape == source.shape
        np.testing.assert_allclose(written.affine, source.affine, atol=1e-4)
        [voxel] = np.argwhere(np.asarray(written.dataobj))
        sent = image.affine @ [12, 8, 5, 1]
        np.testing.assert_allclose(written.affine @ [*voxel, 1], sent, atol=1e-3)
        assert np.asarray(source.dataobj)[tuple(voxel)] == arrays[path][0][12, 8, 5]
    for code in ("lps", "lpi", "pir"):
        np.testing.assert_array_equal(arrays[f"{code}.nii.gz"][0], arrays["ras.nii.gz"][0])
        np.testing.assert_allclose(arrays[f"{code}.nii.gz"][1], arrays["ras.nii.gz"][1], atol=1e-4)
    client.close()


def test_slides(slide_results: Path, copy_of: Callable[[Path], Path]):
    from PIL import Image

    client = Client([copy_of(slide_results / "results")])
    assert client.json("/api/facts")["kind"] == "slide"
    facts = client.json("/slide/0")
    assert (facts["width"], facts["height"]) == (1024, 768)
    left, top = np.min(facts["regions"][0]["ring"], 0)
    right, bottom = np.max(facts["regions"][0]["ring"], 0)
    assert left <= 520 <= 632 <= right
    assert top <= 264 <= 376 <= bottom
    tile = Image.open(io.BytesIO(client.http.get("/slide/0/0/2/1.jpg").content))
    assert tile.size == (256, 256)
    np.testing.assert_allclose(np.asarray(tile)[60, 60], (40, 60, 160), atol=12)
    assert Image.open(io.BytesIO(client.http.get("/slide/0/1/1/1.jpg").content)).size == (256, 128)
    assert client.http.get("/slide/0/0/9/1.jpg").status_code == 404
    assert Image.open(io.BytesIO(client.http.get("/slide/0/heat.png").content)).mode == "RGBA"
    assert client.decide(0, verdict="anomalous").status_code == 200
    client.close()
    assert "odd.tif" in (client.review.folder / "labels.csv").read_text()


# -- whom


def test_only_with_the_token(results: Path):
    client = Client([results])
    other_client = TestClient(client.app, base_url=f"http://{HOST}", follow_redirects=False)
    for address in ("/", "/api/rows", "/image/0/input", "/thumb/0", "/static/main.js", "/api/facts"):
        assert other_client.get(address).status_code == 403
    assert other_client.get("/?token=wrong").status_code == 403
    assert other_client.post("/api/decide/0", content=b"{}", headers=OWN).status_code == 403
    cookie = client.http.get(f"/?token={TOKEN}").headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    client.close()


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8417", "127.0.0.1:80", "127.0.0.1", "localhost:84170", ""]
)
def test_only_under_its_own_name(client: Client, host: str):
    """A page of another site whose name was made to point here (DNS rebinding) sends its own name."""
    answer = client.http.get("/api/rows", headers={"host": host})
    assert answer.status_code == 421
    assert client.http.get(f"/?token={TOKEN}", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {MARK: "1", "origin": "http://evil.example"},
        {MARK: "1", "origin": "null"},
        {MARK: "1", "origin": "http://127.0.0.1:9999"},
        {MARK: "1", "origin": f"http://{HOST}", "sec-fetch-site": "cross-site"},
        {MARK: "1", "origin": f"http://{HOST}", "sec-fetch-site": "same-site"},
        {"origin": f"http://{HOST}", "sec-fetch-site": "same-origin"},
    ],
)
def test_only_its_own_page_writes(client: Client, headers: dict[str, str]):
    body = b'{"verdict":"normal","reviewer":"x"}\n'
    assert client.http.post("/api/decide/0", content=body, headers=headers).status_code == 403
    assert client.review.store.after() == []


def test_other_methods_and_large_bodies(client: Client):
    assert client.http.put("/api/decide/0", headers=OWN).status_code == 405
    assert client.http.delete("/api/decisions", headers=OWN).status_code == 405
    assert client.http.get("/api/decide/0").status_code == 405
    assert (
        client.http.post("/api/decide/0", content=b"", headers={**OWN, "content-length": str(2**30)}).status_code == 413
    )
    long = json.dumps({"verdict": "normal", "reviewer": "x", "note": "n" * 2**17}).encode() + b"\n"
    assert client.http.post("/api/decide/0", content=long, headers=OWN).status_code == 400

    def chunks() -> Iterator[bytes]:  # without a length
        yield b"{}"

    assert client.http.post("/api/decide/0", content=chunks(), headers=OWN).status_code == 413


@pytest.mark.parametrize(
    "address",
    [
        "/static/../session.py",
        "/static/..%2f..%2fsession.py",
        "/static/%2e%2e/server.py",
        "/static/%2fetc%2fpasswd",
        "/static//etc/passwd",
        "/static/..%5cserver.py",
        "/static/main.js%00",
        "/../../etc/passwd",
        "/image/0/..%2f..%2frun.json",
        "/image/0/%2fetc%2fpasswd",
        "/image/-1/input",
        "/image/999/input",
        "/image/0/extra_maps",
        "/volume/0/..%2f..%2fscores.csv.nii.gz",
        "/mask/0?reviewer=..%2f..",
        "/thumb/../../run.json",
        "/slide/0/0/0/0.jpg",
    ],
)
def test_no_path_leads_out(client: Client, address: str):
    answer = client.http.get(address)
    assert answer.status_code in (400, 404), (address, answer.status_code)
    assert "root:" not in answer.text
    assert "import" not in answer.text


def test_links_out_of_the_folder_are_not_followed(client: Client, results: Path, tmp_path: Path):
    secret = tmp_path / "secret.npy"
    np.save(secret, np.ones((48, 64), np.float32))
    (results / "maps/05.png.npy").unlink()
    (results / "maps/05.png.npy").symlink_to(secret)
    assert client.http.get("/image/5/map").status_code == 404


def test_names_in_scores_csv_cannot_lead_out(results: Path, tmp_path: Path):
    np.save(tmp_path / "x.npy", np.ones((4, 4), np.float32))
    text = (results / "scores.csv").read_text().replace("00.png,00.png", "../../x,00.png", 1)
    (results / "scores.csv").write_text(
        text.replace(",00.png\n", ",../../x\n", 1).replace(",00.png\r\n", ",../../x\r\n", 1)
    )
    client = Client([results])
    assert client.http.get("/image/0/map").status_code == 404
    mask = np.ones((48, 64), bool)
    answer = client.decide(0, mask, verdict="anomalous")
    assert answer.status_code == 400
    assert not list(tmp_path.glob("*.png"))
    client.close()


def test_every_answer_has_the_policy(client: Client):
    for address in ("/", "/static/main.js", "/api/rows", "/image/0/input", "/nothing", "/thumb/0"):
        answer = client.http.get(address)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, (address, name)
    policy = HEADERS["content-security-policy"]
    assert "unsafe-inline" not in policy
    assert "unsafe-eval" not in policy
    page = client.http.get("/").text
    assert " style=" not in page
    assert " onclick=" not in page
    assert "<script>" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_read_only(results: Path):
    Client([results]).close()
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    client = Client([results], read_only=True)
    assert client.decide(0).status_code == 403
    client.json("/api/order")
    client.close()
    after = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file() and "-shm" not in path.name}
    assert {path: time for path, time in before.items() if path in after} == {
        p: t for p, t in after.items() if p in before
    }
    assert not {path.name for path in set(after) - set(before)} - {"review.sqlite-wal"}


def test_blind(results: Path):
    """Nothing of the scores, the labels, the names or other reviewers reaches the page."""
    first = Client([results])
    first.decide(0, verdict="anomalous", type="crack", reviewer="ben")
    first.close()
    client = Client([results], blind=True)
    rows = client.json("/api/rows")
    assert set(rows) == {"path"}
    assert rows["path"][0] == "image 1"
    facts = client.json("/api/facts")
    assert not any(facts[name] for name in ("threshold", "pixel_threshold", "map_range", "methods", "informative"))
    assert client.http.get("/image/0/map").status_code == 404
    assert client.http.get("/api/order").status_code == 404
    assert client.json("/api/estimates") is None
    assert client.json("/api/agreement") == {}
    assert client.json("/about/0")["kinds"] == ["input"]
    assert client.json("/api/decisions?reviewer=anna")["rows"] == []
    client.decide(0, verdict="normal")
    assert [one.blind for one in client.review.store.current()] == [False, True]
    client.close()


def test_identifiers_of_dicom_stay(
    dicom: Callable[[Path], tuple[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Neither the name of the patient nor any other text of the file is in what the page gets of an image."""
    caplog.set_level(logging.DEBUG)
    series, study = dicom(tmp_path)
    client = Client([tmp_path / "results"])
    bodies = []
    for address in ("/about/0", "/volume/0/input.nii.gz", "/volume/0/map.nii.gz", "/thumb/0"):
        answer = client.http.get(address)
        assert answer.status_code == 200, (address, answer.text)
        bodies.append(gzip.decompress(answer.content) if address.endswith(".gz") else answer.content)
    for secret in (b"DOE", b"JANE", b"4711", b"19700101", b"Elsewhere", series.encode(), study.encode()):
        assert not any(secret in body for body in bodies), secret
    assert "DOE" not in caplog.text
    client.close()


def test_a_full_disk_is_said(client: Client, monkeypatch: pytest.MonkeyPatch):
    from normalcy.errors import WriteError

    def full(*_: Any) -> None:
        raise WriteError("review.sqlite: cannot be written (No space left on device); free some space.")

    monkeypatch.setattr(client.review.store, "add", full)
    answer = client.decide(0)
    assert answer.status_code in (400, 507)
    assert "No space left" in answer.json()["error"]


def test_starts_fast_on_a_hundred_thousand_rows(tmp_path: Path):
    """By processor time, since the machine of a test may be busy: reading the table, the first answers."""
    import subprocess
    import sys

    from normalcy.results.run import COLUMNS, Model, Run, Scored, Thresholds
    from normalcy.results.schema import dumps

    count = 100_000
    scores = np.random.default_rng(0).normal(size=count)
    lines = [",".join(COLUMNS)]
    lines += [f"c/{i}.png,c/{i}.png,{s!r},0.5,{int(s > 2)},,,,c/{i}.png" for i, s in enumerate(scores.tolist())]
    (tmp_path / "scores.csv").write_text("\n".join(lines) + "\n")
    limits = Thresholds(count=199, threshold=2.0, rule="false_alarms", false_alarms=0.05)
    (tmp_path / "run.json").write_bytes(dumps(Run(Model("pca"), Scored("line", count=count), limits)))
    code = f"""
import time
from pathlib import Path
import normalcy.cli.app, normalcy.cli.review, uvicorn
from normalcy.review.session import Review
from normalcy.review.server import make_app
from normalcy.review.queue import Asked
review = Review([Path({str(tmp_path)!r})])
app = make_app(review, token="t", hosts={{"h:1"}}, reviewer="a")
review.facts()
assert len(review.rows(review.queues.images(review.queues.open(Asked())["queue"], 0, 1000))["path"]) == 1000
assert review.queues.flagged(1.0)[0] > 10**4
assert sum(review.queues.histogram(-3, 3, 50)) == 10**5
app.close()
print(time.process_time())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2, done.stdout
