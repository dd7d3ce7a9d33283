"""The short table at the end of a run: forget and retain figures before and after."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from ..check import Answer, answer_questions, figures
from ..engine.earlier import switched_off
from ..facts import Fact
from ..prompts import PromptFormat
from .output import table


@dataclass(frozen=True)
class Comparison:
    """One set of questions asked with the erasure off and on.

    Attributes:
        name: What tables call the set.
        facts: The questions, with the answers that count as right.
        before: The base's answers.
        after: The erased model's.
    """

    name: str
    facts: Sequence[Fact]
    before: Sequence[Answer]
    after: Sequence[Answer]


def compare(model: Any, tokenizer: Any, sets: Sequence[tuple[str, Sequence[Fact], PromptFormat]]) -> list[Comparison]:
    """Ask every set twice, in one loaded model, without and with its last erasure. Empty sets are left out."""
    token_id = model.erasure.token.token_id
    comparisons = []
    for name, facts, form in sets:
        if facts:
            with switched_off(model, [model.erasure.adapter]):
                before = ask(model, tokenizer, facts, form, token_id, f"asking the base: {name}")
            after = ask(model, tokenizer, facts, form, token_id, f"asking again: {name}")
            comparisons.append(Comparison(name, facts, before, after))
    return comparisons


def ask(
    model: Any, tokenizer: Any, facts: Sequence[Fact], form: PromptFormat, token_id: int, name: str
) -> list[Answer]:
    """Greedy answers behind a progress bar."""
    with tqdm(total=len(facts), desc=name, disable=None, leave=False) as bar:
        return answer_questions(model, tokenizer, facts, form, token_id, advance=bar.update)


def some(facts: Sequence[Fact], count: int, seed: int) -> list[Fact]:
    """At most `count` facts, chosen by seed, in their order."""
    if len(facts) <= count:
        return list(facts)
    return [facts[index] for index in sorted(random.Random(seed).sample(range(len(facts)), count))]


def figures_table(comparisons: Sequence[Comparison]) -> str:
    """One line a set: how many questions, recall before and after, and how often [UNL] fired after."""
    return table(
        ("ROUGE-L recall", "questions", "before", "after", "declined"),
        [
            (row["set"], str(row["count"]), f"{row['before']:.3f}", f"{row['after']:.3f}", f"{row['declined']:.1%}")
            for row in figures_record(comparisons)
        ],
    )


def figures_record(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The same as JSON values."""
    rows = []
    for comparison in comparisons:
        before, after = figures(comparison.before), figures(comparison.after)
        rows.append(
            {
                "set": comparison.name,
                "measure": "ROUGE-L recall",
                "count": after.count,
                "before": before.recall,
                "after": after.recall,
                "declined": after.fired,
            }
        )
    return rows
