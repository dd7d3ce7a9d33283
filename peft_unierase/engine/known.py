"""Whether the base knew the facts at all: what was never there cannot be erased."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..facts import Fact
from ..prompts import PromptFormat, batches, encode, pad_id

ENOUGH = 0.5


def known_shares(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    form: PromptFormat,
    advance: Callable[[int], object] = lambda count: None,
) -> torch.Tensor:
    """For each fact the share of its answer's tokens that the model predicts first, given those before, `(facts,)`.

    Near 1 for what a model knows by heart; for what it never saw about what grammar and the question give away.
    """

    def share(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (logits.argmax(dim=-1) == target).float().mean()

    return _by_answer(model, tokenizer, facts, form, share, advance)


def certainties(model: Any, tokenizer: Any, facts: Sequence[Fact], form: PromptFormat) -> torch.Tensor:
    """For each fact the geometric mean of its answer's tokens' probabilities, given those before, `(facts,)`."""

    def certainty(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return logits.float().log_softmax(dim=-1).gather(-1, target[:, None]).mean().exp()

    return _by_answer(model, tokenizer, facts, form, certainty)


@torch.no_grad()
def _by_answer(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    form: PromptFormat,
    measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    advance: Callable[[int], object] = lambda count: None,
) -> torch.Tensor:
    """`measure(logits (tokens, vocabulary), answer's ids (tokens,))` of each fact, `(facts,)`."""
    prompts = [encode(tokenizer, form.prompt(fact.question)) for fact in facts]
    answers = [encode(tokenizer, form.answer(fact.answer)) for fact in facts]
    sequences = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    found = torch.zeros(len(facts))
    device = model.get_input_embeddings().weight.device
    for batch in batches(sequences, pad_id(tokenizer), device):
        longest = max(len(answers[index]) for index in batch.index)
        logits = model(**batch.inputs(), use_cache=False, logits_to_keep=longest + 1).logits
        for row, index in enumerate(batch.index):
            length = len(answers[index])
            target = torch.tensor(answers[index], device=device)
            found[index] = measure(logits[row, -length - 1 : -1], target.to(logits.device)).cpu()
        advance(len(batch.index))
    return found
