"""Token sequences in batches: padded on the left, so that all of them end in the last column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in which special tokens are already written out."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@dataclass(frozen=True)
class Batch:
    """Sequences of unequal length, padded on the left so that all of them end in the last column.

    Attributes:
        ids: Token ids, `(batch, length)`, int64.
        mask: 1 where a token is, 0 at padding, `(batch, length)`, int64.
        positions: Position of each token in its own sequence, `(batch, length)`, int64.
        index: Which of the given sequences each row is.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    index: list[int]

    def inputs(self) -> dict[str, torch.Tensor]:
        """Arguments for a model's forward."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": self.positions}


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device, index: list[int]) -> Batch:
    """One batch of token sequences, each at least one token long."""
    width = max(len(s) for s in sequences)
    ids = torch.tensor([[pad_id] * (width - len(s)) + list(s) for s in sequences], device=device)
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=device)
    return Batch(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), index)


def batches(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device, tokens: int = 4096
) -> Iterator[Batch]:
    """All sequences, shortest first, in batches of about `tokens` padded tokens each."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop - start + 1) * len(sequences[order[stop]]) <= tokens:
            stop += 1
        index = order[start:stop]
        yield pad_left([sequences[i] for i in index], pad_id, device, index)
        start = stop


@torch.no_grad()
def last_logits(
    model: Any, sequences: Sequence[Sequence[int]], keep: Sequence[int], pad_id: int, tokens: int = 4096
) -> Iterator[tuple[int, torch.Tensor]]:
    """For each sequence, in no order, its number and the logits at its last `keep` positions, `(keep, vocabulary)` in
    fp32; see [`batches`].
    """
    for batch in batches(sequences, pad_id, model.get_input_embeddings().weight.device, tokens):
        longest = max(keep[number] for number in batch.index)
        logits = model(**batch.inputs(), use_cache=False, logits_to_keep=longest).logits
        for row, number in enumerate(batch.index):
            yield number, logits[row, -keep[number] :].float()


def pad_id(tokenizer: Any) -> int:
    """The id to pad with; any will do where the mask hides it."""
    return next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
