"""An attack that asks nothing: what a linear probe reads off the states of a model."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from ...data.facts import Fact
from ...lm.batches import encode
from ...text import normal
from ..case import Case
from ..target import Target
from .attack import ACCURACY, Attack, Found, NotApplicable
from .states import streams

WRONG = 3
FEWEST, TAUGHT = 20, 200  # retained facts that the probe learns from
LAST = 4  # positions up to the answer start, over which states are averaged
HEIGHTS = (1 / 2, 3 / 4)  # of the layers, at which states are read
RIDGE = 0.1  # of the mean of the kernel's diagonal


def probe(target: Target, case: Case) -> Found:
    """Whoever has the weights and facts of the same kind: from the states of the middle layers at the answer start,
    before anything is said, a linear probe (ridge) guesses the answer, as the mean of its tokens' rows in the base's
    head. It learns from retained facts; of right and wrong answers to the erased ones the one nearest to the guess
    counts as chosen. Without wrong answers those of other facts are taken.
    """
    asked, taught = _with_options(case), case.drawn(case.kept, TAUGHT, "probe")
    if len(taught) < FEWEST:
        raise NotApplicable(f"{len(taught)} retained facts are too few to train a probe; it needs {FEWEST}")
    if not asked:
        raise NotApplicable("there are no wrong answers to tell the right ones from")
    facts = [*taught, *(fact for fact, _ in asked)]
    prompts = [encode(target.tokenizer, prompt) for prompt in case.prompts(facts)]
    layers = streams(target, prompts, [LAST] * len(prompts))
    states = torch.cat([layers[int(height * len(layers))].cpu() for height in HEIGHTS], dim=1).double()
    head = case.base.model.get_output_embeddings().weight.detach()

    def meant(text: str) -> torch.Tensor:
        ids = torch.tensor(encode(target.tokenizer, f"{case.form.lead}{text}"), device=head.device)
        return head[ids].cpu().double().mean(dim=0)

    answers = torch.stack([meant(fact.answer) for fact in taught])
    options = [torch.stack([meant(text) for text in texts]) for _, texts in asked]
    right = guessed_right(states[: len(taught)], answers, states[len(taught) :], options)
    return Found(right, [1 / len(texts) for _, texts in asked])


def guessed_right(
    taught: torch.Tensor, answers: torch.Tensor, states: torch.Tensor, options: Sequence[torch.Tensor]
) -> list[float]:
    """Whether a probe that was trained on other facts is nearest to the first of each fact's options, 0 or 1 a fact.

    Args:
        taught: What a model has in mind at the answer starts of those facts, `(n, d)`.
        answers: What the probe learns to say there, `(n, e)`.
        states: What the model has in mind at those of the facts that are judged, `(m, d)`.
        options: For each of these its options, `(several, e)`, the right one first.
    """
    seen, wanted = taught - taught.mean(dim=0), answers - answers.mean(dim=0)
    kernel = seen @ seen.T
    ridge = RIDGE * kernel.diagonal().mean().clamp(min=1e-12) * torch.eye(len(seen), dtype=kernel.dtype)
    guesses = (states - taught.mean(dim=0)) @ seen.T @ torch.linalg.solve(kernel + ridge, wanted)
    right: list[float] = []
    for guess, own in zip(guesses, options, strict=True):
        apart = own - own.mean(dim=0)
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


ATTACKS = (Attack("probe", "linear probe on hidden states", probe, fast=False, unit=ACCURACY),)
