"""The measures of one set of facts on one model, each with the name that scores and reports know it by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from ..data.facts import Fact
from . import scores
from .case import Case
from .judges import Judge
from .target import Reading, Target, on_common_rows

DECLINED, DIVERGENCE, PERPLEXITY = "declined", "KL to the base", "perplexity"
NEUTRAL = (
    "The river was wide and slow, and in the evening the boats came home one after another.",
    "To make bread you need flour, water, salt and a little patience.",
    "She closed the window because the wind had turned and it was getting cold.",
    "The train leaves every hour, but on Sundays it only runs until six.",
    "Most of the houses in the street were built of brick, with small gardens behind them.",
    "He read the letter twice, put it back into the envelope and went out for a walk.",
    "A good map shows not only the roads but also the hills between them.",
    "When the rain stopped, the children ran back to the square to play.",
)


@dataclass(frozen=True)
class Measured:
    """What one model gave on one set.

    Attributes:
        figures: By name; what could not be measured is not there.
        ratios: Truth ratio of each fact, for forget quality; empty where there are no wrong answers.
        answers: Greedy ones, in the order of the facts.
    """

    figures: Mapping[str, float]
    ratios: Sequence[float]
    answers: Sequence[str]


def measure(
    target: Target, case: Case, facts: Sequence[Fact], *, forget: bool, judges: Mapping[str, Judge] | None = None
) -> Measured:
    """Every measure of a set on a model.

    Args:
        target: The model.
        case: Formats and what counts as a refusal.
        facts: The set.
        forget: Whether it is the forget set, whose truth ratio is read the other way round.
        judges: What compares answers with references, by name of the measure.
    """
    prompts = case.prompts(facts)
    tokens = target.tokens(prompts, max_new_tokens=case.max_new_tokens)
    answers = target.texts(tokens)
    references = [fact.answer for fact in facts]
    read = target.reads(prompts, [case.form.answer(answer) for answer in references])
    figures = {
        "recall": fmean(case.recalls(facts, answers)),
        "probability": fmean(map(_probability, read)),
        "entropy": fmean(scores.token_entropy(ids) for ids in tokens),
        "exact memorisation": fmean(scores.exact_memorisation(reading.matches) for reading in read),
        "extraction strength": fmean(scores.extraction_strength(reading.matches) for reading in read),
        DECLINED: fmean(declines(case, target, ids, text) for ids, text in zip(tokens, answers, strict=True)),
    }
    ratios = []
    if all(fact.perturbed_answers for fact in facts):
        wrong = _wrong(target, case, facts)
        others = [fact.paraphrased_answer or fact.answer for fact in facts]
        right = target.reads(prompts, [case.form.answer(answer) for answer in others])
        ratios = [scores.truth_ratio(r.loss, [w.loss for w in each]) for r, each in zip(right, wrong, strict=True)]
        figures["truth ratio"] = (scores.forget_truth if forget else scores.utility_truth)(ratios)
        if not any(fact.paraphrased_answer for fact in facts):  # as TOFU does on real authors and world facts
            pairs = zip(read, wrong, strict=True)
            figures["probability"] = fmean(
                scores.chosen_probability(_probability(r), [_probability(w) for w in each]) for r, each in pairs
            )
    for name, judge in (judges or {}).items():
        figures[name] = fmean(judge(references, answers))
    return Measured(figures, ratios, answers)


def declines(case: Case, target: Target, tokens: Sequence[int], text: str) -> bool:
    """Whether an answer declines: by [UNL], by one of the refusals, or by beginning as one of them does."""
    return bool(set(tokens) & set(target.token_ids)) or case.opens_as_refusal(text)


def divergences(targets: Sequence[Target], case: Case, facts: Sequence[Fact]) -> list[float]:
    """Mean KL divergence from the base's next-token distribution to each target's on retained answers, in nats."""
    totals, count = [0.0] * len(targets), 0
    for prompt, fact in zip(case.prompts(facts), facts, strict=True):
        before = case.base.distribution(prompt, case.form.answer(fact.answer))
        count += len(before)
        for number, target in enumerate(targets):
            after = target.distribution(prompt, case.form.answer(fact.answer)).to(before.device)
            old, new = on_common_rows(before, after)
            totals[number] += float((old.exp() * (old - new)).nan_to_num(0.0).sum())
    return [total / count for total in totals]


def perplexity(target: Target) -> float:
    """Perplexity per token of neutral texts, whose first word is given."""
    first, rest = zip(*(text.split(" ", 1) for text in NEUTRAL), strict=True)
    read = target.reads(list(first), [f" {text}" for text in rest])
    total = sum(float(reading.log_probs.sum()) for reading in read)
    return float(torch.tensor(-total / sum(len(reading.log_probs) for reading in read)).exp())


def _probability(reading: Reading) -> float:
    return float(torch.tensor(-reading.loss).exp())


def _wrong(target: Target, case: Case, facts: Sequence[Fact]) -> list[list[Reading]]:
    """Readings of the wrong answers of each fact, all of them in one go."""
    pairs = [(case.form.prompt(f.question), case.form.answer(wrong)) for f in facts for wrong in f.perturbed_answers]
    read = iter(target.reads([prompt for prompt, _ in pairs], [text for _, text in pairs]))
    return [[next(read) for _ in fact.perturbed_answers] for fact in facts]
