"""Whether gradients pass through a quantised base: not every kernel that runs a quantised layer has a way back.

Whoever fits through one without would be told nothing and get a fit to the rest of the model.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from ..errors import InputError
from .structure import projection_shape
from .weights import is_plain


def check_gradients(model: Any) -> None:
    """Refuse a base that no gradient passes through.

    Args:
        model: The base, in eval mode.

    Raises:
        ValueError: Names the first of its quantised layers for which that is so.
    """
    dtype = model.get_input_embeddings().weight.dtype
    for name, module in model.named_modules():
        shape = projection_shape(module)
        if shape is None or isinstance(module, BaseTunerLayer) or is_plain(module.weight):
            continue
        probe = torch.zeros(1, shape[0], dtype=dtype, device=module.weight.device)
        with torch.no_grad():
            module(probe)  # bitsandbytes changes over to such a kernel only when a layer has run without gradients
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            output = module(probe.requires_grad_()).sum()
            passed = output.requires_grad and torch.autograd.grad(output, probe, allow_unused=True)[0] is not None
        if not passed:
            raise InputError(
                f"no gradient passes through {name}, a quantised {type(module).__name__}, on this machine, so nothing "
                "can be fitted to this base; load it in float32, bfloat16 or float16 to erase from it, and put the "
                "finished erasure on the quantised one"
            )
