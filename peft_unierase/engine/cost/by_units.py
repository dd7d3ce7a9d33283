"""The stages of gates that are hidden units: one function a stage with its formula.

Detectors in the lower of two layers, a comparator in the upper one. What is read off the base ends before the MLP of
one of these. `u` positions are to open, `n` to stay shut.
"""

from __future__ import annotations

from dataclasses import replace

from ..gate.by_units import DOORS, FEW, SOME
from ..gate.comparator import UNITS
from ..gate.flags import BEGINNING, QUIET, TEXTS
from ..gate.token_units import MOST, ROUNDS, SEEN, WHOLE
from ..gate.units import DRAWN_SHUT, DRAWN_WANTED
from .shared import ROOM, answered, answered_memory, steering
from .shared import fitting_row as fitting_the_row
from .sizes import FP32, FP64, Sizes
from .stage import Stage
from .work import Work

EIGEN = 10  # times d^3: all eigenvectors of a matrix
SOLVE = 2 / 3  # times d^3: one solution
TOLD = 2  # answer tokens before [UNL] in what its units are told by, on average


def recording(s: Sizes, w: Work) -> Stage:
    """Recording retain keys: retained questions in every format, and each once with its answer."""
    rows = [(w.kept * w.formats, w.question), (w.kept, w.length)]
    read = sum(s.forward(count * length, length, s.to_mlp(w.layers[0]), 0) for count, length in rows)
    return Stage("recording retain keys", read, memory=_reading(s, w) + _inputs(s, w.shut_positions))


def fitting_gate(s: Sizes, w: Work) -> Stage:
    """Fitting the gate: the forget positions are recorded, all inputs whitened, the units fitted and a flag measured.

    Whitening takes two second moments in fp64, a solution and all eigenvectors. Before all stages the flag was drawn.
    """
    length = w.question + w.behind
    read = s.forward(w.gated * length, length, s.to_mlp(w.layers[0]), 0)
    moments = 4 * (w.forget_keys + w.shut_positions) * s.width**2
    fitted = _fitting(s, w, _steps(w), w.shut_positions, w.shut_groups)
    quiet, flag = _quiet(s, w), _flag(s, w)
    return Stage(
        "fitting the gate",
        read + moments + fitted.batched + quiet.batched + flag.batched,
        solving=drawing_flag(s, w) + _whitening(s) + quiet.solving + flag.solving,
        drawn=fitted.drawn,
        memory=max(fitted.memory + _inputs(s, w.forget_keys + w.shut_positions, FP64), _drawing_memory(s)),
    )


def fitting_steer(s: Sizes, w: Work) -> Stage:
    """Fitting the steer vector: how far the gate opens is read off once, then see `steering`."""
    kept = min(w.kept, 2 * w.fit_samples)
    flops, memory = steering(s, w, w.layers[1], kept)
    flops += s.forward((w.doors + kept) * w.length, w.length, s.to_mlp(w.layers[1]), 0)
    return Stage("fitting the steer vector", flops, memory=memory + _kept_inputs(s, w))


