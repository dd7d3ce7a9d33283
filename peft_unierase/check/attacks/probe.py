"""An attack that asks nothing: what a linear probe reads off the states of a model."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from ...facts import Fact
from ...prompts import encode
from ...text import normal
from ..case import Case
from ..target import Target
from .attack import Found, NotApplicable
from .states import streams

FOLDS = 5
WRONG = 3
TAUGHT = 200  # retained facts that the probe learns from, at the most
HEIGHTS = (1 / 2, 3 / 4)  # of the layers, at which states are read
RIDGE = 0.1  # of the mean of the kernel's diagonal


def probe(target: Target, case: Case) -> Found:
    """Whoever has the weights, the retained facts and some of the erased ones: from the states of the middle layers at
    the answer start, before anything is said, a linear probe (ridge) guesses the answer, as the mean of its tokens'
    rows in the base's head. It learns from retained facts and four fifths of the erased ones; of right and wrong
    answers to the other fifth the one nearest to the guess counts as chosen. Without wrong answers those of other facts
    are taken.
    """
    asked = _with_options(case)
    if len(asked) < FOLDS:
        raise NotApplicable(f"{len(asked)} facts with wrong answers are too few to train a probe on some of them")
    facts = [*(fact for fact, _ in asked), *case.drawn(case.kept, TAUGHT, "probe")]
    prompts = [encode(target.tokenizer, prompt) for prompt in case.prompts(facts)]
    layers = streams(target, prompts, [1] * len(prompts))
    states = torch.cat([layers[int(height * len(layers))].cpu() for height in HEIGHTS], dim=1).double()
    head = case.base.model.get_output_embeddings().weight.detach()

    def meant(text: str) -> torch.Tensor:
        ids = torch.tensor(encode(target.tokenizer, f"{case.form.lead}{text}"), device=head.device)
        return head[ids].cpu().double().mean(dim=0)

    answers = torch.stack([meant(fact.answer) for fact in facts])
    options = [torch.stack([meant(text) for text in texts]) for _, texts in asked]
    return Found(guessed_right(states, answers, options), [1 / len(texts) for _, texts in asked])


def guessed_right(states: torch.Tensor, answers: torch.Tensor, options: Sequence[torch.Tensor]) -> list[float]:
    """Whether a probe that has not seen a fact is nearer to its first option than to the others, 0 or 1 a fact.

    Args:
        states: What a model has in mind at each answer start, `(facts, d)`: first those of the facts that are judged.
        answers: What the probe is to say, `(facts, e)`.
        options: For each judged fact its options, `(several, e)`, the right one first.
    """
    seen = states - states.mean(dim=0)
    wanted = answers - answers.mean(dim=0)
    right: list[float] = []
    for fold in range(FOLDS):
        judged = range(fold, len(options), FOLDS)
        taught = [number for number in range(len(seen)) if number not in judged]
        kernel = seen[taught] @ seen[taught].T
        ridge = RIDGE * kernel.diagonal().mean().clamp(min=1e-12) * torch.eye(len(taught), dtype=kernel.dtype)
        learnt = torch.linalg.solve(kernel + ridge, wanted[taught])
        for number in judged:
            guess = (seen[taught] @ seen[number]) @ learnt
            apart = options[number] - options[number].mean(dim=0)
            first, *others = torch.nn.functional.cosine_similarity(apart, guess[None], dim=1).tolist()
            right.append(float(first > max(others)))
    return right


def _with_options(case: Case) -> list[tuple[Fact, list[str]]]:
    """Facts with the right answer and wrong ones of its form."""
    drawn, found = random.Random(f"{case.seed} probe"), []
    for fact in case.forget:
        right, wrong = fact.paraphrased_answer or fact.answer, list(fact.perturbed_answers[:WRONG])
        if not wrong:
            others = {normal(other.answer): other.answer for other in case.forget}
            others.pop(normal(fact.answer))
            right, wrong = fact.answer, drawn.sample(sorted(others.values()), min(WRONG, len(others)))
        if wrong:
            found.append((fact, [right, *wrong]))
    return found
