"""Errors that a user can act on: what is wrong and where (`message`), what to do (`hint`)."""

from __future__ import annotations

import re

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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python, on a GPU, or in torch on a CPU."""
    # Classes are compared by name, so that torch need not be imported. torch has no class of its
    # own for the CPU, only a RuntimeError that names its allocator.
    named = any(
        kind.__name__ in ("MemoryError", "OutOfMemoryError") for kind in type(error).__mro__
    )
    return named or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
