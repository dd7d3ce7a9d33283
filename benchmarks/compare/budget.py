"""What a method may use, what it has used, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft_unierase.errors import InputError

THIRDS = 3  # a forward pass alone is a third of one with its backward pass


@dataclass(frozen=True)
class Budget:
    """What a method may use. It is in texts and not in seconds, so that the same seed gives the same bytes.

    Attributes:
        texts: How many texts one run may pass forward and backward. A forward pass alone counts a third.
        trials: How many settings of a method may be tried.
        rank: Rank of every LoRA.

    Raises:
        ValueError: One of them is less than 1.
    """

    texts: int
    trials: int = 3
    rank: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"{name} of a budget must be at least 1, got {value}")


@dataclass(frozen=True)
class Erased:
    """What a method gives back.

    Attributes:
        model: The model to ask, in eval mode: a `PeftModel` with the adapter on, or whatever the method makes.
        tokenizer: The tokenizer to ask it with.
        adapter_bytes: Size of what the method adds to the model.
        changed: How many numbers it trained, solved for, or stores.
    """

    model: Any
    tokenizer: Any
    adapter_bytes: int
    changed: int


class Meter:
    """Counts texts against a budget.

    Args:
        budget: The budget.
    """

    def __init__(self, budget: Budget) -> None:
        self._limit, self._used = budget.texts * THIRDS, 0

    @property
    def used(self) -> float:
        """Texts that were passed forward and backward, and a third of those that were passed forward alone."""
        return self._used / THIRDS

    @property
    def left(self) -> float:
        """What the budget still allows, in the same unit."""
        return (self._limit - self._used) / THIRDS

    def trained(self, texts: int) -> None:
        """Count texts that pass forward and backward.

        Raises:
            ValueError: They are more than the budget allows.
        """
        self._count(texts * THIRDS)

    def read(self, texts: int) -> None:
        """Count texts that pass forward alone.

        Raises:
            ValueError: They are more than the budget allows.
        """
        self._count(texts)

    def _count(self, thirds: int) -> None:
        if self._used + thirds > self._limit:
            raise InputError(
                f"the budget of {self._limit // THIRDS} texts is used up: {self.used:.0f} are counted and "
                f"{thirds / THIRDS:.0f} more are needed; give `Budget(texts=…)` more"
            )
        self._used += thirds
