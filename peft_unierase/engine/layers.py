"""Which projections to edit: a rule on depth and structure, never on model names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torch import nn

from ..errors import InputError
from ..lm.structure import find_decoder_layers, find_mlp_projections, find_writers, projection_shape

SHOWN = 10


FIRST, LAST = 0.17, 0.25  # the layers of recipe `distill`, as shares of the depth
NAMED = 2  # layers that a name takes, before which it is hardly more than its last token


def trigger_layers(count: int) -> list[int]:
    """Recipe `distill`: early layers, at least three and never the last: `[5, 6, 7]` of 30, `[2, 3, 4]` of 6."""
    start = min(max(NAMED, int(count * FIRST)), max(0, count - 2))
    return list(range(start, max(1, min(count - 1, max(start + 3, math.ceil(count * LAST))))))


def early_layers(count: int) -> list[int]:
    """Recipe `paper`: the second eighth of the depth: `[4, …, 8]` of 32 as published, `[1, 2]` of 6."""
    return list(range(round(count / 8), round(count / 4) + 1))


def choose_sites(
    model: nn.Module,
    layers: Sequence[int] | None = None,
    target_modules: Sequence[str] | None = None,
    *,
    whole: bool = True,
) -> tuple[nn.ModuleList, list[int], list[str]]:
    """The decoder layers, the indices of those to edit, and the names of the projections.

    Args:
        model: The base.
        layers: Indices to edit instead of the rule's.
        target_modules: Full names of the projections to edit instead of those found by structure: of down-projections,
            if whole MLPs are edited.
        whole: Whether all projections of an MLP are edited, the down-projection last (recipe `distill`), or the
            down-projection alone (recipe `paper`).

    Raises:
        ValueError: An index or a name that the model does not have, or the last layer of all.
        UnsupportedModelError: The structure gives no answer.
    """
    prefix, stack = find_decoder_layers(model)
    if target_modules is not None:
        if layers is not None:
            raise InputError("give either layers or target_modules, not both")
        chosen = _by_name(model, prefix, target_modules)
    else:
        found = find_mlp_projections(model)
        indices = trigger_layers(len(found)) if whole else early_layers(len(found))
        if layers is not None:
            indices = sorted(set(layers))
        if bad := [index for index in indices if not 0 <= index < len(found)]:
            more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            raise InputError(f"layers {bad[:SHOWN]}{more} do not exist; the model has layers 0 to {len(found) - 1}")
        chosen = {index: found[index] for index in indices}
    for index, (*writers, down) in chosen.items():
        if whole and not writers:
            raise InputError(
                f"{down!r} is not the down-projection of an MLP whose other projections are found beside it; recipe "
                "'distill' edits whole MLPs (recipe 'paper' edits the down-projection alone)"
            )
        chosen[index] = [*writers, down] if whole else [down]
    if not chosen:
        raise InputError("no layer to edit was named; leave `layers` out to have them chosen")
    if max(chosen) == len(stack) - 1:
        raise InputError(
            f"layer {max(chosen)} is the model's last; at least one layer must follow the edited ones to turn "
            "what they write into a token and a refusal"
        )
    return stack, sorted(chosen), [name for index in sorted(chosen) for name in chosen[index]]


def _by_name(model: nn.Module, prefix: str, target_modules: Sequence[str]) -> dict[int, list[str]]:
    modules = dict(model.named_modules())
    chosen: dict[int, list[str]] = {}
    for name in target_modules:
        if name not in modules or not projection_shape(modules[name]):
            raise InputError(f"target module {name!r} is not a linear projection of this model; give its full name")
        match = re.match(rf"{re.escape(prefix)}\.(\d+)\.", name)
        if not match or int(match[1]) in chosen:
            raise InputError(f"target module {name!r} must be the only one named in a layer of {prefix!r}")
        chosen[int(match[1])] = [*find_writers(model, name), name]
    return chosen
