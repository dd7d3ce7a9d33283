"""What recipe `distill` is told."""

from __future__ import annotations

from dataclasses import dataclass

from ..bounds import check_at_least, check_positive


@dataclass(frozen=True)
class DistillSettings:
    """Settings of recipe `distill`.

    Attributes:
        samples: Questions about anything to sample from the model itself, beside near neighbours and given facts.
        steps: Gradient steps for up to ten facts.
        steps_per_fact: Further steps for each further fact.
        learning_rate: AdamW's highest for what triggers write, relative to what their projections write.
        forget_weight: Weight of the divergence from the teacher, summed over a text.
        retain_weight: Weight of the divergence from the base on retained texts.
        silent_log_prob: What [UNL]'s log-probability must stay under where it must not come, in nats.
    """

    samples: int = 128
    steps: int = 60
    steps_per_fact: float = 5.0
    learning_rate: float = 0.15
    forget_weight: float = 0.1
    retain_weight: float = 10.0
    silent_log_prob: float = -10.0

    def sample_count(self, facts: int) -> int:
        """How many questions the model is made to ask itself, whatever the number of facts."""
        return self.samples

    def step_count(self, facts: int) -> int:
        """Gradient steps for so many facts."""
        return self.steps + round(self.steps_per_fact * max(0, facts - 10))

    def __post_init__(self) -> None:
        check_at_least(1, self, "steps")
        check_at_least(0, self, "samples", "steps_per_fact", "forget_weight", "retain_weight")
        check_positive(self, "learning_rate")
