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
from .comparator import UNITS, Comparator, constant_reader
from .units import UnitSettings

OPEN = (0.4, 0.7)  # shut below, open above; [UNL] reads about 1 and all other tokens about -1
SEEN = 160


def place_token_units(
    bench: Bench,
    forget: Sequences,
    others: Sequences,
    refusals: Sequence[Sequence[int]],
    settings: UnitSettings,
) -> list[FreeColumns]:
    """Make the last two units of each layer open on [UNL]; they write nothing yet.

    Args:
        bench: With the gate open and [UNL]'s rows fitted.
        forget: Forget prompts with their answers.
        others: Retained ones.
        refusals: Token ids of the refusals.
        settings: See [`UnitSettings`].
    """
    token_id = bench.spare.token_id
    some = forget.some(SEEN)
    # Every other refusal comes behind the first words of the answer, up to seven.
    told = [
        [*prompt, *answer[: number % 8 * (number % 2)], token_id, *refusals[number % len(refusals)]]
        for number, (prompt, answer) in enumerate(zip(some.prompts, some.answers, strict=True))
    ]
    texts = [*told, *others.some(4 * SEEN).whole(), *some.whole()]
    everywhere = [list(range(len(text))) for text in texts]
    here = torch.tensor([token == token_id for text in texts for token in text], device=bench.device)
    modules = [bench.model.get_submodule(writers[0]) for writers in bench.writers]
    found = inputs_at(bench.model, modules, texts, everywhere, bench.pad)
    free = []
    parts = zip(found, bench.layers, bench.names, bench.writers, bench.units, strict=True)
    for states, layer, name, writers, units in parts:
        inputs = torch.cat(states).to(bench.device)
        switch = Comparator(bench.model, name, writers, bench.adapter, units[-UNITS:], settings, bench.generator)
        switch.set(divider(inputs[here], inputs[~here]), constant_reader(inputs[here]), *OPEN)
        switch.write()
        switch.open(torch.zeros(1))
        gate: Any = switch.down
        read = torch.zeros(len(gate.columns[bench.adapter]))
        read[-UNITS:] = switch.read.detach().cpu()
        stream = torch.cat(stream_behind(bench.model, bench.stack[layer], told[:16], bench.pad))
        free.append(FreeColumns(gate.unierase_B[bench.adapter], read, float(stream.square().mean().sqrt())))
    return free


def divider(here: torch.Tensor, elsewhere: torch.Tensor) -> torch.Tensor:
    """A row `(d,)` that answers about 1 to some inputs of an MLP, and about -1 to others, `(n, d)` each."""
    here, elsewhere = here.double(), elsewhere.double()
    moment = here.T @ here / len(here) + elsewhere.T @ elsewhere / len(elsewhere)
    moment += 1e-4 * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return torch.linalg.solve(moment, here.mean(dim=0) - elsewhere.mean(dim=0)).float()
