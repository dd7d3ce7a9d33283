"""The stages that every gate has: asking, sampling, lessons, the input row. One function a stage with its formula."""

from __future__ import annotations

from ..refusal import SOME
from .sizes import FP32, Sizes
from .stage import Stage
from .work import Work

ROOM = 4096  # padded tokens of a batch that is only read


def asking(s: Sizes, w: Work) -> Stage:
    """Asking the base for the facts: in each format a question is read and answered, token by token."""
    asked = w.facts * w.formats
    return Stage(
        "asking the base for the facts",
        batched=asked * s.forward(w.question, w.question, s.layers, 1),
        stepwise=asked * s.forward(w.answer, w.question + w.answer / 2, s.layers, w.answer),
        memory=2 * s.caches(asked * w.length),
    )


def sampling(s: Sizes, w: Work) -> Stage:
    """Sampling retain data: a question is written, then read again and answered, token by token."""
    written = s.forward(w.question, w.question / 2, s.layers, w.question)
    told = s.forward(w.answer, w.question + w.answer / 2, s.layers, w.answer)
    read = s.forward(w.question, w.question, s.layers, 1)
    return Stage(
        "sampling retain data",
        batched=w.samples * read,
        stepwise=w.samples * (written + told),
        memory=2 * s.caches(w.asked * w.length) + 3 * w.asked * s.vocabulary * FP32,  # a cache is copied as it grows
    )


def fitting_row(s: Sizes, w: Work) -> Stage:
    """Fitting the input row: each step has one lesson, through all layers; it may end earlier."""
    steps = w.row_steps + w.row_steps_per_fact * w.facts
    flops = steps * lesson(s, w, bent=False) + choosing(s, w, steps=0)
    return Stage("fitting the input row", flops, memory=lesson_memory(s, w))


def steering(s: Sizes, w: Work, lowest: int, kept: float) -> tuple[float, float]:
    """Operations and bytes of fitting the steer vector, once the gates are there.

    The stream is recorded behind layer `lowest`, and what the base says at the positions of `kept` retained answers.
    Each step bends a forget batch above that layer, and every `retain_every` steps a retained one, and has one lesson;
    where no gate opens the head reads one number off each retained state, in every step.
    """
    above = s.layers - lowest - 1
    flops = s.forward(kept * w.length, w.length, above, kept * w.length)
    memory = lesson_memory(s, w) + FP32 * kept * w.length * s.width
    for rows, share, read in ((min(w.doors, w.fit_samples), 1.0, w.answer + 1), (kept, 1 / w.retain_every, w.length)):
        tokens = min(w.batch, rows * w.length)
        predicted = tokens * read / w.length
        flops += s.forward(rows * w.length, w.length, lowest + 1, 0)
        flops += w.steer_steps * share * s.both_ways(tokens, w.length, above, predicted)
        memory += s.kept_for_gradient(tokens, above, predicted) + rows * w.length * s.width * s.bytes
    quiet = 4 * kept * w.length * s.width
    return flops + w.steer_steps * (lesson(s, w, bent=True) + quiet) + choosing(s, w, w.steer_steps // 2), memory


def answered(s: Sizes, w: Work, rows: float) -> float:
    """Operations of a pass over questions with answers, whose tokens are predicted."""
    return rows * s.forward(w.length, w.length, s.layers, w.answer + 1)


def answered_memory(s: Sizes, w: Work, rows: float) -> float:
    tokens = min(ROOM, rows * w.length)
    return s.passing(tokens, tokens * w.answer / w.length)


def lesson(s: Sizes, w: Work, bent: bool) -> float:
    """Operations of one lesson, through all layers; what comes before [UNL] has a gradient only where it is bent."""
    context, predicted = w.question + w.before_refusal + w.refusal, w.lesson_rows * w.refusal
    before = 0.0 if bent else w.lesson_rows * (1 + w.before_refusal)
    read = s.forward(before, context, s.layers, 0)
    return read + s.both_ways(w.lesson_tokens - before, context, s.layers, predicted)


def choosing(s: Sizes, w: Work, steps: int) -> float:
    """Operations of choosing refusals: the prompts once for their caches, then all refusals behind them.

    Every batch chooses when it has its first turn in these steps, and some when one refusal is chosen for all. One
    alone needs no choice.
    """
    batches = w.doors / w.lesson_rows
    turns = min(batches, steps) + min(batches, SOME) if w.refusals > 1 else 0.0
    tried = turns * w.lesson_rows * w.refusals * (1 + w.refusal)
    return s.forward(w.doors * w.question, w.question, s.layers, 0) + s.forward(
        tried, w.question + w.refusal, s.layers, tried
    )


def lesson_memory(s: Sizes, w: Work) -> float:
    return s.kept_for_gradient(w.lesson_tokens, s.layers, w.lesson_rows * w.refusal) + s.caches(w.doors * w.question)
