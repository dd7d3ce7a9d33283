"""The second half of a gate: two hidden units of a later MLP, which make a clean switch of what the first half says.

What the units of the first MLP answer varies: above 0 where the gate shall open and below elsewhere, but 0.8 here and
0.2 there. They do not write the steer vector, they write a *flag*: a direction of the residual stream in which the
base hardly moves. Two units of a later MLP read the flag's size and answer 0 below one threshold and 1 above another,
as a ramp is the difference of two hinges. The steer vector is added behind these. A detector that is half open then
does nothing at all, and one that is open enough opens the gate fully. No row reads the same at every position, so the
thresholds lie near 0, where they need no constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch

from .units import UnitDetector, cut_down

UNITS = 2
BLIND = 1e3  # weight of what is not to be read
FLAT = 0.1  # how far its ends may be from flat, beside its height
STEEP = 12.0  # pre-activation of a unit per unit of flag, so that smooth activations are close to a hinge


def flag_reader(base: torch.Tensor, shift: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, float]:
    """What reads a flag off an MLP's input and nothing else.

    The least-variance reader that answers 1 to the flag and 0 to others: `w = S^-1 m / (m' S^-1 m)`.

    Args:
        base: Inputs of the MLP on the base, `(n, d)`; `S` is their second moment.
        shift: What a flag of size 1 adds to them, `(d,)`: `m`.
        others: What the flags of other erasures would add, `(slots, d)`.

    Returns:
        `w (d,)`, and the standard deviation of what it reads where there is no flag.
    """
    base, shift = base.double(), shift.double()
    moment = base.T @ base / len(base)
    solved = torch.linalg.solve(moment + _ridge(moment, 1e-4) + blind(moment, others), shift)
    power = shift @ solved
    return (solved / power).float(), float(power.rsqrt())


def constant_reader(*groups: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
    """What answers 1 to these inputs of an MLP, groups `(n, d)` of the same weight, as well as a row `(d,)` can, and 0
    to `others (slots, d)`.
    """
    inputs = torch.cat([group.double() / len(group) ** 0.5 for group in groups])
    mean = torch.stack([group.double().mean(dim=0) for group in groups]).sum(dim=0)
    moment = inputs.T @ inputs
    return torch.linalg.solve(moment + _ridge(moment, 1e-3) + blind(moment, others), mean).float()


def _ridge(moment: torch.Tensor, share: float) -> torch.Tensor:
    return share * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def blind(moment: torch.Tensor, others: torch.Tensor | None) -> torch.Tensor | float:
    """Added to a moment `(d, d)` it makes what is solved with it answer 0 to directions `(n, d)`."""
    if others is None or not len(others):
        return 0.0
    units = torch.nn.functional.normalize(others.to(moment), dim=1)
    return BLIND * moment.diagonal().mean() * (units.T @ units)


class Comparator(UnitDetector):
    """Two units that turn a flag into an opening of 0 or 1; `write` and `open` are those of [`UnitDetector`]."""

    def set(self, reader: torch.Tensor, one: torch.Tensor, low: float, high: float) -> None:
        """Set the units: shut where `reader` answers less than `low`, fully open above `high`.

        Args:
            reader: What answers the size of the flag, `(d,)`.
            one: What answers 1 to every input, `(d,)`.
            low: Threshold.
            high: Threshold.
        """
        self.space = torch.stack([reader, one], dim=1)
        self.small, ramp = _two_hinges(self.mlp, self.names, self.reader, self.index, low, high, reader)
        self.read = torch.nn.Parameter((torch.tensor([1.0, -1.0]) / ramp[1].cpu()).to(reader))
        self.read.requires_grad_(False)


def can_switch(model: Any, down: str, writers: Sequence[str]) -> bool:
    """Whether two hidden units of an MLP make a ramp that is flat at both ends.

    They do with an activation that comes close to a hinge, as ReLU, GELU and SiLU do. The difference of two squared
    hinges has no upper end, and that of two units that saturate is 0 there.

    Args:
        model: The base.
        down: Name of the MLP's down-projection.
        writers: Names of the projections into its hidden units.
    """
    parent, _, reader = down.rpartition(".")
    names = [name.rpartition(".")[2] for name in writers]
    like = model.get_submodule(writers[0]).weight.detach().float()
    _, (below, above, far) = _two_hinges(model.get_submodule(parent), names, reader, range(UNITS), 0.0, 0.1, like)
    return bool(above > 0 and max((far - above).abs(), below.abs()) <= FLAT * above)


def _two_hinges(
    mlp: Any, names: Sequence[str], reader: str, index: Sequence[int], low: float, high: float, like: torch.Tensor
) -> tuple[Any, torch.Tensor]:
    """The MLP of two units whose difference is a ramp from `low` to `high`, of inputs `(..., 2)`: a size and a 1.

    And how high the ramp is a little below its lower end, a little above its upper one, and far above, `(3,)`.
    """
    steep = STEEP / (high - low)
    hinges = torch.tensor([[steep, -steep * low], [steep, -steep * high]])
    found: list[tuple[float, Any, torch.Tensor]] = []
    for order in permutations(range(max(len(names), 1))):
        small = _small(mlp, names, reader, index, order, hinges)
        answers = small(torch.tensor([[low - 0.1, 1.0], [high + 0.1, 1.0], [high + 1.0, 1.0]]).to(like))
        ramp = answers[:, 0] - answers[:, 1]
        # The activation belongs to the projection with which the ramp comes out flat at both ends.
        flat = float(ramp[1]) - float((ramp[2] - ramp[1]).abs()) - float(ramp[0].abs())
        found.append((flat, small, ramp))
    _, small, ramp = max(found, key=lambda each: each[0])
    return small, ramp


def _small(
    mlp: Any, names: Sequence[str], reader: str, index: Sequence[int], order: Sequence[int], hinges: torch.Tensor
) -> Any:
    """The MLP of two units whose projection `order[0]` holds the hinges; what the others write is 1."""
    small = cut_down(mlp, names, reader, index, 2)
    for role, number in enumerate(order):
        linear = small.get_submodule(names[number])
        with torch.no_grad():
            linear.weight.zero_()
            linear.weight[:, 1] = 1.0
            if role == 0:
                linear.weight[:UNITS] = hinges.to(linear.weight)
            if linear.bias is not None:
                linear.weight[:, 1] -= linear.bias
        linear.requires_grad_(False)
    return small
