"""Detectors with a threshold: hidden units of one MLP, among those of the smallest weights, given new ones.

A linear row on the keys leaks on everything a little, and a leak has to be outvoted at every position. A hidden unit
passes through the MLP's own activation, so it is silent below its threshold; a few dozen of them tell apart what no row
can (`docs/recipe.md` has the figures). The edit stays of low rank and mergeable: as many rows of the projections into
the MLP as there are units, and as many columns of the down-projection.

What goes into an MLP does not depend on whether its own gate is open, at this position or at any before it, so how far
the detectors open is known exactly from the base. What they open is the comparator's affair.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.functional import relu, softplus
from transformers.pytorch_utils import Conv1D

from ...tuner.structure import projection_shape
from ...tuner.swap import is_plain
from ..bounds import check_at_least, check_positive
from ..schedule import one_cycle
from .steer import SteerSettings

DRAWN_WANTED, DRAWN_SHUT = 512, 4096  # positions in one step: of each group to open on, of all to stay shut on


@dataclass(frozen=True)
class UnitSettings:
    """How the units are fitted.

    Attributes:
        narrowest: Width of the narrowest MLP whose units are used. On the boxed model, 384 wide, an everyday answer
            changed with units that rows on the keys leave alone.
        least: Smallest number of units.
        per_root: Units beyond that grow with the square root of the number of facts, times this.
        wordings: In how many wordings the units meet each forget question, of prompt formats that have several: system
            prompts.
        steps: Gradient steps.
        steps_per_fact: More of them for every fact.
        learning_rate: AdamW's highest, on whitened inputs.
        noise: Standard deviation of what is added to the whitened inputs: the margin by which a position has to be
            told from every other one. Without it units learn the retained positions by heart.
        shut: Weight of each group of positions on which the units must stay shut.
        flag_noise: Size of a flag, in standard deviations of what its reader reads where there is none, the other way
            round: 0.15 makes a flag nearly 7 of them large.
        lowest: Lowest threshold: what the units must answer for the gate to open. It is higher where too many held-out
            questions, or refusals, would open it, but not so high that it would stay shut at more of the forget doors
            than `missed`.
        missed: Share of the forget doors that may be given up for that.
        ramp: The gate is shut this far below the threshold and open this far above.
        declined_per_fact: The weight `declined` of the steer fit is this for each fact, and at least its own: many
            forget prompts would lose against the refusals that are taught behind them.
        steer: How the steer vector is fitted behind a comparator: hardly anything leaks through it.
    """

    narrowest: int = 1024
    least: int = 8
    per_root: float = 6.4
    wordings: int = 4
    steps: int = 500
    steps_per_fact: int = 3
    learning_rate: float = 0.01
    noise: float = 0.7
    shut: float = 10.0
    flag_noise: float = 0.15
    lowest: float = -0.1
    missed: float = 0.05
    ramp: float = 0.05
    declined_per_fact: float = 0.01
    steer: SteerSettings = field(
        default_factory=lambda: SteerSettings(
            steps=100,
            learning_rate=0.02,
            refusal=4.0,
            leak=0.15,
            forget_gain=(0.9, 1.1),
            retain_gain=(1.0, 1.1),
            retain_every=6,
        )
    )

    def __post_init__(self) -> None:
        check_at_least(0, self, "narrowest", "per_root", "steps_per_fact", "noise", "missed")
        check_at_least(1, self, "least", "wordings")
        check_at_least(2, self, "steps")  # half as many are gone on with
        check_positive(self, "learning_rate", "flag_noise", "ramp")

    def steering(self, facts: int) -> SteerSettings:
        """Settings of the steer fit for this many facts."""
        return replace(self.steer, declined=max(self.steer.declined, self.declined_per_fact * facts))

    def count(self, facts: int, width: int) -> int:
        """Units for this many facts in an MLP of this width: at most one in eight."""
        return max(1, min(width // 8, max(self.least, round(self.per_root * facts**0.5))))


def find_writers(model: Any, down: str) -> list[str]:
    """Names of the projections that write the MLP's hidden units, whose units can be given new weights.

    They are found by structure and then put to the test: the MLP cut down to a few units has to give what the whole one
    gives. Empty where it does not, where the MLP has a form of its own, or where it is quantised.
    """
    parent, _, reader = down.rpartition(".")
    mlp = model.get_submodule(parent)
    width, outputs = projection_shape(model.get_submodule(down)) or (0, 0)
    shapes = {name: projection_shape(child) for name, child in mlp.named_children() if name != reader}
    names = [name for name, shape in shapes.items() if shape in ((outputs, width), (outputs, 2 * width))]
    weights = [mlp.get_submodule(name).weight for name in (*names, reader)]
    if not names or not all(map(is_plain, weights)):
        return []
    probe = torch.randn(4, outputs, generator=torch.Generator().manual_seed(0)).to(weights[0])
    index = list(range(0, width, max(1, width // 7)))
    seen: list[torch.Tensor] = []
    handle = mlp.get_submodule(reader).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            mlp(probe)
            small = cut_down(mlp, names, reader, index)(probe)
    except (TypeError, RuntimeError, ValueError, AttributeError, IndexError):
        return []  # not an MLP by itself
    finally:
        handle.remove()
    same = len(seen) == 1 and small.shape == (4, len(index))
    same = same and torch.allclose(small.float(), seen[0][:, index].float(), rtol=1e-2, atol=1e-3)
    return [f"{parent}.{name}" for name in names] if same else []


def cut_down(mlp: Any, writers: Sequence[str], reader: str, index: Sequence[int], inputs: int | None = None) -> Any:
    """The MLP with the hidden units `index` alone, giving their values: `(..., inputs)` to `(..., len(index))`.

    Args:
        mlp: An MLP; it is not changed.
        writers: Names of its projections into the hidden units.
        reader: Name of its down-projection.
        index: The units.
        inputs: Width of the inputs where it is not the MLP's own; the weights are zero then.
    """
    small = copy.copy(mlp)
    parts: dict[str, Any] = dict(mlp.named_children())
    for name in writers:
        whole = parts[name].get_base_layer() if isinstance(parts[name], BaseTunerLayer) else parts[name]
        rows = unit_rows(whole, mlp.get_submodule(reader), index)
        weight = (whole.weight.T if isinstance(whole, Conv1D) else whole.weight).detach()[rows]
        width = weight.shape[1] if inputs is None else inputs
        linear = nn.Linear(width, len(rows), bias=whole.bias is not None, device="meta")  # draws no random numbers
        linear.weight = nn.Parameter(weight.clone() if inputs is None else weight.new_zeros(len(rows), inputs).float())
        if whole.bias is not None:
            linear.bias = nn.Parameter(whole.bias.detach()[rows].to(linear.weight), requires_grad=False)
        parts[name] = linear
    parts[reader] = nn.Identity()
    small.__dict__["_modules"] = parts
    return small


def unit_rows(writer: Any, reader: Any, index: Sequence[int]) -> list[int]:
    """Rows of a projection that write the units: one a unit, or two where it writes gate and value side by side."""
    outputs, width = projection_shape(writer)[1], projection_shape(reader)[0]  # type: ignore[index]
    return [part * width + unit for part in range(outputs // width) for unit in index]


class UnitDetector:
    """Fits units that open at some positions and stay shut at others, and writes them into the gates.

    Args:
        model: The model, its adapter in place.
        down: Name of the edited down-projection.
        writers: Names of the projections into its hidden units.
        adapter: Name of the adapter.
        index: The units.
        settings: See [`UnitSettings`].
        generator: Source of randomness, on the CPU.
    """

    def __init__(
        self,
        model: Any,
        down: str,
        writers: Sequence[str],
        adapter: str,
        index: Sequence[int],
        settings: UnitSettings,
        generator: torch.Generator,
    ) -> None:
        parent, _, reader = down.rpartition(".")
        self.mlp, self.down = model.get_submodule(parent), model.get_submodule(down)
        self.writers = [model.get_submodule(name) for name in writers]
        self.names = [name.rpartition(".")[2] for name in writers]
        self.reader, self.adapter, self.index = reader, adapter, list(index)
        self.settings, self.generator = settings, generator
        self.space = torch.zeros(0, 0)
        self.small: Any = nn.Module()
        self.read = nn.Parameter(torch.zeros(len(self.index), device=self.down.unierase_B[adapter].device))

    def start(self, inputs: torch.Tensor) -> None:
        """Learn the whitening from MLP inputs `(n, d)` and start the units at random."""
        inputs = inputs.float()
        self.space = whitening(inputs)
        wide = self.space.shape[1]
        self.small = cut_down(self.mlp, self.names, self.reader, self.index, wide).to(inputs.device)
        with torch.no_grad():
            for number, name in enumerate(self.names):
                weight = self.small.get_submodule(name).weight
                weight.copy_(torch.randn(weight.shape, generator=self.generator) / wide**0.5)
                weight[:, -1] = 1.0 if number else -0.5  # shut at first; what it is multiplied with is 1
                weight[len(self.index) :, -1] = 1.0
                weight[0, :-1], weight[0, -1] = 0.0, 1.0
        read = torch.full((len(self.index),), 0.3, device=inputs.device)
        read[0] = -0.6  # the first unit holds the others down
        self.read = nn.Parameter(read)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a fit changes."""
        weights = {name: self.small.get_submodule(name).weight for name in self.names}
        return {"space": self.space, "read": self.read, **weights}

    def set_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Be as `state` says."""
        self.space, read = (state[name].to(self.read.device) for name in ("space", "read"))
        self.small = cut_down(self.mlp, self.names, self.reader, self.index, self.space.shape[1]).to(self.space.device)
        for name in self.names:
            linear = self.small.get_submodule(name).requires_grad_(False)
            linear.weight.copy_(state[name])
        self.read = nn.Parameter(read, requires_grad=False)

    def openings(self, inputs: torch.Tensor) -> torch.Tensor:
        """How far the gate opens on MLP inputs `(..., d)`: `(...)`."""
        with torch.no_grad():
            return self.small(inputs.float() @ self.space) @ self.read

    def fit(
        self,
        wanted: Sequence[torch.Tensor],
        shut: Sequence[torch.Tensor],
        steps: int,
        advance: Callable[[int], object] = lambda count: None,
    ) -> float:
        """Fit from where they stand.

        Args:
            wanted: MLP inputs at which to open, in groups of equal weight, `(n, d)` each.
            shut: Those at which to stay shut, likewise.
            steps: Gradient steps.
            advance: Called with 1 after each.

        Returns:
            The loss at the end.
        """
        wanted, shut = ([group.float() @ self.space for group in groups] for groups in (wanted, shut))
        weights = [parameter for parameter in self.small.parameters() if parameter.shape[-1:] == self.space.shape[1:]]
        rate = self.settings.learning_rate
        for parameter in (*self.small.parameters(), self.read):
            parameter.requires_grad_(False)
        for parameter in (*weights, self.read):
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW([*weights, self.read], lr=rate, weight_decay=0.01)
        schedule = one_cycle(optimizer, rate, steps, rising=0.3)
        loss = torch.zeros(())
        for _ in range(steps):
            loss = torch.zeros((), device=self.read.device)
            for group in wanted:
                opened = self._drawn(group, DRAWN_WANTED)
                loss = loss + softplus(-4 * (opened - 0.2)).mean() + 0.1 * relu(opened - 1.0).square().mean()
            for group in shut:
                opened = self._drawn(group, DRAWN_SHUT // len(shut))
                far = 0.1 * relu((opened + 0.5).abs() - 0.3).square().mean()
                loss = loss + self.settings.shut * softplus(6 * (opened + 0.2)).mean() + far
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            advance(1)
        for parameter in (*weights, self.read):
            parameter.requires_grad_(False)
            parameter.grad = None
        return float(loss.detach())

    def _drawn(self, group: torch.Tensor, count: int) -> torch.Tensor:
        chosen = torch.randint(len(group), (min(count, len(group)),), generator=self.generator).to(group.device)
        drawn = group[chosen]
        noise = torch.randn(drawn.shape, generator=self.generator).to(drawn) * self.settings.noise
        return self.small(drawn + noise) @ self.read

    @torch.no_grad()
    def write(self) -> None:
        """Write the units into the adapter; `open` says what they do."""
        for name, gate in zip(self.names, self.writers, strict=True):
            base = gate.get_base_layer()
            rows = unit_rows(base, self.down.get_base_layer(), self.index)
            old = (base.weight.T if isinstance(base, Conv1D) else base.weight)[rows].float()
            new = self.small.get_submodule(name).weight @ self.space.T
            place = [gate.rows[self.adapter].index(row) for row in rows]
            gate.unierase_A[self.adapter].data[place] = new - old

    @torch.no_grad()
    def open(self, steer: torch.Tensor) -> None:
        """Add this vector `(d,)` wherever the gate opens. What the units wrote before they write no more."""
        base = self.down.get_base_layer()
        old = (base.weight.T if isinstance(base, Conv1D) else base.weight)[:, self.index].float()
        place = [self.down.columns[self.adapter].index(unit) for unit in self.index]
        self.down.unierase_B[self.adapter].data[:, place] = steer.to(old)[..., None] * self.read - old


def whitening(inputs: torch.Tensor, floor: float = 0.1) -> torch.Tensor:
    """A matrix `(d, d + 1)` that maps inputs to whitened ones and, last, to a feature that is all but 1 everywhere.

    Directions of small variance are amplified less than others, as if `floor` times the mean variance were added.

    Args:
        inputs: MLP inputs, `(n, d)` in fp32.
        floor: See above.
    """
    inputs = inputs.double()
    mean, moment = inputs.mean(dim=0), inputs.T @ inputs / len(inputs)
    steady = moment + 1e-3 * moment.diagonal().mean() * torch.eye(len(mean), dtype=moment.dtype, device=moment.device)
    one = torch.linalg.solve(steady, mean)
    centred = inputs - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(inputs))
    scaled = vectors * (values.clamp(min=0) + floor * values.mean()).rsqrt()
    return torch.cat([scaled - one[:, None] * (mean @ scaled), one[:, None]], dim=1).float()


@torch.no_grad()
def least_used(down: Any, writers: Sequence[Any]) -> list[int]:
    """Hidden units in the order of the product of their weights' norms, the least first.

    What a unit does on some texts is no measure: one that is silent on them may hold the one fact that nobody asked
    about. A unit of small weights can do little on any.

    Args:
        down: The down-projection.
        writers: The projections into the units.
    """
    size = down.weight.float().norm(dim=1 if isinstance(down, Conv1D) else 0)
    for writer in writers:
        norms = writer.weight.float().norm(dim=0 if isinstance(writer, Conv1D) else 1)
        for part in norms.view(-1, len(size)):
            size = size * part.to(size)
    return size.argsort().tolist()
