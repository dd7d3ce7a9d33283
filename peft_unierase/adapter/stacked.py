"""Room for a further adapter beside others: its token on another spare row.

Two erasures that were made apart on one base do not know of each other and may have chosen the same vocabulary row. A
config therefore names spare ones too, and a token whose row is taken moves when it is loaded. Edits need no room: they
add up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import nn

from .config import AdapterConfig
from .token_row import TokenRowLayer


def free_tokens(config: AdapterConfig, taken: Collection[int]) -> AdapterConfig:
    """The config with its token on the first of `spare_tokens` that is not taken, if its row is.

    The erasures of a fused one move one by one. What has moved is in a copy, because one config may have been given for
    several adapters. Where all are taken it stays: the two can then be used in turn, and the layers refuse to have both
    on.
    """
    now, tokens = set(taken), []
    for part in config.split():
        spare = next((spare for spare in part.spare_tokens if spare[0] not in now), None)
        token_id, token = spare if spare and part.token_id in now else (part.token_id, part.token)
        now.add(token_id)
        tokens.append({"token_id": token_id, "token": token})
    if config.fused:
        parts = [{**part, **token} for part, token in zip(config.fused, tokens, strict=True)]
        return config.replaced(**tokens[0], fused=parts)
    return config if config.token_id == tokens[0]["token_id"] else config.replaced(**tokens[0])


def taken_tokens(layers: Iterable[nn.Module]) -> set[int]:
    """The rows that the adapters in these layers have for their tokens."""
    rows = [layer for layer in layers if isinstance(layer, TokenRowLayer)]
    return {token_id for layer in rows for ids in layer.unierase_token_ids.values() for token_id in ids}
