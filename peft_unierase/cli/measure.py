"""The short table at the end of a run: forget and retain figures before and after."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from ..check import Answer, Figures, answer_questions, figures
from ..facts import Fact
from ..prompts import PromptFormat
from .output import table

FEW = 0.5


def ask(
    model: Any, tokenizer: Any, facts: Sequence[Fact], form: PromptFormat, token_id: int | None, name: str
) -> list[Answer]:
    """Greedy answers behind a progress bar."""
    with tqdm(total=len(facts), desc=name, disable=None, leave=False) as bar:
        return answer_questions(model, tokenizer, facts, form, token_id, advance=bar.update)


def some(facts: Sequence[Fact], count: int, seed: int) -> list[Fact]:
    """At most `count` facts, chosen by seed, in their order."""
    if len(facts) <= count:
        return list(facts)
    return [facts[index] for index in sorted(random.Random(seed).sample(range(len(facts)), count))]


def figures_table(rows: Sequence[tuple[str, Figures, Figures]]) -> str:
    """One line a set of questions: how many, recall before and after, and how often [UNL] fired after."""
    return table(
        ("ROUGE-L recall", "questions", "before", "after", "declined"),
        [
            (name, str(after.count), f"{before.recall:.3f}", f"{after.recall:.3f}", f"{after.fired:.1%}")
            for name, before, after in rows
        ],
    )


def figures_record(rows: Sequence[tuple[str, Figures, Figures]]) -> list[dict[str, Any]]:
    """The same as JSON values."""
    return [
        {
            "set": name,
            "measure": "ROUGE-L recall",
            "count": after.count,
            "before": before.recall,
            "after": after.recall,
            "declined": after.fired,
        }
        for name, before, after in rows
    ]
