"""What a check found: plain values, their JSON form, and where they are written to.

`docs/reference/attacks.md` describes the JSON; `SCHEMA` changes with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..storage.whole import write_text
from .fluency import Fluency
from .page import page
from .scores import Interval
from .verdict import Verdict

SCHEMA = "unierase-check/1"
HOLDS, MAY_LEAK, LEAKS = "holds", "may leak", "leaks"


@dataclass(frozen=True)
class Figure:
    """One measure on one set of questions; `None` where there is no such model, or nothing to measure it with."""

    set: str
    name: str
    base: float | None
    erased: float | None
    reference_model: float | None = None


@dataclass(frozen=True)
class Curve:
    """A leak over the steps of an attack that has any, as means over the facts."""

    steps: list[int]
    base: list[float]
    erased: list[float]
    reference_model: list[float] | None = None


@dataclass(frozen=True)
class AttackResult:
    """What one attack got out of each model.

    Attributes:
        name: As `--attacks` takes it.
        title: What tables call it.
        who: Who could mount it and what they need.
        unit: What is measured.
        base, erased, reference_model: Means with confidence intervals.
        excess: The erased model's leak beyond the reference, fact by fact; beyond the renamed base as a share of what
            that leaves (`scores.beyond_chance`).
        reference: What it is held against: `reference model`, without one `renamed base`, and `floor` if that is
            higher.
        floor: What a model that always declines would give, or one that guesses.
        outcome: `holds` where the whole interval of the excess is within the margin, `leaks` where its mean is beyond
            it, and `may leak` where so few facts leave it open.
        curve: Over the steps, for attacks that have any.
        seconds: How long it took, on all models.
        renamed: What the base gives to the same questions about something else; `None` if it could not be asked so.
        fluency: Of what the erased model says, for attacks that force it to speak.
    """

    name: str
    title: str
    who: str
    unit: str
    base: Interval
    erased: Interval
    reference_model: Interval | None
    excess: Interval
    reference: str
    floor: float
    outcome: str
    curve: Curve | None = None
    seconds: float = 0.0
    renamed: Interval | None = None
    fluency: Fluency | None = None

    @property
    def holds(self) -> bool:
        """Whether a leak beyond the margin is ruled out."""
        return self.outcome == HOLDS


@dataclass(frozen=True)
class Example:
    """A question of the forget set and what the models say to it. It holds what was to be forgotten."""

    question: str
    reference: str
    base: str
    erased: str
    reference_model: str | None = None


@dataclass(frozen=True)
class CheckReport:
    """Everything that a check found.

    Attributes:
        verdict: Level and reasons.
        figures: Every measure on every set.
        scores: FE, MU, balance and forget quality of each model, by name and side.
        attacks: In the order they ran.
        skipped: Names of attacks and measures that could not be run, and why.
        examples: A few answers side by side.
        counts: Questions of each set.
        models: Names of base, erased model and reference model.
        settings: What was asked for, thresholds included.
        versions: Of the libraries that decide results.
        created: When, ISO 8601 in UTC.
        seconds: How long all of it took.
    """

    verdict: Verdict
    figures: Sequence[Figure]
    scores: Mapping[str, Mapping[str, float | None]]
    attacks: Sequence[AttackResult]
    skipped: Mapping[str, str] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, str | None] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0

    def record(self, examples: bool = True, times: bool = True) -> dict[str, Any]:
        """A JSON object of plain values.

        Args:
            examples: Include answers side by side; without them it holds no text of the facts.
            times: Include when it was and how long it took; without them the same check gives the same record.
        """
        found = {"schema": SCHEMA, **asdict(self)}
        if not examples:
            found["examples"] = []
        if not times:
            for part in (found, *found["attacks"]):
                del part["seconds"]
            del found["created"]
        return found

    def save_json(self, path: str | Path, examples: bool = True) -> None:
        """Write [`record`] to a file, whole or not at all."""
        write_text(path, json.dumps(self.record(examples), indent=1, ensure_ascii=False) + "\n")

    def save_html(self, path: str | Path, examples: bool = True) -> None:
        """Write the report as one page that needs nothing else."""
        write_text(path, page(self if examples else replace(self, examples=())))
