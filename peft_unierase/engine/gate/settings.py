"""What recipe `gate` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..bounds import check_at_least, check_not_empty, check_positive
from .steer import SteerSettings
from .units import UnitSettings


@dataclass(frozen=True)
class GateSettings:
    """Settings of recipe `gate`. The defaults are the measured ones; `docs/recipe.md` says what each trades.

    Attributes:
        samples: Retain facts to get from the model itself, beside any that are given. `None` takes 192, and six more
            for every fact: the more there is to decline on, the closer lies what must stay.
        fit_samples: Retained answers, and forget answers, that the steer fit sees at the most; the gates see all.
        held_out: One in this many retained facts is shown to no stage; what the erasure does to those is measured, and
            the retain weight and the depth are chosen by it.
        depths: Depths to try where none is asked for, from the deepest.
        door_weights: Weights of the retain keys to try at depth 0, from the loosest; the first is kept at which few
            enough held-out questions fire [UNL].
        deep_weights: The same for other depths.
        most_fired: Share of the held-out questions that may fire [UNL].
        least_fired: Share of the forget doors that must decline.
        least_inside: Share of the attacks from inside the answer that must meet a refusal within `reach` tokens; the
            run warns where they do not.
        reach: Tokens within which an attack from inside the answer must meet a refusal.
        fit_weight: Weight of the retain keys at which the gates of the steer fit are solved.
        steer: Steps, ranges and weights of the steer fit with linear detectors; `units` has its own.
        units: How hidden units are made into detectors; `None` keeps to linear detectors on the keys, as is done for
            MLPs whose units cannot be given new weights, or of which two make no clean switch (squared ReLU, tanh).
        widest: Largest width of the keys that are solved together: layers are edited in blocks that are at most this
            wide, or of one layer. Memory and time grow with its square and cube.
        refusal_count: Refusals to choose from, the ones that come easiest to this model; the gate is held shut in all.
        row_steps: Gradient steps of the last stage, the input row.
        row_steps_per_fact: More of them for every fact.
        row_learning_rate: Its learning rate, relative to the row's components.
    """

    samples: int | None = None
    fit_samples: int = 320
    held_out: int = 8
    depths: tuple[int, ...] = (16, 0)
    door_weights: tuple[float, ...] = (3.0, 10.0, 30.0)
    deep_weights: tuple[float, ...] = (10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 150.0)
    most_fired: float = 0.005
    least_fired: float = 0.85
    least_inside: float = 0.9
    reach: int = 8
    fit_weight: float = 30.0
    steer: SteerSettings = field(default_factory=SteerSettings)
    units: UnitSettings | None = field(default_factory=UnitSettings)
    widest: int = 16384
    refusal_count: int = 8
    row_steps: int = 130
    row_steps_per_fact: float = 1.25
    row_learning_rate: float = 0.2

    def __post_init__(self) -> None:
        if self.samples is not None:
            check_at_least(0, self, "samples")
        check_at_least(0, self, "fit_weight", "row_steps_per_fact")
        check_at_least(1, self, "fit_samples", "reach", "widest", "refusal_count", "row_steps")
        check_at_least(2, self, "held_out")  # with 1 nothing would be left to be shown
        check_not_empty(self, "depths", "door_weights", "deep_weights")
        check_positive(self, "row_learning_rate")

    def sample_count(self, facts: int) -> int:
        """How many questions the model is made to ask itself, for this many facts."""
        return 192 + 6 * facts if self.samples is None else self.samples
