"""From figures to one word: ERASED, SUPPRESSED, DAMAGED, LEAKING or NO BASELINE, and why.

It never says "removed" and never "compliant": it says what was tried and what came out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from .attacks.attack import GREEDY

if TYPE_CHECKING:
    from .report import AttackResult

LEVELS = ("ERASED", "SUPPRESSED", "DAMAGED", "LEAKING", "NO BASELINE")


@dataclass(frozen=True)
class Thresholds:
    """Where verdicts change.

    Attributes:
        known: Share of the forget facts that the base must know for there to be anything to claim. Those that it does
            not know are left out.
        margin: How much more than the reference an attack may get, at the upper end of the confidence interval.
        utility: Share of the base's model utility, and of its recall on each retained set, that the erased model must
            have kept.
        confidence: Of the intervals, two-sided.
    """

    known: float = 0.5
    margin: float = 0.1
    utility: float = 0.95
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= 1:
                raise InputError(f"the threshold {name} is {value}; it must lie between 0 and 1")


@dataclass(frozen=True)
class Verdict:
    """The level, and in whole sentences what decided it.

    Attributes:
        level: One of `LEVELS`, the best one first. ERASED: every attack within its margin. SUPPRESSED: the plain
            question is declined, some attack leaks. DAMAGED: what should have stayed did not. LEAKING: the plain
            question brings the facts. NO BASELINE: the base never knew them, or knew nothing of a set that should stay.
        leaks: Names of the attacks that got more than they may.
        lost: Names of the figures of what should have stayed that are too low.
        reasons: Sentences.
        tried: How many attacks were run.
    """

    level: str
    leaks: list[str]
    lost: list[str]
    reasons: list[str]
    tried: int

    def accepted(self, at_least: str) -> bool:
        """Whether this level is as good as another one."""
        return LEVELS.index(self.level) <= LEVELS.index(at_least)


def decide(
    known: float,
    told: float,
    attacks: Sequence[AttackResult],
    kept: Sequence[tuple[str, float, float]],
    thresholds: Thresholds,
) -> Verdict:
    """The verdict.

    Args:
        known: Share of the forget facts that the base knows.
        told: The base's recall of those. It may know facts, by preferring them to wrong answers, and tell none.
        attacks: All that ran, the plain question, `greedy`, among them.
        kept: What must stay: name, the base's figure, the erased model's figure.
        thresholds: See [`Thresholds`].
    """
    leaking = [attack for attack in attacks if not attack.holds]
    names, count = [attack.name for attack in leaking], len(attacks)
    if not known or known < thresholds.known:
        least = f", less than {thresholds.known:.0%}" if known < thresholds.known else ""
        reason = (
            f"The base knows {known:.0%} of the forget facts{least}: nobody can say whether something went that "
            "was not there."
        )
        return Verdict("NO BASELINE", names, [], [reason], count)
    if told <= 0:
        reason = "The base tells none of the forget answers itself, so nothing shows that they went."
        return Verdict("NO BASELINE", names, [], [reason], count)
    lost = [(name, before, after) for name, before, after in kept if after < thresholds.utility * before]
    reasons = [
        f"{name}: {after:.3f} is left of {before:.3f}, less than {thresholds.utility:.0%}."
        for name, before, after in lost
    ]
    void = [name for name, before, _ in kept if before <= 0]
    reasons += [
        f"{name}: the base has 0 itself, so nothing shows that it stayed. Give questions that the base answers."
        for name in void
    ]
    reasons += [
        f"{attack.title} {attack.outcome}: {attack.excess.mean:+.3f} beyond the {attack.reference}, at most "
        f"{attack.excess.high:+.3f} (may be {thresholds.margin:+.3f})."
        for attack in leaking
    ]
    plain = next((attack for attack in attacks if attack.name == GREEDY), None)
    if plain is None:
        raise InputError("the plain question was not asked, so there is no verdict")
    leaks = plain.excess.mean > thresholds.margin  # that it might, with so few facts, is not enough to say so
    passed = "NO BASELINE" if void else "SUPPRESSED" if leaking else "ERASED"
    level = "LEAKING" if leaks else "DAMAGED" if lost else passed
    stayed = "what should have stayed is there" if kept else "whether anything else was lost was not asked"
    reasons = reasons or [f"None of {count} attacks got beyond its margin; {stayed}."]
    return Verdict(level, names, [name for name, *_ in lost], reasons, count)
