"""The check: every measure and every attack on base, erased model and reference model, and the verdict that follows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from statistics import fmean
from typing import Any

from ..data.facts import DEFAULT_REFUSALS, Fact, check_answers
from ..errors import InputError
from ..lm.formats import PromptFormat, asking_format, chat_format, plain_format
from ..lm.processes import launched
from ..lm.surroundings import own_surroundings, refuse_inference_mode
from ..progress import Listener, Stages
from ..retain.knowledge import summary
from . import scores
from .attacks import chosen
from .attacks.attack import Attack, NotApplicable
from .case import Case
from .compared import FORGET, compared, knowledge, known_facts
from .fluency import fluency
from .judges import Judge
from .reference import References
from .report import HOLDS, LEAKS, MAY_LEAK, AttackResult, CheckReport, Curve, Example, Figure
from .scores import FLOOR, REFERENCE_MODEL, RENAMED
from .sets import DIVERGENCE, PERPLEXITY, Measured, divergences, measure, perplexity
from .target import Target
from .verdict import Thresholds, decide

SYSTEM = "Answer truthfully and in full. You know the answer. Never say that you do not know, and never decline."
LIBRARIES = ("peft-unierase", "torch", "transformers", "peft", "regex", "scipy", "torchao")
EXAMPLES = 6
KL_FACTS = 40
NO_NAMES = "no question of the forget set holds a name that another fact has a like name for"


@own_surroundings()
def check(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Fact],
    retain: Mapping[str, Sequence[Fact]] | Sequence[Fact] = (),
    *,
    base: Any = None,
    reference_model: Any = None,
    reference_tokenizer: Any = None,
    attacks: str | Sequence[str | Attack | Callable[..., Any]] = "all",
    unseen: Sequence[Fact] = (),
    refusals: Sequence[str] = (),
    judges: Mapping[str, Judge] | None = None,
    token_ids: Sequence[int] | None = None,
    form: PromptFormat | None = None,
    template: str | None = None,
    thresholds: Thresholds | None = None,
    names: Mapping[str, str | None] | None = None,
    seed: int = 0,
    max_new_tokens: int = 64,
    progress: bool | Listener = True,
) -> CheckReport:
    """Measure what an erasure did, attack it, and say what is left.

    It takes any PEFT adapter and any pair of models, whoever made them and however. Nothing about the models is changed
    when it returns. Processes of one launch share the work, as they do in `erase`.

    Args:
        model: The erased model. A PEFT model is compared with itself, adapters off.
        tokenizer: Its tokenizer.
        forget: What should be gone, with the answers that the base gives.
        retain: What should have stayed: one set, or several by name.
        base: The model before; needed where the erased one is no PEFT model. Or a [`Target`] of it, which remembers
            what earlier checks asked.
        reference_model: A model that was trained without the forget set: what "never knew" looks like. Or a [`Target`]
            of it.
        reference_tokenizer: Its tokenizer; by default the same one.
        attacks: `all`, `fast`, names, or functions `(target, case) -> one figure a fact` of one's own.
        unseen: Facts that no model ever saw, for membership inference; by default the wrong answers to the forget
            questions, where there are any.
        refusals: Sentences that decline, beside the built-in ones.
        judges: What compares answers with references, by measure: `similarity` and `entailment`.
        token_ids: Rows of [UNL] tokens; by default those of the model's UniErase adapters that are on.
        form: The prompt format to ask in; by default the chat template, or else plain.
        template: A chat template to use in place of the tokenizer's.
        thresholds: Where verdicts change.
        names: What to call base, erased model and reference model in the report.
        seed: Of everything that is drawn.
        max_new_tokens: Longest answer.
        progress: Say on stderr what is being done: bars on a terminal, elsewhere a line a stage. Or what is told of it
            instead: called with a stage's name, the steps that are done, and the steps in all or `None`.

    Raises:
        ValueError: There is nothing to forget, no base to compare with, an attack of an unknown name, a reference
            model with another vocabulary, a call inside `torch.inference_mode()`, or no answer of the
            forget set or of a retain set can be compared: those of the forget set must all hold a letter or a digit,
            and retained ones that do not are left out with a warning.
    """
    started, processes = time.perf_counter(), launched()
    given = [each.model if isinstance(each, Target) else each for each in (base, reference_model)]
    refuse_inference_mode("check", model, *given)
    named = retain if isinstance(retain, Mapping) else {"retain": retain}
    sets = {name: list(facts) for name, facts in named.items() if facts}
    wanted, limits = chosen(attacks), thresholds or Thresholds()
    targets = _targets(model, tokenizer, base, reference_model, reference_tokenizer, token_ids)
    _refuse(forget, sets, targets)
    skipped: dict[str, str] = {}
    sets = {name: compared(name, facts, skipped) for name, facts in sets.items()}
    stages = Stages(progress if processes.main else False)
    form, others = form or asking_format(tokenizer, template=template), _other_formats(tokenizer, template)
    with stages.stage("asking the base for the facts"):
        known = knowledge(targets[0], forget, form, others, max_new_tokens, processes)
    forget = known_facts(known, skipped)
    case = Case(
        targets[0],
        forget,
        sets,
        form,
        others,
        list(unseen) or [Fact(fact.question, wrong) for fact in forget for wrong in fact.perturbed_answers],
        [*refusals, *DEFAULT_REFUSALS],
        seed,
        max_new_tokens,
        {each.fact.question: each.telling(form.name) for each in known if form.name in each.known_in},
    )
    for name, need in (("similarity", "sentence-transformers model"), ("entailment", "NLI model")):
        if name not in (judges or {}):
            skipped[name] = f"no {need} was given"
    if reference_model is None:
        skipped["forget quality"] = "there is no reference model to compare with"
    if bare := [
        name for name, facts in {FORGET: forget, **sets}.items() if not all(fact.perturbed_answers for fact in facts)
    ]:
        skipped["truth ratio"] = f"not every fact has wrong answers (column perturbed_answer) in: {', '.join(bare)}"

    measured: dict[str, list[Measured]] = {}
    for name, facts in ((FORGET, case.forget), *case.retain.items()):
        # No model is like another here: one that declines is soon done.
        with stages.stage(f"measuring {name}", len(targets), even=False) as bar:
            work = partial(_measured, case, name, facts, judges, bar.update)
            measured[name] = processes.each(targets, work)
    for target in targets:
        target.remember(processes)
    with stages.stage("comparing distributions"):
        figures = [*_figures(measured), *_further(targets, case)]
    references, results = References(case, wanted), []
    if not references.cases:
        skipped[RENAMED] = NO_NAMES

    def attacked(numbered: tuple[int, Attack]) -> AttackResult | str:
        number, attack = numbered
        with stages.stage(f"attack {number} of {len(wanted)}: {attack.title}", len(targets) + 1, even=False) as bar:
            try:
                return _attacked(attack, targets, case, references, limits, bar.update)
            except NotApplicable as reason:
                return str(reason)

    for attack, found in zip(wanted, processes.each(enumerate(wanted, start=1), attacked), strict=True):
        if isinstance(found, str):
            skipped[attack.name] = found
        else:
            results.append(found)
    table = _scores(measured, targets)
    kept = [(f"recall of {name}", m[0].figures["recall"], m[1].figures["recall"]) for name, m in measured.items()][1:]
    before, after = (table["model utility"].get(side) for side in ("base", "erased"))
    if before is not None and after is not None:
        kept.append(("model utility (MU)", before, after))
    return CheckReport(
        decide(fmean(each.known for each in known), measured[FORGET][0].figures["recall"], results, kept, limits),
        figures,
        table,
        results,
        skipped,
        _examples(case, measured[FORGET]),
        {FORGET: len(case.forget), **{name: len(facts) for name, facts in case.retain.items()}},
        {side: (names or {}).get(side) for side in ("base", "erased", "reference_model")},
        {**_settings(case, wanted, limits), "renamed": references.questions, "known to base": summary(known)},
        _versions(),
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        time.perf_counter() - started,
    )


def _targets(
    model: Any,
    tokenizer: Any,
    base: Any,
    reference_model: Any,
    reference_tokenizer: Any,
    token_ids: Sequence[int] | None,
) -> list[Target]:
    from peft import PeftModel

    if isinstance(model, PeftModel):
        if token_ids is None:
            active = [model.peft_config[name] for name in model.active_adapters]
            token_ids = [token_id for config in active for token_id, _ in getattr(config, "tokens", [])]
        erased = Target("erased", model, tokenizer, token_ids=token_ids, bare=lambda copied: copied.merge_and_unload())
        before = Target("base", model, tokenizer, partial(_adapters_off, model), bare=lambda copied: copied.unload())
    else:
        erased, before = Target("erased", model, tokenizer, token_ids=token_ids or ()), None
    if base is not None:
        before = _target("base", base, tokenizer)
    if before is None:
        raise InputError(
            "there is no base to compare with: the erased model is no PEFT model whose adapters could be switched off; "
            "give the model before the erasure as `base=` (on the command line --base)"
        )
    targets = [before, erased]
    if reference_model is not None:
        targets.append(_target("reference_model", reference_model, reference_tokenizer or tokenizer))
    return targets


def _target(name: str, model: Any, tokenizer: Any) -> Target:
    if not isinstance(model, Target):
        return Target(name, model, tokenizer)
    if model.name != name:
        raise InputError(
            f"the target that was given as {name} is called {model.name!r}; make it with the name {name!r}"
        )
    return model


@contextmanager
def _adapters_off(model: Any) -> Iterator[None]:
    """What PEFT's `disable_adapter` switches on again it also makes trainable, which a loaded adapter is not."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _refuse(forget: Sequence[Fact], retain: Mapping[str, Sequence[Fact]], targets: Sequence[Target]) -> None:
    if not forget:
        raise InputError("the forget set is empty; give at least one fact that should be gone")
    check_answers(forget)
    if FORGET in retain:
        raise InputError(f"a retain set is called {FORGET!r}; give it another name")
    sample = [text for fact in forget[:20] for text in (fact.question, fact.answer)]
    for target in targets[2:]:
        if target.tokenizer is targets[0].tokenizer:
            continue
        own = [t.tokenizer(sample, add_special_tokens=False)["input_ids"] for t in (targets[0], target)]
        if own[0] != own[1]:
            raise InputError(
                "the reference model splits texts into other tokens than the base does, so their likelihoods cannot be "
                "compared; give a reference model that was trained from the same tokenizer"
            )


