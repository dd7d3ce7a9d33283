"""Answers that are one of choices: the text of the right one, the texts of the others.

Knows in which columns choices stand and how an answer points at one: by letter, label, index or its text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import shown
from .columns import MISSING, Get, Names, getter, plain_form
from .facts import FactError
from .lettered import LETTERS, choices_in, is_letter, unmarked
from .values import answers_of, is_blank, parsed, several_texts

SINGLE = (
    *("choices", "options", "question.choices", "answer_choices", "answer_options", "answer_candidates", "endings"),
    *("mc1_targets", "mc2_targets"),
)
FAMILY = re.compile(r"(option|opt|op|choice|ending|sol|ans|answer|alternative|candidate)([a-j]|\d)")
LETTER = re.compile(
    r"[(\uff08\[\u3010]?([A-Ja-j])[)\uff09\]\u3011.\uff0e:\uff1a\u3001\u3002]*(?:\s*(?:[-\u2013\u2014]\s)?(?<!\w)(\S.*))?",
    re.DOTALL,
)
RIGHT_MARKS = ("correct", "iscorrect", "right", "isright", "isanswer")
PUNCTUATION = " ().:\uff08\uff09\uff0e\uff1a\u3001[]"


@dataclass(frozen=True)
class ChoiceColumns:
    """Where choices stand: one column of lists, or a column for each.

    Attributes:
        columns: The names of the columns.
        labels: What an answer calls each; empty for one column of lists.
        answers: Whether the columns may hold accepted answers as well, as `answer1` and `answer2` may.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...] = ()
    answers: bool = False


@dataclass(frozen=True)
class Choices:
    """The choices of one row: their texts, what an answer calls them, and which are marked as right.

    Attributes:
        question: The question without them, if they stand in it.
    """

    texts: list[str]
    labels: list[str]
    right: list[int]
    question: str | None = None


Way = Callable[[Any, Choices], int | None]


def find_choices(names: Names) -> ChoiceColumns | None:
    """The columns of choices, where there are some."""
    single = names.first(SINGLE)
    if single is not None:
        return ChoiceColumns((single,))
    for alphabet, least in ((LETTERS, 2), (LETTERS.lower(), 3)):  # `a` and `b` alone may be anything
        letters = [letter for letter in alphabet if letter in names.all]
        if len(letters) >= least and "".join(letters) == alphabet[: len(letters)]:
            return ChoiceColumns(tuple(letters), tuple(letters))
    families: dict[str, list[tuple[str, str]]] = {}
    for name in names.top:
        if match := FAMILY.fullmatch(plain_form(name)):
            families.setdefault(match[1], []).append((name, match[2].upper()))
    for family, members in families.items():
        members.sort(key=lambda member: member[1])
        if len(members) > 1 and members[0][1] in ("A", "0", "1"):
            labels = tuple(label for _, label in members)
            answers = family in ("answer", "ans") and labels[0].isdecimal()
            return ChoiceColumns(tuple(name for name, _ in members), labels, answers)
    return None


def reads_choices(columns: ChoiceColumns, top: Iterable[str]) -> Callable[[dict[str, Any], str], Choices | None]:
    """A function from a row and its place to its choices; `None` where the row has none."""
    top = list(top)
    gets = [getter(name, top) for name in columns.columns]
    if columns.labels:
        return lambda row, place: _from_columns(row, place, columns, gets)
    get, name = gets[0], columns.columns[0]
    return lambda row, place: _from_value(get(row), name, place)


def pointing(values: Sequence[Any], choices: Sequence[Choices | None], classes: bool = False) -> Way:
    """How the answers of a table point at their choices: one way that fits every row, or else each row's own.

    Args:
        values: The answer of each row.
        choices: The choices of each row.
        classes: Whether numbers are those of classes, which count from zero whatever the choices are called.

    Returns:
        A function from an answer and its choices to the index of the one that is meant, `None` where there is none.
    """
    pairs = _pointers(values, choices)
    if all(_is_index(value) and not isinstance(value, str) for value, _ in pairs):
        counted = (_from_zero, _by_label) if classes else (_by_label, _from_zero)
        ways: tuple[Way, ...] = (*counted, _from_one, _by_text)
    else:
        # Who writes numbers for lettered choices as texts counts as people do.
        lettered = all(each.labels and not any(map(str.isdecimal, each.labels)) for _, each in pairs)
        ways = (*WAYS, *((_from_one, _from_zero) if lettered else (_from_zero, _from_one)))
    for way in (*ways, _by_truth, *((_by_class,) if classes else ())):
        if pairs and all(way(value, each) is not None for value, each in pairs):
            return way
    return lambda value, each: next((n for way in OWN if (n := way(value, each)) is not None), None)


