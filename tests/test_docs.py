"""The Markdown files are true to the code: links lead somewhere, options and names exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import dino_core
from dino_cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "csrc/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
)

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_DIFF = re.compile(r"^In [^`]*`([^`]+)`[^`]*\n\n```diff\n(.*?)^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    """The code blocks of one language in all pages."""
    for page in PAGES:
        for found, code in _BLOCK.findall(page.read_text(encoding="utf-8")):
            if found == language:
                yield page, code


def command_lines() -> list[str]:
    """The lines of shell blocks that call `dino`, without comments; `\\` joins lines."""
    lines = [
        line.partition("  #")[0].partition(" # ")[0].strip()
        for _, code in blocks("sh")
        for line in code.replace("\\\n", " ").splitlines()
    ]
    calls = [re.sub(r"^.*(?:&& |\| |-m )(?=dino)", "", line) for line in lines]
    return sorted({line.partition(" | ")[0] for line in calls if re.match(r"dino(_cli)? ", line)})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", link):
            continue
        place, _, fragment = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert not fragment or fragment in anchors(target), link


@pytest.mark.parametrize("line", command_lines())
def test_commands_and_options_exist(line: str) -> None:
    command = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while hasattr(command, "get_command") and words:
        command = command.get_command(typer.Context(command), words.pop(0))
        assert command is not None, line
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    used = {word for word in words if re.match(r"--?[a-z]", word)}
    assert used <= {*known, "--help"}, line


def test_there_are_command_lines() -> None:
    assert {line.split()[1] for line in command_lines()} >= {"predict", "train", "eval", "export"}


def test_python_blocks_import_public_names() -> None:
    imported = {
        name.name
        for _, code in blocks("python")
        if "import" in code
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and node.module == "dino_core"
        for name in node.names
    }
    assert {"Detector", "train"} <= imported
    assert imported <= set(dino_core.__all__)


def shown_changes() -> list[tuple[str, str]]:
    """The file and the diff of each change that a page shows."""
    return [change for page in PAGES for change in _DIFF.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("place", "diff"), shown_changes(), ids=lambda text: text.split("\n")[0])
def test_lines_of_a_shown_change_stand_in_its_file(place: str, diff: str) -> None:
    def code(line: str) -> str:
        return line.partition("  #")[0].strip()

    present = {code(line) for line in (ROOT / place).read_text(encoding="utf-8").splitlines()}
    shown = [code(line[1:]) for line in diff.splitlines() if line[:1] in "+ "]
    assert [line for line in shown if "..." not in line and line not in {*present, ""}] == []


def test_every_extension_page_shows_its_table_and_its_file() -> None:
    pages = [page for page in PAGES if page.name.startswith("add-a")]
    assert len(pages) == 5
    for page in pages:
        places = [place for place, _ in _DIFF.findall(page.read_text(encoding="utf-8"))]
        assert any(place.endswith("/table.py") for place in places), page
        assert len(places) >= 2, page
