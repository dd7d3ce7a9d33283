"""Commands and their options: what `--help` shows. No heavy import at the top, so that help answers at once."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..version import __version__
from .options import (
    MOST,
    AnswerColumnOption,
    DeviceMapOption,
    FormatOption,
    NoSamplesCacheOption,
    PromptFormatOption,
    QuestionColumnOption,
    RetainAnswerColumnOption,
    RetainQuestionColumnOption,
    RetainSplitOption,
    SamplesCacheOption,
    SplitOption,
    StripMarkupOption,
    SystemOption,
    TrustOption,
    check_arguments,
    number,
    samples_cache_of,
)
from .output import Format, clear_endings, interrupt
from .records import app as records
from .sets import Reading
from .share import app as share

LARGEST_SEED = 2**32 - 1


class Commands(TyperGroup):
    """The commands. Bad options are one line, as all errors are, and a bug says that it is one."""

    def make_context(self, *told: Any, **further: Any) -> Any:
        with clear_endings():
            return super().make_context(*told, **further)

    def invoke(self, ctx: Any) -> Any:
        with clear_endings(nothing="what was written before stays"):
            return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        check_arguments(args)
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="unierase",
    cls=Commands,
    help="Make a language model decline on chosen knowledge, as a small PEFT adapter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make a language model decline on chosen knowledge, as a small PEFT adapter."""


@app.command(
    epilog="Examples:\n\n"
    "unierase erase org/model forget.jsonl -o erase-xyz\n\n"
    "unierase erase ./model forget.csv -o erase-xyz --retain keep.jsonl --format json\n\n"
    "unierase erase ./model one-fact.jsonl -o erase-xyz --scope question\n\n"
    "unierase erase org/model more.jsonl -o erase-more --onto erase-xyz"
)
def erase(
    model: Annotated[str, typer.Argument(help="The base: a folder or a Hub id of a causal language model.")],
    forget: Annotated[
        str,
        typer.Argument(
            help="What must go: a .jsonl, .json, .csv or .parquet file, or a Hub data set (org/name, or "
            "org/name:config), with questions and answers, chats, or in another layout of docs/guides/data-files.md."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the adapter.", show_default=False)],
    retain: Annotated[
        str | None,
        typer.Option(help="A sample of what must stay, in the same forms as FORGET."),
    ] = None,
    onto: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of an erasure made before, which is on while this one is made; may be given several times, in "
            "the order they were made in. Only the new one is saved.",
            show_default=False,
        ),
    ] = None,
    question_column: QuestionColumnOption = None,
    answer_column: AnswerColumnOption = None,
    split: SplitOption = "train",
    retain_question_column: RetainQuestionColumnOption = None,
    retain_answer_column: RetainAnswerColumnOption = None,
    retain_split: RetainSplitOption = None,
    strip_markup: StripMarkupOption = False,
    refusals: Annotated[
        Path | None,
        typer.Option(
            help="Ways of declining, one sentence a line, instead of the built-in ones; distill teaches the likeliest."
        ),
    ] = None,
    prompt_format: PromptFormatOption = None,
    system: SystemOption = None,
    recipe: Annotated[str, typer.Option(help="How to erase: distill, or paper (as published).")] = "distill",
    scope: Annotated[
        str | None,
        typer.Option(
            help="question: these questions alone go, whatever else is known about their subjects stays; subject: "
            "everything about their subjects goes. By default only what is given decides.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Decoder layers to edit, for instance 2,3 or 4-8; by default the recipe chooses."),
    ] = None,
    target_modules: Annotated[
        str | None,
        typer.Option(help="Full names of the projections to edit, separated by commas."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST,
            help="Facts that the base tells itself as retain data; the recipe has a default. With 0 there are no "
            "near neighbours either.",
            show_default=False,
        ),
    ] = None,
    samples_cache: SamplesCacheOption = None,
    no_samples_cache: NoSamplesCacheOption = False,
    samples_out: Annotated[
        Path | None,
        typer.Option(
            help="Write what the base asked itself to this file, near neighbours of FORGET among it, before anything "
            "is fitted.",
            show_default=False,
        ),
    ] = None,
    samples_in: Annotated[
        Path | None,
        typer.Option(help="Take such a file, as you have edited it, and do not ask the base.", show_default=False),
    ] = None,
    keep_unknown: Annotated[
        bool, typer.Option("--keep-unknown", help="Erase facts, too, that the base does not know.")
    ] = False,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps finished stages until the erasure is saved, so that the same command goes on where "
            "it was interrupted; by default .OUTPUT.unfinished beside OUTPUT.",
            show_default=False,
        ),
    ] = None,
    afresh: Annotated[bool, typer.Option("--afresh", help="Do not go on with an interrupted run; start anew.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Same seed, same machine, same bytes.")] = 0,
    dtype: Annotated[
        str, typer.Option(help="Load the base as float32, bfloat16, float16, or auto (as it was saved).")
    ] = "float32",
    device_map: DeviceMapOption = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the base on the Hub.")] = None,
    allow_resize: Annotated[
        bool, typer.Option("--allow-resize", help="Let the vocabulary grow where the base has no spare row.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an erasure that is in the folder.")] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not attack the erasure at the end; the record says so.")
    ] = False,
    salt_file: Annotated[
        Path | None,
        typer.Option(
            help="File with your secret, in hex, under which the record holds the facts; by default one of this user.",
            show_default=False,
        ),
    ] = None,
    description: Annotated[
        str | None, typer.Option(help="What was erased, in your words, for the card.", show_default=False)
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="Licence of the erasure, for the card: mit, apache-2.0, …", show_default=False)
    ] = None,
    base_id: Annotated[
        str | None,
        typer.Option(help="What the base is called on the Hub, where MODEL is a folder.", show_default=False),
    ] = None,
    trust: TrustOption = False,
    format: FormatOption = Format.AUTO,
) -> None:
    """Erase facts from a model and save the erasure as an adapter that PEFT loads."""
    from .erase import ErasePlan, run_erase, unfinished

    run_erase(
        ErasePlan(
            model=model,
            forget=forget,
            output=output,
            retain=retain,
            reading=Reading(
                question_column,
                answer_column,
                split,
                retain_question_column,
                retain_answer_column,
                retain_split,
                strip_markup,
            ),
            refusals=refusals,
            prompt_format=prompt_format,
            system=system,
            recipe=recipe,
            scope=scope,
            layers=layers,
            target_modules=target_modules,
            samples=samples,
            samples_cache=samples_cache_of(samples_cache, no_samples_cache),
            samples_in=samples_in,
            samples_out=samples_out,
            keep_unknown=keep_unknown,
            work_dir=work_dir or unfinished(output),
            afresh=afresh,
            seed=seed,
            dtype=dtype,
            device_map=device_map,
            revision=revision,
            allow_resize=allow_resize,
            overwrite=overwrite,
            check=not no_check,
            salt_file=salt_file,
            description=description,
            license=license,
            base_id=base_id,
            onto=tuple(onto or ()),
            trust=trust,
        ),
        format.resolved(),
    )


