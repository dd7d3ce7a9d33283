"""`unierase check`: load base, erased model and reference model, attack, report, and end with the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, in_one_line
from ..storage.names import REPORT_NAME
from ..storage.plain import check_plain_folder
from .note import note
from .options import DeviceMapOption, DtypeOption, FormatOption, SeedOption, TrustOption
from .output import Format, clear_endings, say, show, show_json
from .prompting import PromptOptions
from .sets import Reading, read_refusals

if TYPE_CHECKING:
    from ..checking import CheckReport

EXAMPLES = (
    "Examples:\n\n"
    "unierase check erase-xyz --forget forget.jsonl --retain keep.jsonl -o report\n\n"
    "unierase check erase-xyz --forget forget.jsonl --attacks fast --reference-model org/never-knew "
    "--accept SUPPRESSED\n\n"
    "unierase check ./unlearned --base org/model --forget forget.jsonl --retain facts=facts.csv --retain keep.jsonl"
)
NOT_ACCEPTED = 1
OF_AN_ERASURE = ".unierase_"
PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What the command line asks for."""

    model: Annotated[
        str, typer.Argument(help="What is judged: a folder or Hub id of an adapter (of any PEFT type) or of a model.")
    ]
    forget: Annotated[
        str,
        typer.Option(
            help="What should be gone, in the forms that erase reads. Paraphrases, paraphrased and wrong answers allow "
            "further measures and attacks.",
            show_default=False,
        ),
    ]
    retain: Annotated[
        list[str] | None,
        typer.Option(
            help="What should have stayed: FILE or NAME=FILE; several times for several sets.", show_default=False
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(help="The model before; an adapter names its own.", show_default=False),
    ] = None
    reference_model: Annotated[
        str | None,
        typer.Option(
            help="A model that never saw the forget set: what every attack is held against.", show_default=False
        ),
    ] = None
    attacks: Annotated[
        str,
        typer.Option(
            help="Names of attacks, separated by commas, or fast, or all. The documentation lists the names, and so "
            "does the error for an unknown one."
        ),
    ] = "all"
    unseen: Annotated[
        str | None,
        typer.Option(
            help="Facts that no model ever saw, for membership inference; by default wrong answers to the forget "
            "questions.",
            show_default=False,
        ),
    ] = None
    refusals: Annotated[
        Path | None,
        typer.Option(
            help="Sentences that count as declining, one a line, beside the built-in ones.", show_default=False
        ),
    ] = None
    similarity: Annotated[
        str | None,
        typer.Option(help="A sentence-transformers model, to measure similarity of answers with.", show_default=False),
    ] = None
    entailment: Annotated[
        str | None,
        typer.Option(help="A natural language inference model, to measure entailment with.", show_default=False),
    ] = None
    known: Annotated[float, typer.Option(help="Share of FORGET that the base must know, or there is NO BASELINE.")] = (
        0.5
    )
    margin: Annotated[
        float,
        typer.Option(
            help="What an attack may get beyond the reference model, or beyond a refusal, at the upper end of 95 %."
        ),
    ] = 0.1
    utility: Annotated[float, typer.Option(help="Share of what should stay that must be left, or it is DAMAGED.")] = (
        0.95
    )
    accept: Annotated[
        str, typer.Option(help="The level from which on the exit status is 0: ERASED, SUPPRESSED, DAMAGED or LEAKING.")
    ] = "ERASED"
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for report.json and report.html.", show_default=False)
    ] = None
    no_examples: Annotated[
        bool, typer.Option("--no-examples", help="Leave questions and answers out of the report.")
    ] = False
    reading: Reading
    prompts: PromptOptions
    seed: SeedOption = 0
    dtype: DtypeOption = "float32"
    device_map: DeviceMapOption = None
    trust: TrustOption = False


def check(options: CheckOptions, format: FormatOption = Format.AUTO) -> None:
    """Attack an erasure, whoever made it, and say what is left: ERASED, SUPPRESSED, DAMAGED, LEAKING or NO BASELINE."""
    style = format.resolved()
    with clear_endings():
        report = _run(options, style)
    if not report.verdict.accepted(options.accept):
        raise SystemExit(NOT_ACCEPTED)


def _run(options: CheckOptions, style: Format) -> CheckReport:
    from ..storage.output import check_place

    if options.output:
        check_place(options.output)
    refusals = read_refusals(options.refusals) or []
    prompting = options.prompts.read()
    forget = options.reading.forget(options.forget)
    retain = {name: options.reading.retain(source) for name, source in named_sets(options.retain or ()).items()}
    unseen = options.reading.forget(options.unseen, "unseen") if options.unseen else []

    from ..checking import LEVELS, Thresholds, check
    from ..checking.attacks import chosen

    if options.accept not in LEVELS:
        raise InputError(f"--accept {options.accept!r} is no level of a verdict; it may be {', '.join(LEVELS)}")
    thresholds = Thresholds(known=options.known, margin=options.margin, utility=options.utility)
    chosen(options.attacks)

    from ..checking.judges import entailment_judge, similarity_judge
    from ..lm.load import load_base
    from ..lm.processes import launched
    from .base import prepare_libraries
    from .report import report_table

    prepare_libraries()
    processes = launched()
    options = replace(options, device_map=processes.device_map(options.device_map))
    judges: dict[str, Any] = {}
    if options.similarity:
        judges["similarity"] = similarity_judge(options.similarity)
    if options.entailment:
        judges["entailment"] = entailment_judge(options.entailment)
    model, tokenizer, base, base_name = load_erased(options)
    reference_model, reference_tokenizer = (
        load_base(options.reference_model, options.dtype, options.device_map)
        if options.reference_model
        else (None, None)
    )
    report = check(
        model,
        tokenizer,
        forget,
        retain,
        base=base,
        reference_model=reference_model,
        reference_tokenizer=reference_tokenizer,
        attacks=options.attacks,
        unseen=unseen,
        refusals=refusals,
        judges=judges,
        **prompting.asked(tokenizer),
        thresholds=thresholds,
        names={"base": base_name, "erased": options.model, "reference_model": options.reference_model},
        seed=options.seed,
        progress=style is not Format.QUIET,
    )

    def save() -> None:
        if options.output:
            report.save_json(options.output / REPORT_NAME, not options.no_examples)
            report.save_html(options.output / PAGE, not options.no_examples)
        note("check", None, model=options.model, base=base_name, facts=len(forget), verdict=report.verdict.level)

    processes.from_main(save)
    if style is Format.JSON:
        show_json(report.record(not options.no_examples))
    elif style is Format.HUMAN:
        show(report_table(report))
        if options.output:
            show(f"\nSaved to {options.output}: {REPORT_NAME} and {PAGE}, which a browser shows.")
    return report


