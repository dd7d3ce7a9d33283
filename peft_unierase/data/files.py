"""A file as rows: `.jsonl`, `.json`, `.csv`, `.parquet`.

Knows formats and what is wrong with a file; not what its columns mean.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import shown
from ..storage.plain import plain, read_bytes
from .chats import chats_of_list
from .facts import FactError
from .hub import HUB_NAME, read_hub
from .shapes import Known, rows_of_columns, rows_of_object
from .table import Row, Table, quoted, without_blank_end

READABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
# A missing file with one of these is a mistyped path, never a data set. Other dots belong to names ("OpenHermes-2.5").
OTHER_SUFFIXES = (".arrow", ".gz", ".md", ".ndjson", ".pkl", ".tsv", ".txt", ".xls", ".xlsx", ".yaml", ".yml", ".zip")
MOST_ROWS = 5_000_000  # of a parquet file, whose size says nothing of them
WHOLE = re.compile(r"-?\d+\.0")
EXCEL_SEPARATOR = re.compile(r"\s*\"?sep=(.)\"?[,;\t ]*\r?\n")  # a first line that tells Excel, and nobody else


def read_table(source: str | Path, split: str, label: str, known: Known) -> Table:
    """The rows of a file or of a Hub data set.

    Args:
        source: A path, or as a string that is none, a name on the Hub.
        split: Which split of a Hub data set.
        label: What messages call the set.
        known: Whether columns of these names hold questions and answers; it tells arrangements of JSON apart.

    Raises:
        FactError: There is nothing to read, or it cannot be read.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir():
        raise FactError(f"{label} is a folder; name one {_one_of(READABLE_SUFFIXES)} file in it")
    if not path.exists():
        if isinstance(source, str) and suffix not in READABLE_SUFFIXES + OTHER_SUFFIXES and HUB_NAME.fullmatch(source):
            return read_hub(source, split, label)
        raise FactError(f"{label}: no such file; check the path")
    if suffix not in READABLE_SUFFIXES:
        found = f"a {suffix} file" if suffix else "a file without a suffix"
        raise FactError(f"{label} is {found}; save it as {_one_of(READABLE_SUFFIXES)}")
    if suffix == ".parquet":
        table = Table(label, "row", without_blank_end(_read_parquet(path, label)))
    elif suffix == ".csv":
        table = _read_csv(_read_text(path, label), label)
    else:
        read = {".jsonl": _read_json_lines, ".json": _read_json}[suffix]
        table = read(_read_text(path, label), label, known)
    if not table.rows:
        raise FactError(f"{label} has no rows; put at least one question with its answer in it")
    return table


