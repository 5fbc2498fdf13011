"""Which URLs are opened, and what of them is shown."""

from pathlib import Path

import fsspec
import pytest

from normalcy import DataError, open_data
from normalcy.remote.urls import parse, public


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host/a/b.png?sig=123", "https://host/a/b.png"),
        ("read https://me:s@cr@t@host/a.png?X-Amz-Signature=1&b=2 now", "read https://host/a.png now"),
        ("zip://x::https://me:secret@host/a.zip?token", "zip://x::https://host/a.zip"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("s3://bucket/a.png?versionId=7", "s3://bucket/a.png"),
        ("s3://bucket/what?.png", "s3://bucket/what?.png"),
        ("az://c@account/x?sv=1&sig=secret", "az://account/x"),
        ("no URL: a?b=c, me@host", "no URL: a?b=c, me@host"),
    ],
)
def test_nothing_secret_is_shown(text: str, shown: str):
    assert public(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd",
        "local:///etc/passwd",
        "ssh://host/x",
        "sftp://me:secret@host/x",
        "reference://x",
        "simplecache::s3://bucket/x",
        "s3://bucket/x::file:///etc/passwd",
        "zip://x::sftp://host/y.zip",
        "zip://x::zip://y::s3://bucket/z.zip",
        "zip://x::file:///tmp/y.zip",
        "zip://x",
        "dir://x::file:///etc",
    ],
)
def test_other_protocols_and_chains_are_refused(text: str):
    with pytest.raises(DataError) as error:
        open_data(text)
    assert "secret" not in str(error.value)


def test_a_table_of_a_store_names_no_file_of_this_machine(tmp_path: Path):
    """Neither by an absolute path, nor by one that leads out, nor by a URL."""
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "private.png")
    fs = fsspec.filesystem("memory")
    fs.put_file(str(tmp_path / "private.png"), "/tables/a.png")
    for path in (
        tmp_path / "private.png",
        Path("../" * 30) / str(tmp_path / "private.png").lstrip("/"),
        "memory://tables/a.png",
    ):
        fs.pipe_file("/tables/t.csv", f"path\na.png\n{path}\n".encode())
        data = open_data("memory://tables/t.csv")
        assert data.read(0).shape == (1, 8, 8)
        with pytest.raises(DataError):
            data.read(1)


def test_names_that_are_no_files_are_listed(tmp_path: Path):
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    fs = fsspec.filesystem("memory")
    for name in ("a.png", "b/../../../c.png", f"{'x' * 300}.png"):
        fs.store[f"/odd/{name}"] = fs.store.get(f"/odd/{name}") or _memory_file(fs, tmp_path / "a.png")
    data = open_data("memory://odd")
    assert [item.path for item in data.items] == ["a.png"]
    assert {"b/../../../c.png", f"{'x' * 300}.png"} <= set(data.reasons)


def _memory_file(fs, path: Path):
    fs.pipe_file("/other", path.read_bytes())
    return fs.store.pop("/other")


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(DataError, match=r"pip install \"normalcy\[remote\]\""):
        open_data("s3://bucket/x")


def test_the_parts_of_a_url():
    assert parse("s3://bucket/a/b").name == "b"
    assert parse("https://host/a/b.npz?sig=1#x").name == "b.npz"
    assert parse("zip://::s3://bucket/a.zip").name == "a.zip"
