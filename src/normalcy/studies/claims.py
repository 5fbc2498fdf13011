"""Work that several processes and machines divide by files in a folder that they share.

A claim is a file that one process alone can create. While its owner works, a thread marks it; when the owner ends, it is
removed. A claim that was not marked for as long as it says (its lease) belongs to a machine that died. That of a process of
this machine that no longer runs is void at once. Ages are measured by the clock of the file system, not by those of the machines.

To take over a void claim, a process first claims the right to do so, by a file whose name depends on the content of the void
one, and then renames that file to the claim, if that is still the same. So at most one process takes over, and one that dies
meanwhile leaves nothing but another void claim.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from normalcy.errors import DataError
from normalcy.files import content_and_age, create_bytes, mark_used, parse_json, read_bytes, remove, rename

LEASE = 180.0
"""Seconds after which a claim that is not marked is void. NFS may show times that are a minute old."""
MARKS = 6
"""Times a claim is marked within its lease."""
DEEPEST = 5
"""Claims to take over a claim to take over a claim ..."""


@contextmanager
def claimed(path: Path, lease: float = LEASE, wait: float = 0.0) -> Iterator[bool]:
    """Whether this process has the claim ``path`` while the block runs; it tries for ``wait`` seconds.

    ``lease``: seconds after which others take over a claim of another machine that does not mark it any more.
    """
    content = _content(lease)
    until = time.monotonic() + wait
    while not (owned := _take(path, content)) and time.monotonic() < until:
        time.sleep(min(0.2, max(until - time.monotonic(), 0)))
    if not owned:
        yield False
        return
    done = threading.Event()
    thread = threading.Thread(target=_mark, args=(path, content, lease / MARKS, done), daemon=True)
    thread.start()
    try:
        yield True
    finally:
        done.set()
        thread.join()
        if _is(path, content):
            remove(path)


# -- private -----------------------------------------------------------------------------------------------------------


def _content(lease: float) -> bytes:
    machine, process = _machine(), os.getpid()
    words = {
        "machine": machine,
        "process": process,
        "started": _started(process),
        "lease": lease,
        "key": os.urandom(8).hex(),
    }
    return json.dumps(words).encode()


def _take(path: Path, content: bytes, depth: int = 0) -> bool:
    if create_bytes(path, content):
        return True
    there = content_and_age(path)
    if there is None or depth == DEEPEST or not _is_void(*there):
        return False
    guard = path.with_name(f"{path.name}.{hashlib.sha256(there[0]).hexdigest()[:16]}")
    if not _take(guard, content, depth + 1):
        return False
    if _is(path, there[0]):
        rename(guard, path)
    elif _is(guard, content):
        remove(guard)  # another has taken over meanwhile, or the owner is done
    return _is(path, content)


def _is_void(content: bytes, age: float) -> bool:
    try:
        words: dict[str, Any] = parse_json(content)
        lease, here = float(words["lease"]), words["machine"] == _machine()
        gone = here and bool(words["started"]) and _started(int(words["process"])) != words["started"]
    except (ValueError, KeyError, TypeError):  # its owner was killed before it could write
        return age > LEASE
    return gone or age > lease


def _is(path: Path, content: bytes) -> bool:
    try:
        return read_bytes(path) == content
    except DataError:
        return False


def _mark(path: Path, content: bytes, every: float, done: threading.Event) -> None:
    while not done.wait(every):
        if _is(path, content):
            mark_used(path)


@cache
def _machine() -> str:
    """This start of this machine, and the numbering of processes (of a container, it is its own); "" where it is not known."""
    try:
        return f"{read_bytes('/proc/sys/kernel/random/boot_id').decode().strip()} {os.readlink('/proc/self/ns/pid')}"
    except (DataError, OSError):  # another system
        return ""


def _started(process: int) -> str:
    """When a process of this machine started, in ticks; "" where it does not run, or the system does not say."""
    try:
        words = read_bytes(f"/proc/{process}/stat").rpartition(b")")[2].split()
    except DataError:
        return ""
    return "" if words[:1] == [b"Z"] else words[19].decode()
