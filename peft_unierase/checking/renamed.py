"""The same questions about something else: the names in a question give way to names out of other facts.

What the base answers to them is what a model gives that knows the world and not these facts. It knows no model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from ..data.facts import Fact
from ..retain.knowledge import tells
from ..retain.names import Name, Names, Swap, has_capital, other_number, with_parts
from ..text import normal
from .case import Case

FACTS = 40  # of the forget set that are asked about something else, at the most
DRAWS = 3  # renamings of each of them, at the most
QUESTIONS = 60  # of all of them together, but at least one of each
POOL = 400  # retained facts that names are taken from, at the most


def known_names(case: Case) -> Names:
    """Finds the names in a case's questions."""
    kept = case.drawn(case.kept, POOL, "renamed")
    return Names([*case.forget, *kept], kept)


def swapped(name: Name, new: str, known: Names) -> Callable[[str], str]:
    """What puts something else in a name's place, in any text."""
    return Swap(with_parts(name, new, known))


def renamed_cases(case: Case) -> list[Case]:
    """Up to `DRAWS` cases that ask about something else in the same words, each fact of the forget set at most once.

    A question's names are replaced by names of like kind out of other facts, forgotten or retained ones; the same
    exchange is made in its answers, so that a model which repeats the name it is asked about recalls it as the true
    answer's reader would. Names of facts that share a name or the answer with it are not used: they may be about the
    same thing. Facts in which nothing can be replaced are left out, and a case without any is not returned.
    """
    facts = case.drawn(case.forget, FACTS, "renamed")
    kept = case.drawn(case.kept, POOL, "renamed")
    pool = list(dict.fromkeys([*case.forget, *kept]))
    names = known_names(case)
    held = {fact: _held(fact, names) for fact in pool}
    offered = [(other, name) for other in pool for name in names.of(other)]
    draws = max(1, min(DRAWS, QUESTIONS // max(1, len(facts))))
    chance = random.Random(f"{case.seed} renamed")
    used: dict[Fact, set[str]] = {fact: set() for fact in facts}
    cases = []
    for _ in range(draws):
        told: dict[str, Fact] = {}
        own: dict[str, str] = {}
        for fact in facts:
            fitting = [(other, name) for other, name in offered if not held[other] & held[fact]]
            for swap in _swaps(fact, names.of(fact), fitting, used[fact], names, chance):
                new = swap.fact(fact)
                if new.question != fact.question and normal(new.question) not in told:
                    told[normal(new.question)] = new
                    if fact.question in case.base_answers:
                        own[new.question] = swap(case.base_answers[fact.question])
                    break
        if told:
            true = frozenset(case.base_answers.get(fact.question, fact.answer) for fact in case.forget)
            cases.append(replace(case, forget=list(told.values()), base_answers=own, true=true))
    return cases


def _swaps(
    fact: Fact,
    names: Sequence[Name],
    offered: Sequence[tuple[Fact, Name]],
    used: set[str],
    known: Names,
    chance: random.Random,
) -> Iterator[Swap]:
    """Ways of asking about something else, the likest names first; those that were taken before are not taken again."""
    if not names:
        return
    main, *others = names
    said = normal(" ".join((fact.question, fact.answer, *fact.accepted_answers)))

    def like(name: Name) -> Iterator[str]:
        free = {each.normal: (owner, each) for owner, each in offered if each.kind == name.kind}
        likest = sorted(free.values(), key=lambda found: (-_likeness(name, found[1]), chance.random()))
        for owner, each in likest:
            if each.normal not in said and not tells(owner.answer, fact):
                yield each.text

    if main.kind.isdigit():
        candidates: Iterator[str] = chain(like(main), (other_number(main.text, chance) for _ in range(DRAWS)))
    else:
        candidates = like(main)
    for new in candidates:
        if new in used:
            continue
        used.add(new)
        pairs = with_parts(main, new, known)
        for name in others:
            other = next((text for text in like(name) if text not in pairs.values()), None)
            if other is None and name.kind.isdigit():
                other = other_number(name.text, chance)
            if other is not None:
                pairs.setdefault(name.text, other)
        yield Swap(pairs)


def _held(fact: Fact, names: Names) -> set[str]:
    """The names of a fact, in question and answer."""
    answers = (fact.answer, *fact.accepted_answers)
    told = {name for text in answers for name in names.in_text(text) if any(has_capital(w) for w in text.split())}
    return {name.normal for name in names.of(fact) if not name.kind.isdigit()} | told


def _likeness(one: Name, other: Name) -> int:
    alike = len(one.text.split()) == len(other.text.split())
    return 2 * (one.before == other.before) + (one.after == other.after) + alike
