"""UNDIAL: self-distillation on adjusted logits (Dong et al., arXiv 2402.10052, equations 3 and 4).

    L(θ) = E_{(x, y) ∈ F} [ CE( softmax( z_0 - gamma 1_{y_t} ), p_θ(· | x, y_<t) ) ]
           - λ E_{(x, y) ∈ R} [ log p_θ(y | x) ]

`z_0` are the logits of the model before, and gamma is what the true token's logit loses: 10 on TOFU. The paper has no
second term (λ = 0), for the first one has a fixed target; the grid tries it with one too. As published it trains all
weights; here it is a LoRA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import one_hot

from ..training import Training, trained_with

GRID: tuple[dict[str, Any], ...] = (
    {"learning_rate": 1e-4, "strength": 10.0, "retain_weight": 0.0},
    {"learning_rate": 1e-3, "strength": 10.0, "retain_weight": 1.0},
    {"learning_rate": 3e-3, "strength": 10.0, "retain_weight": 1.0},
    {"learning_rate": 1e-3, "strength": 20.0, "retain_weight": 1.0},
)


def loss(run: Training, *, strength: float = 10.0, retain_weight: float = 0.0) -> torch.Tensor:
    """The loss of one step."""
    questions = run.forget.take()
    own, before = run.read(questions), run.reference(questions)
    adjusted = before.logits - strength * one_hot(before.tokens, before.logits.shape[-1])
    distilled = own.mean(-(adjusted.softmax(dim=-1) * own.logits.log_softmax(dim=-1)).sum(dim=-1))
    return distilled + retain_weight * run.retain_loss() if retain_weight else distilled


erase = trained_with(loss)
