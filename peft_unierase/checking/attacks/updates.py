"""Attacks on the low-rank update `B A` of an adapter: whoever has base and adapter apart can mount them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import ceil
from typing import Any

import torch

from ..case import Case
from ..target import Target
from .attack import GREEDY, Attack, Found, NotApplicable, asked

SMALL = 1e-6  # singular values below this share of the largest one count as zero
LARGEST, SMALLEST = 0.25, 0.5  # shares of the singular directions that are removed
Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def scaled(factor: float) -> Callable[[Target, Case], Found]:
    """An attack by loading the update with another weight."""

    def run(target: Target, case: Case) -> Found:
        return _changed(target, case, lambda _, b: b * factor)

    run.__doc__ = (
        f"Whoever has base and adapter, and loads it with {factor:g} times its weight: each update B A is scaled, and "
        "rows of tokens stay as they are."
    )
    return run


def largest_out(target: Target, case: Case) -> Found:
    """Whoever has base and adapter: the largest quarter of the singular directions of each update B A is removed, in
    which something that all facts share would lie.
    """
    return _changed(target, case, lambda a, b: removed(a, b, largest=True))


def smallest_out(target: Target, case: Case) -> Found:
    """Whoever has base and adapter, or stores the adapter at a lower rank in good faith: the smallest half of the
    singular directions of each update B A is removed.
    """
    return _changed(target, case, lambda a, b: removed(a, b, largest=False))


def removed(a: torch.Tensor, b: torch.Tensor, largest: bool) -> torch.Tensor:
    """`B` without some of the singular directions of `B A`.

    Args:
        a: `A`, `(r, in)`.
        b: `B`, `(out, r)`.
        largest: Remove the largest quarter of them, at least one; otherwise the smallest half, of one direction none.

    Returns:
        The new `B`, `(out, r)`, with the same `A`.
    """
    basis, outer = torch.linalg.qr(b.float())
    inner = torch.linalg.qr(a.float().T).R
    left, values, _ = torch.linalg.svd(outer @ inner.T, full_matrices=False)
    rank = int((values > SMALL * values[0]).sum())
    out = left[:, : ceil(LARGEST * rank)] if largest else left[:, rank - int(SMALLEST * rank) : rank]
    gone = basis @ out
    return (b.float() - gone @ (gone.T @ b.float())).to(b.dtype)


def _changed(target: Target, case: Case, change: Change) -> Found:
    """Greedy answers of the erased model with every `B` changed; of the other models as they are."""
    prompts = case.prompts(case.forget)
    if target.name != "erased":
        return asked(target, case, prompts)
    with torch.no_grad():
        factors = [(b, change(a, b)) for a, b in _updates(target.model)]
    if all(torch.equal(old, new) for old, new in factors):
        raise NotApplicable("the adapter's updates have one direction each, of which none is the smallest")
    with target.changed(), _exchanged(factors):
        return asked(target, case, prompts)


@contextmanager
def _exchanged(factors: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
    with torch.no_grad(), ExitStack() as stack:
        for old, new in factors:
            stack.callback(old.copy_, old.clone())
            old.copy_(new)
        yield


def _updates(model: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`A` and `B` of each projection that an active adapter updates.

    Raises:
        NotApplicable: The adapter has no edit layers, or one of them has no `A` or no `B`.
    """
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for name, module in model.named_modules():
        for kind in ("unierase", "lora"):
            a, b = (dict(getattr(module, f"{kind}_{letter}", {}).items()) for letter in "AB")
            for adapter in module.active_adapters if a or b else []:
                if (adapter in a) != (adapter in b):
                    raise NotApplicable(f"the adapter's update of {name} is no product B A")
                if adapter in a:
                    first, second = _weight(a[adapter]), _weight(b[adapter])
                    found.append((first, second))
    if not found:
        raise NotApplicable("the erased model has no low-rank update; check the adapter, not a merged model")
    return found


def _weight(factor: Any) -> torch.Tensor:
    """A factor, which LoRA has inside a module."""
    found: torch.Tensor = getattr(factor, "weight", factor)
    return found


ATTACKS = (
    Attack("scale-0.5", "half of the update", scaled(0.5), against=GREEDY),
    Attack("scale-1.5", "one and a half times the update", scaled(1.5), against=GREEDY),
    Attack("largest-out", "update's largest directions removed", largest_out, fast=False, against=GREEDY),
    Attack("smallest-out", "update's smallest directions removed", smallest_out, fast=False, against=GREEDY),
)
