"""DPO to refusals, with GD (Rafailov et al., arXiv 2305.18290, equation 7; on TOFU: arXiv 2401.06121, section 4).

    L(θ) = - 2/β E [ log sigmoid( β log( p_θ(y_r | x) / p_0(y_r | x) ) - β log( p_θ(y | x) / p_0(y | x) ) ) ]
           - λ E_{(x, y) ∈ R} [ log p_θ(y | x) ]

`y_r` is a refusal that is drawn for each forget fact, `p_0` the model before. β is 0.1, as in TOFU. The factor 2/β puts
the loss on the scale of NPO's, as the published comparisons do. As published it trains all weights; here it is a LoRA.
This is the loss itself and not `trl`: its trainer brings its own batches and prompt formats, so that more than the
method would be compared.
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
    declined = run.declined(questions)
    lost = run.read(questions).sums - run.reference(questions).sums
    won = run.read(declined).sums - run.reference(declined).sums
    return -2 / beta * logsigmoid(beta * (won - lost)).mean() + retain_weight * run.retain_loss()


erase = trained_with(loss)
