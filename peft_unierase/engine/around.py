"""Asking the base about the subjects of an erasure, and sorting what it says into what goes and what stays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from ..data.facts import Fact
from ..errors import ErasureWarning
from ..retain.about import ask_about, find_beginnings
from ..retain.knowledge import certainties
from ..retain.samples import SAMPLE_STEPS, drop_close
from ..retain.scope import Scope, Scoped, is_about, numbered, told_shares
from ..text.naming import names
from ..text.normal import normal
from .run_context import RunContext

ASKED = 96  # about each subject, fewer where there are many, and at the most twice this for each fact
LEAST_ASKED = 12
MOST_ASKED = 1536  # about all of them together
BEGINNINGS = 1024  # questions that lend their beginnings
SURE = 0.5  # geometric mean of the probabilities of an answer's tokens
SAME = 0.75  # share of an erased answer's answer-only words that a reworded question's answer tells at least
MUCH = 0.5  # share of that answer's own answer-only words which this must be
APART = 0.35  # share below which a question is about something else


def ask_around(
    run: RunContext, scope: Scope, found: Sequence[Fact], usable: Callable[[Sequence[Fact]], list[Fact]]
) -> Scoped:
    """Let the base ask itself about the subjects, and sort what it says into `run.forget` and `run.same_subject`.

    What joins the forget set is in `run.reworded` too.

    Retain samples about a subject leave `run.sampled`: what the scope says about them is decided here.

    Args:
        run: With its retain samples at hand; nothing is edited yet.
        scope: See [`plan_scope`].
        found: All that the base asked itself about anything, what is close to the forget set included.
        usable: What of such facts fits the model and was not given.
    """
    if scope.unknown:
        warnings.warn(
            f"no name to ask about was found in forget {numbered(scope.unknown)}, so scope 'question' cannot find what "
            "lies near; name the subject (`Fact(subject=…)`, a column `subject`), or give such retain facts",
            ErasureWarning,
            stacklevel=3,
        )
    found = usable(found)
    mentioning = [fact for fact in found if any(is_about(fact, subject) for subject in scope.subjects)]
    asked = usable(_asked(run, scope, found))
    others = [*run.forget, *run.retain]
    taken = {normal(text) for fact in others for text in (fact.question, *fact.paraphrases)}
    candidates = list({normal(fact.question): fact for fact in [*mentioning, *asked]}.values())
    candidates = [fact for fact in candidates if normal(fact.question) not in taken]
    if scope.name == "subject":
        sure = certainties(run.model, run.tokenizer, candidates, run.formats[0])
        more = [
            fact
            for fact, certainty in zip(candidates, sure.tolist(), strict=True)
            if certainty >= SURE and any(names(fact.question, subject) for subject in scope.subjects)
        ]
        run.near = [fact for fact in run.near if not any(is_about(fact, subject) for subject in scope.subjects)]
        near = []
    else:
        shares = told_shares(candidates, run.forget, found)
        more = [fact for fact, (told, own) in zip(candidates, shares, strict=True) if told >= SAME and own >= MUCH]
        near = [fact for fact, (told, _) in zip(candidates, shares, strict=True) if told < APART]
        run.same_subject = near
    run.forget, run.reworded = [*run.forget, *more], [*run.reworded, *more]
    gone = {fact.question for fact in mentioning}
    run.sampled = [fact for fact in run.sampled if fact.question not in gone]
    if scope.name == "subject":
        run.sampled, run.near, run.around = (
            drop_close(part, run.forget) for part in (run.sampled, run.near, run.around)
        )
    return Scoped(scope, len(asked), len(near), len(more))


def _asked(run: RunContext, scope: Scope, found: Sequence[Fact]) -> list[Fact]:
    model, tokenizer, form = run.model, run.tokenizer, run.formats[0]
    if not scope.subjects:
        return []
    most = min(MOST_ASKED, 2 * ASKED * len(run.forget))
    count = min(ASKED, max(LEAST_ASKED, most // len(scope.subjects)))
    questions = [fact.question for fact in [*run.forget, *run.retain, *found][:BEGINNINGS]]
    with run.stages.stage("asking about the subjects", (SAMPLE_STEPS * count + 1) * len(scope.subjects)) as bar:
        advance: Callable[[int], object] = bar.update
        beginnings = find_beginnings(model, tokenizer, form, scope.subjects, questions, count)
        advance(len(scope.subjects))
        return [
            fact
            for subject, starts in zip(scope.subjects, beginnings, strict=True)
            for fact in ask_about(
                model, tokenizer, form, subject, starts, count, run.seed, advance=advance, processes=run.processes
            )
        ]
