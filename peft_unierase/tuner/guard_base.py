"""What the guard can tell with the base at hand: whether edits lie in its MLPs, and how large they are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .config import UniEraseConfig
from .guard_files import Finding, refuse
from .guard_weights import OUTSIDE, Edited, holders_of
from .structure import UnsupportedModelError, find_mlp_projections, projection_shape
from .swap import is_plain

# Of an edit to its weight, by the Frobenius norm. The largest found in an erasure is 3.0 (docs/guard.md).
MAX_RATIO = 100.0


def check_on_base(
    base: nn.Module,
    parts: Sequence[UniEraseConfig],
    modules: Mapping[str, Edited],
    norms: Mapping[str, Mapping[str, float]],
) -> list[Finding]:
    """Hold the edits of an erasure against the base that it is to be loaded on.

    Args:
        base: A model, with or without adapters.
        parts: The erasures that the config declares.
        modules: What the weights have for each module.
        norms: See `check_values`.
    """
    there = dict(base.named_modules())
    edits = [name for name, edited in modules.items() if not edited.is_row and projection_shape(there.get(name))]
    try:
        known = {name for names in find_mlp_projections(base) for name in names}
    except UnsupportedModelError:
        known = set(edits)  # of a mixture of experts, for instance: the names alone tell
    findings = []
    for name in edits:
        if name not in known:
            findings.append(refuse(OUTSIDE, name, "an erasure edits projections of MLPs, and this base has other ones"))
            continue
        module: Any = there[name]
        weight = (module.get_base_layer() if isinstance(module, BaseTunerLayer) else module).weight
        if weight.is_meta or not is_plain(weight) or "BA" not in norms.get(name, {}):
            continue
        size = float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float32))
        most = MAX_RATIO * max(1, len(holders_of(parts, name)))
        if norms[name]["BA"] > most * size:
            value = f"{name} with a norm of {norms[name]['BA']:.3g} beside {size:.3g} of its weight"
            findings.append(refuse("an edit that drowns the weight", value, f"it may be {most:g} times as large"))
    return findings
