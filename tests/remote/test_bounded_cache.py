"""The cache of fetched files: bounded at any moment, least recently used out first, damage seen, several processes."""

import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from normalcy import DataError
from normalcy.remote.cache import Cache


def content(k: int, size: int = 1000) -> bytes:
    return bytes([k % 256]) * size


def put(cache: Cache, k: int, size: int = 1000, calls: list[int] | None = None) -> bytes:
    def fill(file):
        if calls is not None:
            calls.append(k)
        file.write(content(k, size))
        file.flush()

    with cache.open(f"{k:064x}"[::-1], size, fill) as file:
        return file.read()


def on_disk(folder: Path) -> int:
    return sum(
        path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.name.startswith("index.db")
    )


def test_what_was_used_least_recently_goes(tmp_path: Path):
    cache, calls = Cache(tmp_path, 3500), []
    for k in (1, 2, 3):
        assert put(cache, k, calls=calls) == content(k)
    with cache._lock:
        cache._database().execute("UPDATE entries SET used = used - 100")
    put(cache, 1, calls=calls)  # used again
    put(cache, 4, calls=calls)
    assert calls == [1, 2, 3, 4]
    assert on_disk(tmp_path) == cache.bytes == 3000
    put(cache, 1, calls=calls)
    assert calls == [1, 2, 3, 4]
    put(cache, 2, calls=calls)
    assert calls[-1] == 2


def test_damaged_entries_are_fetched_again(tmp_path: Path):
    cache, calls = Cache(tmp_path, 10_000), []
    put(cache, 1, calls=calls)
    file = next(path for path in tmp_path.rglob("*") if path.is_file() and "index" not in path.name)
    for damaged in (content(1)[:-1], content(2), b""):
        file.write_bytes(damaged)
        assert put(cache, 1, calls=calls) == content(1)
    file.unlink()
    assert put(cache, 1, calls=calls) == content(1)
    assert len(calls) == 5
    assert cache.bytes == 1000


def test_what_is_too_large_or_of_unknown_size_is_not_kept(tmp_path: Path):
    cache = Cache(tmp_path, 1500)
    assert put(cache, 1, 1000) == content(1, 1000)
    with cache.open("a" * 64, None, lambda file: file.write(b"abc") and file.flush()) as file:
        assert file.read() == b"abc"
    assert cache.bytes == on_disk(tmp_path) == 0


def test_a_failure_leaves_nothing(tmp_path: Path):
    cache = Cache(tmp_path, 10_000)

    def fail(file):
        file.write(b"half")
        raise DataError("cut")

    with pytest.raises(DataError, match="cut"):
        cache.open("b" * 64, 1000, fail)
    assert cache.bytes == on_disk(tmp_path) == 0
    assert not cache.has("b" * 64)


def test_what_a_killed_process_reserved_is_free_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = Cache(tmp_path, 2000)
    assert cache._reserve("c" * 64, 1000)
    assert cache._reserve("d" * 64, 1000)
    assert put(cache, 1, 900) == content(1, 900)  # not kept: no room
    assert cache.bytes == 2000
    monkeypatch.setattr("normalcy.remote.cache._STALE", -1.0)
    put(cache, 1, 900)
    assert cache.bytes == on_disk(tmp_path) == 900


def work(folder: Path, seed: int, most: "multiprocessing.Value") -> None:
    cache = Cache(folder, 20_000)
    for k in range(60):
        number = (k * (seed + 3)) % 40
        assert put(cache, number) == content(number)
        with most.get_lock():
            most.value = max(most.value, cache.bytes)


def test_processes_share_it(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    most = context.Value("q", 0)
    processes = [context.Process(target=work, args=(tmp_path, seed, most)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert 10_000 < most.value <= 20_000
    assert on_disk(tmp_path) == Cache(tmp_path, 20_000).bytes <= 20_000


def test_threads_share_it(tmp_path: Path):
    cache, faults = Cache(tmp_path, 5000), []

    def many(seed: int) -> None:
        for k in range(40):
            if put(cache, (k * seed) % 9) != content((k * seed) % 9):
                faults.append(k)

    threads = [threading.Thread(target=many, args=(seed,)) for seed in (1, 2, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert on_disk(tmp_path) == cache.bytes <= 5000


def test_only_this_user_may_look(tmp_path: Path):
    put(Cache(tmp_path / "kept", 5000), 1)
    if os.name == "posix":
        assert (tmp_path / "kept").stat().st_mode & 0o077 == 0
