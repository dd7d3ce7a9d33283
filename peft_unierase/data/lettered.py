"""Marks before choices: `A) x`, `(b) x`, `1. x`, `A、甲`, in a list of choices or in the lines of a question."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

LETTERS = "ABCDEFGHIJ"
ALPHABETS = (LETTERS, LETTERS.lower(), "123456789", "0123456789")
_MARK = r"[(\uff08\[\u3010]?\s?([A-Ja-j\uff21-\uff2a]|[0-9])\s?"
# A full stop or a colon that no space follows may stand in a number, or in a name.
_END = r"(?:[)\uff09\]\u3011\u3001\uff0e\u3002\uff1a]\s*|[.:]\s+|\s?[-\u2013\u2014]\s+)"
MARKED = re.compile(rf"{_MARK}(?:{_END}|(?<=[A-J])[.:])(\S.*)", re.DOTALL)
INSIDE = re.compile(rf"(?:^|(?<=\s)){_MARK}{_END}", re.MULTILINE)
POINTER = re.compile(r"[(\uff08\[]?([A-Ja-j\uff21-\uff2a])[)\uff09\].\uff0e\u3001\u3002:\uff1a]{0,2}")


@dataclass(frozen=True)
class Marked:
    """Choices and their marks; what stands before the first of them."""

    labels: list[str]
    texts: list[str]
    before: str = ""


def unmarked(texts: Sequence[str]) -> Marked | None:
    """Choices that all begin with the marks of one alphabet, in its order; `None` of others."""
    matches = [MARKED.fullmatch(text) for text in texts]
    marks = [_mark(match) for match in matches if match]
    if len(marks) < len(texts) or not _in_order(marks):
        return None
    return Marked(marks, [match[2] for match in matches if match])


def choices_in(question: str) -> Marked | None:
    """The choices that stand at the end of a question, two or more; `None` where there are none."""
    found = list(INSIDE.finditer(question))
    for start in range(len(found) - 1):
        marks = found[start:]
        if not question[: marks[0].start()].strip() or not _in_order([_mark(mark) for mark in marks]):
            continue
        ends = [after.start() for _, after in pairwise(marks)]
        texts = [question[mark.end() : end].strip(" \t\r\n,;") for mark, end in zip(marks, [*ends, None], strict=True)]
        if all(texts):
            return Marked([_mark(mark) for mark in marks], texts, question[: marks[0].start()].strip())
    return None


def is_letter(value: object) -> bool:
    """Whether an answer is a letter and nothing else, as of one of several choices."""
    return isinstance(value, str) and POINTER.fullmatch(value.strip()) is not None


def _mark(match: re.Match[str]) -> str:
    """The letter or digit of a mark, which may be a wide one."""
    return unicodedata.normalize("NFKC", match[1])


def _in_order(marks: Sequence[str]) -> bool:
    return len(marks) > 1 and any("".join(marks) == alphabet[: len(marks)] for alphabet in ALPHABETS)
