"""What a caller has switched on around a run: `torch.no_grad()`, autocast, `torch.inference_mode()`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch

from ..errors import InputError

DEVICE_TYPES = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "maia", "xla", "ipu", "privateuseone")


@contextmanager
def own_surroundings() -> Iterator[None]:
    """Gradients on and autocast off, on devices of every type, for a block; behind it all is as the caller had it."""
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        for kind in DEVICE_TYPES:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def refuse_inference_mode(name: str, *models: Any) -> None:
    """Refuse to run inside `torch.inference_mode()`, or on models that were loaded there.

    Args:
        name: What is to run, for the message.
        models: The models; those that are `None` are left out.

    Raises:
        ValueError: Says which of the two it is.
    """
    if torch.is_inference_mode_enabled():
        raise InputError(
            f"`{name}` was called inside torch.inference_mode(), where nothing can have a gradient; call it outside "
            "(torch.no_grad() and autocast are no hindrance)"
        )
    for model in models:
        tensors = () if model is None else chain(model.named_parameters(), model.named_buffers())
        if found := next((key for key, tensor in tensors if tensor.is_inference()), None):
            raise InputError(
                f"the model's {found} was made inside torch.inference_mode() and can never have a gradient, so "
                f"`{name}` cannot work with it; load the model outside"
            )
