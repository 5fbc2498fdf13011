"""Writing and reading files: whole or not at all, nothing overwritten unasked."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from normalcy.errors import DataError, ModelFileError, SettingsError


def read_bytes(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(f"{path}: cannot be opened ({reason}); check the name and the access rights.") from None


def write_bytes(path: Path | str, data: bytes) -> None:
    """Writes the file whole or not at all: under another name first, renamed when complete. Makes missing folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(partial, 0o644)  # mkstemp makes it private
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def write_folder(folder: Path, fill: Callable[[Path], None], overwrite: bool = False) -> None:
    """Fill a new folder beside ``folder`` and give it its name when it is complete.

    Raises SettingsError when ``folder`` exists and is not empty, unless ``overwrite``; what was there before is removed
    only after the new one is whole.
    """
    refuse_existing(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.partial-"))
    try:
        fill(partial)
        partial.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old-"))
            os.replace(folder, old / "old")
            os.replace(partial, folder)
            shutil.rmtree(old)
        else:
            os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Raise SettingsError where writing ``folder`` would lose something."""
    if folder.is_file():
        raise SettingsError(f"{folder} is a file: choose another folder.")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise SettingsError(f"{folder} exists and is not empty: choose another folder or pass --overwrite.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelFileError when it is missing or is something else."""
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFileError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(words, dict):
        raise ModelFileError(f"{path} should hold a JSON object, got {type(words).__name__}.")
    return words


def write_json(path: Path, words: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(words, indent=1, allow_nan=False), encoding="utf-8")
