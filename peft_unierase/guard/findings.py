"""What the guard finds, and the error that tells it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, shown

ANEW = "get the files anew from where they came from, or ask whoever made them"
SHOWN = 120
TOLD = 20


@dataclass(frozen=True)
class Finding:
    """Something about an erasure that whoever loads it has to know.

    Attributes:
        level: `"refuse"`, or `"note"` where it is harmless by itself.
        what: What is wrong, in a sentence.
        value: Where or with what value.
        advice: What to do.
    """

    level: str
    what: str
    value: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}: {self.value} ({self.advice})"


class GuardError(InputError):
    """An erasure that the guard refuses; `findings` are the reasons."""

    def __init__(self, source: str, findings: Collection[Finding]) -> None:
        self.findings = tuple(findings)
        told = [f"  - {finding}" for finding in self.findings[:TOLD]]
        if (more := len(self.findings) - TOLD) > 0:
            told.append(f"  - and {more} more, which `unierase inspect` tells")
        lines = "\n".join(told)
        super().__init__(
            f"{source} is not loaded, because it is not what an erasure should be:\n{lines}\n"
            "If you trust whoever made it, use `peft_unierase.load` with trust=True (on the command line --trust)"
        )


def refuse(what: str, value: Any, advice: str) -> Finding:
    return Finding("refuse", what, printable(value), advice)


def note(what: str, value: Any, advice: str) -> Finding:
    return Finding("note", what, printable(value), advice)


def printable(value: Any) -> str:
    """A short text of a foreign value that does nothing to a terminal."""
    text = value if isinstance(value, str) and value.isprintable() else shown(value, SHOWN)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
