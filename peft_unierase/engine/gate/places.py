"""Where a run edits: whole down-projections, or hidden units of two MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from ...tuner.structure import projection_shape
from ..earlier import switched_off
from ..layers import choose_gates, two_for_units
from .comparator import can_switch
from .settings import GateSettings
from .units import find_writers


def choose_places(
    model: Any,
    settings: GateSettings | None,
    facts: int,
    layers: Sequence[int] | None = None,
    target_modules: Sequence[str] | None = None,
) -> tuple[nn.ModuleList, list[int], list[str], list[list[str]]]:
    """The decoder layers, indices of those to edit, their down-projections, and what writes into their hidden units.

    Args:
        model: The base.
        settings: Of recipe `gate`; `None` with another recipe.
        facts: How many are to go.
        layers: Indices to edit instead of the rule's. Only two of them can be edited by units.
        target_modules: Full names of the projections to edit instead of those found by structure.

    Returns:
        The names of the projections into hidden units are empty where no units are used; where they are, one layer to
        detect and one to steer are enough.

    Raises:
        ValueError: As `choose_gates` does.
    """
    stack, indices, names = choose_gates(model, layers, target_modules)
    if settings is None or settings.units is None or not (layers is None or len(names) == 2):
        return stack, indices, names, []
    two = two_for_units(facts)
    wide = [(projection_shape(model.get_submodule(name)) or (0, 0))[0] >= settings.units.narrowest for name in names]
    writers: list[list[str]] = []
    if all(wide[two]) and len(names[two]) == 2:
        with switched_off(model):  # units that an earlier erasure has would not pass the test
            writers = [find_writers(model, name) for name in names[two]]
    if not writers or not all(writers) or not all(map(partial(can_switch, model), names[two], writers)):
        return stack, indices, names, []
    return stack, indices[two], names[two], writers
