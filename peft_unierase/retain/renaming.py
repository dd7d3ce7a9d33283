"""Counterfactual wordings: a text in which names and things are others, and where its tokens stand beside the text's.

The teacher of recipe `distill` is the base on such texts (Liu et al., arXiv 2407.16997; here with words that retained
texts use rarely instead of a list of names).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..text import normal
from ..text.normal import WORD
from .subjects import find_names

COMMON = 3  # retained texts that use a word, from which on it names nothing
FILLER = 0.05  # share of the retained texts that use a word, from which on it tells nothing


class Renaming:
    """Renames names, and what is rare in retained texts: things, numbers.

    Args:
        retained: Texts of what must stay.
        seed: Seed of the draws.
    """

    def __init__(self, retained: Sequence[str], seed: int) -> None:
        used = Counter(word for text in retained for word in {normal(word) for word in words_of(text)})
        self.common = {word for word, count in used.items() if count >= COMMON}
        self.fillers = {word for word, count in used.items() if count >= max(COMMON, FILLER * len(retained))}
        self.order = random.Random(seed)
        pool: dict[str, set[str]] = {}
        for text in retained:
            for name in find_names(text):
                pool.setdefault("capital", set()).update(word for word in words_of(name) if _kind(word) == "capital")
            rare = {word for word in words_of(text) if normal(word) not in self.common and len(word) > 2}
            pool.setdefault("plain", set()).update(word for word in rare if _kind(word) == "plain")
        self.pool = {kind: sorted(words) for kind, words in pool.items()}

    def changing(self, question: str, answer: str = "") -> set[str]:
        """The words, in their normal form, that are renamed in a question and its answer."""
        named = (name for text in (question, answer) for name in find_names(text))
        found = {normal(word) for name in named for word in words_of(name)} - self.fillers
        return found | {word for word in map(normal, words_of(f"{question}\n{answer}")) if word not in self.common}

    def telling(self, question: str, answer: str) -> set[str]:
        """The words, in their normal form, in which an answer tells what its question does not."""
        asked, said = ({normal(word) for word in words_of(text)} for text in (question, answer))
        return said - asked - self.fillers

    def draw(self, question: str, answer: str = "") -> dict[str, str]:
        """A new word for each word that is renamed, by its normal form; one that fits its case and kind."""
        drawn: dict[str, str] = {}
        changing = self.changing(question, answer)
        for word in words_of(f"{question}\n{answer}"):
            if (key := normal(word)) not in changing or key in drawn:
                continue
            kind = _kind(word)
            if kind == "number":
                drawn[key] = "".join(str(self.order.randint(1, 9)) for _ in word)
            elif others := self.pool.get(kind) or self.pool.get("capital") or self.pool.get("plain"):
                drawn[key] = self.order.choice(others)
        return drawn


def words_of(text: str) -> list[str]:
    """The words of a text as they are written."""
    return [match[0] for match in WORD.finditer(text)]


def _kind(word: str) -> str:
    if any(letter.isdigit() for letter in word):
        return "number"
    return "capital" if word[:1].isupper() else "plain"


def renamed(text: str, drawn: Mapping[str, str]) -> tuple[str, list[tuple[int, int, int]]]:
    """A text with other words, and the spans that changed: start, end, how much longer all before the end became."""
    parts, spans, end, shift = [], [], 0, 0
    for match in WORD.finditer(text):
        other = drawn.get(normal(match[0]))
        if other is None:
            continue
        parts += [text[end : match.start()], other]
        end = match.end()
        shift += len(other) - len(match[0])
        spans.append((match.start(), end, shift))
    return "".join([*parts, text[end:]]), spans


def starts(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Where in the text each token begins, in characters."""
    return [len(tokenizer.decode(list(ids[:count]), clean_up_tokenization_spaces=False)) for count in range(len(ids))]


def aligned(own: Sequence[int], other: Sequence[int], spans: Sequence[tuple[int, int, int]]) -> list[int | None]:
    """For each token of a text the token of the renamed text that begins at the same place; `None` inside of words.

    Args:
        own: Where the text's tokens begin, in characters.
        other: Where the renamed text's tokens begin.
        spans: What was renamed; see [`renamed`].
    """
    at = {start: number for number, start in enumerate(other)}
    found: list[int | None] = []
    for start in own:
        shift, inside = 0, False
        for begin, end, moved in spans:
            if end <= start:
                shift = moved
            elif begin < start:
                inside = True
        found.append(None if inside else at.get(start + shift))
    return found
