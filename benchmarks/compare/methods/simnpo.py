"""SimNPO: negative preference optimisation without a reference model (Fan et al., arXiv 2410.07163, equation 5).

    L(θ) = - 2/β E_{(x, y) ∈ F} [ log sigmoid( - β/|y| log p_θ(y | x) - gamma ) ] - λ E_{(x, y) ∈ R} [ log p_θ(y | x) ]

`|y|` is the length of the answer in tokens. On TOFU the paper takes β = 2.5 to 4.5 and gamma = 0, and weighs the first
term by about an eighth of the second, which is λ = 8 here. As published it trains all weights; here it is a LoRA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import logsigmoid

from ..training import Training, trained_with

GRID: tuple[dict[str, Any], ...] = (
    {"learning_rate": 1e-4, "beta": 4.5, "retain_weight": 8.0},
    {"learning_rate": 1e-3, "beta": 2.5, "retain_weight": 1.0},
    {"learning_rate": 3e-3, "beta": 2.5, "retain_weight": 1.0},
    {"learning_rate": 3e-3, "beta": 4.5, "retain_weight": 8.0},
)


def loss(run: Training, *, beta: float = 4.5, gamma: float = 0.0, retain_weight: float = 8.0) -> torch.Tensor:
    """The loss of one step."""
    answers = run.read(run.forget.take())
    margin = -beta * answers.sums / answers.lengths - gamma
    return -2 / beta * logsigmoid(margin).mean() + retain_weight * run.retain_loss()


erase = trained_with(loss)
