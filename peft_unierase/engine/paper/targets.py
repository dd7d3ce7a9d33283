"""Stage II, second part: what each fact's residual stream must become so that [UNL] comes next.

As in MEMIT (arXiv 2210.07229, section 4.3.2), which UniErase (arXiv 2505.15674, section 3.3) builds on: every fact has
a change of its own at the last edited layer, at the subject's last token, found by gradient steps with weight decay and
a norm clamp. All facts step together, a batch at a time, from the change that `output_row` found for them in common;
each step asks in one of the formats, and a fact that has arrived in all of them leaves its batches, so that steps go
where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from .output_row import CHANGE_DECAY, CHANGE_LEARNING_RATE, LARGEST_CHANGE
from .tail import Tail

START = 0.5  # where a fact's change starts, as a share of the one that the output row was fitted with
ARRIVED = 0.01  # nats: a fact has arrived if the loss at each of its answer starts is below this


@dataclass(frozen=True)
class Targets:
    """What stage II aims at.

    Attributes:
        vectors: The stream's value at each prompt's mark behind the last edited layer, `(prompts, d)` in fp32.
        loss: Mean of `-log p([UNL])` at the answer starts, each when it was last asked, in nats.
        refusal_rate: Share of answer starts at which [UNL] was likeliest then.
    """

    vectors: torch.Tensor
    loss: float
    refusal_rate: float


def find_targets(
    tails: Sequence[Sequence[Tail]],
    facts: torch.Tensor,
    common: torch.Tensor,
    token_id: int,
    most_steps: int,
    advance: Callable[[int], Any] = lambda count: None,
) -> Targets:
    """Find one change a fact, shared by its prompts.

    Args:
        tails: All prompts, recorded on the base, for each format the batches of its prompts.
        facts: Which fact each prompt asks about, `(prompts,)`, int64.
        common: The change to start from, `(d,)`.
        token_id: [UNL]'s id.
        most_steps: Gradient steps, at the most.
        advance: Called with 1 after each step.
    """
    count, width = int(facts.max()) + 1, len(common)
    start = common.new_zeros(len(facts), width)
    for tail in chain(*tails):
        start[tail.batch.index] = tail.marked().float()
    prompts = torch.bincount(facts, minlength=count)
    norm = start.new_zeros(count).index_add_(0, facts, start.norm(dim=-1)) / prompts

    changes = (START * common).expand(count, -1).clone().requires_grad_(True)
    rate = CHANGE_LEARNING_RATE * float(norm.mean()) / width**0.5
    optimizer = torch.optim.Adam([changes], lr=rate)
    nats = start.new_full((len(facts),), float("inf"))
    refused = torch.zeros(len(facts), dtype=torch.bool, device=facts.device)
    steps = max(most_steps, len(tails) - 1)  # every format is asked in once at least
    for step in range(steps + 1):
        optimizer.zero_grad()
        for tail in tails[step % len(tails)]:
            index = torch.tensor(tail.batch.index, device=facts.device)
            with torch.set_grad_enabled(step < steps):
                losses, hits = tail.losses(changes[facts[index]], token_id)
            if step < steps:
                losses.sum().backward()
            nats[index], refused[index] = losses.detach(), hits
        waiting = start.new_zeros(count).scatter_reduce_(0, facts, nats, "amax") >= ARRIVED
        tails = [_still(asked, waiting[facts].tolist()) for asked in tails]
        if step == steps or not any(tails):
            break
        decay = CHANGE_DECAY / len(tails)
        (decay * (changes.square().sum(dim=-1) / norm.square()).sum()).backward()
        arrived = changes.detach()[~waiting].clone()
        optimizer.step()
        with torch.no_grad():
            changes *= (LARGEST_CHANGE * norm / changes.norm(dim=-1).clamp(min=1e-12)).clamp(max=1.0)[:, None]
            changes[~waiting] = arrived  # Adam goes on for a while without a gradient
        advance(1)
    return Targets(start + changes.detach()[facts], float(nats.mean()), float(refused.float().mean()))


def _still(tails: Sequence[Tail], waiting: Sequence[bool]) -> list[Tail]:
    """What is left of the tails without the prompts of facts that have arrived."""
    left = []
    for tail in tails:
        keep = [row for row, index in enumerate(tail.batch.index) if waiting[index]]
        if keep:
            left.append(tail if len(keep) == len(tail.batch.index) else tail.narrowed(keep))
    return left
