"""How commands read sets of facts: the columns and splits that their options name, and warnings on stderr."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..storage.plain import read_text
from .output import say

if TYPE_CHECKING:
    from ..data.facts import Fact


@dataclass(frozen=True, kw_only=True)
class ForgetReading:
    """What the command line says about columns, splits and markup of the sets that it names."""

    question_column: Annotated[
        str | None,
        typer.Option(help="Column of the questions, where it is not found by itself; a.b is in an object a."),
    ] = None
    answer_column: Annotated[
        str | None, typer.Option(help="Column of the answers, for instance requested_rewrite.target_true.str.")
    ] = None
    split: Annotated[str, typer.Option(help="Split of Hub data sets.")] = "train"
    strip_markup: Annotated[
        bool,
        typer.Option(
            "--strip-markup", help="Take special tokens, marks of chat templates and thinking blocks out of the facts."
        ),
    ] = False

    def forget(self, source: str, role: str = "forget") -> list[Fact]:
        """The facts of a forget set, or of another one that is no retain set.

        Raises:
            FactError: It cannot be read.
        """
        return self._read(source, role, self.question_column, self.answer_column, self.split)

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


@dataclass(frozen=True, kw_only=True)
class Reading(ForgetReading):
    """The same, and of the retain set what is other there."""

    retain_question_column: Annotated[
        str | None,
        typer.Option(help="The same of the retain set; by default --question-column.", show_default=False),
    ] = None
    retain_answer_column: Annotated[
        str | None,
        typer.Option(help="The same of the retain set; by default --answer-column.", show_default=False),
    ] = None
    retain_split: Annotated[
        str | None, typer.Option(help="The same of the retain set; by default --split.", show_default=False)
    ] = None

    def retain(self, source: str) -> list[Fact]:
        """The facts of a retain set.

        Raises:
            FactError: It cannot be read.
        """
        question = self.retain_question_column or self.question_column
        answer = self.retain_answer_column or self.answer_column
        return self._read(source, "retain", question, answer, self.retain_split or self.split)


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