def counted_from(way: Way, values: Sequence[Any], choices: Sequence[Choices | None]) -> int | None:
    """The number of the first choice, if a table's numbers fit 0 as well as 1; `None` if there is no doubt."""
    ways = (_from_zero, _from_one)
    both = all(each_way(*pair) is not None for pair in _pointers(values, choices) for each_way in ways)
    return ways.index(way) if way in ways and both else None


def _pointers(values: Sequence[Any], choices: Sequence[Choices | None]) -> list[tuple[Any, Choices]]:
    """Answers that may point at one of their choices, with these."""
    pairs = zip(values, choices, strict=True)
    return [(value, each) for value, each in pairs if each and not isinstance(value, (list, dict))]


def choices_of_questions(questions: Sequence[Any], answers: Sequence[Any]) -> list[Choices | None] | None:
    """The choices that stand in the questions themselves, if every answer of a table is a letter of one of them."""
    found: list[Choices | None] = []
    for question, answer in zip(questions, answers, strict=True):
        marked = choices_in(question) if isinstance(question, str) else None
        if marked is None or not isinstance(answer, (str, int)):
            return None
        each = Choices(marked.texts, marked.labels, [], marked.before)
        if not is_letter(answer) and not str(answer).isdecimal() and _by_letter(answer, each) is None:
            return None
        if _by_label(answer, each) is None and _by_letter(answer, each) is None:
            return None
        found.append(each)
    return found


def marked_right(value: Any) -> list[bool] | None:
    """Which of several answers are marked as right, `None` if they bear no such mark."""
    if not isinstance(value, (list, tuple)) or not value:
        return None
    found = []
    for item in value:
        held = {plain_form(str(key)): mark for key, mark in item.items()} if isinstance(item, dict) else {}
        mark = next((held[name] for name in RIGHT_MARKS if name in held), None)
        if isinstance(mark, str) and mark.strip().casefold() in ("true", "false"):
            mark = mark.strip().casefold() == "true"
        if not isinstance(mark, (bool, int)) or mark not in (0, 1):
            return None
        found.append(bool(mark))
    return found


def chosen(value: Any, choices: Choices, way: Way, column: str, place: str) -> tuple[list[str], list[str]]:
    """The texts of the right choices and those of the others.

    Raises:
        FactError: The answer points at none.
    """
    right = choices.right
    if not right:
        value = parsed(value, column, place)
        right = _masked(value, choices, column, place)
    if not right:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if isinstance(value, dict):
            values = list(answers_of(value, column, place))
        found = [way(each, choices) for each in values]
        right = [index for index in found if index is not None]
        if not right or len(right) < len(found):
            raise FactError(
                f"{place}: {column!r} is {shown(value)}, which is none of its choices "
                f"{', '.join(map(shown, choices.texts[:10]))}; mend the row, or rename the column of the choices if "
                "they are not meant"
            )
    told = [choices.texts[index] for index in right]
    among = frozenset(told)
    return told, [text for text in choices.texts if text not in among]


def _masked(value: Any, choices: Choices, column: str, place: str) -> list[int]:
    """The choices that a list of marks, one for each, calls right; none of another value."""
    marks = value if isinstance(value, (list, tuple)) and len(value) == len(choices.texts) else []
    if not marks or not all(isinstance(mark, (bool, int)) and mark in (0, 1) for mark in marks):
        return []
    if len(marks) == 2 and not all(isinstance(mark, bool) for mark in marks):
        raise FactError(
            f"{place}: {column!r} is {shown(value)}, which may be marks of the two choices or their numbers; write "
            "the text of the right choice there"
        )
    return [index for index, mark in enumerate(marks) if mark]


def _from_columns(row: dict[str, Any], place: str, columns: ChoiceColumns, gets: Sequence[Get]) -> Choices | None:
    texts, labels = [], []
    for name, label, get in zip(columns.columns, columns.labels, gets, strict=True):
        value = get(row)
        if value is not MISSING and not is_blank(value):
            texts.append(several_texts([value], name, place)[0])
            labels.append(label)
    return Choices(texts, labels, []) if texts else None


