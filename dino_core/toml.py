"""Settings in TOML files, and single settings changed by `a.b=c` on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from dino_core.errors import ConfigError
from dino_core.limits import shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises ConfigError if it is missing or malformed."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise ConfigError(f"{path}: not a regular file", "give a .toml file")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits, or a null character in the name
        raise ConfigError(f"{path}: cannot be read: a number or the name is too long") from error


def dump_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Settings as TOML text; None is left out, since TOML has no null.

    Raises: ConfigError where a path is not UTF-8, which TOML must be.
    """
    text = tomli_w.dumps(_without_none(tables))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start)
        raise ConfigError(
            f"the setting {shown(text.splitlines()[line])} is not UTF-8",
            "rename the file or folder",
        ) from error
    return text


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }


def apply_overrides(tables: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply `a.b=c` assignments to nested tables. Values are TOML, or else plain strings.

    Returns: A new nested dict; `tables` is unchanged.
    Raises: ConfigError if an assignment has no `=`, or goes through a value that is no table.
    """
    result = {k: dict(v) if isinstance(v, Mapping) else v for k, v in tables.items()}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"--set {shown(assignment)}: expected KEY=VALUE", "e.g. --set train.lr=1e-4"
            )
        try:
            value = tomllib.loads(f"v = {text.strip()}")["v"]
        except (ValueError, RecursionError):  # TOMLDecodeError is a ValueError
            value = text.strip()
        node = result
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            child = node.get(parent, {})
            if not isinstance(child, Mapping):
                raise ConfigError(f"--set {key.strip()}: {shown(parent)} is not a table")
            node[parent] = dict(child)
            node = node[parent]
        node[leaf] = value
    return result
