"""How large the updates must be: no larger than what takes the facts out, since what they cost grows with their size.

The fit says in which directions; how far is found by asking.
"""

from __future__ import annotations

import torch

from ...lm.decoding import end_ids, greedy_answers
from ...retain.knowledge import Knowledge, tells
from ..run_context import RunContext

SHARES = (0.2, 0.28, 0.4, 0.56, 0.8)  # of the fitted size, at which the facts may be gone
SPARE = 1.25  # by how much larger they are left
FACTS = 40  # that are asked for
TOKENS = 24  # of an answer
LEFT = 0.02  # share of the answers that may still tell the fact


@torch.no_grad()
def shrink(run: RunContext) -> float:
    """Scale the updates to little more than the smallest size at which the facts are gone; by how much.

    Facts are asked for in the first format, and after half of what the base says before it tells the fact, with [UNL]
    and the end forbidden.
    """
    fitted = [(b, b.detach().clone()) for _, _, b in run.updates()]

    def scale(share: float) -> float:
        for b, whole in fitted:
            b.copy_(share * whole)
        return share

    with run.stages.stage("finding how large the updates must be"):
        enough = (share for share in SHARES if scale(share) and share_told(run) <= LEFT)
        return scale(min(1.0, SPARE * next(enough, 1.0)))


def share_told(run: RunContext) -> float:
    """Share of the answers that tell the fact."""
    step = -(-len(run.knowledge) // FACTS)
    form, cases = run.formats[0], []
    for known in run.knowledge[::step]:
        begun = _half(run, known)
        cases += [(known.fact, begun[:count]) for count in {0, len(begun)}]
    prompts = [form.prompt(fact.question) + run.tokenizer.decode(begun) for fact, begun in cases]
    banned = [run.spare.token_id, *end_ids(run.model)]
    answers = greedy_answers(run.model, run.tokenizer, prompts, TOKENS, banned=banned)
    said = [run.tokenizer.decode(begun + ids) for (_, begun), ids in zip(cases, answers, strict=True)]
    return sum(tells(text, fact) for (fact, _), text in zip(cases, said, strict=True)) / len(cases)


def _half(run: RunContext, known: Knowledge) -> list[int]:
    """Half of the tokens that the base says, or was said to say, before they tell the fact."""
    form = run.formats[0]
    answer = known.telling(form.name) if form.name in known.known_in else known.fact.answer
    ids = run.encode(form.answer(answer))
    before = next((n for n in range(len(ids)) if tells(run.tokenizer.decode(ids[: n + 1]), known.fact)), len(ids))
    return ids[: before // 2]
