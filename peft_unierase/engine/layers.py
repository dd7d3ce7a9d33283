"""Which projections to edit: a rule on depth and structure, never on model names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torch import nn

from ..errors import InputError
from ..lm.structure import find_decoder_layers, find_mlp_projections, projection_shape

SHOWN = 10


def share_of_layers(count: int, first: float, last: float) -> list[int]:
    """Layers between two shares of the depth, at least three and never the last: `[1, …, 8]` of 30 for .04 and .3."""
    start = min(int(count * first), max(0, count - 2))
    return list(range(start, max(1, min(count - 1, max(start + 3, math.ceil(count * last))))))


def early_layers(count: int) -> list[int]:
    """Recipe `paper`: the second eighth of the depth: `[4, …, 8]` of 32 as published, `[1, 2]` of 6."""
    return list(range(round(count / 8), round(count / 4) + 1))


def choose_sites(
    model: nn.Module,
    layers: Sequence[int] | None = None,
    target_modules: Sequence[str] | None = None,
    modules: int = 3,
    share: tuple[float, float] | None = None,
) -> tuple[nn.ModuleList, list[int], list[str]]:
    """The decoder layers, the indices of those to edit, and the names of the projections.

    Args:
        model: The base.
        layers: Indices to edit instead of the rule's.
        target_modules: Full names of the projections to edit instead of those found by structure.
        modules: How many projections of an MLP are edited, counted from its end: 1 for the down-projection alone.
        share: The layers to edit, as shares of the depth; `None` for those of recipe `paper`.

    Raises:
        ValueError: An index or a name that the model does not have, or the last layer of all.
        UnsupportedModelError: The structure gives no answer.
    """
    prefix, stack = find_decoder_layers(model)
    if target_modules is not None:
        if layers is not None:
            raise InputError("give either layers or target_modules, not both")
        chosen = _by_name(model, prefix, target_modules, modules > 1)
    else:
        found = [names[-modules:] for names in find_mlp_projections(model)]
        indices = share_of_layers(len(found), *share) if share else early_layers(len(found))
        if layers is not None:
            indices = sorted(set(layers))
        if bad := [index for index in indices if not 0 <= index < len(found)]:
            more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            raise InputError(f"layers {bad[:SHOWN]}{more} do not exist; the model has layers 0 to {len(found) - 1}")
        chosen = {index: found[index] for index in indices}
    if not chosen:
        raise InputError("no layer to edit was named; leave `layers` out to have them chosen")
    if max(chosen) == len(stack) - 1:
        raise InputError(
            f"layer {max(chosen)} is the model's last; at least one layer must follow the edited ones to turn "
            "what they write into a token and a refusal"
        )
    return stack, sorted(chosen), [name for index in sorted(chosen) for name in chosen[index]]


def _by_name(model: nn.Module, prefix: str, target_modules: Sequence[str], several: bool) -> dict[int, list[str]]:
    modules = dict(model.named_modules())
    chosen: dict[int, list[str]] = {}
    for name in target_modules:
        if name not in modules or not projection_shape(modules[name]):
            raise InputError(f"target module {name!r} is not a linear projection of this model; give its full name")
        match = re.match(rf"{re.escape(prefix)}\.(\d+)\.", name)
        if not match or (int(match[1]) in chosen and not several):
            raise InputError(f"target module {name!r} must be the only one named in a layer of {prefix!r}")
        chosen.setdefault(int(match[1]), []).append(name)
    return chosen
