"""What the guard can tell with the base at hand: whether edits and rows fit it, lie where an erasure may be, and how
large they are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from .declared import check_policy
from .findings import Finding, refuse
from .lora import check_lora
from .weights import OUTSIDE, Edited, check_modules, holders_of

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
            beyond = f"{token_id} for {text!r}, the base has {count:,} rows"
            if token_id is not None and token_id >= count + MAX_GROWTH:
                yield refuse("a token far beyond the vocabulary", beyond, ANOTHER)
            elif token_id is not None and token_id >= count > (part.token_id or 0):
                # If its own token were out there too, it would be of a base that had grown, and this one may grow.
                yield refuse("a spare token beyond the vocabulary", beyond, ANOTHER)
            elif token_id in used:
                yield refuse("a token that the base needs", f"{token_id} for {text!r}", "ask whoever made it")


def check_declared(base: nn.Module, config: AdapterConfig) -> list[Finding]:
    """What is wrong with an erasure on a base, from its config and what was found in its files.

    PEFT has ways of its own to read a config. If one of those was taken the files were not looked at, and what the
    config declares is held against the base as if they had just that.
    """
    parts = config.split()
    if config.inspection is not None:
        found = config.inspection
        findings = check_on_base(base, parts, found.modules, found.norms)
        return findings + check_lora(found.folder, found.files, config, found.modules, base)
    findings = [finding for values in (vars(config), *config.fused) for finding in check_policy(values)]
    if findings:
        return findings
    declared = dict.fromkeys(name for part in parts for name in part.target_modules or ())
    for name in [*declared, *(config.token_modules or ())]:
        if own_module(base, name) is None:
            advice = "name each by its full name, or take the base that the erasure was made for"
            findings.append(refuse("a module that the base does not have", name, advice))
    if findings:
        return findings
    modules = _as_declared(base, config, parts, declared)
    return check_modules(config, modules) or check_on_base(base, parts, modules, {})


def _as_declared(
    base: nn.Module, config: AdapterConfig, parts: Sequence[AdapterConfig], declared: Iterable[str]
) -> dict[str, Edited]:
    """What the weights would have for each module if they fitted config and base."""
    modules = {}
    for name in declared:
        rank = sum(part.rank_of(name) for part in holders_of(parts, name))
        inputs, outputs = projection_shape(own_module(base, name)) or (0, 0)
        modules[name] = Edited({"A": (rank, inputs), "B": (outputs, rank)}, {}, {})
    rows = [None for part in parts if part.token_id is not None]
    for name in config.token_modules or () if rows else ():
        weight = getattr(own_module(base, name), "weight", torch.zeros(0, 0))
        shape = (len(rows), weight.shape[-1]) if config.fused else (weight.shape[-1],)
        modules[name] = Edited({"row": shape}, {}, {})
    return modules