def _from_value(given: Any, column: str, place: str) -> Choices | None:
    """Choices of a list of texts, an object of labels and texts, or a list of objects with both."""
    if given is MISSING or is_blank(given):
        return None
    value: Any = parsed(given, column, place)
    if value in ([], {}, ()):
        return None
    items: Any = _parts(value) if isinstance(value, str) else value
    labels: list[str] = []
    right: list[int] = [index for index, is_right in enumerate(marked_right(value) or []) if is_right]
    if isinstance(value, dict):
        held = next((key for key in ("text", "choices", "texts") if isinstance(value.get(key), (list, tuple))), None)
        items = list(value.values()) if held is None else value[held]
        marks = list(value) if held is None else value.get("label", value.get("labels"))
        marks = marks if isinstance(marks, (list, tuple)) and len(marks) == len(items) else []
        if marks and all(type(mark) is int and mark in (0, 1) for mark in marks):
            right = [index for index, mark in enumerate(marks) if mark == 1]
        else:
            labels = [str(mark).strip() for mark in marks]
    elif isinstance(value, (list, tuple)) and all(isinstance(item, dict) for item in value):
        labels = [str(item.get("label", item.get("key", ""))).strip() for item in value]
    if not isinstance(items, (list, tuple)) or len(items) < 2:
        raise FactError(
            f"{place}: {column!r} is {shown(value)}, not a list of choices; write a JSON list or one column for each "
            "choice, or rename the column"
        )
    texts = [answers_of(item, f"{column}[{number}]", place)[:1] for number, item in enumerate(items)]
    if not all(texts):
        raise FactError(f"{place}: {column!r} holds a choice without a text; mend the row or rename the column")
    plain = [text for each in texts for text in each]
    marked = unmarked(plain)
    if marked is None:
        return Choices(plain, labels, right)
    return Choices(marked.texts, labels if any(labels) else marked.labels, right)


def _parts(text: str) -> list[str]:
    """Choices in one text: with marks, on lines of their own or between bars."""
    marked = choices_in(f"?\n{text}")
    if marked is not None and marked.before == "?":
        return marked.texts
    return [part.strip() for part in re.split(r"\n" if "\n" in text.strip() else r"\|", text) if part.strip()]


def _by_label(value: Any, choices: Choices) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    said = str(int(value)) if _is_index(value) else str(value).strip(PUNCTUATION)
    labels = [label.strip(PUNCTUATION).casefold() for label in choices.labels]
    return labels.index(said.casefold()) if said and said.casefold() in labels else None


def _by_text(value: Any, choices: Choices) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    said = " ".join(str(value).split()).casefold()
    texts = [" ".join(text.split()).casefold() for text in choices.texts]
    return texts.index(said) if said in texts else None


def _by_letter(value: Any, choices: Choices) -> int | None:
    match = LETTER.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or (index := LETTERS.index(match[1].upper())) >= len(choices.texts):
        return None
    return index if match[2] is None or _by_text(match[2], choices) == index else None


def _from_zero(value: Any, choices: Choices) -> int | None:
    return int(value) if _is_index(value) and int(value) < len(choices.texts) else None


def _from_one(value: Any, choices: Choices) -> int | None:
    return int(value) - 1 if _is_index(value) and 0 < int(value) <= len(choices.texts) else None


def _is_index(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, str):
        return value.strip().isdecimal() and len(value) < 8
    return isinstance(value, (int, float)) and 0 <= value < 1e6 and value == int(value)


def _by_name(value: Any, choices: Choices) -> int | None:
    """By the name of a column: `Option B`, `choice_2`."""
    match = FAMILY.fullmatch(plain_form(value)) if isinstance(value, str) else None
    if match is None:
        return None
    return found if (found := _by_label(match[2], choices)) is not None else _by_letter(match[2], choices)


def _by_truth(value: Any, choices: Choices) -> int | None:
    """By what true and false are called."""
    texts = [text.strip().casefold() for text in choices.texts]
    names = {True: ("true", "yes"), False: ("false", "no")}.get(value, ()) if isinstance(value, bool) else ()
    return next((texts.index(name) for name in names if name in texts), None)


def _by_class(value: Any, choices: Choices) -> int | None:
    """Of two choices, false is the first."""
    return int(value) if isinstance(value, bool) and len(choices.texts) == 2 else None


# A table's answers may all be digits of texts, so texts go before indices, and letters after both.
WAYS: tuple[Way, ...] = (_by_label, _by_text, _by_letter, _by_name)
OWN: tuple[Way, ...] = (*WAYS, _from_zero, _by_truth)
POINTS = (_by_label, _by_letter, _by_name, _from_zero, _from_one)
