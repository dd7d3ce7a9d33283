"""How commands read sets of facts: the columns and splits that their options name, and warnings on stderr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
