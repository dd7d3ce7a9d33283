"""Prompts that are run once, for losses of what follows them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...lm.batches import Batch

IGNORE = -100


class CachedPrompts:
    """A batch of prompts whose attention cache is kept, so that only the answer start and what follows is run."""

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
        self, before: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of one text after each answer start and what is said before it.

        The gradient takes in what is done to the last token before a text, and nothing before that.

        Args:
            before: Token ids that follow each answer start, given and not predicted.
            texts: Token ids to be predicted after these.

        Returns:
            Summed loss of each text in nats, and the number of its tokens, `(batch,)` each.
        """
        batch, device = self.batch, self.batch.ids.device
        read = [[start, *tokens] for start, tokens in zip(batch.ids[:, -1].tolist(), before, strict=True)]
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
        if lead and torch.is_grad_enabled():
            start = lead
            with torch.no_grad():
                run(0, lead)
        logits = run(start, ids.shape[1])
        loss = nn.functional.cross_entropy(
            logits.float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none"
        )
        return loss.sum(dim=1), (targets != IGNORE).sum(dim=1)
