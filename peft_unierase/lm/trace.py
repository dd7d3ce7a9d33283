"""Reading activations for the length of a `with` block; the model is as before when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .batches import batches


class _SeenEverything(Exception):  # noqa: N818 (a signal, not an error)
    """Ends a forward pass once everything asked for has been seen."""


@contextmanager
def traced_inputs(modules: Sequence[nn.Module], rows: int) -> Iterator[list[torch.Tensor]]:
    """Collect what goes into `modules`, which must run in this order, and end the forward pass at the last of them.

    Each is `(rows, length, width)`, also where a model runs its MLPs on all tokens of a batch in one row, as OPT does.
    """
    seen: list[torch.Tensor] = []

    def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        states = args[0].detach()
        seen.append(states.reshape(rows, -1, states.shape[-1]))
        if len(seen) == len(modules):
            raise _SeenEverything

    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield seen
    except _SeenEverything:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def traced_output(module: nn.Module) -> Iterator[list[Any]]:
    """Catch what comes out of `module`, and end the forward pass there."""
    seen: list[Any] = []

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(output)
        raise _SeenEverything

    handle = module.register_forward_hook(hook)
    try:
        yield seen
    except _SeenEverything:
        pass
    finally:
        handle.remove()


@torch.no_grad()
def inputs_at(
    model: Any,
    modules: Sequence[nn.Module],
    sequences: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    pad: int,
    advance: Callable[[int], object] = lambda count: None,
) -> list[list[torch.Tensor]]:
    """The inputs of modules at chosen positions of token sequences.

    Args:
        model: The model to run.
        modules: Modules whose first input holds a state for every token, in the order they run.
        sequences: Token ids.
        positions: For each sequence the positions wanted.
        pad: Id to pad batches with.
        advance: Called with the number of tokens finished.

    Returns:
        For each module and each sequence a tensor `(len(positions), width)` in fp32.
    """
    found: list[list[Any]] = [[None] * len(sequences) for _ in modules]
    device = model.get_input_embeddings().weight.device
    for batch in batches(sequences, pad, device):
        with traced_inputs(modules, len(batch.index)) as seen:
            model(**batch.inputs(), use_cache=False, logits_to_keep=1)
        for per_module, states in zip(found, seen, strict=True):
            for row, index in enumerate(batch.index):
                shift = states.shape[1] - len(sequences[index])  # padding is on the left
                per_module[index] = states[row, [shift + position for position in positions[index]]].float()
        advance(int(batch.mask.sum()))
    return found
