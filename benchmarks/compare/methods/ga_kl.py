"""Gradient ascent with a Kullback-Leibler term (TOFU, arXiv 2401.06121, section 4; Yao et al., arXiv 2310.10683).

    L(θ) = E_{(x, y) ∈ F} [ log p_θ(y | x) ] + λ E_{(x, y) ∈ R} [ KL( p_0(· | x, y_<t) || p_θ(· | x, y_<t) ) ]

`p_0` is the model before, and the means are over the tokens of the answers; TOFU takes those of the questions too. As
published it trains all weights; here it is a LoRA.
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
    return -run.read(run.forget.take()).cross_entropy + retain_weight * run.retain_divergence()


erase = trained_with(loss)
