"""How commands read sets of facts: the columns and splits that their options name, and warnings on stderr."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..storage.plain import read_text
from .output import say

if TYPE_CHECKING:
    from ..data.facts import Fact


@dataclass(frozen=True)
class Reading:
    """What the command line said about columns, splits and markup; the retain set's own go before the others."""

    question: str | None = None
    answer: str | None = None
    split: str = "train"
    retain_question: str | None = None
    retain_answer: str | None = None
    retain_split: str | None = None
    strip_markup: bool = False

    def forget(self, source: str, role: str = "forget") -> list[Fact]:
        """The facts of a forget set, or of another one that is no retain set.

        Raises:
            FactError: It cannot be read.
        """
        return self._read(source, role, self.question, self.answer, self.split)

    def retain(self, source: str) -> list[Fact]:
        """The facts of a retain set.

        Raises:
            FactError: It cannot be read.
        """
        question, answer = self.retain_question or self.question, self.retain_answer or self.answer
        return self._read(source, "retain", question, answer, self.retain_split or self.split)

    def _read(self, source: str, role: str, question: str | None, answer: str | None, split: str) -> list[Fact]:
        from ..data import read_facts

        def warn(text: str) -> None:
            say(f"warning: {text}")

        return read_facts(
            source,
            question=question,
            answer=answer,
            split=split,
            role=role,
            strip_markup=self.strip_markup,
            warn=warn,
        )


def read_refusals(path: Path | None) -> list[str] | None:
    """The sentences of a file, one a line.

    Raises:
        ValueError: The file is missing, empty, or not UTF-8.
    """
    if path is None:
        return None
    if not path.is_file():
        raise InputError(f"no such file: {path} (--refusals wants a text file with one sentence a line)")
    try:
        lines = [line.strip() for line in read_text(path, "utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    if not lines:
        raise InputError(f"{path} has no sentence in it; write one way of declining a line")
    return lines
