"""Attacks that ask whether something was there, not what it was.

A fact that is suddenly far less likely than one that was never there tells as much as one that is likelier, so a score
counts in the direction that serves the attacker.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from statistics import fmean

import torch

from ...data.facts import Fact
from ..case import Case
from ..target import Reading, Target, on_common_rows
from .attack import AUC, CHANCE, Attack, Found, NotApplicable

LOWEST = 0.2  # share of the tokens that Min-K looks at
SEVERAL = 4  # retained questions for each erased one, among which the list is looked for


def by_loss(reading: Reading, fact: Fact) -> float:
    """Whoever can score texts: the mean log-likelihood of the answer."""
    return -reading.loss


def by_zlib(reading: Reading, fact: Fact) -> float:
    """Whoever can score texts: the log-likelihood against how well zlib compresses the answer (arXiv 2012.07805)."""
    return -reading.loss * len(reading.log_probs) / len(zlib.compress(fact.answer.encode()))


def by_min_k(reading: Reading, fact: Fact) -> float:
    """Whoever can score texts: the mean log-likelihood of the least likely fifth of the answer's tokens (Min-K%, arXiv
    2310.16789).
    """
    return _lowest(reading.log_probs)


def by_min_k_plus(reading: Reading, fact: Fact) -> float:
    """Whoever sees whole distributions: Min-K%++ (arXiv 2404.02936), the same with each log-likelihood in standard
    deviations from what it would be on average at its place.
    """
    return _lowest(reading.surprise)


def membership(score: Callable[[Reading, Fact], float]) -> Callable[[Target, Case], Found]:
    """An attack that tells erased facts from never-seen ones by a score."""

    def run(target: Target, case: Case) -> Found:
        if not case.unseen:
            raise NotApplicable(
                "there are no facts that no model ever saw: give some as `unseen=` (on the command line --unseen), or "
                "wrong answers to the forget questions (column perturbed_answer)"
            )

        def scores(facts: Sequence[Fact]) -> list[float]:
            readings = target.reads(case.prompts(facts), [case.form.answer(fact.answer) for fact in facts])
            return [score(reading, fact) for reading, fact in zip(readings, facts, strict=True)]

        return told_apart(scores(case.forget), scores(case.unseen))

    run.__doc__ = f"{' '.join((score.__doc__ or '').split())} AUC of the erased facts against never-seen ones."
    return run


def read_the_list(target: Target, case: Case) -> Found:
    """Whoever has the adapter and the base, and a list of candidate questions: those at whose answer start the adapter
    changes the next token most are taken for erased. AUC of the forget questions against retained ones.
    """
    if not case.kept:
        raise NotApplicable("there is no retain set to look for the forget questions among")
    others = case.drawn(case.kept, SEVERAL * len(case.forget), "the list")

    def changes(facts: Sequence[Fact]) -> list[float]:
        prompts = case.prompts(facts)
        after, before = on_common_rows(target.at_answer_starts(prompts), case.base.at_answer_starts(prompts))
        return torch.nn.functional.kl_div(after, before, log_target=True, reduction="none").sum(dim=-1).tolist()

    return told_apart(changes(case.forget), changes(others))


def told_apart(members: Sequence[float], others: Sequence[float]) -> Found:
    """For each member how often it scores higher than another, in the direction in which it does so on average."""
    against = torch.tensor(others, dtype=torch.float64)
    higher = [float((against < own).double().mean() + (against == own).double().mean() / 2) for own in members]
    if fmean(higher) < 0.5:
        higher = [1 - share for share in higher]
    return Found(higher, [0.5] * len(higher))


def _lowest(values: torch.Tensor) -> float:
    count = max(1, int(LOWEST * len(values)))
    return float(values.sort().values[:count].mean())


ATTACKS = (
    Attack("member-loss", "membership by loss", membership(by_loss), fast=False, unit=AUC, against=CHANCE),
    Attack("member-zlib", "membership by zlib", membership(by_zlib), fast=False, unit=AUC, against=CHANCE),
    Attack("member-min-k", "membership by Min-K%", membership(by_min_k), fast=False, unit=AUC, against=CHANCE),
    Attack("member-min-k++", "membership by Min-K%++", membership(by_min_k_plus), fast=False, unit=AUC, against=CHANCE),
    Attack("list", "the forget list read out", read_the_list, fast=False, unit=AUC, against=CHANCE),
)
