"""The command with a recipe that does less, for tests that are not about how well it erases."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


def ask_little(patch: pytest.MonkeyPatch) -> None:
    """Let erasures ask the base for few near neighbours, in one round."""
    neighbours = importlib.import_module("peft_unierase.retain.neighbours")
    patch.setattr(importlib.import_module("peft_unierase.engine.run_facts"), "neighbour_rounds", lambda facts: 1)
    patch.setattr(neighbours, "EACH", 8)
    patch.setattr(neighbours, "ROUND", 8 * neighbours.SETS)


def hurry(patch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Let the command use these settings, whatever it is told, and ask little."""
    recipes = importlib.import_module("peft_unierase.engine").RECIPES

    class Hurried(recipes["distill"]):  # type: ignore[misc]
        def __init__(self, **told: Any) -> None:
            super().__init__(**{**told, **settings})

    patch.setitem(recipes, "distill", Hurried)
    ask_little(patch)
