"""The course of a learning rate: up to its highest in the first of the steps, then down to 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def one_cycle(
    optimizer: torch.optim.Optimizer, highest: float | Sequence[float], steps: int, rising: float = 0.1
) -> torch.optim.lr_scheduler.LRScheduler:
    """A one-cycle schedule for any number of steps, 1 or more.

    Args:
        optimizer: What it is for.
        highest: The highest rate, or that of each group of parameters.
        steps: Gradient steps.
        rising: Share of them in which the rate rises. Where that is one step or less it starts high: torch would divide
            by 0 there, and leave a single step no rate at all.
    """
    pct_start = rising if rising * steps > 1 else 0.0
    rates = highest if isinstance(highest, float) else list(highest)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=max(2, steps), pct_start=pct_start)
