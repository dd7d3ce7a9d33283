"""Attacks by asking often."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..case import Case
from ..target import Target
from .attack import Attack, Found, recalled


def best_of(times: int, facts: int | None = None) -> Callable[[Target, Case], Found]:
    """An attack by asking so often, of at most so many facts."""

    def run(target: Target, case: Case) -> Found:
        generator = torch.Generator().manual_seed(case.seed)
        asked = case.forget if facts is None else case.drawn(case.forget, facts, f"best of {times}")
        prompts = [prompt for prompt in case.prompts(asked) for _ in range(times)]
        said = target.samples(prompts, generator, max_new_tokens=case.max_new_tokens)
        return recalled(case, asked, said)

    some = f" At most {facts} facts are asked." if facts else ""
    run.__doc__ = (
        f"Anyone who asks {times} times at temperature 1 and can tell the right answer when it comes: the best one "
        f"counts.{some}"
    )
    return run


ATTACKS = (
    Attack("sampling", "best of 8 at temperature 1", best_of(8), fast=False, draws=1),
    Attack("sampling-100", "best of 100 at temperature 1", best_of(100, 20), fast=False, draws=1),
)
