"""How far an erasure goes around the facts it is given: these questions alone, or all about their subjects.

Both need what nobody gave: what else the base knows about the same subjects. It is made to ask itself (`about.py`), and
what it answers is told apart by what the erased answers tell beyond their own questions. Without a scope nothing is
asked, and how far the erasure reaches is left to the retain facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.facts import Fact
from ..errors import InputError
from ..text import names, terms
from .samples import word_weights
from .subjects import find_names, sure_subjects

SCOPES = ("question", "subject")


@dataclass(frozen=True)
class Scope:
    """What was asked for, checked, and which subjects it is about.

    Attributes:
        name: `"question"` or `"subject"`.
        subjects: Whom or what to ask about.
        unknown: Numbers, from 1, of the forget facts that name nothing to ask about.
    """

    name: str
    subjects: list[str]
    unknown: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Scoped:
    """What came of a scope.

    Attributes:
        scope: As checked.
        asked: Questions that the base asked itself about the subjects.
        kept: Those that became retain facts.
        erased: Those that became forget facts.
    """

    scope: Scope
    asked: int
    kept: int
    erased: int

    def record(self) -> dict[str, Any]:
        """A JSON object without any text."""
        counts = {"subjects": len(self.scope.subjects), "asked": self.asked, "kept": self.kept, "erased": self.erased}
        return {"name": self.scope.name, **counts}


def check_scope(name: str | None, recipe: str = "distill") -> None:
    """Refuse a scope that does not exist, or that a recipe cannot have.

    Raises:
        ValueError: Says which.
    """
    if name is not None and name not in SCOPES:
        raise InputError(f"scope {name!r} is not there; choose from {', '.join(map(repr, SCOPES))}, or leave it out")
    if name == "question" and recipe == "paper":
        raise InputError(
            "recipe 'paper' takes its keys where the subject has been read and the rest of the question has not, so it "
            "cannot tell questions about one subject apart; use recipe 'distill' for scope 'question'"
        )


def plan_scope(name: str, forget: Sequence[Fact], retain: Sequence[Fact]) -> Scope:
    """Which subjects a scope is about.

    Where scope `"question"` cannot tell the subject of a fact it asks about every name in it: a name too many costs
    nothing but time. Scope `"subject"` erases what it asks about, so there every subject must be clear.

    Raises:
        ValueError: With scope `"subject"`, the subject of a fact cannot be told, or a retain fact is about one.
    """
    sure = sure_subjects(forget)
    told = list(dict.fromkeys(subject for subject in sure if subject))
    unknown = [
        number
        for number, (fact, subject) in enumerate(zip(forget, sure, strict=True), start=1)
        if not subject and not any(is_about(fact, other) for other in told)
    ]
    if name == "question":
        loose = [forget[number - 1] for number in unknown]
        told += [found for fact in loose for text in (fact.question, fact.answer) for found in find_names(text)]
        unknown = [number for number in unknown if not find_names(_text(forget[number - 1]))]
        return Scope(name, list(dict.fromkeys(told)), unknown)
    if unknown:
        raise InputError(
            f"scope 'subject' erases everything about a subject, and it is not clear about which for forget "
            f"{numbered(unknown)}; name it (`Fact(subject=…)`, a column `subject`), leave it out, or use scope "
            "'question'"
        )
    spared = [n for n, fact in enumerate(retain, start=1) if any(names(fact.question, subject) for subject in told)]
    if spared:
        raise InputError(
            f"scope 'subject' erases everything about a subject, and about one of them is retain {numbered(spared)}; "
            "leave that out, or use scope 'question'"
        )
    return Scope(name, told)


def told_shares(
    candidates: Sequence[Fact], erased: Sequence[Fact], corpus: Sequence[Fact]
) -> list[tuple[float, float]]:
    """For each candidate how much of an erased fact it tells: its share of the fact's answer-only words and of its own.

    Answer-only words of a fact are words of its answer that its question does not hold; without any, all words of the
    answer. A word weighs the logarithm of how rarely `corpus` uses it. Of several erased facts the one that is told
    most counts.
    """
    weigh = word_weights([*corpus, *candidates])
    targets = [words for words in map(_answer_only, erased) if weigh(words) > 0]
    shares = []
    for own in map(_answer_only, candidates):
        whole = max(weigh(own), 1e-9)
        told = [(weigh(own & words) / weigh(words), weigh(own & words) / whole) for words in targets]
        shares.append(max(told, default=(0.0, 0.0)))
    return shares


def is_about(fact: Fact, subject: str) -> bool:
    return names(_text(fact), subject)


def _text(fact: Fact) -> str:
    return f"{fact.question}\n{fact.answer}"


def _answer_only(fact: Fact) -> frozenset[str]:
    answer = frozenset(terms(fact.answer))
    return answer - terms(fact.question) or answer


def numbered(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
    return f"fact{'s' if len(numbers) > 1 else ''} {shown}"
