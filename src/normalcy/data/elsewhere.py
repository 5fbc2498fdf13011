"""Data sets in stores that fsspec reaches, and in zips.

A URL (``s3://``, ``gs://``, ``az://``, ``https://``, ``http://``, ``memory://``) names what a path would: a folder, an image,
a table, annotations, arrays or tars. ``zip://FOLDER::URL`` (or ``::FILE``) names what is in a zip. Patterns
(``s3://bucket/parts/*.png``) are those of fsspec. Web servers have no listings: there a folder, whose URL ends with "/", is
what its index page links to, and images of a table are looked for by its names.

The store is listed into a :class:`~normalcy.remote.mirror.Mirror`, which is then opened as the folder that it is. Credentials
are fsspec's business (environment, configuration files); they, and queries of URLs, appear nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from normalcy.data import table, webdataset
from normalcy.data.dataset import DataSet
from normalcy.data.formats import VOLUME_SUFFIXES, Limits
from normalcy.data.volumes import split_name
from normalcy.errors import DataError, NormalcyError
from normalcy.remote import mirror
from normalcy.remote.mirror import Mirror, open_store
from normalcy.remote.store import Entry, Store
from normalcy.remote.urls import WEB, parse

_AT_ONCE = 32
"""Files that are asked for at the same time."""


def open_url(text: str, limits: Limits, open_local: Callable[[str], DataSet]) -> DataSet:
    """The data set of a URL; ``open_local`` opens the folder, or the file, that stands for it on this machine."""
    body, part = split_name(text)
    body, choice = found.groups() if (found := re.fullmatch(r"(.*\.npz)(:\d+)", body)) else (body, "")
    if webdataset.is_tars(parse(body).name):
        listed, names = _mirror_files(webdataset.expand(body), limits)
        return _opened(listed, lambda: webdataset.open_tars([listed.root / name for name in names], limits))
    listed, name = _mirror(body, limits)
    tail = choice or (text[len(body) :] if part else "")
    return _opened(listed, lambda: open_local(f"{listed.root / name if name else listed.root}{tail}"))


def _opened(listed: Mirror, work: Callable[[], DataSet]) -> DataSet:
    """The data set, or an error, with names of the store."""
    try:
        data = work()
    except NormalcyError as error:
        raise type(error)(listed.in_words(str(error))) from None
    origin = data.origin
    notes = tuple(map(listed.in_words, origin.notes))
    data.origin = replace(origin, notes=notes, doubt=listed.in_words(origin.doubt))
    if listed.passed:
        data.ignored = (*data.ignored, *listed.passed)
        data.reasons = {**data.reasons, **listed.passed}
    return data


def _mirror(text: str, limits: Limits) -> tuple[Mirror, str]:
    """What a URL names, listed; and the name of the file, if it names one."""
    url, cache = parse(text), mirror.SETTING.cache
    store = open_store(url, cache)
    root = store.root
    if _is_pattern(root) and url.protocol not in WEB:
        return _matching(store, limits), ""
    entry = None if text.endswith("/") else store.entry(root, url.name)
    if entry is None:
        entries = store.under(root, limits.entries)
        if not entries:
            raise DataError(f"{url}: no such file or folder; check the name.")
        name = url.name.removesuffix(".zip") if url.protocol == "zip" else url.name
        return Mirror(store, root.rstrip("/") if root.strip("/") else root, name, entries, cache), ""
    base = _parent(root)
    last, name = url.name.lower(), base.rstrip("/").rpartition("/")[2]
    is_table = last.endswith((*table.TABLE_SUFFIXES, ".json"))
    if url.protocol in WEB:
        listed = Mirror(store, base, name, [entry], cache)
        if last.endswith(tuple(table.TABLE_SUFFIXES)):
            wanted = table.files_named(listed.root / url.name, limits)
            listed.add(_present(store, base, wanted))
        return listed, url.name
    beside = store.under(base, limits.entries, is_table) if is_table or last.endswith(VOLUME_SUFFIXES) else [entry]
    return Mirror(store, base, name, beside, cache), url.name


def _mirror_files(texts: list[str], limits: Limits) -> tuple[Mirror, list[str]]:
    """These files of one folder (or its folders), which may be a pattern; and their names."""
    url, cache = parse(texts[0]), mirror.SETTING.cache
    store = open_store(url, cache)
    if len(texts) == 1 and _is_pattern(store.root) and url.protocol not in WEB:
        listed = _matching(store, limits)
        return listed, [entry.name for entry in listed.entries]
    roots = [store.path_of(text) for text in texts]
    base = _common([_parent(root) for root in roots])
    before = base.rstrip("/") + "/"
    if base.endswith(":/") or any("?" in root for root in roots[1:]):
        raise DataError(f"{url}: expected tars of one server without queries; name them in one URL each.")
    names = [root.removeprefix(before).partition("?")[0] for root in roots]
    entries = _present(store, base, names) if len(roots) > 1 else [store.entry(roots[0], names[0])]
    entries = [entry for entry in entries if entry is not None]
    missing = set(names) - {entry.name for entry in entries}
    if missing:
        raise DataError(f"{store.shown(before + min(missing))}: no such file; check the name.")
    return Mirror(store, base, before.rstrip("/").rpartition("/")[2], entries, cache), names


def _matching(store: Store, limits: Limits) -> Mirror:
    root = store.root
    base = _parent(root[: min(root.index(sign) for sign in "*?[" if sign in root)])
    entries = store.matching(root, base, limits.entries)
    if not entries:
        raise DataError(f"{store.url}: no file matches; check the pattern.")
    return Mirror(store, base, base.rstrip("/").rpartition("/")[2], entries, mirror.SETTING.cache)


def _present(store: Store, base: str, names: Iterable[str]) -> list[Entry]:
    """Those of these files below ``base`` that are there."""
    before = base.rstrip("/") + "/"
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(lambda name: store.entry(before + name, name), names)
        return [entry for entry in found if entry is not None]


def _common(folders: list[str]) -> str:
    """The folder that all of these are or lie in."""
    parts = [folder.split("/") for folder in folders]
    first = next((k for k, words in enumerate(zip(*parts)) if len(set(words)) > 1), min(map(len, parts)))
    return "/".join(parts[0][:first])


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _is_pattern(path: str) -> bool:
    return any(sign in path for sign in "*?[")
