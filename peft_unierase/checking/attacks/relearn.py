"""Attacks by fine-tuning: what a little training brings back, beside what it teaches a model that never knew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch

from ...data.facts import Fact
from ...lm.batches import encode, pad_id, pad_left
from ..case import Case
from ..target import Target
from .attack import GREEDY, Attack, Found, NotApplicable

STEPS = (0, 5, 10, 20, 40)
BATCH = 8
RATE = 1e-3
TAUGHT = 40
Choose = Callable[[Case], tuple[Sequence[Fact], Sequence[Fact]]]


def on_unrelated(case: Case) -> tuple[Sequence[Fact], Sequence[Fact]]:
    """Whoever fine-tunes the model on something else, in good faith too: the retained facts that share the fewest words
    with the forget set.
    """
    _need(case)
    return case.by_nearness[-TAUGHT:], case.forget


def on_neighbours(case: Case) -> tuple[Sequence[Fact], Sequence[Fact]]:
    """Whoever has facts of the same kind, but none of the erased ones: the retained facts that share most words with
    the forget set.
    """
    _need(case)
    return case.by_nearness[:TAUGHT], case.forget


def on_a_tenth(case: Case) -> tuple[Sequence[Fact], Sequence[Fact]]:
    """Whoever has a tenth of the erased facts and wants the others, which alone are measured."""
    if len(case.forget) < 5:
        raise NotApplicable(f"{len(case.forget)} facts are too few to relearn some and measure the others")
    taught = case.drawn(case.forget, max(1, len(case.forget) // 10), "relearning")
    return taught, [fact for fact in case.forget if fact not in taught]


def relearning(choose: Choose) -> Callable[[Target, Case], Found]:
    """An attack by a short LoRA fine-tuning (rank 8, all linear layers, AdamW)."""

    def run(target: Target, case: Case) -> Found:
        taught, asked = choose(case)
        plain = target.weights()
        prompts = case.prompts(asked)
        by_step: dict[int, list[float]] = {}

        def measure(step: int) -> None:
            plain.model.eval()
            with plain.changed():
                said = plain.says(prompts, max_new_tokens=case.max_new_tokens)
            by_step[step] = case.recalls(asked, said)

        fine_tune(plain, taught, case, STEPS, measure)
        worst = max(by_step, key=lambda step: fmean(by_step[step]))
        curve = {step: fmean(leaks) for step, leaks in by_step.items()}
        return Found(by_step[worst], case.floor(asked), curve)

    run.__doc__ = f"{choose.__doc__ or ''} A LoRA of rank 8 is trained for {STEPS[-1]} steps; the worst one counts."
    return run


def fine_tune(
    plain: Target, facts: Sequence[Fact], case: Case, steps: Sequence[int], measure: Callable[[int], None]
) -> None:
    """Train a LoRA on the answers of facts; `measure(step)` is called at each of `steps`."""
    from peft import LoraConfig, get_peft_model

    texts = [
        (encode(plain.tokenizer, case.form.prompt(f.question)), encode(plain.tokenizer, case.form.answer(f.answer)))
        for f in facts
    ]
    generator = torch.Generator().manual_seed(case.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)  # PEFT draws the LoRA's start from the global generator
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        plain.model = get_peft_model(plain.model, config)
    parameters = [parameter for parameter in plain.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    for step in range(max(steps) + 1):
        if step in steps:
            measure(step)
        if step == max(steps):
            break
        chosen = torch.randint(len(texts), (BATCH,), generator=generator).tolist()
        loss = _loss(plain, [texts[index] for index in chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _loss(plain: Target, texts: Sequence[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens."""
    whole = [prompt + answer for prompt, answer in texts]
    batch: Any = pad_left(whole, pad_id(plain.tokenizer), plain.device, list(range(len(whole))))
    width = batch.ids.shape[1]
    told = torch.tensor([[False] * (width - len(a)) + [True] * len(a) for _, a in texts], device=plain.device)
    logits = plain.model(**batch.inputs(), use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits[told[:, 1:]].float(), batch.ids[:, 1:][told[:, 1:]])


def _need(case: Case) -> None:
    if not case.kept:
        raise NotApplicable("there is no retain set to fine-tune on")


ATTACKS = (
    Attack("relearn-unrelated", "fine-tuned on unrelated facts", relearning(on_unrelated), fast=False, against=GREEDY),
    Attack(
        "relearn-neighbours", "fine-tuned on neighbouring facts", relearning(on_neighbours), fast=False, against=GREEDY
    ),
    Attack("relearn-tenth", "fine-tuned on a tenth of them", relearning(on_a_tenth), fast=False, against=GREEDY),
)
