"""`unierase erase`: read, erase, check, save."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .erase_checks import check_onto, check_samples_out, parse_layers
from .loading import loading_lines, needs
from .note import keep_promise
from .options import (
    MOST,
    DeviceMapOption,
    DtypeOption,
    FormatOption,
    SaltFileOption,
    SamplesCache,
    SeedOption,
    TrustOption,
    WaysOfDecliningOption,
)
from .output import Format, clear_endings, say, show, show_json
from .prompting import PromptOptions
from .sets import Reading, read_refusals
from .together import held

EXAMPLES = (
    "Examples:\n\n"
    "unierase erase org/model forget.jsonl -o erase-xyz\n\n"
    "unierase erase ./model forget.csv -o erase-xyz --retain keep.jsonl --format json\n\n"
    "unierase erase ./model one-fact.jsonl -o erase-xyz --scope question\n\n"
    "unierase erase org/model more.jsonl -o erase-more --onto erase-xyz"
)
SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class EraseOptions:
    """What the command line asks for."""

    model: Annotated[str, typer.Argument(help="The base: a folder or a Hub id of a causal language model.")]
    forget: Annotated[
        str,
        typer.Argument(
            help="What must go: a .jsonl, .json, .csv or .parquet file, or a Hub data set (org/name, or "
            "org/name:config), with questions and answers, chats, or in another layout of docs/guides/data-files.md."
        ),
    ]
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the adapter.", show_default=False)]
    retain: Annotated[
        str | None,
        typer.Option(help="A sample of what must stay, in the same forms as FORGET."),
    ] = None
    onto: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of an erasure made before, which is on while this one is made; may be given several times, in "
            "the order they were made in. Only the new one is saved.",
            show_default=False,
        ),
    ] = None
    reading: Reading
    refusals: WaysOfDecliningOption = None
    prompts: PromptOptions
    recipe: Annotated[str, typer.Option(help="How to erase: distill, or paper (as published).")] = "distill"
    scope: Annotated[
        str | None,
        typer.Option(
            help="question: these questions alone go, whatever else is known about their subjects stays; subject: "
            "everything about their subjects goes. By default only what is given decides.",
            show_default=False,
        ),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(help="Decoder layers to edit, for instance 2,3 or 4-8; by default the recipe chooses."),
    ] = None
    target_modules: Annotated[
        str | None,
        typer.Option(help="Full names of the projections to edit, separated by commas."),
    ] = None
    samples: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST,
            help="Facts that the base tells itself as retain data; the recipe has a default. With 0 there are no "
            "near neighbours either.",
            show_default=False,
        ),
    ] = None
    cache: SamplesCache
    samples_out: Annotated[
        Path | None,
        typer.Option(
            help="Write what the base asked itself to this file, near neighbours of FORGET among it, before anything "
            "is fitted.",
            show_default=False,
        ),
    ] = None
    samples_in: Annotated[
        Path | None,
        typer.Option(help="Take such a file, as you have edited it, and do not ask the base.", show_default=False),
    ] = None
    keep_unknown: Annotated[
        bool, typer.Option("--keep-unknown", help="Erase facts, too, that the base does not know.")
    ] = False
    work_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps finished stages until the erasure is saved, so that the same command goes on where "
            "it was interrupted; by default .OUTPUT.unfinished beside OUTPUT.",
            show_default=False,
        ),
    ] = None
    afresh: Annotated[bool, typer.Option("--afresh", help="Do not go on with an interrupted run; start anew.")] = False
    seed: SeedOption = 0
    dtype: DtypeOption = "float32"
    device_map: DeviceMapOption = None
    revision: Annotated[str | None, typer.Option(help="Revision of the base on the Hub.")] = None
    allow_resize: Annotated[
        bool, typer.Option("--allow-resize", help="Let the vocabulary grow where the base has no spare row.")
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an erasure that is in the folder.")] = False
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not attack the erasure at the end; the record says so.")
    ] = False
    salt_file: SaltFileOption = None
    description: Annotated[
        str | None, typer.Option(help="What was erased, in your words, for the card.", show_default=False)
    ] = None
    license: Annotated[
        str | None, typer.Option(help="Licence of the erasure, for the card: mit, apache-2.0, …", show_default=False)
    ] = None
    base_id: Annotated[
        str | None,
        typer.Option(help="What the base is called on the Hub, where MODEL is a folder.", show_default=False),
    ] = None
    trust: TrustOption = False

    @property
    def unfinished(self) -> Path:
        """Where finished stages lie until the erasure is saved."""
        place = self.output if self.output.name else self.output.absolute()
        return self.work_dir or place.parent / f".{place.name}.unfinished"

    def loading_lines(self) -> str:
        """The lines of Python that load the erasure, once it is saved."""
        onto = self.onto or []
        return loading_lines(self.output, onto, **needs([*onto, self.output], self.trust))


def erase(options: EraseOptions, format: FormatOption = Format.AUTO) -> None:
    """Erase facts from a model and save the erasure as an adapter that PEFT loads."""
    style = format.resolved()
    with clear_endings(unfinished=options.unfinished), held(options.output):
        _run(options, style)


def _run(options: EraseOptions, style: Format) -> None:
    from ..data.facts import check_facts, comparable_facts
    from ..hub.folder import check_output
    from ..lm.processes import launched
    from ..records.ledger import own_salt
    from ..records.record import Salt, read_salt

    # Everything that can be refused without a model is refused first.
    onto = options.onto or ()
    layers, refusals = parse_layers(options.layers), read_refusals(options.refusals)
    prompting = options.prompts.read()
    forget = options.reading.forget(options.forget)
    retain = options.reading.retain(options.retain) if options.retain else []
    for warning in check_facts(forget, retain):
        say(f"warning: {warning}")
    command = {name: str(value) for name, value in vars(options).items()}
    # The files may have changed since, which their names do not tell.
    command["texts"] = hashlib.sha256(repr((forget, retain, refusals, prompting)).encode()).hexdigest()
    processes = launched()
    if processes.from_main(lambda: keep_promise("erase", options.output, command)) is not None:
        if processes.main:
            _show_finished(options, style)
        return
    salt = Salt(b"")  # of processes that write no record

    def check_files() -> None:
        nonlocal salt
        check_samples_out(options.samples_in, options.samples_out, options.samples, options.overwrite)
        check_output(options.output, options.overwrite)
        check_onto(onto, options.output)
        salt = read_salt(options.salt_file) if options.salt_file else own_salt()

    processes.from_main(check_files)
    if not options.no_check:
        from ..checking.scores import statistics

        statistics()

    from ..engine import RECIPES, DistillSettings, check_recipe, erase
    from ..engine.checkpoint import discard
    from ..engine.estimate import estimate
    from ..guard.load import candidate
    from ..lm.load import load_base
    from ..retain.knowledge import sentence
    from ..retain.sample_files import read_samples
    from ..retain.scope import check_scope, plan_scope
    from .base import load_onto, prepare_libraries
    from .finish import checked, estimate_line, finish, stages_table
    from .report import report_table

    samples_in = read_samples(options.samples_in) if options.samples_in else None
    prepare_libraries()
    earlier = [candidate(folder, options.trust) for folder in onto]
    check_recipe(options.recipe)
    check_scope(options.scope, options.recipe)
    if options.scope:
        subjects = plan_scope(options.scope, forget, retain).subjects
        named = ", ".join(subjects[:SHOWN]) + (f" and {len(subjects) - SHOWN} more" if len(subjects) > SHOWN else "")
        say(f"scope {options.scope} is about {named or 'nothing that has a name'}")
    if options.afresh:
        processes.from_main(lambda: discard(options.unfinished))
    where = processes.device_map(options.device_map)
    model, tokenizer = load_base(options.model, options.dtype, where, options.revision)
    whole = not any(parameter.is_meta for parameter in model.parameters())
    if not whole:
        say("warning: part of the base is offloaded, so the run cannot be resumed if it is interrupted")
    formats = prompting.formats(tokenizer)
    settings = RECIPES[options.recipe](**({} if options.samples is None else {"samples": options.samples}))
    names = [name.strip() for name in options.target_modules.split(",")] if options.target_modules else None
    expected = None
    if isinstance(settings, DistillSettings) and style is not Format.QUIET:
        with suppress(ValueError):  # what is wrong with the arguments `erase` will say
            expected = estimate(model, tokenizer, formats, forget, retain, settings, layers, names)
    if expected and style is Format.HUMAN:
        say(estimate_line(expected))
    if earlier:
        model = load_onto(model, tokenizer, earlier, options.allow_resize)
    erased = erase(
        model,
        tokenizer,
        forget,
        retain,
        recipe=options.recipe,
        scope=options.scope,
        layers=layers,
        target_modules=names,
        refusals=refusals,
        formats=formats,
        settings=settings,
        samples_cache=options.cache.folder(),
        samples_in=samples_in,
        samples_out=options.samples_out,
        keep_unknown=options.keep_unknown,
        work_dir=options.unfinished if whole else None,
        allow_resize=options.allow_resize,
        seed=options.seed,
        progress=style is not Format.QUIET,
    )
    report, why_not = None, "--no-check was given"
    if not options.no_check:
        asked = {"refusals": refusals or (), "progress": style is not Format.QUIET, **prompting.asked(tokenizer)}
        report = checked(erased, tokenizer, erased.erasure.facts, comparable_facts(retain), options.seed, **asked)
        why_not = "the check failed"
    words = {"description": options.description, "license": options.license, "base_id": options.base_id}

    def save() -> dict[str, Any]:
        return finish(
            erased,
            tokenizer,
            options.model,
            options.output,
            report or why_not,
            options.overwrite,
            salt,
            prompts=prompting.record(),
            command=command,
            unfinished=options.unfinished,
            **words,
        )

    record = processes.from_main(save)
    seconds = erased.erasure.seconds
    if style is Format.JSON:
        told = expected and asdict(expected)
        show_json({"output": str(options.output), **record, "seconds": seconds, "estimate": told})
    elif style is Format.HUMAN:
        if report:
            show(report_table(report, brief=True) + "\n")
        show(stages_table(seconds) + "\n")
        show(sentence(record["known_to_base"]))
        size, row = record["adapter"], erased.erasure.token
        show(f"[UNL] sits on row {row.token_id}: {row.why}.")
        show(f"Saved to {options.output}: {size['bytes']:,} bytes of weights, {size['share']:.3%} of the parameters.")
        show(f"Next, in Python:\n\n{options.loading_lines()}")


def _show_finished(options: EraseOptions, style: Format) -> None:
    """End a command that was killed when all but its line in the ledger was written."""
    from ..engine.checkpoint import discard
    from ..records.read import read_record

    discard(options.unfinished)
    if style is Format.JSON:
        show_json(
            {"output": str(options.output), **(read_record(options.output) or {}), "seconds": {}, "estimate": None}
        )
    elif style is Format.HUMAN:
        show(f"Saved to {options.output}, by the same command before it was interrupted.")
        show(f"Next, in Python:\n\n{options.loading_lines()}")
