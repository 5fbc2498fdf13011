"""A command in a process of its own whose system calls on files are seen, stopped, refused or answered by a kill.

Linux on x86-64 alone. The child asks for ptrace and installs a seccomp filter, so that it stops at calls that open, change or
remove files and at no others; counts are of the whole process, threads and children included. Nothing is to be installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POSSIBLE = sys.platform == "linux" and platform.machine() == "x86_64"

# call -> number, place of the path (or of the descriptor) among the arguments, what an event of it is called
_PATH, _AT, _FD = "path", "at", "fd"
CALLS: dict[int, tuple[str, str, str]] = {
    1: ("write", _FD, "write"), 18: ("pwrite64", _FD, "write"), 20: ("writev", _FD, "write"), 296: ("pwritev", _FD, "write"),
    40: ("sendfile", _FD, "write"), 326: ("copy_file_range", "fd2", "write"),
    74: ("fsync", _FD, "fsync"), 75: ("fdatasync", _FD, "fsync"), 77: ("ftruncate", _FD, "truncate"),
    285: ("fallocate", _FD, "allocate"), 3: ("close", _FD, "close"), 91: ("fchmod", _FD, "chmod"),
    2: ("open", _PATH, "open"), 257: ("openat", _AT, "open"), 76: ("truncate", _PATH, "truncate"),
    82: ("rename", _PATH, "rename"), 264: ("renameat", _AT, "rename"), 316: ("renameat2", _AT, "rename"),
    87: ("unlink", _PATH, "unlink"), 263: ("unlinkat", _AT, "unlink"), 84: ("rmdir", _PATH, "rmdir"),
    83: ("mkdir", _PATH, "mkdir"), 258: ("mkdirat", _AT, "mkdir"), 86: ("link", _PATH, "link"), 265: ("linkat", _AT, "link"),
    88: ("symlink", "second", "link"), 90: ("chmod", _PATH, "chmod"), 268: ("fchmodat", _AT, "chmod"),
}  # fmt: skip
CHANGING = ("write", "fsync", "truncate", "allocate", "create", "rename", "unlink", "rmdir", "mkdir", "link", "chmod")
"""Events that change what is on the disk."""
KILL = -1
"""Answer to an event: SIGKILL before the call is made. 0 makes it, a positive number is the error that it gives instead, and
-1 - n sends the signal n and makes it."""

_REGISTERS = 27
_RAX, _RDX, _RSI, _RDI, _ORIG = 10, 12, 13, 14, 15
_WALL = 0x40000000
_SECCOMP_EVENT = 7
_OPTIONS = 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000  # fork, vfork, clone, exec, seccomp; nothing outlives the tracer


@dataclass(frozen=True)
class Event:
    """A call on a file below the folder of interest; ``path`` is relative to it."""

    kind: str
    path: str


@dataclass(frozen=True)
class Ended:
    """How a command ended; ``code`` is negative for a signal. Memory in bytes, at most, times in seconds."""

    code: int
    said: str
    memory: int
    cpu: float
    waited: bool = False
    """It was ended because its time was over."""


def run(
    work: Callable[[], object],
    place: Path,
    answer: Callable[[int, Event], int] | None = None,
    seconds: float = 120.0,
    kinds: tuple[str, ...] = CHANGING,
    said: str = "said",
) -> Ended:
    """``work`` in a child whose working directory is ``place``. ``answer`` gets each event of these kinds below ``place``, with
    its number from 0, while the child waits; without it, nothing is traced."""
    output = place.parent / f"{place.name}.{said}"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _child(work, place, output, answer is not None)
    late = threading.Event()

    def stop() -> None:
        late.set()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        status, usage = os.wait4(child, 0)[1:] if answer is None else _follow(child, place, answer, kinds)
    finally:
        timer.cancel()
    code = os.waitstatus_to_exitcode(status)
    text = output.read_text(errors="replace")
    return Ended(code, text, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime, late.is_set())


# -- private -------------------------------------------------------------------------------------------------------------------


def _child(work: Callable[[], object], place: Path, said: Path, trace: bool) -> None:
    code: object = 70
    try:
        output = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.chdir(place)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs behind it ignore Ctrl-C
        if trace:
            _libc().ptrace(0, 0, None, None)  # by the parent
            os.kill(os.getpid(), signal.SIGSTOP)
            _filter()
        try:
            code = work() or 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    return libc


def _filter() -> None:
    """Stop at the calls of interest (RET_TRACE), allow all others."""
    load = struct.pack("=HBBI", 0x20, 0, 0, 0)  # the number of the call
    numbers = sorted(CALLS)
    tests = [struct.pack("=HBBI", 0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program = b"".join(
        [load, *tests, struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000), struct.pack("=HBBI", 6, 0, 0, 0x7FF00000)]
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("=HxxxxxxQ", len(numbers) + 3, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong] * 4
    libc.prctl.argtypes = [ctypes.c_int, *words]
    place = ctypes.create_string_buffer(header, len(header))
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, ctypes.addressof(place), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no seccomp filter")


def _follow(child: int, place: Path, answer: Callable[[int, Event], int], kinds: tuple[str, ...]) -> tuple[int, object]:
    libc, count = _libc(), 0
    os.waitpid(child, 0)
    if libc.ptrace(0x4200, child, None, _OPTIONS) != 0:
        raise OSError(ctypes.get_errno(), "no ptrace")
    libc.ptrace(7, child, None, None)
    root = os.fsencode(os.path.realpath(place))
    while True:
        task, status, usage = os.wait4(-1, _WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if task == child:
                return status, usage
            continue
        forwarded = os.WSTOPSIG(status)
        if status >> 16:  # an event of ptrace
            forwarded = 0
            if status >> 16 == _SECCOMP_EVENT:
                registers = (ctypes.c_ulonglong * _REGISTERS)()
                libc.ptrace(12, task, None, ctypes.addressof(registers))
                event = _event(task, registers, root)
                if event is not None and event.kind in kinds:
                    reply, count = answer(count, event), count + 1
                    if reply == KILL:
                        os.kill(child, signal.SIGKILL)
                        continue
                    if reply > 0:
                        registers[_ORIG] = 2**64 - 1  # no call
                        registers[_RAX] = 2**64 - reply
                        libc.ptrace(13, task, None, ctypes.addressof(registers))
                    elif reply < 0:
                        os.kill(child, -reply - 1)
        elif forwarded in (signal.SIGSTOP, signal.SIGTRAP):  # a new thread; an exec
            forwarded = 0
        libc.ptrace(7, task, None, forwarded)


def _event(task: int, registers: ctypes.Array[ctypes.c_ulonglong], root: bytes) -> Event | None:
    _, where, kind = CALLS[registers[_ORIG]]
    first, second = registers[_RDI], registers[_RSI]
    try:
        if where in (_FD, "fd2"):
            path = os.readlink(f"/proc/{task}/fd/{registers[_RDX] if where == 'fd2' else first}".encode())
        else:
            name = _text(task, {_PATH: first, _AT: second, "second": second}[where])
            base = "cwd"
            if where == _AT and ctypes.c_int(first & 0xFFFFFFFF).value >= 0:
                base = f"fd/{first & 0xFFFFFFFF}"
            path = name if name.startswith(b"/") else os.path.join(os.readlink(f"/proc/{task}/{base}".encode()), name)
    except OSError:
        return None
    folder, _, last = os.path.normpath(path).rpartition(b"/")
    path = os.path.join(os.path.realpath(folder), last)
    if not path.startswith(root + b"/"):
        return None
    if kind == "open":
        flags = registers[_RDX] if where == _AT else second
        kind = "create" if flags & os.O_CREAT else "modify" if flags & (os.O_WRONLY | os.O_RDWR) else "read"
    if kind == "close" and not _writable(task, first):
        return None
    return Event(kind, os.fsdecode(path[len(root) + 1 :]))


def _writable(task: int, handle: int) -> bool:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{task}/fdinfo/{handle}").read_text().splitlines():
            if line.startswith("flags:"):
                return bool(int(line.split()[1], 8) & (os.O_WRONLY | os.O_RDWR))
    return False


def _text(task: int, address: int) -> bytes:
    """The text that ends by a zero, in the memory of a process."""
    text = b""
    with open(f"/proc/{task}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        while b"\0" not in text and len(text) < 4096:  # at most to the end of a page, the next may not exist
            part = memory.read(4096 - (address + len(text)) % 4096)
            if not part:
                raise OSError(errno.EFAULT, "no text")
            text += part
    return text.partition(b"\0")[0]
