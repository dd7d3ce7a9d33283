"""Task-vector negation (Ilharco et al., arXiv 2212.04089, section 3).

    θ_F = argmin_θ - E_{(x, y) ∈ F} [ log p_θ(y | x) ],    θ = θ_0 - λ (θ_F - θ_0)

A LoRA is trained on the forget set and PEFT's `add_weighted_adapter` makes one of it that counts with weight -λ
(`combination_type="cat"`, which is exact). The paper trains all weights and chooses λ on held-out data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from peft_unierase import Fact

from ..budget import Budget, Erased
from ..training import Training

LEARNT, NEGATED = "default", "negated"
GRID: tuple[dict[str, Any], ...] = (
    {"learning_rate": 1e-4, "scale": 1.0},
    {"learning_rate": 1e-3, "scale": 1.0},
    {"learning_rate": 1e-3, "scale": 3.0},
    {"learning_rate": 1e-3, "scale": 6.0},
)


def erase(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    budget: Budget,
    *,
    seed: int = 0,
    learning_rate: float = 1e-4,
    scale: float = 1.0,
    epochs: float | None = None,
) -> Erased:
    """Learn the forget set until the budget is used up or it was seen `epochs` times, and subtract what was learnt."""
    run = Training(model, tokenizer, forget, retain, budget, seed=seed)
    run.descend(lambda: run.read(run.forget.take()).cross_entropy, learning_rate, epochs)
    with torch.random.fork_rng(devices=[]):  # a new adapter starts at random before it is filled
        run.model.add_weighted_adapter([LEARNT], [-scale], NEGATED, combination_type="cat")
    run.model.set_adapter(NEGATED)
    run.model.delete_adapter(LEARNT)
    return run.erased()
