"""Errors that a user can act on: what is wrong and where (`message`), what to do (`hint`)."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Control characters except tab and line break, the characters that reorder text, and the surrogates
# that stand for bytes of file names that are not UTF-8. A terminal obeys or refuses them, and file
# names, servers and files of other people can contain them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with the characters that no terminal should receive replaced by their escapes."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class DinoError(Exception):
    """Base class of the errors that this library raises on purpose.

    Attributes:
        message: One sentence that states where the error is, what was found and what was expected.
            Control characters in it, e.g. of a file name, are replaced by their escapes.
        hint: What to do about it; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        message, hint = printable(message), printable(hint)
        super().__init__(message if not hint else f"{message} ({hint})")
        self.message = message
        self.hint = hint


class ConfigError(DinoError):
    """A setting is unknown, malformed or contradictory."""


class DataError(DinoError):
    """An image, annotation file or data set is missing or malformed."""


class CheckpointError(DinoError):
    """A model file or name is missing, malformed or does not fit."""


class ExtensionError(DinoError):
    """The compiled operators were requested and cannot be used."""


class ExportError(DinoError):
    """A model could not be exported, or the exported file does not reproduce it."""


def shown(value: object, limit: int = 60) -> str:
    """The start of `repr(value)`, for a message; nothing beyond it is built.

    Values that files hold may be nested and share parts, so that a few lines of YAML stand for
    billions of entries, and integers may have more digits than Python converts.

    Args:
        value: Anything.
        limit: The most characters of the result; what is cut ends in three dots.
    """
    text = ""
    for piece in _pieces(value, limit):
        text += piece
        if len(text) > limit:
            return f"{text[: limit - 3]}..."
    return text


def _pieces(value: object, limit: int) -> Iterator[str]:
    """The parts of `repr(value)`; each is short, and the first of every level is not empty."""
    if isinstance(value, (list, tuple)):
        yield "[" if isinstance(value, list) else "("
        for i, each in enumerate(value):
            yield ", " if i else ""
            yield from _pieces(each, limit)
        yield "]" if isinstance(value, list) else ")"
    elif isinstance(value, dict):
        yield "{"
        for i, (key, each) in enumerate(value.items()):
            yield ", " if i else ""
            yield from _pieces(key, limit)
            yield ": "
            yield from _pieces(each, limit)
        yield "}"
    elif isinstance(value, (str, bytes)):
        yield repr(value[: limit + 1])
    elif isinstance(value, int) and value.bit_length() > 4 * limit:
        yield f"an integer of {value.bit_length():,} bits"
    else:
        yield repr(value)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python, on a GPU, or in torch on a CPU."""
    # Classes are compared by name, so that torch need not be imported. torch has no class of its
    # own for the CPU, only a RuntimeError that names its allocator.
    named = any(
        kind.__name__ in ("MemoryError", "OutOfMemoryError") for kind in type(error).__mro__
    )
    return named or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
