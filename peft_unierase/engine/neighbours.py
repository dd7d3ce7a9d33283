"""Near neighbours: questions of the same form about other subjects, which the base asks itself with its own answers.

What is erased is told from what lies next to it by examples of both. The forget questions' own beginnings, up to where
they name something, are what the base goes on with; no template and no language comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

from ..facts import Fact
from ..prompts import PromptFormat, encode
from ..text import PIECE, comparable, names, normal
from .samples import ANSWERING, answered, drop_close, go_on_asking
from .subjects import find_names, find_span

LEAST, MOST, EACH = 64, 512, 4  # questions: at the least, at the most, and for each forget fact
FIRST_WORDS = 2  # that a beginning has where a question names nothing


def neighbour_count(facts: int) -> int:
    """How many neighbours are asked for, for this many forget facts."""
    return min(MOST, max(LEAST, EACH * facts))


def sample_neighbours(
    model: Any,
    tokenizer: Any,
    form: PromptFormat,
    forget: Sequence[Fact],
    count: int,
    seed: int,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Fact]:
    """At most `count` questions that begin as forget questions do and go on about something else, with answers.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        form: The prompt format to ask and to answer in.
        forget: What must go. Questions that name its subjects, or that touch it, are left out.
        count: Questions to ask.
        seed: Seed of the sampling.
        advance: Called with the steps done, `SAMPLE_STEPS * count` in all.
    """
    begun = beginnings([fact.question for fact in forget], [fact.subject for fact in forget])
    starts = [encode(tokenizer, text) for text in islice(cycle(begun), count if begun else 0)]
    asked = go_on_asking(model, tokenizer, form, starts, seed, advance=advance)
    gone = {name for fact in forget for name in [*find_names(fact.question), *([fact.subject] if fact.subject else [])]}
    given = {normal(text) for fact in forget for text in (fact.question, *fact.paraphrases)} | set(map(normal, begun))
    questions = [
        text
        for text in {normal(text): text for text in reversed(asked)}.values()
        if normal(text) not in given and not any(names(text, name) for name in gone)
    ][::-1]
    advance(count - len(starts) + ANSWERING * (count - len(questions)))
    return drop_close(answered(model, tokenizer, form, questions, advance), forget)


def beginnings(questions: Sequence[str], subjects: Sequence[str | None]) -> list[str]:
    """Beginnings of questions, each once: up to their first name, or after their first words if they name nothing.

    A question that begins with a name has none.

    Args:
        questions: The questions.
        subjects: Whom or what each is about, where that is given.
    """
    found: dict[str, None] = {}
    for question, subject in zip(questions, subjects, strict=True):
        spans = [find_span(question, name) for name in [*([subject] if subject else []), *find_names(question)]]
        if starts := [span[0] for span in spans if span]:
            cuts = [question[: min(starts)]]
        else:
            pieces = PIECE.findall(question)
            cuts = ["".join(pieces[:count]) for count in range(min(FIRST_WORDS, len(pieces) - 1), len(pieces))]
        found.update(dict.fromkeys(cut.rstrip() for cut in cuts if comparable(cut)))
    return list(found)
