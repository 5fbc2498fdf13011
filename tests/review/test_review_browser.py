"""The page in a real browser: the system's Chromium, driven by Playwright."""

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normalcy.data.images import read_mask
from normalcy.review.session import Review
from normalcy.review.store import Store

playwright = pytest.importorskip("playwright.sync_api")
uvicorn = pytest.importorskip("uvicorn")
STATIC = Path(sys.modules[Review.__module__].__file__ or "").parent / "static"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--enable-unsafe-swiftshader"]
"""Drawing by the processor, which is faster than a graphics card that is emulated; WebGL is emulated all the same."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        sentence = "the review page is tested in Chromium, which is not installed: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def serving(folders: list[Path], **options: Any) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    from normalcy.review.server import make_app

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    port = listening.getsockname()[1]
    review = Review(folders, **options)
    app = make_app(review, token="token", hosts={f"127.0.0.1:{port}"}, reviewer="anna")
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/?token=token"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        app.close()
        review.store.close()


class Faults(list[str]):
    """What a page complained about."""

    def watch(self, page: Any) -> None:
        page.on("pageerror", lambda error: self.append(f"error: {error}"))
        page.on("console", lambda m: self.append(f"{m.type}: {m.text}") if m.type == "error" else None)


Open = Callable[..., Any]


@pytest.fixture
def opened(chromium: Any) -> Iterator[Open]:
    """Opens a page on an address; every page must have stayed without an error."""
    faults, contexts = Faults(), []

    def open_page(address: str, width: int = 1280, height: int = 800, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        faults.watch(page)
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    expected = ("Failed to load resource: the server responded with a status of 404", "ERR_CONNECTION_REFUSED")
    assert not [fault for fault in faults if not any(text in fault for text in expected)]


def current(page: Any) -> int:
    return int(page.get_attribute("body", "data-current"))


def settled(page: Any) -> None:
    """Nothing is being opened or written."""
    page.wait_for_selector("body:not([aria-busy=true])")


def press(page: Any, *keys: str) -> None:
    """Keys that each go on to another image."""
    for key in keys:
        settled(page)
        before = current(page)
        page.keyboard.press(key)
        page.wait_for_function("before => Number(document.body.dataset.current) !== before", arg=before)
    settled(page)


PROGRESS = "n => document.getElementById('progress-text').textContent.startsWith(`${n} of`)"


def decided(results: Path) -> dict[str, str]:
    store = Store(results / "review", read_only=True)
    found = {one.image: one.verdict for one in store.current()}
    store.close()
    return found


def test_twenty_images_by_keys(results: Path, opened: Open):
    with serving([results]) as address:
        page = opened(address)
        order = np.argsort(-Review([results], read_only=True).read.scores, kind="stable")
        assert current(page) == order[0]
        press(page, *"nnaannnuna")
        page.keyboard.press("t")
        page.keyboard.type("a scratch")
        press(page, "Enter")
        press(page, *"11")
        page.keyboard.press("w")
        page.keyboard.type("dust on the lens")
        page.keyboard.press("Escape")
        press(page, *"nnnnnnn")
        page.wait_for_function("() => document.getElementById('progress-text').textContent === '20 of 30 reviewed'")
        press(page, "Backspace")  # the last one again
        assert current(page) == order[19]
        press(page, "u")
        press(page, "ArrowLeft", "k", "ArrowRight", "j")
        store = Store(results / "review", read_only=True)
        found = {one.image: one for one in store.current()}
        names = [f"{k:02d}.png" for k in order[:20]]
        assert set(found) == set(names)
        verdicts = "".join(found[name].verdict[0] for name in names)
        assert verdicts == "nnaannnuna" + "aaa" + "nnnnnn" + "u"
        assert [found[name].type for name in names[10:13]] == ["a scratch"] * 3
        assert found[names[13]].note == "dust on the lens"
        assert page.locator("#types button").all_inner_texts() == ["a scratch 1"]
        store.close()
    rows = list(csv.DictReader((results / "review/labels.csv").open(newline="")))
    assert len(rows) == 20


def test_marks_with_undo_and_redo(results: Path, opened: Open):
    """What is drawn is what is saved, at the pixels under the pointer, and is there again after loading."""
    with serving([results]) as address:
        page = opened(f"{address}#4")
        page.goto(address.replace("?token=token", "#4"))
        page.reload()
        page.wait_for_selector("body[data-ready]")
        assert current(page) == 3
        box = page.locator("#canvas").bounding_box()
        scale = min((box["width"] - 68) / 64, (box["height"] - 16) / 48)

        def at(x: float, y: float) -> tuple[float, float]:
            left = box["x"] + 52 + (box["width"] - 52) / 2 - 32 * scale
            return left + x * scale, box["y"] + box["height"] / 2 + (y - 24) * scale

        def drag(*points: tuple[float, float]) -> None:
            page.mouse.move(*at(*points[0]))
            page.mouse.down()
            for point in points[1:]:
                page.mouse.move(*at(*point), steps=4)
            page.mouse.up()

        def enabled(name: str) -> bool:
            return bool(page.locator(f"#tools button[aria-label='{name}']").is_enabled())

        page.keyboard.press("x")
        drag((10, 10), (20, 30))
        page.keyboard.press("l")
        for point in ((30, 10), (50, 10), (50, 20), (30, 20)):
            page.mouse.click(*at(*point))
        page.keyboard.press("Enter")
        page.keyboard.press("e")
        page.keyboard.press("x")
        drag((12, 12), (15, 15))
        page.keyboard.press("e")
        page.keyboard.press("p")
        drag((40, 40), (45, 40))
        assert enabled("Undo")
        page.keyboard.press("z")  # the brush
        page.keyboard.press("z")  # the hole
        page.keyboard.press("Shift+Z")
        assert enabled("Redo")
        expected = np.zeros((48, 64), bool)
        expected[10:30, 10:20] = expected[10:20, 30:50] = True
        expected[12:15, 12:15] = False
        press(page, "a")
        np.testing.assert_array_equal(read_mask(results / "review/masks/anna/03.png.png"), expected)
        page.goto(address.replace("?token=token", "#4"))
        page.reload()
        page.wait_for_selector("body[data-ready]")
        page.keyboard.press("p")
        drag((0, 47), (0.5, 47.5))
        press(page, "ArrowRight")  # marks are saved when going on, too
        again = read_mask(results / "review/masks/anna/03.png.png")
        assert again[expected].all()
        assert again[47, 0]


def test_fill_from_the_map(results: Path, opened: Open):
    """The region above the pixel threshold that was clicked into."""
    with serving([results]) as address:
        page = opened(address)
        image = current(page)
        page.wait_for_selector("#about tbody tr")
        rows = page.locator("#about tbody tr").all_inner_texts()
        page.keyboard.press("f")
        area, peak = page.evaluate("""() => {
            const rows = [...document.querySelectorAll('#about tbody tr')].map(r => [...r.cells].map(c => c.textContent));
            return [Number(rows[0][1].replace(/,/g, '')), Number(rows[0][2])];
        }""")
        values = np.load(results / f"maps/{image:02d}.png.npy")
        row, column = np.unravel_index(values.argmax(), values.shape)
        assert peak == pytest.approx(values.max(), rel=1e-3)
        box = page.locator("#canvas").bounding_box()
        scale = min((box["width"] - 68) / 64, (box["height"] - 16) / 48)
        x = box["x"] + 52 + (box["width"] - 52) / 2 + (column + 0.5 - 32) * scale
        page.mouse.click(x, box["y"] + box["height"] / 2 + (row + 0.5 - 24) * scale)
        press(page, "a")
        mask = read_mask(results / f"review/masks/anna/{image:02d}.png.png")
        assert mask.sum() == area, rows
        assert mask[row, column]


def test_killed_and_resumed(results: Path, opened: Open):
    """kill -9 between two decisions: nothing is lost, and a new server goes on where the old one was."""

    def start() -> tuple[subprocess.Popen[str], str]:
        words = [sys.executable, "-m", "normalcy", "review", str(results), "--no-browser", "--reviewer", "anna"]
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        return process, found[0]

    process, address = start()
    page = opened(address)
    press(page, *"nanan")
    at = current(page)
    process.send_signal(signal.SIGKILL)
    process.wait()
    page.keyboard.press("n")
    page.wait_for_selector("#toast.bad")
    assert "Not saved" in page.inner_text("#toast")
    assert current(page) == at
    page.close()
    process, address = start()
    try:
        page = opened(address)
        assert current(page) == at
        press(page, "n")
        assert sorted(decided(results).values()) == ["anomalous"] * 2 + ["normal"] * 4
    finally:
        process.terminate()
        assert process.wait(timeout=15) == 0
    assert len((results / "review/labels.csv").read_text().splitlines()) == 7


def test_two_reviewers_and_a_blind_opinion(results: Path, opened: Open):
    with serving([results]) as address:
        anna = opened(address)
        press(anna, *"aanna")
        ben = opened(address)
        ben.click("#reviewer")
        ben.fill("#ask-name", "ben")
        ben.check("#ask-blind")
        ben.click("#ask-ok")
        ben.wait_for_selector("text=ben (blind)")
        assert ben.locator("#threshold").is_hidden()
        assert ben.locator("#views button").all_inner_texts() == ["Input", "Blink", "Fit"]
        assert "Score" not in ben.inner_text("#about")
        assert ben.locator(".verdict-mark").count() == 0
        ben.click("#reviewer")
        ben.uncheck("#ask-blind")
        ben.click("#ask-ok")
        ben.wait_for_function("() => document.getElementById('reviewer-name').textContent === 'ben'")
        ben.select_option("#order", "score")
        settled(ben)
        ben.locator(".item").first.click()
        ben.wait_for_selector(".verdict-mark.other")
        ben.wait_for_function("() => !document.getElementById('list').scrollTop")
        ben.evaluate("document.getElementById('canvas').focus()")
        press(ben, *"ananu")
        store = Store(results / "review", read_only=True)
        assert [one.reviewer for one in store.current()] == ["anna"] * 5 + ["ben"] * 5
        store.close()
        ben.keyboard.press("g")
        ben.wait_for_selector("#agreement .pair")
        text = ben.inner_text("#agreement")
        assert "anna and ben" in text
        assert "5\nimages both decided" in text
        ben.locator("#agreement .links button").first.click()
        ben.wait_for_selector("#review:not([hidden])")


def test_threshold_is_dragged(results: Path, opened: Open):
    with serving([results]) as address:
        page = opened(address)
        press(page, *"aaannn")
        text = page.inner_text("#statistics")
        before = int(re.search(r"Flagged\s+(\d+) of 30", text)[1])
        box = page.locator("#histogram").bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + 3, box["y"] + 40, steps=5)
        page.mouse.up()
        settled(page)
        text = page.inner_text("#statistics")
        assert re.search(r"Flagged\s+30 of 30", text)
        assert re.search(r"False alarms\s+3 of 3\s+43.9 % – 100 %", text), text
        assert re.search(r"Detections\s+3 of 3", text)
        assert re.search(r"Guaranteed\s+≤ 100 %", text), text
        page.keyboard.press("End")
        settled(page)
        assert re.search(r"Flagged\s+0 of 30", page.inner_text("#statistics"))
        page.select_option("#filter", "missed")
        settled(page)
        assert page.inner_text("#queue-count") == "3 of 30 images"
        page.click("#threshold-reset")
        settled(page)
        assert re.search(rf"Flagged\s+{before} of 30", page.inner_text("#statistics"))


def test_volumes_in_every_orientation(volumes: Path, copy_of: Callable[[Path], Path], opened: Open):
    """The voxel that is marked is, in the mask's file, at the millimetres that the page shows."""
    nibabel = pytest.importorskip("nibabel")
    if not (STATIC / "vendor/niivue.js").exists():
        pytest.fail("niivue.js is missing: run 'python hatch_build.py'")
    results = copy_of(volumes / "results")
    with serving([results]) as address:
        page = opened(address, width=800, height=560)
        names = Review([results], read_only=True).read.paths
        for number in range(len(names)):
            image = current(page)
            page.wait_for_selector(f"#gl[data-open='{image}']", state="attached")
            assert "x 12  y 8  z 5" in page.inner_text("#readout")  # the peak of the map
            if number == 0:
                page.click("text=Axial")
                page.keyboard.press("p")
                for _ in range(2):
                    page.keyboard.press("[")
            box = page.locator("#gl").bounding_box()
            x, y = box["x"] + 0.55 * box["width"], box["y"] + 0.42 * box["height"]
            page.mouse.move(x, y)
            page.mouse.down()
            page.mouse.up()
            page.wait_for_selector("#tools button[aria-label='Undo']:enabled")
            shown = page.inner_text("#readout")
            mm = [float(n) for n in re.search(r"z \d+ +(-?[\d.]+) (-?[\d.]+) (-?[\d.]+) mm", shown).groups()]
            if number + 1 < len(names):
                press(page, "a")
            else:
                page.keyboard.press("a")
                page.wait_for_function(PROGRESS, arg=len(names))
            written = nibabel.load(results / f"review/masks/anna/{names[image]}")
            source = nibabel.load(volumes / "data" / names[image])
            np.testing.assert_allclose(written.affine, source.affine, atol=1e-4)
            assert written.shape == source.shape
            voxels = np.argwhere(np.asarray(written.dataobj))
            assert len(voxels) == 1, (names[image], voxels)
            np.testing.assert_allclose((written.affine @ [*voxels[0], 1])[:3], mm, atol=0.06, err_msg=names[image])