def _read_text(path: Path, label: str) -> str:
    try:
        data = read_bytes(path)
    except OSError as error:
        raise FactError(f"{label} cannot be read ({error.strerror}); check its permissions") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FactError(
            f"{label}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error
    if not text.strip():
        raise FactError(f"{label} is empty; put at least one question with its answer in it")
    return text


def _loads(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists inside lists without end
        raise FactError(f"{place} holds what cannot be read ({error}); mend or remove it") from error


def _read_json_lines(text: str, label: str, known: Known) -> Table:
    rows = []
    # Not splitlines(): that also breaks at U+2028 and its like, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{label}, line {number}"
            try:
                value = _loads(line, place)
            except json.JSONDecodeError as error:
                raise FactError(
                    f"{place} is not valid JSON ({error.msg}, column {error.colno}): {shown(line.strip())}; "
                    "every line must be one whole object"
                ) from error
            rows.append((number, _object(value, place)))
    # One line may be a whole table of columns.
    if len(rows) == 1 and (inside := rows_of_columns(rows[0][1], label, known)) is not None:
        return _table_of_list(inside, label)
    return Table(label, "line", without_blank_end(rows))


def _read_json(text: str, label: str, known: Known) -> Table:
    try:
        value = _loads(text, label)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _read_json_lines(text, label, known)
        line = text.split("\n")[error.lineno - 1].strip()
        raise FactError(
            f"{label}, line {error.lineno} is not valid JSON ({error.msg}, column {error.colno}): {shown(line)}; "
            "mend it there"
        ) from error
    if isinstance(value, dict):
        return _table_of_object(value, label, known)
    if (chats := chats_of_list(value)) is not None:
        return _table_of_list([{"messages": chat} for chat in chats], label)
    if not isinstance(value, list):
        raise FactError(f"{label} holds {shown(value)}; a list of objects is needed")
    return _table_of_list(value, label)


def _table_of_object(value: dict[str, Any], label: str, known: Known) -> Table:
    return _table_of_list(rows_of_object(value, label, known), label)


def _table_of_list(value: list[Any], label: str) -> Table:
    rows = [(number, _object(row, f"{label}, row {number}")) for number, row in enumerate(value, 1)]
    return Table(label, "row", without_blank_end(rows))


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FactError(
            f'{place} holds {shown(value)}; an object like {{"question": …, "answer": …}} is needed '
            "(a file that is one whole list must be named .json, one with an object on each line .jsonl)"
        )
    return value


def _read_csv(text: str, label: str) -> Table:
    told = EXCEL_SEPARATOR.match(text)
    separator = told[1] if told else ","
    body = text[told.end() :] if told else text
    # Strict, because an unclosed quote would swallow the rest of the file without a word.
    reader = csv.reader(io.StringIO(body, newline=""), strict=True, skipinitialspace=True, delimiter=separator)
    lines: list[tuple[int, list[str]]] = []
    before = 1 if told else 0
    number = 1 + before
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        for values in reader:
            if any(value and not value.isspace() for value in values):  # spreadsheets leave rows of separators alone
                lines.append((number, values))
            # The next row begins on the line after this one's last: a quoted text may span several.
            number = reader.line_num + 1 + before
    except csv.Error as error:
        raise FactError(
            f"{label}, line {number} is not valid CSV ({error}); close every quote, and write a quote in a text twice"
        ) from error
    finally:
        csv.field_size_limit(limit)
    if not lines:
        raise FactError(f"{label} has no rows; put at least one question with its answer in it")
    header = [name.strip() for name in lines[0][1]]
    repeated = sorted(name for name, times in Counter(header).items() if name and times > 1)
    if repeated:
        raise FactError(f"{label} has two columns with the same name, {quoted(repeated)}; rename one of them")
    if len(header) == 1 and re.search("[;\t]", header[0]):
        raise FactError(f"{label} has one column, {header[0]!r}; save it with commas between the columns")
    for number, values in lines[1:]:
        if len(values) != len(header):
            raise FactError(
                f"{label}, line {number}: values found {len(values)}, columns {len(header)}: {shown(values)}; "
                "put a text with commas in double quotes"
            )
    for column in range(len(header)):
        _restore_whole_numbers([values for _, values in lines[1:]], column)
    return Table(label, "line", [(number, dict(zip(header, values, strict=True))) for number, values in lines[1:]])


def _restore_whole_numbers(rows: list[list[str]], column: int) -> None:
    """Write a column as whole numbers if pandas made all of them fractions, as it does to columns with gaps."""
    if any(values[column] and not WHOLE.fullmatch(values[column]) for values in rows):
        return
    for values in rows:
        values[column] = values[column].removesuffix(".0")


def _read_parquet(path: Path, label: str) -> list[Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise FactError(
            f'{label}: parquet files need pyarrow ({error}); pip install "peft-unierase[data]", or save it as .jsonl'
        ) from error
    try:
        with parquet.ParquetFile(plain(path)) as file:
            if file.metadata.num_rows > MOST_ROWS:
                raise FactError(
                    f"{label} has {file.metadata.num_rows:,} rows, and at most {MOST_ROWS:,} are read; save the part "
                    "that is meant"
                )
            read = file.read()
            columns = [_values(column) for column in read.columns]
            rows = zip(*columns, strict=True) if columns else ()
            return [(number, dict(zip(read.column_names, row, strict=True))) for number, row in enumerate(rows, 1)]
    except (FactError, MemoryError):
        raise
    except Exception as error:  # whatever pyarrow, or Python's dates and times, make of a damaged or extreme value
        why = " ".join(str(error).split()) or type(error).__name__
        raise FactError(f"{label} is not a readable parquet file ({why}); write it again") from error


def _values(column: Any) -> list[Any]:
    """The values of a column in Python; short floats as the decimals that they were made of."""
    import pyarrow

    if column.type in (pyarrow.float32(), pyarrow.float16()):
        # Half floats have no text of their own, and short floats hold all of them.
        texts = column.cast(pyarrow.float32()).cast(pyarrow.string()).to_pylist()
        return [None if text is None else float(text) for text in texts]
    return list(column.to_pylist(maps_as_pydicts="strict"))


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
