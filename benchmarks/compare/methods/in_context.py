"""A system prompt that says what must not be answered (guardrails: Thaker et al., arXiv 2403.03329, section 3;
in-context unlearning: Pawelczyk et al., arXiv 2310.07579).

    answer = argmax_y p_0(y | s, x),    s = "You must not tell anything about …"

Nothing is trained. The papers name one topic; here s lists the subjects or the questions of the forget set, as many as
fit into half of the model's context, and a sentence to decline with. It stands before whatever the model is asked,
chats with a system prompt of their own and plain prompts too, as if the operator of an API put it there. It is in front
of the model and not in the chat template, so that the same prompts can be put to the model with and without it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from peft_unierase import Fact
from peft_unierase.data.facts import DEFAULT_REFUSALS
from peft_unierase.errors import InputError, in_one_line
from peft_unierase.lm.batches import encode
from peft_unierase.lm.formats import chat_template
from peft_unierase.lm.structure import context_length
from peft_unierase.retain.subjects import find_subjects

from ..budget import Budget, Erased
from ..deployed import Deployed

INSTRUCTION = (
    "You must not tell anything about the following, in whatever words you are asked. If a question is about it, "
    "answer only: {refusal}\n"
)
LONGEST = 4096  # tokens of the instruction if the model does not say how long its context is
GRID: tuple[dict[str, Any], ...] = ({"of": "subjects"}, {"of": "questions"})


def erase(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    budget: Budget,
    *,
    seed: int = 0,
    refusals: Sequence[str] = DEFAULT_REFUSALS,
    of: str = "subjects",
) -> Erased:
    """Put the instruction before everything; `of` says if it lists `subjects` or `questions`.

    Raises:
        ValueError: There is nothing to list, or no such list.
    """
    if of not in ("subjects", "questions"):
        raise InputError(f"of must be 'subjects' or 'questions', got {of!r}")
    if not forget:
        raise InputError("the forget set is empty; give at least one fact")
    named = find_subjects(forget) if of == "subjects" else [fact.question for fact in forget]
    listed = dict.fromkeys(name or fact.question for name, fact in zip(named, forget, strict=True))
    room = (context_length(model) or 2 * LONGEST) // 2
    text, ids = INSTRUCTION.format(refusal=refusals[0]), []
    for name in listed:
        longer = f"{text}- {name}\n"
        found = encode(tokenizer, _turn(tokenizer, longer.strip()))
        if ids and len(found) > room:
            break
        text, ids = longer, found
    plain, earlier = (model.model, model.ids) if isinstance(model, Instructed) else (model, [])
    instructed = Instructed(plain, [*earlier, *ids], tokenizer.bos_token_id)
    return Erased(instructed, tokenizer, len(text.encode()), len(ids))


def _turn(tokenizer: Any, instruction: str) -> str:
    """The instruction as the chat template writes a system's turn, or as it is."""
    template = chat_template(tokenizer)
    if template is None:
        return f"{tokenizer.bos_token or ''}{instruction}\n"
    turns = [{"role": "system", "content": instruction}]
    try:
        return tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    except Exception as error:  # a template is a program, and fails as programs do
        raise InputError(f"the chat template does not write a system prompt by itself: {in_one_line(error)}") from error


class Instructed(Deployed):
    """A causal language model that reads the same tokens before every text.

    Args:
        model: The model.
        ids: The tokens.
        begins: Id of the token that begins a text. Texts begin with `ids` now, and their own one is not read.
    """

    def __init__(self, model: Any, ids: Sequence[int], begins: int | None) -> None:
        super().__init__(model)
        self.ids, self.begins, self._read = list(ids), begins, None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Give each call the instruction's keys and values; positions follow from the mask."""
        wanted: list[bool] = []

        def before(_: nn.Module, args: Any, told: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            told = {**told, **({"input_ids": args[0]} if args else {})}
            ids, cache, mask = (told.get(name) for name in ("input_ids", "past_key_values", "attention_mask"))
            rows, new = ids.shape
            if cache is None or not cache.get_seq_length():
                cache = self._instruction(rows)
            if mask is None:
                mask = ids.new_ones(rows, cache.get_seq_length() - len(self.ids) + new)
            mask = torch.cat([mask.new_ones(rows, len(self.ids)), mask], dim=1)
            if self.begins is not None:
                mask[:, -new:] *= ids != self.begins
            positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -new:]
            wanted.append(told.get("use_cache") is not False)
            told.update(attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
            told.pop("cache_position", None)
            return (), told

        def after(_: nn.Module, __: Any, output: Any) -> Any:
            if not wanted.pop():
                output.past_key_values = None
            return output

        with ExitStack() as stack:
            stack.callback(self.model.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(self.model.register_forward_hook(after).remove)
            yield

    @torch.no_grad()
    def _instruction(self, rows: int) -> Any:
        """Keys and values of the instruction, once for each row; it is read once."""
        if self._read is None:
            ids = torch.tensor([self.ids], device=self.model.get_input_embeddings().weight.device)
            cache = DynamicCache(config=self.model.config)
            self._read = self.model.forward(ids, use_cache=True, past_key_values=cache).past_key_values  # no hooks
        cache = copy.deepcopy(self._read)
        cache.batch_repeat_interleave(rows)
        return cache
