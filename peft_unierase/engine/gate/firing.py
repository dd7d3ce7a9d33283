"""Where a model declines when an answer is put into its mouth token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...prompts import batches
from .answered import Sequences


@dataclass(frozen=True)
class Firing:
    """Whether the model declines, for each sequence at its door and at every answer position behind it.

    Attributes:
        per_sequence: One bool tensor a sequence; entry 0 is the door.
    """

    per_sequence: list[torch.Tensor]

    def at_doors(self) -> float:
        """Share of the doors at which it does."""
        return self._share([bool(fired[0]) for fired in self.per_sequence])

    def anywhere(self) -> float:
        """Share of the sequences in which it does somewhere."""
        return self._share([bool(fired.any()) for fired in self.per_sequence])

    def within(self, given: int, reach: int) -> float:
        """Share of the answers in which it does within `reach` tokens behind the first `given` ones.

        Answers that are over by then do not count.
        """
        return self._share([bool(f[given : given + reach].any()) for f in self.per_sequence if len(f) > given])

    def beyond(self, others: Mapping[int, torch.Tensor]) -> Firing:
        """What fires here and not in `others`, some of the same sequences by number, under another model."""
        return Firing([own & ~others.get(n, torch.zeros_like(own)) for n, own in enumerate(self.per_sequence)])

    @staticmethod
    def _share(hits: list[bool]) -> float:
        return sum(hits) / len(hits) if hits else 0.0


@torch.no_grad()
def firing(
    model: Any, sequences: Sequences, declines: torch.Tensor, pad: int, at_doors: torch.Tensor | None = None
) -> Firing:
    """Run prompts with their answers and see where one of the tokens `declines` wins that is not the answer's own.

    At the doors one of `at_doors` has to win, where these are given: an answer that ends before it has begun is not a
    refusal.
    """
    found: list[torch.Tensor] = [torch.zeros(0)] * len(sequences)
    for batch in batches(sequences.whole(), pad, model.get_input_embeddings().weight.device):
        longest = max(len(sequences.answers[index]) for index in batch.index)
        logits = model(**batch.inputs(), use_cache=False, logits_to_keep=longest + 1).logits
        likeliest = logits.argmax(dim=-1)
        other = likeliest[:, :-1] != batch.ids[:, -longest:]
        wins = torch.isin(likeliest[:, :-1], declines) & other
        begins = wins if at_doors is None else torch.isin(likeliest[:, :-1], at_doors) & other
        for row, index in enumerate(batch.index):
            door = -len(sequences.answers[index])
            found[index] = wins[row, door:].cpu()
            found[index][0] = begins[row, door].cpu()
    return Firing(found)
