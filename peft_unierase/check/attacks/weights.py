"""Attacks on activations and weights: whoever has the files can mount them, and many round weights in good faith."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ...prompts import batches, encode, pad_id
from ...tuner.structure import find_decoder_layers
from ..case import Case
from ..target import Target
from .attack import Found, NotApplicable

GROUP = 64  # weights of one scale at 4 bits


def direction_out(target: Target, case: Case) -> Found:
    """Whoever has the weights and some of the erased questions: what the erasure adds to the residual stream at the
    doors, on average over these, is projected out behind every layer (as arXiv 2406.11717 does with refusals).
    """
    prompts = case.prompts(case.forget)
    with torch.no_grad():
        pairs = zip(_doors(target, prompts), _doors(case.base, prompts), strict=True)
        added = [(after - before).mean(dim=0) for after, before in pairs]
    with target.bent(), _without(_layers(target.model), added):
        said = target.says(prompts, max_new_tokens=case.max_new_tokens)
    return Found(case.recalls(case.forget, said), case.floor(case.forget))


def quantised(bits: int, merged: bool) -> Callable[[Target, Case], Found]:
    """An attack by storing weights in so many bits, of the base under the adapter or of the merged model."""

    def run(target: Target, case: Case) -> Found:
        prompts = case.prompts(case.forget)
        judged = target.weights() if merged else target
        with judged.bent(), _stored_in(bits, judged.model):
            said = judged.says(prompts, max_new_tokens=case.max_new_tokens)
        return Found(case.recalls(case.forget, said), case.floor(case.forget))

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
    found = [module for layer in _layers(model) for name, module in layer.named_modules() if _is_base(name, module)]
    if not all(module.weight.is_floating_point() for module in found):
        raise NotApplicable("the model's weights are quantised already")
    return found


def _is_base(name: str, module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    own = any(part.startswith(("lora_", "unierase_")) for part in name.split("."))
    return isinstance(weight, torch.Tensor) and weight.dim() == 2 and not own and not list(module.children())


def _layers(model: Any) -> list[nn.Module]:
    return list(find_decoder_layers(model)[1])


@torch.no_grad()
def _doors(target: Target, prompts: Sequence[str]) -> list[torch.Tensor]:
    """The residual stream behind every layer at the doors, `(prompts, d)` in fp32 for each layer."""
    encoded = [encode(target.tokenizer, prompt) for prompt in prompts]
    layers = _layers(target.model)
    found: list[list[torch.Tensor]] = [[torch.zeros(0)] * len(prompts) for _ in layers]
    with target.on(), ExitStack() as stack:
        for batch in batches(encoded, pad_id(target.tokenizer), target.device):
            for layer, states in zip(layers, found, strict=True):

                def see(_: nn.Module, __: Any, output: Any, states: Any = states, index: Any = batch.index) -> None:
                    stream = output[0] if isinstance(output, tuple) else output
                    for row, number in enumerate(index):
                        states[number] = stream[row, -1].float()

                stack.callback(layer.register_forward_hook(see).remove)
            target.model(**batch.inputs(), use_cache=False, logits_to_keep=1)
            stack.close()
    return [torch.stack(states) for states in found]


@contextmanager
def _without(layers: Sequence[nn.Module], added: Sequence[torch.Tensor]) -> Iterator[None]:
    """Project a direction out of the stream behind each layer; one of no length changes nothing."""

    def hook(direction: torch.Tensor) -> Callable[..., Any]:
        unit = direction / direction.norm().clamp(min=1e-12)

        def project(_: nn.Module, __: Any, output: Any) -> Any:
            stream = output[0] if isinstance(output, tuple) else output
            own = unit.to(stream)
            stream = stream - (stream @ own)[..., None] * own
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return project

    with ExitStack() as stack:
        for layer, direction in zip(layers, added, strict=True):
            stack.callback(layer.register_forward_hook(hook(direction)).remove)
        yield
