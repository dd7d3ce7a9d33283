"""What must go and what must stay: question-and-answer pairs, read from files and checked against each other.

Knows file formats, column names and what makes two sets contradict each other. It knows no model and no tokenizer, and
imports neither torch nor transformers, so that a wrong file is refused at once.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .text import comparable, normal

# A pair that names one column twice is a column of whole chats, question and answer in one.
COLUMN_PAIRS = (
    ("question", "answer"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("input", "target"),
    ("messages", "messages"),
    ("conversations", "conversations"),
)
PARAPHRASE_COLUMNS = ("paraphrased_question", "paraphrase")
PARAPHRASED_ANSWER_COLUMNS = ("paraphrased_answer",)
PERTURBED_COLUMNS = ("perturbed_answer", "perturbed_answers")
SUBJECT_COLUMNS = ("subject",)
USER_ROLES = ("user", "human")
ASSISTANT_ROLES = ("assistant", "gpt")

READABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
# A missing file with one of these is a mistyped path, never a data set. Other dots belong to names ("OpenHermes-2.5").
OTHER_SUFFIXES = (".arrow", ".gz", ".md", ".ndjson", ".pkl", ".tsv", ".txt", ".xls", ".xlsx", ".yaml", ".yml", ".zip")
HUB_NAME = re.compile(r"[a-z0-9][\w.-]*(/[a-z0-9][\w.-]*)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Fact:
    """One question with its answer, neither of them empty nor surrounded by whitespace.

    Attributes:
        question: What is asked.
        answer: What the model answers before an erasure, and, in a retain set, after it too.
        paraphrase: The same question in other words.
        subject: Whom or what the question is about.
        paraphrased_answer: The same answer in other words.
        perturbed_answers: Wrong answers of the same form.
        accepted_answers: Further answers that count as right.
    """

    question: str
    answer: str
    paraphrase: str | None = None
    subject: str | None = None
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    accepted_answers: tuple[str, ...] = ()


class FactError(ValueError):
    """A set of facts that cannot be used; the text says where, why, and what to do about it."""


def read_facts(
    source: str | Path,
    *,
    question: str | None = None,
    answer: str | None = None,
    split: str = "train",
    role: str = "forget",
) -> list[Fact]:
    """Read facts from a file or from a data set on the Hub, in their order.

    Columns are found by name, in upper or lower case: question/answer, prompt/completion, instruction/output,
    input/target, messages, conversations; the first pair that is there is taken. Of a chat the last user turn is the
    question and the assistant turn behind it the answer. `paraphrased_question` (or `paraphrase`), `subject`,
    `paraphrased_answer` and `perturbed_answer` (a text or a list of them) are taken along where they are; other columns
    are not looked at.

    Args:
        source: A `.jsonl`, `.json` (a list, an object that holds one list, or JSON lines), `.csv` or `.parquet` file,
            or, as a string for which there is no such file, the name of a Hub data set like `org/name`.
        question: Column to take the questions from, where its name is not one of the above.
        answer: Column to take the answers from. The same as `question` for a column of whole chats.
        split: Which split of a Hub data set; files have none.
        role: What messages call the set: `forget` or `retain`.

    Raises:
        FactError: There is nothing to read, it cannot be read, or a row in it is no fact.
    """
    if not str(source).strip():
        raise FactError(f"the name of the {role} set is empty; give a file or the name of a Hub data set")
    table = _read_table(source, split, f"{role} set {source}")
    columns = _find_columns(table, question, answer)
    return [_fact(row, columns, table.place(number)) for number, row in table.rows]


def check_facts(forget: Sequence[Fact], retain: Sequence[Fact]) -> list[str]:
    """Refuse sets that contradict themselves or each other, and return warnings about what is merely odd.

    Texts count as the same when their normal form is the same (`text.normal`). Facts are numbered from 1, in the order
    given.

    Raises:
        FactError: A question is in the forget set twice, or in the forget set and in the retain set, or the answer of a
            forget fact has no letter and no digit.
    """
    check_answers(forget)
    contradicting, duplicate = _repeats(forget)
    if contradicting:
        raise FactError(
            f"the forget set answers a question in two ways: {_listed(contradicting)}. "
            "Keep the answer that the model gives and remove the other"
        )
    if duplicate:
        raise FactError(f"the forget set holds facts twice: {_listed(duplicate)}. Remove one of the two")
    in_both = _in_both(forget, retain, lambda fact: [fact.question])
    if in_both:
        raise FactError(
            f"a question cannot be forgotten and kept at once: {_listed(in_both)}. Remove it from one of the two sets"
        )
    contradicting, duplicate = _repeats(retain)
    in_other_words = _in_both(forget, retain, lambda fact: [fact.question, fact.paraphrase or fact.question])
    warnings = []
    if mute := _mute(retain):
        warnings.append(
            f"retain facts are left out because their answers have no letter and no digit to compare: {_listed(mute)}"
        )
    if contradicting:
        warnings.append(f"the retain set answers a question in two ways: {_listed(contradicting)}")
    if duplicate:
        warnings.append(f"the retain set holds facts twice: {_listed(duplicate)}")
    if in_other_words:
        warnings.append(f"a paraphrase makes a question both forgotten and kept: {_listed(in_other_words)}")
    return warnings


def check_answers(forget: Sequence[Fact]) -> None:
    """Refuse forget facts that no answer can be compared with.

    Raises:
        FactError: An answer has no letter and no digit.
    """
    if mute := _mute(forget):
        raise FactError(
            f"these answers of the forget set have no letter and no digit, so nobody can tell whether they are gone: "
            f"{_listed(mute)}. Put them in words, or leave these facts out"
        )


def comparable_facts(facts: Sequence[Fact]) -> list[Fact]:
    """The facts whose answers hold a letter or a digit: those that an answer can be compared with."""
    return [fact for fact in facts if comparable(fact.answer)]


@dataclass(frozen=True)
class _Table:
    """Rows as they were found, each with the number under which its owner finds it again."""

    label: str
    unit: str
    rows: list[tuple[int, dict[str, Any]]]

    def place(self, number: int) -> str:
        return f"{self.label}, {self.unit} {number}"

    def columns(self) -> list[str]:
        """Names of all columns, in order of appearance: JSON rows need not have the same ones."""
        return list(dict.fromkeys(name for _, row in self.rows for name in row))


@dataclass(frozen=True)
class _Columns:
    """Which column of a table holds what."""

    question: str
    answer: str
    paraphrase: str | None
    subject: str | None
    paraphrased_answer: str | None
    perturbed_answers: str | None


def _read_table(source: str | Path, split: str, label: str) -> _Table:
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir():
        raise FactError(f"{label} is a folder; name one {_one_of(READABLE_SUFFIXES)} file in it")
    if not path.exists():
        if isinstance(source, str) and suffix not in READABLE_SUFFIXES + OTHER_SUFFIXES and HUB_NAME.fullmatch(source):
            return _read_hub(source, split, label)
        raise FactError(f"{label}: no such file; check the path")
    if suffix not in READABLE_SUFFIXES:
        found = f"a {suffix} file" if suffix else "a file without a suffix"
        raise FactError(f"{label} is {found}; save it as {_one_of(READABLE_SUFFIXES)}")
    if suffix == ".parquet":
        table = _Table(label, "row", _read_parquet(path, label))
    else:
        read = {".jsonl": _read_json_lines, ".json": _read_json, ".csv": _read_csv}[suffix]
        table = read(_read_text(path, label), label)
    if not table.rows:
        raise FactError(f"{label} has no rows; put at least one question with its answer in it")
    return table


def _read_text(path: Path, label: str) -> str:
    try:
        data = path.read_bytes()
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


def _read_json_lines(text: str, label: str) -> _Table:
    rows = []
    # Not splitlines(): that also breaks at U+2028 and its like, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{label}, line {number}"
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise FactError(
                    f"{place} is not valid JSON ({error.msg}, column {error.colno}): {_shown(line.strip())}; "
                    "every line must be one whole object"
                ) from error
            rows.append((number, _object(value, place)))
    return _Table(label, "line", rows)


def _read_json(text: str, label: str) -> _Table:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _read_json_lines(text, label)
        line = text.split("\n")[error.lineno - 1].strip()
        raise FactError(
            f"{label}, line {error.lineno} is not valid JSON ({error.msg}, column {error.colno}): {_shown(line)}; "
            "mend it there"
        ) from error
    if isinstance(value, dict):
        value = _rows_of_object(value, label)
    if not isinstance(value, list):
        raise FactError(f"{label} holds {_shown(value)}; a list of objects is needed")
    return _Table(label, "row", [(n, _object(row, f"{label}, row {n}")) for n, row in enumerate(value, 1)])


def _rows_of_object(value: dict[str, Any], label: str) -> list[Any]:
    """The list that an object holds, or the object itself where it is the only line of a JSON lines file."""
    # A lone row may hold a list of objects too: its chat.
    if _find_pair(list(value)):
        return [value]
    lists = [
        name for name, held in value.items() if isinstance(held, list) and all(isinstance(row, dict) for row in held)
    ]
    if len(lists) > 1:
        raise FactError(f"{label} holds {len(lists)} lists, {_quoted(lists)}; save the one that is meant by itself")
    return value[lists[0]] if lists else [value]


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FactError(
            f'{place} holds {_shown(value)}; an object like {{"question": …, "answer": …}} is needed '
            "(a file that is one whole list must be named .json, one with an object on each line .jsonl)"
        )
    return value


def _read_csv(text: str, label: str) -> _Table:
    # Strict, because an unclosed quote would swallow the rest of the file without a word.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    lines: list[tuple[int, list[str]]] = []
    number = 1
    try:
        for values in reader:
            if values:
                lines.append((number, values))
            # The next row begins on the line after this one's last: a quoted text may span several.
            number = reader.line_num + 1
    except csv.Error as error:
        raise FactError(
            f"{label}, line {number} is not valid CSV ({error}); close every quote, and write a quote in a text twice"
        ) from error
    header = [name.strip() for name in lines[0][1]]
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise FactError(f"{label} has two columns with the same name, {_quoted(repeated)}; rename one of them")
    if len(header) == 1 and re.search("[;\t]", header[0]):
        raise FactError(f"{label} has one column, {header[0]!r}; save it with commas between the columns")
    for number, values in lines[1:]:
        if len(values) != len(header):
            raise FactError(
                f"{label}, line {number}: values found {len(values)}, columns {len(header)}: {_shown(values)}; "
                "put a text with commas in double quotes"
            )
    return _Table(label, "line", [(number, dict(zip(header, values, strict=True))) for number, values in lines[1:]])


def _read_parquet(path: Path, label: str) -> list[tuple[int, dict[str, Any]]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise FactError(
            f'{label}: parquet files need pyarrow ({error}); pip install "peft-unierase[data]", or save it as .jsonl'
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            return list(enumerate(file.read().to_pylist(), 1))
    except (ValueError, OSError) as error:
        raise FactError(f"{label} is not a readable parquet file ({error}); write it again") from error


def _read_hub(name: str, split: str, label: str) -> _Table:
    missing = f"there is no file {name}, and as a Hub data set it"
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise FactError(
            f'{label}: {missing} needs the package datasets ({error}); pip install "peft-unierase[data]", '
            "or check the path"
        ) from error
    # Whatever goes wrong between here and the Hub, the way out is the same; the cause is kept.
    try:
        rows = [dict(row) for row in load_dataset(name, split=split)]
    except Exception as error:
        raise FactError(
            f"{label}: {missing} cannot be loaded (split {split!r}): {error}; "
            "check the name and the split, or download it and give the file"
        ) from error
    if not rows:
        raise FactError(f"{label} has no rows in split {split!r}; choose another split")
    return _Table(f"{label} (split {split!r})", "row", list(enumerate(rows, 1)))


def _find_columns(table: _Table, question: str | None, answer: str | None) -> _Columns:
    names = table.columns()
    asked = _override(table, names, question, "--question-column")
    told = _override(table, names, answer, "--answer-column")
    if asked is None and told is None:
        asked, told = _find_pair(names) or (None, None)
    elif told is None:
        told = _partner(names, asked, side=0)
    elif asked is None:
        asked = _partner(names, told, side=1)
    if asked is None or told is None:
        looked_for = ", ".join(q if q == a else f"{q}/{a}" for q, a in COLUMN_PAIRS)
        lacking = "questions and answers" if asked == told else "questions" if asked is None else "answers"
        raise FactError(
            f"{table.label}: no column for {lacking} among {_quoted(names)}; looked for {looked_for}. "
            "Name yours with --question-column and --answer-column (question= and answer= in Python)"
        )
    rest = [name for name in names if name not in (asked, told)]
    sought = (PARAPHRASE_COLUMNS, SUBJECT_COLUMNS, PARAPHRASED_ANSWER_COLUMNS, PERTURBED_COLUMNS)
    return _Columns(asked, told, *(_first_column(rest, each) for each in sought))


def _override(table: _Table, names: list[str], wanted: str | None, flag: str) -> str | None:
    if wanted is None:
        return None
    column = _column(names, wanted)
    if column is None:
        raise FactError(f"{table.label} has no column {wanted!r} for {flag}; its columns are {_quoted(names)}")
    return column


def _find_pair(names: list[str]) -> tuple[str, str] | None:
    for question, answer in COLUMN_PAIRS:
        asked, told = _column(names, question), _column(names, answer)
        if asked is not None and told is not None:
            return asked, told
    return None


def _partner(names: list[str], given: str | None, side: int) -> str | None:
    """The column that goes with a given one: first the other half of its own pair, then of any pair."""
    own = [pair[1 - side] for pair in COLUMN_PAIRS if pair[side] == str(given).strip().lower()]
    others = [pair[1 - side] for pair in COLUMN_PAIRS if pair[0] != pair[1]]
    return _first_column(names, own) or _first_column([name for name in names if name != given], others)


def _first_column(names: list[str], wanted: Iterable[str]) -> str | None:
    return next((column for name in wanted if (column := _column(names, name)) is not None), None)


def _column(names: list[str], wanted: str) -> str | None:
    """The column of that very name, or else the first that differs in case or outer whitespace alone."""
    if wanted in names:
        return wanted
    return next((name for name in names if name.strip().lower() == wanted.strip().lower()), None)


def _fact(row: dict[str, Any], columns: _Columns, place: str) -> Fact:
    for column in (columns.question, columns.answer):
        if column not in row:
            raise FactError(f"{place} has no {column!r}, only {_quoted(row)}; add it or remove the row")
    if columns.question == columns.answer:
        question, answer = _last_exchange(row[columns.question], columns.question, place)
    else:
        question = _text_or_turn(row[columns.question], columns.question, place, at=-1, roles=USER_ROLES)
        answer = _text_or_turn(row[columns.answer], columns.answer, place, at=0, roles=ASSISTANT_ROLES)
    paraphrase = _optional_text(row, columns.paraphrase, place)
    return Fact(
        question,
        answer,
        paraphrase,
        _optional_text(row, columns.subject, place),
        _optional_text(row, columns.paraphrased_answer, place),
        _texts(row, columns.perturbed_answers, place),
    )


def _last_exchange(value: Any, column: str, place: str) -> tuple[str, str]:
    """The last user turn of a chat and the assistant turn behind it."""
    if not _is_chat(value):
        raise FactError(
            f"{place}: {column!r} is {_shown(value)}, not a list of messages; a message has a role and a content"
        )
    turns = [_turn(message, column, place) for message in value]
    roles = [role for role, _ in turns]
    asked = max((index for index, role in enumerate(roles) if role in USER_ROLES), default=None)
    if asked is None or roles[asked + 1 : asked + 2] not in [[role] for role in ASSISTANT_ROLES]:
        raise FactError(
            f"{place}: {column!r} needs a last user turn with an assistant turn right behind it, but its turns are "
            f"{_quoted(roles)}; mend or remove the row"
        )
    question = _text(turns[asked][1], f"{column}[{asked}]", place)
    return question, _text(turns[asked + 1][1], f"{column}[{asked + 1}]", place)


def _text_or_turn(value: Any, column: str, place: str, at: int, roles: tuple[str, ...]) -> str:
    """A text, or that of the first or last turn of a list of messages, which must be of one of these roles."""
    if not _is_chat(value):
        return _text(value, column, place)
    role, content = _turn(value[at], column, place)
    if role not in roles:
        edge = "begin" if at == 0 else "end"
        raise FactError(f"{place}: {column!r} must {edge} with {roles[0]!r}, not with {role!r}; mend or remove it")
    return _text(content, column, place)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(message, dict) for message in value)


def _turn(message: dict[str, Any], column: str, place: str) -> tuple[str, Any]:
    """Role and content of one message, in either of the two usual spellings."""
    for role, content in (("role", "content"), ("from", "value")):
        if isinstance(message.get(role), str) and content in message:
            return message[role].lower(), message[content]
    raise FactError(
        f"{place}: {column!r} holds {_shown(message)}; a message has a role and a content, or a from and a value"
    )


def _optional_text(row: dict[str, Any], column: str | None, place: str) -> str | None:
    value = None if column is None else row.get(column)
    if column is None or value is None or (isinstance(value, str) and not value.strip()):
        return None
    return _text(value, column, place)


def _texts(row: dict[str, Any], column: str | None, place: str) -> tuple[str, ...]:
    """One text or a list of them; JSON within a table that knows no lists."""
    value = None if column is None else row.get(column)
    if column is None or value is None or (isinstance(value, str) and not value.strip()):
        return ()
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(json.JSONDecodeError):
            value = json.loads(value)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise FactError(f"{place}: {column!r} is {_shown(value)}, neither a text nor a list of texts; mend the row")
    return tuple(_text(text, f"{column}[{number}]", place) for number, text in enumerate(texts))


def _text(value: Any, column: str, place: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        found = "null" if value is None else f"empty ({value!r})"
        raise FactError(f"{place}: {column!r} is {found}; fill it in or remove the row")
    if not isinstance(value, str):
        raise FactError(
            f"{place}: {column!r} is {_shown(value)} ({type(value).__name__}), not text; write one string there, "
            "or rename the column if it is not meant"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FactError(
            f"{place}: {column!r} holds half a character, {value[error.start]!r} in {_shown(value)}; write it anew"
        ) from error
    return value.strip()


def _repeats(facts: Sequence[Fact]) -> tuple[list[str], list[str]]:
    """Facts whose question came before: those with another answer, and those with the same one."""
    first: dict[str, int] = {}
    contradicting, duplicate = [], []
    for number, fact in enumerate(facts, 1):
        earlier = first.setdefault(normal(fact.question), number)
        if earlier == number:
            continue
        told = facts[earlier - 1].answer
        if normal(told) == normal(fact.answer):
            duplicate.append(f"facts {earlier} and {number} ({_shown(fact.question)})")
        else:
            answers = f"{_shown(told)} and {_shown(fact.answer)}"
            contradicting.append(f"facts {earlier} and {number} ({_shown(fact.question)}: {answers})")
    return contradicting, duplicate


def _mute(facts: Sequence[Fact]) -> list[str]:
    """Facts whose answers have nothing to compare."""
    return [
        f"fact {number} ({_shown(fact.question)}: {_shown(fact.answer)})"
        for number, fact in enumerate(facts, 1)
        if not comparable(fact.answer)
    ]


def _in_both(forget: Sequence[Fact], retain: Sequence[Fact], wordings: Callable[[Fact], list[str]]) -> list[str]:
    """Facts of the forget set that share one of these wordings with a fact of the retain set."""
    kept: dict[str, int] = {}
    for number, fact in enumerate(retain, 1):
        for wording in wordings(fact):
            kept.setdefault(normal(wording), number)
    return [
        f"forget fact {number} and retain fact {kept[wording]} ({_shown(fact.question)})"
        for number, fact in enumerate(forget, 1)
        for wording in dict.fromkeys(normal(wording) for wording in wordings(fact))
        if wording in kept
    ]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _listed(items: Sequence[str], most: int = 5) -> str:
    left_out = f"; and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + left_out
