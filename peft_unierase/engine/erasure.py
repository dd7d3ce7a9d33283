"""What a run is told, its settings, and what it tells: the record of what was done, and its warnings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .gates import Openings
from .spare_row import SpareRow
from .steer import SteerGoal, SteerWeights


class ErasureWarning(UserWarning):
    """The run went through, but its erasure may not be what was asked for; the text says why, with figures."""


@dataclass(frozen=True)
class GateSettings:
    """Settings of recipe `gate`. The defaults are the measured ones; `docs/recipe.md` says what each trades.

    Attributes:
        samples: Questions to sample from the model itself as retain data, beside any that are given.
        fit_samples: Retained answers that the steer fit sees, at the most; the gates see all.
        held_out: The doors of one in this many retained questions are kept out of the gates' fit, to measure the leak
            on. Their other positions are not, and the steer fit sees them too.
        retain_weights: Weights of the retain keys to try, from the strictest; the first at which every forget door
            opens wide enough is kept.
        open_share: What is wide enough: the opening that every forget door must reach, as a multiple of
            `SteerGoal.open_from`.
        steer: Weights and steps of the steer fit.
        goal: Openings that the steer fit aims at.
        refusal_count: Refusals to choose from, the ones that come easiest to this model.
        row_steps: Gradient steps of the last stage, the input row.
        row_learning_rate: Its learning rate, relative to the row's components.
    """

    samples: int = 256
    fit_samples: int = 320
    held_out: int = 5
    retain_weights: tuple[float, ...] = (30.0, 10.0, 3.0, 1.0)
    open_share: float = 1.1
    goal: SteerGoal = field(default_factory=lambda: SteerGoal(shut_to=0.25, open_from=0.5))
    steer: SteerWeights = field(default_factory=SteerWeights)
    refusal_count: int = 8
    row_steps: int = 150
    row_learning_rate: float = 0.3


@dataclass(frozen=True)
class Erasure:
    """What a run did and measured while it worked; `record()` is its JSON form.

    Attributes:
        settings: As used.
        layers: Edited layers.
        token: Where [UNL] sits.
        retain_weight: The weight that was kept.
        forget_count, retain_count, sampled_count: Facts that went in.
        known: Share of the forget answers' tokens that the base predicts.
        openings: How far the gates open; see `Openings`.
        refusal_loss: Loss of the input row at the end, in nats per token.
        seconds: Time of each stage.
    """

    settings: GateSettings
    layers: list[int]
    token: SpareRow
    retain_weight: float
    forget_count: int
    retain_count: int
    sampled_count: int
    known: float
    openings: Openings
    refusal_loss: float
    seconds: dict[str, float]
    seed: int

    def record(self) -> dict[str, Any]:
        """A JSON object of plain values, without any text of the facts."""
        forget, leak = self.openings.forget, self.openings.leak
        return {
            "recipe": "gate",
            "depth": 0,
            "seed": self.seed,
            "layers": self.layers,
            "token": {"id": self.token.token_id, "text": self.token.text, "resized": self.token.resized},
            "retain_weight": self.retain_weight,
            "counts": {"forget": self.forget_count, "retain": self.retain_count, "sampled": self.sampled_count},
            "known_to_base": self.known,
            "openings": {
                "forget_smallest": float(forget.min()),
                "forget_median": float(forget.median()),
                "held_out_99_percent": float(leak.quantile(0.99)) if len(leak) else None,
                "held_out_largest": float(leak.max()) if len(leak) else None,
            },
            "refusal_loss": self.refusal_loss,
            "settings": asdict(self.settings),
        }
