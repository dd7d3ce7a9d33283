"""The course of a learning rate: up to its highest in the first of the steps, then down to 0."""

from __future__ import annotations

import torch

RISING = 0.1  # share of the steps in which the rate rises


def one_cycle(optimizer: torch.optim.Optimizer, highest: float, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A one-cycle schedule for any number of steps, 1 or more.

    If the rate would rise for one step or less it starts high: torch would divide by 0 there, and leave a single step
    no rate at all.

    Args:
        optimizer: What it is for.
        highest: The highest rate.
        steps: Gradient steps.
    """
    rising = RISING if RISING * steps > 1 else 0.0
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=max(2, steps), pct_start=rising)
