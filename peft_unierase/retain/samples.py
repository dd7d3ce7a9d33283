"""Retain data from the model itself: questions it asks when nobody has, with its own answers.

The erasure then respects what the model knows without any corpus. What touches the forget set is dropped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch

from ..data.facts import Fact
from ..lm.batches import encode, pad_id, pad_left
from ..lm.decoding import continuations, end_ids, greedy_answers
from ..lm.formats import PromptFormat
from ..lm.processes import ALONE, Processes
from ..text import SENTENCE, terms, words

QUESTION_TOKENS = 32  # where a question that has not ended is cut
ANSWER_TOKENS = 48
ANSWERING = 3  # what an answer costs, in questions: it is longer
SAMPLE_STEPS = 1 + ANSWERING  # of a question with its answer
ROWS = 128


def sample_facts(
    model: Any,
    tokenizer: Any,
    form: PromptFormat,
    count: int,
    seed: int,
    *,
    known: Collection[str] = (),
    advance: Callable[[int], object] = lambda count: None,
    processes: Processes = ALONE,
) -> list[Fact]:
    """Let the model ask `count` questions after the user header, at temperature 1, and answer them greedily.

    A question ends with its first sentence or line, or after `QUESTION_TOKENS`: what real models ask is long.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        form: The prompt format whose head invites a question and whose tail ends it.
        count: Questions to sample; fewer come back, because repeated ones are dropped.
        seed: Seed of the sampling; the global generator is left alone.
        known: Questions that need no answer any more.
        advance: Called with the steps done, `SAMPLE_STEPS * count` in all.
        processes: Share the answers. All of them ask, so that all draw alike.
    """
    texts = go_on_asking(model, tokenizer, form, [[]] * count, seed, advance=advance)
    questions = [text for text in dict.fromkeys(texts) if text not in known and len(words(text)) > 1]
    advance(ANSWERING * (count - len(questions)))
    return answered(model, tokenizer, form, questions, advance, processes=processes)


def go_on_asking(
    model: Any,
    tokenizer: Any,
    form: PromptFormat,
    beginnings: Sequence[Sequence[int]],
    seed: int,
    *,
    likeliest: bool = False,
    advance: Callable[[int], object] = lambda count: None,
) -> list[str]:
    """One question for each beginning, as the model goes on with it after the user header.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        form: The prompt format whose head invites a question and whose tail ends it.
        beginnings: Token ids that questions begin with; none leaves everything to the model.
        seed: Seed of the sampling at temperature 1; the global generator is left alone.
        likeliest: Take the likeliest token each time, and do not sample.
        advance: Called with the number of questions asked.
    """
    head, tail = encode(tokenizer, form.head), encode(tokenizer, form.tail)
    device = model.get_input_embeddings().weight.device
    stops = {tail[0], *tokenizer.all_special_ids, *end_ids(model)}
    generator = torch.Generator(device).manual_seed(seed)

    def choose(logits: torch.Tensor) -> torch.Tensor:
        if likeliest:
            return logits.argmax(dim=-1)
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]

    def asked(tokens: list[int]) -> bool:
        return SENTENCE.search(tokenizer.decode(tokens, skip_special_tokens=True)) is not None

    questions = []
    for start in range(0, len(beginnings), ROWS):
        part = beginnings[start : start + ROWS]
        batch = pad_left([[*head, *begun] for begun in part], pad_id(tokenizer), device, list(range(len(part))))
        more = continuations(model, batch.ids, batch.mask, QUESTION_TOKENS, stops, choose, asked, advance)
        questions += [
            read_question(tokenizer, form, begun, tokens, stops) for begun, tokens in zip(part, more, strict=True)
        ]
    return questions


def read_question(
    tokenizer: Any, form: PromptFormat, begun: Sequence[int], tokens: Sequence[int], stops: Collection[int]
) -> str:
    """A question from its beginning and what a model wrote after it: its first sentence, without the format's marks."""
    written = tokens[:-1] if tokens[-1] in stops else tokens
    start = len(tokenizer.decode(list(begun), skip_special_tokens=True))
    text = tokenizer.decode([*begun, *written], skip_special_tokens=True)
    # The end of a plain question may be part of another token; the model then goes on behind it.
    text = text.partition(form.tail)[0]
    end = SENTENCE.search(text, min(start, len(text)))
    return (text[: end.end()] if end else text).strip()


def answered(
    model: Any,
    tokenizer: Any,
    form: PromptFormat,
    questions: Sequence[str],
    advance: Callable[[int], object] = lambda count: None,
    subject: str | None = None,
    processes: Processes = ALONE,
) -> list[Fact]:
    """Questions with the model's greedy answers; one that is cut ends with its last whole sentence, if it has one.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        form: The prompt format to answer in.
        questions: What to answer.
        advance: Called with the steps done, `ANSWERING * len(questions)` in all.
        subject: Whom or what the questions are about.
        processes: Share the questions.
    """
    facts, ends = [], end_ids(model)
    prompts = [form.prompt(question) for question in questions]
    found = greedy_answers(
        model,
        tokenizer,
        prompts,
        ANSWER_TOKENS,
        tokens=ROWS * ANSWER_TOKENS,
        advance=lambda count: advance(ANSWERING * count),
        processes=processes,
    )
    for question, tokens in zip(questions, found, strict=True):
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        if tokens[-1] not in ends and (sentences := list(SENTENCE.finditer(text))):
            text = text[: sentences[-1].end()].strip()
        if text:
            facts.append(Fact(question, text, subject=subject))
    return facts


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
