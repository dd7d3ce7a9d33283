"""The steer vector and [UNL]'s output row: what a gate adds to the residual stream, and what reads it.

Detectors are solved on the base's keys, so how far each of them opens is known before there is a vector to add. The fit
works with those very openings, at every edited layer and every position. Where [UNL] shall win, evidence from the door
and from every answer token before adds up: attention carries on what an open gate wrote, and each further token needs
less of an opening than the one before. Where a gate leaks on what must stay, the vector must be without effect. The
softmax turns a leaky linear detector into a clean switch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..bounds import check_at_least, check_positive
from ..logits import Logits
from ..refusal import RefusalLesson, without
from ..schedule import one_cycle
from ..trace import bent_output
from .answered import Answered

WAKING = 0.25  # share of the steps in which the loss on forget positions comes to saturate


@dataclass(frozen=True)
class SteerSettings:
    """How the steer vector is fitted.

    Attributes:
        steps: Gradient steps.
        learning_rate: Adam's highest, for the vector (relative to the residual stream's size) and the output row (of a
            head whose outputs are logits; more where the model makes less of them).
        row_learning_rate: The same for the input row, relative to its components.
        forget_gain: Range of the factor on each forget answer's openings. Below 1, since the gates that are written in
            the end are held further shut.
        retain_gain: Range of the factor on each retained answer's openings. Above 1, since a gate leaks more on what
            its detector was not solved on.
        noise: Standard deviation of what is added to retained openings besides.
        leak: Largest opening that is put, one position in four, on retained answers: a gate that opens no further
            than that must be without effect.
        deaf: Share of the positions behind the door at which the gate is taken to miss its key.
        shut_log_prob: What [UNL]'s log-probability must stay under where nothing is to be declined, in nats.
        saturation: Exponent `q` of the loss `(1 - p^q) / q` on forget positions (generalised cross-entropy, arXiv
            1805.07836): positions that no opening can reach do not drag the others along. It is near 0 at first:
            where [UNL] starts far behind everywhere, a saturated loss would have no gradient to start with.
        declined: Weight of the loss on forget positions.
        retain_every: Steps from one retained batch to the next.
        shut: Weight of the mean excess over `shut_log_prob`.
        keep: Weight of the mean loss in log-probability of the base's own next token.
        worst: Weight of the largest sum of both in each answer.
        banned: Weight of the runners-up, where [UNL] wins: the end of the answer, then the beginning of a refusal.
        refusal: Weight of the refusals that follow [UNL].
    """

    steps: int = 140
    learning_rate: float = 0.05
    row_learning_rate: float = 1.0
    forget_gain: tuple[float, float] = (0.7, 1.1)
    retain_gain: tuple[float, float] = (1.0, 1.3)
    noise: float = 0.05
    leak: float = 0.45
    deaf: float = 0.15
    shut_log_prob: float = -7.0
    saturation: float = 0.3
    declined: float = 1.0
    retain_every: int = 1
    shut: float = 30.0
    keep: float = 10.0
    worst: float = 2.0
    banned: float = 2.0
    refusal: float = 2.0

    def __post_init__(self) -> None:
        check_at_least(1, self, "steps", "retain_every")
        check_positive(self, "learning_rate", "row_learning_rate", "saturation")


def fit_steer(
    layers: Sequence[nn.Module],
    output_row: nn.Parameter,
    input_row: nn.Parameter,
    token_id: int,
    forget: Sequence[Answered],
    retained: Sequence[Answered],
    lesson: RefusalLesson,
    door_openings: Sequence[torch.Tensor],
    next_best: Sequence[torch.Tensor],
    settings: SteerSettings,
    generator: torch.Generator,
    advance: Callable[[int], object] = lambda count: None,
) -> torch.Tensor:
    """Fit the steer vector and both rows together; the rows in place.

    Args:
        layers: The edited decoder layers, from the lowest, with all gates shut.
        output_row: [UNL]'s row of the head, `(d,)`.
        input_row: [UNL]'s row of the embedding, `(d,)`; a first fit only, since the gates are not there yet.
        token_id: [UNL]'s id.
        forget: Forget prompts with their answers, recorded behind the lowest edited layer, with their openings.
        retained: Retained ones.
        lesson: What must follow [UNL].
        door_openings: For each prompt of the lesson the openings from its door on, `(layers, tokens)`.
        next_best: Token ids, int64: with [UNL] left out one of the first must win, with these left out too one of the
            second, and so on.
        settings: See [`SteerSettings`].
        generator: Source of randomness, on the CPU.
        advance: Called with 1 after each step.

    Returns:
        The steer vector, `(d,)` in fp32.
    """
    device = output_row.device
    width = forget[0].recording.states.shape[-1]  # not always that of the rows: some models project between the two
    scale = torch.cat([item.recording.states[item.at_door()].float() for item in forget]).norm(dim=-1).mean().to(device)
    direction = (torch.randn(width, generator=generator) * 0.01).to(device).requires_grad_(True)
    own = [_own(item) for item in retained]
    states, total = torch.cat([one.states for one in own]), torch.cat([one.total for one in own])
    logits_of = Logits(forget[0].recording.model, forget[0].recording.layers)
    often = _hard_ones_often(retained)
    rates = [settings.learning_rate, settings.learning_rate / logits_of.slope]
    rates.append(settings.row_learning_rate * _spread(input_row))
    groups = [direction, output_row, input_row]
    for parameter in (output_row, input_row):
        parameter.requires_grad_(True)
    parts = [{"params": [p], "lr": rate} for p, rate in zip(groups, rates, strict=True)]
    optimizer = torch.optim.Adam(parts, betas=(0.9, 0.99))  # a hard batch is soon forgotten
    schedule = one_cycle(optimizer, rates, settings.steps)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return (low + (high - low) * torch.rand(*shape, generator=generator)).to(device)

    def in_lesson(prompts: Sequence[int], given: Sequence[int]) -> Any:
        openings = [door_openings[index][:, : count + 1] for index, count in zip(prompts, given, strict=True)]
        longest = max(opening.shape[1] for opening in openings)
        padded = [nn.functional.pad(opening, (longest - opening.shape[1], 0)) for opening in openings]
        return _bent(layers, torch.stack(padded, dim=1), direction * scale)

    def quiet_loss() -> torch.Tensor:
        """Where no gate opens the head reads what it reads on the base, and [UNL] must not win there by itself."""
        excess = torch.relu(logits_of.of_token(states, output_row, token_id) - total - settings.shut_log_prob)
        return settings.shut * excess.mean() + settings.worst * excess.max()

    def retain_loss() -> torch.Tensor:
        turn = int(torch.multinomial(often, 1, generator=generator))
        item = retained[turn]
        noise = torch.randn(*item.at_door().shape, generator=generator).to(device) * settings.noise
        gain = uniform(*settings.retain_gain, len(noise), 1)
        leaks = uniform(0, settings.leak, *noise.shape) * (uniform(0, 1, *noise.shape) < 0.25)
        opened = item.openings * gain + (noise + leaks) / len(layers)
        logits = _logits(layers, item, opened, direction * scale)
        return _retain_loss(logits, item, own[turn], token_id, settings)

    lesson.within = in_lesson
    try:
        for step in range(settings.steps):
            steer = direction * scale
            item = forget[int(torch.randint(len(forget), (1,), generator=generator))]
            hears = (uniform(0, 1, *item.at_door().shape) >= settings.deaf) | item.at_door()
            gain = uniform(*settings.forget_gain, len(hears), 1)
            logits = _logits(layers, item, item.openings * gain * hears, steer, item.from_doors_on())
            waking = min(1.0, (step + 1) / (WAKING * settings.steps))
            now = replace(settings, saturation=settings.saturation * waking)
            loss = settings.declined * _forget_loss(logits, item, token_id, next_best, now)

            loss = loss + quiet_loss().to(loss)
            if step % settings.retain_every == 0:
                loss = loss + retain_loss()

            if step == settings.steps // 2:
                lesson.settle()
            loss = loss + settings.refusal * lesson.loss(step)
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


@contextmanager
def _bent(layers: Sequence[nn.Module], openings: torch.Tensor, steer: torch.Tensor) -> Iterator[None]:
    """Add the vector behind each layer, on its first positions, as far as `openings (layers, batch, length)` go."""
    with ExitStack() as stack:
        for layer, opening in zip(layers, openings, strict=True):

            def bend(stream: torch.Tensor, opening: torch.Tensor = opening) -> torch.Tensor:
                there = nn.functional.pad(opening, (0, stream.shape[1] - opening.shape[1]))
                return stream + (there[..., None] * steer).to(stream)

            stack.enter_context(bent_output(layer, bend))
        yield


def _logits(
    layers: Sequence[nn.Module], item: Answered, openings: torch.Tensor, steer: torch.Tensor, keep: int = 0
) -> torch.Tensor:
    """Logits with the steer vector added, `(batch, keep or length, vocabulary)` in fp32."""
    states = item.recording.states
    with _bent(layers[1:], openings[1:], steer):
        return item.recording.logits(states + (openings[0][..., None] * steer).to(states), keep).float()


@dataclass(frozen=True)
class _Own:
    """What the base says on a batch: its own next tokens and their log-probabilities `(batch, length)`.

    `states (n, d)` is what its head reads at each of them, and `total (n,)` the logarithm of what it sums up to.
    """

    tokens: torch.Tensor
    log_probs: torch.Tensor
    states: torch.Tensor
    total: torch.Tensor


@torch.no_grad()
def _own(item: Answered) -> _Own:
    seen: list[torch.Tensor] = []
    model: Any = item.recording.model
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        logits = item.recording.logits(item.recording.states).float()
    finally:
        handle.remove()
    best, mask = logits.log_softmax(dim=-1).max(dim=-1), item.recording.batch.mask.bool()
    return _Own(best.indices, best.values, seen[0][mask].float(), logits.logsumexp(dim=-1)[mask])


def _hard_ones_often(retained: Sequence[Answered]) -> torch.Tensor:
    """How often each batch is to be seen: half of the time any, half of the time those on which gates leak most."""
    widest = torch.stack([item.openings.sum(dim=0).amax(dim=-1).mean().cpu() for item in retained])
    return (20 * widest).softmax(dim=0) + 1 / len(retained)


def _spread(row: torch.Tensor) -> float:
    return float(row.detach().float().pow(2).mean().sqrt())


def _forget_loss(
    logits: torch.Tensor, item: Answered, token_id: int, next_best: Sequence[torch.Tensor], settings: SteerSettings
) -> torch.Tensor:
    banned = torch.tensor([token_id], device=logits.device)
    declined = logits.log_softmax(dim=-1)[..., token_id]
    runners_up = torch.zeros_like(declined)
    for tokens in next_best:
        logits = without(logits, banned)
        banned = tokens.to(logits.device)
        runners_up = runners_up + logits[..., banned].logsumexp(dim=-1) - logits.logsumexp(dim=-1)
    exponent = settings.saturation
    losses = (1 - (exponent * declined).exp()) / exponent - settings.banned * declined.detach().exp() * runners_up
    there = slice(-losses.shape[1], None)
    return _mean(losses, item.at_door()[:, there]) + _mean(losses, item.behind_door()[:, there])


def _retain_loss(
    logits: torch.Tensor,
    item: Answered,
    own: _Own,
    token_id: int,
    settings: SteerSettings,
) -> torch.Tensor:
    mask = item.recording.batch.mask
    log_probs = logits.log_softmax(dim=-1)
    excess = torch.relu(log_probs[..., token_id] - settings.shut_log_prob) * mask
    lost = torch.relu(own.log_probs - log_probs.gather(-1, own.tokens[..., None])[..., 0]) * mask
    worst = (excess + lost).amax(dim=1).mean()
    return settings.shut * _mean(excess, mask) + settings.keep * _mean(lost, mask) + settings.worst * worst


def _mean(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)
