"""The gate by hidden units, stage by stage: fitted on the base, compared, opened, held shut where it declines."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from ...prompts import batches
from ...tuner import UniEraseConfig
from ...tuner.structure import projection_shape
from ..bench import Bench
from ..trace import inputs_at, stream_behind, traced_inputs
from .answered import Sequences
from .beside import Beside
from .comparator import UNITS, Comparator, constant_reader, flag_reader
from .flags import Flags, added_by, take_flag
from .shut import Group, in_runs, refused_group
from .units import UnitDetector, UnitSettings, least_used, unit_rows

SOME, FEW = 160, 16  # sequences on which a flag is measured, and how large the stream is
SPARE = 64  # units to move to beside other erasures
DOORS = 640  # that the threshold is chosen by, at the most


def take_units(bench: Bench, settings: UnitSettings) -> list[list[int]]:
    """For each layer its units: detectors or a comparator, and behind them those that [UNL] opens.

    Erasures made apart should not all take the same units, or they could not be stacked.
    """
    taken = []
    for number, writers in enumerate(bench.writers):
        down = bench.projections()[number]
        width = projection_shape(down)[0]  # type: ignore[index]
        count = UNITS if number else settings.count(bench.facts, width)
        used: set[int] = set()
        order = least_used(down, [bench.model.get_submodule(name) for name in writers])
        order = [unit for unit in order if unit not in used]
        if len(order) < count + UNITS:
            raise ValueError(
                f"the MLP of layer {bench.layers[number]} has {len(order)} hidden units left, {count + UNITS} are "
                f"needed and earlier erasures have the other {len(used)}; name two other layers with `layers` (on the "
                "command line `--layers`), or ask for gates without units, `GateSettings(units=None)`"
            )
        drawn = random.Random(_digest(bench)).sample(order[: max(count, width // 8) + UNITS], count + UNITS)
        taken.append(sorted(drawn[UNITS:]) + sorted(drawn[:UNITS]))
    return taken


def edited_features(bench: Bench) -> dict[str, Any]:
    """For `UniEraseConfig` the edited rows and columns: one a unit, two where gate and value are written together.

    And units that these can move to: the least used of those left, twice as many and `SPARE` at the least.
    """
    find = bench.model.get_submodule
    rows, columns, spare = {}, {}, {}
    for down, into, units in zip(bench.names, bench.writers, bench.units, strict=False):
        rows.update({name: unit_rows(find(name), find(down), units) for name in into})
        columns[down] = units
        used = set(units)
        order = least_used(find(down), [find(name) for name in into])
        spare[down] = [unit for unit in order if unit not in used][: max(SPARE, 2 * len(units))]
    return {"rows": rows, "columns": columns, "spare_units": spare}


def own_flag(bench: Bench, carried: Sequence[UniEraseConfig]) -> Flags:
    """A direction that none of the erasures in the model has."""
    return take_flag(bench, _digest(bench), set())


def _digest(bench: Bench) -> bytes:
    """What tells this erasure from others."""
    return hashlib.sha256(repr((bench.seed, bench.prompts(bench.forget))).encode()).digest()


class UnitGate:
    """Makes, opens and tightens the gate: detectors in `bench.layers[0]`, what they switch in `bench.layers[1]`.

    Args:
        bench: With the adapter in place and `writers` named.
        forget: Forget prompts with their answers.
        retained: Groups of retained positions on which to stay shut.
        settings: See [`UnitSettings`].
    """

    def __init__(self, bench: Bench, forget: Sequences, retained: Sequence[Group], settings: UnitSettings) -> None:
        self.bench, self.forget, self.settings = bench, forget, settings
        self.steps = settings.steps + settings.steps_per_fact * bench.facts
        self.first, self.second = (bench.model.get_submodule(names[0]) for names in bench.writers)
        self.retained = retained
        self.flags: Flags = bench.flags

    @cached_property
    def shut(self) -> list[torch.Tensor]:
        """Inputs of the MLP on which to stay shut, recorded when they are first needed."""
        runs = in_runs(self.retained)
        tokens = sum(len(sequence) for sequences, _ in runs for sequence in sequences)
        with self.bench.stages.stage("recording retain keys", tokens) as bar:
            return [group for run in runs for group in self._inputs_of_groups(*run, bar.update)]

    @cached_property
    def wanted(self) -> list[torch.Tensor]:
        """Inputs on which to open, at the doors and behind them, recorded likewise."""
        found = inputs_at(self.bench.model, [self.first], *self.gated, self.bench.pad)[0]
        groups = torch.cat([states[:1] for states in found]), torch.cat([states[1:] for states in found])
        return [group.to(self.bench.device) for group in groups if len(group)]

    def fit(self, depth: int) -> None:
        """Units that open at the doors and up to `depth` answer positions behind them; they steer nothing yet."""
        bench, settings = self.bench, self.settings
        told = [
            (bench.model, name, writers, bench.adapter, units[:-UNITS], settings, bench.generator)
            for name, writers, units in zip(bench.names, bench.writers, bench.units, strict=True)
        ]
        self.unit, self.comparator = UnitDetector(*told[0]), Comparator(*told[1])
        self.gated, self.some = self.forget.gated(depth), self.forget.some(SOME).gated(depth)

        def work() -> dict[str, Any]:
            shut = self.shut
            with bench.stages.stage("fitting the gate", self.steps, even=False) as bar:
                self.unit.start(torch.cat([*self.wanted, *shut]))
                self.unit.fit(self.wanted, shut, self.steps, bar.update)
                self._flag()
            return self._state()

        self._set_state(bench.once("fitting the gate", work))

    def hold_shut_in_refusals(self, refusals: Sequence[Sequence[int]]) -> None:
        """Go on fitting, with positions inside refusals among those on which to stay shut."""
        bench, steps = self.bench, self.steps // 2
        self.refused = refused_group(bench, self.forget, refusals, 320)

        def work() -> dict[str, Any]:
            shut = self.shut
            with bench.stages.stage("holding the gate shut in refusals", steps, even=False) as bar:
                refused = self._inputs(self.first, *self.refused)
                _ = self._quiet  # in a resumed run too it is to be read with the units of the first fit
                self.unit.fit(self.wanted, [*shut, refused], steps, bar.update)
                self._flag()
            return self._state()

        self._set_state(bench.once("holding the gate shut in refusals", work))

    def _state(self) -> dict[str, Any]:
        """What the stages behind a fit need of it, beside what is in the adapter."""
        flag = {"reader": self.reader, "one": self.one, "others": self.others, "threshold": self.threshold}
        return {**{f"unit.{name}": value for name, value in self.unit.state().items()}, **flag}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        names = [name for name in state if name.startswith("unit.")]
        self.unit.set_state({name.removeprefix("unit."): state[name] for name in names})
        self.reader, self.one, self.others = (state[key].to(self.bench.device) for key in ("reader", "one", "others"))
        self.set_threshold(state["threshold"])

    def choose_threshold(self, held: Sequences, most: float) -> float:
        """Choose it half way between where at most a share `most` of held-out answers or refusals open the gate and
        where the doors still do; these count more if it cannot be both.
        """
        forget = self.forget.some(DOORS)
        everywhere = [list(range(len(whole))) for whole in held.whole()]
        shut = [float(self._highest(*group).quantile(1 - most)) for group in ((held.whole(), everywhere), self.refused)]
        doors = self._highest(forget.prompts, [[door] for door in forget.doors()])
        most_high = float(doors.quantile(self.settings.missed)) - self.settings.ramp
        self.set_threshold(max(min((max(shut) + most_high) / 2, most_high), self.settings.lowest))
        return self.threshold

    def _highest(self, tokens: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> torch.Tensor:
        """The highest answer of the detectors at these positions of each sequence, as the comparator reads it."""
        inputs = inputs_at(self.bench.model, [self.second], tokens, positions, self.bench.pad)[0]
        return torch.stack([(states.to(self.reader) @ self.reader).max() for states in inputs])

    @cached_property
    def _quiet(self) -> tuple[torch.Tensor, float, torch.Tensor, torch.Tensor]:
        """While the units write nothing: a direction `(d,)` and size for a flag, and inputs of the second MLP `(n, d)`.

        These are on some of the forget answers, and on all that has to be told from a flag.
        """
        bench = self.bench
        self.unit.write()
        self.unit.open(torch.zeros(1))
        tokens, positions = self.retained[1]
        tokens, positions = tokens[:SOME], positions[:SOME]
        stream = stream_behind(bench.model, bench.stack[bench.layers[0]], tokens[:FEW], bench.pad)
        size = 0.1 * float(torch.cat(stream).norm(dim=1).mean())
        beside = Beside(bench, tokens, positions)
        self.others = added_by(bench, self.second, self.flags.others * size, tokens)
        before = self._inputs(self.second, *self.some)
        base = torch.cat([self._inputs(self.second, tokens, positions), before, *beside.disturbed(self.second)])
        return self.flags.flag, size, before, base

    @torch.no_grad()
    def _flag(self) -> None:
        """Write the units and a flag as large as the comparator needs to tell it from what the base does there."""
        flag, size, before, base = self._quiet
        self.unit.write()
        opened = self.unit.openings(self._inputs(self.first, *self.some))
        # Where nothing opens, what is held shut tells the flag too: it writes it the other way round.
        heard = opened if float(opened.max()) > 0 else -opened
        if not heard.any():
            raise ValueError(
                f"the detectors in layer {self.bench.layers[0]} answer 0 at every forget position, so there is nothing "
                "to switch by; try another seed, name two other layers with `layers` (on the command line `--layers`), "
                "or ask for gates without units, `GateSettings(units=None)`"
            )
        where = heard >= min(0.2, float(heard.max()))
        for _ in range(2):  # the norm before the MLP makes the second guess a better one
            self.unit.open(flag * size)
            after = self._inputs(self.second, *self.some)
            shift = ((after - before)[where] / opened[where, None]).mean(dim=0)
            self.reader, spread = flag_reader(base, shift, self.others)
            if spread <= self.settings.flag_noise:
                break
            size = size * spread / self.settings.flag_noise
        self.one = constant_reader(after[where], base, others=self.others)
        self.set_threshold(self.settings.lowest)
        self.comparator.open(torch.zeros(1))

    def set_threshold(self, threshold: float) -> None:
        """Switch where the detectors answer this much; half open and open are `ramp` below and above."""
        ramp = self.settings.ramp
        self.threshold = threshold
        self.comparator.set(self.reader, self.one, threshold - ramp, threshold + ramp)
        self.comparator.write()

    def open(self, steer: torch.Tensor) -> None:
        """Add this vector `(d,)` wherever the gate opens."""
        self.comparator.open(steer)

    @torch.no_grad()
    def openings(self, sequences: Sequences) -> list[torch.Tensor]:
        """How far the gate opens: for each prompt with its answer a tensor `(1, length)`."""
        whole = sequences.whole()
        found: list[torch.Tensor] = [torch.zeros(0)] * len(whole)
        for batch in batches(whole, self.bench.pad, self.bench.device):
            with traced_inputs([self.second], len(batch.index)) as seen:
                self.bench.model(**batch.inputs(), use_cache=False, logits_to_keep=1)
            opened = self.comparator.openings(seen[0]).to(self.bench.device)
            for row, index in enumerate(batch.index):
                found[index] = opened[row, -len(whole[index]) :][None].clone()
        return found

    def _inputs(
        self,
        module: torch.nn.Module,
        tokens: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
    ) -> torch.Tensor:
        found = inputs_at(self.bench.model, [module], tokens, positions, self.bench.pad)[0]
        return torch.cat(found).to(self.bench.device)

    def _inputs_of_groups(
        self,
        tokens: Sequence[Sequence[int]],
        groups: Sequence[Sequence[Sequence[int]]],
        advance: Callable[[int], object],
    ) -> list[torch.Tensor]:
        """Inputs of the first MLP at several groups of positions of the same sequences, which run once."""
        sets = list(zip(*groups, strict=True))
        joined = [[position for positions in each for position in positions] for each in sets]
        found = inputs_at(self.bench.model, [self.first], tokens, joined, self.bench.pad, advance)[0]
        parts = [states.split([len(positions) for positions in each]) for states, each in zip(found, sets, strict=True)]
        return [torch.cat(part).to(self.bench.device) for part in zip(*parts, strict=True)]
