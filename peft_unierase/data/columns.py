"""Columns by name: which one is meant by a name, and how its value comes out of a row.

A name with dots goes into objects and lists: `requested_rewrite.target_true.str`, `answers.text.0`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Get = Callable[[dict[str, Any]], Any]


class Missing:
    """The value of a column that a row does not have."""


MISSING = Missing()


@dataclass(frozen=True)
class Names:
    """The names of a table's columns, each found by itself or by what differs in case, spaces, `_` and `-` alone.

    Attributes:
        top: Columns of the table, in their order.
        nested: Names with dots, of what lies inside.
        plain: The first name for each plain form.
        all: All names.
    """

    top: Sequence[str]
    nested: Sequence[str]
    plain: dict[str, str]
    all: frozenset[str]

    @classmethod
    def of(cls, top: Sequence[str], nested: Sequence[str] = ()) -> Names:
        """Names with their plain forms."""
        plain: dict[str, str] = {}
        for name in (*top, *nested):
            plain.setdefault(plain_form(name), name)
        return cls(top, nested, plain, frozenset((*top, *nested)))

    def find(self, wanted: str) -> str | None:
        """The column of that very name, or else the first of the same plain form."""
        if wanted in self.all:
            return wanted
        return self.plain.get(plain_form(wanted))

    def first(self, wanted: Iterable[str]) -> str | None:
        """The first of several names that there is a column for."""
        return next((column for name in wanted if (column := self.find(name)) is not None), None)


def plain_form(name: str) -> str:
    """A name without case, spaces, `_` and `-`: `Answer Key`, `answer_key` and `answerKey` are one."""
    return re.sub(r"[\s_\-]+", "", name).casefold()


def getter(name: str, top: Iterable[str]) -> Get:
    """A function from a row to the value of a column, `MISSING` where the row has none."""
    if name in top or "." not in name:
        return lambda row: row.get(name, MISSING)
    first, *rest = name.split(".")
    return lambda row: row[name] if name in row else _within(row.get(first, MISSING), rest)


def _within(value: Any, path: list[str]) -> Any:
    for number, key in enumerate(path):
        if isinstance(value, dict):
            value = value.get(key, MISSING)
        elif isinstance(value, (list, tuple)):
            if not key.isdecimal():
                held = [_within(item, path[number:]) for item in value]
                return [item for item in held if item is not MISSING]
            value = value[int(key)] if int(key) < len(value) else MISSING
        else:
            return MISSING
    return value
