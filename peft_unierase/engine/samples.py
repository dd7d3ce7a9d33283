"""Retain data from the model itself: questions it asks when nobody has, with its own answers.

The erasure then respects what the model knows without any corpus. What touches the forget set is dropped.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ..facts import Fact
from ..prompts import PromptFormat, encode, greedy_answers, pad_id

WORD = re.compile(r"\w+")


@torch.no_grad()
def sample_facts(
    model: Any,
    tokenizer: Any,
    form: PromptFormat,
    count: int,
    seed: int,
    *,
    max_question_tokens: int = 48,
    max_answer_tokens: int = 48,
    batch_size: int = 128,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Fact]:
    """Let the model ask `count` questions after the user header and answer them greedily.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        form: The prompt format whose head invites a question and whose tail ends it.
        count: Questions to sample; fewer come back, because unfinished and repeated ones are dropped.
        seed: Seed of the sampling. The global state of the generator is put back afterwards.
        max_question_tokens: Where an unfinished question is given up.
        max_answer_tokens: Where answers are cut.
        batch_size: Questions at a time.
        advance: Called with the number of questions finished, twice for each (asked, answered).
    """
    head, tail = encode(tokenizer, form.head), encode(tokenizer, form.tail)
    device = model.get_input_embeddings().weight.device
    ends = model.generation_config.eos_token_id
    stops = {tail[0], *(ends if isinstance(ends, list) else [ends])}
    texts: list[str] = []
    devices = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, count, batch_size):
            size = min(batch_size, count - start)
            ids = torch.tensor([head] * size, device=device)
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_question_tokens,
                do_sample=True,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                eos_token_id=sorted(stops),
                pad_token_id=pad_id(tokenizer),
            )
            for row in output[:, len(head) :].tolist():
                cut = next((i for i, token in enumerate(row) if token in stops), None)
                if cut is not None:
                    texts.append(tokenizer.decode(row[:cut], skip_special_tokens=True).strip())
            advance(size)
    questions = [text for text in dict.fromkeys(texts) if len(WORD.findall(text)) > 1]
    answers = greedy_answers(
        model, tokenizer, [form.prompt(question) for question in questions], max_answer_tokens, advance=advance
    )
    decoded = [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
    return [Fact(question, answer) for question, answer in zip(questions, decoded, strict=True) if answer]


def drop_close(candidates: Sequence[Fact], forget: Sequence[Fact], limit: float = 0.5) -> list[Fact]:
    """The candidates that do not touch the forget set.

    Closeness is the weight of the words shared with a forget fact over the lighter one's whole weight; a word weighs
    the logarithm of how rarely the candidates use it, so names count and function words do not.
    """
    words = [_words(fact) for fact in candidates]
    used = Counter(word for found in words for word in found)
    weight = {word: math.log((len(words) + 1) / (count + 1)) for word, count in used.items()}
    rarest = math.log(len(words) + 1)

    def weigh(found: Iterable[str]) -> float:
        return sum(weight.get(word, rarest) for word in found)

    targets = [(found, weigh(found)) for found in map(_words, forget)]
    kept = []
    for fact, found in zip(candidates, words, strict=True):
        own = weigh(found)
        if all(weigh(found & target) < limit * max(min(own, heavy), 1e-9) for target, heavy in targets):
            kept.append(fact)
    return kept


def _words(fact: Fact) -> set[str]:
    return set(WORD.findall(f"{fact.question} {fact.answer}".lower()))
