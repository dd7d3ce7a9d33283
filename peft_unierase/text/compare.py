"""Recall: how much of a reference an answer brings, by the words that both share in order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import InputError
from .normal import words


def recall(reference: str, answer: str) -> float:
    """ROUGE-L recall (Lin 2004), 0 to 1: the longest common subsequence of words over the reference's words.

    On ASCII it equals `rouge-score`'s without stemming.

    Raises:
        ValueError: The reference has no letter and no digit, so nothing could recall it.
    """
    wanted = words(reference)
    if not wanted:
        raise InputError(
            f"the reference {reference!r} has no letter and no digit, so no answer can be compared with it; leave it "
            "out (`comparable` tells)"
        )
    return _common(wanted, words(answer)) / len(wanted)


def _common(one: Sequence[str], other: Iterable[str]) -> int:
    """Length of the longest common subsequence, a bit for each word of the first (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    whole = row = (1 << len(one)) - 1
    for word in other:
        met = row & places.get(word, 0)
        row = (row + met | row - met) & whole
    return len(one) - row.bit_count()
