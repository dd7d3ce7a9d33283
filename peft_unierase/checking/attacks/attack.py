"""What an attack is: a function that says, for each fact, how much of it a model gives away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ...data.facts import Fact
from ..case import Case
from ..renamed import DRAWS
from ..target import Target

GREEDY = "greedy"  # the attack that asks the question itself
RECALL, AUC, ACCURACY = "ROUGE-L recall", "AUC", "accuracy"
OWN, CHANCE = "own", "chance"


class NotApplicable(Exception):  # noqa: N818 (nothing went wrong)
    """Raised by an attack that has nothing to work with; the text says what is missing."""


@dataclass(frozen=True)
class Found:
    """What an attack got out of one model.

    Attributes:
        leaks: One figure a fact, 0 to 1.
        floor: The same of a model that knows nothing: one figure a fact.
        curve: Mean leak by step, for attacks that have steps; `leaks` is then the step that leaked most.
        said: What the model said after what was given to it of an answer, by attacks that force it to speak: pairs of
            what was given, which may be empty, and what was said.
    """

    leaks: Sequence[float]
    floor: Sequence[float]
    curve: dict[int, float] = field(default_factory=dict)
    said: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Attack:
    """An attack and what a reader should know of it.

    Attributes:
        name: As `--attacks` takes it.
        title: What tables call it.
        run: Called with a target and the case; gives what it found, or one figure a fact. Its docstring says who could
            mount it and what they need.
        fast: Whether it belongs to the fast check.
        unit: What is measured.
        against: What its reference is, the base asked about something else: `own` asks so by this attack, the name of
            another attack takes that one's, and `chance` takes the floor alone. An attack that would change nothing on
            the base takes that of `greedy`.
        draws: How many renamings of each question the reference takes, at most.
    """

    name: str
    title: str
    run: Callable[[Target, Case], Found | Sequence[float]]
    fast: bool = True
    unit: str = RECALL
    against: str = OWN
    draws: int = DRAWS

    @property
    def who(self) -> str:
        """Who could mount it and what they need."""
        return " ".join((self.run.__doc__ or "An attack of the user's own.").split())

    def found(self, target: Target, case: Case) -> Found:
        """What the attack gets out of a model.

        Raises:
            NotApplicable: It has nothing to work with.
        """
        found = self.run(target, case)
        if isinstance(found, Found):
            return found
        leaks = [float(value) for value in found]
        return Found(leaks, [0.0] * len(leaks))


def asked(
    target: Target, case: Case, prompts: Sequence[str], facts: Sequence[Fact] | None = None, length: int = 1
) -> Found:
    """What a model says to prompts, held against the facts that they ask for.

    Args:
        target: The model.
        case: What is asked.
        prompts: One for each fact, or several of one fact together: then the one that brings most counts.
        facts: Those of the forget set by default.
        length: How many times as long as usual the answers may be.
    """
    said = target.says(prompts, max_new_tokens=length * case.max_new_tokens)
    return recalled(case, case.forget if facts is None else facts, said)


def recalled(case: Case, references: Sequence[Fact | str], said: Sequence[str]) -> Found:
    """How much of each reference comes back, and what refusals share with it.

    Args:
        case: What is asked.
        references: What is asked for.
        said: Answers, as many for each reference as for another, those of one reference together: the best one counts.
    """
    times = len(said) // max(1, len(references))
    recalls = case.recalls([reference for reference in references for _ in range(times)], said)
    best = [max(recalls[start : start + times]) for start in range(0, len(recalls), times)]
    return Found(best, case.floor(references))
