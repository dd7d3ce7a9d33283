"""The erasures that a model carries already, and what they have taken.

A further erasure is made on the model with the active ones on: that is its base. It leaves to each of them its
vocabulary row and its token's text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from ..adapter.model import UniEraseModel
from ..adapter.swap import SwappingLayer
from ..adapter.targets import check_adapter_name
from ..data.facts import Fact
from ..errors import InputError
from ..guard.config import UniEraseConfig
from ..lm.batches import encode, last_logits, pad_id
from ..lm.decoding import end_ids, greedy_answers
from ..lm.formats import PromptFormat
from ..lm.weights import hash_tensors


def underlying_model(model: Any) -> Any:
    """The transformers model itself, whether or not it carries erasures.

    Raises:
        ValueError: It carries adapters of another kind, adapters that are merged or switched off, or adapters that are
            not held by a `PeftModel`.
    """
    wrapped = isinstance(model, PeftModel)
    if wrapped and not isinstance(model.base_model, UniEraseModel):
        kinds = sorted({str(getattr(config.peft_type, "value", config.peft_type)) for config in _configs(model)})
        raise InputError(
            f"the model is a PeftModel with adapters of type {', '.join(kinds)}; a further erasure can be put beside "
            "earlier ones (UNIERASE) only. Merge its adapters first (merge_and_unload) or unload them"
        )
    base = model.get_base_model() if wrapped else model
    layers = [module for module in base.modules() if isinstance(module, BaseTunerLayer)]
    kinds = sorted({type(layer).__name__ for layer in layers if not (wrapped and isinstance(layer, SwappingLayer))})
    if kinds:
        raise InputError(
            f"the model has adapter layers ({', '.join(kinds)}) that no PeftModel of erasures holds; take the adapters "
            "out, or load the base anew and its erasures with PeftModel.from_pretrained and load_adapter"
        )
    if merged := sorted({name for layer in layers for name in layer.merged_adapters}):
        raise InputError(
            f"adapters {merged} are merged, so the base's own weights are not there; call unmerge_adapter() first, or "
            "make the merged model a base of its own (merge_and_unload)"
        )
    if carried(model) and not active_erasures(model):
        raise InputError(
            "the model's adapters are switched off, so a further erasure would not be made on top of them; leave "
            "`disable_adapter()` first, call enable_adapter_layers(), or name those that shall be on (set_active)"
        )
    return base


def _configs(model: PeftModel) -> list[Any]:
    return list(model.peft_config.values())


def carried(model: Any) -> dict[str, UniEraseConfig]:
    """Configurations of all erasures in a model, active or not, by name."""
    return dict(model.peft_config) if isinstance(model, PeftModel) else {}


def active_erasures(model: Any) -> list[str]:
    """Names of those that are on."""
    return list(model.base_model.active_adapters) if isinstance(model, PeftModel) else []


def new_name(model: Any, wanted: str | None) -> str:
    """Name of a further erasure: as wanted, or `default` and behind it the first free of `erasure-2`, `erasure-3`, …

    Raises:
        ValueError: The wanted name is taken, or no name for an adapter.
    """
    taken = carried(model)
    if wanted is None:
        names = (f"erasure-{number}" if number > 1 else "default" for number in count(1))
        return next(name for name in names if name not in taken)
    check_adapter_name(wanted)
    if wanted in taken:
        raise InputError(
            f"the model already has an adapter {wanted!r}; give another `adapter_name`, or leave it out to have one "
            "chosen"
        )
    return wanted


@contextmanager
def switched_off(model: Any, names: Sequence[str] | None = None) -> Iterator[None]:
    """Some erasures off, `None` for all of them, and nothing else about the model changed, for a `with` block."""
    layers = [module for module in model.modules() if isinstance(module, SwappingLayer)]
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        # Past `set_adapter`, which would make what is left on trainable.
        layer._active_adapter = [name for name in layer.active_adapters if names is not None and name not in names]
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


def as_answered_now(model: Any, tokenizer: Any, form: PromptFormat, facts: Sequence[Fact]) -> list[Fact]:
    """Facts of the bare base as the model answers them with its erasures on.

    Where an erasure declines the answer becomes that refusal, with the erasure's token in front: a further erasure must
    not act there, or both would act at once and garble the refusal.

    Args:
        model: The base, with erasures.
        tokenizer: Its tokenizer, which knows their tokens.
        form: The prompt format to ask in.
        facts: Facts that the base answers as they say.

    Returns:
        The facts in their order, less those that are not answered with a word any more.
    """
    changed = [n for n, now in enumerate(changed_answers(model, tokenizer, form, facts)) if now]
    prompts = [form.prompt(facts[number].question) for number in changed]
    ends, answers = end_ids(model), [fact.answer for fact in facts]
    for number, ids in zip(changed, greedy_answers(model, tokenizer, prompts), strict=True):
        answers[number] = tokenizer.decode([token for token in ids if token not in ends]).strip()
    return [replace(fact, answer=answer) for fact, answer in zip(facts, answers, strict=True) if answer]


def changed_answers(model: Any, tokenizer: Any, form: PromptFormat, facts: Sequence[Fact]) -> list[bool]:
    """For each fact whether the active erasures change how its answer begins or bring up a token of theirs in it."""
    with switched_off(model):
        bare = _said(model, tokenizer, form, facts)
    said = _said(model, tokenizer, form, facts)
    configs = getattr(model, "peft_config", {}).values()
    ours = {token_id for config in configs for token_id, _ in config.tokens}
    return [now[0] != before[0] or bool(ours & set(now)) for now, before in zip(said, bare, strict=True)]


def _said(model: Any, tokenizer: Any, form: PromptFormat, facts: Sequence[Fact]) -> list[list[int]]:
    """For each fact the likeliest token at its answer start and after each token of its answer but the last."""
    prompts = [encode(tokenizer, form.prompt(fact.question)) for fact in facts]
    whole = [prompt + encode(tokenizer, form.answer(fact.answer)) for prompt, fact in zip(prompts, facts, strict=True)]
    said: list[list[int]] = [[] for _ in facts]
    keep = [len(sequence) - len(prompt) + 1 for sequence, prompt in zip(whole, prompts, strict=True)]
    for number, logits in last_logits(model, whole, keep, pad_id(tokenizer)):
        said[number] = logits[:-1].argmax(dim=-1).tolist()
    return said


def erasure_digest(model: PeftModel, name: str) -> str:
    """SHA-256 over an erasure's weights and where they belong, whatever the erasure is called here."""
    digest = hashlib.sha256()
    own = {
        key.removesuffix(name): parameter
        for key, parameter in model.get_base_model().named_parameters()
        if ".unierase_" in key and key.endswith(f".{name}")
    }
    hash_tensors(digest, ((f"{key}{tuple(own[key].shape)}", own[key]) for key in sorted(own)), torch.Tensor.float)
    config = model.peft_config[name]
    for part in config.split():
        digest.update(repr((part.token_id, part.r, sorted(part.rank_pattern.items()))).encode())
    return f"sha256:{digest.hexdigest()}"
