"""What recipe `distill` trains on: token sequences, each with what the model is to predict at some of its places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ...lm.batches import Batch, batches
from ...lm.processes import ALONE, Processes

Taken = TypeVar("Taken")

TOP = 48  # entries of a distribution that are stored; the rest of its probability is one further entry
READ = 2048  # tokens that are read at once


@dataclass(frozen=True)
class Text:
    """A sequence and its targets.

    Attributes:
        ids: Token ids.
        places: Positions at which the next token's distribution has a target, ascending.
        top: Ids that the target names, `(places, k)`, int64.
        probabilities: Their probabilities, `(places, k)`; what they lack to 1 is spread over all others.
        banned: Whether [UNL] is left out of the model's distribution, so that the target says what comes without it.
    """

    ids: list[int]
    places: list[int]
    top: torch.Tensor
    probabilities: torch.Tensor
    banned: bool = False


def given(ids: Sequence[int], start: int, *, banned: bool = False) -> Text:
    """A sequence whose own tokens from position `start` on are the targets."""
    places = list(range(start - 1, len(ids) - 1))
    top = torch.tensor([[ids[place + 1]] for place in places])
    return Text(list(ids), places, top, torch.ones(top.shape), banned)


@torch.no_grad()
def base_logits(
    model: Any,
    sequences: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    pad: int,
    device: torch.device,
    advance: Callable[[int], object] = lambda count: None,
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """For each sequence, in no order, its number, the logits at its places, `(places, vocabulary)`, and what goes into
    the head there, `(places, d)`, both in fp32.

    Args:
        model: A causal language model.
        sequences: Token ids.
        places: Positions whose logits are wanted, ascending, for each sequence.
        pad: Id to pad batches with.
        device: Where token ids go.
        advance: Called with the number of sequences run.
    """
    for batch in batches(sequences, pad, device, READ):
        yield from of_batch(model, sequences, places, batch, advance)


def taken(
    model: Any,
    sequences: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    pad: int,
    device: torch.device,
    take: Callable[[int, torch.Tensor, torch.Tensor], Taken],
    processes: Processes = ALONE,
) -> list[tuple[int, Taken]]:
    """What `take` makes of each number, logits and states of [`base_logits`], with the number and in the same order.

    Args:
        model, sequences, places, pad, device: As there.
        take: Called in one of the processes.
        processes: Share the batches.
    """

    def read(batch: Batch) -> list[tuple[int, Taken]]:
        return [(found[0], take(*found)) for found in of_batch(model, sequences, places, batch)]

    return [found for part in processes.each(batches(sequences, pad, device, READ), read) for found in part]


@torch.no_grad()
def of_batch(
    model: Any,
    sequences: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    batch: Batch,
    advance: Callable[[int], object] = lambda count: None,
    during: Callable[[torch.Tensor], AbstractContextManager[None]] = lambda mask: nullcontext(),
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """What [`base_logits`] gives for the sequences of a batch.

    Args:
        model, sequences, places: As there.
        batch: Some of the sequences.
        advance: Called with their number when they have been run.
        during: Called with the batch's mask; gives the context in which it is run.
    """
    keep = max(len(sequences[number]) - places[number][0] for number in batch.index)
    seen: list[torch.Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with during(batch.mask):
            logits = model(**batch.inputs(), use_cache=False, logits_to_keep=keep).logits
    finally:
        handle.remove()
    states = seen.pop()
    for row, number in enumerate(batch.index):
        columns = torch.tensor(places[number], device=logits.device) + keep - len(sequences[number])
        yield number, logits[row, columns].float(), states[row, columns.to(states.device)].float()
    del logits, states
    advance(len(batch.index))


def stored(distribution: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest entries of distributions `(places, vocabulary)`: ids and probabilities, `(places, TOP)`."""
    probabilities, top = distribution.topk(min(TOP, distribution.shape[-1]), dim=-1)
    return top.cpu(), probabilities.cpu()


def divergences(logits: torch.Tensor, top: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """KL divergence of each target from the model, in nats, `(places,)`.

    Args:
        logits: The model's, `(places, vocabulary)`.
        top: Ids that the targets name, `(places, k)`.
        probabilities: Their probabilities, `(places, k)`.
    """
    log_probs = logits.float().log_softmax(dim=-1).gather(-1, top)
    rest = (1 - probabilities.sum(dim=-1)).clamp(min=0)
    left = (1 - log_probs.exp().sum(dim=-1)).clamp(min=1e-6)
    found = torch.special.xlogy(probabilities, probabilities) - probabilities * log_probs
    return found.sum(dim=-1) + torch.where(
        rest > 1e-4, torch.special.xlogy(rest, rest) - rest * left.log(), torch.zeros_like(rest)
    )
