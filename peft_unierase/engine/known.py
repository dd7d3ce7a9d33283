"""Whether the base knew the facts at all: what was never there cannot be erased."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..facts import Fact
from ..prompts import PromptFormat, batches, encode, pad_id

ENOUGH = 0.5


@torch.no_grad()
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
    prompts = [encode(tokenizer, form.prompt(fact.question)) for fact in facts]
    answers = [encode(tokenizer, form.answer(fact.answer)) for fact in facts]
    sequences = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    shares = torch.zeros(len(facts))
    device = model.get_input_embeddings().weight.device
    for batch in batches(sequences, pad_id(tokenizer), device):
        longest = max(len(answers[index]) for index in batch.index)
        guesses = model(**batch.inputs(), use_cache=False, logits_to_keep=longest + 1).logits.argmax(dim=-1)
        for row, index in enumerate(batch.index):
            length = len(answers[index])
            target = torch.tensor(answers[index], device=device)
            shares[index] = (guesses[row, -length - 1 : -1] == target).float().mean().cpu()
        advance(len(batch.index))
    return shares
