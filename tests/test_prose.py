"""The words of this project: American spelling, and one word per concept (CONTRIBUTING, glossary).

Checked are all Markdown files, the comments and strings of the Python files and all text of the C++
and CUDA files of `CHECKED`, and what `--help` prints. A word is reported as `file:line: ...`.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import token
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

ROOT = Path(__file__).parents[1]

# Folders whose source is checked. "dino_cli" includes the help texts of all commands.
CHECKED = ("benchmarks", "csrc", "dino_cli", "dino_core", "examples")

_SOURCE = {".py": "python", ".sh": "text", ".toml": "text", ".md": "text"} | dict.fromkeys(
    (".cpp", ".h", ".inc", ".cu", ".cuh"), "text"
)

# What to reject (a regular expression, whole words, any case) and what to write instead.
BRITISH = {
    r"(?:un|multi)?colour\w*": "color",
    r"centre[ds]?": "center",
    r"centring": "centering",
    r"(?:un|re)?(?:optim|normal|recogn|initial|summar|organ|minim|maxim|general|special|serial"
    r"|quant|vector|token|visual|util|synchron|priorit|real|penal|emphas|regular|parallel|custom"
    r"|standard|character|categor|final)is(?:e[drs]?|ing|ations?|ers?)": "-ize",
    r"analys(?:ed|ing)": "analyze",
    r"(?:un|re|mis)?labell\w*": "labeled, labeling",
    r"(?:modell|travell|cancell|signall|totall)(?:ed|ing)": "one l: modeled",
    r"licence[ds]?": "license",
    r"neighbour\w*": "neighbor",
    r"behaviour\w*": "behavior",
    r"(?:un)?favour\w*": "favor",
    r"honour\w*": "honor",
    r"grey\w*": "gray",
    r"(?:milli|centi|kilo)?metres?": "meter",
    r"artefacts?": "artifact",
    r"defence": "defense",
    r"whilst": "while",
    r"amongst": "among",
    r"learnt": "learned",
    r"spelt": "spelled",
    r"spoilt": "spoiled, or: not finite",
}
DIALECT = {
    r"told|tells?|telling": "reports, states, shows, distinguishes",
    r"whoever|whomever": "the caller, the user",
    r"shall": "must, should, will",
    r"in the midst": "in the middle",
    r"(?:go|goes|going|went|gone) on with": "resume, continue",
    r"of everything random": "random seed",
    r"for want of|in want of": "for lack of",
    r"besides?,? (?:that|which) of": "in addition to",
    r"forms? of (?:the )?(?:data|labels?)|(?:target|data|other) form": "format",
    r"(?:images|pictures|boxes|objects|passes|steps|evaluations|ms|bytes|seconds|GFLOPs?|FLOPs)"
    r" an? (?:step|second|epoch|pass|forward pass|image|process|batch|call|query|point)": "per",
    r"(?<!learning )rate of the (?:head|backbone)": "learning rate of the ...",
    r"arithmetic": "dtype, precision, computation",
}
OPENING = r"(?:^\s*#+|\"\"\"|:)\s+(?:Of (?!course)|In how |From which )"
OPENING_HINT = "begin with the noun, not with a preposition"

# (file, word in lower case): why it may stand there.
ALLOWED = {
    ("dino_cli/model_view.py", "licence"): "the key in the metadata of model files",
    ("dino_core/checkpoints/foreign/pickle_machine.py", "tell"): "the method of a file",
    ("CONTRIBUTING.md", "images a step"): "the glossary lists it as a phrase not to use",
}

_WORDS = [
    (re.compile(rf"(?<![\w/.-])(?:{pattern})(?![\w/]|\.py)", re.IGNORECASE), hint)
    for pattern, hint in {**BRITISH, **DIALECT}.items()
]
_OPENING = re.compile(OPENING)
_FIELD = re.compile(r"\{[^{}]*\}")


class Line(NamedTuple):
    """One line of prose and where it stands."""

    place: str
    number: int
    text: str


def prose_of_python(place: str, source: str) -> Iterator[Line]:
    """Comments and strings, line by line; names in the code are not prose."""
    literal = {token.STRING, getattr(token, "FSTRING_MIDDLE", token.STRING)}
    for piece in tokenize.generate_tokens(io.StringIO(source).readline):
        if piece.type == tokenize.COMMENT or piece.type in literal:
            # Before Python 3.12 an f-string is one token, its expressions included.
            prefix = re.match(r"\w*", piece.string)[0] if piece.type == token.STRING else ""
            for offset, text in enumerate(piece.string.splitlines()):
                prose = _FIELD.sub("", text) if "f" in prefix.lower() else text
                yield Line(place, piece.start[0] + offset, prose)


def prose_of_text(place: str, source: str) -> Iterator[Line]:
    """Every line."""
    for number, text in enumerate(source.splitlines(), start=1):
        yield Line(place, number, text)


def complaints(lines: Iterator[Line]) -> Iterator[str]:
    """The words of `lines` that this project does not use, as `file:line: ...`."""
    for place, number, text in lines:
        for pattern, hint in _WORDS:
            for match in pattern.finditer(text):
                if (place, match[0].lower()) not in ALLOWED:
                    yield f"{place}:{number}: '{match[0]}' (write: {hint})"
        if not place.endswith(".md") and (match := _OPENING.search(text)):
            yield f"{place}:{number}: '{match[0].strip()}' ({OPENING_HINT})"


def tracked_files() -> list[str]:
    """The files of the repository, new ones included; skips the test where there is none."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def commands() -> list[tuple[str, ...]]:
    """Every command with a help text: (), ("predict",), ("models", "pull"), ..."""
    from dino_cli.app import app

    def below(command: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        context = typer.Context(command)  # type: ignore[arg-type]
        for name in getattr(command, "list_commands", lambda _: [])(context):
            yield from below(command.get_command(context, name), (*path, name))  # type: ignore[attr-defined]

    return list(below(typer.main.get_command(app), ()))


def test_markdown_and_source_use_the_words_of_the_glossary() -> None:
    found = []
    for name in tracked_files():
        kind = _SOURCE.get(Path(name).suffix)
        if kind is None or not (name.endswith(".md") or name.split("/")[0] in CHECKED):
            continue
        source = (ROOT / name).read_text(encoding="utf-8")
        read = prose_of_python if kind == "python" else prose_of_text
        found += complaints(read(name, source))
    assert not found, f"{len(found)} words:\n" + "\n".join(found)


@pytest.mark.skipif("dino_cli" not in CHECKED, reason="dino_cli is not checked yet")
def test_help_texts_use_the_words_of_the_glossary() -> None:
    found: list[str] = []
    for command in commands():
        shown = subprocess.run(
            [sys.executable, "-m", "dino_cli", *command, "--help"],
            env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found += complaints(prose_of_text(" ".join(("dino", *command, "--help")), shown))
    assert not found, f"{len(found)} words:\n" + "\n".join(found)


def test_every_exception_is_still_needed() -> None:
    for place, word in ALLOWED:
        lines = prose_of_text(place, (ROOT / place).read_text(encoding="utf-8"))
        assert any(word in line.text.lower() for line in lines), f"{place} has no '{word}'"


def test_every_command_is_found() -> None:
    found = commands()
    assert {(), ("predict",), ("eval",), ("models",), ("models", "pull")} <= set(found)


SOURCE = '''"""A module of the
Colour kind."""

colour = 1  # the name is code, this centre is not
LINE = f"{colour.told} images a step"
# Of the frozen backbone, kept.
'''


def test_words_are_found_with_their_lines() -> None:
    found = list(complaints(prose_of_python("a.py", SOURCE)))
    places = [complaint.split(" ")[0] + complaint.split("'")[1] for complaint in found]
    assert places == ["a.py:2:Colour", "a.py:4:centre", "a.py:5:images a step", "a.py:6:# Of"]


@pytest.mark.parametrize(
    "text",
    [
        "labels/pictures/1.jpg and xcentre are names",
        "a step of 64 images takes a second",
        "See dino_core/data/formats/labelled.py.",
        "intelligent, fortellings",  # a word inside another one
    ],
)
def test_names_and_other_words_are_left_alone(text: str) -> None:
    assert list(complaints(prose_of_text("a.md", text))) == []


@pytest.mark.parametrize("text", ["It TELLS so.", "Neighbours, licences", "optimiser's state"])
def test_case_and_endings(text: str) -> None:
    assert list(complaints(prose_of_text("a.md", text)))
