"""The queue of a review, ordered, filtered and searched on the server: a page gets the rows that it shows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Float64, Mask
from normalcy.errors import DataError
from normalcy.results.columns import Places
from normalcy.results.folder import ResultsFolder
from normalcy.review.store import Decision, Store

KEPT = 8
"""Queues, orders and searches that are kept: one queue for each open page, or the page asks again."""
UNSCORED = ("random", "name")
"""Orders that do not depend on scores."""

Queue = npt.NDArray[np.int32]
"""Places of images, in the order in which they are shown."""


@dataclass(frozen=True)
class Asked:
    """What a page wants to see."""

    order: str = "score"
    filter: str = "all"
    type: str = ""
    search: str = ""
    reviewer: str = ""
    blind: bool = False
    """Whether the page hides scores, labels and the decisions of others."""
    threshold: float | None = None
    """Of the page; None: images are flagged as they were by scoring."""


class Queues:
    """The queues of a review. Used from any number of threads.

    ``places``: of images by path; ``blind``: whether the server hides scores and names; ``name``: what the page calls an image;
    ``informative``: images in that order; ``disagreement``: (N,) of several results. Both are asked for when they are needed.
    """

    def __init__(
        self,
        read: ResultsFolder,
        store: Store,
        places: Places,
        blind: bool,
        *,
        name: Callable[[int], str],
        informative: Callable[[], list[int]],
        disagreement: Callable[[], Float64],
    ) -> None:
        self.read, self.store, self.places, self.blind = read, store, places, blind
        self.name, self.informative, self.disagreement = name, informative, disagreement
        self._lock = threading.RLock()
        self._made: OrderedDict[int, Queue] = OrderedDict()
        self._next = 1
        self._kept: OrderedDict[object, Any] = OrderedDict()
        self._decided: dict[int, dict[str, Decision]] = {}
        self._last = 0

    def open(self, asked: Asked, current: int = -1) -> dict[str, int]:
        """A new queue: its number, how many images it has, the place of image ``current`` in it, its first image, and its first
        one that the reviewer has not decided; -1 for what is not there."""
        order = self._order(asked.order)
        queue = order[self._wanted(asked)[order]]
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._made[number] = queue
            if len(self._made) > KEPT:
                self._made.popitem(last=False)
        return {
            "queue": number,
            "count": len(queue),
            "at": _first(queue == current),
            "first": int(queue[0]) if len(queue) else -1,
            "unreviewed": self.unreviewed(number, -1, asked.reviewer),
        }

    def images(self, number: int, start: int, count: int) -> list[int]:
        """Some images of a queue, in its order."""
        found: list[int] = self._queue(number)[max(start, 0) : max(start, 0) + count].tolist()
        return found

    def place(self, number: int, image: int) -> int:
        """Where an image is in a queue; -1 if it is not."""
        return _first(self._queue(number) == image)

    def unreviewed(self, number: int, after: int, reviewer: str) -> int:
        """The first image after place ``after``, and then from the start, that the reviewer has not decided; -1 without one."""
        queue = self._queue(number)
        own = self._mask(lambda of: _verdict(of.get(reviewer)) != "")
        if 0 <= after < len(queue):
            own[queue[after]] = True
        for part in (queue[after + 1 :], queue[: after + 1]):
            if (at := _first(~own[part])) >= 0:
                return int(part[at])
        return -1

    def flagged(self, threshold: float) -> tuple[int, float | None]:
        """How many images have a higher score, and the bound of the false-positive rate, where p-values are known: the p-value of
        the highest score that is not flagged."""
        order, scores = self._ascending()
        below = int(np.searchsorted(scores, threshold, "right"))
        p_values = self.read.p_values
        if not np.isfinite(p_values).any():
            return len(scores) - below, None
        bound = float(p_values[order[below - 1]]) if below else 1.0
        return len(scores) - below, bound if np.isfinite(bound) else 1.0

    def histogram(self, low: float, high: float, bins: int) -> list[int]:
        """How many scores are in each of the bins between two values; those beyond count in the outer ones."""
        _, scores = self._ascending()
        edges = np.linspace(low, high, bins + 1)[1:-1]
        found: list[int] = np.diff(np.searchsorted(scores, edges, "left"), prepend=0, append=len(scores)).tolist()
        return found

    def about_scores(self) -> dict[str, float] | None:
        """Lowest, median, 0.995 quantile and highest score; None without any."""
        _, scores = self._ascending()
        last = len(scores) - 1
        if last < 0:
            return None
        places = {"low": 0, "median": (last + 1) // 2, "tail": int(0.995 * last), "high": last}
        return {name: float(scores[at]) for name, at in places.items()}

    # -- private

    def _queue(self, number: int) -> Queue:
        with self._lock:
            if number not in self._made:
                raise DataError("this queue is no longer kept.")
            self._made.move_to_end(number)
            return self._made[number]

    def _keep(self, key: object, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _ascending(self) -> tuple[Queue, Float64]:
        """Images with a finite score, lowest first, and their scores."""

        def make() -> tuple[Queue, Float64]:
            scores = self.read.scores
            order = np.argsort(scores, kind="stable").astype(np.int32)
            order = order[np.isfinite(scores[order])]
            return order, scores[order]

        found: tuple[Queue, Float64] = self._keep("ascending", make)
        return found

    def _order(self, kind: str) -> Queue:
        order: Queue = self._keep(("order", kind), lambda: self._make_order(kind))
        return order

    def _make_order(self, kind: str) -> Queue:
        read, count = self.read, len(self.read)
        if self.blind and kind not in UNSCORED:
            raise DataError("this review is blind: the order is random or by name.")
        if kind == "name":
            return np.arange(count, dtype=np.int32)
        if kind == "random":  # the same each time, so that a review can be resumed
            return np.random.default_rng(0).permutation(count).astype(np.int32)
        if kind == "informative":
            first = np.array(self.informative(), np.int32)
            rest = self._order("random")
            return np.concatenate([first, rest[~np.isin(rest, first)]])
        if kind in ("score", "low"):
            rising, scores = self._ascending()
            known = rising if kind == "low" else _falling(rising, scores)
            return np.concatenate([known, np.flatnonzero(~np.isfinite(read.scores)).astype(np.int32)])
        if kind not in ("p", "disagreement"):
            raise DataError(f"there is no order {kind[:20]!r}.")
        values = read.p_values if kind == "p" else -self.disagreement()
        return np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable").astype(np.int32)

    def _wanted(self, asked: Asked) -> Mask:
        """(N,) whether an image is in the queue."""
        wanted = self._filtered(asked)
        if asked.type:
            named = self._mask(
                lambda of: any(one.type == asked.type and one.verdict == "anomalous" for one in self._seen(of, asked))
            )
            if not self._hidden(asked):
                named |= self.read.types.are(asked.type)
            wanted &= named
        if words := tuple(asked.search.lower().split()):
            wanted &= self._containing(words, asked)
        return wanted

    def _filtered(self, asked: Asked) -> Mask:
        read, hidden = self.read, self._hidden(asked)

        def flagged() -> Mask:
            return read.flagged == 1 if asked.threshold is None else read.scores > asked.threshold

        def said(label: int) -> Mask:
            return self._mask(lambda of: _label(of, asked.reviewer if hidden else None) == label)

        def own(*verdicts: str) -> Mask:
            return self._mask(lambda of: _verdict(of.get(asked.reviewer)) in verdicts)

        decided = ("normal", "anomalous", "unsure")
        scored: dict[str, Callable[[], Mask]] = {
            "flagged": flagged,
            "quiet": lambda: ~flagged(),
            "false": lambda: flagged() & said(0),
            "missed": lambda: ~flagged() & said(1),
            "apart": lambda: self._mask(lambda of: len({_verdict(one) for one in of.values()} - {""}) > 1),
            "known": lambda: read.labels == 1,
            "good": lambda: read.labels == 0,
        }
        always: dict[str, Callable[[], Mask]] = {
            "all": lambda: np.ones(len(read), bool),
            "unreviewed": lambda: ~own(*decided),
            "reviewed": lambda: own(*decided),
            "anomalous": lambda: said(1),
            "normal": lambda: said(0),
            "unsure": lambda: own("unsure"),
            "noted": lambda: self._mask(lambda of: any(one.note for one in self._seen(of, asked))),
        }
        found = always.get(asked.filter) or (None if hidden else scored.get(asked.filter))
        if found is None:
            raise DataError(f"there is no filter {asked.filter[:20]!r}.")
        return np.asarray(found())

    def _containing(self, words: tuple[str, ...], asked: Asked) -> Mask:
        """Words in names, and of decided images in types and notes too."""
        if self.blind:  # names are hidden
            found = np.zeros(len(self.read), bool)
            for i in range(len(found)):
                found[i] = all(word in f"image {i + 1}" for word in words)
        else:
            found = self._keep(("words", words), lambda: self.read.paths.containing(words)).copy()
        for i, of in self.decided().items():
            texts = [self.name(i), *(text for one in self._seen(of, asked) for text in (one.type, one.note))]
            whole = " ".join(texts).lower()
            found[i] = all(word in whole for word in words)
        return found

    def _hidden(self, asked: Asked) -> bool:
        return self.blind or asked.blind

    def _seen(self, of: Mapping[str, Decision], asked: Asked) -> list[Decision]:
        return [one for name, one in of.items() if not self._hidden(asked) or name == asked.reviewer]

    def decided(self) -> dict[int, dict[str, Decision]]:
        """The last decision of each reviewer about each image, withdrawn ones included."""
        with self._lock:
            fresh = self.store.after(self._last)
            places = self.places.find(one.image for one in fresh)
            for one in fresh:
                self._last = max(self._last, one.seq)
                if one.image in places:
                    self._decided.setdefault(places[one.image], {})[one.reviewer] = one
            return dict(self._decided)

    def _mask(self, holds: Callable[[Mapping[str, Decision]], bool]) -> Mask:
        """(N,) for which images something holds that only holds of decided ones."""
        found = np.zeros(len(self.read), bool)
        for i, of in self.decided().items():
            found[i] = holds(of)
        return found


def _falling(rising: Queue, scores: Float64) -> Queue:
    """Of images and their scores, lowest first: highest first, and those of equal scores in the same order as there."""
    new = np.append(True, scores[1:] != scores[:-1])
    first = np.flatnonzero(new)
    run = np.cumsum(new) - 1
    end = np.append(first[1:], len(scores))
    falling = np.empty_like(rising)
    falling[len(scores) - end[run] + np.arange(len(scores)) - first[run]] = rising
    return falling


def _verdict(one: Decision | None) -> str:
    return "" if one is None else one.verdict


def _label(of: Mapping[str, Decision], only: str | None) -> int | None:
    """By the reviewers together: those who are sure must agree."""
    labels = {one.label for name, one in of.items() if one.label is not None and (only is None or name == only)}
    return labels.pop() if len(labels) == 1 else None


def _first(holds: Mask) -> int:
    return int(holds.argmax()) if len(holds) and holds.any() else -1