def test_marks_in_a_volume_are_undone(volumes: Path, copy_of: Callable[[Path], Path], opened: Open):
    nibabel = pytest.importorskip("nibabel")
    results = copy_of(volumes / "results")
    with serving([results]) as address:
        page = opened(address, width=800, height=560)
        image = current(page)
        page.wait_for_selector(f"#gl[data-open='{image}']", state="attached")
        page.click("text=Axial")
        box = page.locator("#gl").bounding_box()
        x, y = box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"]
        for key, shift in (("p", -40), ("x", 60)):
            page.keyboard.press(key)
            page.mouse.move(x + shift, y)
            page.mouse.down()
            page.mouse.move(x + shift + 40, y + 40, steps=5)
            page.mouse.up()
        page.keyboard.press("z")
        page.keyboard.press("Shift+Z")
        page.keyboard.press("z")
        page.keyboard.press("n")
        page.wait_for_function(PROGRESS, arg=1)
        name = Review([results], read_only=True).read.paths[image]
        first = np.asarray(nibabel.load(results / f"review/masks/anna/{name}").dataobj).sum()
        assert first > 5


def test_a_slide(slide_results: Path, copy_of: Callable[[Path], Path], opened: Open):
    if not (STATIC / "vendor/openseadragon.js").exists():
        pytest.fail("openseadragon.js is missing: run 'python hatch_build.py'")
    results = copy_of(slide_results / "results")
    with serving([results]) as address:
        page = opened(address)
        page.wait_for_selector("#slide[data-open='0']", state="attached")
        page.wait_for_function("() => document.querySelectorAll('#slide svg polygon').length > 0")
        wide = page.evaluate("document.querySelector('#slide svg').getBoundingClientRect().width")
        page.locator("#about tbody tr").first.click()
        page.wait_for_function(
            "w => document.querySelector('#slide svg').getBoundingClientRect().width > 1.5 * w", arg=wide
        )
        page.keyboard.press("m")
        page.keyboard.press("i")
        page.keyboard.press("a")
        page.wait_for_selector(".verdict-mark.anomalous")
    assert decided(results) == {"odd": "anomalous"}


