"""`unierase ramp`: erase in growing steps, look after each, stop at the first that fails and keep the last good one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, shown
from .options import (
    DeviceMapOption,
    DtypeOption,
    FormatOption,
    SamplesCache,
    SeedOption,
    WaysOfDecliningOption,
    number,
)
from .output import Format, clear_endings, say, show, show_json, table
from .prompting import PromptOptions
from .sets import Reading, read_refusals
from .together import held

if TYPE_CHECKING:
    from ..planning.ramp import Step

EXAMPLES = (
    "Examples:\n\nunierase ramp ./model forget.jsonl --retain keep.jsonl -o ramp\n\n"
    "unierase ramp org/model forget.jsonl --retain keep.jsonl --steps 10,100,all --leak 0.1 --kept 0.98 -o ramp"
)
STOPPED = 1


@dataclass(frozen=True, kw_only=True)
class RampOptions:
    """What the command line asks for."""

    model: Annotated[str, typer.Argument(help="The base: a folder or a Hub id.")]
    forget: Annotated[str, typer.Argument(help="What must go, in the forms that erase reads, in the order of steps.")]
    retain: Annotated[str, typer.Option(help="What must stay, in the same forms.", show_default=False)]
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the last good erasure and figures.", show_default=False)
    ]
    steps: Annotated[str, typer.Option(help="How many facts to erase in each step.")] = "1,5,20,all"
    leak: Annotated[
        float, typer.Option(min=0, max=1, callback=number, help="Most that may come back of an erased answer.")
    ] = 0.2
    kept: Annotated[
        float, typer.Option(min=0, max=1, callback=number, help="Least of the base's retained answers to be left.")
    ] = 0.95
    refusals: WaysOfDecliningOption = None
    reading: Reading
    cache: SamplesCache
    prompts: PromptOptions
    seed: SeedOption = 0
    dtype: DtypeOption = "float32"
    device_map: DeviceMapOption = None


def ramp(options: RampOptions, format: FormatOption = Format.AUTO) -> None:
    """Erase in growing steps, look after each at what comes back, keep the last good one. Status 1 if one fails."""
    style = format.resolved()
    with clear_endings(), held(options.output):
        steps = _run(options, style)
    good = [step for step in steps if not step.failed]
    if style is Format.JSON:
        kept = str(options.output / "erasure") if good else None
        show_json({"output": str(options.output), "erasure": kept, "steps": [vars(step) for step in steps]})
    elif style is Format.HUMAN:
        from ..planning.ramp import PICTURE

        show(matrix(steps))
        for step in steps:
            for why in step.failed:
                show(f"\nStopped at {step.facts} facts: {why}.")
        if good:
            place = options.output / "erasure"
            show(f"\nThe erasure of {good[-1].facts} facts is in {place}, the picture in {PICTURE}.")
        else:
            show("\nNo step was good, so no erasure was kept.")
    if steps[-1].failed:
        raise SystemExit(STOPPED)


def _run(options: RampOptions, style: Format) -> list[Step]:
    """Erase step by step; what is good is saved before the next step begins."""
    from ..data.facts import check_facts
    from ..records.ledger import own_salt
    from ..records.record import Salt
    from ..storage.output import check_new

    refusals = read_refusals(options.refusals)
    prompting = options.prompts.read()
    forget, retain = options.reading.forget(options.forget), options.reading.retain(options.retain)
    for warning in check_facts(forget, retain):
        say(f"warning: {warning}")
    steps = parse_steps(options.steps, len(forget))

    from ..lm.load import load_base
    from ..lm.processes import launched
    from ..planning.ramp import growing, picture_library, ramp, save_steps
    from .base import prepare_libraries
    from .finish import finish

    steps = growing(steps, len(forget))
    picture_library()
    processes, salt = launched(), Salt(b"")  # of processes that write no record

    def check_files() -> None:
        nonlocal salt
        salt = own_salt()
        check_new(options.output)

    processes.from_main(check_files)
    prepare_libraries()
    model, tokenizer = load_base(options.model, options.dtype, processes.device_map(options.device_map))
    processes.from_main(lambda: options.output.mkdir(parents=True, exist_ok=True))

    def keep(erased: Any, tokenizer: Any) -> None:
        why, place = "measured by the limits of a ramp", options.output / "erasure"
        told = options.model, place, why, True, salt
        processes.from_main(lambda: finish(erased, tokenizer, *told, prompts=prompting.record()))

    def draw(steps: Sequence[Step]) -> None:
        processes.from_main(lambda: save_steps(steps, options.output))

    return ramp(
        model,
        tokenizer,
        forget,
        retain,
        steps=steps,
        leak=options.leak,
        kept=options.kept,
        refusals=refusals,
        formats=prompting.formats(tokenizer),
        samples_cache=options.cache.folder(),
        seed=options.seed,
        progress=style is not Format.QUIET,
        good=keep,
        measured=draw,
    )


def parse_steps(text: str, facts: int) -> list[int]:
    """`1,5,20,all` as numbers of facts; `all` adds nothing where a step has all already.

    Raises:
        ValueError: It is no such list.
    """
    numbers: list[int] = []
    for part in text.split(","):
        word = part.strip()
        if word != "all" and not re.fullmatch("[0-9]{1,9}", word):
            raise InputError(f"--steps {shown(text)} is not a list of numbers of facts; write it like 1,5,20,all")
        if word != "all" or facts not in numbers:
            numbers.append(facts if word == "all" else int(word))
    return numbers


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
