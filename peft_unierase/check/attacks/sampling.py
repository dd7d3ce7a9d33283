"""An attack by asking often."""

from __future__ import annotations

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
    recalls = case.recalls([fact for fact in case.forget for _ in range(TIMES)], said)
    best = [max(recalls[start : start + TIMES]) for start in range(0, len(recalls), TIMES)]
    return Found(best, case.floor(case.forget))
