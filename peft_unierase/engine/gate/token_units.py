"""Hidden units that open on [UNL] alone: what its one row of the embedding cannot carry.

Behind [UNL] a refusal has to follow, whatever the question was. One vector at the bottom of the model says that to a
few dozen prompts; with many hundreds the questions win here and there, and a refusal breaks off into them. Two units in
each edited MLP therefore tell [UNL] from every other token, as the comparator tells flags, and write one more vector.
They are not open on a text without [UNL].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..bench import Bench
from ..refusal import FreeColumns
from ..trace import inputs_at, stream_behind
from .answered import Sequences
from .comparator import UNITS, Comparator, blind, constant_reader
from .units import UnitSettings

OPEN = (0.4, 0.7)  # shut below, open above; [UNL] reads about 1 and all other tokens about -1
ROUNDS = 15  # of Newton's method, the first of which is least squares
SEEN = 1280  # forget prompts that say what [UNL] looks like
WHOLE, MOST = 160, 1024  # forget prompts and retained ones that say what it does not look like


def place_token_units(
    bench: Bench,
    forget: Sequences,
    others: Sequences,
    refusals: Sequence[Sequence[int]],
    settings: UnitSettings,
    flags: torch.Tensor,
) -> list[FreeColumns]:
    """Make the last two units of each layer open on [UNL]; they write nothing yet.

    Args:
        bench: With the gate open and [UNL]'s rows fitted.
        forget: Forget prompts with their answers.
        others: Retained ones.
        refusals: Token ids of the refusals.
        settings: See [`UnitSettings`].
        flags: What the flags of other erasures add to the input of the second MLP, `(slots, d)`.
    """
    token_id = bench.spare.token_id
    some = forget.some(SEEN)
    # Every other refusal comes behind the first words of the answer, up to seven.
    told = [
        [*prompt, *answer[: number % 8 * (number % 2)], token_id, *refusals[number % len(refusals)]]
        for number, (prompt, answer) in enumerate(zip(some.prompts, some.answers, strict=True))
    ]
    few = set(some.spread(WHOLE))
    texts = [*told, *others.some(MOST).whole(), *some.some(WHOLE).whole()]
    places = [
        [text.index(token_id)] if number < len(told) and number not in few else list(range(len(text)))
        for number, text in enumerate(texts)
    ]
    pairs = zip(texts, places, strict=True)
    here = torch.tensor([text[place] == token_id for text, each in pairs for place in each], device=bench.device)
    modules = [bench.model.get_submodule(writers[0]) for writers in bench.writers]
    found = inputs_at(bench.model, modules, texts, places, bench.pad)
    free = []
    parts = zip(found, modules, bench.layers, bench.names, bench.writers, bench.units, strict=True)
    for states, module, layer, name, writers, units in parts:
        inputs = torch.cat(states).to(bench.device)
        switch = Comparator(bench.model, name, writers, bench.adapter, units[-UNITS:], settings, bench.generator)
        seen = flags if layer > bench.layers[0] else None
        reader = divider(inputs[here], inputs[~here], seen)
        switch.set(reader, constant_reader(inputs[here], others=seen), *OPEN)
        switch.write()
        switch.open(torch.zeros(1))
        gate: Any = switch.down
        read = torch.zeros(len(gate.columns[bench.adapter]))
        read[-UNITS:] = switch.read.detach().cpu()
        stream = torch.cat(stream_behind(bench.model, bench.stack[layer], told[:16], bench.pad))
        size = float(stream.square().mean().sqrt())
        free.append(FreeColumns(gate.unierase_B[bench.adapter], read, size, module, reader))
    return free


def divider(
    here: torch.Tensor, elsewhere: torch.Tensor, others: torch.Tensor | None = None, weight: float = 10.0
) -> torch.Tensor:
    """A row `(d,)` that answers 1 or more to some inputs of an MLP, and -1 or less to others, `(n, d)` each.

    With a squared hinge on both sides, by Newton's method. Least squares alone spends itself on inputs that are told
    apart anyway: on the TOFU testbed it opened at more than twice as many positions that it had not seen.

    Args:
        here: Where to open.
        elsewhere: Where not to.
        others: What is to answer 0, `(slots, d)`.
        weight: Of the inputs elsewhere.
    """
    here, elsewhere = here.double(), elsewhere.double()
    diagonal = here.square().mean() + elsewhere.square().mean()
    ridge = 1e-3 * diagonal * torch.eye(here.shape[1], dtype=here.dtype, device=here.device)
    ridge = ridge + blind(1e3 * ridge, others)
    row = here.new_zeros(here.shape[1])
    for _ in range(ROUNDS):
        missed, leaking = here[here @ row < 1], elsewhere[elsewhere @ row > -1]
        moment = missed.T @ missed / len(here) + weight * leaking.T @ leaking / len(elsewhere)
        target = missed.sum(dim=0) / len(here) - weight * leaking.sum(dim=0) / len(elsewhere)
        row = torch.linalg.solve(moment + ridge, target)
    return row.float()
