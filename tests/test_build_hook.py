"""The viewers of the review page: pinned, verified, whole or not at all."""

import base64
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def hook(module_of: Callable[[str], ModuleType]) -> ModuleType:
    return module_of("hatch_build.py")


def tarball(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def package(hook: ModuleType, content: bytes, sha256: str) -> object:
    integrity = base64.b64encode(hashlib.sha512(content).digest()).decode()
    return hook.Package("viewer", "1.2.3", integrity, (hook.File("dist/a.js", "a.js", sha256),))


def test_what_is_pinned_is_there(hook: ModuleType):
    """After ``make setup``; the files are those that were looked at when they were pinned."""
    assert hook.missing() == [], "run: python hatch_build.py"
    licences = (hook.VENDOR.parent / "licences.txt").read_text()
    assert "Copyright (c) 2021, Niivue" in licences
    assert (hook.VENDOR / "openseadragon-licence.txt").read_text() in licences


def test_fetched_once(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = tarball({"dist/a.js": b"export {}", "dist/b.js": b""})
    monkeypatch.setattr(hook, "PACKAGES", (package(hook, content, hashlib.sha256(b"export {}").hexdigest()),))
    monkeypatch.setattr(hook, "_tarball", lambda package: content)
    assert hook.fetch(tmp_path / "vendor") == ["a.js"]
    assert [path.name for path in (tmp_path / "vendor").iterdir()] == ["a.js"]
    monkeypatch.setattr(hook, "_tarball", lambda package: pytest.fail("fetched again"))
    assert hook.fetch(tmp_path / "vendor") == []
    (tmp_path / "vendor/a.js").write_bytes(b"changed")
    assert hook.missing(tmp_path / "vendor") == ["a.js"]


def test_other_content_is_refused(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content, digest = tarball({"dist/a.js": b"export {}"}), hashlib.sha256(b"export {}").hexdigest()
    monkeypatch.setattr(hook, "_tarball", lambda package: tarball({"dist/a.js": b"steal()"}))
    monkeypatch.setattr(hook, "PACKAGES", (package(hook, content, digest),))
    with pytest.raises(ValueError, match="the tarball has another checksum"):
        hook.fetch(tmp_path / "vendor")
    other = tarball({"dist/a.js": b"steal()"})
    monkeypatch.setattr(hook, "PACKAGES", (package(hook, other, digest),))
    monkeypatch.setattr(hook, "_tarball", lambda package: other)
    with pytest.raises(ValueError, match=r"dist/a\.js has another checksum"):
        hook.fetch(tmp_path / "vendor")
    assert not (tmp_path / "vendor").exists()


def test_the_registry_is_npms_setting(hook: ModuleType, monkeypatch: pytest.MonkeyPatch):
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    assert hook._registry() == hook.PUBLIC
    monkeypatch.setenv("npm_config_registry", "https://mirror.example/npm/")
    assert hook._registry() == "https://mirror.example/npm"


def test_a_build_without_a_network_goes_on(hook: ModuleType, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise OSError("no network")

    class App:
        said = ""

        def display_warning(self, text: str) -> None:
            self.said = text

    class Hook(hook.CustomBuildHook):  # type: ignore[name-defined, misc]
        app = App()

        def __init__(self) -> None:
            pass

    monkeypatch.setattr(hook, "fetch", broken)
    made = Hook()
    made.initialize("standard", {})
    assert made.app.said == "The viewers of volumes and slides cannot be fetched: no network"
