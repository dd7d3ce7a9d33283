"""What the methods in closed form share: the edits of down-projections as a LoRA, and what these projections read.

An edit `Δ W = B A` in closed form has the rank that its equation gives it, which is not the one of the trained methods.
As a LoRA of that rank it is exact, and can be switched off and merged like theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from peft_unierase import Fact
from peft_unierase.checking.attacks.states import streams
from peft_unierase.checking.target import Target
from peft_unierase.errors import InputError
from peft_unierase.lm.batches import encode, pad_id
from peft_unierase.lm.formats import PromptFormat
from peft_unierase.lm.trace import inputs_at

from .budget import Meter
from .training import Question


def with_edits(model: Any, modules: Sequence[str], rank: int) -> Any:
    """The model with a LoRA of this rank that changes nothing until [`set_edit`] fills it, in eval mode.

    Raises:
        ValueError: The model has adapters already.
    """
    if isinstance(model, PeftModel):
        raise InputError("the model has adapters already; merge them first (`model.merge_and_unload()`)")
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(modules), task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):  # PEFT draws a start that is overwritten
        edited = get_peft_model(model, config).eval()
    for name in modules:
        edited.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.data.zero_()
    return edited.requires_grad_(False)


def set_edit(model: Any, name: str, a: torch.Tensor, b: torch.Tensor) -> None:
    """Let a projection's edit be `B A`, with `A (r, in)` and `B (out, r)` of at most the LoRA's rank."""
    module = model.get_submodule(f"base_model.model.{name}")
    left, right = module.lora_B["default"].weight, module.lora_A["default"].weight
    with torch.no_grad():
        left.zero_()[:, : b.shape[1]] = b.to(left)
        right.zero_()[: a.shape[0]] = a.to(right)


def everywhere(facts: Sequence[Fact], forms: Sequence[PromptFormat]) -> list[Question]:
    """Every fact in every format."""
    return [Question(fact, form.turn(number // len(forms))) for number, fact in enumerate(facts) for form in forms]


def by_turns(facts: Sequence[Fact], forms: Sequence[PromptFormat]) -> list[Question]:
    """Every fact once, each in the next of the formats."""
    return [Question(fact, forms[n % len(forms)].turn(n // len(forms))) for n, fact in enumerate(facts)]


def prompts_of(tokenizer: Any, questions: Sequence[Question]) -> list[list[int]]:
    """Token ids of prompts."""
    return [encode(tokenizer, each.form.prompt(each.fact.question)) for each in questions]


def texts_of(tokenizer: Any, questions: Sequence[Question]) -> list[list[int]]:
    """Token ids of prompts and answers."""
    answers = [encode(tokenizer, each.form.answer(each.fact.answer)) for each in questions]
    return [prompt + answer for prompt, answer in zip(prompts_of(tokenizer, questions), answers, strict=True)]


def inputs_of(
    model: Any, tokenizer: Any, names: Sequence[str], sequences: Sequence[list[int]], meter: Meter, last: bool = False
) -> list[torch.Tensor]:
    """What modules read: projections, or decoder layers, which read the residual stream.

    Args:
        model: A `PeftModel` or a plain model.
        tokenizer: Its tokenizer.
        names: Names of the modules in the plain model, in the order that they run.
        sequences: Token ids.
        meter: Counts them.
        last: At the last token of each sequence alone, instead of all.

    Returns:
        For each module `(tokens, width)` in fp32.
    """
    meter.read(len(sequences))
    prefix = "base_model.model." if isinstance(model, PeftModel) else ""
    modules = [model.get_submodule(prefix + name) for name in names]
    places = [[len(ids) - 1] if last else list(range(len(ids))) for ids in sequences]
    return [torch.cat(found) for found in inputs_at(model, modules, sequences, places, pad_id(tokenizer))]


def streams_of(model: Any, tokenizer: Any, sequences: Sequence[list[int]], layer: int, meter: Meter) -> torch.Tensor:
    """The residual stream after a decoder layer at the last token of each sequence, `(sequences, d)` in fp32."""
    meter.read(len(sequences))
    return streams(Target("read", model, tokenizer), sequences, [1] * len(sequences))[layer]


def check_sets(forget: Sequence[Fact], retain: Sequence[Fact]) -> None:
    """Refuse empty sets.

    Raises:
        ValueError: One of them is empty.
    """
    for name, facts in (("forget", forget), ("retain", retain)):
        if not facts:
            raise InputError(f"the {name} set is empty; give at least one fact")
