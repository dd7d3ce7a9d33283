"""Which facts are compared: those that the base knows, and whose answers can be compared at all."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from ..data.facts import Fact, comparable_facts
from ..errors import InputError
from ..lm.formats import PromptFormat
from ..lm.processes import ALONE, Processes
from ..retain.knowledge import Knowledge, judged, unknown_named
from .target import Target

FORGET = "forget"


def knowledge(
    base: Target,
    facts: Sequence[Fact],
    form: PromptFormat,
    others: Mapping[str, PromptFormat],
    max_new_tokens: int,
    processes: Processes = ALONE,
) -> list[Knowledge]:
    """What the base knows, asked in the case's format and the others, and by how it likes the right answers."""

    def ask(each: PromptFormat) -> tuple[str, list[str]]:
        return each.name, base.says([each.prompt(fact.question) for fact in facts], max_new_tokens=max_new_tokens)

    said = processes.each([form, *others.values()], ask)

    def likely(pairs: Sequence[tuple[str, str]]) -> list[float]:
        read = base.reads([form.prompt(asked) for asked, _ in pairs], [form.answer(told) for _, told in pairs])
        return [-reading.loss for reading in read]

    answers = [{name: texts[number] for name, texts in said} for number in range(len(facts))]
    return judged(facts, answers, likely)


def known_facts(found: Sequence[Knowledge], skipped: dict[str, str]) -> list[Fact]:
    """The facts that the base knows; says which are left out. All of them if it knows none, for which there is a
    verdict.
    """
    known = [each.fact for each in found if each.known]
    if not known or len(known) == len(found):
        return [each.fact for each in found]
    numbers = ", ".join(str(number) for number, each in enumerate(found, start=1) if not each.known)
    skipped[f"{FORGET}: facts {numbers}"] = "the base does not know them"
    warnings.warn(f"{unknown_named(found)}, which are left out", stacklevel=3)
    return known


def compared(name: str, facts: Sequence[Fact], skipped: dict[str, str]) -> list[Fact]:
    """The facts of a retain set that an answer can be compared with; says which are left out."""
    kept = comparable_facts(facts)
    mute = [(number, fact) for number, fact in enumerate(facts, 1) if fact not in kept]
    if not mute:
        return kept
    numbers = ", ".join(str(number) for number, _ in mute)
    if not kept:
        raise InputError(
            f"no answer of the retain set {name!r} has a letter or a digit, so nothing can be compared; leave it out"
        )
    why = "no letter and no digit in the answer, so nothing can be compared"
    skipped[f"{name}: facts {numbers}"] = why
    texts = "; ".join(f"fact {number} ({fact.question!r}: {fact.answer!r})" for number, fact in mute[:5])
    warnings.warn(f"left out of the retain set {name!r}: {texts}: {why}", stacklevel=3)
    return kept
