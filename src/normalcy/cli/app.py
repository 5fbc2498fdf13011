"""The command line: parse, call, print. An error is one sentence and an exit code."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from normalcy.cli import completion, export, fit, new_method, results, review, score, studies
from normalcy.cli.printing import Notes, complain, printable, show
from normalcy.cli.urls import with_urls
from normalcy.errors import NormalcyError, SettingsError
from normalcy.remote.urls import public
from normalcy.training.processes import by_torchrun

EXIT_CODES: Mapping[int, str] = {
    0: "success",
    1: "data, files or training; `check` and `reproduce`: there are errors or failed cells",
    2: "usage: an unknown option or setting, an impossible value",
    130: "stopped by Ctrl-C; interrupted training resumes with `--resume`",
    141: "the program that read stdout has ended",
    143: "stopped by SIGTERM; interrupted training resumes with `--resume`",
}
"""Exit code -> what it means; no command ends with another."""


class Stopped(Exception):
    """A command was ended from outside, with this exit code."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled like Ctrl-C, so that everything is cleaned up."""


class Commands(TyperGroup):
    """The commands; Ctrl-C and a closed stdout leave them as Stopped, since Typer swallows them without a message."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            code = 143 if isinstance(interrupt, Terminated) else 130
            raise Stopped(code, "Stopped. Interrupted training resumes with --resume.") from interrupt
        except BrokenPipeError as error:
            raise Stopped(141) from error


app = typer.Typer(
    name="normalcy",
    cls=Commands,
    help="Anomaly detection in images: train on normal images alone, then score, localise and evaluate anomalies.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    studies.demo,
    fit.methods,
    fit.check,
    studies.audit,
    fit.fit,
    score.score,
    export.export,
    results.evaluate,
    results.report,
    review.review,
    review.calibrate,
    results.dicom,
    score.slides,
    score.merge,
    studies.compare,
    studies.select,
    studies.reproduce,
    fit.info,
    new_method.new_method,
    completion.completion,
):
    app.command()(with_urls(command))


def show_version(asked: bool) -> None:
    if asked:
        show(f"normalcy {version('normalcy')}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, and warnings of other libraries.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=show_version, is_eager=True)
    ] = False,
    cache: Annotated[
        str | None,
        typer.Option("--cache", metavar="DIR", help="Folder that keeps what URLs name [~/.cache/normalcy/remote]."),
    ] = None,
    cache_size: Annotated[
        str | None,
        typer.Option("--cache-size", metavar="BYTES", help="Largest size of that folder, such as 500MB [10GB]."),
    ] = None,
) -> None:
    if cache is not None or cache_size is not None:
        from normalcy.remote.mirror import use_cache

        use_cache(cache, None if cache_size is None else _bytes(cache_size))
    if debug and isinstance(context.obj, Notes):
        context.obj.show_all()
    command, count = context.invoked_subcommand, int(os.environ["WORLD_SIZE"]) if by_torchrun() else 1
    if count > 1 and command != "fit":
        shards = "; --shard K/N divides the images among processes, and merge joins their results"
        raise SettingsError(
            f"{command} runs in one process, got {count} by torchrun: start it without torchrun"
            f"{shards if command in ('score', 'slides') else ''}."
        )


def main() -> None:
    """Entry point: runs a command, turns errors into one sentence, and exits with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter gets its code
    if completion.VARIABLE in os.environ:
        completion.answer(app)
        sys.exit()
    with Notes() as notes, _sigterm():
        try:
            code = typer.main.get_command(app)(prog_name="normalcy", standalone_mode=False, obj=notes) or 0
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a full disk or a closed pipe can be said
        except Exception as error:
            code = _explain(error, notes.debug)
    sys.exit(code)


# -- private ---------------------------------------------------------------------------------------------------------


def _bytes(text: str) -> int:
    """``500MB`` -> 500,000,000."""
    found = re.fullmatch(r"(\d{1,15})\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not found or not int(found[1]):
        raise SettingsError(f"--cache-size expects bytes, such as 500MB or 20GB, got {text!r}.")
    return int(found[1]) * (1, 10**3, 10**6, 10**9, 10**12)[" KMGT".index(found[2].upper() or " ")]


def _explain(error: Exception, debug: bool) -> int:
    """Print one sentence about an error; returns the exit code. What is no user's mistake is raised again."""
    code, message = _sentence(error)
    if code is None:
        raise error
    if debug and not isinstance(error, Stopped):
        print(printable(public("".join(traceback.format_exception(error)))), file=sys.stderr, end="")
    if isinstance(error, OSError | Stopped):
        _drop_stdout()
    if message and not _said_elsewhere(error):
        complain(message)
    return code


def _said_elsewhere(error: Exception) -> bool:
    """Whether another process of torchrun on this node says it: what ends all processes is said once."""
    of_all = isinstance(error, Stopped) or getattr(error, "told", False)
    return of_all and os.environ.get("LOCAL_RANK", "0") != "0"


def _sentence(error: Exception) -> tuple[int | None, str]:
    match error:
        case Stopped():
            return error.code, str(error)
        case NormalcyError():
            return error.exit_code, f"Error: {error}"
        case BrokenPipeError():
            return 141, ""
        case OSError():
            return 1, f"Error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}."
        case RecursionError():
            return 1, "Error: the input is nested too deeply."
        case typer.Abort():
            return 1, "Stopped."
    out_of_memory = "use a smaller batch_size or size, or tile=256."
    if isinstance(error, MemoryError):
        return 1, f"Error: there is not enough memory: {out_of_memory}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return 1, f"Error: there is not enough memory on the GPU: {out_of_memory}"
    if hasattr(error, "format_message") and hasattr(
        error, "exit_code"
    ):  # a usage error of Typer, or of Click before it
        text = io.StringIO()
        error.show(text)  # type: ignore[attr-defined]
        print(printable(text.getvalue()), file=sys.stderr, end="")
        return int(error.exit_code), ""
    return None, ""


def _drop_stdout() -> None:
    """Let nothing more be written to a stdout that cannot take it: the interpreter would complain at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated in the main thread."""

    def stop(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
