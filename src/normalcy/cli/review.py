"""Commands of human judgement: review, calibrate."""

from __future__ import annotations

import getpass
import secrets
import socket
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from normalcy.cli import completion as c
from normalcy.cli import options as o
from normalcy.cli.printing import complain, show
from normalcy.errors import DataError, NormalcyError, SettingsError

if TYPE_CHECKING:
    from normalcy.review.session import Review

PORT = 8417
"""The first port that is tried."""
ORDERS = ("score", "low", "p", "disagreement", "informative", "random", "name")

Folders = Annotated[
    list[Path], Argument(metavar="RESULTS", help="Results folders of the same images; the first keeps the review.")
]
Port = Annotated[int | None, Option(help=f"Port of 127.0.0.1 [the first free one from {PORT}].")]
Labels = Annotated[
    Path | None,
    Option(help="Decisions to start from: labels.csv or decisions.csv of another review, or a COCO or LabelMe file."),
]
Reviewer = Annotated[str | None, Option(help="Name of the reviewer; can be changed in the page [the user's name].")]
Browser = Annotated[bool, Option(" /--no-browser", help="Do not open the page in a browser.")]
Order = Annotated[
    str,
    Option(
        help="Order of the queue at the start: score, low, p, disagreement, informative, random or name.",
        autocompletion=c.chosen(*ORDERS),
    ),
]
Blind = Annotated[
    bool, Option("--blind", help="Send no scores, maps, labels, names or decisions of others to the page.")
]
ReadOnly = Annotated[bool, Option("--read-only", help="Show the review and write nothing.")]
Export = Annotated[
    str | None,
    Option(
        help="Write the review for other tools and stop: coco, labelme, fiftyone, geojson or dicomseg.",
        autocompletion=c.chosen("coco", "labelme", "fiftyone", "geojson", "dicomseg"),
    ),
]
ExportOut = Annotated[Path | None, Option("--out", help="Folder of --export [RESULTS/review/FORMAT].")]
Images = Annotated[
    str | None, Option("--data", help="The images (or folder of slides), if they are not found or have changed.")
]
Normal = Annotated[
    str,
    Argument(
        metavar="DATA",
        help="Normal images that the model has not seen; of a review, those decided normal.",
        autocompletion=c.data,
    ),
]


def review(
    results: Folders,
    port: Port = None,
    labels: Labels = None,
    reviewer: Reviewer = None,
    order: Order = "score",
    blind: Blind = False,
    read_only: ReadOnly = False,
    data: Images = None,
    data_root: o.DataRoot = None,
    browser: Browser = True,
    export: Export = None,
    out: ExportOut = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Judge images on a page; decisions come back as labels and masks in RESULTS/review.

    The page is served on this machine alone. Other commands use the labels: evaluate --labels review, fit --exclude, select
    --anomalies, calibrate.
    """
    from normalcy.review.session import Review

    if order not in ORDERS:
        raise SettingsError(f"--order must be one of {', '.join(ORDERS)}, got {order!r}.")
    if (results[0] / "slides.csv").exists():
        opened = Review(results, slides=None if data is None else Path(data), read_only=read_only, blind=blind)
    else:
        source = None if data is None else lambda: o.open_data(data, data_root, as_normal=True)
        opened = Review(results, source, read_only=read_only, blind=blind)
    try:
        if labels is not None:
            from normalcy.review.imports import import_decisions

            added = import_decisions(opened, labels)
            show(f"{added} decisions of {labels} were added.")
        if export is not None:
            _export(opened, export, out, overwrite)
            return
        opened.order = order
        _serve(opened, port, reviewer, browser)
    finally:
        opened.store.close()


def calibrate(
    model: o.Model,
    data: Normal,
    out: o.ModelOut,
    data_root: o.DataRoot = None,
    false_alarms: o.FalseAlarms = None,
    device: o.Device = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Compute p-values and thresholds again, on normal images of a new camera, scanner or product.

    The method stays as it is. Images that are labelled anomalous are left out.
    """
    from dataclasses import replace

    from normalcy.detector import load
    from normalcy.model_folder import is_exported

    if is_exported(model):
        raise SettingsError(f"{model} is an exported graph: calibrate the model it came from, then export that again.")
    detector = load(model)
    if device not in (None, "auto"):
        detector.to(str(device))
    images = o.open_data(data, data_root)
    known = [i for i, item in enumerate(images.items) if item.label is not None]
    normal = images.select(label=0) if known else images
    if not len(normal):
        raise DataError(f"{images.name} has no image labelled normal to calibrate with.")
    failed = detector.calibrate(normal)
    if false_alarms is not None:
        detector.decision = replace(detector.decision, false_alarms=false_alarms)
    detector.calibrated_on(normal)
    detector.save(out, overwrite)
    for failure in failed:
        complain(f"Skipped {failure.path}: {failure.reason}")
    if (warning := detector.no_flags()) is not None:
        complain(f"Note: {warning}")
    show(f"Calibrated {detector.name} on {len(normal) - len(failed)} normal images of {images.name} -> {out}")


# -- private ---------------------------------------------------------------------------------------------------------


def _export(review: Review, name: str, out: Path | None, overwrite: bool) -> None:
    from normalcy.review.exports import FORMATS, export

    if name not in FORMATS:
        raise SettingsError(f"--export must be one of {', '.join(FORMATS)}, got {name!r}.")
    folder = out or review.folder / name
    count, failed = export(review, name, folder, overwrite=overwrite or out is None)
    for failure in failed:
        complain(f"Skipped {failure.path}: {failure.reason}")
    show(f"Wrote {count} reviewed images as {name} -> {folder}")


def _serve(review: Review, port: int | None, reviewer: str | None, browser: bool) -> None:
    try:
        import uvicorn

        from normalcy.review.server import make_app
    except ImportError:
        raise NormalcyError('The review page needs starlette and uvicorn; pip install "normalcy[review]".') from None
    with _bound(port) as listening:
        number = listening.getsockname()[1]
        hosts = {f"{name}:{number}" for name in ("127.0.0.1", "localhost")}
        token = secrets.token_urlsafe(24)
        app = make_app(review, token=token, hosts=hosts, reviewer=reviewer or _user())
        address = f"http://127.0.0.1:{number}/?token={token}"
        show(f"Review {review.read.folder} at ", address)
        show("Stop with Ctrl-C; every decision is on disk when the next image shows.")
        if browser:
            webbrowser.open(address)
        settings = uvicorn.Config(
            app, log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(settings)
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:  # the way to end it
            pass
        finally:
            app.close()
    decided = len(review.store.current())
    show(f"{decided} decisions -> {review.folder}")


def _bound(port: int | None) -> socket.socket:
    """A socket of 127.0.0.1 that listens."""
    for number in [port] if port is not None else [*range(PORT, PORT + 20), 0]:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", number))
            listening.listen()  # now, so that the page can be opened before the server runs
            return listening
        except (OSError, OverflowError) as error:
            listening.close()
            reason = error
    raise SettingsError(f"--port {port} cannot be used ({reason}); name another or leave it out.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "reviewer"
