"""A file or a Hub data set as facts: found, laid out, made into facts, and told what was odd."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from . import markup
from .facts import Fact, FactError, merge_repeats
from .files import read_table
from .layouts import find_columns, knows
from .rows import Notes, Reader
from .shapes import unfolded


class FactWarning(UserWarning):
    """Something odd in a set of facts that was read all the same."""


def read_facts(
    source: str | Path,
    *,
    question: str | None = None,
    answer: str | None = None,
    split: str = "train",
    role: str = "forget",
    strip_markup: bool = False,
    warn: Callable[[str], object] | None = None,
) -> list[Fact]:
    """Read facts from a file or from a data set on the Hub, in their order.

    Columns are found by name, in upper or lower case, by the layouts that data sets are published in
    (docs/guides/data-files.md): questions with answers, instructions with their input, prompts with completions,
    answers that are one of choices, chats of several turns (each answer is a fact, and what was said before it is its
    question), and benchmarks of editing and unlearning. Paraphrases, the subject, further right answers and wrong ones
    are taken along where they are. A fact that stands there twice is read once.

    Args:
        source: A `.jsonl`, `.json` (a list, an object of rows, of columns or of one list, or JSON lines), `.csv` or
            `.parquet` file, or, as a string for which there is no such file, the name of a Hub data set like
            `org/name`, or of one of its configurations like `org/name:config`.
        question: Column to take the questions from, where it is not found by itself; `a.b` is in an object `a`.
        answer: Column to take the answers from. The same as `question` for a column of whole chats.
        split: Which split of a Hub data set; files have none.
        role: What messages call the set: `forget` or `retain`.
        strip_markup: Take special tokens, marks of chat templates and thinking blocks out of the texts.
        warn: Called with each thing that is odd: repeats, markup, rows without an answer. A `FactWarning` by default.

    Raises:
        FactError: There is nothing to read, it cannot be read, or a row in it is no fact.
    """
    if not str(source).strip():
        raise FactError(f"the name of the {role} set is empty; give a file or the name of a Hub data set")
    label = f"{role} set {source}"
    tell = warn or (lambda text: warnings.warn(text, FactWarning, stacklevel=3))
    table = unfolded(read_table(source, split, label, lambda names: knows(names, question, answer)))
    notes = Notes()
    facts, marked = [], []
    for number, fact in Reader(table, find_columns(table, question, answer), notes).facts(table):
        if strip_markup:
            fact = markup.without_marks(fact, table.place(number))
        elif marks := markup.marks_in(fact):
            marked.append((table.place(number), marks))
        facts.append(fact)
    if not facts:
        raise FactError(f"{label} has no question with an answer; put at least one in it")
    if marked:
        tell(markup.warning(marked, len(facts), label))
    once = merge_repeats(facts)
    if len(once) < len(facts):
        tell(f"{label}: {len(facts) - len(once)} of {len(facts)} facts repeat an earlier one and are dropped")
    for line in notes.lines(label):
        tell(line)
    return once
