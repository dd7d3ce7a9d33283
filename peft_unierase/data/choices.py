"""Answers that are one of choices: the text of the right one, the texts of the others.

Knows in which columns choices stand and how an answer points at one: by letter, label, index or its text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..facts import FactError, shown
from .columns import MISSING, Get, Names, getter, plain_form
from .values import answers_of, is_blank, parsed, several_texts

SINGLE = (
    *("choices", "options", "question.choices", "answer_choices", "answer_options", "answer_candidates", "endings"),
    *("mc1_targets", "mc2_targets"),
)
FAMILY = re.compile(r"(option|opt|op|choice|ending|sol|ans)([a-j]|\d)")
LETTERS = "ABCDEFGHIJ"
LETTERED = re.compile(r"\(?([A-J])[).:]\s*(\S.*)", re.DOTALL)
LETTER = re.compile(r"\(?([A-Ja-j])[).:]?(?:\s+(\S.*))?", re.DOTALL)


@dataclass(frozen=True)
class ChoiceColumns:
    """Where choices stand: one column of lists, or a column for each.

    Attributes:
        columns: The names of the columns.
        labels: What an answer calls each; empty for one column of lists.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choices:
    """The choices of one row: their texts, what an answer calls them, and which are marked as right."""

    texts: list[str]
    labels: list[str]
    right: list[int]


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
    for members in families.values():
        members.sort(key=lambda member: member[1])
        if len(members) > 1 and members[0][1] in ("A", "0", "1"):
            return ChoiceColumns(tuple(name for name, _ in members), tuple(label for _, label in members))
    return None


def reads_choices(columns: ChoiceColumns, top: Iterable[str]) -> Callable[[dict[str, Any], str], Choices | None]:
    """A function from a row and its place to its choices; `None` where the row has none."""
    top = list(top)
    gets = [getter(name, top) for name in columns.columns]
    if columns.labels:
        return lambda row, place: _from_columns(row, place, columns, gets)
    get, name = gets[0], columns.columns[0]
    return lambda row, place: _from_value(get(row), name, place)


def pointing(
    values: Sequence[Any], choices: Sequence[Choices | None], classes: bool = False
) -> Callable[[Any, Choices], int | None]:
    """How the answers of a table point at their choices: one way that fits every row, or else each row's own.

    Args:
        values: The answer of each row.
        choices: The choices of each row.
        classes: Whether numbers are those of classes, which count from zero whatever the choices are called.

    Returns:
        A function from an answer and its choices to the index of the one that is meant, `None` where there is none.
    """
    pairs = [
        (value, each)
        for value, each in zip(values, choices, strict=True)
        if each and not isinstance(value, (list, dict))
    ]
    numbers = all(_is_index(value) and not isinstance(value, str) for value, _ in pairs)
    counted = (_from_zero, _by_label) if classes else (_by_label, _from_zero)
    ways = (*counted, _from_one, _by_text) if numbers else WAYS
    for way in ways:
        if pairs and all(way(value, each) is not None for value, each in pairs):
            return way
    return lambda value, each: next((n for way in OWN if (n := way(value, each)) is not None), None)


def chosen(
    value: Any, choices: Choices, way: Callable[[Any, Choices], int | None], column: str, place: str
) -> tuple[list[str], list[str]]:
    """The texts of the right choices and those of the others.

    Raises:
        FactError: The answer points at none.
    """
    right = choices.right
    if not right:
        value = parsed(value, column, place)
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
    return told, [text for text in choices.texts if text not in told]


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
    items: Any = value
    labels: list[str] = []
    right: list[int] = []
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
            f"{place}: {column!r} is {shown(value)}, not a list of choices; mend the row or rename the column"
        )
    texts = [answers_of(item, f"{column}[{number}]", place)[:1] for number, item in enumerate(items)]
    if not all(texts):
        raise FactError(f"{place}: {column!r} holds a choice without a text; mend the row or rename the column")
    return Choices(_without_letters([text for each in texts for text in each]), labels, right)


def _without_letters(texts: list[str]) -> list[str]:
    """Choices without the letters that all of them begin with: `A) 21`, `B) 22`."""
    matches = [LETTERED.fullmatch(text) for text in texts]
    if all(match and match[1] == letter for match, letter in zip(matches, LETTERS, strict=False)):
        return [match[2] for match in matches if match]
    return texts


def _by_label(value: Any, choices: Choices) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    said = str(int(value)) if _is_index(value) else str(value).strip().strip("().:")
    labels = [label.strip("().:").casefold() for label in choices.labels]
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


# A table's answers may all be digits of texts, so texts go before indices, and letters behind both.
WAYS = (_by_label, _by_text, _by_letter, _from_zero, _from_one)
OWN = (_by_label, _by_text, _by_letter, _from_zero)