def test_without_the_viewers(
    volumes: Path, copy_of: Callable[[Path], Path], opened: Open, monkeypatch: pytest.MonkeyPatch
):
    """One sentence, and decisions are possible all the same."""
    from normalcy.review import server

    files = {name: file for name, file in server._files().items() if "vendor" not in name}
    monkeypatch.setattr(server, "_files", lambda: files)
    results = copy_of(volumes / "results")
    with serving([results]) as address:
        page = opened(address)
        assert "niivue.js is missing" in page.inner_text("#empty")
        press(page, "n")
    assert len(decided(results)) == 1


def test_a_hundred_thousand_rows(tmp_path: Path, opened: Open):
    from normalcy.results.run import COLUMNS, Model, Run, Scored, Thresholds
    from normalcy.results.schema import dumps

    count = 100_000
    scores = np.random.default_rng(0).normal(size=count)
    lines = [",".join(COLUMNS)]
    lines += [f"c/{i}.png,,{s!r},{(i % 99 + 1) / 100},{int(s > 2)},,,,c/{i}.png" for i, s in enumerate(scores.tolist())]
    (tmp_path / "scores.csv").write_text("\n".join(lines) + "\n")
    limits = Thresholds(count=199, threshold=2.0, rule="false_alarms", false_alarms=0.05)
    (tmp_path / "run.json").write_bytes(dumps(Run(Model("pca"), Scored("line", count=count), limits)))
    with serving([tmp_path]) as address:
        page = opened(address)
        assert page.inner_text("#queue-count") == "100,000 images"
        assert page.locator(".item").count() < 60
        assert current(page) == scores.argmax()
        page.evaluate("document.getElementById('list').scrollTop = 1e9")
        last = int(scores.argmin())
        page.wait_for_selector(f"#item-{last}")
        assert page.locator(".item").count() < 60
        page.fill("#search", "c/777")
        page.wait_for_function("() => document.getElementById('queue-count').textContent === '111 of 100,000 images'")
        page.fill("#search", "")
        page.wait_for_function("() => document.getElementById('queue-count').textContent === '100,000 images'")
        page.evaluate("document.getElementById('canvas').focus()")
        started = time.monotonic()
        press(page, *"nnnnn")
        assert time.monotonic() - started < 5


