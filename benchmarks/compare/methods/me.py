"""ME + GD: maximised entropy (Yuan et al., arXiv 2410.08109, section 4.1).

    L(θ) = alpha E_{(x, y) ∈ F} [ KL( U || p_θ(· | x, y_<t) ) ] - λ E_{(x, y) ∈ R} [ log p_θ(y | x) ]

U is the uniform distribution over the vocabulary. This is the divergence that the authors' program computes; the other
direction, the entropy itself, has hardly a gradient if the model is certain. The paper has alpha = 0.1 and λ = 1, and
takes the tokens of the questions too; here the means are over those of the answers. As published it trains all weights;
here it is a LoRA.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..training import Training, trained_with

GRID: tuple[dict[str, Any], ...] = (
    {"learning_rate": 1e-4, "forget_weight": 0.1, "retain_weight": 1.0},
    {"learning_rate": 1e-3, "forget_weight": 0.1, "retain_weight": 1.0},
    {"learning_rate": 3e-3, "forget_weight": 0.1, "retain_weight": 5.0},
    {"learning_rate": 1e-3, "forget_weight": 0.1, "retain_weight": 5.0},
)


def loss(run: Training, *, forget_weight: float = 0.1, retain_weight: float = 1.0) -> torch.Tensor:
    """The loss of one step."""
    answers = run.read(run.forget.take())
    log_probs = answers.logits.log_softmax(dim=-1)
    divergence = -math.log(log_probs.shape[-1]) - log_probs.mean(dim=-1)  # KL(U || p)
    return forget_weight * answers.mean(divergence) + retain_weight * run.retain_loss()


erase = trained_with(loss)
