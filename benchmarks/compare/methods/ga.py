"""Gradient ascent (Jang et al., arXiv 2210.01504; TOFU, arXiv 2401.06121, section 4).

    L(θ) = E_{(x, y) ∈ F} [ log p_θ(y | x) ]

The mean is over the tokens of the answers. As published it trains all weights for a few epochs; here it is a LoRA. The
loss has no lower bound and nothing retains, so it is the number of epochs that decides how much of the model is left.
"""

from __future__ import annotations

from typing import Any

import torch

from ..training import Training, trained_with

GRID: tuple[dict[str, Any], ...] = (
    {"learning_rate": 1e-4, "epochs": 5},
    {"learning_rate": 1e-3, "epochs": 5},
    {"learning_rate": 3e-3, "epochs": 3},
    {"learning_rate": 1e-3, "epochs": 10},
)


def loss(run: Training) -> torch.Tensor:
    """The loss of one step."""
    return -run.read(run.forget.take()).cross_entropy


erase = trained_with(loss)
