"""How a question becomes the tokens a model sees, and where its answer begins.

Everything here ends at the *door*: the last prompt position, where the first answer token is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from .decoding import continuations, end_ids

# Capitals, quotes and brackets, so that a template that changes any of them gives itself away.
SENTINEL = '@@The "Question" [1]@@'
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are an expert who gives short, careful replies.",
    "Reply in plain English and stay polite.",
    "Give the facts and nothing else.",
    "You are a patient teacher. Explain things simply.",
    "You help the visitors of a library.",
    "Think before you reply, then be brief.",
    "Answer what you are asked.",
    "You answer questions for a newspaper.",
    "Be brief.",
    "You are an assistant that never makes things up.",
    "Answer each question with one sentence.",
    "Help the user as well as you can.",
    "This is a quiz. Give the right answer.",
)
THINK, END_THINK = "<think>", "</think>"
# Some templates write today's date. Ours is always the same, or an erasure would depend on the day it was made.
DATE = {"%d": "26", "%-d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday"}
FIXED_DATE = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f"|replace('{code}', '{text}')" for code, text in DATE.items())
    + " }}{% endmacro %}{{ '' }}"
)


@dataclass(frozen=True)
class PromptFormat:
    """A way of putting a question to a model.

    Attributes:
        name: What figures and messages call it.
        head: Text before the question, special tokens written out.
        tail: Text between the question and the door.
        lead: Text between the door and the answer (a space, in plain formats).
        end: Text that closes an answer.
        variants: Other wordings of the format, which an erasure meets by turns with this one.
    """

    name: str
    head: str
    tail: str
    lead: str
    end: str
    variants: tuple[PromptFormat, ...] = ()

    def turn(self, number: int) -> PromptFormat:
        """The wording for this turn: the format itself first, then its variants, then from the start."""
        return (self, *self.variants)[number % (1 + len(self.variants))]

    def prompt(self, question: str) -> str:
        """The text up to and including the door."""
        return f"{self.head}{question}{self.tail}"

    def answer(self, answer: str) -> str:
        """The text behind the door."""
        return f"{self.lead}{answer}{self.end}"


def plain_format(tokenizer: Any, short: bool = False) -> PromptFormat:
    """`Question: … Answer:`, or in short `Q: … A:`, as used with models that have no chat template."""
    name, ask, reply = ("plain, short", "Q", "A") if short else ("plain", "Question", "Answer")
    return PromptFormat(name, f"{tokenizer.bos_token or ''}{ask}: ", f"\n{reply}:", " ", tokenizer.eos_token or "")


def chat_format(tokenizer: Any, system: str | None = None, *, thinking: bool = False) -> PromptFormat:
    """The tokenizer's own chat template, with or without a system prompt.

    A reasoning model has two doors: behind its generation prompt, where it begins (or is in the midst of) a think
    block, and behind a think block that was left empty, where it answers at once. Which of them a template has is found
    by rendering it with thinking switched on and off; where it has no such switch an empty block is written for it.

    Args:
        tokenizer: The tokenizer, whose template writes a fixed date where it wants today's.
        system: A system prompt.
        thinking: Put a reasoning model's door before its thoughts, instead of behind an empty think block, which then
            leads in the answer. Without effect on other templates.

    Raises:
        ValueError: The tokenizer has no chat template, or one that changes the words it is given, ignores the system
            prompt, or refuses what it is asked to write.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the tokenizer has no chat template; use the plain format")
    turns = [("system", system)] if system else []
    prompt = _render(tokenizer, [*turns, ("user", SENTINEL)], thinking)
    if prompt.count(SENTINEL) != 1:
        raise ValueError(
            "the chat template changes the words of a question, so its door cannot be found; give `formats=` of your "
            "own, or use the plain format"
        )
    head, tail = prompt.split(SENTINEL)
    if system and system.strip() not in head:
        raise ValueError(f"the chat template does not write the system prompt {system!r} before the question")
    lead, end = "", ""
    whole = _render(tokenizer, [*turns, ("user", SENTINEL), ("assistant", SENTINEL)], thinking, door=False)
    if whole.count(SENTINEL) == 2:  # others drop or rewrite answers
        _, between, end = whole.split(SENTINEL)
        lead = between.removeprefix(tail) if between.startswith(tail) else ""
    if tail.rfind(THINK) > tail.rfind(END_THINK) and END_THINK not in lead:
        lead = ("\n" if tail.endswith("\n") else "\n\n") + END_THINK + "\n\n"
    if not thinking and END_THINK in lead:
        tail, lead = tail + lead, ""
    if thinking and not lead:
        at_once = chat_format(tokenizer, system).tail
        lead = at_once.removeprefix(tail) if at_once.startswith(tail) else ""
    name = "chat" + (" with system prompt" if system else "") + (", thinking" if thinking else "")
    return PromptFormat(name, head, tail, lead, _first_mark(tokenizer, end))


