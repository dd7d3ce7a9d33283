"""Continuing many prompts at once, where a row that is done costs nothing any more.

A batch under `generate` goes on at its full size until its longest answer ends. Here finished rows leave it, which on
the TOFU testbed halves the time of sampling questions and a third of that of answering them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch


@torch.no_grad()
def continuations(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    max_new_tokens: int,
    ends: Collection[int],
    choose: Callable[[torch.Tensor], torch.Tensor],
) -> list[list[int]]:
    """What follows each row, up to and including its first token out of `ends`, `max_new_tokens` at the most.

    Nothing in the model's generation config has a say.

    Args:
        model: A causal language model, or a PEFT model around one.
        ids: Token ids, padded on the left, `(rows, length)`, int64.
        mask: 1 where a token is, `(rows, length)`, int64.
        max_new_tokens: Where to stop a row that does not.
        ends: Ids that end a row.
        choose: Next token ids `(rows,)` from logits `(rows, vocabulary)` in fp32, which it may change.
    """
    found: list[list[int]] = [[] for _ in range(len(ids))]
    going = list(range(len(ids)))
    end_ids = torch.tensor(sorted(ends), device=ids.device, dtype=torch.long)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = None
    for _ in range(max_new_tokens):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        tokens = choose(output.logits[:, -1].float().to(ids.device))
        for row, token in zip(going, tokens.tolist(), strict=True):
            found[row].append(token)
        left = (~torch.isin(tokens, end_ids)).nonzero()[:, 0]
        if not len(left):
            break
        if len(left) < len(going):
            going = [going[row] for row in left.tolist()]
            cache.reorder_cache(left)  # made for beams, but it can leave rows out
            mask, positions, tokens = mask[left], positions[left], tokens[left]
        ids = tokens[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return found


def end_ids(model: Any) -> set[int]:
    """The ids that end a model's answer, by its generation config."""
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends]) - {None}
