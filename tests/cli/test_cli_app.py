"""The command line as a whole: what it imports, its help, its suggestions, its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from dino_cli import errors, foreign
from dino_cli.app import COMMANDS, app, run
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
    ("arguments", "hint"),
    [
        ("predict a.jpg --conf 0.3", "it is called --threshold here"),
        ("predict a.jpg --conf-thres 0.3", "it is called --threshold here"),
        ("predict a.jpg --imgsz 640", "it is called --image-size here"),
        ("predict a.jpg --img_size 640", "it is called --image-size here"),
        ("predict a.jpg --weights x.pt", "it is called --model here"),
        ("predict --source a.jpg", "SOURCE is given without an option: dino predict SOURCE"),
        ("predict a.jpg --save-txt", "it is called --save yolo here"),
        ("train --data data", "DATA is given without an option: dino train DATA"),
        ("train data --imgsz 640", "it is called --image-size here"),
        ("train data --batch-size 4", "it is called --batch here"),
        ("train data --project x", "it is called --out here"),
        ("train data epochs=20", "write --epochs 20"),
        ("train data imgsz=640", "write --image-size 640"),
        ("train data=data.yaml epochs=20", "write data.yaml"),
        ("predict source=a.jpg conf=0.3", "write a.jpg"),
        ("predict a.jpg conf=0.3", "write --threshold 0.3"),
        ("predict a.jpg mode=predict", "leave it out"),
        ("export m.safetensors half=True", "write --dtype fp16"),
        ("detect a.jpg", "it is called 'predict' here"),
        ("val data", "it is called 'eval' here"),
    ],
)
def test_names_of_other_tools_get_the_one_here(
    arguments: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments.split()) == errors.USAGE
    assert capsys.readouterr().err.splitlines()[-1] == f"hint: {hint}"


def test_every_foreign_name_leads_to_an_option_that_exists() -> None:
    commands = [typer.main.get_command(app).get_command(None, name) for name in COMMANDS]
    options = {o for c in commands for p in getattr(c, "params", ()) for o in p.opts}
    arguments = {str(p.metavar) for c in commands for p in getattr(c, "params", ())}
    for target in foreign.OPTIONS.values():
        assert target == "" or target.split()[0] in options | arguments
    assert set(foreign.COMMANDS.values()) <= COMMANDS.keys()


def test_an_equals_sign_in_a_value_or_a_file_is_no_foreign_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf=0.3").write_bytes(b"PK")
    for arguments in (["train", "nowhere", "--set", "epochs=20"], ["predict", "--", "conf=0.4"]):
        assert run(arguments) in (errors.USAGE, errors.BAD_DATA)
        assert "two dashes" not in capsys.readouterr().err
    assert run(["predict", "conf=0.3", "--model", "nowhere.onnx"]) == errors.BAD_MODEL


def test_control_characters_are_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "a\x1b31m\u202eb.jpg"]) == errors.BAD_DATA
    assert run(["predict", "a.jpg", "--x\x1b[31m"]) == errors.USAGE
    err = capsys.readouterr().err
    assert "\x1b" not in err and "\u202e" not in err
    assert "a\\x1b31m\\u202eb.jpg: no such file" in err


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


@pytest.mark.parametrize(
    "module", ["dino_cli.app", "typer", "dino_core.inference.sources", "numpy"]
)
def test_an_interrupt_during_an_import_is_one_line(module: str) -> None:
    code = (
        "import os, signal, sys\n"
        "from dino_cli.__main__ import main\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.argv = ['dino', 'predict', 'a.jpg']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -m dino_cli env --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