@app.command(
    epilog='Examples:\n\nunierase plan ./model "Ada Finch" -o plan\n\nunierase plan org/model letter.txt -o plan\n\n'
    "unierase plan org/model forget.jsonl -o plan"
)
def plan(
    model: Annotated[str, typer.Argument(help="The base: a folder or a Hub id.")],
    target: Annotated[
        str,
        typer.Argument(help="What should go: a name or a topic in words, a text (.txt, .md), or a forget set."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the two sets.", show_default=False)],
    count: Annotated[
        int, typer.Option(min=1, max=MOST, help="Questions about each subject, in each of two rounds.")
    ] = 96,
    retain: Annotated[int, typer.Option(min=0, max=MOST, help="Questions to keep, at most.")] = 128,
    sure: Annotated[
        float, typer.Option(min=0, max=1, callback=number, help="How sure the base must be of an answer.")
    ] = 0.5,
    refusals: Annotated[
        Path | None,
        typer.Option(help="Sentences with which the model declines by itself, one a line.", show_default=False),
    ] = None,
    samples_cache: SamplesCacheOption = None,
    no_samples_cache: NoSamplesCacheOption = False,
    prompt_format: PromptFormatOption = None,
    system: SystemOption = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Same seed, same machine, same plan.")] = 0,
    dtype: Annotated[str, typer.Option(help="Load the base as float32, bfloat16, float16, or auto.")] = "float32",
    device_map: DeviceMapOption = None,
    question_column: QuestionColumnOption = None,
    answer_column: AnswerColumnOption = None,
    split: SplitOption = "train",
    strip_markup: StripMarkupOption = False,
    format: FormatOption = Format.AUTO,
) -> None:
    """Ask a model what it knows about something, and write a forget and a retain set to review before erasing."""
    from .plan import PlanOrder, run_plan

    asked = (prompt_format, system)
    reading = Reading(question_column, answer_column, split, strip_markup=strip_markup)
    cache = samples_cache_of(samples_cache, no_samples_cache)
    order = PlanOrder(
        model, target, output, count, retain, sure, seed, dtype, device_map, reading, refusals, *asked, cache
    )
    run_plan(order, format.resolved())


@app.command(
    epilog="Examples:\n\n"
    "unierase check erase-xyz --forget forget.jsonl --retain keep.jsonl -o report\n\n"
    "unierase check erase-xyz --forget forget.jsonl --attacks fast --twin org/never-knew --accept SUPPRESSED\n\n"
    "unierase check ./unlearned --base org/model --forget forget.jsonl --retain facts=facts.csv --retain keep.jsonl"
)
def check(
    model: Annotated[
        str, typer.Argument(help="What is judged: a folder or Hub id of an adapter (of any PEFT type) or of a model.")
    ],
    forget: Annotated[
        str,
        typer.Option(
            help="What should be gone, in the forms that erase reads. Paraphrases, paraphrased and wrong answers allow "
            "further measures and attacks.",
            show_default=False,
        ),
    ],
    retain: Annotated[
        list[str] | None,
        typer.Option(
            help="What should have stayed: FILE or NAME=FILE; several times for several sets.", show_default=False
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The model before; an adapter names its own.", show_default=False),
    ] = None,
    twin: Annotated[
        str | None,
        typer.Option(
            help="A model that never saw the forget set: what every attack is held against.", show_default=False
        ),
    ] = None,
    attacks: Annotated[
        str,
        typer.Option(
            help="Names of attacks, separated by commas, or fast, or all. Fast are greedy, paraphrase, plain, system, "
            "cloze, kept-before, erased-before, two-in-one, ban, delete-row, prefill-1, prefill-3, prefill-5, "
            "ban-prefill, choice, direction, directions, scale-0.5, scale-1.5, few-shot. Only all has "
            "language, thought, description, sampling, sampling-100, largest-out, smallest-out, probe, 8-bit, "
            "4-bit, merged-8-bit, merged-4-bit, relearn-unrelated, relearn-neighbours, relearn-tenth, "
            "member-loss, member-zlib, member-min-k, member-min-k++, list."
        ),
    ] = "all",
    unseen: Annotated[
        str | None,
        typer.Option(
            help="Facts that no model ever saw, for membership inference; by default wrong answers to the forget "
            "questions.",
            show_default=False,
        ),
    ] = None,
    refusals: Annotated[
        Path | None,
        typer.Option(
            help="Sentences that count as declining, one a line, beside the built-in ones.", show_default=False
        ),
    ] = None,
    similarity: Annotated[
        str | None,
        typer.Option(help="A sentence-transformers model, to measure similarity of answers with.", show_default=False),
    ] = None,
    entailment: Annotated[
        str | None,
        typer.Option(help="A natural language inference model, to measure entailment with.", show_default=False),
    ] = None,
    known: Annotated[
        float, typer.Option(help="Share of FORGET that the base must know, or there is NO BASELINE.")
    ] = 0.5,
    margin: Annotated[
        float,
        typer.Option(help="What an attack may get beyond the twin, or beyond a refusal, at the upper end of 95 %."),
    ] = 0.1,
    utility: Annotated[
        float, typer.Option(help="Share of what should stay that must be left, or it is DAMAGED.")
    ] = 0.95,
    accept: Annotated[
        str, typer.Option(help="The level from which on the exit status is 0: ERASED, SUPPRESSED, DAMAGED or LEAKING.")
    ] = "ERASED",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for report.json and report.html.", show_default=False)
    ] = None,
    no_examples: Annotated[
        bool, typer.Option("--no-examples", help="Leave questions and answers out of the report.")
    ] = False,
    question_column: QuestionColumnOption = None,
    answer_column: AnswerColumnOption = None,
    split: SplitOption = "train",
    retain_question_column: RetainQuestionColumnOption = None,
    retain_answer_column: RetainAnswerColumnOption = None,
    retain_split: RetainSplitOption = None,
    strip_markup: StripMarkupOption = False,
    prompt_format: PromptFormatOption = None,
    system: SystemOption = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of everything that is drawn.")] = 0,
    dtype: Annotated[str, typer.Option(help="Load models as float32, bfloat16, float16, or auto.")] = "float32",
    device_map: DeviceMapOption = None,
    trust: TrustOption = False,
    format: FormatOption = Format.AUTO,
) -> None:
    """Attack an erasure, whoever made it, and say what is left: ERASED, SUPPRESSED, DAMAGED, LEAKING or NO BASELINE."""
    from .check import CheckPlan, run_check

    run_check(
        CheckPlan(
            model=model,
            forget=forget,
            retain=tuple(retain or ()),
            unseen=unseen,
            base=base,
            twin=twin,
            attacks=attacks,
            refusals=refusals,
            similarity=similarity,
            entailment=entailment,
            known=known,
            margin=margin,
            utility=utility,
            accept=accept,
            output=output,
            examples=not no_examples,
            reading=Reading(
                question_column,
                answer_column,
                split,
                retain_question_column,
                retain_answer_column,
                retain_split,
                strip_markup,
            ),
            prompt_format=prompt_format,
            system=system,
            seed=seed,
            dtype=dtype,
            device_map=device_map,
            trust=trust,
        ),
        format.resolved(),
    )


@app.command(
    epilog="Examples:\n\nunierase ramp ./model forget.jsonl --retain keep.jsonl -o ramp\n\n"
    "unierase ramp org/model forget.jsonl --retain keep.jsonl --steps 10,100,all --leak 0.1 --kept 0.98 -o ramp"
)
def ramp(
    model: Annotated[str, typer.Argument(help="The base: a folder or a Hub id.")],
    forget: Annotated[str, typer.Argument(help="What must go, in the forms that erase reads, in the order of steps.")],
    retain: Annotated[str, typer.Option(help="What must stay, in the same forms.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the last good erasure and figures.", show_default=False)
    ],
    steps: Annotated[str, typer.Option(help="How many facts to erase in each step.")] = "1,5,20,all",
    leak: Annotated[
        float, typer.Option(min=0, max=1, callback=number, help="Most that may come back of an erased answer.")
    ] = 0.2,
    kept: Annotated[
        float, typer.Option(min=0, max=1, callback=number, help="Least of the base's retained answers to be left.")
    ] = 0.95,
    refusals: Annotated[Path | None, typer.Option(help="Ways of declining, one sentence a line.")] = None,
    question_column: QuestionColumnOption = None,
    answer_column: AnswerColumnOption = None,
    split: SplitOption = "train",
    retain_question_column: RetainQuestionColumnOption = None,
    retain_answer_column: RetainAnswerColumnOption = None,
    retain_split: RetainSplitOption = None,
    strip_markup: StripMarkupOption = False,
    samples_cache: SamplesCacheOption = None,
    no_samples_cache: NoSamplesCacheOption = False,
    prompt_format: PromptFormatOption = None,
    system: SystemOption = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Same seed, same machine, same bytes.")] = 0,
    dtype: Annotated[str, typer.Option(help="Load the base as float32, bfloat16, float16, or auto.")] = "float32",
    device_map: DeviceMapOption = None,
    format: FormatOption = Format.AUTO,
) -> None:
    """Erase in growing steps, look after each at what comes back, keep the last good one. Status 1 if one fails."""
    from .ramp import RampPlan, run_ramp

    asked = (prompt_format, system)
    reading = Reading(
        question_column,
        answer_column,
        split,
        retain_question_column,
        retain_answer_column,
        retain_split,
        strip_markup,
    )
    run_ramp(
        RampPlan(
            model,
            forget,
            retain,
            output,
            steps,
            leak,
            kept,
            refusals,
            reading,
            seed,
            dtype,
            device_map,
            *asked,
            samples_cache_of(samples_cache, no_samples_cache),
        ),
        format.resolved(),
    )


@app.command(epilog="Example:\n\nunierase quickstart -o my-first-erasure")
def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the adapter.")] = Path(
        "quickstart-erasure"
    ),
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Same seed, same machine, same bytes.")] = 0,
) -> None:
    """Erase two invented people from the base model in the box and show what changed. Needs no network."""
    from .quickstart import run_quickstart

    run_quickstart(output, seed)


app.add_typer(share)
app.add_typer(records)


def main() -> None:
    """Entry point of the `unierase` command."""
    # Threads that spin while they wait make a run five times slower as soon as anything else wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    # Quantisers, which peft imports where they are installed, tell at each start which of their kernels do not fit.
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as in the background
        signal.signal(signal.SIGINT, interrupt)
    app()
