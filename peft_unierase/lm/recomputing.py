"""Gradient checkpointing in a model that is not trained: activations that are computed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def recomputing(model: Any) -> Iterator[bool]:
    """Let the gradient checkpointing that was switched on in a model work in a `with` block; whether there is any.

    Transformers does it in training mode alone, which would switch dropout on. Here the layers alone are told that they
    train, and not what is in them. Inside the block they take no cache.

    Args:
        model: A transformers model, with PEFT's layers or without.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing and not module.training
    ]
    for layer in layers:
        layer.training = True
    try:
        yield bool(layers)
    finally:
        for layer in layers:
            layer.training = False
