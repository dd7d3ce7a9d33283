"""What recipe `paper` is told."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InputError
from ..bounds import check_at_least, check_positive


@dataclass(frozen=True)
class PaperSettings:
    """Settings of recipe `paper` (UniErase, arXiv 2505.15674). The defaults of stage II were chosen on the TOFU
    testbed; those of stage I were not tuned.

    Attributes:
        samples: Questions to sample from the model itself as retain data, beside any that are given.
        token_steps: Gradient steps of stage I without the chat template, and as many with it.
        robust_steps: Steps of its robustness stage, on perturbed weights; 0 leaves it out.
        robust_noise: Norm of the perturbation beside that of the weights it is added to.
        robust_draws: How often it is drawn anew in these steps.
        token_batch: Questions in one step of stage I.
        token_learning_rate: Adam's highest, relative to the root mean square of the row's components.
        output_steps: Gradient steps of the output row in stage II.
        output_facts: Forget facts that it sees, at the most.
        target_steps: Gradient steps of the target vectors, at the most, in one format each.
        target_start: Where a fact's change starts, as a share of the one that the output row was fitted with.
        target_learning_rate: Adam's, relative to the root mean square of the residual stream's components.
        target_decay: Weight of the squared norm of a fact's change, relative to the residual stream's (MEMIT's weight
            decay).
        target_norm: Largest change of the residual stream, relative to its norm (MEMIT's clamp).
        target_loss: A fact has arrived where the loss at each of its answer starts is below this, in nats.
        output_learning_rate: Adam's for the output row, relative to the root mean square of its components.
        refusal_weight: Weight, beside [UNL] itself, of the refusal that follows it in the output row's fit. More makes
            more refusals whole and leaves more alone; less lets [UNL] come up again where an answer is resumed.
        silent_log_prob: What [UNL]'s log-probability must stay under in retained texts, in nats.
        silent_weight: Weight of that demand.
        null_threshold: A key direction is free to be edited where the retained keys' second moment is at most this,
            relative to the mean over all directions.
        ridge: `lambda`, relative to the mean squared norm of the forget keys before projection.
        truncate: Share of each edit's energy to keep by truncating its rank; `None` stores the exact factors.
    """

    samples: int = 256
    token_steps: int = 30
    robust_steps: int = 40
    robust_noise: float = 0.05
    robust_draws: int = 4
    token_batch: int = 8
    token_learning_rate: float = 0.3
    output_steps: int = 60
    output_facts: int = 64
    target_steps: int = 40
    target_start: float = 0.5
    target_learning_rate: float = 0.2
    target_decay: float = 0.3
    target_norm: float = 1.5
    target_loss: float = 0.01
    output_learning_rate: float = 0.3
    refusal_weight: float = 0.05
    silent_log_prob: float = -10.0
    silent_weight: float = 10.0
    null_threshold: float = 0.2
    ridge: float = 0.01
    truncate: float | None = None

    def sample_count(self, facts: int) -> int:
        """How many questions the model is made to ask itself, whatever the number of facts."""
        return self.samples

    def __post_init__(self) -> None:
        check_at_least(
            1, self, "token_steps", "robust_draws", "token_batch", "output_steps", "output_facts", "target_steps"
        )
        check_at_least(0, self, "samples", "robust_steps", "robust_noise", "target_start", "target_decay")
        check_at_least(0, self, "refusal_weight", "silent_weight", "null_threshold")
        check_positive(
            self, "token_learning_rate", "target_learning_rate", "target_norm", "output_learning_rate", "ridge"
        )
        if self.truncate is not None and not 0 < self.truncate <= 1:
            raise InputError(f"truncate must be None or a share above 0 and at most 1, got {self.truncate!r}")
