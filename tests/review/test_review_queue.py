"""The queue that the server makes: orders, filters and searches against the same done one image at a time; pages of many rows."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normalcy.errors import DataError
from normalcy.results import parts
from normalcy.results.predict import finish_scores
from normalcy.results.run import COLUMNS, Model, Run, Scored, Thresholds
from normalcy.results.schema import dumps
from normalcy.results.writer import Writer
from normalcy.review.queue import KEPT, Asked
from normalcy.review.session import Review
from normalcy.review.store import Decision

COUNT = 200


def write_scores(folder: Path, count: int, seed: int = 0, lost: bool = False) -> None:
    """A results folder without maps: scores with ties, of which some are not finite where ``lost``; labels of some."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    with Writer(folder).table("scores.csv", COLUMNS) as add:
        for i in range(count):
            kind = ["", "crack", "Stain"][int(rng.integers(0, 3))]
            score = math.nan if lost and i % 50 == 7 else float(np.round(rng.normal(), 2))
            p = repr(float(rng.integers(1, 100)) / 100)
            label = "" if i % 4 == 0 else int(kind != "")
            add((f"Line/{i:04d}.png", "", repr(score), p, int(score > 1), label, kind, "", f"{i}.png"))
    finish_scores(Writer(folder), count)
    limits = Thresholds(count=99, threshold=1.0, rule="false_alarms", false_alarms=0.05)
    (folder / "run.json").write_bytes(dumps(Run(Model("pca"), Scored("line", count=count), limits)))


@pytest.fixture
def review(tmp_path: Path) -> Any:
    write_scores(tmp_path / "R", COUNT, lost=True)
    found = Review([tmp_path / "R"])
    rng = np.random.default_rng(1)
    for reviewer in ("anna", "ben"):
        for i in rng.choice(COUNT, 80, replace=False).tolist():
            verdict = ["normal", "anomalous", "unsure", ""][int(rng.integers(0, 4))]
            kind = "dent" if verdict == "anomalous" and i % 2 else ""
            note = "Look again" if i % 5 == 0 else ""
            found.store.add(Decision(f"Line/{i:04d}.png", reviewer, verdict, kind, note))
    yield found
    found.store.close()


def all_of(review: Review, asked: Asked) -> list[int]:
    found = review.queues.open(asked)
    images = review.queues.images(found["queue"], 0, 10**6)
    assert found["count"] == len(images) == len(set(images))
    assert found["first"] == (images[0] if images else -1)
    return images


def decided(review: Review) -> dict[int, dict[str, Decision]]:
    found: dict[int, dict[str, Decision]] = {}
    for one in review.store.after():
        found.setdefault(int(one.image[5:9]), {})[one.reviewer] = one
    return found


def test_orders(review: Review):
    scores, p = review.read.scores.tolist(), review.read.p_values.tolist()
    last = [s if math.isfinite(s) else -math.inf for s in scores]
    assert all_of(review, Asked()) == sorted(range(COUNT), key=lambda i: (-last[i], i))
    low = [s if math.isfinite(s) else math.inf for s in scores]
    assert all_of(review, Asked(order="low")) == sorted(range(COUNT), key=lambda i: (low[i], i))
    assert all_of(review, Asked(order="p")) == sorted(range(COUNT), key=lambda i: (p[i], i))
    assert all_of(review, Asked(order="name")) == list(range(COUNT))
    mixed = all_of(review, Asked(order="random"))
    assert sorted(mixed) == list(range(COUNT)) != mixed
    assert all_of(review, Asked(order="random", reviewer="ben")) == mixed
    with pytest.raises(DataError, match="no order"):
        review.queues.open(Asked(order="beauty"))


