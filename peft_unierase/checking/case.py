"""What the models are asked: the sets of facts, in which form, and what counts as a refusal."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from ..data.facts import Fact, best_recall
from ..lm.formats import PromptFormat
from ..retain.knowledge import tells
from ..text import comparable, normal, opening, recall, scripts, terms
from .target import Target


@dataclass(frozen=True)
class Case:
    """Everything that is asked.

    Attributes:
        base: The model that nothing was erased from.
        forget: What should be gone.
        retain: What should have stayed, by name.
        form: The format that questions are put in.
        others: Further formats by name: `plain`, and `system` where the template has room for one.
        unseen: Facts that no model ever saw, for membership inference.
        refusals: Sentences that decline.
        seed: Of everything that is drawn.
        max_new_tokens: Longest answer.
        base_answers: What the base itself answers to tell a fact, by question.
        true: Answers that tell true facts, in a case that asks about something else: none of them may be begun.
    """

    base: Target
    forget: Sequence[Fact]
    retain: Mapping[str, Sequence[Fact]]
    form: PromptFormat
    others: Mapping[str, PromptFormat]
    unseen: Sequence[Fact]
    refusals: Sequence[str]
    seed: int = 0
    max_new_tokens: int = 64
    base_answers: Mapping[str, str] = field(default_factory=dict)
    true: frozenset[str] = frozenset()

    def beginnings(self, cut: Callable[[str], tuple[str, str] | None]) -> list[tuple[Fact, str, Fact | str]]:
        """For each fact of the forget set what an attacker may begin its answer with, and what must then not come.

        The answer that is begun is the base's own where there is one: people's answers are often shorter. What counts
        is then whether the given answer comes, and otherwise whether the rest does.

        Args:
            cut: Gives both parts of an answer, or `None` if it is too short.

        Returns:
            Facts with first part and reference. Left out are answers that are too short, or told by their first part.
        """
        found: list[tuple[Fact, str, Fact | str]] = []
        for fact in self.forget:
            own = self.base_answers.get(fact.question, fact.answer)
            if parts := cut(own):
                first, rest = parts
                reference: Fact | str = rest if normal(own) == normal(fact.answer) else fact
                if comparable(rest) and not (reference is fact and tells(first, fact)):
                    found.append((fact, first, reference))
        return found

    def prompts(self, facts: Sequence[Fact], form: PromptFormat | None = None) -> list[str]:
        """The questions in this case's format, or in another one."""
        return [(form or self.form).prompt(fact.question) for fact in facts]

    def recalls(self, references: Sequence[Fact | str], answers: Sequence[str]) -> list[float]:
        """Recall of each reference in its answer; of a fact that of the right answer which is recalled best."""
        return [_recall(reference, answer) for reference, answer in zip(references, answers, strict=True)]

    def floor(self, references: Sequence[Fact | str]) -> list[float]:
        """For each reference what refusals share with it by chance: what a model that always declines would get.

        Refusals in the reference's script count, if there are any: others share nothing with it.
        """
        return [
            fmean(_recall(reference, refusal) for refusal in self._like(reference)[:20]) for reference in references
        ]

    def opens_as_refusal(self, text: str) -> bool:
        """Whether a text begins as one of the refusals does."""
        return opening(text) in self._begins

    @cached_property
    def _begins(self) -> set[str]:
        return {opening(refusal) for refusal in self.refusals}

    def _like(self, reference: Fact | str) -> Sequence[str]:
        own = scripts(reference if isinstance(reference, str) else reference.answer)
        return [refusal for refusal in self.refusals if scripts(refusal) & own] or self.refusals

    @cached_property
    def kept(self) -> list[Fact]:
        """Every retained fact."""
        return [fact for facts in self.retain.values() for fact in facts]

    @cached_property
    def by_nearness(self) -> list[Fact]:
        """Retained facts, those that share most words with the forget set first."""
        words = [_words(fact) for fact in self.forget]
        near = {fact: max(len(_words(fact) & other) / max(1, len(other)) for other in words) for fact in self.kept}
        return sorted(near, key=lambda fact: (-near[fact], fact.question))

    def drawn(self, facts: Sequence[Fact], count: int, purpose: str) -> list[Fact]:
        """At most `count` facts drawn by seed, in their order."""
        return drawn(facts, count, f"{self.seed} {purpose}")


def drawn(facts: Sequence[Fact], count: int, seed: str) -> list[Fact]:
    """At most `count` facts drawn by seed, in their order."""
    if len(facts) <= count:
        return list(facts)
    chosen = random.Random(seed).sample(range(len(facts)), count)
    return [facts[index] for index in sorted(chosen)]


def _words(fact: Fact) -> set[str]:
    return terms(f"{fact.question}\n{fact.answer}")


def _recall(reference: Fact | str, answer: str) -> float:
    return recall(reference, answer) if isinstance(reference, str) else best_recall(reference, answer)
