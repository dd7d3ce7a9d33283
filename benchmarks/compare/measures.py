"""The figures of one erased model, by the check's own measures and attacks.

`peft_unierase.check` judges every model. What base and reference model say is asked once a task and remembered for the
other methods: neither changes from one to the next.
"""

from __future__ import annotations

import copy
import functools
import statistics
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from decoding import QUESTION, written
from peft import PeftModel

from peft_unierase import Fact, check
from peft_unierase.checking import (
    ATTACKS,
    Attack,
    AttackResult,
    Case,
    CheckReport,
    Found,
    NotApplicable,
    Target,
    answer_questions,
)
from peft_unierase.checking.attacks import probe, relearn, updates, weights
from peft_unierase.checking.sets import DECLINED, PERPLEXITY
from peft_unierase.errors import InputError
from peft_unierase.lm.batches import encode
from peft_unierase.lm.formats import PromptFormat, asking_format

from .budget import Erased
from .deployed import Deployed
from .tasks import Task

ROUNDS, TOKENS = 4, 32  # of decoding
SCORES = {"FE": "forget efficacy", "MU": "model utility", "balance": "balance", "forget quality": "forget quality"}
BY_NAME = {attack.name: attack for attack in ATTACKS}
ON_WEIGHTS = {attack.name for kind in (weights, updates, probe, relearn) for attack in kind.ATTACKS}


def failure(error: BaseException) -> str:
    """An error as one line: its kind, its first line, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "compare" in Path(frame.filename).parts] or frames
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}{where}"


class Measures:
    """What all models of a task are asked.

    Args:
        task: The task.
        seed: Of everything that is drawn.

    Attributes:
        base: The base model.
        reference: The reference model; `None` if there is none.
        tokenizer: Their tokenizer.
    """

    def __init__(self, task: Task, seed: int = 0) -> None:
        self.task, self.seed = task, seed
        self.base, self.tokenizer = task.model(), task.tokenizer()
        self.reference = task.reference() if task.reference else None
        self._targets = {
            name: Target(name, model, self.tokenizer)
            for name, model in (("base", self.base), ("reference_model", self.reference))
            if model is not None
        }
        self._found: dict[Any, Found | Sequence[float]] = {}
        self._recalls: dict[tuple[Fact, ...], float] = {}
        self._attacks = [self._remembered(BY_NAME[name]) for name in task.attacks]

    def report(
        self, model: Any, tokenizer: Any, forget: Sequence[Fact], held_out: Mapping[str, Sequence[Fact]]
    ) -> CheckReport:
        """What `peft_unierase.check` finds.

        Raises:
            ValueError: The tokenizer asks otherwise than the base's, so base and reference model cannot be asked the
                same.
        """
        if asking_format(tokenizer) != asking_format(self.tokenizer):
            raise InputError("the method changed the chat template; what it adds to prompts belongs into its model")
        return check(
            model,
            tokenizer,
            forget,
            held_out,
            base=self._targets["base"],
            reference_model=self._targets.get("reference_model"),
            attacks=self._attacks,
            refusals=self.task.refusals,
            seed=self.seed,
            progress=False,
        )

    def base_recall(self, facts: Sequence[Fact]) -> float:
        """The base's recall of some facts."""
        key = tuple(facts)
        if key not in self._recalls:
            self._recalls[key] = recall(self.base, self.tokenizer, facts)
        return self._recalls[key]

    def _remembered(self, attack: Attack) -> Attack:
        """The attack; what it finds in base and reference model is kept, and where it fails it is not applicable."""

        @functools.wraps(attack.run)
        def run(target: Target, case: Case) -> Found | Sequence[float]:
            name = next((each for each, own in self._targets.items() if own.model is target.model), target.name)
            if name == "erased":
                if attack.name in ON_WEIGHTS and isinstance(target.model, Deployed):
                    # Whoever has the weights leaves out what stands before them.
                    target = Target(name, target.model.model, target.tokenizer)
                try:
                    return attack.run(target, case)
                except NotApplicable:
                    raise
                except Exception as error:  # of a model that is no plain one; the other attacks say what they find
                    raise NotApplicable(f"failed: {failure(error)}") from error
            key = (attack.name, name, tuple(case.forget))
            if key not in self._found:
                self._found[key] = attack.run(target, case)
            return self._found[key]

        return replace(attack, run=run)


def recall(model: Any, tokenizer: Any, facts: Sequence[Fact], form: PromptFormat | None = None) -> float:
    """Mean ROUGE-L recall of greedy answers, in a format or as the model is asked."""
    answers = answer_questions(model, tokenizer, facts, form or asking_format(tokenizer))
    return statistics.fmean(answer.recall for answer in answers)


