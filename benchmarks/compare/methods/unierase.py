"""UniErase by the default recipe of this package, `distill` (docs/method.md; the token is that of arXiv 2505.15674).

    L(θ) = alpha E_{F} [ KL( p_renamed || p_θ ) ] + E_{F} [ CE of [UNL] and a refusal ] + λ E_{R} [ KL( p_0 || p_θ ) ]

It is run as users run it, with the facts, refusals and retain set that all methods get. It samples further retained
texts from the model itself, which is part of the method. The default is to be measured and nothing less, so a budget
that does not hold its steps is refused. Its passes forward for targets and samples are not counted; they are in its
time. It chooses how many triggers it edits, so the LoRA's rank is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        ValueError: The budget does not hold the steps of the recipe.
    """
    made = DistillSettings(**settings)
    texts = made.step_count(len(forget)) * PER_STEP
    if texts > budget.texts:
        raise InputError(
            f"the recipe takes {texts:,} texts for {len(forget)} facts and the budget holds {budget.texts:,}; give "
            "`Budget(texts=…)` more, or fewer steps (`steps`, `steps_per_fact`)"
        )
    erased, _, _ = timed_erase(
        model,
        tokenizer,
        forget,
        retain,
        refusals=refusals,
        settings=made,
        samples_cache=False,
        seed=seed,
        progress=False,
    )
    size = adapter_size(erased, erased.erasure.adapter)
    return Erased(erased, tokenizer, size["bytes"], size["parameters"])
