"""The stages of gates that are rows on the keys, in closed form: one function a stage with its formula."""

from __future__ import annotations

from dataclasses import replace

from .shared import ROOM, answered, answered_memory, steering
from .shared import fitting_row as fitting_the_row
from .sizes import FP32, FP64, Sizes
from .stage import Stage
from .work import Work


def recording(s: Sizes, w: Work) -> Stage:
    """Recording retain keys: retained questions in every format, and each once with its answer.

    The passes end at the last edit. Of the keys second moments are kept, those of a block's layers side by side.
    """
    return _recording(
        s,
        w,
        "recording retain keys",
        w.shut_positions,
        [
            (w.kept * w.formats, w.question),
            (w.kept, w.length),
        ],
    )


def fitting_steer(s: Sizes, w: Work) -> Stage:
    """Fitting the steer vector: the gates are solved once; then each step bends a forget and a retained batch above the
    lowest edit, and has one lesson."""
    kept = min(w.kept, w.fit_samples)
    flops, memory = steering(s, w, w.layers[0], kept)
    flops += _forget_keys(s, w) + _grams(s, w)
    flops += s.forward((w.doors + kept) * w.length, w.length, w.layers[-1] + 1, 0)  # how far the gates open
    memory = max(memory + w.forget_keys * len(w.layers) * s.mlp * FP32, _solving_memory(s, w)) + _moments(s, w)
    return Stage("fitting the steer vector", flops, solving=_solving(s, w), memory=memory)


def recording_refusals(s: Sizes, w: Work) -> Stage:
    """Recording refusals: forget questions and beginnings of answers, and refusals behind them."""
    before = w.question + w.answer / 4
    keys = w.refused * (w.refusal + 0.5)
    return _recording(s, w, "recording refusals", keys, [(w.refused, before + 0.5 + w.refusal)])


def editing(s: Sizes, w: Work) -> Stage:
    """Editing layers: at each trial two solves, the forget keys anew between them, then answers are asked for.

    A solve is for the rows of all layers of a block: a moment in fp32, its Cholesky factor in fp64.
    """
    asked = w.held_prompts + min(w.doors, 2 * w.fit_samples)
    batched = answered(s, w, asked) + _forget_keys(s, w) + 3 * _grams(s, w)  # in the second, the echo has one too
    memory = max(_solving_memory(s, w), answered_memory(s, w, asked)) + 2 * _moments(s, w)
    return Stage("editing layers", w.trials * batched, solving=w.trials * 2 * _solving(s, w), memory=memory)


def fitting_row(s: Sizes, w: Work) -> Stage:
    """Fitting the input row, beside the moments."""
    stage = fitting_the_row(s, w)
    return replace(stage, memory=stage.memory + _moments(s, w))


def _recording(s: Sizes, w: Work, name: str, keys: float, passes: list[tuple[float, float]]) -> Stage:
    read = sum(s.forward(rows * length, length, w.layers[-1] + 1, 0) for rows, length in passes)
    moments = sum(2 * keys * (len(block) * s.mlp) ** 2 for block in w.blocks(s.mlp))
    tokens = min(ROOM, sum(rows * length for rows, length in passes))
    held = tokens * len(w.layers) * s.mlp * (s.bytes + FP32)
    return Stage(name, read + moments, memory=s.passing(tokens, 0) + held + _moments(s, w))


def _forget_keys(s: Sizes, w: Work) -> float:
    """Operations of a pass that records the forget keys."""
    length = w.question + w.behind
    return s.forward(w.doors * length, length, w.layers[-1] + 1, 0)


def _grams(s: Sizes, w: Work) -> float:
    """Operations of the forget keys' second moments."""
    return sum(2 * w.forget_keys * (len(block) * s.mlp) ** 2 for block in w.blocks(s.mlp))


def _solving(s: Sizes, w: Work) -> float:
    """Operations of the Cholesky factors of all blocks."""
    return sum((len(block) * s.mlp) ** 3 / 3 for block in w.blocks(s.mlp))


def _solving_memory(s: Sizes, w: Work) -> float:
    """Bytes of moment, factor and the solver's copy of it in fp64, beside the forget keys and their echo."""
    width = len(w.blocks(s.mlp)[0]) * s.mlp
    keys = 3 * FP32 * w.forget_keys * len(w.layers) * s.mlp
    return 3 * FP64 * width**2 + keys


def _moments(s: Sizes, w: Work) -> float:
    """Bytes of the shut keys' second moments, which stay until the run ends."""
    return FP32 * sum((len(block) * s.mlp) ** 2 for block in w.blocks(s.mlp))
