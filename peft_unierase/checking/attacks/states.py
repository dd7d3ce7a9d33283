"""What a model holds in mind: its residual stream while it reads, and the same with directions taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ...lm.batches import batches, pad_id
from ...lm.structure import find_decoder_layers
from ..target import Target


def layers_of(model: Any) -> list[nn.Module]:
    """The decoder layers of a model."""
    return list(find_decoder_layers(model)[1])


@torch.no_grad()
def streams(target: Target, sequences: Sequence[Sequence[int]], last: Sequence[int]) -> list[torch.Tensor]:
    """The residual stream after every layer, averaged over the last positions of each sequence.

    Args:
        target: The model.
        sequences: Token ids.
        last: Over how many of its last positions each one is averaged.

    Returns:
        One tensor a layer, `(sequences, d)` in fp32.
    """
    layers = layers_of(target.model)
    found: list[list[torch.Tensor]] = [[torch.zeros(0)] * len(sequences) for _ in layers]
    with target.on(), ExitStack() as stack:
        for batch in batches([list(ids) for ids in sequences], pad_id(target.tokenizer), target.device):
            for layer, states in zip(layers, found, strict=True):

                def see(_: nn.Module, __: Any, output: Any, states: Any = states, index: Any = batch.index) -> None:
                    stream = output[0] if isinstance(output, tuple) else output
                    for row, number in enumerate(index):
                        states[number] = stream[row, -last[number] :].float().mean(dim=0)

                stack.callback(layer.register_forward_hook(see).remove)
            target.model(**batch.inputs(), use_cache=False, logits_to_keep=1)
            stack.close()
    return [torch.stack(states) for states in found]


@contextmanager
def without(layers: Sequence[nn.Module], directions: Sequence[torch.Tensor]) -> Iterator[None]:
    """Project directions out of the stream after each layer.

    Args:
        layers: The layers.
        directions: For each of them orthonormal rows `(k, d)`; none of them changes nothing.
    """

    def hook(rows: torch.Tensor) -> Callable[..., Any]:
        def project(_: nn.Module, __: Any, output: Any) -> Any:
            stream = output[0] if isinstance(output, tuple) else output
            own = rows.to(stream)
            stream = stream - (stream @ own.T) @ own
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return project

    with ExitStack() as stack:
        for layer, rows in zip(layers, directions, strict=True):
            if len(rows):
                stack.callback(layer.register_forward_hook(hook(rows)).remove)
        yield