def named_sets(sources: Sequence[str]) -> dict[str, str]:
    """Sources of retain sets by name: `name=source`, or a source that is called by its file's name.

    Raises:
        ValueError: Two have one name.
    """
    found: dict[str, str] = {}
    for text in sources:
        name, sign, source = text.partition("=")
        if not sign:
            name, source = Path(text).stem, text
        if name in found:
            raise InputError(
                f"two retain sets are called {name!r}; name them: --retain first=FILE --retain second=FILE"
            )
        found[name] = source
    return found


def load_erased(options: CheckOptions) -> tuple[Any, Any, Any, str]:
    """The erased model, its tokenizer, the base where it is another model, and the base's name.

    Raises:
        ValueError: There is no base to compare with, the adapter was made for another one, the guard refuses it, or
            something cannot be loaded.
    """
    import torch
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights

    from ..guard.load import candidate
    from ..lm.load import load_base
    from ..records.read import adapter_type
    from ..storage.source import commit_of
    from .base import load_onto
    from .rows import brings_rows, give_rows, own_rows, wanted_rows

    commits: dict[str, str | None] = {}

    def load(name: str) -> tuple[Any, Any]:
        return load_base(name, options.dtype, options.device_map, commits.setdefault(name, commit_of(name)))

    # Found once: what is looked at is what is loaded, whatever its owner pushes meanwhile.
    revision = commit_of(options.model)
    kind = adapter_type(options.model, revision)
    erasure = candidate(options.model, options.trust, revision=revision) if kind == "UNIERASE" else None
    if erasure is None:
        check_plain_folder(options.model)
    if kind is None:  # no adapter, so it is to be a model
        if not options.base:
            raise InputError(
                f"{options.model} is no adapter, so what it is compared with must be named: give the model before the "
                "erasure with --base"
            )
        (model, tokenizer), (base, _) = load(options.model), load(options.base)
        return model, tokenizer, base, options.base
    try:
        config = erasure.config if erasure else PeftConfig.from_pretrained(options.model, revision=revision)
    except Exception as error:  # whatever PEFT raises where a type is unknown or a value is wrong
        raise InputError(f"cannot read the config of the adapter {options.model}: {in_one_line(error)}") from error
    base_name = options.base or config.base_model_name_or_path
    if not base_name:
        raise InputError(f"the adapter in {options.model} does not say which base it belongs to; name it with --base")
    model, tokenizer = load(base_name)
    if erasure:
        return load_onto(model, tokenizer, [erasure], allow_resize=True), tokenizer, None, base_name
    try:
        weights = load_peft_weights(options.model, device="cpu", revision=revision)
    except Exception as error:  # whatever PEFT raises where there are none, or where they are damaged
        raise InputError(f"cannot read the weights of the adapter {options.model}: {in_one_line(error)}") from error
    if own := next((name for name in weights if OF_AN_ERASURE in name), None):  # PEFT would pass over it without a word
        raise InputError(
            f"the config of {options.model} is that of an adapter of type {kind} and its weights are an erasure's "
            f"({own}); get the folder anew from where it came from"
        )
    try:
        rows, wanted = model.get_input_embeddings().weight.shape[0], wanted_rows(model, config, weights)
        before = own_rows(model) if brings_rows(model, weights) else []
        if wanted != rows:
            say(
                f"note: the adapter was made on a base with {wanted} vocabulary rows and {base_name} has {rows}; here "
                f"the base has {wanted} too, "
                + ("of which the new ones are means" if wanted > rows else "and its last rows are left out")
            )
            give_rows(model, wanted)
        erased = PeftModel.from_pretrained(model, options.model, revision=revision).eval()
        now = own_rows(erased) if before else []
    except Exception as error:  # whatever PEFT raises where names or shapes do not fit
        raise InputError(
            f"cannot load the adapter {options.model} onto {base_name}: {in_one_line(error)}; name the base that it "
            "was made for with --base"
        ) from error
    shared = min(rows, wanted)
    if all(torch.equal(old[:shared], new[:shared]) for old, new in zip(before, now, strict=True)):
        return erased, tokenizer, None, base_name
    base, _ = load(base_name)  # the adapter's rows are not the base's, also with the adapter off
    if wanted != rows:
        give_rows(base, wanted)
    return erased, tokenizer, base, base_name
