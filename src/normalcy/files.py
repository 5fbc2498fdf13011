"""The one module that opens and writes files.

Reading: regular files alone (a pipe or a device would block or never end), of a bounded number of bytes. JSON, TOML and
gzip are bounded too. Writing: a file or a folder is there whole or not at all when a process is killed, nothing is
overwritten unasked, permissions follow the umask, and names from tables cannot leave the folder that is written.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import gzip
import hashlib
import io
import json
import math
import os
import shutil
import signal
import sqlite3
import stat
import tempfile
import threading
import tokenize
import tomllib
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, TextIO, cast

from normalcy.errors import DataError, ModelFileError, NormalcyError, Reason, SettingsError, WriteError

try:
    import fcntl
except ImportError:  # Windows: no locks, all else as here
    fcntl = None  # type: ignore[assignment]

MAX_BYTES = 2**32 + 2**20
"""Largest file that is read into memory by default: 4 GiB of values, and a header."""
MAX_TEXT = 2**25
"""Largest JSON, TOML or log file, in bytes. Parsed, it takes up to 30 times as much memory."""
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
MARKS = ("detector.json", "run.json", "compare.json", "select.json")
"""What says that a folder is one of normalcy's; written last where a folder is filled in place."""


# -- reading ---------------------------------------------------------------------------------------------------------


def open_regular(path: Path | str, error: type[NormalcyError] = DataError) -> BinaryIO:
    """A regular file, opened for reading; links are followed. Raises ``error`` for anything else, without waiting.

    What lies in the folder of a :class:`Mount` is what that gives.
    """
    if (found := mounted(path)) is not None and (file := _of_mount(found.open, path, error)) is not None:
        return file
    try:
        _refuse_special(path, os.stat(path).st_mode, error)  # first: opening a device can already act on it
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            _refuse_special(path, os.fstat(handle).st_mode, error)
            return os.fdopen(handle, "rb")
        except BaseException:
            os.close(handle)
            raise
    except (OSError, ValueError) as fault:  # ValueError: a null byte in the name
        if isinstance(fault, NormalcyError):
            raise
        reason = (fault.strerror if isinstance(fault, OSError) else None) or str(fault)
        shown = str(path) if len(str(path)) < 500 else f"{str(path)[:100]}...{str(path)[-100:]}"
        raise error(f"{shown}: cannot be opened ({reason}); check the name and the access rights.") from None


def open_blocks(path: Path | str) -> BinaryIO:
    """A regular file to be read at any place; of one in the folder of a :class:`Mount` only what is read is fetched."""
    if (found := mounted(path)) is not None and (file := _of_mount(found.blocks, path, DataError)) is not None:
        return file
    return open_regular(path)


def read_bytes(path: Path | str, limit: int = MAX_BYTES, error: type[NormalcyError] = DataError) -> bytes:
    """The content of a regular file of at most ``limit`` bytes."""
    with open_regular(path, error) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise error(f"{path}: has {size:,} bytes, at most {limit:,} are read; make it smaller or raise the limit.")
        try:
            return file.read(size or 2**20)  # files of /proc say 0
        except (OSError, MemoryError) as fault:
            raise error(f"{path}: cannot be read ({fault or 'too large for the memory'}); check the disk.") from None


@contextlib.contextmanager
def reading_text(path: Path, limit: int, error: type[NormalcyError] = DataError) -> Iterator[TextIO]:
    """A regular file of at most ``limit`` bytes as a text in UTF-8, read piece by piece; other bytes are kept as surrogates."""
    with open_regular(path, error) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise error(f"{path}: has {size:,} bytes, at most {limit:,} are read; make it smaller.")
        with io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as text:
            yield text


def read_head(path: Path | str, count: int) -> bytes:
    """The first bytes of a file; empty where it cannot be read or is not a regular file."""
    try:
        if (found := mounted(path)) is not None and (head := found.head(Path(path), count)) is not None:
            return head
        with open_regular(path) as file:
            return file.read(count)
    except (OSError, DataError):
        return b""


def read_text(path: Path | str, error: type[NormalcyError] = DataError) -> str:
    """A text in UTF-8; bytes that are not UTF-8 are kept as surrogates."""
    return read_bytes(path, MAX_TEXT, error).decode("utf-8", "surrogateescape")