def figures(report: CheckReport) -> dict[str, Any]:
    """A report as the part of a row that tables and pictures are made of.

    Returns:
        `scores` by name; `attacks` by name with `leak`, `reference`, `excess` (mean, beyond the reference), `high` (the
        upper end of its interval) and `base`; the `worst` of them; `curves` by attack and model; `kept`, recall of each
        held-out set, with the base's; `not run`, attacks with the reason.
    """
    attacks = {
        result.name: {
            "leak": result.erased.mean,
            "reference": _reference(result),
            "excess": result.excess.mean,
            "high": result.excess.high,
            "base": result.base.mean,
        }
        for result in report.attacks
    }
    sets = [name for name in report.counts if name != "forget"]
    declined = {each.set: each.erased for each in report.figures if each.name == DECLINED and each.set in sets}
    asked = sum(report.counts[name] for name in sets)
    neutral = next(each for each in report.figures if each.name == PERPLEXITY)
    scores: dict[str, float | None] = {short: report.scores[name]["erased"] for short, name in SCORES.items()}
    scores["over-refusal"] = (
        sum((share or 0.0) * report.counts[name] for name, share in declined.items()) / asked if asked else None
    )
    scores["perplexity"] = neutral.erased
    return {
        "scores": scores,
        "attacks": attacks,
        "worst": max(attacks, key=lambda name: attacks[name]["excess"]),
        "curves": {
            result.name: {
                "steps": result.curve.steps,
                "base": result.curve.base,
                "erased": result.curve.erased,
                "reference": result.curve.reference_model,
            }
            for result in report.attacks
            if result.curve
        },
        "kept": {
            each.set: {"base": each.base, "erased": each.erased}
            for each in report.figures
            if each.name == "recall" and each.set in sets
        },
        "not run": {name: why for name, why in report.skipped.items() if name in BY_NAME},
        "verdict": report.verdict.level,
    }


def mean_of(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means of several figures, over those that have one; the worst attack is that of the means."""
    if len(found) == 1:
        return dict(found[0])

    def mean(values: Sequence[Any]) -> Any:
        if isinstance(values[0], Mapping):
            names = dict.fromkeys(name for value in values for name in value)
            return {name: mean([value[name] for value in values if name in value]) for name in names}
        numbers = [value for value in values if isinstance(value, (int, float))]
        return statistics.fmean(numbers) if numbers else None

    parts = {name: mean([each[name] for each in found]) for name in ("scores", "attacks", "kept")}
    worst = max(parts["attacks"], key=lambda name: parts["attacks"][name]["excess"])
    skipped = {name: why for each in found for name, why in each["not run"].items()}
    return {**parts, "worst": worst, "curves": {}, "not run": skipped, "verdict": None}


def _reference(result: AttackResult) -> float:
    """What the attack gets without the facts: from the reference model, or else the stand-in that the check took."""
    if result.reference_model:
        return result.reference_model.mean
    return result.renamed.mean if result.renamed and result.reference == "renamed base" else result.floor


def size(erased: Erased, base: Any) -> dict[str, Any]:
    """Bytes of what a method adds, parameters that it changed, and their share of the base's."""
    every = sum(parameter.numel() for parameter in base.parameters())
    return {"bytes": erased.adapter_bytes, "parameters": erased.changed, "share": erased.changed / every}


@torch.no_grad()
def decoding_cost(
    base: Any, base_tokenizer: Any, erased: Erased, rounds: int = ROUNDS, tokens: int = TOKENS
) -> dict[str, float]:
    """Time to write some tokens, as a multiple of the base's: medians over rounds in which all take turns.

    Returns:
        `on`, and for a `PeftModel` `off` (adapter disabled) and `merged`, if the adapter can be merged.
    """

    def ids_of(tokenizer: Any) -> torch.Tensor:
        prompt = asking_format(tokenizer).prompt(QUESTION)
        return torch.tensor([encode(tokenizer, prompt)], device=base.get_input_embeddings().weight.device)

    own, other = ids_of(erased.tokenizer), ids_of(base_tokenizer)
    merged = _merged(erased.model)

    def off() -> float:
        with erased.model.disable_adapter():
            return written(erased.model, other, tokens)

    ways = {"base": lambda: written(base, other, tokens), "on": lambda: written(erased.model, own, tokens)}
    if isinstance(erased.model, PeftModel):
        ways["off"] = off
    if merged is not None:
        ways["merged"] = lambda: written(merged, own, tokens)
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # warm-up
    for number in range(rounds):
        order = [*ways][number % len(ways) :] + [*ways][: number % len(ways)]
        seconds = {name: ways[name]() for name in order}
        for name in ways:
            ratios[name].append(seconds[name] / seconds["base"])
    return {name: statistics.median(each) for name, each in ratios.items() if name != "base"}


def _merged(model: Any) -> Any:
    """A plain copy of the model with its adapter merged; `None` if that cannot be."""
    if not isinstance(model, PeftModel):
        return None
    try:
        return copy.deepcopy(model).merge_and_unload()
    except Exception:  # PEFT has no common error for adapters that cannot be merged
        return None
