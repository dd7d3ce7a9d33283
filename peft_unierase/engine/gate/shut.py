"""The keys on which gates must stay shut: those of what is retained, and those of the refusals themselves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, islice
from operator import itemgetter

import torch

from ...prompts import batches
from ..bench import Bench
from ..trace import traced_inputs
from .answered import Sequences
from .detector import ShutKeys
from .gates import in_blocks

Group = tuple[list[list[int]], list[list[int]]]  # token ids, and the positions in each that count


def retained_groups(asked: Sequences, answered: Sequences, inside: bool) -> list[Group]:
    """The doors of retained questions, positions of questions and answers, and perhaps those of answers once more.

    Doors and answers are what is most alike to what is gated; among all others they would count for little.

    Args:
        asked: Retained facts in every format.
        answered: The same in one format by turns: what lies elsewhere is alike enough.
        inside: Whether positions inside answers are a group of their own.
    """
    whole, doors = answered.whole(), answered.doors()
    # Neighbouring positions are alike too: every other one of twice as many facts is worth more than all of them.
    elsewhere = [
        [p for p in range(number % 2, len(tokens), 2) if p != door]
        for number, (tokens, door) in enumerate(zip(whole, doors, strict=True))
    ]
    groups = [(asked.prompts, [[door] for door in asked.doors()]), (whole, elsewhere)]
    within = [list(range(door + 1, len(tokens) - 1)) for tokens, door in zip(whole, doors, strict=True)]
    return [*groups, (whole, within)] if inside and any(within) else groups  # answers of one token have no inside


def in_runs(groups: Sequence[Group]) -> list[tuple[list[list[int]], list[list[list[int]]]]]:
    """Neighbouring groups of the same sequences side by side, since these have to be run only once."""
    same = groupby(groups, itemgetter(0))
    return [(sequences, [positions for _, positions in members]) for sequences, members in same]


def refused_group(bench: Bench, forget: Sequences, refusals: Sequence[Sequence[int]], count: int = 160) -> Group:
    """Forget prompts, now and then with the beginning of the answer, and a refusal, now and then without its [UNL].

    The gates have opened before it and must not do so again within it.
    """
    sequences, positions = [], []
    for number in range(count):
        index = number * len(forget) // count if len(forget) > count else number % len(forget)
        answer = forget.answers[index]
        given = answer[: int(torch.randint(len(answer), (1,), generator=bench.generator))] if number % 2 else []
        token = [] if number // 2 % 2 else [bench.spare.token_id]
        start = [*forget.prompts[index], *given]
        sequences.append([*start, *token, *refusals[number // 4 % len(refusals)]])
        positions.append(list(range(len(start), len(sequences[-1]))))
    return sequences, positions


@torch.no_grad()
def shut_keys(bench: Bench, name: str, groups: Sequence[Group], widest: int) -> list[ShutKeys]:
    """The keys of groups of positions, each group of the same weight, for each block of layers: the stage `name`.

    Gates must not be open while they are taken: they are the base's, as the forget keys are.
    """
    projections = bench.projections()
    blocks = [len(block) for block in in_blocks(bench.gates(), widest)]
    widths = iter(projection.in_features for projection in projections)
    shut = [ShutKeys(sum(islice(widths, count))) for count in blocks]
    with bench.stages.stage(name, sum(len(sequence) for sequences, _ in groups for sequence in sequences)) as bar:
        for sequences, positions in groups:
            weight = 1 / sum(map(len, positions))
            for batch in batches(sequences, bench.pad, bench.device):
                with traced_inputs(projections, len(batch.index)) as seen:
                    bench.model(**batch.inputs(), use_cache=False, logits_to_keep=1)
                wanted = torch.zeros_like(batch.mask, dtype=torch.bool)
                for row, index in enumerate(batch.index):
                    shift = batch.ids.shape[1] - len(sequences[index])
                    wanted[row, [shift + position for position in positions[index]]] = True
                keys = iter(states[wanted.to(states.device)].float().to(bench.device) for states in seen)
                for block, count in zip(shut, blocks, strict=True):
                    block.add(torch.cat(list(islice(keys, count)), dim=1), weight)
                bar.update(int(batch.mask.sum()))
    return shut