def parse_json(text: str | bytes) -> Any:
    """JSON of finite numbers and of whole numbers of at most 64 bits. Raises ValueError; too deep nesting included."""
    try:
        return json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, error: type[NormalcyError] = ModelFileError) -> dict[str, Any]:
    """A JSON object. Raises ``error`` when the file is missing or is something else."""
    data = read_bytes(path, MAX_TEXT, error)
    try:
        words = parse_json(data)
    except ValueError as fault:
        raise error(f"{path} is not valid JSON ({fault}).") from fault
    if not isinstance(words, dict):
        raise error(f"{path} should hold a JSON object, got {type(words).__name__}.")
    return words


def read_json_lines(path: Path, error: type[NormalcyError] = ModelFileError) -> list[dict[str, Any]]:
    """Flat JSON objects, one in a line; what is none of that (a line cut off by a kill) is passed over."""
    records = []
    for line in read_text(path, error).splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and not any(isinstance(value, dict | list) for value in record.values()):
                records.append(record)
    return records


def read_toml(path: Path, error: type[NormalcyError] = SettingsError) -> dict[str, Any]:
    """A TOML file of at most 1 MiB. Raises ``error`` with the place of a fault."""
    data = read_bytes(path, 2**20, error)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise error(f"{path} is not valid TOML: {fault}.") from fault
    except (ValueError, RecursionError) as fault:  # numbers of thousands of digits, deep nesting
        raise error(f"{path} is not valid TOML: {fault or 'nested too deeply'}.") from fault


