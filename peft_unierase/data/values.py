"""One value of a row as texts: what counts as text, as an answer, as a list of them, and what is refused.

Knows no column names. Every error names the place and the column that it is given.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from math import isfinite
from typing import Any

from ..errors import shown
from .facts import FactError

DEEPEST = 6  # lists and objects inside each other that an answer may be in
# Where an object holds an answer, the first of these that is there; SQuAD, TriviaQA, CounterFact.
ANSWER_KEYS = ("text", "value", "str", "answer", "answers", "span", "name")
ALIAS_KEYS = ("aliases", "alias", "answer_aliases")
TEXT_KEYS = (*ANSWER_KEYS, "A", "a", "choices", "label", "labels")
NUMPY_LIST = re.compile(r"\[(['\"]).*\1\s+['\"].*\]|\[\{['\"].*\}\s+\{['\"].*\]", re.DOTALL)


def is_blank(value: Any) -> bool:
    """Whether a value says nothing: null, a number that is none, or whitespace."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def text_of(value: Any, column: str, place: str) -> str:
    """A value that must be text, without the whitespace around it.

    Raises:
        FactError: It is empty, is no text, or holds half a character.
    """
    if type(value) is not str or not (text := value.strip()):
        if is_blank(value):
            found = f"empty ({value!r})" if isinstance(value, str) else "null"
            raise FactError(f"{place}: {column!r} is {found}; fill it in or remove the row")
        if not isinstance(value, str):
            nested = "; name what is in it: " + repr(f"{column}.{next(iter(value))}") if _named(value) else ""
            raise FactError(
                f"{place}: {column!r} is {shown(value)} ({type(value).__name__}), not text; write one string there, "
                f"or rename the column if it is not meant{nested}"
            )
        text = value.strip()
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FactError(
            f"{place}: {column!r} holds half a character, {text[error.start]!r} in {shown(text)}; write it anew"
        ) from error
    return text


def answers_of(value: Any, column: str, place: str) -> list[str]:
    """A value as answers, the first one first: a text, a number, or any nesting of lists and objects with them.

    Returns:
        At least one answer; none where a list of answers is empty, as of a question without an answer.

    Raises:
        FactError: It is empty or is no answer.
    """
    if type(value) is str and value[:1] not in "[{":
        return [text_of(value, column, place)]
    value = parsed(value, column, place)
    if isinstance(value, (list, tuple, dict)):
        return list(dict.fromkeys(_flat(value, column, place, DEEPEST)))
    return [_text_or_number(value, column, place)]


def several_texts(value: Any, column: str, place: str) -> list[str]:
    """A text or a list of texts or numbers; none where it is empty.

    Raises:
        FactError: It is something else.
    """
    if is_blank(value):
        return []
    value = parsed(value, column, place)
    if isinstance(value, str):
        return [text_of(value, column, place)]
    if isinstance(value, (date, time, Decimal)):
        return [_text_or_number(value, column, place)]
    if not isinstance(value, (list, tuple, dict)):
        raise FactError(f"{place}: {column!r} is {shown(value)}, neither a text nor a list of texts; mend the row")
    return list(dict.fromkeys(_flat(value, column, place, DEEPEST)))


def parsed(value: Any, column: str, place: str) -> Any:
    """A list or an object that a table without lists holds as text: JSON, or as Python writes it. Else the value.

    Raises:
        FactError: It is a list as numpy writes it, which cannot be read back.
    """
    if not isinstance(value, str) or (text := value.strip())[:1] not in ("[", "{"):
        return value
    found = loaded(text)
    if isinstance(found, dict) and any(key in found for key in TEXT_KEYS):
        return found
    if isinstance(found, list) and all(isinstance(item, (str, dict, list)) for item in found):
        return found
    if "array([" in text or (found is None and NUMPY_LIST.fullmatch(text)):
        raise FactError(
            f"{place}: {column!r} is {shown(value)}, a list that was written as text and cannot be read back; "
            "save the data as .jsonl or .parquet"
        )
    return value


def loaded(text: str) -> Any:
    """What a text says in JSON or in Python's own words; `None` where it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        found = ast.literal_eval(text)
        # Python joins strings that only a space parts, as numpy writes lists; its own words come back to the letter.
        return found if repr(found) == text else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _flat(value: Any, column: str, place: str, depth: int) -> Iterator[str]:
    if depth == 0:
        raise FactError(f"{place}: {column!r} is nested too deeply; write the answer as one text, or a list of texts")
    if isinstance(value, dict):
        held = next((key for key in ANSWER_KEYS if key in value), None)
        if held is None:
            inside = f"{column}.{next(iter(value), 'text')}"
            raise FactError(f"{place}: {column!r} is {shown(value)} (dict), not text; name what is in it: {inside!r}")
        for key in (held, *(key for key in ALIAS_KEYS if key in value)):
            if not is_blank(value[key]):
                yield from _flat(value[key], f"{column}.{key}", place, depth - 1)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            if not is_blank(item):
                yield from _flat(item, f"{column}[{number}]", place, depth - 1)
    else:
        yield _text_or_number(value, column, place)


def _text_or_number(value: Any, column: str, place: str) -> str:
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and isfinite(value):
        # A column of whole numbers with gaps comes out of pandas as 1969.0.
        whole = int(value)
        return str(whole) if value == whole and abs(whole) < 10**15 else str(value)
    if isinstance(value, datetime) and value.time() == time():  # a day, as most libraries keep one
        value = value.date()
    if isinstance(value, (date, time)):
        return value.isoformat()
    return text_of(value, column, place)


def _named(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)
