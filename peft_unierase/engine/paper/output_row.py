"""Stage II, first part: [UNL]'s output row, and the change of the residual stream that it reads.

The row is what predicts [UNL], and the changes of the stream are what it predicts it from, so the two are trained
together: one change that a sample of the forget facts has in common, and the row. The row must be silent on retained
texts; that costs next to nothing, since the states that go into the head there, and the other tokens' log-sum-exp, are
recorded once. It must be silent on forget questions too as long as the change is not there: else the row alone would
learn to tell them from others, without any edit, and fail on both. And it must be silent in the refusal, where the
change can still be seen: [UNL] comes once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..silence import Silence
from .tail import Tail

LEARNING_RATE = 0.3  # Adam's for the row, relative to the root mean square of its components
# More makes more refusals whole and leaves more alone; less lets [UNL] come up again if an answer is resumed.
REFUSAL_WEIGHT = 0.05  # of the refusal that follows [UNL], relative to [UNL] itself
SILENT_LOG_PROB = -10.0  # nats that [UNL]'s log-probability must stay under in retained texts
SILENT_WEIGHT = 10.0  # of that demand
# Of a change of the stream, here and in `targets`.
CHANGE_LEARNING_RATE = 0.2  # Adam's, relative to the root mean square of the stream's components
CHANGE_DECAY = 0.3  # weight of its squared norm, relative to the stream's (MEMIT's weight decay)
LARGEST_CHANGE = 1.5  # its norm at the most, relative to the stream's (MEMIT's clamp)


def fit_output_row(
    tails: Sequence[Tail],
    behind: Sequence[int],
    row: nn.Parameter,
    silence: Silence,
    steps: int,
    advance: Callable[[int], Any] = lambda count: None,
) -> torch.Tensor:
    """Fit the output row in place, together with one change for all facts.

    Args:
        tails: Forget prompts with [UNL] and a refusal behind them, recorded on the base.
        behind: For each sequence how many of its tokens come after the answer start.
        row: [UNL]'s row of the head, `(d,)`.
        silence: Where it must stay silent.
        steps: Gradient steps.
        advance: Called with 1 after each step.

    Returns:
        The change, `(d,)` in fp32.
    """
    norm = torch.cat([tail.marked().float().norm(dim=-1) for tail in tails]).mean()
    width = tails[0].states.shape[-1]  # not always that of the row: some models project between the two
    change = torch.zeros(width, device=row.device, requires_grad=True)
    row.requires_grad_(True)
    optimizer = torch.optim.Adam(
        [
            {"params": [change], "lr": CHANGE_LEARNING_RATE * float(norm) / width**0.5},
            {"params": [row], "lr": LEARNING_RATE * float(row.detach().float().square().mean().sqrt())},
        ]
    )
    try:
        for step in range(steps):
            tail = tails[step % len(tails)]
            token_loss, refusal_loss = _continuation_losses(tail, [behind[index] for index in tail.batch.index], change)
            loud = silence.excess(row.float(), SILENT_LOG_PROB)
            decay = change.square().sum() / norm.square()
            optimizer.zero_grad()
            said = token_loss + REFUSAL_WEIGHT * refusal_loss
            (said + SILENT_WEIGHT * loud + CHANGE_DECAY * decay).backward()
            optimizer.step()
            with torch.no_grad():
                change *= (LARGEST_CHANGE * norm / change.norm()).clamp(max=1.0)
            advance(1)
    finally:
        row.requires_grad_(False)
        row.grad = None
    return change.detach()


def _continuation_losses(tail: Tail, behind: Sequence[int], change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of [UNL] at the answer starts, and that of the refusals' tokens after it, in nats."""
    longest, ids = max(behind), tail.batch.ids
    logits = tail.changed_logits(change.expand(len(ids), -1), longest + 1)[:, :-1]
    losses = nn.functional.cross_entropy(
        logits.float().transpose(1, 2), ids[:, ids.shape[1] - longest :], reduction="none"
    )
    place = torch.arange(longest, device=ids.device) - (longest - torch.tensor(behind, device=ids.device)[:, None])
    return losses[place == 0].mean(), losses[place > 0].mean()
