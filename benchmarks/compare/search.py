"""A method's settings: the candidates of its grid, each judged on what was cut from forget and retain themselves.

Nothing that is measured later is looked at. The forget side of the judgement is a sample of the forget questions,
asked in the chat format and in the plain one; the keeping side is a part of the retain set that no candidate gets.
Their harmonic mean decides. The chosen candidate's model is kept, so a search costs its candidates and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from common import bare

from peft_unierase import Fact
from peft_unierase.checking import scores
from peft_unierase.lm.formats import asking_format, plain_format

from .budget import Budget, Erased
from .clock import Clock
from .measures import failure, recall

JUDGED = 40  # questions of each side, at the most
HELD = 0.25  # of the retain set, at the most, is held back to judge on
ERASING = "erasing"
Erase = Callable[..., Erased]


@dataclass(frozen=True)
class Split:
    """What candidates get, and what judges them.

    Attributes:
        forget: What goes, all of it.
        retain: What candidates get of the retain set.
        judged_forget: Forget questions that are asked.
        judged_retain: Retain questions that are asked, none of which is in `retain`.
    """

    forget: list[Fact]
    retain: list[Fact]
    judged_forget: list[Fact]
    judged_retain: list[Fact]


def split(forget: Sequence[Fact], retain: Sequence[Fact]) -> Split:
    """Cut the validation part off, evenly spread, without wordings and wrong answers that attacks use."""
    forget, retain = bare(forget), bare(retain)
    stride = max(1, round(1 / HELD), len(retain) // JUDGED)
    kept_back = retain[::stride] if len(retain) > 1 else []
    given = [fact for number, fact in enumerate(retain) if number % stride or not kept_back]
    return Split(forget, given, forget[:: max(1, len(forget) // JUDGED)][:JUDGED], kept_back[:JUDGED])


def merit(forgetting: float, keeping: float) -> float:
    """Harmonic mean of two figures between 0 and 1; 0 as soon as one of them is."""
    return scores.balance(forgetting, keeping) or 0.0


@dataclass(frozen=True)
class Chosen:
    """The best candidate.

    Attributes:
        erased: What the method gave back.
        settings: With which settings.
        tried: Every candidate: its settings, `forgetting`, `keeping`, `merit` and `seconds`, or its `error`.
        stage: Name of the clock's stage in which the chosen one was erased.
    """

    erased: Erased
    settings: dict[str, Any]
    tried: list[dict[str, Any]]
    stage: str


def search(
    erase: Erase,
    grid: Sequence[Mapping[str, Any]],
    load: Callable[[], tuple[Any, Any]],
    parts: Split,
    budget: Budget,
    seed: int,
    clock: Clock,
    label: str = "",
) -> Chosen:
    """Try a method's settings on fresh models and keep the best.

    Args:
        erase: The method.
        grid: Its candidates, the paper's first; at most `budget.trials` of them are tried.
        load: Gives a fresh base and its tokenizer.
        parts: What candidates get and what judges them.
        budget: What each candidate may use.
        seed: Handed to the method.
        clock: Times each candidate.
        label: What stages are called first.

    Raises:
        Exception: What the last candidate raised, if none of them came through.
    """
    candidates = [dict(settings) for settings in grid[: budget.trials]] or [{}]
    best: Chosen | None = None
    highest, tried, last = -1.0, [], None
    for number, settings in enumerate(candidates, start=1):
        several = len(candidates) > 1
        stage = f"{label}{ERASING}" + (f", candidate {number} of {len(candidates)}" if several else "")
        row: dict[str, Any] = {"settings": settings}
        tried.append(row)
        try:
            model, tokenizer = load()
            with clock.stage(stage):
                erased = erase(model, tokenizer, parts.forget, parts.retain, budget, seed=seed, **settings)
            row["seconds"] = clock.stages[stage]["seconds"]
            if several:
                with clock.stage(f"{label}judging candidate {number} of {len(candidates)}"):
                    row.update(judged(erased, parts))
        except Exception as error:  # another candidate may come through
            row["error"], last = failure(error), error
            continue
        if (found := row.get("merit", 0.0)) > highest:
            highest, best = found, Chosen(erased, settings, tried, stage)
        del erased, model  # a model is large
    if best is None:
        raise last or RuntimeError("there was no candidate")
    return best


def judged(erased: Erased, parts: Split) -> dict[str, float]:
    """How well a model forgets and keeps, from 0 to 1, by recall of its greedy answers.

    Forgetting is one less the mean recall of the forget answers in both formats. Keeping is the mean recall of the
    retained answers in the chat format; without retained facts to judge on, forgetting decides alone.
    """
    model, tokenizer = erased.model, erased.tokenizer
    form, plain = asking_format(tokenizer), plain_format(tokenizer)
    forgetting = 1 - fmean(recall(model, tokenizer, parts.judged_forget, each) for each in dict.fromkeys((form, plain)))
    keeping = recall(model, tokenizer, parts.judged_retain, form) if parts.judged_retain else 1.0
    return {"forgetting": forgetting, "keeping": keeping, "merit": merit(forgetting, keeping)}
