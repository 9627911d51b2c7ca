"""What an exception means to the person who typed the command: words and an exit code."""

from __future__ import annotations

import json
import os
import sys
import traceback

import typer

from dino_core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DinoError,
    is_out_of_memory,
)

FAILED = 1
USAGE = 2
BAD_DATA = 3
BAD_MODEL = 4
GATE = 5
# 128 + SIGINT, as shells report it.
INTERRUPTED = 130

# Typer carries its own copy of click in some versions and uses the installed one in others.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]


def exit_code(error: BaseException) -> int:
    """The exit code that INTERFACE promises for `error`."""
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
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
        # Python flushes stdout once more at exit, which would raise the same error again, e.g.
        # after `dino eval --json | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    message, hint = describe(error)
    print(f"error: {message}" if code != INTERRUPTED else message, file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    if as_json:
        answer = {"schema": 1, "error": code, "message": message, "hint": hint}
        # A program that asked for JSON gets an answer it can parse in every case.
        print(json.dumps(answer, ensure_ascii=False), flush=True)
    return code


def describe(error: BaseException) -> tuple[str, str]:
    """Message and hint of any exception."""
    if isinstance(error, DinoError):
        return error.message, error.hint
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return "interrupted", ""
    if isinstance(error, _CommandLineError):
        return _describe_command_line(error)
    if is_out_of_memory(error):
        return "out of memory", "use a smaller --batch or --image-size"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}", ""
    # In one line, as a program's log expects it.
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}", "run again with --debug to see where"


def _describe_command_line(error: Exception) -> tuple[str, str]:
    message = str(getattr(error, "format_message", lambda: str(error))()).strip()
    # click's suggestions for an option that does not exist.
    possible = getattr(error, "possibilities", None)
    if possible:
        message = str(getattr(error, "message", message)).rstrip(".")
        return message, f"did you mean {' or '.join(repr(p) for p in possible)}?"
    context = getattr(error, "ctx", None)
    return message, f"see `{context.command_path} --help`" if context is not None else ""
