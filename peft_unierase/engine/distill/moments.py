"""How much the updates write on retained inputs: one matrix a module stands for all retained texts at once.

The divergence from the base is measured on a few retained texts a step. What an update adds to a module's output for
*all* of them, the mean of `|B A x|^2`, needs their second moment alone (as the null space of AlphaEdit, arXiv
2410.02355, does), and so no pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...prompts import batches
from .texts import Text


def change(inputs: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared norm of what an update `b a` writes on retained texts, over that of what the module writes.

    Args:
        inputs: As [`input_moments`] gives it, `(in, in)`.
        a: `(r, in)`.
        b: `(out, r)`.
    """
    return ((a @ inputs @ a.T) * (b.T @ b)).sum()


@torch.no_grad()
def input_moments(
    model: Any, modules: Mapping[str, nn.Module], texts: Sequence[Text], pad: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Second moments `(in, in)` of the modules' inputs over all tokens of the texts, in fp32, over the energy written."""
    sums: dict[str, torch.Tensor] = {}
    written: dict[str, torch.Tensor] = {}
    for batch in batches([text.ids for text in texts], pad, device, 2048):
        with _seen(modules) as seen:
            model(**batch.inputs(), use_cache=False, logits_to_keep=1)
        for name, (read, wrote) in seen.items():
            mask = batch.mask.bool().to(read.device)
            x, y = read[mask].float(), wrote[mask].float()
            sums[name] = sums.get(name, 0) + x.T @ x
            written[name] = written.get(name, 0) + y.pow(2).sum()
    return {name: total / written[name] for name, total in sums.items()}


@contextmanager
def _seen(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """What each module reads and writes in a pass."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def note(name: str) -> Any:
        return lambda module, args, output: seen.__setitem__(name, (args[0], output))

    handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