@pytest.mark.parametrize("threshold", [None, -0.5])
def test_filters(review: Review, threshold: float | None):
    known = decided(review)
    own = {i: of["anna"].verdict for i, of in known.items() if "anna" in of}

    def label(i: int) -> int | None:
        labels = {one.label for one in known.get(i, {}).values()} - {None}
        return labels.pop() if len(labels) == 1 else None

    def flagged(i: int) -> bool:
        return bool(review.read.scores[i] > (1.0 if threshold is None else threshold))

    def differ(i: int) -> bool:
        return len({one.verdict for one in known.get(i, {}).values()} - {""}) > 1

    filters = {
        "all": lambda i: True,
        "unreviewed": lambda i: not own.get(i),
        "reviewed": lambda i: bool(own.get(i)),
        "flagged": flagged,
        "quiet": lambda i: not flagged(i),
        "false": lambda i: flagged(i) and label(i) == 0,
        "missed": lambda i: not flagged(i) and label(i) == 1,
        "anomalous": lambda i: label(i) == 1,
        "normal": lambda i: label(i) == 0,
        "unsure": lambda i: own.get(i) == "unsure",
        "apart": differ,
        "noted": lambda i: any(one.note for one in known.get(i, {}).values()),
        "known": lambda i: review.read.labels[i] == 1,
        "good": lambda i: review.read.labels[i] == 0,
    }
    for name, holds in filters.items():
        expected = [i for i in range(COUNT) if holds(i)]
        assert expected or name == "missed"
        asked = Asked(order="name", filter=name, reviewer="anna", threshold=threshold)
        assert all_of(review, asked) == expected, name
    with pytest.raises(DataError, match="no filter"):
        review.queues.open(Asked(filter="best"))


def test_types_and_words(review: Review):
    known, kinds = decided(review), list(review.read.types)

    def dented(i: int) -> bool:
        return any(one.type == "dent" and one.verdict == "anomalous" for one in known.get(i, {}).values())

    def text(i: int) -> str:
        own = (t for one in known.get(i, {}).values() for t in (one.type, one.note))
        return " ".join([f"Line/{i:04d}.png", *own]).lower()

    found = all_of(review, Asked(order="name", type="Stain"))
    assert found == [i for i in range(COUNT) if kinds[i] == "Stain"]
    assert all_of(review, Asked(order="name", type="dent")) == [i for i in range(COUNT) if dented(i)]
    for words in ("lINE/001", "look 5", "dent png", "nowhere"):
        expected = [i for i in range(COUNT) if all(word in text(i) for word in words.lower().split())]
        assert all_of(review, Asked(order="name", search=words)) == expected, words


def test_places_and_the_next_one(review: Review):
    found = review.queues.open(Asked(reviewer="ben"), current=17)
    images = review.queues.images(found["queue"], 0, COUNT)
    assert found["at"] == review.queues.place(found["queue"], 17) == images.index(17)
    done = {i for i, of in decided(review).items() if "ben" in of and of["ben"].verdict}
    assert found["unreviewed"] == next(i for i in images if i not in done)
    for after in (0, 50, COUNT - 1):
        following = [*images[after + 1 :], *images[:after]]
        expected = next(i for i in following if i not in done)
        assert review.queues.unreviewed(found["queue"], after, "ben") == expected
    review.store.add_all(Decision(f"Line/{i:04d}.png", "ben", "normal") for i in range(COUNT))
    assert review.queues.unreviewed(found["queue"], 3, "ben") == -1
    only = review.queues.open(Asked(search="0017"))
    assert (only["count"], review.queues.place(only["queue"], 18)) == (1, -1)
    for _ in range(KEPT):
        review.queues.open(Asked())
    with pytest.raises(DataError, match="no longer kept"):
        review.queues.images(found["queue"], 0, 1)


