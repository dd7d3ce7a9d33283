"""Questions that the base asks itself about one subject, with its own answers.

Left to itself a base seldom asks about the subject that is wanted. So the beginnings of questions are taken, up to each
of their tokens, the base says at which of them it would name the subject, and goes on behind it. That is how it asks
itself anything, given that the question names the subject: no template and no language comes in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch

from ..data.facts import Fact
from ..lm.batches import encode, last_logits, pad_id
from ..lm.formats import PromptFormat
from ..lm.processes import ALONE, Processes
from ..text import names
from .samples import ANSWERING, answered, go_on_asking

A_QUESTION = 2  # beginnings of the same question that are taken at the most
MORE = 3  # times as many beginnings are read with the whole subject as are gone on from
REACH = 6.0  # nats by which the subject may be less likely than behind the best beginning
ROUNDS = 4


@dataclass(frozen=True)
class Beginning:
    """Token ids of a question up to and including a subject, and the subject's log-probability there, in nats."""

    tokens: list[int]
    log_prob: float


def ask_about(
    model: Any,
    tokenizer: Any,
    form: PromptFormat,
    subject: str,
    beginnings: Sequence[Beginning],
    count: int,
    seed: int,
    *,
    advance: Callable[[int], object] = lambda count: None,
    processes: Processes = ALONE,
) -> list[Fact]:
    """At most `count` questions about a subject that the base asks itself, answered greedily by it.

    The first are what it finds most likely after each beginning, the others are sampled at temperature 1. A round that
    brings fewer than half of the questions it wanted is the last one: the base repeats itself.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        form: The prompt format to ask and to answer in.
        subject: Whom or what to ask about.
        beginnings: Where to go on, the best first; see [`find_beginnings`].
        count: Questions wanted. Fewer come back from a base that repeats itself.
        seed: Seed of the sampling; the global generator is left alone.
        advance: Called with the steps done, `SAMPLE_STEPS * count` in all.
        processes: Share the answers.
    """
    digest = hashlib.sha256(f"{seed} {subject}".encode()).digest()
    own_seed = int.from_bytes(digest[:4], "big")
    starts = [beginning.tokens for beginning in beginnings[:count]]
    questions: dict[str, None] = {}
    for turn in range(ROUNDS if starts else 0):
        wanted = list(islice(cycle(starts), len(starts) if turn == 0 else count - len(questions)))
        before = len(questions)
        asked = go_on_asking(model, tokenizer, form, wanted, own_seed + turn, likeliest=turn == 0)
        questions.update(dict.fromkeys(text for text in asked if names(text, subject)))
        advance(len(questions) - before)
        if len(questions) >= count or (turn and len(questions) - before < len(wanted) / 2):
            break
    kept = list(questions)[:count]
    advance(count - len(questions) + ANSWERING * (count - len(kept)))
    return answered(model, tokenizer, form, kept, advance, subject, processes)


@torch.no_grad()
def find_beginnings(
    model: Any, tokenizer: Any, form: PromptFormat, subjects: Sequence[str], questions: Sequence[str], count: int
) -> list[list[Beginning]]:
    """For each subject the beginnings of questions behind which the base names it most readily, the best first.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        form: The prompt format to ask in.
        subjects: Whom or what to ask about.
        questions: Questions of any kind, about anything.
        count: Beginnings wanted for each subject. Fewer come back where the base does not expect the subject: there it
            would go on about nothing.
    """
    head = encode(tokenizer, form.head)
    asked = [encode(tokenizer, question) for question in questions]
    spelt = [_spellings(tokenizer, subject) for subject in subjects]
    firsts = sorted({spelling[0] for spellings in spelt for spelling in spellings})
    readiness: list[torch.Tensor] = [torch.zeros(0)] * len(asked)
    keep = [len(tokens) + 1 for tokens in asked]
    for number, logits in last_logits(model, [head + tokens for tokens in asked], keep, pad_id(tokenizer), 1024):
        readiness[number] = (logits[..., firsts] - logits.logsumexp(dim=-1, keepdim=True)).cpu()

    found = []
    for subject, spellings in zip(subjects, spelt, strict=True):
        cuts: dict[tuple[int, ...], float] = {}
        for number, (question, tokens) in enumerate(zip(questions, asked, strict=True)):
            before = _names_before(tokenizer, tokens) if names(question, subject) else None
            own: list[tuple[float, tuple[int, ...]]] = []
            for spelling in spellings:
                scores = readiness[number][:, firsts.index(spelling[0])].tolist()
                for cut, score in enumerate(scores[:-1]):
                    if before is None or not before(cut, subject):
                        own.append((score, (*tokens[:cut], *spelling)))
            cuts.update({start: score for score, start in sorted(own, reverse=True)[:A_QUESTION]})
        best = sorted(cuts, key=lambda start: (-cuts[start], start))[: MORE * count]
        scored = _with_subject(model, tokenizer, head, best, [_last_of(start, spellings) for start in best])
        scored = sorted(scored, key=lambda beginning: (-beginning.log_prob, beginning.tokens))[:count]
        found.append([beginning for beginning in scored if beginning.log_prob >= scored[0].log_prob - REACH])
    return found


def _names_before(tokenizer: Any, tokens: Sequence[int]) -> Callable[[int, str], bool]:
    return lambda cut, subject: names(tokenizer.decode(tokens[:cut]), subject)


def _spellings(tokenizer: Any, subject: str) -> list[tuple[int, ...]]:
    """Token ids of a subject behind another word and at the beginning of a text."""
    word = encode(tokenizer, "a")
    behind = encode(tokenizer, f"a {subject}")
    alone = tuple(encode(tokenizer, subject))
    spaced = tuple(behind[len(word) :]) if behind[: len(word)] == word else alone
    return list(dict.fromkeys((spaced, alone)))


def _last_of(start: Sequence[int], spellings: Collection[tuple[int, ...]]) -> int:
    """How many tokens of a beginning are the subject's."""
    return max(len(spelling) for spelling in spellings if tuple(start[-len(spelling) :]) == spelling)


def _with_subject(
    model: Any, tokenizer: Any, head: list[int], starts: Sequence[Sequence[int]], lengths: Sequence[int]
) -> list[Beginning]:
    """Beginnings with the log-probability of all tokens of the subject, the last `lengths` ones of each."""
    found = [Beginning([], 0.0)] * len(starts)
    sequences, keep = [[*head, *start] for start in starts], [length + 1 for length in lengths]
    for number, logits in last_logits(model, sequences, keep, pad_id(tokenizer), 1024):
        subject = torch.tensor(sequences[number][-lengths[number] :], device=logits.device)
        scores = logits[:-1].log_softmax(dim=-1).gather(-1, subject[:, None])
        found[number] = Beginning(list(starts[number]), float(scores.sum()))
    return found
