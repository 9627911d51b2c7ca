"""The position encoding that imported weights were trained with, which the weights do not show.

Temperature and offset come, in this order, from the caller, from the configuration in the file
(mmengine's), from the name of a published file, and from the usual configuration of the code.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from dino_core.checkpoints.foreign.keymaps import detrex, mmdet
from dino_core.checkpoints.foreign.layouts import DETREX, MMDET, OFFICIAL, Layout
from dino_core.errors import CheckpointError, ConfigError

_PUBLISHED = {DETREX.name: detrex.PUBLISHED_POSITIONS, MMDET.name: mmdet.PUBLISHED_POSITIONS}
# The configuration is Python source as text. It is searched and never evaluated.
_DESCRIBED = re.compile(r"positional_encoding\s*=\s*dict\(([^()]*)\)")
_NUMBER = r"\b{}\s*=\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)"


@dataclass(frozen=True)
class Position:
    """Temperature and offset, as in ModelConfig; `source` says where they are from."""

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
        layout: The code base that wrote the file.
        file_name: Name of the file without its folder.
        config_text: The configuration in the file; empty if it has none.
        temperature: The temperature to use; None to find it.
        offset: The offset to use; None to find it.

    Raises:
        ConfigError: The temperature or offset is impossible.
        CheckpointError: The file's configuration has another kind of encoding.
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
    return Position(temperature, offset, "as requested")


def _found(layout: Layout, file_name: str, config_text: str) -> Position:
    described = _DESCRIBED.search(config_text)
    if described:
        return _described(described[1], file_name)
    published = _PUBLISHED.get(layout.name, {}).get(file_name)
    if published is not None:
        return Position(*published, "as published under this name")
    if layout is OFFICIAL:
        return Position(*layout.position, "as published")
    # A guess, so the source is stated in the notes of the imported model.
    return Position(*layout.position, f"{layout.name}'s usual one, as the file does not state it")


def _described(arguments: str, file_name: str) -> Position:
    """The position encoding in the arguments of mmdet's `positional_encoding=dict(...)`."""
    if re.search(r"\bnormalize\s*=\s*False", arguments):
        raise CheckpointError(
            f"{file_name}: its positions are not normalized, which no published DINO has"
        )
    # mmdet's own defaults for what its configuration leaves out.
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
