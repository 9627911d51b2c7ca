"""The command `dino`: finds the subcommand, imports only that, and turns errors into exit codes.

`dino --help` must answer at once, so nothing here imports torch, numpy or rich, and the help of the
group comes from `COMMANDS` instead of the command modules.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dino_cli import foreign, processes, streams
from dino_cli.errors import Interrupted, report
from dino_cli.options import SETTINGS, examples
from dino_core.errors import ConfigError, DinoError
from dino_core.suggestions import nearest_or_all

COMMANDS = {
    "predict": "Find objects in images, folders and videos.",
    "train": "Train or fine-tune a model on your own images.",
    "eval": "Measure a model on labeled images: COCO AP and AR.",
    "export": "Write a model as a file for another runtime, and verify it.",
    "check": "Find what is wrong with labeled data, with pictures.",
    "convert": "Convert labeled data between formats.",
    "models": "List models, download published ones, show one, import.",
    "env": "Show versions, devices and which kernels run here.",
}


class LazyCommands(TyperGroup):
    """A group whose subcommand NAME lives in `dino_cli/commands/NAME.py` as `app`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            # Unknown commands are handled in `resolve_command`, which knows what was typed.
            return None
        module = importlib.import_module(f"dino_cli.commands.{_module_name(cmd_name)}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = nearest_or_all(args[0], COMMANDS)
            if args[0] in foreign.COMMANDS:
                hint = f"it is called '{foreign.COMMANDS[args[0]]}' here"
            raise ConfigError(f"no command '{args[0]}'", hint)
        name, command, rest = super().resolve_command(ctx, args)
        _refuse_assignments(rest, command)
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # Typer would end without a word
            raise Interrupted from error

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _refuse_assignments(arguments: Sequence[str], command: Any) -> None:
    """Raises ConfigError for an argument such as `epochs=20`, which other tools take as option."""
    before = ""
    for argument in arguments:
        if argument == "--":
            return
        # What follows an option may be its value, as in `--set train.lr=1e-4`.
        if not argument.startswith("-") and not (before.startswith("-") and "=" not in before):
            hint = foreign.assignment_hint(argument, command)
            if hint and not os.path.lexists(argument):
                raise ConfigError(f"'{argument}': options begin with two dashes", hint)
        before = argument


def _module_name(command: str) -> str:
    # `eval` is a built-in function of Python.
    return "evaluate" if command == "eval" else command


app = typer.Typer(
    cls=LazyCommands, invoke_without_command=True, **SETTINGS | {"add_completion": True}
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"dino {version('dino-detector')}")
        except PackageNotFoundError:  # run from a source tree that is not installed
            typer.echo("dino (not installed)")
        raise typer.Exit()


@app.callback(
    epilog=examples(
        "dino predict photo.jpg               # annotated image and JSONL in runs/predict",
        "dino train data/ --epochs 20         # fine-tunes the built-in model",
    )
)
def dino(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (with any command).")
    ] = False,
) -> None:
    """DINO object detection: predict, train, evaluate and export on a CPU or on GPUs."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (default: the process's own) and exit with its code."""
    streams.prepare()
    # Processes that this one forks end by SIGTERM as usual: a pool stops its workers with it.
    os.register_at_fork(after_in_child=_end_by_sigterm)
    argv = sys.argv[1:] if argv is None else argv
    code = run(argv)
    try:
        sys.stdout.flush()
    except OSError as error:
        failed = report(error, as_json=False, debug="--debug" in argv)
        streams.drop_stdout()
        code = code or failed
    sys.exit(code)


def _end_by_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def run(argv: Sequence[str]) -> int:
    """Run the command line `argv` and return its exit code."""
    # What follows `--` are arguments, even if they look like options.
    options = list(argv[: argv.index("--")]) if "--" in argv else list(argv)
    # --debug works anywhere on the command line, although click knows it only before the
    # subcommand.
    arguments = [a for a in options if a != "--debug"] + list(argv[len(options) :])
    try:
        if "--json" in options and streams.is_stdout_closed():
            raise DinoError("stdout is closed, and --json writes there", "leave out --json")
        result = typer.main.get_command(app).main(
            # Without standalone mode click raises its errors instead of printing them in its own
            # words. `obj` carries the whole command line to `dino train`, which may have to start
            # it several times.
            arguments,
            prog_name="dino",
            standalone_mode=False,
            obj=list(argv),
        )
    except BaseException as error:
        # The exit code has been chosen already.
        if isinstance(error, SystemExit):
            raise
        if isinstance(error, processes.Reported):
            error = error.error
        elif (code := processes.reported_by_another(error)) is not None:
            return code
        return report(error, as_json="--json" in options, debug="--debug" in options)
    return result if isinstance(result, int) else 0