def read_array(path: Path, error: type[NormalcyError] = DataError) -> Any:
    """The array in a ``.npy`` file, mapped: only what is used is read. Never unpickles."""
    import numpy as np

    with open_regular(path, error) as file:
        try:
            shape, dtype, fortran = npy_header(file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
            if math.prod(shape) * dtype.itemsize > size - start:
                raise ValueError(f"shape {shape} of {dtype} needs more bytes than the file has")
            if math.prod(shape) == 0:  # nothing to map
                return np.empty(shape, dtype)
            return np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")
        except (ValueError, OSError) as fault:
            reason = " ".join(str(fault).split())[:200]
            raise error(f"{path}: cannot be read as .npy ({reason}); write it again.") from None


def read_arrays(path: Path, limit: int = MAX_BYTES, decoded: int = 2**32) -> dict[str, Any]:
    """The arrays in an ``.npz`` file, by name. Never unpickles.

    Raises Reason where the file has more than ``limit`` bytes, or its arrays more than ``decoded`` when they are
    decompressed; that is seen from their headers.
    """
    import numpy as np

    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > limit:
                raise Reason(f"it has {size:,} bytes, at most {limit:,} are read")
            with zipfile.ZipFile(file) as archive:
                members = [one for one in archive.infolist() if one.filename.endswith(".npy")]
                if (size := sum(one.file_size for one in members)) > decoded:
                    raise Reason(f"its arrays have {size:,} bytes when decompressed, at most {decoded:,} are read")
                arrays = {}
                for one in members:
                    with archive.open(one) as member:
                        shape, dtype = npy_header(member)[:2]
                    if math.prod(shape) * dtype.itemsize > one.file_size:
                        raise Reason(f"{one.filename} claims the shape {shape}, more than it holds")
                    with archive.open(one) as member:
                        arrays[one.filename[:-4]] = np.lib.format.read_array(cast("Any", member), allow_pickle=False)
                return arrays
    except (
        OSError,
        EOFError,
        MemoryError,
        KeyError,
        RuntimeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as fault:
        if isinstance(fault, NormalcyError | Reason):
            raise
        if not zipfile.is_zipfile(path):
            raise Reason("not a zip file, or one that is cut off") from None
        raise Reason(
            "too large for the memory" if isinstance(fault, MemoryError) else "its members are damaged"
        ) from None


def npy_header(file: Any) -> tuple[tuple[int, ...], Any, bool]:
    """Shape, type, and whether the values lie in Fortran's order. Raises Reason for what is no array of numbers."""
    import numpy as np

    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
    except ValueError:
        raise Reason("it does not begin as an array of NumPy does") from None
    if version not in readers:  # 3.0 exists for field names of structured arrays
        raise Reason(f"a .npy file of version {version}, which does not hold images")
    try:
        shape, fortran, dtype = readers[version](file)
    except (
        ValueError,
        SyntaxError,
        TypeError,
        RecursionError,
        MemoryError,
        tokenize.TokenError,
    ):  # parsed as Python text
        raise Reason("its header is damaged or cut off") from None
    if dtype.hasobject:
        raise Reason("holds Python objects, not numbers")
    if min(shape, default=1) < 0:
        raise Reason(f"truncated or damaged: it claims the shape {shape}")
    return shape, dtype, fortran


def bounded_gunzip(data: bytes, limit: int, whole: bool = True) -> bytes:
    """What ``data`` holds, decompressed: at most ``limit`` bytes. Data that are not gzip come back as they are.

    ``whole=False`` gives the first ``limit`` bytes. Otherwise more than that raises ValueError, and the checksum is
    verified. Damaged data raise EOFError, zlib.error or gzip.BadGzipFile.
    """
    if not data.startswith(b"\x1f\x8b"):
        parts, size = [data[: limit + whole]], len(data)
    else:
        parts, size = [], 0
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while size < limit + whole and (part := file.read(min(2**24, limit + whole - size))):
                parts.append(part)
                size += len(part)
    if whole and size > limit:
        raise Reason(f"decompressed it has more than {limit:,} bytes, the limit")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_member(archive: zipfile.ZipFile, name: str, limit: int = MAX_BYTES) -> bytes:
    """A file of a zip. Raises ValueError where it is larger than ``limit`` when decompressed."""
    size = archive.getinfo(name).file_size
    if size > limit:
        raise ValueError(f"it has {size:,} bytes when decompressed, at most {limit:,} are read")
    with archive.open(name) as file:
        return file.read(size)


class Mount(Protocol):
    """A folder of this machine that stands for a store elsewhere; see :mod:`normalcy.remote.mirror`."""

    @property
    def root(self) -> Path: ...

    def open(self, path: Path) -> BinaryIO | None: ...

    def blocks(self, path: Path) -> BinaryIO | None: ...

    def head(self, path: Path, count: int) -> bytes | None: ...

    def shown(self, path: Path | str) -> str:
        """The name of a file elsewhere."""

    def in_words(self, text: str) -> str:
        """A message with those names."""


_MOUNTS: weakref.WeakValueDictionary[str, Mount] = weakref.WeakValueDictionary()


def mount(folder: Mount) -> None:
    """Files of ``folder.root`` are opened by it, as long as it lives."""
    _MOUNTS[f"{folder.root}{os.sep}"] = folder


def mounted(path: Path | str) -> Mount | None:
    """The mount that a path lies in, if there is one."""
    if not _MOUNTS:
        return None
    place = f"{os.path.abspath(path)}{os.sep}"
    return next((found for root, found in list(_MOUNTS.items()) if place.startswith(root)), None)


def _of_mount(
    opener: Callable[[Path], BinaryIO | None], path: Path | str, error: type[NormalcyError]
) -> BinaryIO | None:
    try:
        return opener(Path(path))
    except DataError as fault:
        raise error(str(fault)) from None


def blank_file(path: Path, size: int, made: set[Path]) -> None:
    """A new file that takes no space and has a size; ``made`` are folders that are there, to which those above it are added."""
    if path.parent not in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.add(path.parent)
    with open(path, "xb") as file:
        file.truncate(size)


def anonymous_file(folder: Path | None = None) -> BinaryIO:
    """A file for reading and writing that is gone when it is closed; on the disk of ``folder``, or that of temporary files."""
    return cast("BinaryIO", tempfile.NamedTemporaryFile(prefix="normalcy-", dir=folder))


def private_folder(folder: Path) -> None:
    """A folder that only this user may read, with those above it, where it is missing."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as fault:
        raise _cannot_write(folder, fault) from fault


def _refuse_special(path: Path | str, mode: int, error: type[NormalcyError]) -> None:
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise error(f"{path}: is not a regular file ({kind}); name a file, or remove it.")


def _whole(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"the number {text[:20]}... is too large")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:20]} is not finite")
    return value


# -- writing a file --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Path | str, durable: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, whole or not at all: under another name first, renamed at the end. Makes missing folders.

    ``durable`` waits for the disk before the renaming. Raises WriteError, for example where the disk is full; what was
    there before is then unchanged.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file: BinaryIO | None = None
        try:
            with uninterrupted():
                file = _partial_file(path)  # has its name: some libraries ask for it
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            if os.name == "nt":
                file.close()  # an open file cannot be renamed there
            else:
                os.close(
                    os.dup(file.fileno())
                )  # a disk on a network says now, before the renaming, what it cannot take
            os.replace(file.name, path)
        except BaseException as fault:
            if file is not None:
                with contextlib.suppress(OSError):
                    os.unlink(file.name)
            if isinstance(fault, RuntimeError) and isinstance(fault.__context__, OSError | KeyboardInterrupt):
                raise fault.__context__ from None  # torch.save() hides the reason behind an error of its own
            raise
        finally:
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
    except OSError as fault:
        raise _cannot_write(path, fault) from fault


@contextlib.contextmanager
def writing_text(path: Path | str) -> Iterator[TextIO]:
    """As :func:`writing`, for UTF-8 text and tables of the csv module; surrogates become the bytes they stand for."""
    with writing(path) as file:
        text = io.TextIOWrapper(cast("IO[bytes]", file), encoding="utf-8", errors="surrogateescape", newline="")
        yield text
        text.flush()
        text.detach()


def _partial_file(path: Path) -> BinaryIO:
    """A new file beside ``path``, locked while it is open.

    Its name depends on that of ``path`` alone, so that what a killed process left there is found, and removed. Where
    another writes the same file now, or there are no locks, it is a random one.
    """
    # Short: a long name leaves no room for more.
    place = path.parent / f".normalcy-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}"
    if fcntl is not None:
        with contextlib.suppress(OSError):
            handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if _locked(handle, place):
                    os.unlink(place)
            finally:
                os.close(handle)
        with contextlib.suppress(FileExistsError):
            file = open(place, "xb")  # noqa: SIM115
            if _locked(file.fileno(), place) is not False:
                return file
            file.close()  # another has taken it for one that was left, and removes it
    return open(path.parent / f".normalcy-{os.urandom(8).hex()}", "xb")


def _locked(handle: int, path: Path) -> bool | None:
    """Whether an open file could be locked, and is still the one of that name; None where the system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.stat(path, follow_symlinks=False).st_ino == os.fstat(handle).st_ino
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:
        return None


def write_bytes(path: Path | str, data: bytes) -> None:
    """Writes the file whole or not at all, see :func:`writing`."""
    with writing(path) as file:
        file.write(data)


def write_new(path: Path, *parts: bytes | memoryview) -> None:
    """Writes bytes as a file that does not exist yet, in a folder that nobody sees before it is whole (:func:`write_folder`):
    without another name first. Makes missing folders. Raises WriteError."""
    try:
        try:
            file = open(path, "xb", 0)  # noqa: SIM115
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "xb", 0)  # noqa: SIM115
        with file:
            for part in parts:
                rest = memoryview(part)
                while len(rest):
                    rest = rest[file.write(rest) :]
    except OSError as fault:
        raise _cannot_write(path, fault) from fault


def write_json(path: Path, words: Mapping[str, Any]) -> None:
    """A JSON object of finite numbers, whole or not at all."""
    write_bytes(path, json.dumps(words, indent=1, allow_nan=False).encode())


def create_bytes(path: Path, data: bytes) -> bool:
    """A new file with this content; False where there is one of that name. One process of several alone succeeds, on a disk that
    machines share too."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
    except FileExistsError:
        return False
    except OSError as fault:
        raise _cannot_write(path, fault) from fault
    return True


def rename(source: Path, target: Path) -> bool:
    """Give a file the name ``target``, in place of the one there, or a folder where nothing is; False where it cannot be."""
    try:
        if source.is_dir() and target.exists():
            return False
        os.replace(source, target)
    except OSError:
        return False
    return True


def mark_used(path: Path) -> bool:
    """Set the time of a file to now, by the clock of the file system; False where that cannot be."""
    try:
        os.utime(path)
    except OSError:
        return False
    return True


def content_and_age(path: Path, limit: int = 2**16) -> tuple[bytes, float] | None:
    """The content of a small file and the seconds since it was changed or marked; None where it is gone.

    Both times are the file system's own, so that clocks of machines may differ.
    """
    try:
        with open_regular(path) as file:
            data, then = file.read(limit), os.fstat(file.fileno()).st_mtime
        probe = path.parent / f".normalcy-{os.urandom(8).hex()}"
        with open(probe, "xb") as file:
            os.utime(file.fileno() if os.utime in os.supports_fd else probe)
            now = os.fstat(file.fileno()).st_mtime
        probe.unlink()
    except (OSError, DataError):
        return None
    return data, now - then


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced by another; None where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def append_text(path: Path, text: str) -> None:
    """Adds to the end of a regular file, which is made where it is missing."""
    flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags, 0o666)
        with os.fdopen(handle, "wb") as file:
            _refuse_special(path, os.fstat(handle).st_mode, DataError)
            file.write(text.encode("utf-8", "surrogateescape"))
    except OSError as fault:
        raise _cannot_write(path, fault) from fault


def open_database(path: Path) -> sqlite3.Connection:
    """An SQLite database, made where it is missing, that several threads and processes may use.

    It is in WAL mode and each commit waits for the disk: a killed process loses nothing that was committed. SQLite opens the
    file itself, and two more beside it (``-wal`` and ``-shm``). Raises DataError for what is no regular file or no database,
    WriteError where it cannot be written.
    """
    for suffix in ("", "-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        if beside.is_symlink() or beside.exists():
            _refuse_special(beside, os.lstat(beside).st_mode, DataError)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
        except BaseException:
            database.close()
            raise
    except sqlite3.DatabaseError as fault:
        if isinstance(fault, sqlite3.OperationalError):
            raise WriteError(f"{path}: cannot be opened for writing ({fault}); check the access rights.") from None
        raise DataError(f"{path}: is no SQLite database ({fault}); move it away and start again.") from None
    except OSError as fault:
        raise _cannot_write(path, fault) from fault
    return database


def read_database(path: Path) -> sqlite3.Connection:
    """An existing SQLite database, for reading alone. Raises DataError where it is missing or none."""
    open_regular(path).close()
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30, check_same_thread=False)
        database.execute("SELECT 1 FROM sqlite_master")
    except sqlite3.DatabaseError as fault:
        raise DataError(f"{path}: cannot be read as SQLite database ({fault}); move it away.") from None
    return database


def link_or_copy_all(source: Path, names: Iterable[str], target: Path) -> None:
    """The regular files of these names in the folder ``source`` also in ``target``, which has none of these names yet: hard links
    where possible, else copies. Links and special files are passed over."""
    made = False
    for name in names:
        one, other = os.path.join(source, name), os.path.join(target, name)
        if not stat.S_ISREG(os.lstat(one).st_mode):
            continue
        if not made:
            make_folder(target)
            made = True
        try:
            os.link(one, other, follow_symlinks=False)
        except FileExistsError as fault:
            raise _cannot_write(Path(other), fault) from fault
        except OSError:  # another file system, or one without links
            with open_regular(Path(one)) as opened, writing(other) as file:
                shutil.copyfileobj(opened, file)


def new_array(path: Path, shape: tuple[int, ...], dtype: str = "<f4") -> Any:
    """A new ``.npy`` file, mapped for writing. Its blocks are taken now: a full disk met later would kill the process."""
    import numpy as np

    try:
        with open(path, "x+b") as file:
            header = {"descr": dtype, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            start, count = file.tell(), math.prod(shape) * np.dtype(dtype).itemsize
            file.flush()
            if hasattr(os, "posix_fallocate") and count:
                os.posix_fallocate(file.fileno(), start, count)
            return np.memmap(file, dtype, "r+", start, shape)
    except OSError as fault:
        raise _cannot_write(path, fault) from fault


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file lies in ``folder`` or below, links followed."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a name too long or with a null byte, a circle of links
        return False


def inside(folder: Path, name: str) -> Path:
    """``folder / name``. Raises SettingsError where that is not below ``folder``: absolute, with "..", or through a link.

    >>> inside(Path("out"), "maps/a.png").as_posix()
    'out/maps/a.png'
    """
    path = folder / name
    lexical = Path(os.path.normpath(path))
    below = lexical != Path(os.path.normpath(folder)) and lexical.is_relative_to(os.path.normpath(folder))
    if "\0" in name or not below or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise SettingsError(f"{name!r} leads out of {folder}: nothing is written there.")
    return path


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it, as far as possible; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(RecursionError):  # folders nested a thousand deep, which normalcy does not write
            shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def own_secret(path: Path) -> bytes:
    """32 random bytes in a file that only this user may read, made at the first use. Raises OSError where that cannot be."""
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(os.urandom(32))
    try:
        secret = read_bytes(path, 32)
    except DataError as fault:
        raise OSError(errno.EINVAL, str(fault)) from None
    if len(secret) != 32:  # a process was killed in between
        raise OSError(errno.EINVAL, "is no secret", str(path))
    return secret


def remove_empty(folder: Path) -> None:
    """Delete a folder unless something is in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def make_folder(folder: Path) -> None:
    """A folder, with those above it, where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise _cannot_write(folder, fault) from fault


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A private folder for the time of a ``with`` block."""
    return tempfile.TemporaryDirectory(prefix="normalcy-", ignore_cleanup_errors=True)


def mode_by_umask(folder: Path) -> int:
    """The permissions that a new file gets in ``folder``."""
    probe = folder / f".normalcy-{os.urandom(8).hex()}"
    handle = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        probe.unlink()


def _cannot_write(path: Path | str, fault: OSError) -> OSError:
    if isinstance(fault, NormalcyError):
        return fault
    remedy = "choose another place or check the access rights"
    if fault.errno in _FULL:
        remedy = "free some space or choose another disk"
    return WriteError(f"{path}: cannot be written ({fault.strerror or fault}); {remedy}.", fault.errno)


# -- writing a folder ------------------------------------------------------------------------------------------------


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Raise SettingsError where writing ``folder`` would lose something."""
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file: choose another folder.")
    if not overwrite and folder.is_dir() and _entries(folder):
        raise SettingsError(f"{folder} exists and is not empty: choose another folder or pass --overwrite.")


def refuse_source(folder: Path, *sources: Path | None) -> None:
    """Raise SettingsError where one of ``sources``, which are read, is ``folder`` or lies in it."""
    for source in sources:
        if source is not None and is_inside(source, folder):
            raise SettingsError(f"{folder} holds {source}, which is read: choose another folder.")


def prepare_target(folder: Path, overwrite: bool = False) -> Target:
    """Decide, before any work, that ``folder`` can be written, and keep other processes from writing it.

    A link is followed. What a killed process left beside the folder is repaired first: an old folder that was on its way
    out comes back, half-written ones are removed. The result is used with ``with`` around the work and
    :func:`write_folder`; without, the checks alone are made.

    Raises SettingsError when the folder exists and is not empty, unless ``overwrite``, or is being written by another
    process; and where it cannot be replaced by renaming (a mount point, the working directory) and holds files that are
    not of normalcy. Raises WriteError where the place is not writable.
    """
    return Target(folder, overwrite)


def write_folder(folder: Path, fill: Callable[[Path], None], overwrite: bool = False) -> None:
    """Fill a new hidden folder and give it the name ``folder`` when it is complete; see :func:`prepare_target`.

    With ``overwrite`` the old and the new folder change places in one step, where the system has one, and the old one is
    then removed. An empty folder stays and is filled. A folder that appears meanwhile is not touched: SettingsError.
    """
    with prepare_target(folder, overwrite) as target:
        partial = target.hidden("partial")
        try:
            partial.mkdir()
            fill(partial)
            target.put(partial)
        except OSError as fault:
            with uninterrupted():
                remove(partial)
            if fault.errno not in (*_FULL, errno.EROFS):
                raise
            raise _cannot_write(folder, OSError(fault.errno, os.strerror(fault.errno or 0))) from fault
        except BaseException:
            with uninterrupted():
                remove(partial)
            raise


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block ends: a short one that must not be half done."""
    if threading.current_thread() is not threading.main_thread():  # signals are handled in the main thread
        yield
        return
    waiting = list[int]()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, lambda number, _: waiting.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if waiting:
            signal.raise_signal(waiting[0])


class Target:
    """A folder about to be written, see :func:`prepare_target`."""

    def __init__(self, folder: Path, overwrite: bool) -> None:
        self.name, self.overwrite, self.made = folder, overwrite, list[Path]()
        self._lock: Path | None = None
        try:
            with uninterrupted():
                self._prepare(folder)
        except BaseException:
            self.close()
            raise

    def _prepare(self, folder: Path) -> None:
        self.path = Path(os.path.realpath(folder))
        if self.path.is_symlink():  # a circle of links
            raise SettingsError(f"{folder} is a link that leads nowhere: choose another folder.")
        refuse_existing(self.path, True)
        try:
            self._make_parents()
            self.in_place = self.path.is_dir() and not self._renameable()
            if self._take_lock():
                self._repair()
            self._probe()
        except OSError as fault:
            raise _cannot_write(folder, fault) from fault
        self._refuse()

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let others write the folder."""
        with uninterrupted():
            lock, self._lock = self._lock, None
            if lock is not None:
                _unlock(lock)
            for parent in reversed(self.made):
                with contextlib.suppress(OSError):  # not empty: used
                    parent.rmdir()
            self.made = []

    @property
    def unfinished(self) -> Path:
        """Where work is kept that the next start continues: ``<folder>.run`` beside it, hidden inside where it stays."""
        return self.path / ".normalcy-run" if self.in_place else self.path.with_name(f"{self.path.name}.run")

    def begin(self, identity: Sequence[object], what: str, differs: str) -> Path:
        """The folder in :attr:`unfinished` of the work with this identity; made where it is missing.

        Raises SettingsError where other work is kept there, unless it may be overwritten.
        """
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
        work = self.unfinished / digest
        if any(path != work for path in self.unfinished.glob("*")):
            if not self.overwrite:
                raise SettingsError(
                    f"{self.unfinished} holds an unfinished {what} of other {differs}: repeat that "
                    "command to continue it, or pass --overwrite to start again."
                )
            remove(self.unfinished)
        make_folder(work)
        return work

    def hidden(self, kind: str) -> Path:
        """A new name for a folder on the way in ("partial", and in place "complete", "moving") or out ("old")."""
        return self._beside / f"{self._prefix}{kind}-{os.urandom(4).hex()}"

    def put(self, partial: Path) -> None:
        """Give a complete folder its name."""
        with uninterrupted():
            self._put(partial)

    def _put(self, partial: Path) -> None:
        if self.path.is_dir() and (self.in_place or not _entries(self.path)):
            self._refuse()
            if not partial.is_relative_to(
                self.path
            ):  # made empty meanwhile, by another hand: rename() may replace that
                os.rename(partial, self.path)
                return
            complete = self.hidden("complete")
            os.rename(partial, complete)
            self._move_in(complete)
        elif self.path.exists() or self.path.is_symlink():
            refuse_existing(self.path, self.overwrite)
            remove(self._swap(partial))
        else:
            try:
                os.rename(partial, self.path)
            except OSError as fault:
                if fault.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise SettingsError(f"{self.name} appeared meanwhile: nothing is overwritten.") from fault
                raise

    @property
    def _beside(self) -> Path:
        return self.path if self.in_place else self.path.parent

    @property
    def _prefix(self) -> str:
        if self.in_place:
            return ".normalcy-"
        name = self.path.name
        return f".{name if len(os.fsencode(name)) < 200 else hashlib.sha256(os.fsencode(name)).hexdigest()}."

    def _make_parents(self) -> None:
        missing = [parent for parent in self.path.parents if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            self.made.append(parent)

    def _renameable(self) -> bool:
        """Whether the folder, which exists, can be replaced by another. An empty one stays: somebody made it so; one
        that was being filled in place, too."""
        fixed = self.path == Path(os.path.realpath(".")) or self.path in _mount_points() or os.path.ismount(self.path)
        begun = any(name.startswith(tuple(f".normalcy-{kind}-" for kind in _KINDS)) for name in os.listdir(self.path))
        return not fixed and not begun and bool(_entries(self.path)) and os.access(self.path.parent, os.W_OK)

    def _refuse(self) -> None:
        refuse_existing(self.path, self.overwrite)
        names = _entries(self.path) if self.in_place else []
        if names and not set(MARKS) & set(names):
            raise SettingsError(
                f"{self.name} cannot be replaced as a whole (a mount point or the working directory) and holds files that "
                f"normalcy did not write, such as {names[0]}: choose another folder."
            )

    def _take_lock(self) -> bool:
        """By a file beside the folder, or the folder itself where it stays: others may see it at another place.

        True where this is now the only one at work there, so that what is left over there is nobody's.
        """
        path = self.path if self.in_place else self.path.parent / f"{self._prefix}lock"
        taken = _lock(path, self.in_place)
        if taken is None:
            raise SettingsError(f"{self.name} is being written by another process: wait, or choose another folder.")
        self._lock = path
        return taken

    def _probe(self) -> None:
        probe = self.hidden("partial")
        probe.mkdir()
        probe.rmdir()

    def _repair(self) -> None:
        left = {kind: sorted(self._beside.glob(f"{glob.escape(self._prefix)}{kind}-*")) for kind in _KINDS}
        if self.in_place:
            for complete in left["complete"] + left["moving"]:
                self._move_in(complete)
        elif left["old"] and not self.path.exists():
            os.rename(left["old"].pop(), self.path)
        for path in left["partial"] + left["old"]:
            remove(path)

    def _swap(self, partial: Path) -> Path:
        """Put ``partial`` in the place of the folder; where what was there now is."""
        try:
            _exchange(partial, self.path)
            return partial
        except OSError as fault:
            if fault.errno not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
                raise
        old = self.hidden("old")
        os.rename(self.path, old)
        try:
            os.rename(partial, self.path)
        except BaseException:
            os.rename(old, self.path)
            raise
        os.rename(old, partial)  # no longer something to bring back
        return partial

    def _move_in(self, complete: Path) -> None:
        """From ``complete`` into the folder that it lies in. Its name says how far that has come, for :meth:`_repair`:
        as "complete", all that is visible is old; as "moving", new."""
        if "complete" in complete.name:
            for name in sorted(_entries(self.path), key=lambda name: name not in MARKS):
                remove(self.path / name)
            moving = self.path / complete.name.replace("complete", "moving")
            os.rename(complete, moving)
            complete = moving
        for name in sorted(os.listdir(complete), key=lambda name: (name in MARKS, name)):
            os.rename(complete / name, self.path / name)
        complete.rmdir()


_KINDS = ("partial", "old", "complete", "moving")
_LOCKED: dict[Path, tuple[int, int, int]] = {}
"""Path of a lock -> thread, handle, how often that thread has taken it: write_folder() inside of prepare_target()."""
_GUARD = threading.Lock()


def _lock(path: Path, folder: bool) -> bool | None:
    """Keep other processes and threads out. None where one of them is there; False where this thread is already, or the
    system has no locks; else True."""
    with _GUARD:
        thread, handle, count = _LOCKED.get(path, (threading.get_ident(), -1, 0))
        if thread != threading.get_ident():
            return None
        while not count and fcntl is not None:
            handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(path).st_ino == os.fstat(handle).st_ino:
                    break
                os.close(handle)  # of one that is finished and has removed it: again
            except FileNotFoundError:
                os.close(handle)
            except BlockingIOError:
                os.close(handle)
                return None
            except OSError:  # a file system without locks
                os.close(handle)
                handle = -1
                break
        _LOCKED[path] = thread, handle, count + 1
        return not count and handle >= 0


def _unlock(path: Path) -> None:
    with _GUARD:
        thread, handle, count = _LOCKED.pop(path)
        if count > 1:
            _LOCKED[path] = thread, handle, count - 1
            return
        if not path.is_dir():
            with contextlib.suppress(OSError):
                path.unlink()
        if handle >= 0:
            with contextlib.suppress(OSError):  # what was written is written
                os.close(handle)


def _entries(folder: Path) -> list[str]:
    """What a user sees in a folder, sorted."""
    return sorted(name for name in os.listdir(folder) if not name.startswith(".normalcy-"))


def _mount_points() -> set[Path]:
    """Also those that lie on the disk of the folder above, which os.path.ismount() cannot tell."""
    try:
        lines = read_bytes("/proc/self/mountinfo").split(b"\n")
    except DataError:  # another system
        return set()
    places = [line.split(b" ")[4] for line in lines if line.count(b" ") > 4]  # a space in them is \\040
    return {Path(os.fsdecode(place.decode("unicode_escape").encode("latin-1"))) for place in places}


def _exchange(one: Path, other: Path) -> None:
    """Swap two names in one step (Linux). Raises OSError with ENOSYS where there is no such step."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(one), here, os.fsencode(other), swap) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))
