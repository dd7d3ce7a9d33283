"""Retain data from the model itself: questions it asks when nobody has, with its own answers.

The erasure then respects what the model knows without any corpus. What touches the forget set is dropped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch

from ..decoding import continuations, end_ids
from ..facts import Fact
from ..prompts import PromptFormat, encode, greedy_answers
from ..text import terms, words


def sample_facts(
    model: Any,
    tokenizer: Any,
    form: PromptFormat,
    count: int,
    seed: int,
    *,
    known: Collection[str] = (),
    max_question_tokens: int = 48,
    max_answer_tokens: int = 48,
    batch_size: int = 128,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Fact]:
    """Let the model ask `count` questions after the user header, at temperature 1, and answer them greedily.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        form: The prompt format whose head invites a question and whose tail ends it.
        count: Questions to sample; fewer come back, because unfinished and repeated ones are dropped.
        seed: Seed of the sampling; the global generator is left alone.
        known: Questions that need no answer any more.
        max_question_tokens: Where an unfinished question is given up.
        max_answer_tokens: Where answers are cut.
        batch_size: Questions at a time.
        advance: Called with the number of questions finished, twice for each (asked, answered).
    """
    head, tail = encode(tokenizer, form.head), encode(tokenizer, form.tail)
    device = model.get_input_embeddings().weight.device
    stops = {tail[0], *tokenizer.all_special_ids, *end_ids(model)}
    generator = torch.Generator(device).manual_seed(seed)

    def draw(logits: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]

    texts: list[str] = []
    for start in range(0, count, batch_size):
        ids = torch.tensor([head] * min(batch_size, count - start), device=device)
        asked = continuations(model, ids, torch.ones_like(ids), max_question_tokens, stops, draw)
        texts += [text for tokens in asked if (text := read_question(tokenizer, form, tokens, stops)) is not None]
        advance(len(asked))
    questions = [text for text in dict.fromkeys(texts) if text not in known and len(words(text)) > 1]
    advance(count - len(questions))
    answers = greedy_answers(
        model, tokenizer, [form.prompt(question) for question in questions], max_answer_tokens, advance=advance
    )
    decoded = [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
    return [Fact(question, answer) for question, answer in zip(questions, decoded, strict=True) if answer]


def read_question(tokenizer: Any, form: PromptFormat, tokens: list[int], stops: Collection[int]) -> str | None:
    """The question in what a model wrote behind the head of a format; `None` if it did not come to an end."""
    ended = tokens[-1] in stops
    text = tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
    # The end of a plain question may be part of another token; the model then goes on behind it.
    question, mark, _ = text.partition(form.tail)
    return question.strip() if ended or mark else None


def drop_close(candidates: Sequence[Fact], forget: Sequence[Fact], limit: float = 0.5) -> list[Fact]:
    """The candidates that do not touch the forget set.

    Closeness is the weight of the words shared with a forget fact over the lighter one's whole weight; a word weighs
    the logarithm of how rarely the candidates use it, so names count and function words do not.
    """
    own_words = [_words(fact) for fact in candidates]
    weigh = word_weights(candidates)
    targets = [(found, weigh(found)) for found in map(_words, forget)]
    kept = []
    for fact, found in zip(candidates, own_words, strict=True):
        own = weigh(found)
        if all(weigh(found & target) < limit * max(min(own, heavy), 1e-9) for target, heavy in targets):
            kept.append(fact)
    return kept


def word_weights(facts: Sequence[Fact]) -> Callable[[Iterable[str]], float]:
    """What weighs a set of words: each the logarithm of how rarely the facts use it, unknown ones as the rarest."""
    used = Counter(word for fact in facts for word in _words(fact))
    rarest = math.log(len(facts) + 1)
    weight = {word: math.log((len(facts) + 1) / (count + 1)) for word, count in used.items()}

    def weigh(found: Iterable[str]) -> float:
        return sum(weight.get(word, rarest) for word in sorted(found))

    return weigh


def _words(fact: Fact) -> set[str]:
    return terms(f"{fact.question}\n{fact.answer}")
