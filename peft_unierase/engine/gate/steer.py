"""The steer vector and [UNL]'s output row: what a gate adds to the residual stream, and what reads it.

The vector is added at the door alone, and attention carries it on: every answer position of the layers above reads the
door's state. The fit asks for that. It sees the whole answer, and [UNL] must win at each of its positions, so that
whoever bans the first [UNL] or puts words into the model's mouth meets it again at the next token.

A gate's opening is a linear detector's answer and leaks a little everywhere. The fit therefore sees random openings: at
`open_from` or more [UNL] must win, at `shut_to` or less its log-probability must stay under `shut_log_prob` and the
base's own next token must stay the winner. The softmax turns the leaky detector into a clean switch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..refusal import RefusalLesson, without
from ..replay import Recording
from ..trace import bent_output
from .answered import Answered


@dataclass(frozen=True)
class SteerGoal:
    """What the fit aims at.

    Attributes:
        shut_to: Largest opening at which [UNL] must stay silent.
        open_from: Smallest opening at which [UNL] must win.
        widest: Largest opening seen in the fit.
        noise: Standard deviation of the openings seen where no gate should open.
        stray: Share of positions at which a shut gate leaks anything up to `shut_to`; the door always may.
        shut_log_prob: What [UNL]'s log-probability must stay under while shut, in nats.
    """

    shut_to: float
    open_from: float
    widest: float = 1.25
    noise: float = 0.1
    stray: float = 0.2
    shut_log_prob: float = -7.0


@dataclass(frozen=True)
class SteerWeights:
    """Weights of the terms, and how long and fast to step."""

    steps: int = 120
    learning_rate: float = 0.05
    row_learning_rate: float = 1.0
    behind: float = 1.0
    shut: float = 10.0
    keep: float = 1.0
    banned: float = 1.0
    refusal: float = 1.0
    banned_refusal: float = 1.0


def fit_steer(
    model: Any,
    layer: nn.Module,
    output_row: nn.Parameter,
    input_row: nn.Parameter,
    token_id: int,
    forget: Sequence[Answered],
    retained: Sequence[Answered],
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
        forget: Forget prompts with their answers.
        retained: Retained prompts with their answers.
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
    scale = torch.cat([_states_at(item) for item in forget]).norm(dim=-1).mean()
    device, width = output_row.device, output_row.shape[0]
    direction = (torch.randn(width, generator=generator) * 0.01).to(device).requires_grad_(True)
    own_tokens = [_own_tokens(item.recording) for item in retained]
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

    def leaks(item: Answered) -> torch.Tensor:
        """Openings of shut gates: noise, and somewhere more of it."""
        shape = item.recording.batch.ids.shape
        noise = (torch.randn(*shape, generator=generator) * goal.noise).to(device)
        stray = (uniform(*shape) < goal.stray) | item.at_door()
        return torch.where(stray, uniform(*shape) * goal.shut_to, noise)

    def bend_door(stream: torch.Tensor) -> torch.Tensor:
        return torch.cat([stream[:, :1] + (direction * scale).to(stream.dtype), stream[:, 1:]], dim=1)

    try:
        for step in range(weights.steps):
            steer = direction * scale
            item = forget[pick(len(forget))]
            shape = item.recording.batch.ids.shape
            is_open = (uniform(*shape) < 0.5) & (item.at_door() | item.behind_door())
            wide = goal.open_from + uniform(*shape) * (goal.widest - goal.open_from)
            opening = torch.where(is_open, wide, leaks(item))
            loss = _forget_loss(item, steer, opening, is_open, token_id, refusal_starts, goal, weights)
            turn = pick(len(retained))
            leak = leaks(retained[turn])
            loss = loss + _retain_loss(retained[turn], own_tokens[turn], steer, leak, token_id, goal, weights)
            with bent_output(layer, bend_door):
                if step in (0, weights.steps // 3, 2 * weights.steps // 3):
                    lesson.choose()
                banned = step % 2 == 1
                loss = loss + (weights.banned_refusal if banned else weights.refusal) * lesson.loss(step // 2, banned)
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


def _states_at(item: Answered) -> torch.Tensor:
    return item.recording.states[item.at_door()].float()


def _own_tokens(recording: Recording) -> torch.Tensor:
    """The base's own next token at each position, `(batch, length)`."""
    with torch.no_grad():
        return recording.logits(recording.states).argmax(dim=-1)


def _bent(recording: Recording, opening: torch.Tensor, steer: torch.Tensor) -> torch.Tensor:
    """Logits with the steer vector added, `(batch, length, vocabulary)` in fp32."""
    return recording.logits(recording.states + (opening[..., None] * steer).to(recording.states.dtype)).float()


def _forget_loss(
    item: Answered,
    steer: torch.Tensor,
    opening: torch.Tensor,
    is_open: torch.Tensor,
    token_id: int,
    refusal_starts: torch.Tensor,
    goal: SteerGoal,
    weights: SteerWeights,
) -> torch.Tensor:
    logits = _bent(item.recording, opening, steer)
    log_prob = logits.log_softmax(dim=-1)[..., token_id]
    rest = without(logits, token_id)
    next_best = rest.logsumexp(dim=-1) - rest[..., refusal_starts].logsumexp(dim=-1)
    silent = torch.relu(log_prob - goal.shut_log_prob)
    losses = torch.where(is_open, weights.banned * next_best - log_prob, silent)
    return _mean(losses, item.at_door()) + weights.behind * _mean(losses, item.behind_door())


def _retain_loss(
    item: Answered,
    own_tokens: torch.Tensor,
    steer: torch.Tensor,
    leak: torch.Tensor,
    token_id: int,
    goal: SteerGoal,
    weights: SteerWeights,
) -> torch.Tensor:
    log_probs = _bent(item.recording, leak, steer).log_softmax(dim=-1)
    silent = torch.relu(log_probs[..., token_id] - goal.shut_log_prob)
    kept = -log_probs.gather(-1, own_tokens[..., None])[..., 0]
    return _mean(weights.shut * silent + weights.keep * kept, item.recording.batch.mask)


def _mean(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return (values * where).sum() / where.sum()
