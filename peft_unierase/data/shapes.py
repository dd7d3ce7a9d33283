"""Rows out of the other ways in which JSON arranges a table: columns of lists, pandas' orients, rows inside rows.

Knows which arrangement a value has by its form and by the column names that layouts know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import shown
from .facts import FactError
from .table import Row, Table, quoted
from .values import loaded

Known = Callable[[list[str]], bool]
MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})


def rows_of_object(value: dict[str, Any], label: str, known: Known) -> list[Any]:
    """The rows that one JSON object holds, or the object itself where it is the only row.

    Args:
        value: The object.
        label: What messages call the file.
        known: Whether columns of these names hold questions and answers.

    Raises:
        FactError: It holds several tables, or columns that do not fit together.
    """
    if (rows := rows_of_columns(value, label, known)) is not None:
        return rows
    if known(list(value)):
        return [value]
    lists = [
        name for name, held in value.items() if isinstance(held, list) and all(isinstance(row, dict) for row in held)
    ]
    if len(lists) > 1:
        raise FactError(f"{label} holds {len(lists)} lists, {quoted(lists)}; save the one that is meant by itself")
    return value[lists[0]] if lists else [value]


def rows_of_columns(value: dict[str, Any], label: str, known: Known) -> list[Any] | None:
    """The rows of an object that holds columns: of lists, or as pandas writes them. `None` where it does not.

    Raises:
        FactError: The columns have different lengths.
    """
    if (rows := _split_orient(value)) is not None:
        return rows
    held = list(value.values())
    if held and all(isinstance(column, dict) for column in held):
        splits = {} if known(list(value)) else value
        found = {name: rows_of_columns(columns, label, known) for name, columns in splits.items()}
        if len(found) > 1 and all(found.values()):
            raise FactError(f"{label} holds {len(found)} tables, {quoted(found)}; save the one that is meant by itself")
        return (next(iter(found.values())) if len(found) == 1 else None) or _rows_of_objects(value, known)
    # A lone row may hold lists too: its chat, its choices.
    if not held or not all(isinstance(column, list) for column in held) or any(map(_is_chat, held)):
        return None
    lengths = {len(column) for column in held}
    tables = all(isinstance(item, dict) for column in held for item in column)
    several = len(held) > 1 or all(isinstance(item, list) for item in held[0])
    if lengths == {0} or not several or (tables and not known(list(value))):
        return None
    if len(lengths) == 1:
        return [dict(zip(value, row, strict=True)) for row in zip(*held, strict=True)]
    if tables or not known(list(value)):
        return None
    counts = ", ".join(f"{name!r} {len(column)}" for name, column in list(value.items())[:5])
    raise FactError(f"{label} holds columns of different lengths ({counts}); save the data again, row by row")


def unfolded(table: Table) -> Table:
    """The table with rows that hold several made into several, each with its owner's number: a list of rewrites as in
    MQuAKE, and the articles of SQuAD's own files.
    """
    rows: list[Row] = []
    for number, row in table.rows:
        rewrites = row.get("requested_rewrite")
        if isinstance(rewrites, str):
            rewrites = loaded(rewrites)
            if not isinstance(rewrites, (dict, list)):
                raise FactError(
                    f"{table.place(number)}: 'requested_rewrite' is {shown(row['requested_rewrite'])}, an object that "
                    "was written as text and cannot be read back; save the data as .jsonl or .parquet"
                )
            row = {**row, "requested_rewrite": rewrites}
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


def _rows_of_objects(value: dict[str, Any], known: Known) -> list[Any] | None:
    """Rows of an object of objects: pandas' orients `columns` and `index`; `None` of one row."""
    outer, first = list(value), next(iter(value.values()))
    numbers = all(key.isdecimal() for key in first)
    if first and numbers and (known(outer) or not all(key.isdecimal() for key in outer)):
        indices = list(dict.fromkeys(key for column in value.values() for key in column))
        return [{name: column.get(index) for name, column in value.items()} for index in indices]
    if all(key.isdecimal() for key in outer) or (not known(outer) and known(list(first))):
        return list(value.values())
    return None


def _is_chat(held: list[Any]) -> bool:
    return bool(held) and all(
        isinstance(turn, dict) and any(keys <= turn.keys() for keys in MESSAGE_KEYS) for turn in held
    )
