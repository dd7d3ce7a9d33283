"""What the guard can tell with the base at hand: whether edits and rows fit it, lie where an erasure may be, and how
large they are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..adapter.config import AdapterConfig
from ..lm.structure import (
    UnsupportedModelError,
    find_token_modules,
    ids_in_config,
    mlp_projections_of,
    projection_shape,
)
from ..lm.weights import is_plain
from .files import Finding, refuse
from .weights import OUTSIDE, Edited, holders_of

# Of an edit to its weight, by the Frobenius norm. The largest found in an erasure is 3.0 (docs/guides/security.md).
MAX_RATIO = 100.0
# Rows by which a vocabulary may grow for erasures that were made on a base which had grown, one row each.
MAX_GROWTH = 256
ANOTHER = "the erasure was made for another base"


def check_on_base(
    base: nn.Module,
    parts: Sequence[AdapterConfig],
    modules: Mapping[str, Edited],
    norms: Mapping[str, Mapping[str, float]],
) -> list[Finding]:
    """Hold the edits and rows of an erasure against the base that it is to be loaded on.

    Args:
        base: A model, with or without adapters, also on the meta device.
        parts: The erasures that the config declares.
        modules: What the weights have for each module.
        norms: See `check_values`.
    """
    names = [name for name, edited in modules.items() if not edited.is_row]
    there = {name: module for name in names if (module := own_module(base, name)) is not None}
    try:
        known = mlp_projections_of(base, list(there))
    except UnsupportedModelError:
        known = set(there)  # of a mixture of experts, for instance: the names alone tell
    findings = []
    for name in names:
        shape = projection_shape(there.get(name))
        if name in there and name not in known:
            findings.append(refuse(OUTSIDE, name, "an erasure edits projections of MLPs, and this base has other ones"))
        elif shape is None:
            what = "an edit of a module that the base does not have"
            findings.append(refuse(what, name, ANOTHER))
        else:
            findings += _check_edit(there[name], shape, parts, name, modules[name], norms.get(name, {}))
    return findings + list(_check_rows(base, parts, modules))


def own_module(base: nn.Module, name: str) -> Any:
    """The base's own module of that name, without the layer that an adapter has put around it."""
    try:
        module: Any = base.get_submodule(name)
    except AttributeError:
        return None
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _check_edit(
    module: Any,
    shape: tuple[int, int],
    parts: Sequence[AdapterConfig],
    name: str,
    edited: Edited,
    norms: Mapping[str, float],
) -> Iterator[Finding]:
    found = (edited.shapes.get("A", (0, 0))[-1], edited.shapes.get("B", (0, 0))[0])
    if found != shape:
        value = f"{name} from {found[0]} to {found[1]}, the base's is from {shape[0]} to {shape[1]}"
        yield refuse("an edit of another shape than the projection", value, ANOTHER)
        return
    weight = module.weight
    if weight.is_meta or not is_plain(weight) or "BA" not in norms:
        return
    size = float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float32))
    most = MAX_RATIO * max(1, len(holders_of(parts, name)))
    if norms["BA"] > most * size:
        value = f"{name} with a norm of {norms['BA']:.3g} beside {size:.3g} of its weight"
        yield refuse("an edit that drowns the weight", value, f"it may be {most:g} times as large")


def _check_rows(base: Any, parts: Sequence[AdapterConfig], modules: Mapping[str, Edited]) -> Iterator[Finding]:
    """Refuse rows that are not those of the base's embedding and head, or of tokens that it does not have or needs."""
    rows = {name: edited for name, edited in modules.items() if edited.is_row}
    if not rows:
        return
    try:
        own = find_token_modules(base)
    except (UnsupportedModelError, AttributeError):
        own = list(rows)
    for name, edited in rows.items():
        if name not in own or own_module(base, name) is None:
            yield refuse("a token's row outside embedding and head", name, f"this base has {' and '.join(own)}")
            continue
        weight, width = own_module(base, name).weight, edited.shapes["row"][-1]
        if is_plain(weight) and weight.dim() == 2 and weight.shape[1] != width:
            value = f"{name} with {width} values, the base's rows have {weight.shape[1]}"
            yield refuse("a token's row of another width", value, ANOTHER)
    embedding = base.get_input_embeddings()
    if isinstance(embedding, BaseTunerLayer):
        embedding = embedding.get_base_layer()
    count, used = embedding.num_embeddings, ids_in_config(base)
    for part in parts:
        for token_id, text in [(part.token_id, part.token), *part.spare_tokens]:
            if token_id is not None and token_id >= count + MAX_GROWTH:
                value = f"{token_id} for {text!r}, the base has {count:,} rows"
                yield refuse("a token far beyond the vocabulary", value, ANOTHER)
            elif token_id in used:
                yield refuse("a token that the base needs", f"{token_id} for {text!r}", "ask whoever made it")
