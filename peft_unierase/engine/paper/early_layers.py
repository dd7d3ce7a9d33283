"""Which layers recipe `paper` edits: those where a subject's meaning is put together."""

from __future__ import annotations


def early_layers(count: int) -> list[int]:
    """The second eighth of the depth: `[4, …, 8]` of 32 as published, `[1, 2]` of 6."""
    return list(range(round(count / 8), round(count / 4) + 1))
