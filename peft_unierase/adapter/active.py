"""Several erasures in one model: load them, switch them on and off, bring the tokenizer into line.

PEFT's own ways work too (`load_adapter`, `base_model.set_adapter([...])`, `disable_adapter`); these check first, so
that a refusal leaves everything as it was.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from peft import PeftModel

from ..errors import InputError
from .swap import SwappingLayer, off_while_named
from .vocabulary import add_special_tokens


def set_active(model: PeftModel, names: Sequence[str]) -> None:
    """Switch on these erasures and no other; none of them gives the base.

    Passes that other threads have begun keep the state that they began with.

    Raises:
        ValueError: There is none of a name, two cannot be on together, or it is inside `disable_adapter()`, where none
            can be on; nothing is changed then.
        RuntimeError: Erasures are merged, and another thread is in a forward pass of the model.
    """
    names = [names] if isinstance(names, str) else list(names)
    with model.base_model.switch.change():
        off = model.base_model.is_off()
        # PEFT's note of a block without adapters alone can be out of date, if threads have begun and left some at once.
        if names and off and model._adapters_disabled:
            raise InputError(off_while_named(names))
        if off and not model._adapters_disabled:
            check_together(model, names)
            model.base_model.enable_adapter_layers()
        model.base_model.set_adapter(names, inference_mode=True)
        model.base_model.switch.owner = weakref.ref(model)
        model.active_adapter = names[0] if names else model.active_adapter


def check_together(model: PeftModel, names: list[str]) -> None:
    """Raise `ValueError` if the model has no adapter of a name, or two of them cannot be on together."""
    if missing := [name for name in names if name not in model.peft_config]:
        raise InputError(f"the model has no adapter {missing[0]!r}; it has {', '.join(map(repr, model.peft_config))}")
    for module in model.modules():
        if isinstance(module, SwappingLayer):
            module.check_together(names)


def toggle(model: PeftModel, name: str, on: bool | None = None) -> None:
    """Switch one erasure on or off, or over where `on` is `None`; the others stay as they are.

    Raises:
        ValueError: See [`set_active`].
    """
    with model.base_model.switch.change():  # so that none is lost if two threads do this at once
        now = active(model)
        if name in now and not on:
            now.remove(name)
        elif name not in now and (on is None or on or name not in model.peft_config):
            now.append(name)
        set_active(model, now)


def active(model: PeftModel) -> list[str]:
    """The erasures that are on."""
    on = model.base_model.active_adapters
    layers = [module for module in model.modules() if isinstance(module, SwappingLayer)]
    return list(dict.fromkeys(name for layer in layers for name in layer.merged_adapters if on)) or on


def align_tokenizer(tokenizer: Any, model: PeftModel) -> None:
    """Make the token of every erasure in the model a special token of the tokenizer, under the id that it has there, so
    that `skip_special_tokens=True` hides them all.

    Raises:
        RuntimeError: The tokenizer gave a token another id; nothing can be decoded rightly then.
    """
    configs = model.peft_config.values()
    add_special_tokens(tokenizer, {pair for config in configs for pair in getattr(config, "tokens", [])})
