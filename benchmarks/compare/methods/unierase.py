"""UniErase by the default recipe of this package, `distill` (docs/method.md; the token is that of arXiv 2505.15674).

    L(θ) = alpha E_{F} [ KL( p_renamed || p_θ ) ] + E_{F} [ CE of [UNL] and a refusal ] + λ E_{R} [ KL( p_0 || p_θ ) ]

It is run as users run it, with the facts, refusals and retain set that all methods get. It samples further retained
texts from the model itself, which is part of the method. A budget that does not hold its steps cuts them. Its passes
forward for targets and samples are not counted; they are in its time. It chooses how many triggers it edits, so the
LoRA's rank is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from common import timed_erase

from peft_unierase import DistillSettings, Fact
from peft_unierase.cli.finish import adapter_size
from peft_unierase.data.facts import DEFAULT_REFUSALS
from peft_unierase.engine.estimate import PER_STEP
from peft_unierase.errors import InputError

from ..budget import Budget, Erased

GRID: tuple[dict[str, Any], ...] = ({},)


def erase(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    budget: Budget,
    *,
    seed: int = 0,
    refusals: Sequence[str] = DEFAULT_REFUSALS,
    **settings: Any,
) -> Erased:
    """Erase; `settings` are those of `DistillSettings`.

    Raises:
        ValueError: The budget does not hold a single step.
    """
    if budget.texts < PER_STEP:
        raise InputError(
            f"a step takes {PER_STEP} texts and the budget holds {budget.texts}; give `Budget(texts=…)` more"
        )
    made = DistillSettings(**settings)
    steps = min(made.step_count(len(forget)), budget.texts // PER_STEP)
    erased, _, _ = timed_erase(
        model,
        tokenizer,
        forget,
        retain,
        refusals=refusals,
        settings=replace(made, steps=steps, steps_per_fact=0.0),
        samples_cache=False,
        seed=seed,
        progress=False,
    )
    size = adapter_size(erased, erased.erasure.adapter)
    return Erased(erased, tokenizer, size["bytes"], size["parameters"])
