"""Rows out of the other ways in which JSON arranges a table: columns of lists, pandas' orients, rows inside rows.

Knows which arrangement a value has by its form and by the column names that layouts know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..facts import FactError, shown
from .table import Row, Table, quoted

Known = Callable[[list[str]], bool]
MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})


def rows_of_object(value: dict[str, Any], label: str, known: Known) -> list[Any]:
    """The rows that one JSON object holds, or the object itself where it is the only row.

    Args:
        value: The object.
        label: What messages call the file.
        known: Whether columns of these names hold questions and answers.

    Raises:
        FactError: It holds several tables.
    """
    if (columns := _split_orient(value)) is not None:
        return columns
    inner = list(value.values())
    if value and all(isinstance(held, dict) for held in inner):
        return _rows_of_objects(value, known)
    # A lone row may hold lists too: its chat, its choices.
    if inner and all(isinstance(held, list) for held in inner) and not any(map(_is_chat, inner)):
        lengths = {len(held) for held in inner}
        tables = all(all(isinstance(item, dict) for item in held) for held in inner)
        several = len(inner) > 1 or all(isinstance(item, list) for item in inner[0])
        if several and len(lengths) == 1 and lengths != {0} and (not tables or known(list(value))):
            return _rows_of_columns(value)
        if len(inner) > 1 and len(lengths) > 1 and not tables and known(list(value)):
            counts = ", ".join(f"{name!r} {len(held)}" for name, held in list(value.items())[:5])
            raise FactError(f"{label} holds columns of different lengths ({counts}); save the data again, row by row")
    if known(list(value)):
        return [value]
    lists = [
        name for name, held in value.items() if isinstance(held, list) and all(isinstance(row, dict) for row in held)
    ]
    if len(lists) > 1:
        raise FactError(f"{label} holds {len(lists)} lists, {quoted(lists)}; save the one that is meant by itself")
    return value[lists[0]] if lists else [value]


def unfolded(table: Table) -> Table:
    """The table with rows that hold several made into several, each with its owner's number: a list of rewrites as in
    MQuAKE, and the articles of SQuAD's own files.
    """
    rows: list[Row] = []
    for number, row in table.rows:
        rewrites = row.get("requested_rewrite")
        if isinstance(rewrites, list) and rewrites:
            rows += [(number, {**row, "requested_rewrite": rewrite}) for rewrite in rewrites]
        elif isinstance(row.get("paragraphs"), list) or isinstance(row.get("qas"), list):
            rows += [(number, asked) for asked in _asked(row, table.place(number))]
        else:
            rows.append((number, row))
    return Table(table.label, table.unit, rows)


def _asked(row: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """The questions of one article of SQuAD, each beside its paragraph."""
    found = []
    for paragraph in row.get("paragraphs") or [row]:
        if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
            raise FactError(f"{place}: a paragraph is {shown(paragraph)}; it needs a 'context' and a list 'qas'")
        for asked in paragraph["qas"]:
            if not isinstance(asked, dict):
                raise FactError(f"{place}: 'qas' holds {shown(asked)}; a question with its answers is needed")
            found.append({"context": paragraph.get("context"), **asked})
    return found


def _split_orient(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Rows of pandas' orients `split` and `tight`: names here, values there."""
    columns, data = value.get("columns"), value.get("data")
    if not isinstance(columns, list) or not isinstance(data, list) or not columns:
        return None
    if not all(isinstance(row, list) and len(row) == len(columns) for row in data):
        return None
    names = [name if isinstance(name, str) else str(name) for name in columns]
    return [dict(zip(names, row, strict=True)) for row in data]


def _rows_of_objects(value: dict[str, Any], known: Known) -> list[Any]:
    """Rows of an object of objects: pandas' orients `columns` and `index`, or one row."""
    outer, first = list(value), next(iter(value.values()))
    numbers = all(key.isdecimal() for key in first)
    if first and numbers and (known(outer) or not all(key.isdecimal() for key in outer)):
        indices = list(dict.fromkeys(key for column in value.values() for key in column))
        return [{name: column.get(index) for name, column in value.items()} for index in indices]
    if all(key.isdecimal() for key in outer) or (not known(outer) and known(list(first))):
        return list(value.values())
    return [value]


def _rows_of_columns(value: dict[str, list[Any]]) -> list[dict[str, Any]]:
    names = list(value)
    return [dict(zip(names, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _is_chat(held: list[Any]) -> bool:
    return bool(held) and all(
        isinstance(turn, dict) and any(keys <= turn.keys() for keys in MESSAGE_KEYS) for turn in held
    )
