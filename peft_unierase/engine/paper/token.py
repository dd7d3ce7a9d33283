"""Stage I: [UNL]'s input row learns that a refusal follows it (UniErase, arXiv 2505.15674, section 3.2).

Minimises the cross-entropy of `refusal [end]` after `question [UNL]`, the input row being free and everything else
frozen: first without the chat template, then with it, then on weights with noise on them, so that the row still works
once stage II has edited these. Every question has one refusal, drawn at random.

The output row gets no gradient here, since [UNL] is what is given and not what is predicted: it is trained in stage II,
together with the states that it must read (see `targets`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...lm.batches import batches
from ..run_context import RunContext
from .cached_prompts import CachedPrompts
from .noise import perturbed
from .settings import PaperSettings

BATCH = 8  # questions in a step
LEARNING_RATE = 0.3  # Adam's highest, relative to the root mean square of the row's components
RISING = 0.1  # share of the steps in which the learning rate rises
ROBUST_NOISE = 0.05  # norm of the noise on a weight, relative to the weight's
ROBUST_DRAWS = 4  # times that noise is drawn in the robustness stage


def draw_refusals(run: RunContext, count: int) -> list[list[int]]:
    """Token ids of `[UNL] refusal [end]`, `count` times, each with a refusal drawn at random."""
    end = run.encode(run.formats[0].end)
    texts = [[run.spare.token_id, *run.encode(refusal), *end] for refusal in run.refusals]
    drawn = torch.randint(len(texts), (count,), generator=run.generator).tolist()
    return [texts[choice] for choice in drawn]


def learn_refusals(run: RunContext, settings: PaperSettings) -> float:
    """Fit the input row in place; mean loss of the last stage's last quarter, in nats per token."""
    row, _ = run.rows()
    refusals = draw_refusals(run, len(run.forget))
    plain = [form for form in run.formats if form.name.startswith("plain")]
    chat = [form for form in run.formats if form not in plain]
    asked = [
        [run.encode(form.prompt(fact.question)) for form in forms for fact in run.forget]
        for forms in (plain, chat)
        if forms
    ]

    rate = LEARNING_RATE * float(row.detach().float().pow(2).mean().sqrt())
    row.requires_grad_(True)
    optimizer = torch.optim.Adam([row], lr=rate)
    total = len(asked) * settings.token_steps + settings.robust_steps
    schedule = one_cycle(optimizer, rate, total)
    losses: list[float] = []

    def refusal_batches(prompts: Sequence[Sequence[int]], steps: int) -> list[tuple[CachedPrompts, list[list[int]]]]:
        """Questions for this many steps, drawn without repetition until all were there, a batch at a time."""
        count = min(steps * BATCH, len(prompts))
        chosen = torch.randperm(len(prompts), generator=run.generator)[:count].tolist()
        tokens = BATCH * max(len(prompts[index]) for index in chosen)
        made = []
        for batch in batches([prompts[index] for index in chosen], run.pad, run.device, tokens):
            taught = [refusals[chosen[index] % len(refusals)] for index in batch.index]
            made.append((CachedPrompts(run.model, batch), taught))
        return [made[turn] for turn in torch.randperm(len(made), generator=run.generator).tolist()]

    with run.stages.stage("learning to decline", total) as bar:

        def learn(prompts: Sequence[Sequence[int]], steps: int) -> None:
            batched = refusal_batches(prompts, steps)
            for step in range(steps):
                cached, taught = batched[step % len(batched)]
                nats, count = cached.losses([text[:1] for text in taught], [text[1:] for text in taught])
                loss = nats.sum() / count.sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
                bar.update(1)

        try:
            for prompts in asked:
                learn(prompts, settings.token_steps)
            everything = [prompt for prompts in asked for prompt in prompts]
            for steps in _shares(settings.robust_steps, ROBUST_DRAWS):
                with perturbed(run.projections(), ROBUST_NOISE, run.generator):
                    learn(everything, steps)
        finally:
            row.requires_grad_(False)
            row.grad = None
    tail = losses[-max(1, (settings.robust_steps or settings.token_steps) // 4) :]
    return sum(tail) / len(tail)


def _shares(total: int, parts: int) -> list[int]:
    """`total` in at most `parts` nearly equal parts, none of them 0."""
    return [share for part in range(parts) if (share := (part + 1) * total // parts - part * total // parts)]


def one_cycle(optimizer: torch.optim.Optimizer, highest: float, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A one-cycle schedule for any number of steps, 1 or more.

    If the rate would rise for one step or less it starts high: torch would divide by 0 there, and leave a single step
    no rate at all.

    Args:
        optimizer: What it is for.
        highest: The highest rate.
        steps: Gradient steps.
    """
    rising = RISING if RISING * steps > 1 else 0.0
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=max(2, steps), pct_start=rising)
