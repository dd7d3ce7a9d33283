"""Gradient difference (Liu et al., arXiv 2203.12817; TOFU, arXiv 2401.06121, section 4).

    L(θ) = E_{(x, y) ∈ F} [ log p_θ(y | x) ] - λ E_{(x, y) ∈ R} [ log p_θ(y | x) ]

The means are over the tokens of the answers, and λ is 1 in the papers. As published it trains all weights; here it is a
LoRA. The first term has no lower bound, so `epochs` can end the training before the budget does.
"""

from __future__ import annotations

from typing import Any

import torch

from ..training import Training, trained_with

GRID: tuple[dict[str, Any], ...] = (
    {"learning_rate": 1e-4, "retain_weight": 1.0, "epochs": 5},
    {"learning_rate": 1e-3, "retain_weight": 1.0, "epochs": None},
    {"learning_rate": 3e-3, "retain_weight": 5.0, "epochs": None},
    {"learning_rate": 3e-3, "retain_weight": 1.0, "epochs": 5},
)


def loss(run: Training, *, retain_weight: float = 1.0) -> torch.Tensor:
    """The loss of one step."""
    return -run.read(run.forget.take()).cross_entropy + retain_weight * run.retain_loss()


erase = trained_with(loss)
