"""The web application of a review: a few routes over a :class:`~normalcy.review.session.Review`, and who may call them.

Images are named by their number, static files by a fixed list, so no request holds a path. Every request needs the cookie that
the token in the first address gives, and a Host header of this server (a page of another site that lets its name point to this
machine has another one); writing needs a header that a page of another site cannot send, and is of a bounded size.
"""

from __future__ import annotations

import io
import json
import math
import secrets
from collections.abc import Awaitable, Callable
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import anyio.to_thread
import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from normalcy.errors import DataError, NormalcyError
from normalcy.review import pixels
from normalcy.review.labels import Writer
from normalcy.review.queue import Asked
from normalcy.review.session import KINDS, Review
from normalcy.review.store import Decision

VENDOR = {
    "niivue.js": "volumes are not shown as linked slices: niivue.js is missing; install a wheel of normalcy, or run 'make setup' "
    "in a checkout.",
    "openseadragon.js": "slides are not shown: openseadragon.js is missing; install a wheel of normalcy, or run 'make setup' in "
    "a checkout.",
}
"""Files of other projects that a wheel has -> what to say where one is missing."""
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
         ".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8"}  # fmt: skip
MOST_ROWS = 1000
"""Rows of an answer."""
LARGEST_JSON = 2**16
LARGEST_MASK = 2**26
"""Bytes of a request."""
MARK = "x-normalcy"
"""A header that pages of other sites cannot send without asking, which is refused."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self' blob: data:; "
    "font-src 'self' data:; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
TILE = 256
"""Side of a tile of a slide, in pixels."""


def make_app(review: Review, *, token: str, hosts: set[str], reviewer: str) -> Guard:
    """The application. ``hosts``: allowed Host headers; ``reviewer``: the name offered to whoever opens the page."""
    writer = None if review.read_only else Writer(review.store, review.known)
    if writer is not None:
        writer.changed()  # what a killed server had decided is in the tables from the start
    routes = [
        Route("/", _page),
        Route("/static/{name:path}", _static),
        Route("/api/facts", _json(lambda request: _facts(review, reviewer, writer))),
        Route("/api/rows", _json(lambda request: _rows(review, request))),
        Route("/api/queue", _json(lambda request: _queue(review, request))),
        Route("/api/queue/{queue:int}", _json(lambda request: _queued(review, request))),
        Route("/api/queue/{queue:int}/place/{image:int}", _json(lambda request: _place(review, request))),
        Route("/api/queue/{queue:int}/unreviewed", _json(lambda request: _unreviewed(review, request))),
        Route("/api/threshold", _json(lambda request: _threshold(review, request))),
        Route("/api/histogram", _json(lambda request: _histogram(review, request))),
        Route("/api/decisions", _decisions(review)),
        Route("/api/decide/{image:int}", _decide(review, writer), methods=["POST"]),
        Route("/api/order", _json(lambda request: _order(review))),
        Route("/api/estimates", _json(lambda request: review.estimates())),
        Route("/api/agreement", _json(lambda request: {} if review.blind else review.agreement())),
        Route("/thumb/{image:int}", _bytes("image/png", lambda r, i: _thumbnail(review, i))),
        Route("/about/{image:int}", _json(lambda request: _about(review, request.path_params["image"], request))),
        Route("/image/{image:int}/{kind}", _image(review)),
        Route("/mask/{image:int}", _mask(review)),
        Route("/volume/{image:int}/{kind}.nii.gz", _volume(review)),
        Route("/slide/{image:int}", _json(lambda request: _slide(review, request.path_params["image"]))),
        Route("/slide/{image:int}/heat.png", _bytes("image/png", lambda r, i: _heat(review, i))),
        Route(
            "/slide/{image:int}/{level:int}/{x:int}/{y:int}.jpg", _bytes("image/jpeg", lambda r, i: _tile(review, r, i))
        ),
    ]

    async def fault(request: Request, error: Exception) -> Response:
        status = 404 if request.method == "GET" else 400
        return JSONResponse({"error": " ".join(str(error).split())}, status_code=status)

    async def full(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"Nothing was written: {' '.join(str(error).split())}"}, status_code=507)

    app = Starlette(routes=routes, exception_handlers={NormalcyError: fault, OSError: full})
    return Guard(app, token=token, hosts=hosts, read_only=review.read_only, close=writer.close if writer else None)


class Guard:
    """Lets only the user's own browser in: see the head of this module."""

    def __init__(
        self,
        app: Starlette,
        *,
        token: str,
        hosts: set[str],
        read_only: bool,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.app, self.token, self.hosts, self.read_only = app, token, hosts, read_only
        self._close = close
        port = sorted(hosts)[0].rpartition(":")[2]
        self.cookie = f"normalcy-{port}"  # cookies do not tell ports apart

    def close(self) -> None:
        """Finish the tables."""
        if self._close is not None:
            self._close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        request = Request(scope)
        refusal = self.refusal(request)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(k, v) for k, v in message.get("headers", []) if k.decode().lower() not in HEADERS]
                headers += [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": headers}
            await send(message)

        if refusal is not None:
            await refusal(scope, receive, with_headers)
            return
        await self.app(scope, _bounded(receive, self._limit(request)), with_headers)

    def refusal(self, request: Request) -> Response | None:
        """What to answer instead of what was asked for."""
        if request.headers.get("host", "").lower() not in self.hosts:
            return PlainTextResponse("This server is not known under that name.", status_code=421)
        given = request.query_params.get("token")
        if given is not None and request.url.path == "/" and request.method == "GET":
            if not secrets.compare_digest(given.encode(), self.token.encode()):
                return PlainTextResponse(
                    "Wrong token: open the address that 'normalcy review' printed.", status_code=403
                )
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
            return answer
        cookie = request.cookies.get(self.cookie, "")
        if not secrets.compare_digest(cookie.encode(), self.token.encode()):
            return PlainTextResponse(
                "Open the address that 'normalcy review' printed, with its token.", status_code=403
            )
        if request.method in ("GET", "HEAD"):
            return None
        if request.method != "POST":
            return PlainTextResponse("Not allowed.", status_code=405)
        if self.read_only:
            return JSONResponse({"error": "This review is read-only."}, status_code=403)
        origin = request.headers.get("origin")
        own = origin is None or origin.lower().partition("://")[2] in self.hosts
        if (
            MARK not in request.headers
            or not own
            or request.headers.get("sec-fetch-site", "same-origin") != "same-origin"
        ):
            return JSONResponse({"error": "Only the page of this server may write."}, status_code=403)
        length = request.headers.get("content-length", "")
        if not length.isdigit() or int(length) > self._limit(request):
            return JSONResponse({"error": "The request is too large."}, status_code=413)
        return None

    @staticmethod
    def _limit(request: Request) -> int:
        return LARGEST_MASK if request.method == "POST" else LARGEST_JSON


def _bounded(receive: Receive, limit: int) -> Receive:
    """Ends a request that sends more than it said."""
    got = 0

    async def bounded() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        return {"type": "http.disconnect"} if got > limit else message

    return bounded


# -- answers -----------------------------------------------------------------------------------------------------------

Answer = Callable[[Request], Awaitable[Response]]


def static_file(name: str) -> bytes | None:
    """A file of the page by its name in a fixed list; None for any other."""
    found = _files().get(name)
    return None if found is None else found.read_bytes()


def _files() -> dict[str, Traversable]:
    root = resources.files("normalcy.review") / "static"
    vendor = root / "vendor"
    own = {entry.name: entry for entry in root.iterdir() if entry.is_file()}
    return own | {f"vendor/{e.name}": e for e in (vendor.iterdir() if vendor.is_dir() else ()) if e.is_file()}


async def _page(request: Request) -> Response:
    return Response(static_file("index.html") or b"", media_type="text/html")


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    body = static_file(name)
    if body is None:
        return PlainTextResponse("There is no such file.", status_code=404)
    suffix = "." + name.rpartition(".")[2]
    return Response(body, media_type=TYPES.get(suffix, "application/octet-stream"))


async def _in_thread(work: Callable[[], Any]) -> Any:
    return await anyio.to_thread.run_sync(work)


def _json(work: Callable[[Request], Any]) -> Answer:
    async def answer(request: Request) -> Response:
        return JSONResponse(await _in_thread(lambda: work(request)))

    return answer


def _bytes(kind: str, work: Callable[[Request, int], bytes]) -> Answer:
    async def answer(request: Request) -> Response:
        return Response(await _in_thread(lambda: work(request, request.path_params["image"])), media_type=kind)

    return answer


def _facts(review: Review, reviewer: str, writer: Writer | None) -> dict[str, Any]:
    there = _files()
    return {
        **review.facts(),
        "reviewer": reviewer,
        "order": review.order,
        "inputs": review.has_inputs,
        "about_inputs": review.about_inputs if review.has_inputs is False else "",
        "vendor": {name: f"vendor/{name}" in there for name in VENDOR},
        "missing": {name: text for name, text in VENDOR.items() if f"vendor/{name}" not in there},
        "fault": "" if writer is None else writer.fault,
    }


def _thumbnail(review: Review, i: int) -> bytes:
    """Nothing to see where the image is not there: the queue has its name."""
    try:
        return review.thumbnail(i)
    except (NormalcyError, OSError):
        return pixels.png(Image.new("LA", (1, 1)))


def _rows(review: Review, request: Request) -> dict[str, Any]:
    """Of the images named, or of the first ones."""
    named = [text for text in request.query_params.get("images", "").split(",") if text.isdigit()]
    return review.rows(map(int, named[:MOST_ROWS]) if named else range(MOST_ROWS))


def _queue(review: Review, request: Request) -> dict[str, Any]:
    """A new queue, with its first rows."""
    asked = request.query_params
    words = {name: asked.get(name, "")[:1000] for name in ("type", "search", "reviewer")}
    what = Asked(
        order=asked.get("order") or "score",
        filter=asked.get("filter") or "all",
        blind=asked.get("blind") == "1",
        threshold=_number(asked.get("threshold")),
        **words,
    )
    return review.queues.open(what, _whole(asked.get("current"), -1))


def _queued(review: Review, request: Request) -> dict[str, Any]:
    """Some images of a queue, with what the page shows of them."""
    start, count = (_whole(request.query_params.get(name), 0) for name in ("from", "count"))
    images = review.queues.images(request.path_params["queue"], start, min(count, MOST_ROWS))
    return {"images": images, "rows": review.rows(images)}


def _place(review: Review, request: Request) -> dict[str, int]:
    return {"at": review.queues.place(request.path_params["queue"], request.path_params["image"])}


def _unreviewed(review: Review, request: Request) -> dict[str, int]:
    asked = request.query_params
    after = _whole(asked.get("after"), -1)
    return {"image": review.queues.unreviewed(request.path_params["queue"], after, asked.get("reviewer", ""))}


def _threshold(review: Review, request: Request) -> dict[str, Any]:
    """What a threshold would flag, and the rate of false positives that it guarantees."""
    value = _number(request.query_params.get("value"))
    if review.blind or value is None:
        raise DataError("a threshold is a number, and hidden in a blind review.")
    flagged, bound = review.queues.flagged(value)
    return {"flagged": flagged, "bound": bound}


def _histogram(review: Review, request: Request) -> list[int]:
    low, high = (_number(request.query_params.get(name)) for name in ("low", "high"))
    bins = _whole(request.query_params.get("bins"), 0)
    if review.blind or low is None or high is None or not low < high or not 0 < bins <= MOST_ROWS:
        raise DataError("a histogram has a range and up to 1,000 bins, and is hidden in a blind review.")
    return review.queues.histogram(low, high, bins)


def _whole(text: str | None, otherwise: int) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else otherwise


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _decisions(review: Review) -> Answer:
    """Decisions written after a number, with the score of the image; of a blind review, those of the asking reviewer alone."""

    async def answer(request: Request) -> Response:
        after = int(request.query_params.get("after", "0")) if request.query_params.get("after", "0").isdigit() else 0
        asking = request.query_params.get("reviewer", "")
        found = await _in_thread(lambda: review.store.after(after))
        hidden = review.blind or request.query_params.get("blind") == "1"
        own = [one for one in found if not hidden or one.reviewer == asking]
        places = await _in_thread(lambda: review.places.find(one.image for one in own))
        rows = [
            [one.seq, places.get(one.image, -1), one.reviewer, one.verdict, one.type, one.note, bool(one.mask),
             one.blind, one.time, None if hidden or one.image not in places else _finite(review, places[one.image])]
            for one in own
        ]  # fmt: skip
        return JSONResponse({"last": found[-1].seq if found else after, "rows": [row for row in rows if row[1] >= 0]})

    return answer


def _finite(review: Review, i: int) -> float | None:
    score = float(review.read.scores[i])
    return score if math.isfinite(score) else None


def _decide(review: Review, writer: Writer | None) -> Answer:
    """The body: a line of JSON (verdict, type, note, reviewer, blind, mask), and after it the mask, if "mask" is true."""

    async def answer(request: Request) -> Response:
        body = await request.body()
        head, _, rest = body.partition(b"\n")
        if len(head) > LARGEST_JSON:
            raise DataError("the decision is too long.")
        try:
            words = json.loads(head)
            verdict, kind, note, reviewer = (
                str(words.get(name, "")) for name in ("verdict", "type", "note", "reviewer")
            )
        except (ValueError, AttributeError, RecursionError):
            raise DataError("a decision is a line of JSON, perhaps with a mask after it.") from None
        i = request.path_params["image"]
        if not 0 <= i < len(review.read):
            raise DataError("there is no such image.")
        mask = rest if words.get("mask") else None
        blind = review.blind or bool(words.get("blind"))
        review.places.note(review.read.paths[i], i)
        one = Decision(review.read.paths[i], reviewer, verdict, kind, note, blind=blind)
        written = await _in_thread(lambda: review.decide(one, mask))
        if writer is not None:
            writer.changed()
        return JSONResponse({"seq": written.seq, "time": written.time, "mask": bool(written.mask)})

    return answer


def _order(review: Review) -> dict[str, Any]:
    """Images in the informative order: the drawn ones once each."""
    return {"order": review.informative()}


def _about(review: Review, i: int, request: Request) -> dict[str, Any]:
    """What is known of an image before its pixels are asked for."""
    if not 0 <= i < len(review.read):
        raise DataError("there is no such image.")
    if review.slides is not None:
        return {"volume": False, "kinds": []}
    volume = review.is_volume(i)
    kinds = []
    for kind in (*KINDS, *review.read.extra_maps()):
        if kind == "input" or (not review.blind and _has(review, i, kind)):
            kinds.append(kind)
    facts: dict[str, Any] = {"volume": volume, "kinds": kinds}
    if volume:
        peak = review.peak(i)
        facts |= {"peak": None if peak is None else list(peak), "size": list(review.spatial(i))}
        space = review.space(i)
        if space is not None:
            facts["affine"] = pixels.canonical_affine(space)[:3].tolist()
        try:
            facts["window"] = list(review.window(i))
        except DataError:
            facts["kinds"] = [kind for kind in kinds if kind != "input"]
    return facts


def _has(review: Review, i: int, kind: str) -> bool:
    """Whether a file of an image is there, without reading it."""
    folder = {"map": "maps", "truth": "masks", "restored": "restored", "uncertainty": "uncertainty"}.get(
        kind, f"extra_maps/{kind}"
    )
    return review.read.file(folder, i, ".npy", ".nii.gz", ".png", ".tiff") is not None


def _image(review: Review) -> Answer:
    async def answer(request: Request) -> Response:
        i, kind = request.path_params["image"], request.path_params["kind"]
        asked = request.query_params
        result = int(asked.get("result", "0")) if asked.get("result", "0").isdigit() else 0
        channel = int(asked["channel"]) if asked.get("channel", "").isdigit() else None
        shown = await _in_thread(lambda: review.image(i, kind, result, channel=channel))
        head = {"x-size": ",".join(map(str, shown.size))}
        return Response(pixels.npy(shown.array), media_type="application/octet-stream", headers=head)

    return answer


def _mask(review: Review) -> Answer:
    """A reviewer's mask as the page draws it, a byte for each pixel."""

    async def answer(request: Request) -> Response:
        i, reviewer = request.path_params["image"], request.query_params.get("reviewer", "")

        def work() -> bytes:
            if not 0 <= i < len(review.read):
                raise DataError("there is no such image.")
            mask = review.mask(i, reviewer)
            step = pixels.step_of(mask.shape) if mask.ndim == 2 else 1
            mask = mask[::step, ::step] if step > 1 else mask
            return pixels.packed(mask)

        body = await _in_thread(work)
        return Response(body, media_type="application/octet-stream")

    return answer


def _volume(review: Review) -> Answer:
    async def answer(request: Request) -> Response:
        i, kind = request.path_params["image"], request.path_params["kind"]
        channel = request.query_params.get("channel", "0")
        body = await _in_thread(lambda: review.volume(i, kind, channel=int(channel) if channel.isdigit() else 0))
        return Response(body, media_type="application/octet-stream")

    return answer


# -- slides ------------------------------------------------------------------------------------------------------------


def _slide(review: Review, i: int) -> dict[str, Any]:
    if review.slides is None or not 0 <= i < len(review.read):
        raise DataError("there is no such slide.")
    slide = review.slide(i)
    width, height = slide.size
    facts: dict[str, Any] = {
        "width": width,
        "height": height,
        "tile": TILE,
        "mpp": slide.mpp,
        "regions": [],
        "heat": None,
    }
    if not review.blind and review.slide_file(i, "heatmap.tif") is not None:
        heat = review.heat(i)
        side = next(
            (one.side for one in review.slides.slides if one.name == review.read.paths[i]), width / heat.shape[1]
        )
        facts["heat"] = {"width": side * heat.shape[1], "height": side * heat.shape[0], "side": side}
        facts["regions"] = review.regions(i)
    return facts


def _heat(review: Review, i: int) -> bytes:
    if review.blind or review.slides is None or not 0 <= i < len(review.read):
        raise DataError("there is no heat map to show.")
    heat = review.heat(i)
    known = heat[np.isfinite(heat)]
    span = review.read.run.map_range or ((float(known.min()), float(known.max())) if known.size else (0.0, 1.0))
    return pixels.heat_picture(heat, span)


def _tile(review: Review, request: Request, i: int) -> bytes:
    """A tile of 256 pixels; at ``level`` k the slide is reduced by 2 ** k."""
    if review.slides is None or not 0 <= i < len(review.read):
        raise DataError("there is no such slide.")
    level, x, y = (request.path_params[name] for name in ("level", "x", "y"))
    slide = review.slide(i)
    width, height = slide.size
    down = 2**level
    if level > 20 or x * TILE * down >= width or y * TILE * down >= height:
        raise DataError("there is no such tile.")
    size = [min(TILE, max(1, -(-(n - at * TILE * down) // down))) for n, at in ((width, x), (height, y))]
    region = slide.region(x * TILE * down, y * TILE * down, down, (size[0], size[1]))
    buffer = io.BytesIO()
    Image.fromarray(region).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
