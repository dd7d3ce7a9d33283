"""The parameters of an adapter in a model: held against what was read, and taken out again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ..errors import InputError
from .norms import is_sound
from .swap import SwappingLayer


def parameters_of(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of an adapter, each by its name in the model."""
    for name, layer in model.named_modules():
        if isinstance(layer, SwappingLayer):
            for part in layer.adapter_layer_names:
                if adapter_name in (parameters := getattr(layer, part)):
                    yield f"{name}.{part}.{adapter_name}", parameters[adapter_name]


def check_loaded(own: Mapping[str, torch.Tensor], loaded: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that are not those of an adapter as it was put on a model.

    Args:
        own: The adapter's parameters, by their names in the model.
        loaded: What was read, by the same names.

    Raises:
        ValueError: One is missing, has another shape, or holds what is not finite; or there is one more.
    """
    if missing := sorted(own.keys() - loaded.keys()):
        raise InputError(f"the weights lack {missing[0]}, which the config declares; get the files anew")
    for name, value in loaded.items():
        if name not in own:
            raise InputError(f"the weights hold {name}, which the config does not declare; get the files anew")
        if value.shape != own[name].shape:
            raise InputError(f"{name} has the shape {tuple(value.shape)}, the base needs {tuple(own[name].shape)}")
        if not value.is_meta and not is_sound(value, columns=".unierase_B." in name):
            raise InputError(f"{name} holds values that are not finite, or huge; get the files anew")


def take_off(model: Any, adapter_name: str) -> None:
    """Leave a model without an adapter that was put on it; without any, with its own layers again."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = [layer for layer in base.modules() if isinstance(layer, SwappingLayer)]
    others = [name for name in model.peft_config if name != adapter_name]
    before = {layer for layer in layers if layer.held_adapters(others)}
    if not before:
        unwrap(base)
        return
    with layers[0].switch.change():
        take_back(base, adapter_name, before)
        del model.peft_config[adapter_name]


def take_back(model: nn.Module, adapter_name: str, before: Collection[SwappingLayer]) -> None:
    """Take out of a model what there is of an adapter that could not be put on, or not made.

    Args:
        model: The base.
        adapter_name: The adapter.
        before: The layers that it had before.
    """
    for name, layer in [pair for pair in model.named_modules() if isinstance(pair[1], SwappingLayer)]:
        if layer not in before:
            if not before:
                layer.switch.unwatch()
            model.set_submodule(name, layer.get_base_layer())
            continue
        for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
            if adapter_name in (held := getattr(layer, attribute)):
                del held[adapter_name]


def unwrap(base: nn.Module) -> None:
    """Put a base's own layers back in the place of those of adapters, and forget these."""
    for name, layer in [pair for pair in base.named_modules() if isinstance(pair[1], SwappingLayer)]:
        layer.switch.unwatch()
        base.set_submodule(name, layer.get_base_layer())
    vars(base).pop("peft_config", None)
