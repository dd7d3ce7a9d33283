"""`plan`: from a name, a topic, a text or a forget set to the two sets that an erasure takes, to be read before it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..data.facts import DEFAULT_REFUSALS, Fact, FactError, check_answers, check_facts, fact_row, merge_repeats
from ..engine.around import SURE
from ..engine.estimate import Estimate, estimate
from ..errors import InputError
from ..lm.formats import PromptFormat, default_formats
from ..lm.processes import Processes, launched
from ..lm.surroundings import own_surroundings
from ..progress import Stages
from ..retain.about import ask_about, find_beginnings
from ..retain.cache import BLOCK, samples_folder, samples_for
from ..retain.knowledge import ask
from ..retain.samples import SAMPLE_STEPS, drop_close
from ..text import scripts, terms
from .collateral import closeness
from .questions import answers_to_templates, confident, not_about, subjects_of, told_by, without_repeats

ASKED = 96  # questions about each subject and round
ROUNDS = 2
SAMPLES = 256  # questions about anything
LENDING = 128  # questions that lend their beginnings
RETAINED = 128
CLOSEST = 10
LATIN = "LATIN"  # script of the templates; a base that asks itself nothing in it would answer them with nonsense


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
        estimate: What erasing it with recipe `distill` will take.
    """

    target: str
    subjects: list[str]
    forget: list[PlannedFact]
    retain: list[PlannedFact]
    unknown: list[Fact] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    estimate: Estimate | None = None

    def record(self) -> dict[str, Any]:
        """A JSON object of plain values; the facts themselves are in the files."""
        closest = [{"question": each.fact.question, "closeness": each.confidence} for each in self.retain[:CLOSEST]]
        return {
            "target": self.target,
            "subjects": self.subjects,
            "counts": {"forget": len(self.forget), "retain": len(self.retain), "unknown": len(self.unknown)},
            "contradictions": self.contradictions,
            "closest": closest,
            "estimate": self.estimate and asdict(self.estimate),
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


@own_surroundings()
def plan(
    model: Any,
    tokenizer: Any,
    target: str | Sequence[Fact],
    *,
    text: str | None = None,
    count: int = ASKED,
    retain: int = RETAINED,
    samples: int = SAMPLES,
    samples_cache: str | Path | bool = True,
    sure: float = SURE,
    refusals: Collection[str] = DEFAULT_REFUSALS,
    formats: Sequence[PromptFormat] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Plan:
    """Ask a base what it knows about something, and what near it must stay.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        target: A name or a topic, or a forget set.
        text: A text that tells what must go; `target` is then its name only.
        count: Questions about each subject, in each of two rounds. In the second one the questions of the first lend
            their beginnings: they are about the subject already.
        retain: Questions to keep, at most.
        samples: Questions about anything that the base asks itself: they lend beginnings, and what lies near is
            chosen from them.
        samples_cache: Folder that keeps these for every further plan and erasure of the same base. `True` is a folder
            of this user's, `False` keeps nothing.
        sure: How sure the base must be of an answer, 0 to 1.
        refusals: Answers with which the base declines by itself: where it does, there is nothing to erase.
        formats: Prompt formats that the erasure is to cover, instead of `default_formats`; the first is asked in.
        seed: Seed of the sampling.
        progress: Show what is done.

    Raises:
        ValueError: `target` is empty, an answer in it has no letter and no digit, or the text names nothing more than
            once.
    """
    processes = launched()
    formats = list(formats or default_formats(tokenizer))
    form = formats[0]
    given = None if isinstance(target, str) else list(target)
    subjects: list[str] = []
    if isinstance(target, str):
        target = " ".join(target.split())
        subjects = [target] if text is None else subjects_of(text)
        if not target or not subjects:
            raise InputError(
                "there is nothing to plan for: give a name or a topic in words, a forget set, or a text that says a "
                "name more than once (names are found by their capitals, or in quotes)"
            )
    if given is not None:
        if not given:
            raise InputError("the forget set is empty; give at least one fact, or a name or a topic in words")
        check_answers(given)
    stages = Stages(progress if processes.main else False)
    folder = samples_folder(model, samples_cache)
    with stages.stage("sampling retain data", SAMPLE_STEPS * BLOCK * math.ceil(samples / BLOCK)) as bar:
        sampled = samples_for(model, tokenizer, form, samples, seed, folder, bar.update, processes=processes)
    asked: list[Fact] = []
    for subject in subjects:
        questions = [f.question for f in sampled]
        asked += _told_about(model, tokenizer, form, subject, questions, count, seed, stages, processes)
    unknown: list[Fact] = []
    if given is None:
        if text is not None:
            asked = told_by(text, asked)
        # An answer that only repeats its question tells nothing.
        asked = [f for f in asked if f.answer not in refusals and terms(f.answer) - terms(f.question)]
        with stages.stage("asking how sure the base is"):
            pairs = sorted(confident(model, tokenizer, form, asked, sure), key=lambda pair: -pair[1])
    else:
        with stages.stage("asking the base for the facts", len(given) * len(formats)) as bar:
            found = ask(model, tokenizer, merge_repeats(given), formats, bar.update, processes)
        unknown = [each.fact for each in found if not each.known]
        pairs = confident(model, tokenizer, form, [each.fact for each in found if each.known], 0.0)
    forget = [fact for fact, _ in pairs]
    with stages.stage("finding what lies near"):
        near = drop_close(not_about(sampled, subjects), forget)
        distances = closeness(model, tokenizer, form, forget, near)
    kept = sorted(map(PlannedFact, near, distances), key=lambda each: -each.confidence)[:retain]
    contradictions = []
    try:
        contradictions += check_facts(forget if given is None else given, [each.fact for each in kept])
    except FactError as error:
        contradictions.append(str(error))
    stay = [each.fact for each in kept]
    expected = estimate(model, tokenizer, formats, forget, stay, timed=False) if forget else None
    name = target if isinstance(target, str) else f"{len(target)} facts"
    return Plan(name, subjects, [PlannedFact(*pair) for pair in pairs], kept, unknown, contradictions, expected)


def _told_about(
    model: Any,
    tokenizer: Any,
    form: PromptFormat,
    subject: str,
    questions: Sequence[str],
    count: int,
    seed: int,
    stages: Stages,
    processes: Processes,
) -> list[Fact]:
    """What the base answers about a subject: first to templates, then to what it asks itself, in rounds.

    After the first round its questions lend their beginnings: the base names the subject in places where it did not.
    """
    with stages.stage(f"asking about {subject}, {ROUNDS} rounds", ROUNDS * SAMPLE_STEPS * count) as bar:
        found = answers_to_templates(model, tokenizer, form, subject) if LATIN in scripts(" ".join(questions)) else []
        for turn in range(ROUNDS):
            lent = [*[fact.question for fact in found], *questions][:LENDING]
            (beginnings,) = find_beginnings(model, tokenizer, form, [subject], lent, count)
            told: dict[str, Any] = {"advance": bar.update, "processes": processes}
            found += ask_about(model, tokenizer, form, subject, beginnings, count, seed + turn, **told)
    return without_repeats(found)


def _write(file: Path, rows: Sequence[tuple[Fact, dict[str, float]]]) -> None:
    lines = []
    for fact, more in rows:
        lines.append(json.dumps({**fact_row(fact), **more}, ensure_ascii=False))
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
