"""What recipe `distill` is told."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InputError
from ..bounds import check_at_least, check_positive


@dataclass(frozen=True)
class DistillSettings:
    """Settings of recipe `distill`.

    Attributes:
        samples: Questions about anything to sample from the model itself, beside near neighbours and given facts.
        rank: Rank of each update.
        first, last: The decoder layers to edit, as shares of the depth.
        steps: Gradient steps for up to ten facts.
        steps_per_fact: Further steps for each further fact.
        settling_steps: Steps at a quarter of the rate, when the updates have been made as small as they can be.
        learning_rate: AdamW's highest for the updates, relative to what their projections write. The
            default suits models from 13 million parameters on; with a model of 2 million 1e-3 took facts out.
        row_learning_rate: The same for [UNL]'s input row, relative to its components.
        forget_batch, refusal_batch, retain_batch: Texts of each kind in a step.
        forget_weight: Weight of the divergence from the teacher, summed over a text.
        words_weight: Weight of the refusal without [UNL].
        retain_weight: Weight of the divergence from the base on retained texts (`beta`).
        moment_weight: Weight of what the updates write for retained inputs, relative to the base's own (`gamma`).
        silent_log_prob: What [UNL]'s log-probability must stay under where it must not come, in nats.
        floor: Energy that is added in every direction to that of retained inputs, in shares of the mean.
        modules: Which projections of an MLP are edited, counted from its end: 1 for the down-projection alone.
        draws: Renamings that the teacher averages.
        counterfactuals: Answers of the base to renamed questions, for each fact and format.
        cap: A word in which an answer tells something gets at most `exp(-cap)` from the teacher.
        held_out: One in so many known neighbours is held out.
        most_declined: Share of held-out neighbours that may be declined.
    """

    samples: int = 128
    rank: int = 24
    first: float = 0.1
    last: float = 0.36
    steps: int = 60
    steps_per_fact: float = 5.0
    settling_steps: int = 25
    learning_rate: float = 2e-4
    row_learning_rate: float = 0.15
    forget_batch: int = 4
    refusal_batch: int = 4
    retain_batch: int = 10
    forget_weight: float = 0.25
    words_weight: float = 0.25
    retain_weight: float = 10.0
    moment_weight: float = 150.0
    silent_log_prob: float = -10.0
    floor: float = 0.1
    modules: int = 1
    draws: int = 3
    counterfactuals: int = 2
    cap: float = 6.0
    held_out: int = 6
    most_declined: float = 0.005

    def sample_count(self, facts: int) -> int:
        """How many questions the model is made to ask itself, whatever the number of facts."""
        return self.samples

    def step_count(self, facts: int) -> int:
        """Gradient steps for so many facts."""
        return self.steps + round(self.steps_per_fact * max(0, facts - 10))

    def __post_init__(self) -> None:
        check_at_least(
            1,
            self,
            "rank",
            "steps",
            "settling_steps",
            "forget_batch",
            "refusal_batch",
            "retain_batch",
            "draws",
            "modules",
        )
        check_at_least(2, self, "held_out")
        check_at_least(
            0,
            self,
            "samples",
            "steps_per_fact",
            "forget_weight",
            "words_weight",
            "retain_weight",
            "moment_weight",
            "counterfactuals",
            "cap",
            "most_declined",
        )
        check_positive(self, "learning_rate", "row_learning_rate", "floor")
        if not 0 <= self.first < self.last <= 1:
            raise InputError(f"first and last must be shares of the depth, got {self.first!r} and {self.last!r}")
