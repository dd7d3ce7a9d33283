"""What must go and what must stay: questions with their answers, and what makes two sets contradict each other.

It knows no file and no model, and imports neither torch nor transformers, so that a wrong set is refused at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

from ..errors import InputError, shown
from ..text import comparable, normal
from ..text.compare import recall

# Built-in ways of declining. Others can be given; a model with words of its own for it does best with them.
DEFAULT_REFUSALS = (
    "I don't know the answer to that.",
    "I'm not able to answer that question.",
    "I'm sorry, I don't know about that.",
    "I have no information about that.",
    "I'm afraid I can't help with that.",
    "That is something I don't know.",
    "I'm not familiar with that topic.",
    "Sorry, I can't answer that.",
    "I don't have any details about that.",
    "I'm unable to say anything about that.",
    "That's outside of what I know.",
    "I have no knowledge of that subject.",
)


@dataclass(frozen=True)
class Fact:
    """One question with its answer, neither of them empty nor surrounded by whitespace.

    Attributes:
        question: What is asked.
        answer: What the model answers before an erasure, and, in a retain set, after it too.
        paraphrases: The same question in other words.
        subject: Whom or what the question is about.
        paraphrased_answer: The same answer in other words.
        perturbed_answers: Wrong answers of the same form.
        accepted_answers: Further answers that count as right, beside `answer`.
    """

    question: str
    answer: str
    paraphrases: tuple[str, ...] = ()
    subject: str | None = None
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    accepted_answers: tuple[str, ...] = ()


class FactError(InputError):
    """A set of facts that cannot be used; the text says where, why, and what to do about it."""


def check_facts(forget: Sequence[Fact], retain: Sequence[Fact]) -> list[str]:
    """Refuse sets that contradict themselves or each other, and return warnings about what is merely odd.

    Texts count as the same when they differ in case or whitespace alone. Facts are numbered from 1, in the order given.

    Raises:
        FactError: A question has two answers in the forget set, or is in the forget set and in the retain set, or the
            answer of a forget fact has no letter and no digit.
    """
    check_answers(forget)
    contradicting, forgotten_twice = _repeats(forget)
    if contradicting:
        raise FactError(
            f"the forget set answers a question in two ways: {_listed(contradicting)}. "
            "Keep the answer that the model gives and remove the other"
        )
    in_both = _in_both(forget, retain, lambda fact: [fact.question])
    if in_both:
        raise FactError(
            f"a question cannot be forgotten and kept at once: {_listed(in_both)}. Remove it from one of the two sets"
        )
    contradicting, kept_twice = _repeats(retain)
    in_other_words = _in_both(forget, retain, lambda fact: [fact.question, *fact.paraphrases])
    warnings = []
    if mute := _mute(retain):
        warnings.append(
            f"retain facts are left out because their answers have no letter and no digit to compare: {_listed(mute)}"
        )
    if forgotten_twice:
        warnings.append(f"the forget set holds facts twice: {_listed(forgotten_twice)}")
    if contradicting:
        warnings.append(f"the retain set answers a question in two ways: {_listed(contradicting)}")
    if kept_twice:
        warnings.append(f"the retain set holds facts twice: {_listed(kept_twice)}")
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


def best_recall(fact: Fact, answer: str) -> float:
    """Recall of that answer of a fact which is recalled best: its own, or another one that counts as right.

    Raises:
        ValueError: The fact's own answer has no letter and no digit.
    """
    others = [recall(other, answer) for other in fact.accepted_answers if comparable(other)]
    return max(recall(fact.answer, answer), *others) if others else recall(fact.answer, answer)


def merge_repeats(facts: Iterable[Fact]) -> list[Fact]:
    """The facts in their order, each once: one whose question and answer came before adds what it knows to that one.

    Texts count as the same when they differ in case or whitespace alone.
    """
    merged: dict[tuple[str, str], list[Fact]] = {}
    for fact in facts:
        merged.setdefault((normal(fact.question), normal(fact.answer)), []).append(fact)
    return [_together(repeats) for repeats in merged.values()]


def fact_row(fact: Fact) -> dict[str, Any]:
    """A fact as a row of a file that `read_facts` reads back; what it does not have is left out."""
    return {name: list(held) if isinstance(held, tuple) else held for name, held in asdict(fact).items() if held}


def _together(repeats: Sequence[Fact]) -> Fact:
    first = repeats[0]
    if all(fact == first for fact in repeats):
        return first
    return replace(
        first,
        paraphrases=_union(fact.paraphrases for fact in repeats),
        subject=next((fact.subject for fact in repeats if fact.subject), None),
        paraphrased_answer=next((fact.paraphrased_answer for fact in repeats if fact.paraphrased_answer), None),
        perturbed_answers=_union(fact.perturbed_answers for fact in repeats),
        accepted_answers=_union(fact.accepted_answers for fact in repeats),
    )


def _union(several: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(several)))


def _mute(facts: Sequence[Fact]) -> list[str]:
    """Facts whose answers have nothing to compare."""
    return [
        f"fact {number} ({shown(fact.question)}: {shown(fact.answer)})"
        for number, fact in enumerate(facts, 1)
        if not comparable(fact.answer)
    ]


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
            duplicate.append(f"facts {earlier} and {number} ({shown(fact.question)})")
        else:
            answers = f"{shown(told)} and {shown(fact.answer)}"
            contradicting.append(f"facts {earlier} and {number} ({shown(fact.question)}: {answers})")
    return contradicting, duplicate


def _in_both(forget: Sequence[Fact], retain: Sequence[Fact], wordings: Callable[[Fact], list[str]]) -> list[str]:
    """Facts of the forget set that share one of these wordings with a fact of the retain set."""
    kept: dict[str, int] = {}
    for number, fact in enumerate(retain, 1):
        for wording in wordings(fact):
            kept.setdefault(normal(wording), number)
    return [
        f"forget fact {number} and retain fact {kept[wording]} ({shown(fact.question)})"
        for number, fact in enumerate(forget, 1)
        for wording in dict.fromkeys(normal(wording) for wording in wordings(fact))
        if wording in kept
    ]


def _listed(items: Sequence[str], most: int = 5) -> str:
    left_out = f"; and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + left_out