def test_thresholds_and_histogram(review: Review):
    scores = review.read.scores
    for value in (-9.0, -0.5, 0.33, 1.0, 9.0):
        flagged, bound = review.queues.flagged(value)
        assert flagged == int((scores > value).sum())
        below = np.flatnonzero(scores <= value)
        if len(below):
            at_bound = review.read.p_values[below[scores[below] == scores[below].max()]]
            assert bound in at_bound
        else:
            assert bound == 1.0
    known = scores[np.isfinite(scores)]
    counts = review.queues.histogram(-1.0, 1.0, 8)
    expected = np.histogram(known.clip(-0.999, 0.999), np.linspace(-1, 1, 9))[0]
    assert counts == expected.tolist()
    ranked = np.sort(known)
    about = review.queues.about_scores()
    assert about == {
        "low": ranked[0], "high": ranked[-1], "median": ranked[len(ranked) // 2], "tail": ranked[int(0.995 * (len(ranked) - 1))],
    }  # fmt: skip


def test_a_blind_opinion_sees_its_own_decisions_alone(review: Review):
    known = decided(review)
    own = [i for i, of in sorted(known.items()) if "anna" in of and of["anna"].label == 1]
    assert all_of(review, Asked(order="name", filter="anomalous", reviewer="anna", blind=True)) == own
    dents = [i for i, of in sorted(known.items()) if "anna" in of and of["anna"].type == "dent"]
    assert all_of(review, Asked(order="name", type="dent", reviewer="anna", blind=True)) == dents
    assert all_of(review, Asked(order="name", type="crack", reviewer="anna", blind=True)) == []
    noted = all_of(review, Asked(order="name", search="look", reviewer="anna", blind=True))
    assert noted == [i for i, of in sorted(known.items()) if "anna" in of and of["anna"].note]
    for name in ("flagged", "false", "known", "apart"):
        with pytest.raises(DataError, match="no filter"):
            review.queues.open(Asked(filter=name, blind=True))


def test_a_blind_review_tells_nothing_by_order_or_search(review: Review):
    blind = Review([review.read.folder], blind=True)
    for order in ("score", "low", "p", "disagreement", "informative"):
        with pytest.raises(DataError, match=r"blind|informative"):
            blind.queues.open(Asked(order=order))
    assert all_of(blind, Asked(order="name", search="line")) == []
    assert all_of(blind, Asked(order="name", search="image 17")) == [i for i in range(COUNT) if "17" in str(i + 1)]
    assert set(blind.rows([3, 5])) == {"path"}
    blind.store.close()


def test_parts_give_the_same_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parts, "ALONE", 10)
    write_scores(tmp_path / "with", COUNT)
    shutil.copytree(tmp_path / "with", tmp_path / "without")
    shutil.rmtree(tmp_path / "without" / "scores")
    write_scores(tmp_path / "other", COUNT - 20, seed=5)
    reviews = [Review([tmp_path / name, tmp_path / "other"], read_only=True) for name in ("with", "without")]
    assert {key: value for key, value in reviews[0].facts().items() if key not in ("name", "results")} == {
        key: value for key, value in reviews[1].facts().items() if key not in ("name", "results")
    }
    for asked in (
        Asked(),
        Asked(order="disagreement"),
        Asked(order="informative", filter="flagged"),
        Asked(order="p", search="11"),
        Asked(type="crack", threshold=0.0, filter="quiet"),
    ):
        pages = []
        for one in reviews:
            queue = one.queues.open(asked)["queue"]
            pages.append([one.rows(one.queues.images(queue, start, 30)) for start in range(0, COUNT, 30)])
        assert pages[0] == pages[1]
        assert pages[0][0]["path"]


def test_pages_of_three_hundred_thousand_rows_come_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By processor time, since the machine of a test may be busy."""
    monkeypatch.setattr(parts, "ALONE", 1000)
    count = 300_000
    folder = tmp_path / "R"
    folder.mkdir()
    scores = np.random.default_rng(0).normal(size=count)
    lines = [",".join(COLUMNS)]
    lines += [f"c/{i}.png,c/{i}.png,{s!r},0.5,{int(s > 2)},,,,c/{i}.png" for i, s in enumerate(scores.tolist())]
    (folder / "scores.csv").write_text("\n".join(lines) + "\n")
    finish_scores(Writer(folder), count)
    limits = Thresholds(count=199, threshold=2.0, rule="false_alarms", false_alarms=0.05)
    (folder / "run.json").write_bytes(dumps(Run(Model("pca"), Scored("line", count=count), limits)))
    review = Review([folder])
    review.facts()
    review.queues.open(Asked())
    for asked in (Asked(), Asked(filter="flagged", threshold=1.5), Asked(search="777"), Asked(order="low")):
        started = time.process_time()
        found = review.queues.open(asked)
        rows = review.rows(review.queues.images(found["queue"], found["count"] // 2, 100))
        assert time.process_time() - started < 0.5, asked
        assert len(rows["path"]) == 100
    review.store.close()
