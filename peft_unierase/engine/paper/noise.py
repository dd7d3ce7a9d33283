"""The robustness stage's perturbation: weights with noise on them for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from ...lm.weights import is_plain


@contextmanager
def perturbed(projections: Sequence[Any], fraction: float, generator: torch.Generator) -> Iterator[None]:
    """Put Gaussian noise on the weights of down-projections (UniErase, arXiv 2505.15674, section 3.2, robustness).

    The noise has `fraction` times the Frobenius norm of the weight it is added to. A parameter with the sum takes the
    weight's place, and the weight itself comes back at the end, so it is the same to the bit, also after an exception.

    Args:
        projections: Edited projections, or plain ones.
        fraction: Size of the noise beside the weights; 0 perturbs nothing.
        generator: Source of the noise, on the CPU.

    Raises:
        ValueError: A weight is quantised, so that nothing can be added to it; nothing is changed then.
    """
    layers = [layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer for layer in projections]
    for layer in layers:
        if fraction and not is_plain(layer.weight):
            raise InputError(
                f"cannot add noise to a weight of dtype {layer.weight.dtype}: load the base in float32, bfloat16 or "
                "float16, or leave the robustness stage out (robust_steps=0)"
            )
    originals = [layer.weight for layer in layers]
    try:
        for layer in layers if fraction else []:
            weight = layer.weight.detach()
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            noisy = weight.float() + noise * (fraction * weight.float().norm() / noise.norm())
            layer.weight = nn.Parameter(noisy.to(weight.dtype), requires_grad=False)
        yield
    finally:
        for layer, weight in zip(layers, originals, strict=True):
            layer.weight = weight