def holding_shut(s: Sizes, w: Work) -> Stage:
    """Holding the gate shut in refusals: these are recorded, the units fitted on, and the flag measured anew."""
    count, length = 2 * w.refused, _refused_length(w)
    read = s.forward(count * length, length, s.to_mlp(w.layers[0]), 0)
    groups = [*w.shut_groups, count * (w.refusal + 0.5)]
    fitted = _fitting(s, w, _steps(w) // 2, w.shut_positions + groups[-1], groups)
    flag = _flag(s, w)
    return Stage(
        "holding the gate shut in refusals",
        read + fitted.batched + flag.batched,
        solving=flag.solving,
        drawn=fitted.drawn,
        memory=fitted.memory,
    )


def opening(s: Sizes, w: Work) -> Stage:
    """Opening the gate: its threshold from held-out answers, refusals and doors, then what it does to answers.

    The few held-out answers that fire are asked for on the base too, which is not counted.
    """
    held, asked = w.held_prompts, min(w.doors, 2 * w.fit_samples)
    rows = [(held, w.length), (2 * w.refused, _refused_length(w)), (min(w.gated, DOORS), w.question)]
    read = sum(s.forward(count * length, length, s.to_mlp(w.layers[1]), 0) for count, length in rows)
    memory = max(answered_memory(s, w, held + asked), _reading(s, w)) + _kept_inputs(s, w)
    return Stage("opening the gate", read + answered(s, w, held + asked), memory=memory)


def fitting_row(s: Sizes, w: Work) -> Stage:
    """Fitting the input row, once units in both layers open on [UNL]: each step is for their columns too."""
    stage, placed = fitting_the_row(s, w), _placing(s, w)
    steps = w.row_steps + w.row_steps_per_fact * w.facts
    return replace(
        stage,
        batched=stage.batched + placed.batched + steps * 2 * w.lesson_tokens * s.width * edited(w),
        solving=placed.solving,
        memory=max(stage.memory, placed.memory) + _kept_inputs(s, w),
    )


def drawing_flag(s: Sizes, w: Work) -> float:
    """Operations of drawing a flag, in fp64: the moments of all down-projections up to that of the detectors, and all
    eigenvectors of their sum.
    """
    return (w.layers[0] + 1) * 2 * s.width**2 * s.mlp + EIGEN * s.width**3


def edited(w: Work) -> int:
    """Hidden units of both layers: detectors, a comparator, and in each layer those that [UNL] opens."""
    return w.units + UNITS + len(w.layers) * UNITS


def _steps(w: Work) -> int:
    return int(w.unit_steps + w.unit_steps_per_fact * w.facts)


def _fitting(s: Sizes, w: Work, steps: int, shut: float, groups: list[float]) -> Stage:
    """Whitened inputs, `2 (u + n) d (d + 1)`; then at each step noise on some of them and the units, there and back.

    Weights alone have a gradient, so the way back costs what the way there does: `4 b (d + 1)` a row of the units, of
    which there are one or two in the projections.
    """
    wide = s.width + 1
    wanted = [w.gated, w.gated * w.behind] if w.behind else [w.gated]
    drawn = sum(min(DRAWN_WANTED, count) for count in wanted) + sum(
        min(DRAWN_SHUT // len(groups), count) for count in groups
    )
    rows = w.units * (2 if s.gated else 1)
    positions = w.forget_keys + shut
    return Stage(
        "",
        2 * positions * s.width * wide + steps * 4 * drawn * wide * rows,
        drawn=steps * drawn * wide,
        memory=2 * _inputs(s, positions) + 4 * FP32 * drawn * wide,  # as recorded, and whitened
    )


def _quiet(s: Sizes, w: Work) -> Stage:
    """What a flag is read among: some retained and forget answers up to the second MLP, how large the stream is, and
    what the flags of others add, there and back on the beginnings of a few texts each.
    """
    kept, seen = min(SOME, w.kept), min(SOME, w.gated)
    length = w.question + w.behind
    first, second = w.layers
    read = s.forward(kept * w.length, w.length, s.to_mlp(second), 0)
    read += s.forward(min(FEW, kept) * w.length, w.length, first + 1, 0)
    read += s.forward(seen * length, length, s.to_mlp(second), 0)
    others, beginning = 2 * TEXTS * (s.width // QUIET - 1), min(BEGINNING, w.length)
    return Stage("", read + s.forward(others * beginning, beginning, s.to_mlp(second), 0))


def _flag(s: Sizes, w: Work) -> Stage:
    """Measuring a flag: some forget answers, once up to the first MLP and twice up to the second; moments, solutions.

    The second time is left out where the first guess of the flag's size is large enough.
    """
    kept, seen = min(SOME, w.kept), min(SOME, w.gated)
    length = w.question + w.behind
    first, second = w.layers
    read = s.forward(seen * length, length, s.to_mlp(first) + 2 * s.to_mlp(second), 0)
    opened = seen * (1 + w.behind)
    # Twice of what the flag is read among; of where it is.
    moments = 2 * (2 * (kept * w.length / 2 + opened) + opened) * s.width**2
    return Stage("", read + moments, solving=3 * SOLVE * s.width**3)


def _placing(s: Sizes, w: Work) -> Stage:
    """Placing [UNL]'s units: forget prompts with [UNL] and refusals, a few of which are held at all positions, retained
    and forget answers, up to the second MLP.

    For each layer two moments (later rounds of the divider see few inputs), the solutions, and how large the stream
    is behind 16 of the refusals. Inputs are held in fp32, those of both layers at all positions, and once more in
    fp64.
    """
    told, kept = w.question + TOLD + 1 + w.refusal, min(MOST, w.kept)
    seen, whole = min(SEEN, w.doors), min(WHOLE, w.doors)
    groups = [(seen, told), (kept, w.length), (whole, w.length)]
    read = sum(s.forward(count * length, length, s.to_mlp(w.layers[1]), 0) for count, length in groups)
    read += sum(s.forward(min(16, seen) * told, told, layer + 1, 0) for layer in w.layers)
    positions = whole * told + (seen - whole) + (kept + whole) * w.length
    return Stage(
        "",
        read + len(w.layers) * 2 * (positions + seen) * s.width**2,
        solving=len(w.layers) * (ROUNDS + 1) * SOLVE * s.width**3,
        memory=(len(w.layers) + 2) * _inputs(s, positions) + _inputs(s, positions, FP64),
    )


def _whitening(s: Sizes) -> float:
    """Operations of a solution and of all eigenvectors."""
    return (EIGEN + SOLVE) * s.width**3


def _drawing_memory(s: Sizes) -> float:
    """Bytes of a down-projection in fp64, its moment, their sum and its eigenvectors."""
    return FP64 * (s.width * s.mlp + 3 * s.width**2)


def _refused_length(w: Work) -> float:
    """Tokens of a forget question, now and then with the beginning of its answer, and a refusal."""
    return w.question + w.answer / 4 + 0.5 + w.refusal


def _inputs(s: Sizes, positions: float, size: int = FP32) -> float:
    """Bytes of MLP inputs."""
    return size * positions * s.width


def _kept_inputs(s: Sizes, w: Work) -> float:
    """Bytes of those that stay until the run ends."""
    return _inputs(s, w.forget_keys + w.shut_positions)


def _reading(s: Sizes, w: Work) -> float:
    """Bytes of a pass over a batch, of which nothing is predicted."""
    return s.passing(min(ROOM, w.kept * w.length), 0)
