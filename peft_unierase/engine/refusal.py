"""Teaching [UNL] to be followed by a refusal: which one, the loss that says how it goes, and the last stage.

At first each question is taught the refusal that comes easiest behind it, then all the one that most of them took.
Teaching several to the end leaves the model undecided between their words, and greedy answers then break off into what
should be forgotten.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..prompts import Batch, batches
from .schedule import one_cycle

IGNORE = -100
LEARNT = 0.005
SOME = 8  # batches that say which refusal is taken
HARDEST = 0.3  # weight of the hardest token of each refusal
AT_DOORS = 2 / 3  # share of the lessons that start there
FARTHEST = 12  # answer tokens given before a refusal, at the most


class CachedPrompts:
    """A batch of prompts whose attention cache is kept, so that only the door and what follows has to be run."""

    def __init__(self, model: Any, batch: Batch) -> None:
        self.model, self.batch = model, batch
        with torch.no_grad():
            self.cache = model(
                input_ids=batch.ids[:, :-1],
                attention_mask=batch.mask[:, :-1],
                position_ids=batch.positions[:, :-1],
                use_cache=True,
                logits_to_keep=1,
            ).past_key_values

    def losses(
        self, before: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], bent: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cross-entropy of one text behind each door and what is said before it.

        Args:
            before: Token ids that follow each door, given and not predicted.
            texts: Token ids to be predicted behind these.
            bent: Whether the gradient takes in what is done to the states before the last token that is given. Without
                it these are run like the prompts, which halves the time.

        Returns:
            Summed loss of each text in nats, that of its hardest token, and the number of its tokens, `(batch,)` each.
        """
        batch, device = self.batch, self.batch.ids.device
        read = [[door, *tokens] for door, tokens in zip(batch.ids[:, -1].tolist(), before, strict=True)]
        lead, longest = max(map(len, read)) - 1, max(map(len, texts))
        pairs = zip(read, texts, strict=True)
        fed = [[0] * (lead + 1 - len(r)) + r + list(t[:-1]) + [0] * (longest - len(t)) for r, t in pairs]
        ids = torch.tensor(fed, device=device)
        mask = torch.tensor([[0] * (lead + 1 - len(r)) + [1] * (len(r) + longest - 1) for r in read], device=device)
        targets = torch.tensor([list(t) + [IGNORE] * (longest - len(t)) for t in texts], device=device)
        positions = batch.positions[:, -1:] - 1 + mask.cumsum(-1)
        mask = torch.cat([batch.mask[:, :-1], mask], dim=1)
        # Updating a cache layer assigns new tensors, so a shallow copy keeps the recorded prefix as it is.
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]

        def run(start: int, stop: int) -> torch.Tensor:
            logits: torch.Tensor = self.model(
                input_ids=ids[:, start:stop],
                attention_mask=mask[:, : mask.shape[1] - ids.shape[1] + stop],
                position_ids=positions[:, start:stop].clamp(min=0),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=min(longest, stop - start),
            ).logits
            return logits

        start = 0
        if lead and not bent and torch.is_grad_enabled():
            start = lead
            with torch.no_grad():
                run(0, lead)
        logits = run(start, ids.shape[1])
        loss = nn.functional.cross_entropy(
            logits.float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none"
        )
        return loss.sum(dim=1), loss.amax(dim=1), (targets != IGNORE).sum(dim=1)


