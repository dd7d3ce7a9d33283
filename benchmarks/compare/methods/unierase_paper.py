"""UniErase as published (Yu et al., arXiv 2505.15674): recipe `paper` of this package.

    [UNL]:   argmin_e E_{F} [ - log p( y_r | x, [UNL] = e ) ]          (section 3.2, unlearning token)
    Δ W = R K_Fᵀ P ( K_F K_Fᵀ P + K_p K_pᵀ P + λ I )⁻¹                  (section 3.3, unlearning editing)

It is run as users run it, with the facts, refusals and retain set that all methods get. Its steps train a single row or
vector each and are those of the recipe, so the budget in texts does not change it and the LoRA's rank is not used. If
the recipe differs from the paper, `engine/paper/` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common import RECIPES, timed_erase

from peft_unierase import Fact, PaperSettings
from peft_unierase.cli.finish import adapter_size
from peft_unierase.data.facts import DEFAULT_REFUSALS

from ..budget import Budget, Erased

GRID: tuple[dict[str, Any], ...] = (
    {},
    {"null_threshold": 0.02},
    {"target_steps": 80},
)


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
    """Erase; `settings` are those of `PaperSettings`."""
    erased, _, _ = timed_erase(
        model,
        tokenizer,
        forget,
        retain,
        refusals=refusals,
        settings=PaperSettings(**settings),
        samples_cache=False,
        seed=seed,
        progress=False,
        **RECIPES["paper"],
    )
    size = adapter_size(erased, erased.erasure.adapter)
    return Erased(erased, tokenizer, size["bytes"], size["parameters"])
