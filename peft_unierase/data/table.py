"""Rows as they were found, each with the number under which its owner finds it again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from .values import is_blank

SHOWN = 20
LOOKED_AT = 100  # rows that are looked into for nested columns
DEEPEST = 3

Row = tuple[int, dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """Rows with their numbers.

    Attributes:
        label: What messages call the table.
        unit: What its rows are counted in: `line` or `row`.
        rows: Number and values of each.
    """

    label: str
    unit: str
    rows: list[Row]

    def place(self, number: int) -> str:
        """Where a row is, for messages."""
        return f"{self.label}, {self.unit} {number}"

    def columns(self) -> list[str]:
        """Names of all columns, in order of appearance: JSON rows need not have the same ones."""
        return list(map(str, dict.fromkeys(chain.from_iterable(row for _, row in self.rows))))

    def nested(self) -> list[str]:
        """Names like `answers.text` of what lies inside columns of objects."""
        found: dict[str, None] = {}
        for _, row in self.rows[:LOOKED_AT]:
            for name, value in row.items():
                _look_into(str(name), value, DEEPEST, found)
        return list(found)


def without_blank_end(rows: list[Row]) -> list[Row]:
    """The rows without empty last ones, as spreadsheets leave them."""
    end = len(rows)
    while end and all(map(is_blank, rows[end - 1][1].values())):
        end -= 1
    return rows[:end]


def quoted(names: Iterable[str]) -> str:
    """Names for a message; the first of them, where there are many."""
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return (", ".join(map(repr, listed[:SHOWN])) or "none") + more


def _look_into(name: str, value: Any, depth: int, found: dict[str, None]) -> None:
    if isinstance(value, dict) and depth:
        for key, held in value.items():
            found[f"{name}.{key}"] = None
            _look_into(f"{name}.{key}", held, depth - 1, found)
