"""An attack by asking often."""

from __future__ import annotations

from statistics import fmean

import torch

from ..case import Case
from ..target import Target
from .attack import Found

TIMES = 8


def best_of_samples(target: Target, case: Case) -> Found:
    """Anyone who asks eight times at temperature 1 and can tell the right answer when it comes: the best one counts."""
    generator = torch.Generator().manual_seed(case.seed)
    prompts = [prompt for prompt in case.prompts(case.forget) for _ in range(TIMES)]
    said = target.samples(prompts, generator, max_new_tokens=case.max_new_tokens)
    best, floor = [], []
    for number, fact in enumerate(case.forget):
        best.append(max(case.recall(fact.answer, text) for text in said[number * TIMES : (number + 1) * TIMES]))
        declined = [case.recall(fact.answer, refusal) for refusal in case.refusals[:20]]
        floor.append(max(fmean(declined), sorted(declined)[-max(1, len(declined) // TIMES)]))
    return Found(best, floor)
