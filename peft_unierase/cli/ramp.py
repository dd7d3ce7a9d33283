"""`unierase ramp`: erase in growing steps, look after each, stop at the first that fails and keep the last good one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingPackageError, shown
from ..storage.whole import claimed
from .output import Format, clear_endings, say, show, show_json, table
from .prompting import read_prompting
from .sets import Reading

ASKED = 100  # facts of each set, after each step
STOPPED = 1
REPORT = "ramp.json"
PICTURE = "ramp.png"


@dataclass(frozen=True)
class RampPlan:
    """What the command line asked for; see the options of `unierase ramp`."""

    model: str
    forget: str
    retain: str
    output: Path
    steps: str
    leak: float
    kept: float
    refusals: Path | None
    reading: Reading
    seed: int
    dtype: str
    device_map: str | None
    prompt_format: str | None = None
    system: str | None = None
    samples_cache: Path | bool = True


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


def parse_steps(text: str, facts: int) -> list[int]:
    """`1,5,20,all` as numbers of facts, growing, those beyond the set left out.

    Raises:
        ValueError: It is no such list.
    """
    numbers = []
    for part in text.split(","):
        word = part.strip()
        if word != "all" and not (re.fullmatch("[0-9]{1,9}", word) and int(word) > 0):
            raise InputError(f"--steps {shown(text)} is not a list of numbers of facts; write it like 1,5,20,all")
        numbers.append(facts if word == "all" else int(word))
    steps = [number for number in numbers if number <= facts]
    if steps != sorted(set(steps)):
        raise InputError(f"--steps {shown(text)} does not grow from step to step; write it like 1,5,20,all")
    if not steps:
        raise InputError(f"--steps {shown(text)} begins beyond the {facts} facts of the forget set; begin with 1")
    return steps


def run_ramp(plan: RampPlan, style: Format) -> None:
    """Run the command; ends the process with status 1 where a step fails, 2 on bad input."""
    with clear_endings(), claimed(plan.output):
        steps = ramp(plan, style)
    good = [step for step in steps if not step.failed]
    if style is Format.JSON:
        kept = str(plan.output / "erasure") if good else None
        show_json({"output": str(plan.output), "erasure": kept, "steps": [vars(step) for step in steps]})
    elif style is Format.HUMAN:
        show(matrix(steps))
        for step in steps:
            for why in step.failed:
                show(f"\nStopped at {step.facts} facts: {why}.")
        if good:
            show(f"\nThe erasure of {good[-1].facts} facts is in {plan.output / 'erasure'}, the picture in {PICTURE}.")
        else:
            show("\nNo step was good, so no erasure was kept.")
    if steps[-1].failed:
        raise SystemExit(STOPPED)


def ramp(plan: RampPlan, style: Format) -> list[Step]:
    """Erase step by step; what is good is saved before the next step begins."""
    from ..checking.answers import answer_questions
    from ..checking.case import drawn
    from ..data.facts import check_facts, comparable_facts
    from ..records.ledger import own_salt
    from ..storage.output import check_new
    from .sets import read_refusals

    refusals, salt = read_refusals(plan.refusals), own_salt()
    prompting = read_prompting(plan.prompt_format, plan.system)
    forget, retain = plan.reading.forget(plan.forget), plan.reading.retain(plan.retain)
    for warning in check_facts(forget, retain):
        say(f"warning: {warning}")
    retain = comparable_facts(retain)
    counts = parse_steps(plan.steps, len(forget))
    check_new(plan.output)
    picture_library()

    from ..engine import erase
    from ..progress import Stages
    from .base import load_base, prepare_libraries
    from .finish import finish

    prepare_libraries()
    asked = drawn(retain, ASKED, f"{plan.seed} ramp")
    groups = [forget[start:end] for start, end in zip([0, *counts], counts, strict=False)]
    samples = [drawn(group, ASKED, f"{plan.seed} ramp") for group in groups]
    told: dict[str, Any] = {"refusals": refusals, "seed": plan.seed, "progress": style is not Format.QUIET}
    told["samples_cache"] = plan.samples_cache
    stages = Stages(style is not Format.QUIET)
    plan.output.mkdir(parents=True, exist_ok=True)
    steps: list[Step] = []
    base = None
    for number, count in enumerate(counts, start=1):
        model, tokenizer = load_base(plan.model, plan.dtype, plan.device_map)
        formats = prompting.formats(tokenizer)
        form = formats[0]
        stages.tell(f"step {number} of {len(counts)}: {count} {'fact' if count == 1 else 'facts'}")

        def recall(what: str, asking: Any, facts: Sequence[Any], tokenizer: Any = tokenizer, form: Any = form) -> float:
            with stages.stage(what, len(facts), even=False) as bar:
                answers = answer_questions(asking, tokenizer, facts, form, advance=bar.update)
            return sum(answer.recall for answer in answers) / len(answers)

        if base is None:
            base = recall("asking the base what is retained", model, asked)
            asking = [recall("asking the base for the facts", model, sample) for sample in samples]
            check_baseline(asking, base)
        erased = erase(model, tokenizer, forget[:count], retain, formats=formats, keep_unknown=True, **told)
        leaks = [
            recall(f"asking what step {step} erased", erased, sample)
            for step, sample in enumerate(samples[:number], start=1)
        ]
        kept = recall("asking what is retained", erased, asked) / base
        failed = [
            f"{leak:.3f} of what step {step} erased comes back, and --leak allows {plan.leak}"
            for step, leak in enumerate(leaks, start=1)
            if leak > plan.leak
        ]
        if kept < plan.kept:
            failed.append(f"{kept:.3f} of the retained answers are left, and --kept asks for {plan.kept}")
        steps.append(Step(count, leaks, kept, failed))
        if not failed:
            why = "measured by the limits of a ramp"
            told_of = prompting.record()
            finish(erased, tokenizer, plan.model, plan.output / "erasure", why, True, salt, prompts=told_of)
        save(steps, plan.output)
        if failed:
            break
    return steps


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
            "gone; leave these facts out, or choose other --steps"
        )


def matrix(steps: Sequence[Step]) -> str:
    """Steps down, and across what each step so far added: how much of it comes back."""
    head = ("facts erased", *(f"step {number}" for number in range(1, len(steps) + 1)), "kept", "")
    rows = [
        (
            str(step.facts),
            *(f"{leak:.3f}" for leak in step.leaks),
            *("-" for _ in range(len(steps) - len(step.leaks))),
            f"{step.kept:.3f}",
            "FAILS" if step.failed else "good",
        )
        for step in steps
    ]
    return table(head, rows)


def save(steps: Sequence[Step], folder: Path) -> None:
    """Write figures and picture."""
    new = folder / f".{REPORT}"
    new.write_text(json.dumps([vars(step) for step in steps], indent=2) + "\n", encoding="utf-8")
    new.replace(folder / REPORT)
    draw(steps, folder / PICTURE)


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
