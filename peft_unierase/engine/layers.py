"""Which layers to edit: a rule on depth and structure, never on model names.

At the door a question is understood from about a third of the depth on; a gate behind that sees what is asked, and one
before the last third still has layers behind it that turn its steer vector into a token and a refusal. The paper edits
layers 4 to 8 of 32 with keys at the subject, whose meaning is there earlier.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torch import nn

from ..tuner.structure import find_decoder_layers, find_down_projections, projection_shape

LARGEST_COUNT = 5
FEW = 100


def middle_layers(count: int) -> list[int]:
    """Up to five layers of the middle third, the later ones: `[2, 3, 4]` of 6, `[17, …, 21]` of 32."""
    last = count * 2 // 3
    return list(range(max(math.ceil(count / 3), last - LARGEST_COUNT + 1), last + 1)) if count > 2 else [0]


def two_for_units(facts: int) -> slice:
    """Which two of the layers that may be edited detect and steer where hidden units do: the lowest, or the highest.

    Up to `FEW` facts are told apart as well low down, where more layers follow; more of them better further up. On the
    TOFU testbed layers 2 and 3 spared more at 40 facts and layers 3 and 4 leaked less at 400 (`docs/recipe.md`).
    """
    return slice(0, 2) if facts <= FEW else slice(-2, None)


def choose_gates(
    model: nn.Module, layers: Sequence[int] | None = None, target_modules: Sequence[str] | None = None
) -> tuple[nn.ModuleList, list[int], list[str]]:
    """The decoder layers, the indices of those to edit, and the names of their down-projections.

    Args:
        model: The base.
        layers: Indices to edit instead of the rule's.
        target_modules: Full names of the projections to edit instead of those found by structure.

    Raises:
        ValueError: An index or a name that the model does not have, or the last layer of all.
        UnsupportedModelError: The structure gives no answer.
    """
    prefix, stack = find_decoder_layers(model)
    if target_modules is not None:
        if layers is not None:
            raise ValueError("give either layers or target_modules, not both")
        chosen = _by_name(model, prefix, target_modules)
    else:
        names = find_down_projections(model)
        indices = middle_layers(len(names)) if layers is None else sorted(set(layers))
        if bad := [index for index in indices if not 0 <= index < len(names)]:
            raise ValueError(f"layers {bad} do not exist; the model has layers 0 to {len(names) - 1}")
        chosen = {index: names[index] for index in indices}
    if not chosen:
        raise ValueError("no layer to edit was named; leave `layers` out to have them chosen")
    if max(chosen) == len(stack) - 1:
        raise ValueError(
            f"layer {max(chosen)} is the model's last; at least one layer must follow the edited ones to turn the "
            "steer vector into a refusal"
        )
    return stack, sorted(chosen), [chosen[index] for index in sorted(chosen)]


def _by_name(model: nn.Module, prefix: str, target_modules: Sequence[str]) -> dict[int, str]:
    modules = dict(model.named_modules())
    chosen: dict[int, str] = {}
    for name in target_modules:
        if name not in modules or not projection_shape(modules[name]):
            raise ValueError(f"target module {name!r} is not a linear projection of this model; give its full name")
        match = re.match(rf"{re.escape(prefix)}\.(\d+)\.", name)
        if not match or int(match[1]) in chosen:
            raise ValueError(f"target module {name!r} must be the only one named in a layer of {prefix!r}")
        chosen[int(match[1])] = name
    return chosen
