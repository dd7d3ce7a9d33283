"""IDK + AP: IDK fine-tuning with answer preservation (Yuan et al., arXiv 2410.08109, section 4.2).

    L(θ) = - E_{x ∈ F} [ log p_θ(y_r | x) ] - λ/β E_{(x, y) ∈ R} [ log sigmoid( β log( p_θ(y | x) / p_θ(y_r | x) ) ) ]

`y_r` is a refusal that is drawn for each fact, of the retain set too: what stays must be likelier than a refusal. The
paper has β = 0.1 and λ = 1. As published it trains all weights; here it is a LoRA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import logsigmoid

from ..training import Training, trained_with

GRID: tuple[dict[str, Any], ...] = (
    {"learning_rate": 1e-4, "beta": 0.1, "retain_weight": 1.0},
    {"learning_rate": 1e-3, "beta": 0.1, "retain_weight": 1.0},
    {"learning_rate": 3e-3, "beta": 0.1, "retain_weight": 1.0},
    {"learning_rate": 1e-3, "beta": 0.1, "retain_weight": 5.0},
)


def loss(run: Training, *, beta: float = 0.1, retain_weight: float = 1.0) -> torch.Tensor:
    """The loss of one step."""
    kept = run.retain.take()
    preferred = run.read(kept).sums - run.read(run.declined(kept)).sums
    preservation = -logsigmoid(beta * preferred).mean() / beta
    return run.read(run.declined(run.forget.take())).cross_entropy + retain_weight * preservation


erase = trained_with(loss)
