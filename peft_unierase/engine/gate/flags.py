"""Flags: directions of the residual stream that the erasures of one base share out among themselves.

What an erasure's detectors say is written into the stream and read by its comparator. Erasures that were made apart do
not know of each other, and a comparator that reads another's flag opens where it should not: with three of 40 facts on
the TOFU testbed, whose flags were drawn from sixteen quiet directions, more than half of what was to stay was lost. So
the directions follow from the base alone, each erasure takes one of them, and its readers are made blind to all others.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from ...prompts import pad_left
from ...tuner.structure import possible_down_projections
from ..bench import Bench
from ..trace import bent_output, traced_inputs

QUIET = 4  # one direction in so many is for flags
BEGINNING = 48  # tokens of a text on which the flags of others are looked at
TEXTS = 4  # for each of them
TOGETHER = 16  # of them


@dataclass(frozen=True)
class Flags:
    """The directions, orthonormal, `(d, d // QUIET)`, and which of them this erasure takes."""

    slots: torch.Tensor
    own: int

    @property
    def flag(self) -> torch.Tensor:
        """This erasure's direction, `(d,)`."""
        return self.slots[:, self.own]

    @property
    def others(self) -> torch.Tensor:
        """All other directions, `(n, d)`."""
        return torch.cat([self.slots[:, : self.own], self.slots[:, self.own + 1 :]], dim=1).T


def take_flag(bench: Bench, seed: bytes, taken: Collection[int]) -> Flags:
    """Draw one of the directions.

    Args:
        bench: With the layers to edit.
        seed: What tells this erasure from others.
        taken: Those that erasures in the model have.

    Raises:
        ValueError: All are taken.
    """
    # Layers with experts, say, have none; where all are such, what is edited is all that there is to go by.
    below = [names for names in possible_down_projections(bench.model)[: bench.layers[0] + 1] if len(names) == 1]
    names = [name for (name,) in below] or bench.names[:1]
    slots = flag_slots([_weight(bench.model.get_submodule(name)) for name in names]).to(bench.device)
    free = [slot for slot in range(slots.shape[1]) if slot not in taken]
    if not free:
        raise ValueError(f"the model carries {len(taken)} erasures and has no direction left to flag one more with")
    return Flags(slots, random.Random(seed).choice(free))


def flag_slots(downs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Directions for flags, orthonormal, `(d, d // QUIET)`: those that the base's MLPs write least.

    Args:
        downs: Weights of the down-projections up to the detectors' layer, `(d, d_ff)` each.
    """
    width = downs[0].shape[0]
    written = downs[0].new_zeros(width, width, dtype=torch.float64)
    for down in downs:  # one after another, since each takes d x d
        wide = down.to(written)  # layers may lie on several devices
        written += wide @ wide.T
    return torch.linalg.eigh(written)[1][:, : max(1, len(written) // QUIET)].float()


@torch.no_grad()
def added_by(
    bench: Bench, module: torch.nn.Module, vectors: torch.Tensor, tokens: Sequence[Sequence[int]]
) -> torch.Tensor:
    """What `vectors (n, d)` in the stream behind the detectors add to the input of a later MLP, `(n, d)`.

    Half of the difference to their opposites, on the beginnings of `TEXTS` texts each: whatever is added makes the norm
    before the MLP shrink all else, which is no matter of direction.
    """
    found = []
    for start in range(0, len(vectors), TOGETHER):
        part = vectors[start : start + TOGETHER].repeat_interleave(TEXTS, dim=0)
        first = start * TEXTS
        texts = [list(tokens[(first + row) % len(tokens)][:BEGINNING]) for row in range(len(part))]
        batch = pad_left(texts, bench.pad, bench.device, list(range(len(texts))))
        means = []
        for sign in (1, -1):
            bend = partial(_bent, by=sign * part[:, None])
            with bent_output(bench.stack[bench.layers[0]], bend), traced_inputs([module], len(part)) as seen:
                bench.model(**batch.inputs(), use_cache=False, logits_to_keep=1)
            means.append((seen[0].float() * batch.mask[..., None]).sum(dim=1) / batch.mask.sum(dim=1)[:, None])
        found.append(((means[0] - means[1]) / 2).view(-1, TEXTS, means[0].shape[1]).mean(dim=1))
    return torch.cat(found)


def _bent(stream: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    return stream + by.to(stream)


def _weight(layer: Any) -> torch.Tensor:
    base = getattr(layer, "base_layer", layer)
    return base.weight.detach().T if isinstance(base, Conv1D) else base.weight.detach()
