"""IDK fine-tuning with GD: answer forget questions with "I don't know" (TOFU, arXiv 2401.06121, section 4).

    L(θ) = - E_{x ∈ F} [ log p_θ(y_r | x) ] - λ E_{(x, y) ∈ R} [ log p_θ(y | x) ]

`y_r` is a refusal that is drawn for each forget fact; λ is 1. The means are over the tokens of the answers. As
published it trains all weights; here it is a LoRA.
"""

from __future__ import annotations

from typing import Any

import torch

from ..training import Training, trained_with

GRID: tuple[dict[str, Any], ...] = (
    {"learning_rate": 1e-4, "retain_weight": 1.0},
    {"learning_rate": 1e-3, "retain_weight": 1.0},
    {"learning_rate": 3e-3, "retain_weight": 1.0},
    {"learning_rate": 1e-3, "retain_weight": 5.0},
)


def loss(run: Training, *, retain_weight: float = 1.0) -> torch.Tensor:
    """The loss of one step."""
    return run.read(run.declined(run.forget.take())).cross_entropy + retain_weight * run.retain_loss()


erase = trained_with(loss)
