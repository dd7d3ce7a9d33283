"""`unierase check`: load base, erased model and reference model, attack, report, and end with the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..storage.plain import check_plain_folder
from .note import note
from .output import Format, clear_endings, say, show, show_json, table
from .prompting import read_prompting
from .sets import Reading, read_refusals

if TYPE_CHECKING:
    from ..check import CheckReport

NOT_ACCEPTED = 1
REPORT, PAGE = "report.json", "report.html"


@dataclass(frozen=True)
class CheckPlan:
    """What the command line asked for; see the options of `unierase check`."""

    model: str
    forget: str
    retain: tuple[str, ...]
    unseen: str | None
    base: str | None
    reference_model: str | None
    attacks: str
    refusals: Path | None
    similarity: str | None
    entailment: str | None
    known: float
    margin: float
    utility: float
    accept: str
    output: Path | None
    examples: bool
    reading: Reading
    seed: int
    dtype: str
    device_map: str | None
    trust: bool = False
    prompt_format: str | None = None
    system: str | None = None


def run_check(plan: CheckPlan, style: Format) -> None:
    """Run the command; ends the process with 0 for a level that is accepted, 1 for a worse one, 2 on bad input."""
    with clear_endings():
        report = _run(plan, style)
    if not report.verdict.accepted(plan.accept):
        raise SystemExit(NOT_ACCEPTED)


def _run(plan: CheckPlan, style: Format) -> CheckReport:
    from ..storage.output import check_place

    if plan.output:
        check_place(plan.output)
    refusals = read_refusals(plan.refusals) or []
    prompting = read_prompting(plan.prompt_format, plan.system)
    forget = plan.reading.forget(plan.forget)
    retain = {name: plan.reading.retain(source) for name, source in named_sets(plan.retain).items()}
    unseen = plan.reading.forget(plan.unseen, "unseen") if plan.unseen else []

    from ..check import LEVELS, Thresholds, check
    from ..check.attacks import chosen

    if plan.accept not in LEVELS:
        raise InputError(f"--accept {plan.accept!r} is no level of a verdict; it may be {', '.join(LEVELS)}")
    thresholds = Thresholds(known=plan.known, margin=plan.margin, utility=plan.utility)
    chosen(plan.attacks)

    from ..check.judges import entailment_judge, similarity_judge
    from .base import load_base, prepare_libraries

    prepare_libraries()
    judges: dict[str, Any] = {}
    if plan.similarity:
        judges["similarity"] = similarity_judge(plan.similarity)
    if plan.entailment:
        judges["entailment"] = entailment_judge(plan.entailment)
    model, tokenizer, base, base_name = load_erased(plan)
    reference_model, reference_tokenizer = (
        load_base(plan.reference_model, plan.dtype, plan.device_map) if plan.reference_model else (None, None)
    )
    report = check(
        model,
        tokenizer,
        forget,
        retain,
        base=base,
        reference_model=reference_model,
        reference_tokenizer=reference_tokenizer,
        attacks=plan.attacks,
        unseen=unseen,
        refusals=refusals,
        judges=judges,
        **prompting.asked(tokenizer),
        thresholds=thresholds,
        names={"base": base_name, "erased": plan.model, "reference_model": plan.reference_model},
        seed=plan.seed,
        progress=style is not Format.QUIET,
    )
    if plan.output:
        report.save_json(plan.output / REPORT, plan.examples)
        report.save_html(plan.output / PAGE, plan.examples)
    note("check", None, model=plan.model, base=base_name, facts=len(forget), verdict=report.verdict.level)
    if style is Format.JSON:
        show_json(report.record(plan.examples))
    elif style is Format.HUMAN:
        show(report_table(report))
        if plan.output:
            show(f"\nSaved to {plan.output}: {REPORT} and {PAGE}, which a browser shows.")
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


def load_erased(plan: CheckPlan) -> tuple[Any, Any, Any, str]:
    """The erased model, its tokenizer, the base where it is another model, and the base's name.

    Raises:
        ValueError: There is no base to compare with, the adapter was made for another one, the guard refuses it, or
            something cannot be loaded.
    """
    import torch
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights

    from ..guard.inspect import guarded
    from ..records.read import adapter_type
    from ..storage.source import commit_of, local_folder
    from .base import load_base, load_onto
    from .rows import brings_rows, give_rows, own_rows, wanted_rows

    commits: dict[str, str | None] = {}

    def load(name: str) -> tuple[Any, Any]:
        return load_base(name, plan.dtype, plan.device_map, commits.setdefault(name, commit_of(name)))

    # Found once: what is looked at is what is loaded, whatever its owner pushes meanwhile.
    place, revision = plan.model, commit_of(plan.model)
    kind = adapter_type(place, revision)
    if kind == "UNIERASE":
        folder = local_folder(place, revision) if plan.trust else guarded(place, revision=revision)
        place, revision = str(folder), None
    else:
        check_plain_folder(place)
    if kind is None:  # no adapter, so it is to be a model
        if not plan.base:
            raise InputError(
                f"{plan.model} is no adapter, so what it is compared with must be named: give the model before the "
                "erasure with --base"
            )
        (model, tokenizer), (base, _) = load(plan.model), load(plan.base)
        return model, tokenizer, base, plan.base
    try:
        config = PeftConfig.from_pretrained(place, revision=revision)
    except Exception as error:  # whatever PEFT raises where a type is unknown or a value is wrong
        raise InputError(f"cannot read the config of the adapter {plan.model}: {_told(error)}") from error
    base_name = plan.base or config.base_model_name_or_path
    if not base_name:
        raise InputError(f"the adapter in {plan.model} does not say which base it belongs to; name it with --base")
    model, tokenizer = load(base_name)
    if config.peft_type == "UNIERASE":
        erased = load_onto(model, tokenizer, [Path(place)], allow_resize=True, trust=plan.trust)
        return erased, tokenizer, None, base_name
    try:
        weights = load_peft_weights(plan.model, device="cpu", revision=revision)
        rows, wanted = model.get_input_embeddings().weight.shape[0], wanted_rows(model, config, weights)
        before = own_rows(model) if brings_rows(model, weights) else []
        if wanted != rows:
            say(
                f"note: the adapter was made on a base with {wanted} vocabulary rows and {base_name} has {rows}; here "
                f"the base has {wanted} too, "
                + ("of which the new ones are means" if wanted > rows else "and its last rows are left out")
            )
            give_rows(model, wanted)
        erased = PeftModel.from_pretrained(model, plan.model, revision=revision).eval()
        now = own_rows(erased) if before else []
    except Exception as error:  # whatever PEFT raises where names or shapes do not fit
        raise InputError(
            f"cannot load the adapter {plan.model} onto {base_name}: {_told(error)}; name the base that it was made "
            "for with --base"
        ) from error
    shared = min(rows, wanted)
    if all(torch.equal(old[:shared], new[:shared]) for old, new in zip(before, now, strict=True)):
        return erased, tokenizer, None, base_name
    base, _ = load(base_name)  # the adapter's rows are not the base's, also with the adapter off
    if wanted != rows:
        give_rows(base, wanted)
    return erased, tokenizer, base, base_name


def _told(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def report_table(report: CheckReport, brief: bool = False) -> str:
    """The report for a terminal: what the base knows, scores and measures, every attack, and the verdict.

    Args:
        report: What a check found.
        brief: Leave out what the base knows, and every measure but recall.
    """
    from ..retain.knowledge import sentence

    reference_model = report.models.get("reference_model") is not None
    sides = ("base", "erased", "reference_model")[: 3 if reference_model else 2]
    titles = [side.replace("_", " ") for side in sides]

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    scores = [(name, *(number(values.get(side)) for side in sides)) for name, values in report.scores.items()]
    figures = [
        (f"{f.set}: {f.name}", *(number(value) for value in (f.base, f.erased, f.reference_model)[: len(sides)]))
        for f in report.figures
        if not brief or f.name == "recall"
    ]
    attacks = []
    renamed = any(attack.renamed for attack in report.attacks)
    for a in sorted(report.attacks, key=lambda attack: attack.holds):
        shown = [a.base, a.erased, *([a.renamed] if renamed else []), *([a.reference_model] if reference_model else [])]
        means = [number(each.mean if each else None) for each in shown]
        beyond = f"{a.excess.mean:+.3f} [{a.excess.low:+.3f}, {a.excess.high:+.3f}]"
        attacks.append((a.name, *means, beyond, a.outcome if a.holds else a.outcome.upper()))
    reference = "reference model" if reference_model else "renamed base" if renamed else "floor"
    columns = ("base", "erased", *(["renamed"] if renamed else []), *(["reference model"] if reference_model else []))
    parts = [
        "" if brief else sentence(report.settings["known to base"]),
        "" if brief else table(("scores", *titles), scores),
        table(("measures", *titles), figures),
        table(("attacks", *columns, f"beyond the {reference}", ""), attacks),
        fluency_line(report),
        "" if brief else "\n".join(f"  not run: {name}: {why}" for name, why in report.skipped.items()),
        "\n".join([f"{report.verdict.level}", *(f"  {reason}" for reason in report.verdict.reasons)]),
    ]
    return "\n\n".join(part for part in parts if part)


def fluency_line(report: CheckReport) -> str:
    """How fluent the erased model stays where it is forced to speak, at worst; empty if no attack did that."""
    found = [(attack.name, attack.fluency) for attack in report.attacks if attack.fluency]
    if not found:
        return ""
    name, worst = min(found, key=lambda each: each[1].unrepeated)
    line = (
        f"  fluent after a prefill or a ban: no word three times in a row in {worst.unrepeated:.0%} at worst ({name})"
    )
    strange = [(each.perplexity, name) for name, each in found if each.perplexity is not None]
    if strange:
        perplexity, name = max(strange)
        line += f"; perplexity {perplexity:.1f} times that of the base's own answers at worst ({name})"
    return line
