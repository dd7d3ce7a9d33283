"""Rows as facts: questions with what stands around them, answers with what else counts, by the columns of a layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .chats import (
    ASSISTANT,
    USER,
    Turn,
    exchanges,
    history_of,
    is_chat,
    is_message,
    is_unanswered,
    transcript,
    turns_of,
)
from .choices import (
    POINTS,
    Choices,
    Way,
    choices_of_questions,
    chosen,
    counted_from,
    marked_right,
    pointing,
    reads_choices,
)
from .columns import MISSING, Get, getter, plain_form
from .facts import Fact, FactError
from .layouts import Columns
from .lettered import is_letter
from .table import Table, quoted
from .values import answers_of, is_blank, parsed, several_texts, text_of

# A place for the subject, by itself among words; braces in code stand beside other signs.
PLACE = re.compile(
    r"(?<![=+,:] )(?<![^\s\"'\u201c\u2018\u300c])"
    r"\{\}(?![^\s.,;:?!'\u2019\")\u201d\u00bb\u300d\u3001\u3002\uff1f\uff01])"
)


@dataclass
class Notes:
    """What was left out, in numbers.

    Attributes:
        without_answer: Rows whose list of answers is empty.
        unanswered: Chats that end with a user's turn.
        not_text: Columns around a question that hold no text.
        counted_from: The number of the first choice, if the numbers of answers fit another one as well.
    """

    without_answer: int = 0
    unanswered: int = 0
    not_text: dict[str, None] = field(default_factory=dict)
    counted_from: int | None = None

    def lines(self, label: str) -> list[str]:
        """The same in words."""
        found = []
        if self.without_answer:
            found.append(f"{label}: questions with an empty list of answers are left out: {self.without_answer}")
        if self.unanswered:
            found.append(f"{label}: last user turns of chats that nobody answers are left out: {self.unanswered}")
        if self.not_text:
            found.append(
                f"{label}: columns beside the questions that hold no text are left out: {quoted(self.not_text)}"
            )
        if self.counted_from is not None:
            found.append(
                f"{label}: the numbers of the right choices fit counting from 0 and from 1; taken from "
                f"{self.counted_from}. Check a fact, and write letters or texts if that is wrong"
            )
        return found


class Reader:
    """Makes facts of the rows of one table.

    Args:
        table: The table.
        columns: Which of its columns hold what.
        notes: Where to count what is left out.
    """

    def __init__(self, table: Table, columns: Columns, notes: Notes) -> None:
        top = frozenset(table.columns())

        def gets(names: Sequence[str]) -> list[tuple[str, Get]]:
            return [(name, getter(name, top)) for name in names]

        self.columns, self.notes = columns, notes
        self.question, self.answer = getter(columns.question, top), getter(columns.answer, top)
        if columns.otherwise:
            own, instead = self.answer, getter(columns.otherwise, top)
            self.answer = lambda row: instead(row) if is_blank(own(row)) else own(row)
        self.before, self.after = gets(columns.before), gets(columns.after)
        self.history = getter(columns.history, top) if columns.history else None
        self.subject = getter(columns.subject, top) if columns.subject else None
        self.paraphrases, self.paraphrased = gets(columns.paraphrases), gets(columns.paraphrased_answers)
        self.wrong, self.accepted = gets(columns.wrong), gets(columns.accepted)
        further = (self.before, self.after, self.history, self.paraphrases, self.paraphrased, self.wrong, self.accepted)
        self.plain = not any(further)
        self.is_wrong = frozenset(columns.wrong)
        self.choices = reads_choices(columns.choices, top) if columns.choices else None
        self.way: Way = lambda value, choices: None
        self.template = columns.layout.template

    def facts(self, table: Table) -> Iterator[tuple[int, Fact]]:
        """Each fact with the number of its row."""
        values = [self.answer(row) for _, row in table.rows]
        asked = [self.question(row) for _, row in table.rows]
        read = self._choices(table, asked, values)
        if any(read):
            self.way = pointing(values, read, classes=plain_form(self.columns.answer) == "label")
            self.notes.counted_from = counted_from(self.way, values, read)
        self.template |= all(isinstance(text, str) and PLACE.search(text) for text in asked)
        for (number, row), choices in zip(table.rows, read, strict=True):
            for fact in self.fact(row, table.place(number), choices):
                yield number, fact

    def _choices(self, table: Table, asked: list[Any], values: list[Any]) -> list[Choices | None]:
        """The choices of each row, from their column or out of the questions.

        Raises:
            FactError: All answers are letters, and there are no choices.
        """
        read: list[Choices | None] = [None] * len(values)
        if self.choices:
            read = [self.choices(row, table.place(number)) for number, row in table.rows]
        if any(read) or self.columns.named or self.columns.layout.is_chat:
            return read
        if found := choices_of_questions(asked, values):
            return found
        if all(is_letter(value) and value.strip("() .").isupper() for value in values):
            raise self._pointless(table.place(table.rows[0][0]), values[0])
        return read

    def _pointless(self, place: str, told: Any) -> FactError:
        name = self.columns.answer
        return FactError(
            f"{place}: {name!r} is {told!r}, but no choices were found; write the text of the right choice there or "
            f"add a column 'choices', or name {name!r} as `answer=` (on the command line --answer-column) if "
            "the letter itself is the answer"
        )

    def fact(self, row: dict[str, Any], place: str, choices: Choices | None) -> list[Fact]:
        """The facts of one row and its choices: several of a chat, none where there is no answer."""
        asked, told = self.question(row), self.answer(row)
        for name, value in ((self.columns.question, asked), (self.columns.answer, told)):
            if value is MISSING:
                raise FactError(f"{place} has no {name!r}, only {quoted(row)}; add it or remove the row")
        chat = self._chat(row, asked, told, place)
        if chat is not None:
            # What stands beside a chat of several questions says not of which of them it tells.
            extra = self._around(row, place, [chat[0][1]]) if len(chat) == 1 else {}
            about = self._subject(row, chat[0][0], place) if len(chat) == 1 else None
            return [Fact(question, answer, subject=about, **extra) for question, answer in chat]
        answers, wrong = self._answers(told, choices, place)
        if not answers:
            self.notes.without_answer += 1
            return []
        question = text_of(asked, self.columns.question, place)
        subject = self._subject(row, question, place)
        if choices and choices.question:
            question = choices.question
        question = self._filled(question, subject, place)
        if self.plain and len(answers) == 1 and not wrong:
            return [Fact(question, answers[0], subject=subject)]
        frame = self._frame(row, place)
        return [
            Fact(
                frame(question),
                answers[0],
                subject=subject,
                **self._around(row, place, answers, wrong, question, subject, frame),
            )
        ]

    def _answers(self, told: Any, choices: Choices | None, place: str) -> tuple[list[str], list[str]]:
        """What is right, the preferred answer first, and what is wrong."""
        # A column that was named may hold the answer in full, whatever choices stand beside it.
        held = self.columns.choices.columns if self.columns.choices else ()
        if choices and not choices.right and self.columns.answer in held and not self.columns.named:
            raise FactError(
                f"{place}: {self.columns.answer!r} says not which choice is right, and no other column does; add a "
                "column 'answer' with the text of the right one, or name yours: `answer=` (on the command line "
                "--answer-column)"
            )
        if choices and (not self.columns.named or choices.right or self.way(told, choices) is not None):
            return chosen(told, choices, self.way, self.columns.answer, place)
        if self.choices and not choices and not self.columns.named and self.way in POINTS and _is_pointer(told):
            raise self._pointless(place, told)
        value = parsed(told, self.columns.answer, place)
        if (right := marked_right(value)) and any(right):
            texts = [answers_of(item, self.columns.answer, place)[0] for item in value]
            pairs = list(zip(texts, right, strict=True))
            return [text for text, is_right in pairs if is_right], [text for text, is_right in pairs if not is_right]
        return answers_of(told, self.columns.answer, place), []

    def _filled(self, text: str, subject: str | None, place: str) -> str:
        """A wording with its subject in the place for it.

        Raises:
            FactError: It is a template and there is no subject.
        """
        if "{}" not in text:
            return text
        if subject:
            spoken = not self.template and subject.casefold() in text.casefold()
            return (
                text
                if spoken
                else (text.replace("{}", subject) if self.template else PLACE.sub(lambda match: subject, text))
            )
        if self.template:
            raise FactError(
                f"{place}: {self.columns.question!r} is {text!r}, which needs a subject column to fill it; "
                "add a column 'subject', or write the question in full"
            )
        return text

    def _around(
        self,
        row: dict[str, Any],
        place: str,
        answers: Sequence[str] = (),
        wrong: Sequence[str] = (),
        question: str = "",
        subject: str | None = None,
        frame: Callable[[str], str] = str,
    ) -> dict[str, Any]:
        """The fields of a fact beside question, answer and subject."""

        def texts(gets: list[tuple[str, Get]]) -> list[str]:
            found: list[str] = []
            for name, get in gets:
                value = get(row)
                whole = name in self.is_wrong and self.columns.layout.is_chat and isinstance(value, str)
                if whole or (is_chat(value) and is_message(value[-1])):
                    found += [turn.text for turn in turns_of(value, name, place)[-1:] if turn.text]
                elif value is not MISSING and not is_blank(value):
                    found += several_texts(value, name, place)
            return found

        reworded = []
        for name, get in self.paraphrases:
            value = get(row)
            if value is not MISSING and not isinstance(value, (bool, int, float)):
                reworded += several_texts(value, name, place)
        if subject:
            reworded = [self._filled(text, subject, place) for text in reworded]
        right = dict.fromkeys([*answers[1:], *texts(self.accepted)])
        others = dict.fromkeys([*wrong, *texts(self.wrong)])
        told = frozenset(answers)
        return {
            "paraphrases": tuple(dict.fromkeys(frame(text) for text in reworded if text != question)),
            "paraphrased_answer": next(iter(texts(self.paraphrased)), None),
            "perturbed_answers": tuple(text for text in others if text not in told and text not in right),
            "accepted_answers": tuple(text for text in right if text not in answers[:1]),
        }

    def _frame(self, row: dict[str, Any], place: str) -> Callable[[str], str]:
        """What puts a wording of the question between the texts that stand around it."""
        before, after = self._texts(row, self.before, place), self._texts(row, self.after, place)
        turns: list[Turn] = []
        if self.history and self.columns.history and (value := self.history(row)) is not MISSING:
            turns = history_of(value, self.columns.history, place)

        def frame(question: str) -> str:
            asked = "\n\n".join([question, *after])
            return "\n\n".join([*before, transcript([*turns, Turn(USER, asked)])])

        return frame

    def _texts(self, row: dict[str, Any], gets: list[tuple[str, Get]], place: str) -> list[str]:
        found = []
        for name, get in gets:
            value = get(row)
            if value is MISSING or is_blank(value):
                continue
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                value = "\n".join(value)
            if isinstance(value, str):
                found += [text_of(value, name, place)] if value.strip() else []
            else:
                self.notes.not_text[name] = None
        return found

    def _subject(self, row: dict[str, Any], question: str, place: str) -> str | None:
        value = MISSING if self.subject is None else self.subject(row)
        if self.columns.subject is None or value is MISSING or is_blank(value):
            return None
        # Beside choices it is the subject that is taught at school, unless the question says its name.
        if self.choices and (not isinstance(value, str) or value.strip().casefold() not in question.casefold()):
            return None
        return text_of(value, self.columns.subject, place)

    def _chat(self, row: dict[str, Any], asked: Any, told: Any, place: str) -> list[tuple[str, str]] | None:
        """Questions and answers of a row that holds a chat, in one column or in two."""
        question, answer = self.columns.question, self.columns.answer
        if question == answer:
            turns = turns_of(asked, question, place)
            system = [Turn("system", text) for text in self._texts(row, self.before, place)]
            self.notes.unanswered += is_unanswered(turns)
            found = exchanges([*system, *turns], question, place)
            return found[-1:] if plain_form(question) == "chosen" else found  # the last turn is what was chosen
        if is_chat(asked):
            before = turns_of(asked, question, place)
            if before[-1].role != USER:
                raise FactError(
                    f"{place}: {question!r} must end with 'user', not with {before[-1].role!r}; mend or remove it"
                )
        elif is_chat(told) and is_message(told[0]):
            before = [Turn(USER, text_of(asked, question, place))]
        else:
            return None
        if not is_chat(told):
            return [(transcript(before), answers_of(told, answer, place)[0])]
        after = turns_of(told, answer, place)
        if plain_form(answer) == "chosen" and after[0].role != ASSISTANT:  # it begins with the prompt again
            return exchanges(after, answer, place)[-1:]
        if after[0].role != ASSISTANT:
            raise FactError(
                f"{place}: {answer!r} must begin with 'assistant', not with {after[0].role!r}; mend or remove it"
            )
        found = exchanges([*before, *after], answer, place)
        return found[-sum(turn.role == ASSISTANT and turn.text is not None for turn in after) :]


def _is_pointer(value: Any) -> bool:
    """Whether an answer is a letter or a number as choices have them."""
    return is_letter(value) or (not isinstance(value, bool) and str(value).strip() in list("0123456789"))
