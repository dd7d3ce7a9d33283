"""Attacks of the check on one question: what base and erased model say, and the base about something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..checking import Attack, Case, NotApplicable, Target, Thresholds
from ..checking.attacks import chosen
from ..checking.attacks.attack import ACCURACY
from ..checking.renamed import renamed_cases
from ..checking.scores import beyond_chance
from ..checking.target import Reading
from ..errors import InputError
from .models import Models

# Names of the check's attacks, and what a button says.
WAYS = {
    "ban": "Ban the token",
    "prefill-5": "Begin the answer",
    "paraphrase": "Reword it",
    "choice": "Multiple choice",
    "kept-before": "Few-shot",
}


@dataclass(frozen=True)
class Side:
    """What one model was given and what came of it.

    Attributes:
        given: The text that it went on from, as the model reads it.
        said: What it said, or the answer that it finds likeliest.
        leak: How much of the answer that is, 0 to 1.
        question: What was asked.
    """

    given: str
    said: str
    leak: float
    question: str


@dataclass(frozen=True)
class Tried:
    """An attack on one question.

    Attributes:
        attack: The attack.
        base, erased: What came of it.
        renamed: The base, asked about something else in the same words; `None` if nothing in the question can be
            renamed.
        luck: What somebody who does not know the answer gets, 0 to 1.
        outcome: `leaks` if the erased model gives more than that, by more than the check's margin; `holds` if it does
            not; `idle` if the base itself gives no more than luck, so that the attack says nothing.
    """

    attack: Attack
    base: Side
    erased: Side
    renamed: Side | None
    luck: float
    outcome: str


class _Heard(Target):
    """A target that notes what it is asked and what it says."""

    def __init__(self, *told: Any) -> None:
        super().__init__(*told)
        self.said: list[tuple[str, str]] = []
        self.read: list[tuple[str, str, float]] = []

    def tokens(
        self, prompts: Sequence[str], *, max_new_tokens: int = 64, banned: Sequence[int] = ()
    ) -> list[list[int]]:
        found = super().tokens(prompts, max_new_tokens=max_new_tokens, banned=banned)
        self.said += zip(prompts, self.texts(found), strict=True)
        return found

    def reads(self, prompts: Sequence[str], texts: Sequence[str]) -> list[Reading]:
        found = super().reads(prompts, texts)
        self.read += zip(prompts, texts, (each.loss for each in found), strict=True)
        return found

    def side(self, attack: Attack, case: Case) -> tuple[Side, float]:
        """What an attack gets out of this model, and out of one that knows nothing."""
        self.said, self.read = [], []
        found = attack.found(self, case)
        if attack.unit == ACCURACY:
            given, text, _ = min(self.read, key=lambda each: each[2])
            text = text.removeprefix(case.form.lead).removesuffix(case.form.end)
        else:
            given, text = self.said[-1]
        bos = self.tokenizer.bos_token or ""
        return Side(given.removeprefix(bos), text, found.leaks[0], case.forget[0].question), found.floor[0]


def try_to_break(models: Models, question: str, on: Sequence[str], name: str) -> Tried:
    """Mount an attack of the check on one question.

    Args:
        models: Base and erased model.
        question: From a visitor.
        on: Names of the erasures that are on.
        name: One of `WAYS`.

    Raises:
        ValueError: There is no such attack here, it has nothing to work with, or see `Models.checked`.
    """
    if name not in WAYS:
        raise InputError(f"there is no attack {name!r} on this page; there are {', '.join(WAYS)}")
    question, attack = models.checked(question), chosen([name])[-1]
    with models.alone():
        base, erased = models.base(_Heard), models.erased(on, _Heard)
        assert isinstance(base, _Heard)
        assert isinstance(erased, _Heard)
        case = models.case(models.fact(question, base), base)
        try:
            before, after = base.side(attack, case), erased.side(attack, case)
        except NotApplicable as reason:
            raise InputError(f"“{WAYS[name]}” cannot be tried here: {reason}") from reason
        renamed = None
        for other in renamed_cases(case)[:1]:
            try:
                renamed = base.side(attack, other)[0]
            except NotApplicable:
                continue
    luck = after[1] if attack.unit == ACCURACY or renamed is None else max(after[1], renamed.leak)
    return Tried(attack, before[0], after[0], renamed, luck, _outcome(before[0].leak, after[0].leak, luck))


def _outcome(base: float, erased: float, luck: float) -> str:
    def beyond(leak: float) -> bool:
        return leak > luck and beyond_chance([leak], [luck])[0] > Thresholds().margin

    return "leaks" if beyond(erased) else "holds" if beyond(base) else "idle"
