"""URLs of stores where a command expects a local folder: copied before, uploaded after."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from normalcy.cli.printing import CALLED
from normalcy.errors import SettingsError

WRITTEN = {
    "score": "out",
    "slides": "out",
    "merge": "out",
    "fit": "out",
    "audit": "out",
    "export": "out",
    "dicom": "out",
}
"""Command -> the option of the folder that it writes as a whole, which is uploaded at the end."""
READ = ("model", "results")
"""Parameters that name folders of normalcy."""
CHANGED = ("evaluate", "report")
"""Commands that add files to a results folder."""


def with_urls(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which also takes URLs as folders, where that makes sense."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        if not any(url_of(one) for value in given.values() for one in (value if isinstance(value, list) else [value])):
            command(**given)
            return
        name = command.__name__
        with ExitStack() as stack:
            for parameter, value in given.items():
                urls = [url_of(one) for one in value] if isinstance(value, list) else [url_of(value)]
                if not any(urls):
                    continue
                option = parameter.rstrip("_").replace("_", "-")
                if parameter == WRITTEN.get(name):
                    if given.get("resume"):
                        raise SettingsError("--resume needs a local --out: an interrupted fit is kept beside it.")
                    texts = [str(url_of(one) or one) for other in given.values() for one in _listed(other)]
                    texts.remove(str(urls[0]))
                    given[parameter] = stack.enter_context(_uploaded(str(urls[0]), bool(given.get("overwrite")), texts))
                elif parameter in READ and name != "review":
                    back = name in CHANGED
                    found = [
                        one if url is None else stack.enter_context(_downloaded(url, back))
                        for one, url in zip(_listed(value), urls)
                    ]
                    given[parameter] = found if isinstance(value, list) else found[0]
                else:
                    raise SettingsError(f"{name} takes a local path as {option}, not a URL: copy it to this machine.")
            command(**given)

    return run


def url_of(value: Any) -> str | None:
    """The URL that became a path when it was parsed; None for what is another path, or none.

    >>> url_of(Path("s3://bucket/model")), url_of(Path("model")), url_of("s3://bucket/data")
    ('s3://bucket/model', None, None)
    """
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(value)) if isinstance(value, Path) else None
    return None if found is None else f"{found[1]}://{found[2]}"


@contextmanager
def _uploaded(url: str, overwrite: bool, sources: list[str]) -> Iterator[Path]:
    """A local folder to be written, which is uploaded at the end."""
    from normalcy.files import temporary_folder
    from normalcy.remote.transfer import Upload
    from normalcy.remote.urls import public

    upload = Upload(url, overwrite, sources)
    with temporary_folder() as place:
        folder = Path(place) / (upload.url.name or "out")
        CALLED[str(folder)] = public(url)
        try:
            yield folder
        except BaseException:
            upload.give_up()
            raise
        upload.send(folder)


@contextmanager
def _downloaded(url: str, back: bool) -> Iterator[Path]:
    """A local copy of a folder; with ``back`` what changes in it is uploaded."""
    from normalcy.files import make_folder, temporary_folder
    from normalcy.remote.transfer import download, send_changed, stamps
    from normalcy.remote.urls import parse, public

    with temporary_folder() as place:
        folder = Path(place) / (parse(url).name or "folder")
        CALLED[str(folder)] = public(url)
        make_folder(folder)
        download(url, folder)
        before = stamps(folder)
        yield folder
        if back:
            send_changed(folder, url, before)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
