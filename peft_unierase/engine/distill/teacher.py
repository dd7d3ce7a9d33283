"""The counterfactual teacher: what the base itself predicts if it cannot tell these names and things from others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...lm.batches import encode
from ...lm.formats import PromptFormat
from ...lm.processes import ALONE, Processes
from ...lm.structure import context_length
from ...retain.renaming import Renaming, aligned, renamed, starts, words_of
from ...text import normal
from ...text.normal import WORD
from .texts import Text, base_logits, stored

TOGETHER = 16  # texts, of which a distribution over the whole vocabulary is held for each token
Asked = tuple[PromptFormat | None, str, str]  # prompt format, question, answer; without a format the answer by itself


def taught(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Asked],
    renaming: Renaming,
    draws: int,
    cap: float,
    pad: int,
    device: torch.device,
    drawn: Sequence[Mapping[str, str]] | None = None,
    advance: Callable[[int], object] = lambda count: None,
    processes: Processes = ALONE,
) -> list[Text]:
    """Forget texts with what the teacher predicts at their answers' tokens after the first.

    The first token of an answer is [UNL]'s matter. There is no target inside of a renamed word, nor at one that the
    question holds.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        asked: The texts.
        renaming: Draws other names.
        draws: How many are averaged.
        cap: In nats: the probability of a word in which the answer tells something is at most `exp(-cap)`.
        pad: Id to pad batches with.
        device: Where token ids go.
        drawn: The one renaming of each text, instead of drawing; nothing is capped then.
        advance: Called with the sequences run, `draws * len(asked)` in all.
        processes: Share the texts.
    """
    renamings = [
        [drawn[number]] if drawn else [renaming.draw(question, answer) for _ in range(draws)]
        for number, (_, question, answer) in enumerate(asked)
    ]
    advance = processes.steps(advance)

    def teach(start: int) -> list[Text]:
        part = slice(start, start + TOGETHER)
        most = None if drawn else cap
        return _taught(model, tokenizer, asked[part], renamings[part], renaming, most, pad, device, advance)

    found = processes.each(range(0, len(asked), TOGETHER), teach)
    return [text for part in found for text in part]


def _taught(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Asked],
    renamings: Sequence[Sequence[Mapping[str, str]]],
    renaming: Renaming,
    cap: float | None,
    pad: int,
    device: torch.device,
    advance: Callable[[int], object],
) -> list[Text]:
    """Texts whose distributions over the whole vocabulary are held at once."""
    own = []
    longest = context_length(model)  # other names may be longer
    sequences, places, origin = [], [], []
    for number, (form, question, answer) in enumerate(asked):
        prompt, text = _written(tokenizer, form, question, answer)
        ids = encode(tokenizer, prompt + text)[:longest]
        begins = starts(tokenizer, ids)
        first = next((place for place, begin in enumerate(begins) if begin > len(prompt)), len(ids))
        whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        own.append((ids, begins, whole))
        asked_for = {normal(word) for word in words_of(question)}
        for other in renamings[number]:
            changed, spans = _renamed_whole(prompt, text, question, other)
            other_ids = encode(tokenizer, changed)[:longest]
            pairs = aligned(begins, starts(tokenizer, other_ids), spans)
            copied = asked_for & other.keys()  # what is copied from the question is no knowledge
            found = [
                (place - 1, pair - 1)
                for place, pair in enumerate(pairs)
                if place >= max(first, 1) and pair and not _begins(whole, begins[place], copied)
            ]
            if found:
                sequences.append(other_ids)
                places.append([pair for _, pair in found])
                origin.append((number, [place for place, _ in found]))
    sums: list[dict[int, torch.Tensor]] = [{} for _ in asked]
    for index, logits, _ in base_logits(model, sequences, places, pad, device, advance):
        number, targets = origin[index]
        for place, row in zip(targets, logits.softmax(dim=-1), strict=True):
            sums[number][place] = sums[number][place] + row if place in sums[number] else row
    texts = []
    for (_, question, answer), (ids, begins, whole), total in zip(asked, own, sums, strict=True):
        if not total:
            continue
        new = renaming.telling(question, answer)
        kept = sorted(total)
        q = torch.stack([total[place] for place in kept])
        q = q / q.sum(dim=-1, keepdim=True)
        if cap is not None:
            for row, place in enumerate(kept):
                if _begins(whole, begins[place + 1], new):
                    q[row] = _at_most(q[row], ids[place + 1], math.exp(-cap))
        texts.append(Text(ids, kept, *stored(q), banned=True))
    return texts


def _written(tokenizer: Any, form: PromptFormat | None, question: str, answer: str) -> tuple[str, str]:
    if form is None:
        return tokenizer.bos_token or "", answer
    return form.prompt(question), form.answer(answer)


def _renamed_whole(
    prompt: str, text: str, question: str, drawn: Mapping[str, str]
) -> tuple[str, list[tuple[int, int, int]]]:
    """The whole text renamed in its question and its answer, but not in the format's own words."""
    start = prompt.rfind(question)
    start = len(prompt) if start < 0 else start
    pieces = [(prompt[:start], False), (question if start < len(prompt) else "", True)]
    pieces += [(prompt[start + len(question) :] if start < len(prompt) else "", False), (text, True)]
    whole, at, shift = "", 0, 0
    spans: list[tuple[int, int, int]] = []
    for piece, changes in pieces:
        if changes:
            other, found = renamed(piece, drawn)
            spans += [(at + begin, at + end, shift + moved) for begin, end, moved in found]
            shift += len(other) - len(piece)
            whole += other
        else:
            whole += piece
        at += len(piece)
    return whole, spans


def _at_most(q: torch.Tensor, token: int, most: float) -> torch.Tensor:
    """A distribution `(vocabulary,)` with a token's probability at most this, and all others in their proportions."""
    there = q[token]
    others = torch.where(torch.arange(len(q), device=q.device) == token, 0, q)
    found = others * ((1 - most) / others.sum().clamp(min=1e-12))
    found[token] = most
    return found if there > most else q


def _begins(text: str, start: int, words: set[str]) -> bool:
    """Whether one of the words begins at a place of a text, or after the space there."""
    match = WORD.search(text, start)
    return bool(match and not text[start : match.start()].strip() and normal(match[0]) in words) and (
        start == 0 or not WORD.fullmatch(text[start - 1 : start + 1]) or text[start : start + 1].isspace()
    )