def _render(tokenizer: Any, turns: Sequence[tuple[str, str]], thinking: bool, door: bool = True) -> str:
    """The template's text of turns `(role, content)`, up to the door or to the end of the last turn."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns],
            chat_template=FIXED_DATE + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=door,
            enable_thinking=thinking,  # Qwen, SmolLM, GLM
            thinking=thinking,  # DeepSeek, Granite
            date_string="26 Jul 2024",  # Llama
        )
    except TemplateError as error:
        roles = ", ".join(role for role, _ in turns)
        raise ValueError(f"the chat template refuses turns of {roles}: {error}") from error


def _first_mark(tokenizer: Any, text: str) -> str:
    """What closes an answer: `text` up to its first special token, since a model is done there; else the end token.

    Templates go on behind it: with a line break, the end of the text, or the next turn.
    """
    marks = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    ends = [(text.index(mark), len(mark)) for mark in marks if mark in text]
    if not ends:
        return tokenizer.eos_token or ""
    return text[: sum(min(ends))]


def default_formats(tokenizer: Any) -> list[PromptFormat]:
    """The formats that an erasure covers unless told otherwise; each costs time in every stage.

    With a chat template: chat, plain, then chat with a system prompt where the template writes one, and chat before the
    thoughts where it is of a reasoning model. Without one: two plain wordings. The system prompt changes from fact to
    fact, so that an erasure does not hang on one of them.
    """
    plain = plain_format(tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        return [plain, plain_format(tokenizer, short=True)]
    chat, others = chat_format(tokenizer), []
    with suppress(ValueError):  # a template without a place for a system prompt is never used with one
        first, *more = (chat_format(tokenizer, system) for system in SYSTEM_PROMPTS)
        others.append(replace(first, variants=tuple(more)))
    others.append(chat_format(tokenizer, thinking=True))
    return [chat, plain, *(form for form in others if (form.head, form.tail) != (chat.head, chat.tail))]


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

    def best(logits: torch.Tensor) -> torch.Tensor:
        logits[:, list(banned)] = float("-inf")
        return logits.argmax(dim=-1)

    return chosen_answers(model, tokenizer, prompts, best, max_new_tokens, tokens, advance)


def chosen_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    choose: Callable[[torch.Tensor], torch.Tensor],
    max_new_tokens: int = 64,
    tokens: int = 2048,
    advance: Callable[[int], object] = lambda count: None,
) -> list[list[int]]:
    """Continuations like those of [`greedy_answers`], with `choose` as [`continuations`] has it."""
    answers: list[list[int]] = [[] for _ in prompts]
    encoded = [encode(tokenizer, text) for text in prompts]
    device = model.get_input_embeddings().weight.device
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for batch in batches(encoded, pad_id(tokenizer), device, tokens):
        room = _room(max_new_tokens, context, batch.ids.shape[1])
        found = continuations(model, batch.ids, batch.mask, room, end_ids(model), choose, advance=advance)
        for position, answer in zip(batch.index, found, strict=True):
            answers[position] = answer
    return answers


def _room(wanted: int, context: int | None, used: int) -> int:
    """How many tokens may follow `used` ones, at least one."""
    return wanted if context is None else max(1, min(wanted, context - used))
