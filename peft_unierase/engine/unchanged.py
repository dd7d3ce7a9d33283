"""A model that is given back as it came if a run fails or is interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

from peft import PeftModel

from ..adapter.swap import SwappingLayer
from ..adapter.take_back import take_back
from ..adapter.token_row import resize_vocabulary


@contextmanager
def unchanged_on_failure(model: Any, peft_model: PeftModel | None, adapter_name: str) -> Iterator[None]:
    """Give the model back as it came, with the erasures that it carried, if the block fails or is interrupted."""
    whole = peft_model or model
    training = {module: module.training for module in whole.modules()}
    rows = model.get_input_embeddings().weight.shape[0]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    active = {module: module.active_adapter for module in model.modules() if isinstance(module, SwappingLayer)}
    tuner: Any = getattr(peft_model, "base_model", None)
    kept = () if tuner is None else ("active_adapter", "targeted_module_names")
    state = {name: copy(getattr(tuner, name)) for name in kept}
    try:
        yield
    except BaseException:
        take_back(model, adapter_name, active)
        for layer, before in active.items():
            layer._active_adapter = before
        if tuner is None:
            vars(model).pop("peft_config", None)
        else:
            tuner.peft_config.pop(adapter_name, None)
            for name, value in state.items():
                setattr(tuner, name, value)
        if model.get_input_embeddings().weight.shape[0] != rows:
            resize_vocabulary(model, rows)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
        for module, was in training.items():
            module.training = was
        raise
