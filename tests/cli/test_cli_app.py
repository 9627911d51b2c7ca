"""The command line as a whole: what it imports, its help, its suggestions, its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dino_cli import errors
from dino_cli.app import COMMANDS, run
from dino_core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DinoError,
    ExportError,
    ExtensionError,
)

ALL_HELP = [[name] for name in COMMANDS] + [
    ["models", sub] for sub in ("list", "info", "pull", "import", "verify", "path")
]


def dino(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dino_cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from dino_cli.app import run\n"
        "assert run(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'rich', 'cv2', 'PIL'} & set(sys.modules)\n"
        "commands = [m for m in sys.modules if m.startswith('dino_cli.commands.')]\n"
        "print('imported:', sorted(heavy), commands)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("imported: [] []\n")
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_command_help_does_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from dino_cli.app import COMMANDS, run\n"
        "assert all(run([name, '--help']) == 0 for name in COMMANDS)\n"
        "print('imported:', sorted({'torch', 'cv2', 'onnxruntime'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("imported: []\n")


@pytest.mark.parametrize("command", [[], *ALL_HELP], ids=" ".join)
def test_every_help_has_two_examples(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--help"]) == 0
    _, _, examples = capsys.readouterr().out.partition("Examples:")
    assert len([line for line in examples.splitlines() if line.strip().startswith("dino ")]) >= 2


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Usage: dino" in capsys.readouterr().out


def test_as_a_program(tmp_path: Path) -> None:
    done = dino("envv")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no command 'envv'\nhint: did you mean 'env'?\n"
    assert dino("--version").stdout.startswith("dino ")


def test_shell_completion_knows_commands_and_options() -> None:
    words = dino(_DINO_COMPLETE="complete_bash", COMP_WORDS="dino pre", COMP_CWORD="1").stdout
    assert words.split() == ["predict"]
    options = dino(_DINO_COMPLETE="complete_bash", COMP_WORDS="dino eval --spl", COMP_CWORD="2")
    assert options.stdout.split() == ["--split"]


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["eval", "--splt", "val"], "--split"),
        (["predict", "a.jpg", "--treshold", "0.3"], "--threshold"),
        (["models", "info", "dino-nanno"], "dino-nano"),
        (["train", "data", "--set", "train.larning_rate=1"], "learning_rate|known|lr"),
        (["train", "data", "--set", "trian.lr=1"], "train"),
    ],
    ids=" ".join,
)
def test_unknown_names_suggest_the_nearest(
    arguments: list[str], suggestion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) in (errors.USAGE, errors.BAD_MODEL)
    hint = capsys.readouterr().err.split("hint: ")[1]
    assert any(word in hint for word in suggestion.split("|"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("m", "h"), 2),
        (DataError("m", "h"), 3),
        (CheckpointError("m", "h"), 4),
        (ExtensionError("m", "h"), 1),
        (ExportError("m", "h"), 1),
        (DinoError("m", "h"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_code_and_words_of_each_error(
    error: DinoError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert errors.report(error, as_json=True, debug=False) == code
    captured = capsys.readouterr()
    assert captured.err == "error: m\nhint: h\n"
    assert json.loads(captured.out) == {"schema": 1, "error": code, "message": "m", "hint": "h"}


def test_other_exceptions_have_words_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.exit_code(KeyboardInterrupt()) == 130
    assert errors.describe(MemoryError()) == (
        "out of memory",
        "use a smaller --batch or --image-size",
    )
    assert errors.describe(OSError(28, "No space left on device", "out/a.json")) == (
        "out/a.json: No space left on device",
        "",
    )
    assert errors.report(ZeroDivisionError("division"), as_json=False, debug=False) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_debug_shows_the_traceback_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--debug", "models", "info", "nothing"], ["models", "info", "x", "--debug"]):
        assert run(arguments) == errors.BAD_MODEL
        assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_usage_error_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "--json"]) == errors.USAGE
    answer = json.loads(capsys.readouterr().out)
    assert answer["error"] == 2
    assert "MODEL" in answer["message"]
    assert answer["hint"] == "see `dino eval --help`"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -m dino_cli env --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