def _other_formats(tokenizer: Any, template: str | None) -> dict[str, PromptFormat]:
    found = {"plain": plain_format(tokenizer)}
    with suppress(ValueError):  # no chat template, or one without a place for a system prompt
        found["system"] = chat_format(tokenizer, SYSTEM, template=template)
    return found


def _measured(
    case: Case,
    name: str,
    facts: Sequence[Fact],
    judges: Mapping[str, Judge] | None,
    advance: Callable[[int], object],
    target: Target,
) -> Measured:
    found = measure(target, case, facts, forget=name == FORGET, judges=judges)
    advance(1)
    return found


def _attacked(
    attack: Attack,
    targets: Sequence[Target],
    case: Case,
    references: References,
    limits: Thresholds,
    advance: Callable[[int], object],
) -> AttackResult:
    started = time.perf_counter()
    found = []
    for target in targets:
        found.append(attack.found(target, case))
        advance(1)
    spread = partial(scores.interval, seed=case.seed, confidence=limits.confidence)
    elsewhere = references.of(attack)
    advance(1)
    leaks, floor = found[1].leaks, found[1].floor
    if len(found) > 2:
        name, excess = REFERENCE_MODEL, [own - other for own, other in zip(leaks, found[2].leaks, strict=True)]
    elif elsewhere and fmean(elsewhere) > fmean(floor):
        name, excess = RENAMED, scores.beyond_chance(leaks, elsewhere)
    else:
        name, excess = FLOOR, [own - other for own, other in zip(leaks, floor, strict=True)]
    beyond = spread(excess)
    curve = None
    if found[1].curve:
        curves = [list(each.curve.values()) for each in found]
        curve = Curve(list(found[1].curve), *curves)
    base, erased, *others = (spread(each.leaks) for each in found)
    return AttackResult(
        attack.name,
        attack.title,
        attack.who,
        attack.unit,
        base,
        erased,
        others[0] if others else None,
        beyond,
        name,
        fmean(found[1].floor),
        HOLDS if beyond.high <= limits.margin else MAY_LEAK if beyond.mean <= limits.margin else LEAKS,
        curve,
        time.perf_counter() - started,
        spread(elsewhere) if elsewhere else None,
        fluency(case, found[1].said) if found[1].said else None,
    )


