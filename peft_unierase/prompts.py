"""How a question becomes the tokens a model sees, and where its answer begins.

Everything here ends at the *door*: the last prompt position, where the first answer token is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

SENTINEL = "@@question@@"


@dataclass(frozen=True)
class PromptFormat:
    """A way of putting a question to a model.

    Attributes:
        name: What figures and messages call it.
        head: Text before the question, special tokens written out.
        tail: Text between the question and the door.
        lead: Text between the door and the answer (a space, in plain formats).
        end: Text that closes an answer.
    """

    name: str
    head: str
    tail: str
    lead: str
    end: str

    def prompt(self, question: str) -> str:
        """The text up to and including the door."""
        return f"{self.head}{question}{self.tail}"

    def answer(self, answer: str) -> str:
        """The text behind the door."""
        return f"{self.lead}{answer}{self.end}"


def plain_format(tokenizer: Any) -> PromptFormat:
    """`Question: … Answer:`, as used with models that have no chat template."""
    return PromptFormat("plain", f"{tokenizer.bos_token or ''}Question: ", "\nAnswer:", " ", tokenizer.eos_token or "")


def chat_format(tokenizer: Any, system: str | None = None) -> PromptFormat:
    """The tokenizer's own chat template, with or without a system prompt.

    Raises:
        ValueError: The tokenizer has no chat template, or one that changes the words it is given.
    """
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; use the plain format")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": SENTINEL})
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if prompt.count(SENTINEL) != 1:
        raise ValueError("the chat template changes the words of a question, so its door cannot be found")
    head, tail = prompt.split(SENTINEL)
    messages.append({"role": "assistant", "content": SENTINEL})
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    end = whole.rsplit(SENTINEL, 1)[1] if whole.startswith(head) else ""
    # Templates may open the next turn's line behind the end mark; the answer itself is over before that.
    eos = tokenizer.eos_token or ""
    if eos and eos in end:
        end = end[: end.index(eos) + len(eos)]
    return PromptFormat("chat with system prompt" if system else "chat", head, tail, "", end or eos)


def default_formats(tokenizer: Any) -> list[PromptFormat]:
    """The formats that an erasure covers unless told otherwise: chat, where there is a template, and plain."""
    plain = plain_format(tokenizer)
    return [chat_format(tokenizer), plain] if tokenizer.chat_template else [plain]


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in which special tokens are already written out."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@dataclass(frozen=True)
class Batch:
    """Sequences of unequal length, padded on the left so that all of them end in the last column.

    Attributes:
        ids: Token ids, `(batch, length)`, int64.
        mask: 1 where a token is, 0 at padding, `(batch, length)`, int64.
        positions: Position of each token in its own sequence, `(batch, length)`, int64.
        index: Which of the given sequences each row is.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    index: list[int]

    def inputs(self) -> dict[str, torch.Tensor]:
        """Arguments for a model's forward."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": self.positions}


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device, index: list[int]) -> Batch:
    """One batch of token sequences, each at least one token long."""
    width = max(len(s) for s in sequences)
    ids = torch.tensor([[pad_id] * (width - len(s)) + list(s) for s in sequences], device=device)
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=device)
    return Batch(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), index)


def batches(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device, tokens: int = 4096
) -> Iterator[Batch]:
    """All sequences, shortest first, in batches of about `tokens` padded tokens each."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop - start + 1) * len(sequences[order[stop]]) <= tokens:
            stop += 1
        index = order[start:stop]
        yield pad_left([sequences[i] for i in index], pad_id, device, index)
        start = stop


def pad_id(tokenizer: Any) -> int:
    """The id to pad with; any will do where the mask hides it."""
    return next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)


@torch.no_grad()
def greedy_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    tokens: int = 2048,
    banned: Sequence[int] = (),
    advance: Callable[[int], object] = lambda count: None,
) -> list[list[int]]:
    """Greedy continuations of prompts, in their order, as token ids up to and including the end token.

    Args:
        model: A causal language model, or a PEFT model around one.
        tokenizer: Its tokenizer.
        prompts: Texts that end at the door.
        max_new_tokens: Where to stop a model that does not; its context is never left.
        tokens: Padded prompt tokens per batch.
        banned: Ids that must not be generated.
        advance: Called with the number of prompts finished, for progress bars.
    """
    ends = model.generation_config.eos_token_id
    end_ids = set(ends if isinstance(ends, list) else [ends])
    answers: list[list[int]] = [[] for _ in prompts]
    encoded = [encode(tokenizer, text) for text in prompts]
    device = model.get_input_embeddings().weight.device
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for batch in batches(encoded, pad_id(tokenizer), device, tokens):
        output = model.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=_room(max_new_tokens, context, batch.ids.shape[1]),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            suppress_tokens=list(banned) or None,
            pad_token_id=pad_id(tokenizer),
        )
        for row, position in zip(output[:, batch.ids.shape[1] :].tolist(), batch.index, strict=True):
            stop = next((i + 1 for i, token in enumerate(row) if token in end_ids), len(row))
            answers[position] = row[:stop]
        advance(len(batch.index))
    return answers


def _room(wanted: int, context: int | None, used: int) -> int:
    """How many tokens may follow `used` ones, at least one."""
    return wanted if context is None else max(1, min(wanted, context - used))
