"""`unierase erase`: read, erase, check, save."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import InputError, shown
from ..storage.whole import claimed
from .adapters import ADAPTER, description
from .note import keep_promise
from .output import Format, clear_endings, say, show, show_json
from .prompting import read_prompting
from .sets import Reading, read_refusals

SHOWN = 10
MOST_LAYERS = 10_000


@dataclass(frozen=True)
class ErasePlan:
    """What the command line asked for; see the options of `unierase erase`."""

    model: str
    forget: str
    output: Path
    retain: str | None
    reading: Reading
    refusals: Path | None
    recipe: str
    scope: str | None
    layers: str | None
    target_modules: str | None
    samples: int | None
    samples_cache: Path | bool
    samples_in: Path | None
    samples_out: Path | None
    keep_unknown: bool
    work_dir: Path
    afresh: bool
    seed: int
    dtype: str
    device_map: str | None
    revision: str | None
    allow_resize: bool
    overwrite: bool
    check: bool
    salt_file: Path | None
    description: str | None
    license: str | None
    base_id: str | None
    onto: tuple[Path, ...] = ()
    trust: bool = False
    prompt_format: str | None = None
    system: str | None = None


def parse_layers(text: str | None) -> list[int] | None:
    """`2,3` or `4-8` as indices.

    Raises:
        ValueError: It is neither.
    """
    if text is None:
        return None
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise InputError(f"--layers {shown(text)} is not a list of layers; write it like 2,3 or 4-8")
        layers.extend(range(first, last + 1))
        if len(layers) > MOST_LAYERS:
            raise InputError(f"--layers {shown(text)} names more layers than a model has; write it like 2,3 or 4-8")
    return layers


def unfinished(output: Path) -> Path:
    """Where finished stages lie until the erasure is saved, unless told otherwise."""
    place = output if output.name else output.absolute()
    return place.parent / f".{place.name}.unfinished"


def check_onto(folders: Sequence[Path], output: Path) -> None:
    """Refuse what cannot be loaded before a further erasure.

    Raises:
        ValueError: A folder holds no erasure, is named twice, or is the one that is to be written to.
    """
    from ..storage.output import holds_erasure

    for folder in folders:
        if (folder / ADAPTER).is_file() and not holds_erasure(folder):
            raise InputError(
                f"{folder} is {description(str(folder))} and no erasure; merge it into the base first and give the "
                "merged model as MODEL"
            )
        if not holds_erasure(folder):
            raise InputError(f"{folder} holds no erasure (--onto wants the folder of one that was made before)")
    places = [folder.resolve() for folder in folders]
    if twice := [str(folder) for folder, place in zip(folders, places, strict=True) if places.count(place) > 1]:
        raise InputError(f"--onto names {twice[0]} twice; name each erasure once")
    if output.resolve() in places:
        raise InputError(f"{output} is both --onto and the output; name a new folder for the further erasure")


def check_samples_out(plan: ErasePlan) -> None:
    """Refuse a place for samples that cannot be written to, that would lose something, or with nothing to write.

    Raises:
        ValueError: Says which.
    """
    out = plan.samples_out
    if out is None:
        return
    if out.is_dir():
        raise InputError(f"--samples-out {out} is a folder; name a file in it, for instance {out / 'samples.jsonl'}")
    if out.exists() and not plan.overwrite:
        raise InputError(f"--samples-out {out} is there already; name another file, or give --overwrite")
    if plan.samples_in and out.exists() and out.samefile(plan.samples_in):
        raise InputError(f"--samples-in and --samples-out are both {out}; name two files")
    if plan.samples == 0 and plan.samples_in is None:
        raise InputError("--samples 0 asks the base nothing, so --samples-out has nothing to write; leave one out")


def run_erase(plan: ErasePlan, style: Format) -> None:
    """Run the command; ends the process with status 2 on bad input and 130 on Ctrl-C."""
    with clear_endings(unfinished=plan.work_dir), claimed(plan.output):
        _run(plan, style)


def _run(plan: ErasePlan, style: Format) -> None:
    from ..data.facts import check_facts, comparable_facts
    from ..hub.folder import check_output
    from ..records.ledger import own_salt
    from ..records.record import read_salt

    # Everything that can be refused without a model is refused first.
    layers, refusals = parse_layers(plan.layers), read_refusals(plan.refusals)
    prompting = read_prompting(plan.prompt_format, plan.system)
    forget, retain = plan.reading.forget(plan.forget), plan.reading.retain(plan.retain) if plan.retain else []
    for warning in check_facts(forget, retain):
        say(f"warning: {warning}")
    command = {name: str(value) for name, value in vars(plan).items()}
    # The files may have changed since, which their names do not tell.
    command["texts"] = hashlib.sha256(repr((forget, retain, refusals, prompting)).encode()).hexdigest()
    if keep_promise("erase", plan.output, command) is not None:
        _show_finished(plan, style)
        return
    check_samples_out(plan)
    check_output(plan.output, plan.overwrite)
    check_onto(plan.onto, plan.output)
    salt = read_salt(plan.salt_file) if plan.salt_file else own_salt()
    if plan.check:
        from ..check.scores import statistics

        statistics()

    from ..engine import RECIPES, DistillSettings, check_recipe, erase
    from ..engine.checkpoint import discard
    from ..engine.estimate import estimate
    from ..guard.inspect import guarded
    from ..retain.knowledge import sentence
    from ..retain.sample_files import read_samples
    from ..retain.scope import check_scope, plan_scope
    from .base import load_base, load_onto, prepare_libraries
    from .check import report_table
    from .finish import checked, estimate_line, finish, loading_lines, stages_table

    samples_in = read_samples(plan.samples_in) if plan.samples_in else None
    prepare_libraries()
    for folder in () if plan.trust else plan.onto:
        guarded(folder)
    check_recipe(plan.recipe)
    check_scope(plan.scope, plan.recipe)
    if plan.scope:
        subjects = plan_scope(plan.scope, forget, retain).subjects
        named = ", ".join(subjects[:SHOWN]) + (f" and {len(subjects) - SHOWN} more" if len(subjects) > SHOWN else "")
        say(f"scope {plan.scope} is about {named or 'nothing that has a name'}")
    if plan.afresh:
        discard(plan.work_dir)
    model, tokenizer = load_base(plan.model, plan.dtype, plan.device_map, plan.revision)
    whole = not any(parameter.is_meta for parameter in model.parameters())
    if not whole:
        say("warning: part of the base is offloaded, so the run cannot be resumed if it is interrupted")
    formats = prompting.formats(tokenizer)
    settings = RECIPES[plan.recipe](**({} if plan.samples is None else {"samples": plan.samples}))
    names = [name.strip() for name in plan.target_modules.split(",")] if plan.target_modules else None
    expected = None
    if isinstance(settings, DistillSettings) and style is not Format.QUIET:
        with suppress(ValueError):  # what is wrong with the arguments `erase` will say
            expected = estimate(model, tokenizer, formats, forget, retain, settings, layers, names)
    if expected and style is Format.HUMAN:
        say(estimate_line(expected))
    if plan.onto:
        model = load_onto(model, tokenizer, plan.onto, plan.allow_resize, plan.trust)
    erased = erase(
        model,
        tokenizer,
        forget,
        retain,
        recipe=plan.recipe,
        scope=plan.scope,
        layers=layers,
        target_modules=names,
        refusals=refusals,
        formats=formats,
        settings=settings,
        samples_cache=plan.samples_cache,
        samples_in=samples_in,
        samples_out=plan.samples_out,
        keep_unknown=plan.keep_unknown,
        work_dir=plan.work_dir if whole else None,
        allow_resize=plan.allow_resize,
        seed=plan.seed,
        progress=style is not Format.QUIET,
    )
    report, why_not = None, "--no-check was given"
    if plan.check:
        asked = {"refusals": refusals or (), "progress": style is not Format.QUIET, **prompting.asked(tokenizer)}
        report = checked(erased, tokenizer, erased.erasure.facts, comparable_facts(retain), plan.seed, **asked)
        why_not = "the check failed"
    words = {"description": plan.description, "license": plan.license, "base_id": plan.base_id}
    record = finish(
        erased,
        tokenizer,
        plan.model,
        plan.output,
        report or why_not,
        plan.overwrite,
        salt,
        prompts=prompting.record(),
        command=command,
        **words,
    )
    discard(plan.work_dir)
    seconds = erased.erasure.seconds
    if style is Format.JSON:
        told = expected and asdict(expected)
        show_json({"output": str(plan.output), **record, "seconds": seconds, "estimate": told})
    elif style is Format.HUMAN:
        if report:
            show(report_table(report, brief=True) + "\n")
        show(stages_table(seconds) + "\n")
        show(sentence(record["known_to_base"]))
        size, row = record["adapter"], erased.erasure.token
        show(f"[UNL] sits on row {row.token_id}: {row.why}.")
        show(f"Saved to {plan.output}: {size['bytes']:,} bytes of weights, {size['share']:.3%} of the parameters.")
        show(f"Next, in Python:\n\n{loading_lines(plan.output, plan.onto)}")


def _show_finished(plan: ErasePlan, style: Format) -> None:
    """End a command that was killed when all but its line in the ledger was written."""
    from ..engine.checkpoint import discard
    from ..records.read import read_record
    from .finish import loading_lines

    discard(plan.work_dir)
    if style is Format.JSON:
        show_json({"output": str(plan.output), **(read_record(plan.output) or {}), "seconds": {}, "estimate": None})
    elif style is Format.HUMAN:
        show(f"Saved to {plan.output}, by the same command before it was interrupted.")
        show(f"Next, in Python:\n\n{loading_lines(plan.output, plan.onto)}")