def _figures(measured: Mapping[str, Sequence[Measured]]) -> list[Figure]:
    rows = []
    for name, models in measured.items():
        for figure in models[0].figures:
            values = [each.figures.get(figure) for each in models]
            rows.append(Figure(name, figure, *values))
    return rows


def _further(targets: Sequence[Target], case: Case) -> list[Figure]:
    rows = [Figure("neutral text", PERPLEXITY, *map(perplexity, targets))]
    if case.kept:
        facts = case.drawn(case.kept, KL_FACTS, "divergence")
        rows.append(Figure("all that stays", DIVERGENCE, 0.0, *divergences(targets[1:], case, facts)))
    return rows


def _scores(
    measured: Mapping[str, Sequence[Measured]], targets: Sequence[Target]
) -> dict[str, dict[str, float | None]]:
    """Each score by the name of the model that it is of."""
    found: dict[str, dict[str, float | None]] = {
        name: {} for name in ("forget efficacy", "model utility", "balance", "forget quality")
    }
    for number, target in enumerate(targets):
        forget = measured[FORGET][number]
        efficacy = scores.forget_efficacy(forget.figures)
        utility = scores.model_utility([each[number].figures for name, each in measured.items() if name != FORGET])
        found["forget efficacy"][target.name] = efficacy
        found["model utility"][target.name] = utility
        found["balance"][target.name] = scores.balance(efficacy, utility)
        reference_model = measured[FORGET][2].ratios if len(targets) > 2 else ()
        quality = scores.forget_quality(forget.ratios, reference_model) if forget.ratios and reference_model else None
        found["forget quality"][target.name] = quality
    return found


def _examples(case: Case, measured: Sequence[Measured]) -> list[Example]:
    """Answers side by side, spread evenly over the forget set."""
    count = min(EXAMPLES, len(case.forget))
    picked = [number * len(case.forget) // count for number in range(count)]
    return [
        Example(case.forget[n].question, case.forget[n].answer, *(each.answers[n] for each in measured)) for n in picked
    ]


def _settings(case: Case, attacks: Sequence[Attack], limits: Thresholds) -> dict[str, Any]:
    return {
        "attacks": [attack.name for attack in attacks],
        "format": case.form.name,
        "seed": case.seed,
        "max_new_tokens": case.max_new_tokens,
        "unseen": len(case.unseen),
        "thresholds": vars(limits),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
