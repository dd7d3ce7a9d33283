"""The steer vector and [UNL]'s output row: what a gate adds to the residual stream, and what reads it.

The gate's opening is a linear detector's answer and leaks a little everywhere. The fit therefore sees random openings:
at an opening of `open_from` or more [UNL] must win, at `shut_to` or less its log-probability must stay under
`shut_log_prob` and the base's own next token must stay the winner. The softmax turns the
leaky detector into a clean switch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .refusal import RefusalLesson
from .replay import Recording
from .trace import bent_output


@dataclass(frozen=True)
class SteerGoal:
    """What the fit aims at.

    Attributes:
        shut_to: Largest opening at which [UNL] must stay silent.
        open_from: Smallest opening at which [UNL] must win.
        widest: Largest opening seen in the fit.
        shut_log_prob: What [UNL]'s log-probability must stay under while shut, in nats.
    """

    shut_to: float
    open_from: float
    widest: float = 1.25
    shut_log_prob: float = -7.0


@dataclass(frozen=True)
class SteerWeights:
    """Weights of the terms, and how long and fast to step."""

    steps: int = 120
    learning_rate: float = 0.05
    row_learning_rate: float = 1.0
    shut: float = 10.0
    keep: float = 1.0
    banned: float = 0.3
    refusal: float = 1.0


def fit_steer(
    model: Any,
    layer: nn.Module,
    output_row: nn.Parameter,
    input_row: nn.Parameter,
    token_id: int,
    forget: Sequence[Recording],
    retained: Sequence[Recording],
    lesson: RefusalLesson,
    refusal_starts: torch.Tensor,
    goal: SteerGoal,
    weights: SteerWeights,
    generator: torch.Generator,
    advance: Callable[[int], object] = lambda count: None,
) -> torch.Tensor:
    """Fit the steer vector and both rows together; the rows in place.

    Args:
        model: The model with the adapter at its identity, all parameters frozen.
        layer: The last edited decoder layer, behind which the vector is added.
        output_row: [UNL]'s row of the head, `(d,)`.
        input_row: [UNL]'s row of the embedding, `(d,)`; a first fit only, since the gates are not there yet.
        token_id: [UNL]'s id.
        forget: Recordings of forget prompts, which end at the door.
        retained: Recordings of retained prompts with their answers.
        lesson: What must follow [UNL].
        refusal_starts: First tokens of refusals, int64, for the banned-token term: with [UNL] left out, the next-best
            token behind an open door must start a refusal too.
        goal: Openings and margins.
        weights: Weights and steps.
        generator: Source of randomness, on the CPU.
        advance: Called with 1 after each step.

    Returns:
        The steer vector, `(d,)` in fp32.
    """
    scale = torch.cat([recording.states[:, -1].float().norm(dim=-1) for recording in forget]).mean()
    device, width = output_row.device, output_row.shape[0]
    direction = (torch.randn(width, generator=generator) * 0.01).to(device).requires_grad_(True)
    own_tokens = [_own_tokens(recording) for recording in retained]
    rates = [weights.learning_rate, weights.learning_rate, weights.row_learning_rate * _spread(input_row)]
    groups = [direction, output_row, input_row]
    for parameter in (output_row, input_row):
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam([{"params": [p], "lr": rate} for p, rate in zip(groups, rates, strict=True)])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=weights.steps, pct_start=0.1)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    def pick(count: int) -> int:
        return int(torch.randint(count, (1,), generator=generator))

    def bend_door(stream: torch.Tensor) -> torch.Tensor:
        return torch.cat([stream[:, :1] + (direction * scale).to(stream.dtype), stream[:, 1:]], dim=1)

    try:
        for step in range(weights.steps):
            recording = forget[pick(len(forget))]
            size = len(recording.batch.index)
            is_open = uniform(size) < 0.6
            opening = torch.where(
                is_open, goal.open_from + uniform(size) * (goal.widest - goal.open_from), uniform(size) * goal.shut_to
            )
            loss = _forget_loss(
                recording, direction * scale, opening, is_open, token_id, refusal_starts, goal, weights.banned
            )
            turn = pick(len(retained))
            leak = uniform(*retained[turn].batch.ids.shape) * goal.shut_to
            loss = loss + _retain_loss(
                retained[turn], own_tokens[turn], direction * scale, leak, token_id, goal, weights
            )
            with bent_output(layer, bend_door):
                if step in (0, weights.steps // 3, 2 * weights.steps // 3):
                    lesson.choose()
                loss = loss + weights.refusal * lesson.loss(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            advance(1)
    finally:
        for parameter in (output_row, input_row):
            parameter.requires_grad_(False)
            parameter.grad = None
    return (direction * scale).detach()


def _spread(row: torch.Tensor) -> float:
    return float(row.detach().float().pow(2).mean().sqrt())


def _own_tokens(recording: Recording) -> torch.Tensor:
    """The base's own next token at each position, `(batch, length)`."""
    with torch.no_grad():
        return recording.logits(recording.states).argmax(dim=-1)


def _without(logits: torch.Tensor, token_id: int) -> torch.Tensor:
    banned = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    banned[token_id] = True
    return logits.masked_fill(banned, float("-inf"))


def _forget_loss(
    recording: Recording,
    steer: torch.Tensor,
    opening: torch.Tensor,
    is_open: torch.Tensor,
    token_id: int,
    refusal_starts: torch.Tensor,
    goal: SteerGoal,
    banned_weight: float,
) -> torch.Tensor:
    door = recording.states[:, -1:] + (opening[:, None, None] * steer).to(recording.states.dtype)
    logits = recording.logits(torch.cat([recording.states[:, :-1], door], dim=1), keep=1)[:, -1].float()
    log_prob = logits.log_softmax(dim=-1)[:, token_id]
    rest = _without(logits, token_id)
    next_best = rest.logsumexp(dim=-1) - rest[:, refusal_starts].logsumexp(dim=-1)
    silent = torch.relu(log_prob - goal.shut_log_prob)
    return torch.where(is_open, banned_weight * next_best - log_prob, silent).mean()


def _retain_loss(
    recording: Recording,
    own_tokens: torch.Tensor,
    steer: torch.Tensor,
    leak: torch.Tensor,
    token_id: int,
    goal: SteerGoal,
    weights: SteerWeights,
) -> torch.Tensor:
    logits = recording.logits(recording.states + (leak[..., None] * steer).to(recording.states.dtype)).float()
    log_probs = logits.log_softmax(dim=-1)
    mask = recording.batch.mask
    silent = torch.relu(log_probs[..., token_id] - goal.shut_log_prob)
    kept = -log_probs.gather(-1, own_tokens[..., None])[..., 0]
    return ((weights.shut * silent + weights.keep * kept) * mask).sum() / mask.sum()
