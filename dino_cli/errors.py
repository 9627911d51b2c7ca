"""What an exception means to the person who typed the command: words and an exit code."""

from __future__ import annotations

import sys
import traceback

import typer

from dino_cli import foreign, streams
from dino_core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DinoError,
    is_out_of_memory,
    printable,
)
from dino_core.files import json_text

FAILED = 1
USAGE = 2
BAD_DATA = 3
BAD_MODEL = 4
GATE = 5
# 128 + SIGINT, as shells report it.
INTERRUPTED = 130

# Typer carries its own copy of click in some versions and uses the installed one in others.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]


class Interrupted(Exception):
    """The person, or the system by SIGTERM, stopped the command."""


_INTERRUPTS = (KeyboardInterrupt, typer.Abort, Interrupted)


def exit_code(error: BaseException) -> int:
    """The exit code that INTERFACE promises for `error`."""
    if isinstance(error, _INTERRUPTS):
        return INTERRUPTED
    if isinstance(error, (ConfigError, _CommandLineError)):
        return USAGE
    if isinstance(error, DataError):
        return BAD_DATA
    return BAD_MODEL if isinstance(error, CheckpointError) else FAILED


def report(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Print the error on stderr (and as JSON on stdout) and return the exit code."""
    code = exit_code(error)
    if isinstance(error, BrokenPipeError):  # the reader of our output is gone
        streams.drop_stdout()
        return code
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    message, hint = describe(error)
    print(f"error: {message}" if code != INTERRUPTED else message, file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    if as_json:
        answer = {"schema": 1, "error": code, "message": message, "hint": hint}
        try:
            print(json_text(answer), flush=True)
        except OSError:  # stdout is the very thing that failed, for example on a full disk
            streams.drop_stdout()
    return code


def describe(error: BaseException) -> tuple[str, str]:
    """Message and hint of any exception."""
    if isinstance(error, DinoError):
        return error.message, error.hint
    if isinstance(error, _INTERRUPTS):
        return "interrupted", ""
    if isinstance(error, _CommandLineError):
        return _describe_command_line(error)
    if is_out_of_memory(error):
        return "out of memory", "use a smaller --batch or --image-size"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return printable(f"{where}{error.strerror}"), ""
    text = printable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}", "run again with --debug to see where"


def _describe_command_line(error: Exception) -> tuple[str, str]:
    message = printable(str(getattr(error, "format_message", lambda: str(error))()).strip())
    context = getattr(error, "ctx", None)
    option = getattr(error, "option_name", "")
    if option and context is not None and (hint := foreign.option_hint(option, context.command)):
        return message, hint
    possible = getattr(error, "possibilities", None)
    if possible:
        message = str(getattr(error, "message", message)).rstrip(".")
        return message, f"did you mean {' or '.join(repr(p) for p in possible)}?"
    return message, f"see `{context.command_path} --help`" if context is not None else ""
