"""One row: a method on a task, from the fresh base to the figures. What fails becomes a row that says so."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from common import bare
from peft import PeftModel

from peft_unierase import Fact
from peft_unierase.data.facts import DEFAULT_REFUSALS

from .budget import Budget, Erased
from .clock import Clock
from .measures import Measures, decoding_cost, failure, figures, mean_of, recall, size
from .methods import METHODS, REFERENCE
from .ranking import OURS, PUBLISHED
from .results import BASE, DONE, FAILED, SCHEMA, Results, Row, surroundings
from .search import ERASING, Chosen, Split, search, split
from .tasks import BATCH, SINGLE, STEPS, Task

ASKED = 40  # questions of each kind after each step
UNSEARCHED = (OURS, PUBLISHED)  # what is claimed of our recipes is claimed of their defaults
CHECKING, DECODING, SEARCHING, ASKING = "checking", "decoding", "searching", "asking after each step"


@dataclass(frozen=True)
class Run:
    """What a row is measured with.

    Attributes:
        task: The task.
        method: The method's name.
        measures: What judges it.
        seed: Of everything.
        clock: Times the stages of this row alone.
        stored: Settings that are taken over instead of a search, if there are some.
    """

    task: Task
    method: str
    measures: Measures
    seed: int
    clock: Clock
    stored: Mapping[str, Any] | None = None

    def fresh(self) -> tuple[Any, Any]:
        """A fresh base and its tokenizer."""
        return self.task.model(), self.task.tokenizer()

    def erase(
        self,
        parts: Split,
        load: Callable[[], tuple[Any, Any]],
        settings: Mapping[str, Any] | None = None,
        label: str = "",
    ) -> Chosen:
        """Search the method's settings, or take those that are given, or those that are stored."""
        method, task = METHODS[self.method], self.task
        known = settings if settings is not None else self.stored
        grid = candidates(self.method, task.budget) if known is None else (dict(known),)
        erase = functools.partial(method.erase, refusals=task.refusals or DEFAULT_REFUSALS)
        return search(erase, grid, load, parts, self.budget, self.seed, self.clock, label)

    @property
    def budget(self) -> Budget:
        """What each run of the method may use."""
        whole, count = self.task.budget, len(candidates(self.method, self.task.budget))
        return replace(whole, texts=whole.texts * whole.trials // count, trials=count)

    def checked(
        self, model: Any, tokenizer: Any, forget: Sequence[Fact], near: Mapping[str, Sequence[Fact]], label: str = ""
    ) -> dict[str, Any]:
        """The figures of a model.

        Args:
            model: The model.
            tokenizer: Its tokenizer.
            forget: What should be gone.
            near: What is asked for its recall alone, by name.
            label: What the stage is called first.
        """
        with self.clock.stage(f"{label}{CHECKING}"):
            found = figures(self.measures.report(model, tokenizer, forget, self.task.held_out))
            for name, facts in near.items():
                base = self.measures.base_recall(facts)
                found["kept"][name] = {"base": base, "erased": recall(model, tokenizer, facts)}
        return found

    def costs(self, erased: Erased) -> dict[str, float]:
        """What decoding costs."""
        with self.clock.stage(DECODING):
            return decoding_cost(self.measures.base, self.measures.tokenizer, erased)

    def stages(self, erasing: Sequence[str]) -> dict[str, Any]:
        """Seconds and peaks: of the erasures that count, of the rest of the search, of checking and the others."""
        groups: dict[str, list[str]] = {ERASING: [*erasing], SEARCHING: [], ASKING: [], CHECKING: [], DECODING: []}
        for name in self.clock.stages:
            ends = next((end for end in (ASKING, CHECKING, DECODING) if name.endswith(end)), SEARCHING)
            if name not in erasing:
                groups[ends].append(name)
        return {group: self.clock.together(names) for group, names in groups.items() if names}


def candidates(method: str, budget: Budget) -> tuple[dict[str, Any], ...]:
    """The settings of a method that are tried: the first of its grid, as many as there may be trials."""
    return METHODS[method].grid[: 1 if method in UNSEARCHED else budget.trials]


def measured(task: Task, method: str, measures: Measures, seed: int, clock: Clock, results: Results) -> Row:
    """The row of a method on a task. It raises nothing but what stops the program.

    Args:
        task: The task.
        method: Its name in `METHODS`, or `base`.
        measures: What judges it.
        seed: Of everything random.
        clock: Times its stages.
        results: Where settings that another task chose are stored.
    """
    started = time.perf_counter()
    stored = None if method in UNSEARCHED else results.settings(task.settings_from, method, seed)
    run = Run(task, method, measures, seed, clock, stored)
    row = head_of(task, method, seed)
    try:
        if method in (BASE, REFERENCE):
            row.update(unchanged(run))
        else:
            row.update(KINDS[task.kind](run), given=asdict(run.budget))
    except Exception as error:  # the next method may come through
        row.update(status=FAILED, error=failure(error), stages=dict(clock.stages))
    return {**row, "seconds": time.perf_counter() - started, **surroundings()}


def head_of(task: Task, method: str, seed: int) -> Row:
    """What a row says of a task and a method before anything is measured."""
    return {
        "schema": SCHEMA,
        "task": task.name,
        "title": task.title,
        "base": task.base,
        "kind": task.kind,
        "facts": task.facts,
        "method": method,
        "seed": seed,
        "budget": asdict(task.budget),
        "status": DONE,
    }


def unchanged(run: Run) -> Row:
    """The base itself, or the reference model.

    Raises:
        ValueError: There is no reference model.
    """
    model = run.measures.base if run.method == BASE else run.measures.reference
    if model is None:
        raise ValueError("the task has no reference model")
    task = run.task
    asked = task.parts if task.kind == SINGLE else [task.asked]
    found = [
        run.checked(model, run.measures.tokenizer, part, near)
        for part, near in zip(asked, task.near or [{}] * len(asked), strict=True)
    ]
    return {"settings": {}, **mean_of(found), "stages": run.stages([])}


def batch(run: Run) -> Row:
    """Everything goes at once."""
    task = run.task
    chosen = run.erase(split(task.parts[0], task.retain), run.fresh)
    erased = chosen.erased
    found = run.checked(erased.model, erased.tokenizer, task.asked, task.near[0] if task.near else {})
    return {
        "settings": chosen.settings,
        "tried": chosen.tried,
        **found,
        "size": size(erased, run.measures.base),
        "decoding": run.costs(erased),
        "stages": run.stages([chosen.stage]),
    }


def steps(run: Run) -> Row:
    """One part after the other goes, each from what the one before left. The settings are those of the first step."""
    task, measures = run.task, run.measures
    kept = [fact for facts in task.held_out.values() for fact in facts]
    kept = kept[:: max(1, len(kept) // ASKED)]
    before = measures.base_recall(kept)
    chosen: Chosen | None = None
    first: Chosen | None = None
    gone: list[Fact] = []
    rows, erasing, sizes = [], [], []
    for number, part in enumerate(task.parts, start=1):
        load = run.fresh if chosen is None else functools.partial(carried_on, chosen.erased)
        chosen = run.erase(
            split(part, task.retain), load, first.settings if first else None, f"step {number} of {len(task.parts)}: "
        )
        first, gone = first or chosen, [*gone, *bare(part)]
        erasing.append(chosen.stage)
        sizes.append(size(chosen.erased, measures.base))
        model, tokenizer = chosen.erased.model, chosen.erased.tokenizer
        with run.clock.stage(f"step {number} of {len(task.parts)}: {ASKING}"):
            rows.append(
                {
                    "facts": len(gone),
                    "this step": recall(model, tokenizer, part[:: max(1, len(part) // ASKED)]),
                    "all steps": recall(model, tokenizer, gone[:: max(1, len(gone) // ASKED)]),
                    "kept": recall(model, tokenizer, kept) / before if before else None,
                    "seconds": run.clock.stages[chosen.stage]["seconds"],
                }
            )
    if chosen is None or first is None:
        raise ValueError("the task has no step")
    found = run.checked(chosen.erased.model, chosen.erased.tokenizer, task.asked, {})
    return {
        "settings": first.settings,
        "tried": first.tried,
        "steps": rows,
        **found,
        "size": {name: sum(each[name] for each in sizes) for name in sizes[0]},
        "decoding": run.costs(chosen.erased),
        "stages": run.stages(erasing),
    }


def single(run: Run) -> Row:
    """Each part goes from a fresh base; the figures are means. The settings are those of the first part."""
    task = run.task
    first: Chosen | None = None
    found, erasing, sizes, costs = [], [], [], []
    for number, part in enumerate(task.parts, start=1):
        label = f"{number} of {len(task.parts)}: "
        chosen = run.erase(split(part, task.retain), run.fresh, first.settings if first else None, label)
        first = first or chosen
        erased, near = chosen.erased, task.near[number - 1] if task.near else {}
        found.append(run.checked(erased.model, erased.tokenizer, part, near, label))
        erasing.append(chosen.stage)
        sizes.append(size(erased, run.measures.base))
        costs = costs or [run.costs(erased)]
    if first is None:
        raise ValueError("the task has no part")
    stages = run.stages(erasing)
    stages[ERASING]["seconds"] /= len(erasing)  # of one erasure, as in the other kinds
    return {
        "settings": first.settings,
        "tried": first.tried,
        **mean_of(found),
        "size": {name: fmean(each[name] for each in sizes) for name in sizes[0]},
        "decoding": costs[0],
        "stages": stages,
    }


def carried_on(erased: Erased) -> tuple[Any, Any]:
    """The model from which the next step begins, with its tokenizer.

    An adapter of this package stays and gets another one put beside it. A LoRA is merged, because a method trains a new
    one. Other models are taken as they are.
    """
    model = erased.model
    if isinstance(model, PeftModel) and not any(
        config.peft_type == "UNIERASE" for config in model.peft_config.values()
    ):
        model = model.merge_and_unload()
    return model, erased.tokenizer


KINDS: dict[str, Callable[[Run], Row]] = {BATCH: batch, STEPS: steps, SINGLE: single}
