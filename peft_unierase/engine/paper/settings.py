"""What a user of recipe `paper` may set; every other constant stands beside the formula that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InputError
from ..bounds import check_at_least


@dataclass(frozen=True)
class PaperSettings:
    """Settings of recipe `paper` (UniErase, arXiv 2505.15674). The defaults of stage II were chosen on the TOFU
    testbed; those of stage I were not tuned.

    Attributes:
        samples: Questions to sample from the model itself as retain data, in addition to any that are given.
        token_steps: Gradient steps of stage I without the chat template, and as many with it.
        robust_steps: Steps of its robustness stage, on perturbed weights; 0 leaves it out.
        output_steps: Gradient steps of the output row in stage II.
        target_steps: Gradient steps of the target vectors, at the most, in one format each.
        null_threshold: A key direction is free to be edited if the retained keys' second moment is at most this,
            relative to the mean over all directions.
        truncate: Share of each edit's energy to keep by truncating its rank; `None` stores the exact factors.
    """

    samples: int = 256
    token_steps: int = 30
    robust_steps: int = 40
    output_steps: int = 60
    target_steps: int = 40
    null_threshold: float = 0.2
    truncate: float | None = None

    def sample_count(self, facts: int) -> int:
        """How many questions the model is made to ask itself, whatever the number of facts."""
        return self.samples

    def __post_init__(self) -> None:
        check_at_least(1, self, "token_steps", "output_steps", "target_steps")
        check_at_least(0, self, "samples", "robust_steps", "null_threshold")
        if self.truncate is not None and not 0 < self.truncate <= 1:
            raise InputError(f"truncate must be None or a share above 0 and at most 1, got {self.truncate!r}")