def test_a_list_taller_than_an_element_can_be(tmp_path: Path, opened: Open):
    """Every image is reached by scrolling and by keys, and the current one is in sight."""
    from normalcy.results.run import COLUMNS, Model, Run, Scored
    from normalcy.results.schema import dumps

    count = 200_000
    scores = np.random.default_rng(0).normal(size=count)
    order = np.argsort(-scores, kind="stable")
    lines = [",".join(COLUMNS), *(f"c/{i}.png,,{s!r},,,,,,c/{i}.png" for i, s in enumerate(scores.tolist()))]
    (tmp_path / "scores.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "run.json").write_bytes(dumps(Run(Model("pca"), Scored("line", count=count))))

    def in_sight(image: int) -> bool:
        page.wait_for_selector(f"#item-{image}[aria-selected=true]")
        box, item = page.locator("#list").bounding_box(), page.locator(f"#item-{image}").bounding_box()
        return bool(box["y"] <= item["y"] and item["y"] + item["height"] <= box["y"] + box["height"])

    with serving([tmp_path]) as address:
        page = opened(address)
        assert page.evaluate("document.getElementById('list-space').clientHeight") < 10**7 < 64 * count
        page.evaluate("document.getElementById('list').scrollTop = 1e9")
        page.wait_for_selector(f"#item-{order[-1]}")
        page.locator(f"#item-{order[-2]}").click()
        page.wait_for_function("image => document.body.dataset.current === String(image)", arg=int(order[-2]))
        for back in (3, 4, 5, 6):
            press(page, "ArrowLeft")
            assert current(page) == order[-back]
            assert in_sight(order[-back])
        page.goto(address.replace("?token=token", f"#{order[count // 2] + 1}"))
        page.reload()
        page.wait_for_selector("body[data-ready]")
        assert in_sight(order[count // 2])
        for step in range(1, 15):  # beyond what was in sight
            press(page, "ArrowRight")
            assert in_sight(order[count // 2 + step])


def test_a_phone(results: Path, opened: Open):
    with serving([results]) as address:
        page = opened(address, width=375, height=740, has_touch=True, is_mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        before = current(page)
        page.tap(".verdict.normal")
        page.wait_for_function("b => Number(document.body.dataset.current) !== b", arg=before)
        assert page.locator("#queue").is_hidden()
        page.tap("#queue-toggle")
        page.wait_for_selector("#queue.open .item")
        page.locator(".item").nth(3).tap()
        page.wait_for_selector("#queue", state="hidden")
        for selector in (".verdict", "#queue-toggle", "#tools button"):
            box = page.locator(selector).first.bounding_box()
            assert box["height"] >= 30, selector
            assert 0 <= box["x"] <= 375, selector
    assert len(decided(results)) == 1


def test_a_volume_on_a_phone(volumes: Path, copy_of: Callable[[Path], Path], opened: Open):
    """Nothing is wider than the screen, so that the verdicts are seen at its lower border."""
    with serving([copy_of(volumes / "results")]) as address:
        page = opened(address, width=375, height=740, has_touch=True, is_mobile=True)
        page.wait_for_selector(f"#gl[data-open='{current(page)}']", state="attached")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        box = page.locator(".verdict.unsure").bounding_box()
        assert box["y"] + box["height"] <= 740
        assert box["x"] + box["width"] <= 375


def test_names_focus_and_keys(results: Path, opened: Open):
    """Everything that can be pressed has a name, the focus is seen, and the page can be used without a mouse."""
    with serving([results]) as address:
        page = opened(address)
        nameless = page.evaluate("""() => [...document.querySelectorAll('button, input, select, textarea, canvas, [tabindex]')]
            .filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.[0]?.textContent.trim() || e.title))
            .map(e => e.outerHTML)""")
        assert nameless == []
        assert (
            page.evaluate("document.querySelectorAll('[style]:not(.item, #list-space, #progress-bar, svg)').length")
            == 0
        )
        page.keyboard.press("Tab")
        seen = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            seen.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none" or page.evaluate("document.activeElement === document.body"), seen
        assert {"search", "order", "filter", "list", "canvas", "note", "histogram"} <= seen, seen
        page.locator("#canvas").focus()
        page.keyboard.press("?")
        assert page.locator("#help").is_visible()
        assert "Shift Z" in page.inner_text("#help-keys")
        page.keyboard.press("Escape")
        views = []
        for key in "imod":
            page.keyboard.press(key)
            views.append(page.locator("#views button[aria-pressed=true]").first.inner_text())
        assert views == ["Input", "Map", "Overlay", "Difference"]
        page.keyboard.press("b")
        assert page.locator("#views button[aria-pressed=true]").last.inner_text() == "Blink"


def test_zoom_stays_and_the_window_is_dragged(results: Path, tmp_path: Path, opened: Open):
    """Of 16 bits: the window is shown, dragging with the right button changes it, and zoom and place stay when going on."""
    import tifffile

    from normalcy.data.open import open_data

    (tmp_path / "deep").mkdir()
    rng = np.random.default_rng(0)
    for k in range(30):
        tifffile.imwrite(tmp_path / f"deep/{k:02d}.png", rng.integers(1000, 9000, (48, 64)).astype(np.uint16))
    with serving([results], data=lambda: open_data(str(tmp_path / "deep"))) as address:
        page = opened(address)
        before = page.inner_text("#window-text")
        assert re.fullmatch(r"1\d\d\d to 89\d\d", before)
        box = page.locator("#canvas").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down(button="right")
        page.mouse.move(x + 80, y + 30, steps=4)
        page.mouse.up(button="right")
        after = page.inner_text("#window-text")
        assert after != before
        page.mouse.wheel(0, -800)
        where = page.inner_text("#readout").split("   ")[0]
        press(page, "ArrowRight")
        page.mouse.move(x + 31, y + 30)
        page.mouse.move(x + 80, y + 30)
        assert page.inner_text("#window-text") == after
        assert page.inner_text("#readout").split("   ")[0] == where
        page.click("#window-reset")
        assert re.fullmatch(r"1\d\d\d to 89\d\d", page.inner_text("#window-text"))


def test_read_only(results: Path, opened: Open):
    with serving([results], read_only=True) as address:
        page = opened(address)
        assert page.locator("#tools").is_hidden()
        assert page.locator(".verdict").first.is_disabled()
        page.keyboard.press("n")
        page.wait_for_selector("text=This review is read-only.")
    assert not (results / "review").exists()
