"""What a run tells: the record of what was done, and its warnings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..data.facts import Fact
from .spare_row import SpareRow

if TYPE_CHECKING:
    from ..retain.scope import Scoped


class Outcome(Protocol):
    """What a recipe hands back."""

    @property
    def rank(self) -> int:
        """Rank of the updates."""

    def record(self) -> dict[str, Any]:
        """What it chose and measured, as plain values without any text of the facts."""


@dataclass(frozen=True)
class EarlierErasure:
    """An erasure that was on while this one was made.

    Attributes:
        adapter: Its name in the model.
        token_id: Row of its token.
        digest: SHA-256 of its weights and where they belong.
    """

    adapter: str
    token_id: int | None
    digest: str


@dataclass(frozen=True)
class Erasure:
    """What a run did and measured while it worked; `record()` is its JSON form.

    Attributes:
        recipe: `"distill"` or `"paper"`.
        layers: Edited layers.
        token: Where [UNL] sits.
        forget_count, retain_count, sampled_count, near_count: Facts that went in: erased, given as retained, asked by
            the base itself about anything, and as near neighbours.
        known: How many of the given forget facts the base knows, and in which prompt formats it tells them.
        outcome: What the recipe chose and measured.
        seconds: Time of each stage.
        seed: As given.
        scoped: What came of a scope; `None` without one.
        adapter: Name of the adapter in the model.
        onto: The erasures that were on while it was made.
        facts: What was erased. It is in no record.
    """

    recipe: str
    layers: list[int]
    token: SpareRow
    forget_count: int
    retain_count: int
    sampled_count: int
    near_count: int
    known: dict[str, Any]
    outcome: Outcome
    seconds: dict[str, float]
    seed: int
    scoped: Scoped | None = None
    adapter: str = "default"
    onto: list[EarlierErasure] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list, repr=False)

    def record(self) -> dict[str, Any]:
        """A JSON object of plain values, without any text of the facts."""
        return {
            "recipe": self.recipe,
            "rank": self.outcome.rank,
            "seed": self.seed,
            "layers": self.layers,
            "token": self.token.record(),
            "counts": {
                "forget": self.forget_count,
                "retain": self.retain_count,
                "sampled": self.sampled_count,
                "neighbours": self.near_count,
            },
            "known_to_base": self.known,
            "scope": self.scoped and self.scoped.record(),
            "onto": [{"token_id": one.token_id, "digest": one.digest} for one in self.onto],
            **self.outcome.record(),
        }
