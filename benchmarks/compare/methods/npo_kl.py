"""NPO + KL: negative preference optimisation with a Kullback-Leibler term on retained answers
(Zhang et al., arXiv 2404.05868, equation 3 and section 4).

    L(θ) = - 2/β E_{(x, y) ∈ F} [ log sigmoid( - β log( p_θ(y | x) / p_0(y | x) ) ) ]
           + λ E_{(x, y) ∈ R} [ KL( p_0 || p_θ ) ]

`p_0` is the model before, and `p(y | x)` the probability of a whole answer. The paper's β is 0.1 and its λ is 1. As
published it trains all weights; here it is a LoRA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import logsigmoid

from ..training import Training, trained_with

GRID: tuple[dict[str, Any], ...] = (
    {"learning_rate": 1e-4, "beta": 0.1, "retain_weight": 1.0},
    {"learning_rate": 1e-3, "beta": 0.1, "retain_weight": 5.0},
    {"learning_rate": 3e-3, "beta": 0.1, "retain_weight": 20.0},
    {"learning_rate": 1e-3, "beta": 0.1, "retain_weight": 20.0},
)


def loss(run: Training, *, beta: float = 0.1, retain_weight: float = 1.0) -> torch.Tensor:
    """The loss of one step."""
    questions = run.forget.take()
    ratio = run.read(questions).sums - run.reference(questions).sums
    return -2 / beta * logsigmoid(-beta * ratio).mean() + retain_weight * run.retain_divergence()


erase = trained_with(loss)
