"""What a run has to do, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ..gate import GateSettings
from ..gate.run import ENOUGH_HELD
from ..gate.steer import SteerSettings
from ..gate.units import UnitSettings
from ..refusal import FARTHEST
from ..retain_cache import BLOCK


@dataclass(frozen=True)
class Work:
    """What a run of recipe `gate` has to do; the defaults are those of the recipe with linear rows, and of short facts.

    Attributes:
        facts: Facts to forget.
        retain: Facts given to be kept.
        samples: Facts from the model itself.
        formats: Prompt formats.
        reworded: Further prompts of each fact, which units alone are fitted on.
        layers: Indices of the edited decoder layers, ascending.
        question: Tokens of a prompt.
        answer: Tokens of an answer.
        refusal: Tokens of a refusal.
        refusals: Refusals to choose from.
        depth: Answer positions gated behind the door.
        units: Hidden units that are made into detectors; 0 where the gates are rows on the keys.
        unit_steps: Steps of their fit, and half as many in holding them shut in refusals.
        unit_steps_per_fact: More of them for every fact.
        trials: Of rows: retain weights tried until few enough held-out questions fire.
        widest: Of rows: width of the keys that are solved together, at the most.
        held_out: One in this many retained facts is shown to no stage.
        refused: Refusals in which the gates must stay shut; twice as many for units.
        fit_samples: Retained answers, and forget answers, that the steer fit sees, at the most; with units twice as
            many retained ones. Twice as many forget answers are asked for at each trial.
        steer_steps: Steps of the steer fit.
        retain_every: Steps of it from one retained batch to the next.
        row_steps: Steps of the input row, at the most.
        row_steps_per_fact: More of them for every fact.
        batch: Padded tokens of a batch in the steer fit.
        lesson: Padded prompt tokens of a lesson, a batch of refusals.
        given: Answer tokens that come before a refusal in a lesson, at the most.
        asked: Questions sampled at a time.
    """

    facts: int
    retain: int
    samples: int
    formats: int
    layers: tuple[int, ...]
    question: int = 24
    answer: int = 32
    refusal: int = 14
    refusals: int = GateSettings.refusal_count
    reworded: int = 0
    depth: int = GateSettings.depths[0]
    units: int = 0
    unit_steps: int = UnitSettings.steps
    unit_steps_per_fact: float = UnitSettings.steps_per_fact
    trials: int = 2
    widest: int = GateSettings.widest
    held_out: int = GateSettings.held_out
    refused: int = 160
    fit_samples: int = GateSettings.fit_samples
    steer_steps: int = SteerSettings.steps
    retain_every: int = SteerSettings.retain_every
    row_steps: int = GateSettings.row_steps
    row_steps_per_fact: float = GateSettings.row_steps_per_fact
    batch: int = 384
    lesson: int = 256
    given: int = FARTHEST
    asked: int = BLOCK

    @property
    def length(self) -> int:
        """Tokens of a prompt with its answer."""
        return self.question + self.answer

    @property
    def held(self) -> int:
        """Retain facts that are held out."""
        return (self.retain + self.samples) // self.held_out

    @property
    def held_prompts(self) -> int:
        """Prompts of held-out facts; where there are enough of these, each is asked in one format alone."""
        return self.held * (1 if self.held > ENOUGH_HELD else self.formats)

    @property
    def kept(self) -> int:
        """Retain facts that the stages see."""
        return self.retain + self.samples - self.held

    @property
    def doors(self) -> int:
        """Forget prompts."""
        return self.facts * self.formats

    @property
    def gated(self) -> int:
        """Prompts at whose doors the gate must open."""
        return self.doors + self.facts * self.reworded

    @property
    def behind(self) -> int:
        """Gated positions behind a door; the last answer token has none of its own."""
        return min(self.depth, self.answer - 1)

    @property
    def forget_keys(self) -> int:
        """Keys of a layer on which its gate must open."""
        return self.gated * (1 + self.behind)

    @property
    def shut_keys(self) -> float:
        """Keys of a layer on which it must stay shut, with the refusals."""
        return self.shut_positions + self.refused * (1 + self.refusal)

    @property
    def before_refusal(self) -> float:
        """Answer tokens before a refusal in a lesson: its rows are padded to the longest, three quarters."""
        return 0.75 * min(self.given, self.answer)

    @property
    def shut_groups(self) -> list[float]:
        """Positions on which gates must stay shut: doors, every other one of answered questions, for units also all
        inside answers."""
        inside = [self.kept * (self.answer - 1.0)] if self.units else []
        return [self.kept * self.formats, self.kept * self.length / 2, *inside]

    @property
    def shut_positions(self) -> float:
        """How many these are, refusals left out."""
        return sum(self.shut_groups)

    @property
    def lesson_rows(self) -> float:
        """Prompts of a lesson, on average: the last batch is smaller."""
        return self.doors / ceil(self.doors * self.question / self.lesson)

    @property
    def lesson_tokens(self) -> float:
        """Tokens run in a lesson behind cached prompts: the door, the beginning of an answer, [UNL], a refusal."""
        return self.lesson_rows * (1 + self.before_refusal + self.refusal)

    def blocks(self, width: int) -> list[tuple[int, ...]]:
        """The edited layers in blocks that are solved together, for keys `width` wide."""
        count = max(1, self.widest // width)
        return [self.layers[start : start + count] for start in range(0, len(self.layers), count)]
