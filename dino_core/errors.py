"""Errors a user can act on: what is wrong and where (`message`), and what to do (`hint`)."""

from __future__ import annotations


class DinoError(Exception):
    """Base of every error this library raises on purpose.

    Attributes:
        message: One sentence: what, where, what was found.
        hint: What to do about it; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
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
    """The compiled operators were asked for and cannot be used."""


class ExportError(DinoError):
    """A model could not be exported, or the artifact does not reproduce it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's, a GPU's, or torch's on a CPU, a plain RuntimeError.

    By name, so that nothing needs torch to ask.
    """
    named = any(
        kind.__name__ in ("MemoryError", "OutOfMemoryError") for kind in type(error).__mro__
    )
    return named or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
