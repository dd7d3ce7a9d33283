"""Erase in growing steps, look after each at what comes back, stop at the first that fails."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checking.answers import answer_questions
from ..checking.case import drawn
from ..data.facts import Fact, comparable_facts
from ..engine import erase
from ..errors import InputError, MissingPackageError
from ..lm.formats import PromptFormat, default_formats
from ..lm.processes import launched
from ..progress import Stages
from ..storage.whole import write_text

ASKED = 100  # facts of each set, after each step
STEPS = (1, 5, 20)  # and then all
REPORT = "ramp.json"
PICTURE = "ramp.png"


@dataclass(frozen=True)
class Step:
    """One step and what was measured after it.

    Attributes:
        facts: How many facts were erased.
        leaks: Recall of what each step so far added, in their order.
        kept: Recall of the retained questions, as a share of the base's.
        failed: Why it is not good; empty if it is.
    """

    facts: int
    leaks: list[float]
    kept: float
    failed: list[str]


def ramp(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    *,
    steps: Sequence[int] | None = None,
    leak: float = 0.2,
    kept: float = 0.95,
    refusals: Sequence[str] | None = None,
    formats: Sequence[PromptFormat] | None = None,
    samples_cache: str | Path | bool = True,
    seed: int = 0,
    progress: bool = True,
    good: Callable[[Any, Any], None] | None = None,
    measured: Callable[[Sequence[Step]], None] | None = None,
) -> list[Step]:
    """Erase facts in growing steps, each from the base anew, until one step fails or all are erased.

    Args:
        model: The base; it is as it was afterwards.
        tokenizer: Its tokenizer; it stays as it is.
        forget: What must go, in the order of the steps.
        retain: What must stay.
        steps: How many facts to erase in each step; by default 1, 5, 20 and all. Those beyond the set are left out.
        leak: The most that may come back of an erased answer, as recall.
        kept: The least of the base's recall of retained answers that must be left.
        refusals: Ways of declining, instead of the built-in ones.
        formats: Prompt formats, that to ask in first; by default the tokenizer's.
        samples_cache: Folder that keeps what the base asks itself; `False` for none.
        seed: Of everything that is drawn.
        progress: Show the stages of each step.
        good: Called with each erased model that did not fail and its tokenizer, before the next step begins.
        measured: Called after each step with all steps so far.

    Returns:
        The steps. Only the last may have failed.

    Raises:
        ValueError: The steps do not grow, or the base knows too little to judge by.

    Example:

        ```py
        >>> steps = ramp(model, tokenizer, forget, retain, good=lambda erased, _: erased.save_pretrained("last"))
        >>> save_steps(steps, "figures")
        ```
    """
    forget, retain = list(forget), comparable_facts(list(retain))
    if not forget or not retain:
        raise InputError(
            f"a ramp needs facts to erase and retained facts to judge by, got {len(forget)} and {len(retain)}; give at "
            "least one of each"
        )
    whole = sorted({*(step for step in STEPS if step < len(forget)), len(forget)})
    counts = whole if steps is None else growing(steps, len(forget))
    formats = list(formats or default_formats(tokenizer))
    asked = drawn(retain, ASKED, f"{seed} ramp")
    groups = [forget[start:end] for start, end in zip([0, *counts], counts, strict=False)]
    samples = [drawn(group, ASKED, f"{seed} ramp") for group in groups]
    stages = Stages(progress if launched().main else False)

    def recall(what: str, asking: Any, tokenizer: Any, facts: Sequence[Fact]) -> float:
        with stages.stage(what, len(facts), even=False) as bar:
            answers = answer_questions(asking, tokenizer, facts, formats[0], advance=bar.update)
        return sum(answer.recall for answer in answers) / len(answers)

    base = recall("asking the base what is retained", model, tokenizer, asked)
    known = [recall("asking the base for the facts", model, tokenizer, sample) for sample in samples]
    check_baseline(known, base)
    found: list[Step] = []
    for number, count in enumerate(counts, start=1):
        stages.tell(f"step {number} of {len(counts)}: {count} {'fact' if count == 1 else 'facts'}")
        own = copy.deepcopy(tokenizer)  # it gets the token of this step's erasure
        erased = erase(
            model,
            own,
            forget[:count],
            retain,
            formats=formats,
            keep_unknown=True,
            refusals=refusals,
            seed=seed,
            progress=progress,
            samples_cache=samples_cache,
        )
        try:
            leaks = [
                recall(f"asking what step {step} erased", erased, own, sample)
                for step, sample in enumerate(samples[:number], start=1)
            ]
            left = recall("asking what is retained", erased, own, asked) / base
            failed = [
                f"{back:.3f} of what step {step} erased comes back; `leak` (on the command line --leak) is {leak}"
                for step, back in enumerate(leaks, start=1)
                if back > leak
            ]
            if left < kept:
                failed.append(
                    f"{left:.3f} of the retained answers is left; `kept` (on the command line --kept) is {kept}"
                )
            found.append(Step(count, leaks, left, failed))
            if not failed and good is not None:
                good(erased, own)
            if measured is not None:
                measured(found)
        finally:
            model = erased.unload()
        if failed:
            break
    return found


def growing(steps: Sequence[int], facts: int) -> list[int]:
    """Numbers of facts without those beyond a set.

    Raises:
        ValueError: They do not grow, or all are beyond it.
    """
    named = ",".join(map(str, steps))
    within = [number for number in steps if number <= facts]
    if within != sorted({*within}) or min(within, default=1) < 1:
        raise InputError(
            f"`steps` (on the command line --steps) {named} does not grow from step to step; write it like 1,5,20"
        )
    if not within:
        raise InputError(
            f"`steps` (on the command line --steps) {named} begins beyond the {facts} facts of the forget set; begin "
            "with 1"
        )
    return within


def check_baseline(forgotten: Sequence[float], retained: float) -> None:
    """Refuse what no step could be judged by.

    Args:
        forgotten: The base's recall of what each step erases.
        retained: Its recall of the retained questions.

    Raises:
        ValueError: One of them is 0.
    """
    if not retained:
        raise InputError(
            "the base recalls nothing of the retained answers, so nothing could show that they stay; give retained "
            "facts that it knows"
        )
    if unknown := [str(step) for step, known in enumerate(forgotten, start=1) if not known]:
        raise InputError(
            f"the base recalls nothing of what step {', '.join(unknown)} would erase, so nothing could show that it is "
            "gone; leave these facts out, or choose other `steps` (on the command line --steps)"
        )


def save_steps(steps: Sequence[Step], folder: str | Path) -> None:
    """Write figures (`ramp.json`) and picture (`ramp.png`) to a folder.

    Raises:
        ImportError: matplotlib is not installed.
    """
    write_text(Path(folder) / REPORT, json.dumps([vars(step) for step in steps], indent=2) + "\n")
    draw(steps, Path(folder) / PICTURE)


def picture_library() -> Any:
    """matplotlib's figures.

    Raises:
        ImportError: It is not installed.
    """
    try:
        from matplotlib import figure
    except ImportError as error:
        raise MissingPackageError(
            'the picture needs matplotlib; install it with: pip install "peft-unierase[ramp]"'
        ) from error
    return figure


def draw(steps: Sequence[Step], file: Path) -> None:
    """The stability matrix as a picture: steps down, across what each added; dark is what comes back."""
    count = len(steps)
    cells = [[*step.leaks, *[float("nan")] * (count - len(step.leaks)), 1 - step.kept] for step in steps]
    figure = picture_library().Figure(figsize=(1.6 + 0.9 * (count + 1), 1.4 + 0.6 * count), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(cells, cmap="Reds", vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(cells):
        for column, value in enumerate(line):
            if value == value:
                dark = "white" if value > 0.5 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=dark)
    axes.set_xticks(range(count + 1), [*(f"facts of\nstep {n}" for n in range(1, count + 1)), "retained,\nlost"])
    axes.set_yticks(range(count), [f"{step.facts} erased" for step in steps])
    axes.set_title("what comes back after each step (recall)")
    figure.colorbar(shown, ax=axes)
    figure.savefig(file, dpi=120, metadata={"Software": None})
