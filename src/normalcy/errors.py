"""Errors and warnings of normalcy: each message says who, expected, got and what to do, in one sentence."""

from __future__ import annotations

import re

__all__ = [
    "DataError",
    "ModelFileError",
    "NormalcyError",
    "NormalcyWarning",
    "SettingsError",
    "TrainingError",
    "WriteError",
]


class NormalcyError(Exception):
    """Base of all errors of normalcy; the command line prints the message and exits with ``exit_code``."""

    exit_code = 1

    def __str__(self) -> str:
        """One line: names of files may hold line breaks and other characters that cannot be shown, which are escaped."""
        text = super().__str__()
        return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class DataError(NormalcyError, ValueError):
    """Images, masks, tables or folders that cannot be used."""


class SettingsError(NormalcyError, ValueError):
    """An unknown setting, an impossible value, a wrong option on the command line."""

    exit_code = 2


class ModelFileError(NormalcyError):
    """A model folder that is missing, damaged, of an unknown version or unsafe."""


class TrainingError(NormalcyError):
    """Training cannot continue, for example because a loss is not finite."""


class NormalcyWarning(UserWarning):
    """A warning of normalcy itself. The command line prints these alone: others may quote what a file holds."""


class WriteError(NormalcyError, OSError):
    """A file or folder that cannot be written: no space, no rights, a disk that is read-only."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class Reason(ValueError):
    """Why a file cannot be read, in words of normalcy, which quote nothing that it holds but numbers and terms of its format."""


def without_content(error: Exception, data: bytes) -> str | None:
    """The text of another library's error about a file with these bytes; None where it may quote what the file holds, as free
    text does, or is none for a person."""
    text = " ".join(str(error).split()).rstrip(".")
    words = re.findall(r"[^\W\d_]{3,}", text)
    if not words or len(text) > _LONGEST or " at 0x" in text or any(word.encode() in data for word in words):
        return None
    return text


_LONGEST = 200
