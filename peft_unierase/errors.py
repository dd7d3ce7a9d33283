"""The package's own errors: what a caller did or gave, in words that say what to do next.

Each is a `UniEraseError` and the built-in error of its kind, so `except ValueError` catches an `InputError` too. Any
other error is a bug, unless it is one of the operating system.
"""

from __future__ import annotations

from typing import Any


class UniEraseError(Exception):
    """The base of the package's own errors."""


class InputError(UniEraseError, ValueError):
    """Something that was given cannot be used: a value, a file, a model."""


class WrongTypeError(UniEraseError, TypeError):
    """Something that was given is of a kind that cannot be used."""


class StateError(UniEraseError, RuntimeError):
    """Two things that were given do not belong together, or one was changed so that it cannot be used."""


class ProcessError(UniEraseError, RuntimeError):
    """Another process of the same run has ended before it was done."""


class MissingPackageError(UniEraseError, ImportError):
    """A package is not installed that only some commands need."""


def shown(value: Any, most: int = 80) -> str:
    """A value for an error message, cut where it is longer than `most` characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        return f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def in_one_line(error: BaseException, most: int = 300) -> str:
    """What an error says, in one line; its name if it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


class ErasureWarning(UserWarning):
    """The run went through, but its erasure may not be what was asked for; the text says why, with figures."""


def no_memory(error: Exception) -> bool:
    """Whether an error is the system's, or a device's, that has no memory left."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error))
    )
