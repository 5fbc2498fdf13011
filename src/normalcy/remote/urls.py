"""URLs of data: which are opened, and how they are shown. Only what a user typed is taken for one, never what a file holds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from normalcy.errors import DataError

PROTOCOLS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "https": "aiohttp",
    "http": "aiohttp",
    "memory": "fsspec",
    "zip": "fsspec",
}
"""Protocol -> the package that reads it. No other is opened: some run commands (ssh), read files of this machine (file) or
open further URLs that they find (reference)."""
WEB = ("https", "http")
"""Protocols without listings, to which nothing is written."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s]*@")
_QUERY = re.compile(r"((?:https?://[^\s?#]*)|(?:[A-Za-z][A-Za-z0-9+.-]*://[^\s?]*(?=\?[^\s?]*=)))[?#][^\s)'\"]*")


@dataclass(frozen=True)
class Url:
    """A place in a store."""

    protocol: str
    text: str
    """As typed, with what may be secret in it; of a zip, the path inside."""
    archive: str = ""
    """Of a zip: the URL or the local path of the zip itself."""

    def __str__(self) -> str:
        return public(f"zip://{self.text}::{self.archive}" if self.archive else self.text)

    @property
    def name(self) -> str:
        """The last part of the path: of a zip as a whole the zip's."""
        path = self.text if self.text.strip("/") or not self.archive else self.archive
        last = re.split(r"[?#]", path)[0] if self.protocol in WEB or path is self.archive else path
        return last.rstrip("/").rpartition("/")[2]


def is_url(text: str) -> bool:
    """Whether a text names a place by a protocol.

    >>> is_url("s3://bucket/parts"), is_url("parts/train"), is_url("mnist:3")
    (True, False, False)
    """
    return _URL.match(text) is not None


def parse(text: str) -> Url:
    """The place that a URL names: ``PROTOCOL://...``, or ``zip://PATH::URL`` for what is in a zip.

    Raises DataError for another protocol, and for another chain.
    """
    first, chained, rest = text.partition("::")
    found = _URL.match(first)
    protocol = found[1].lower() if found else ""
    if protocol not in PROTOCOLS:
        raise DataError(
            f"{public(text)}: expected a URL of {', '.join(PROTOCOLS)}, got one of {protocol or 'no protocol'}; "
            "name a local file by its path."
        )
    if not text.isprintable():
        raise DataError(f"{public(text)}: a URL has no characters that cannot be printed; check it.")
    if protocol == "zip":
        target = parse(rest) if is_url(rest) else None
        if not chained or not rest or (target is not None and target.protocol == "zip"):
            raise DataError(
                f"{public(text)}: expected zip://FOLDER::URL or zip://FOLDER::FILE, with one zip; check it."
            )
        return Url("zip", first.removeprefix(first[: first.index("://") + 3]).strip("/"), rest)
    if chained:
        raise DataError(f"{public(text)}: only zip:// may be chained, as in zip://FOLDER::s3://bucket/parts.zip.")
    return Url(protocol, text)


def public(text: str) -> str:
    """A text without what may be secret in its URLs: user and password, and the query, which may be signed.

    >>> public("https://me:secret@host/a.png?X-Amz-Signature=123: cannot be read")
    'https://host/a.png cannot be read'
    >>> public("zip://a::https://me@host/b.zip?sig=1"), public("s3://bucket/a@b/what?.png")
    ('zip://a::https://host/b.zip', 's3://bucket/a@b/what?.png')
    """
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))
