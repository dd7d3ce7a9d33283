"""Gradients: whether they pass through a quantised base, and their sum over processes.

Not every kernel that runs a quantised layer has a way back. Whoever fits through one without would be told nothing and
get a fit to the rest of the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from ..errors import InputError
from .processes import Processes
from .structure import projection_shape
from .weights import is_plain

Item = TypeVar("Item")
Result = TypeVar("Result")


def added_up(
    model: Any, items: Sequence[Item], add: Callable[[Item], Result], costs: Sequence[float], processes: Processes
) -> list[Result]:
    """What `add` gives for each item, and the gradients that it adds, in every process.

    They are added in the order of the items, so that the sum does not depend on how many processes there are.

    Args:
        model: The model whose parameters get the gradients; they have none yet.
        items: What is to be done, the same in all processes.
        add: Does it, and adds the gradients of one item.
        costs: How long each takes, in any unit.
        processes: Share the items.
    """
    if processes.count == 1:
        return [add(item) for item in items]
    trained = [part for part in model.parameters() if part.requires_grad]

    def alone(item: Item) -> tuple[Result, list[torch.Tensor | None]]:
        for part in trained:
            part.grad = None
        return add(item), [part.grad for part in trained]

    found = processes.each(items, alone, costs)
    for part, gradients in zip(trained, zip(*(own for _, own in found), strict=True), strict=True):
        there = [gradient for gradient in gradients if gradient is not None]
        part.grad = there[0] if there else None
        for gradient in there[1:]:
            part.grad = part.grad + gradient
    return [result for result, _ in found]


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
