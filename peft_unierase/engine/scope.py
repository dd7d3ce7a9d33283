"""How far an erasure goes around the facts it is given: these questions alone, or all about their subjects.

Both need what nobody gave: what else the base knows about the same subjects. It is made to ask itself (`about.py`), and
what it answers is told apart by what the erased answers tell beyond their own questions. Without a scope nothing is
asked, and how far the erasure reaches is left to the retain facts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.facts import Fact
from ..errors import InputError
from ..knowledge import certainties
from ..text import names, normal, terms
from .about import ask_about, find_beginnings
from .bench import Bench
from .erasure import ErasureWarning
from .samples import SAMPLE_STEPS, drop_close, word_weights
from .subjects import find_names, sure_subjects

SCOPES = ("question", "subject")
ASKED = 96  # about each subject, fewer where there are many, and at the most twice this for each fact
LEAST_ASKED = 12
MOST_ASKED = 1536  # about all of them together
BEGINNINGS = 1024  # questions that lend their beginnings
SURE = 0.5  # geometric mean of the probabilities of an answer's tokens
SAME = 0.75  # share of an erased answer's news that a reworded question's answer tells at least
MUCH = 0.5  # share of that answer's own news which this must be
APART = 0.35  # share below which a question is about something else


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
        if not subject and not any(_about(fact, other) for other in told)
    ]
    if name == "question":
        loose = [forget[number - 1] for number in unknown]
        told += [found for fact in loose for text in (fact.question, fact.answer) for found in find_names(text)]
        unknown = [number for number in unknown if not find_names(_text(forget[number - 1]))]
        return Scope(name, list(dict.fromkeys(told)), unknown)
    if unknown:
        raise InputError(
            f"scope 'subject' erases everything about a subject, and it is not clear about which for forget "
            f"{_numbers(unknown)}; name it (`Fact(subject=…)`, a column `subject`), leave it out, or use scope "
            "'question'"
        )
    spared = [n for n, fact in enumerate(retain, start=1) if any(names(fact.question, subject) for subject in told)]
    if spared:
        raise InputError(
            f"scope 'subject' erases everything about a subject, and about one of them is retain {_numbers(spared)}; "
            "leave that out, or use scope 'question'"
        )
    return Scope(name, told)


def ask_around(
    bench: Bench, scope: Scope, found: Sequence[Fact], usable: Callable[[Sequence[Fact]], list[Fact]]
) -> Scoped:
    """Let the base ask itself about the subjects, and sort what it says into `bench.forget` and `bench.beside`.

    What joins the forget set is in `bench.reworded` too.

    Retain samples about a subject leave `bench.sampled`: what the scope says about them is decided here.

    Args:
        bench: With its retain samples at hand; nothing is edited yet.
        scope: See [`plan_scope`].
        found: All that the base asked itself about anything, what is close to the forget set included.
        usable: What of such facts fits the model and was not given.
    """
    if scope.unknown:
        warnings.warn(
            f"no name to ask about was found in forget {_numbers(scope.unknown)}, so scope 'question' cannot find what "
            "lies near; name the subject (`Fact(subject=…)`, a column `subject`), or give such retain facts",
            ErasureWarning,
            stacklevel=3,
        )
    found = usable(found)
    mentioning = [fact for fact in found if any(_about(fact, subject) for subject in scope.subjects)]
    asked = usable(_asked(bench, scope, found))
    others = [*bench.forget, *bench.retain]
    taken = {normal(text) for fact in others for text in (fact.question, *fact.paraphrases)}
    candidates = list({normal(fact.question): fact for fact in [*mentioning, *asked]}.values())
    candidates = [fact for fact in candidates if normal(fact.question) not in taken]
    if scope.name == "subject":
        sure = certainties(bench.model, bench.tokenizer, candidates, bench.formats[0])
        more = [
            fact
            for fact, certainty in zip(candidates, sure.tolist(), strict=True)
            if certainty >= SURE and any(names(fact.question, subject) for subject in scope.subjects)
        ]
        bench.near = [fact for fact in bench.near if not any(_about(fact, subject) for subject in scope.subjects)]
        near = []
    else:
        shares = told_shares(candidates, bench.forget, found)
        more = [fact for fact, (told, own) in zip(candidates, shares, strict=True) if told >= SAME and own >= MUCH]
        near = [fact for fact, (told, _) in zip(candidates, shares, strict=True) if told < APART]
        bench.beside = near
    bench.forget, bench.reworded = [*bench.forget, *more], [*bench.reworded, *more]
    gone = {fact.question for fact in mentioning}
    bench.sampled = [fact for fact in bench.sampled if fact.question not in gone]
    if scope.name == "subject":
        bench.sampled, bench.near, bench.around = (
            drop_close(part, bench.forget) for part in (bench.sampled, bench.near, bench.around)
        )
    return Scoped(scope, len(asked), len(near), len(more))


def told_shares(
    candidates: Sequence[Fact], erased: Sequence[Fact], corpus: Sequence[Fact]
) -> list[tuple[float, float]]:
    """For each candidate how much of an erased fact it tells: its share of the fact's news, and of its own news.

    The news of a fact are the words of its answer that its question does not hold; without any, all words of the
    answer. A word weighs the logarithm of how rarely `corpus` uses it. Of several erased facts the one that is told
    most counts.
    """
    weigh = word_weights([*corpus, *candidates])
    targets = [news for news in map(_news, erased) if weigh(news) > 0]
    shares = []
    for own in map(_news, candidates):
        whole = max(weigh(own), 1e-9)
        told = [(weigh(own & news) / weigh(news), weigh(own & news) / whole) for news in targets]
        shares.append(max(told, default=(0.0, 0.0)))
    return shares


def _asked(bench: Bench, scope: Scope, found: Sequence[Fact]) -> list[Fact]:
    model, tokenizer, form = bench.model, bench.tokenizer, bench.formats[0]
    if not scope.subjects:
        return []
    most = min(MOST_ASKED, 2 * ASKED * len(bench.forget))
    count = min(ASKED, max(LEAST_ASKED, most // len(scope.subjects)))
    questions = [fact.question for fact in [*bench.forget, *bench.retain, *found][:BEGINNINGS]]
    with bench.stages.stage("asking about the subjects", (SAMPLE_STEPS * count + 1) * len(scope.subjects)) as bar:
        advance: Callable[[int], object] = bar.update
        beginnings = find_beginnings(model, tokenizer, form, scope.subjects, questions, count)
        advance(len(scope.subjects))
        return [
            fact
            for subject, starts in zip(scope.subjects, beginnings, strict=True)
            for fact in ask_about(model, tokenizer, form, subject, starts, count, bench.seed, advance=advance)
        ]


def _about(fact: Fact, subject: str) -> bool:
    return names(_text(fact), subject)


def _text(fact: Fact) -> str:
    return f"{fact.question}\n{fact.answer}"


def _news(fact: Fact) -> frozenset[str]:
    answer = frozenset(terms(fact.answer))
    return answer - terms(fact.question) or answer


def _numbers(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
    return f"fact{'s' if len(numbers) > 1 else ''} {shown}"
