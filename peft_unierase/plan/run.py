"""`plan`: from a name, a topic, a text or a forget set to the two sets that an erasure takes, to be read before it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..engine.cost import CostEstimate, cost_of, expected_work
from ..engine.known import ENOUGH, known_shares
from ..engine.samples import drop_close, sample_facts
from ..engine.scope import SURE
from ..facts import Fact, FactError, check_facts, fact_row
from ..prompts import chat_format, plain_format
from ..refusals import DEFAULT_REFUSALS
from .collateral import closeness
from .questions import confident, known_about, not_about, subjects_of, told_by

ASKED = 192  # questions about each subject and round
SAMPLES = 512  # questions about anything
RETAINED = 128
CLOSEST = 10


@dataclass(frozen=True)
class PlannedFact:
    """A fact with what is known about it beforehand.

    Attributes:
        fact: The fact.
        confidence: Of one to forget, how sure the base is of its answer, 0 to 1: the geometric mean of the
            probabilities of the answer's tokens. Of one to keep, how close its key lies to what must go, a cosine.
    """

    fact: Fact
    confidence: float


@dataclass(frozen=True)
class Plan:
    """What to erase and what to keep; nothing has been erased.

    Attributes:
        target: What was asked for.
        subjects: Whom or what it is about, where it was no forget set.
        forget: What must go, the surest first.
        retain: What lies near and must stay, the closest first; `confidence` is the closeness.
        unknown: Facts that the base does not know: there is nothing to erase.
        contradictions: What in the sets does not go together, in words.
        cost: What erasing it with recipe `gate` will take.
    """

    target: str
    subjects: list[str]
    forget: list[PlannedFact]
    retain: list[PlannedFact]
    unknown: list[Fact] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    cost: CostEstimate | None = None

    def record(self) -> dict[str, Any]:
        """A JSON object of plain values; the facts themselves are in the files."""
        closest = [{"question": each.fact.question, "closeness": each.confidence} for each in self.retain[:CLOSEST]]
        return {
            "target": self.target,
            "subjects": self.subjects,
            "counts": {"forget": len(self.forget), "retain": len(self.retain), "unknown": len(self.unknown)},
            "contradictions": self.contradictions,
            "closest": closest,
            "cost": self.cost and self.cost.record(),
        }

    def save(self, folder: Path) -> None:
        """Write `forget.jsonl` and `retain.jsonl`, as `erase` reads them, and `unknown.jsonl` where there are some."""
        folder.mkdir(parents=True, exist_ok=True)
        _write(
            folder / "forget.jsonl", [(each.fact, {"confidence": round(each.confidence, 4)}) for each in self.forget]
        )
        _write(folder / "retain.jsonl", [(each.fact, {"closeness": round(each.confidence, 4)}) for each in self.retain])
        if self.unknown:
            _write(folder / "unknown.jsonl", [(fact, {}) for fact in self.unknown])


def plan(
    model: Any,
    tokenizer: Any,
    target: str | Sequence[Fact],
    *,
    text: str | None = None,
    count: int = ASKED,
    retain: int = RETAINED,
    samples: int = SAMPLES,
    sure: float = SURE,
    refusals: Collection[str] = DEFAULT_REFUSALS,
    seed: int = 0,
    progress: bool = True,
) -> Plan:
    """Ask a base what it knows about something, and what near it must stay.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        target: A name or a topic, or a forget set.
        text: A text that tells what must go; `target` is then its name only.
        count: Questions about each subject, in each of two rounds.
        retain: Questions to keep, at most.
        samples: Questions about anything that the base asks itself: they lend beginnings, and what lies near is
            chosen from them.
        sure: How sure the base must be of an answer, 0 to 1.
        refusals: Answers with which the base declines by itself: where it does, there is nothing to erase.
        seed: Seed of the sampling.
        progress: Show a bar.

    Raises:
        ValueError: `target` is empty, or the text names nothing more than once.
    """
    form = chat_format(tokenizer) if getattr(tokenizer, "chat_template", None) else plain_format(tokenizer)
    given = None if isinstance(target, str) else list(target)
    subjects: list[str] = []
    if isinstance(target, str):
        target = " ".join(target.split())
        subjects = [target] if text is None else subjects_of(text)
        if not target or not subjects:
            raise ValueError(
                "there is nothing to plan for: give a name or a topic in words, a forget set, or a text that says a "
                "name more than once"
            )
    with tqdm(total=2 * samples + 4 * count * len(subjects), disable=not progress, desc="asking the base") as bar:
        sampled = sample_facts(model, tokenizer, form, samples, seed, advance=bar.update)
        questions = [fact.question for fact in sampled]
        asked = [
            fact
            for subject in subjects
            for fact in known_about(model, tokenizer, form, subject, questions, count, seed, bar.update)
        ]
    unknown: list[Fact] = []
    if given is None:
        if text is not None:
            asked = told_by(text, asked)
        asked = [fact for fact in asked if fact.answer not in refusals]
        pairs = confident(model, tokenizer, form, asked, sure)
        pairs = sorted(pairs, key=lambda pair: -pair[1])
    else:
        shares = known_shares(model, tokenizer, given, form).tolist()
        unknown = [fact for fact, share in zip(given, shares, strict=True) if share < ENOUGH]
        pairs = confident(model, tokenizer, form, [fact for fact in given if fact not in unknown], 0.0)
    forget = [fact for fact, _ in pairs]
    near = drop_close(not_about(sampled, subjects), forget)
    near = [fact for fact, _ in confident(model, tokenizer, form, near, sure)]
    distances = closeness(model, tokenizer, form, forget, near)
    kept = sorted(map(PlannedFact, near, distances), key=lambda each: -each.confidence)[:retain]
    contradictions = []
    try:
        contradictions += check_facts(forget, [each.fact for each in kept])
    except FactError as error:
        contradictions.append(str(error))
    cost = cost_of(model, expected_work(model, tokenizer, forget, [each.fact for each in kept])) if forget else None
    name = target if isinstance(target, str) else f"{len(target)} facts"
    return Plan(name, subjects, [PlannedFact(*pair) for pair in pairs], kept, unknown, contradictions, cost)


def _write(file: Path, rows: Sequence[tuple[Fact, dict[str, float]]]) -> None:
    lines = []
    for fact, more in rows:
        lines.append(json.dumps({**fact_row(fact), **more}, ensure_ascii=False))
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
