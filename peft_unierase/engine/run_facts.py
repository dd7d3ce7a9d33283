"""The facts of a run: which of the forget facts the base knows, and the retain data that it makes itself."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.facts import Fact
from ..errors import ErasureWarning, InputError
from ..lm.batches import encode
from ..lm.formats import PromptFormat, plain_format
from ..lm.structure import context_length
from ..retain.cache import BLOCK, samples_folder, samples_for
from ..retain.knowledge import Knowledge, ask, summary, unknown_named
from ..retain.neighbours import NEIGHBOUR_STEPS, ROUND, UNSURE, Neighbours, neighbour_rounds, sample_neighbours
from ..retain.sample_files import Samples
from ..retain.samples import SAMPLE_STEPS, drop_close
from ..retain.scope import Scope, Scoped
from ..text import normal
from .around import ask_around
from .earlier import as_answered_now, changed_answers, switched_off
from .run_context import RunContext


def check_lengths(
    model: Any, tokenizer: Any, facts: Sequence[Fact], formats: Sequence[PromptFormat], role: str = "forget"
) -> None:
    """Refuse questions that do not fit the model's context with their answers.

    Raises:
        ValueError: A question is too long; names it and the limit.
    """
    context = context_length(model) or math.inf
    for number, fact in enumerate(facts, start=1):
        if (length := _longest(tokenizer, fact, formats)) > context:
            raise InputError(
                f"{role} fact {number} takes {length} tokens and the model's context holds {context:.0f}: "
                f"{fact.question[:60]!r}…; shorten it or leave it out"
            )


def _longest(tokenizer: Any, fact: Fact, formats: Sequence[PromptFormat]) -> int:
    """Tokens of a fact with its answer, in the format that takes most."""
    wordings = [wording for form in formats for wording in (form, *form.variants)]
    return max(len(encode(tokenizer, form.prompt(fact.question) + form.answer(fact.answer))) for form in wordings)


def ask_for_facts(run: RunContext, keep_unknown: bool) -> list[Knowledge]:
    """The facts that are to be erased, with what the base says of them; names what it does not know."""
    steps = len(run.forget) * len(run.formats)
    with run.stages.stage("asking the base for the facts", steps) as bar, switched_off(run.model):
        found = ask(run.model, run.tokenizer, run.forget, run.formats, bar.update, run.processes)
    run.known = summary(found)
    if run.earlier and (gone := sum(changed_answers(run.model, run.tokenizer, run.formats[0], run.forget))):
        warnings.warn(
            f"{gone} of {len(run.forget)} forget facts are answered otherwise with the model's earlier erasures on, "
            "which seem to cover them; leave these facts out, there is nothing left to erase",
            ErasureWarning,
            stacklevel=3,
        )
    known = sum(each.known for each in found)
    if not known and not keep_unknown:
        raise InputError(
            f"{unknown_named(found)}, so there is nothing to erase; check that this is the right base and that the "
            "questions are worded as people ask it, or erase them all the same with `keep_unknown=True` (on the "
            "command line `--keep-unknown`)"
        )
    if known < len(found):
        what = "erased all the same" if keep_unknown else "left out"
        warnings.warn(f"{unknown_named(found)}, which are {what}", ErasureWarning, stacklevel=3)
    return [each for each in found if keep_unknown or each.known]


def find_retain_data(
    run: RunContext, plan: Scope | None, wanted: int, cache: str | Path | bool, given: Samples | None
) -> Scoped | None:
    """Let the base ask itself, about anything, about what is like the forget set, and about what a scope says."""
    found: list[Fact] = []

    def sample() -> dict[str, list[tuple[str, str]]]:
        nonlocal found
        found = as_now(run, given.general) if given else _asked_itself(run, wanted, cache)
        # What touches the forget set is not written down either.
        kept = _usable(run, drop_close(found, run.forget))
        return {"sampled": [(fact.question, fact.answer) for fact in kept]}

    # A scope needs what lies close to the forget set too, so its samples are not kept: a cache keeps those of the base.
    if wanted or given:
        sampled: Any = sample() if plan else run.once("sampling retain data", sample)
        run.sampled = [Fact(*pair) for pair in sampled["sampled"]]
        # These are not written down: they begin as the forget questions do.
        near = Neighbours(_apart(as_now(run, given.near), run.forget)) if given else _near(run)
        run.near = _usable(run, near.known)
        run.around = _usable(run, near.others)[:UNSURE]
        run.reworded = _usable(run, near.reworded)
        if not run.near:
            warnings.warn(
                "the base asked itself nothing that is like the forget questions, so what lies next to them is spared "
                "only as far as the retain set shows it; give such facts as retain facts",
                ErasureWarning,
                stacklevel=3,
            )
    return ask_around(run, plan, found, lambda facts: _usable(run, facts)) if plan else None


def _asked_itself(run: RunContext, wanted: int, cache: str | Path | bool) -> list[Fact]:
    model, tokenizer, form = run.model, run.tokenizer, run.formats[0]
    folder = samples_folder(model, cache)
    with run.stages.stage("sampling retain data", SAMPLE_STEPS * BLOCK * math.ceil(wanted / BLOCK)) as bar:
        with switched_off(model):  # the bare base's, which all its erasures can share
            found = samples_for(model, tokenizer, form, wanted, run.seed, folder, bar.update, processes=run.processes)
        return as_now(run, found)


def _near(run: RunContext) -> Neighbours:
    model, tokenizer, form = run.model, run.tokenizer, run.formats[0]
    rounds = neighbour_rounds(len(run.forget))
    with run.stages.stage("sampling near neighbours", NEIGHBOUR_STEPS * ROUND * rounds, even=False) as bar:
        with switched_off(model):
            told = run.forget, rounds, run.seed, bar.update, run.processes
            found = sample_neighbours(model, tokenizer, form, plain_format(tokenizer), *told)
        return Neighbours(as_now(run, found.known), as_now(run, found.others), found.reworded)


def _apart(facts: list[Fact], forget: Sequence[Fact]) -> list[Fact]:
    """Facts without those whose question is one of the forget set."""
    asked = {normal(text) for fact in forget for text in (fact.question, *fact.paraphrases)}
    return [fact for fact in facts if normal(fact.question) not in asked]


def as_now(run: RunContext, facts: list[Fact]) -> list[Fact]:
    """Facts of the bare base as it answers them with the earlier erasures on."""
    return as_answered_now(run.model, run.tokenizer, run.formats[0], facts) if run.earlier else facts


def _usable(run: RunContext, found: Sequence[Fact]) -> list[Fact]:
    """Facts from the model itself that fit its context and whose questions were not given as retain facts."""
    given, context = {fact.question for fact in run.retain}, (context_length(run.model) or math.inf)
    return [
        fact for fact in found if fact.question not in given and _longest(run.tokenizer, fact, run.formats) <= context
    ]