def without(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits in which some tokens cannot win, `(..., vocabulary)`."""
    banned = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    banned[tokens.to(logits.device)] = True
    return logits.masked_fill(banned, float("-inf"))


Within = Callable[[Sequence[int], Sequence[int]], AbstractContextManager[None]]


class RefusalLesson:
    """Forget prompts, and for each the refusal to teach it.

    Args:
        model: The model.
        prompts: Token ids of the forget prompts, up to the door.
        answers: Token ids of their answers. Some lessons start inside the answer: whoever puts its first words into
            the model's mouth must hear a refusal too.
        refusals: Token ids of the refusals, end token included.
        token_id: [UNL]'s id.
        pad: Id to pad batches with.
        tokens: Padded prompt tokens per batch.

    Attributes:
        within: Called with the indices of prompts and how many tokens of each answer follow them; gives the context in
            which the model reads these and the refusal, and which the gradient goes through. `None` if there is none.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        refusals: Sequence[Sequence[int]],
        token_id: int,
        pad: int,
        generator: torch.Generator,
        tokens: int = 256,
    ) -> None:
        device = model.get_input_embeddings().weight.device
        self.cached = [CachedPrompts(model, batch) for batch in batches(prompts, pad, device, tokens)]
        self.answers, self.refusals, self.token_id, self.generator = answers, refusals, token_id, generator
        self.chosen: dict[int, list[int]] = {}
        self.within: Within | None = None

    def settle(self) -> None:
        """Teach all prompts one refusal from now on, the one that most of them would be taught now."""
        self.chosen = {}
        some = range(0, len(self.cached), -(-len(self.cached) // SOME))
        taken = Counter(refusal for turn in some for refusal in self._choice(turn))
        self.refusals = [self.refusals[taken.most_common(1)[0][0]]]

    def _choice(self, turn: int) -> list[int]:
        """For each prompt of a batch the refusal whose hardest token is easiest, when the batch has its first turn."""
        prompts = self.cached[turn]
        size = len(prompts.batch.index)
        if len(self.refusals) == 1:
            return [0] * size
        if turn not in self.chosen:
            with torch.no_grad(), self._bent(prompts.batch.index, [0] * size):
                asked = [[self.token_id]] * size
                costs = [prompts.losses(asked, [refusal] * size)[1] for refusal in self.refusals]
            self.chosen[turn] = torch.stack(costs).argmin(dim=0).tolist()
        return self.chosen[turn]

    def loss(self, step: int) -> torch.Tensor:
        """Mean cross-entropy of the chosen refusals in nats per token, on the batch whose turn it is.

        A refusal breaks off at its hardest token, however easy the others are, so that one counts once more.

        Args:
            step: Number of the lesson.
        """
        turn = step % len(self.cached)
        prompts = self.cached[turn]
        given = [self._given(len(self.answers[index])) for index in prompts.batch.index]
        pairs = zip(prompts.batch.index, given, strict=True)
        before = [[*self.answers[index][:length], self.token_id] for index, length in pairs]
        refusals = [self.refusals[choice] for choice in self._choice(turn)]
        with self._bent(prompts.batch.index, given):
            total, hardest, count = prompts.losses(before, refusals, bent=self.within is not None)
        return total.sum() / count.sum() + HARDEST * hardest.mean()

    def _bent(self, prompts: Sequence[int], given: Sequence[int]) -> AbstractContextManager[None]:
        return self.within(prompts, given) if self.within else nullcontext()

    def _given(self, length: int) -> int:
        """How many tokens of the answer come first."""
        draw = float(torch.rand(1, generator=self.generator))
        return int(max(0.0, draw - AT_DOORS) / (1 - AT_DOORS) * min(length, FARTHEST))


def likely_refusals(
    model: Any, prompts: Sequence[Sequence[int]], refusals: Sequence[Sequence[int]], pad: int, count: int
) -> list[int]:
    """Indices of the `count` refusals that come most easily to the model after a few prompts, best first."""
    device = model.get_input_embeddings().weight.device
    cached = [CachedPrompts(model, batch) for batch in batches(prompts, pad, device)]
    costs = []
    with torch.no_grad():
        for refusal in refusals:
            sums = [p.losses([[]] * len(p.batch.index), [refusal] * len(p.batch.index))[0].sum() for p in cached]
            costs.append(sum(map(float, sums)) / len(refusal))
    return sorted(range(len(refusals)), key=lambda index: (costs[index], index))[:count]


@dataclass(frozen=True)
class FreeColumns:
    """Columns of a gate's `B (d, r)` to be trained as one vector, which units that tell [UNL] write.

    Attributes:
        columns: `B`.
        read: What each of its columns has of the vector, `(r,)`; zero for those of other units.
        size: Root mean square of the residual stream behind the layer.
        module: What it takes in is what the units go by, `(batch, length, d)`.
        reader: What answers 1 or more to [UNL] there, `(d,)`.
    """

    columns: nn.Parameter
    read: torch.Tensor
    size: float
    module: nn.Module
    reader: torch.Tensor

    def gradient(self, full: torch.Tensor) -> torch.Tensor:
        """The part of a gradient of `B` that keeps the columns in proportion."""
        read = self.read.to(full)
        return torch.outer(full @ read, read) / (read @ read)

    def rate(self, relative: float) -> float:
        """A learning rate of the columns, from one relative to the stream's size."""
        return relative * self.size * float(self.read.abs().max())


@contextmanager
def _missed(units: Sequence[FreeColumns]) -> Iterator[list[torch.Tensor]]:
    """How far [UNL], where it is the first token that is run with a gradient, falls short of 1 for each of the units,
    `(batch,)`.

    A unit that has lost a few prompts is shut there, and what is shut has no gradient by which it would come back.
    """
    found: list[torch.Tensor] = []

    def hook(reader: torch.Tensor) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def see(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if torch.is_grad_enabled():
                found.append(torch.relu(1 - args[0][:, 0].to(reader) @ reader))

        return see

    handles = [one.module.register_forward_pre_hook(hook(one.reader)) for one in units]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _of_unit_length(gradient: torch.Tensor) -> torch.Tensor:
    return gradient / gradient.norm().clamp(min=1e-12)


def fit_input_row(
    lesson: RefusalLesson,
    row: nn.Parameter,
    *,
    steps: int,
    learning_rate: float,
    more: Sequence[FreeColumns] = (),
    advance: Callable[[int], object] = lambda count: None,
) -> float:
    """The last stage: fit [UNL]'s input row in place, on the edited model (paper, section 3.2, stage I).

    The refusal is generated over states that the edit has changed; fitting on the edited model replaces the paper's
    perturbed weights by the thing itself.

    Args:
        lesson: Prompts and refusals, made on the edited model.
        row: The input row `(d,)`; its present value is where the fit starts.
        steps: Gradient steps at the most; fewer where every batch has been learnt by heart before.
        learning_rate: Adam's highest, relative to the root mean square of the row's components at the start.
        more: What else is to be fitted: vectors that [UNL] writes further up, by units that must go on telling it.
        advance: Called with 1 after each step.

    Returns:
        Mean loss of the last tenth of the steps, in nats per token.
    """
    rates = [learning_rate * float(row.detach().float().pow(2).mean().sqrt())]
    rates += [vector.rate(learning_rate) for vector in more]
    fitted = [row, *(vector.columns for vector in more)]
    for parameter in fitted:
        parameter.requires_grad_(True)
    handles = [vector.columns.register_hook(vector.gradient) for vector in more]
    # One lesson is little: a hard one would throw the row far off.
    handles += [parameter.register_hook(_of_unit_length) for parameter in fitted]
    groups = [{"params": [p], "lr": rate} for p, rate in zip(fitted, rates, strict=True)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = one_cycle(optimizer, rates, steps)
    losses: list[float] = []
    try:
        for step in range(steps):
            with _missed(more) as missed:
                loss = lesson.loss(step)
            losses.append(float(loss.detach()))
            for short in missed:
                loss = loss + (short.mean() + HARDEST * short.max()).to(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            advance(1)
            if step > steps // 3 and max(losses[-2 * len(lesson.cached) :]) < LEARNT:
                break
    finally:
        for handle in handles:
            handle.remove()
        for parameter in fitted:
            parameter.requires_grad_(False)
            parameter.grad = None
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)
