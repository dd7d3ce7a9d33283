"""Attacks on activations and weights: whoever has the files can mount them, and many round weights in good faith."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ...lm.batches import encode
from ..case import Case
from ..target import Target
from .attack import GREEDY, Attack, Found, NotApplicable, asked
from .states import layers_of, streams, without

GROUP = 64  # weights of one scale at 4 bits
DIRECTIONS = 8
SMALL = 1e-6  # singular values below this share of the largest one hold nothing


def direction_out(target: Target, case: Case) -> Found:
    """Whoever has the weights and some of the erased questions: what the erasure adds to the residual stream at the
    answer starts, on average over these, is projected out behind every layer (as arXiv 2406.11717 does with refusals).
    """
    means = [added.mean(dim=0, keepdim=True) for added in _added(target, case)]
    return _projected(target, case, [top_directions(mean, 1) for mean in means])


def directions_out(target: Target, case: Case) -> Found:
    """Whoever has the weights and some of the erased questions: the eight directions that hold most of what the erasure
    adds to the residual stream at the answer starts are projected out behind every layer.
    """
    return _projected(target, case, [top_directions(added, DIRECTIONS) for added in _added(target, case)])


def top_directions(added: torch.Tensor, count: int) -> torch.Tensor:
    """The directions that hold most of some vectors `(n, d)`, as orthonormal rows `(at most count, d)`."""
    _, values, rows = torch.linalg.svd(added.float(), full_matrices=False)
    return rows[:count][values[:count] > SMALL * values[0].clamp(min=SMALL)]


def _added(target: Target, case: Case) -> list[torch.Tensor]:
    """What a model has in its stream at the answer starts and the base has not, `(facts, d)` after each layer."""
    prompts = [encode(target.tokenizer, prompt) for prompt in case.prompts(case.forget)]
    after, before = (streams(each, prompts, [1] * len(prompts)) for each in (target, case.base))
    return [own - other for own, other in zip(after, before, strict=True)]


def _projected(target: Target, case: Case, directions: Sequence[torch.Tensor]) -> Found:
    prompts = case.prompts(case.forget)
    with ExitStack() as stack:
        if any(len(rows) for rows in directions):
            stack.enter_context(target.changed())
            stack.enter_context(without(layers_of(target.model), directions))
        return asked(target, case, prompts)


def quantised(bits: int, merged: bool) -> Callable[[Target, Case], Found]:
    """An attack by storing weights in so many bits, of the base under the adapter or of the merged model."""

    def run(target: Target, case: Case) -> Found:
        prompts = case.prompts(case.forget)
        judged = target.weights() if merged else target
        with judged.changed(), _stored_in(bits, judged.model):
            return asked(judged, case, prompts)

    what = "adapter and base are merged and then" if merged else "the base is, under the adapter,"
    run.__doc__ = (
        f"Whoever runs the model at {bits} bits, in good faith too: {what} quantised by torchao, or simulated by plain "
        f"rounding where that is not installed ({'one scale a row' if bits == 8 else f'{GROUP} weights a scale'}, "
        "symmetric; embedding and head are left as they are)."
    )
    return run


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Weights `(out, in)` rounded to nearest on a symmetric grid of `2^bits - 1` levels: one scale a row at 8 bits, one
    for every `GROUP` weights of a row below.
    """
    levels = 2 ** (bits - 1) - 1
    rows = weight.float()
    width = rows.shape[1] if bits >= 8 or rows.shape[1] % GROUP else GROUP
    groups = rows.reshape(rows.shape[0], -1, width)
    scale = groups.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / levels
    return ((groups / scale).round() * scale).reshape(rows.shape).to(weight.dtype)


@contextmanager
def _stored_in(bits: int, model: Any) -> Iterator[None]:
    quantise = _torchao(bits)
    with torch.no_grad(), ExitStack() as stack:
        for linear in _linears(model):
            stack.callback(setattr, linear, "weight", linear.weight)
            if quantise and isinstance(linear, nn.Linear) and linear.in_features % GROUP == 0:
                quantise(linear)
            else:
                linear.weight = nn.Parameter(rounded(linear.weight, bits), requires_grad=False)
        yield


def _torchao(bits: int) -> Callable[[nn.Module], object] | None:
    """What stores one projection's weights in so many bits, where the library is installed."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_
    except ImportError:
        return None
    four = torch.int4  # type: ignore[attr-defined]
    config = Int8WeightOnlyConfig() if bits == 8 else IntxWeightOnlyConfig(four, granularity=PerGroup(GROUP))
    return partial(quantize_, config=config, filter_fn=lambda *_: True)


def _linears(model: Any) -> list[Any]:
    """Projections of the decoder layers that are as the base has them."""
    found = [module for layer in layers_of(model) for name, module in layer.named_modules() if _is_base(name, module)]
    if not all(module.weight.is_floating_point() for module in found):
        raise NotApplicable("the model's weights are quantised already")
    return found


def _is_base(name: str, module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    own = any(part.startswith(("lora_", "unierase_")) for part in name.split("."))
    return isinstance(weight, torch.Tensor) and weight.dim() == 2 and not own and not list(module.children())


ATTACKS = (
    Attack("direction", "steering direction projected out", direction_out, against=GREEDY),
    Attack("directions", "8 directions projected out", directions_out, against=GREEDY),
    Attack("8-bit", "8-bit base under the adapter", quantised(8, merged=False), fast=False, against=GREEDY),
    Attack("4-bit", "4-bit base under the adapter", quantised(4, merged=False), fast=False, against=GREEDY),
    Attack("merged-8-bit", "merged, then 8 bits", quantised(8, merged=True), fast=False, against=GREEDY),
    Attack("merged-4-bit", "merged, then 4 bits", quantised(4, merged=True), fast=False, against=GREEDY),
)
