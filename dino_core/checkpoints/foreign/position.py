"""The position encoding that imported weights were trained with; weights do not tell it.

Temperature and offset come from, in this order: who asks for the import, the configuration in the
file (mmengine's), the file's published name, and what the code's configurations have in common.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from dino_core.checkpoints.foreign.keymaps import detrex, mmdet
from dino_core.checkpoints.foreign.layouts import DETREX, MMDET, OFFICIAL, Layout
from dino_core.errors import CheckpointError, ConfigError

_PUBLISHED = {DETREX.name: detrex.PUBLISHED_POSITIONS, MMDET.name: mmdet.PUBLISHED_POSITIONS}
_DESCRIBED = re.compile(r"positional_encoding\s*=\s*dict\(([^()]*)\)")
_NUMBER = r"\b{}\s*=\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)"


@dataclass(frozen=True)
class Position:
    """Temperature and offset, as in ModelConfig; `source` says in words where they are from."""

    temperature: float
    offset: float
    source: str


def find_position(
    layout: Layout,
    file_name: str,
    config_text: str,
    temperature: float | None,
    offset: float | None,
) -> Position:
    """The position encoding of a file.

    Args:
        layout: Of the file.
        file_name: Without its folder.
        config_text: Its configuration, or empty.
        temperature: As asked for; None: found.
        offset: As asked for; None: found.

    Raises:
        ConfigError: no such temperature or offset can be.
        CheckpointError: the file's configuration asks for another kind of encoding.
    """
    found = _found(layout, file_name, config_text)
    if temperature is None and offset is None:
        return found
    temperature = found.temperature if temperature is None else temperature
    offset = found.offset if offset is None else offset
    if not (0 < temperature < math.inf and math.isfinite(offset)):
        raise ConfigError(
            f"position encoding of temperature {temperature:g} and offset {offset:g}: the "
            "temperature must be above 0, and both finite"
        )
    return Position(temperature, offset, "as asked for")


def _found(layout: Layout, file_name: str, config_text: str) -> Position:
    described = _DESCRIBED.search(config_text)
    if described:
        return _described(described[1], file_name)
    published = _PUBLISHED.get(layout.name, {}).get(file_name)
    if published is not None:
        return Position(*published, "as published under this name")
    if layout is OFFICIAL:
        return Position(*layout.position, "as published")
    return Position(*layout.position, f"{layout.name}'s usual one, the file does not tell")


def _described(arguments: str, file_name: str) -> Position:
    """From what stands between the brackets of mmdet's `positional_encoding=dict(...)`."""
    if re.search(r"\bnormalize\s*=\s*False", arguments):
        raise CheckpointError(
            f"{file_name}: its positions are not normalized, which no published DINO has"
        )
    values = list(mmdet.UNSTATED_POSITION)
    for index, name in enumerate(("temperature", "offset")):
        stated = re.search(_NUMBER.format(name), arguments)
        if not stated:
            continue
        try:
            values[index] = float(stated[1])
        except ValueError as error:
            raise CheckpointError(
                f"{file_name}: its configuration's {name} is {stated[1]}"
            ) from error
    return Position(values[0], values[1], "from the file's configuration")
