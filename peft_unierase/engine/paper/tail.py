"""Running only what a change of the residual stream can reach: the layers above it, from the changed position on.

What comes before the position, and what lies below the layer, is recorded once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ...lm.batches import Batch, pad_left
from ...lm.replay import Recording
from ...lm.trace import traced_output


class Tail(Recording):
    """The residual stream behind a decoder layer, from the first marked column of a batch on.

    Args:
        model: A causal language model.
        layers: Its decoder layers.
        layer: Index of the layer behind which the stream is changed.
        batch: Prompts, which end at the answer start or go on after it.
        marks: For each row the column at which it is changed.

    Attributes:
        states: `(batch, tail, d)`, detached.
        marks: Place of each mark in `states`, `(batch,)`, int64.
    """

    def __init__(self, model: Any, layers: nn.ModuleList, layer: int, batch: Batch, marks: Sequence[int]) -> None:
        self.model, self.layers, self.layer, self.batch = model, layers, layer, batch
        self.start = max(1, min(marks))  # something must have been read before
        self.marks = torch.tensor([mark - self.start for mark in marks], device=batch.ids.device)
        with torch.no_grad():
            self.cache = model(
                input_ids=batch.ids[:, : self.start],
                attention_mask=batch.mask[:, : self.start],
                position_ids=batch.positions[:, : self.start],
                use_cache=True,
                logits_to_keep=1,
            ).past_key_values
            with traced_output(layers[layer]) as seen:
                model(**self._inputs())
        self.returns_tuple = isinstance(seen[0], tuple)
        self.states = seen[0][0] if self.returns_tuple else seen[0]

    def marked(self) -> torch.Tensor:
        """The stream at the marks, `(batch, d)`."""
        return self.states[torch.arange(len(self.marks), device=self.marks.device), self.marks]

    def narrowed(self, keep: Sequence[int]) -> Tail:
        """The same with these rows alone."""
        chosen = torch.tensor(keep, device=self.marks.device)
        other, batch = copy.copy(self), self.batch
        other.batch = Batch(
            batch.ids[chosen], batch.mask[chosen], batch.positions[chosen], [batch.index[row] for row in keep]
        )
        other.states, other.marks, other.cache = self.states[chosen], self.marks[chosen], self._cache_copy()
        other.cache.batch_select_indices(chosen)
        return other

    def changed_logits(self, change: torch.Tensor, keep: int) -> torch.Tensor:
        """Logits at the last positions with `change (batch, d)` at the marks: `(batch, keep, vocabulary)`."""
        place = torch.nn.functional.one_hot(self.marks, self.states.shape[1]).to(change.dtype)
        states = self.states + (place[..., None] * change[:, None]).to(self.states.dtype)
        with self._upper_part(states):
            return self.model(**self._inputs(keep)).logits

    def losses(self, change: torch.Tensor, token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`-log p(token)` at each answer start in nats, and whether the token is likeliest there, `(batch,)` each."""
        logits = self.changed_logits(change, 1)[:, -1].float()
        return -logits.log_softmax(dim=-1)[:, token_id], logits.argmax(dim=-1) == token_id

    def _inputs(self, keep: int = 1) -> dict[str, Any]:
        return {
            "input_ids": self.batch.ids[:, self.start :],
            "attention_mask": self.batch.mask,
            "position_ids": self.batch.positions[:, self.start :],
            "past_key_values": self._cache_copy(),
            "use_cache": True,
            "logits_to_keep": keep,
        }

    def _cache_copy(self) -> Any:
        # Updating a cache layer assigns new tensors, so a shallow copy keeps the recorded prefix as it is.
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        return cache


def tail_batches(
    prompts: Sequence[Sequence[int]],
    marks: Sequence[int],
    some: Sequence[int],
    pad: int,
    device: torch.device,
    tokens: int = 1024,
) -> Iterator[tuple[Batch, list[int]]]:
    """Some prompts in batches of alike tails, with the column of each row's mark.

    Args:
        prompts: Token ids.
        marks: For each prompt the position at which the stream is changed.
        some: Which of them to take.
        pad: Id to pad batches with.
        device: Where token ids go.
        tokens: Padded tokens behind the marks per batch, and an eighth of the padded tokens in all.
    """
    lengths = [len(prompt) - mark for prompt, mark in zip(prompts, marks, strict=True)]
    order = sorted(some, key=lambda index: (lengths[index], len(prompts[index]), index))
    while order:
        size, longest = 1, len(prompts[order[0]])
        while size < len(order):
            longest = max(longest, len(prompts[order[size]]))
            if (size + 1) * lengths[order[size]] > tokens or (size + 1) * longest > 8 * tokens:
                break
            size += 1
        index, order = order[:size], order[size:]
        batch = pad_left([prompts[i] for i in index], pad, device, index)
        yield batch, [batch.ids.shape[1] - lengths[i] for i in index]
