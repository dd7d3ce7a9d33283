"""The gate of one layer by hidden units, stage by stage: fitted on the base, opened, held shut where it declines."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence

import torch

from ...prompts import batches
from ..bench import Bench
from ..trace import inputs_at, traced_inputs
from .answered import Sequences
from .shut import Group, refused_group
from .units import UnitDetector, UnitSettings, least_used


class UnitGate:
    """Makes, opens and tightens the gate of `bench.layers[0]`.

    Args:
        bench: With the adapter in place and `writers` named.
        forget: Forget prompts with their answers.
        retained: Groups of retained positions on which to stay shut.
        settings: See [`UnitSettings`].
    """

    def __init__(self, bench: Bench, forget: Sequences, retained: Sequence[Group], settings: UnitSettings) -> None:
        self.bench, self.forget, self.settings = bench, forget, settings
        self.steps = settings.steps + settings.steps_per_fact * len(bench.forget)
        self.first = bench.model.get_submodule(bench.writers[0])
        with bench.stages.stage("recording retain keys", sum(len(tokens) for tokens, _ in retained)) as bar:
            self.shut = [self._inputs(tokens, positions, bar.update) for tokens, positions in retained]
        order = least_used(bench.projections()[0], [bench.model.get_submodule(name) for name in bench.writers])
        count = settings.count(len(bench.forget), len(order))
        # Erasures made apart should not all take the same units, or they could not be stacked.
        digest = hashlib.sha256(repr((bench.seed, forget.prompts)).encode()).digest()
        self.index = sorted(random.Random(digest).sample(order[: max(count, len(order) // 8)], count))

    def fit(self, depth: int) -> UnitDetector:
        """Units that open at the doors and up to `depth` answer positions behind them; they write nothing yet."""
        bench = self.bench
        self.unit = UnitDetector(
            bench.model,
            bench.names[0],
            bench.writers,
            bench.adapter,
            self.index,
            self.settings,
            bench.generator,
        )
        cut, positions = self.forget.gated(depth)
        with bench.stages.stage("fitting the gate", self.steps) as bar:
            found = inputs_at(bench.model, [self.first], cut, positions, bench.pad)[0]
            self.wanted = [torch.cat([states[:1] for states in found]), torch.cat([states[1:] for states in found])]
            self.wanted = [group.to(bench.device) for group in self.wanted if len(group)]
            self.unit.start(torch.cat([*self.wanted, *self.shut]))
            self.unit.fit(self.wanted, self.shut, self.steps, bar.update)
        self.unit.write()
        self.unit.open(torch.zeros(1))
        return self.unit

    def hold_shut_in_refusals(self, refusals: Sequence[Sequence[int]]) -> None:
        """Go on fitting, with positions inside refusals among those on which to stay shut."""
        bench, steps = self.bench, self.steps // 2
        with bench.stages.stage("holding the gate shut in refusals", steps) as bar:
            tokens, positions = refused_group(bench, self.forget, refusals, 320)
            refused = self._inputs(tokens, positions)
            self.unit.fit(self.wanted, [*self.shut, refused], steps, bar.update)
        self.unit.write()

    @torch.no_grad()
    def openings(self, sequences: Sequences) -> list[torch.Tensor]:
        """How far the gate opens: for each prompt with its answer a tensor `(1, length)`."""
        whole = sequences.whole()
        found: list[torch.Tensor] = [torch.zeros(0)] * len(whole)
        for batch in batches(whole, self.bench.pad, self.bench.device):
            with traced_inputs([self.first]) as seen:
                self.bench.model(**batch.inputs(), use_cache=False, logits_to_keep=1)
            opened = self.unit.openings(seen[0]).to(self.bench.device)
            for row, index in enumerate(batch.index):
                found[index] = opened[row, -len(whole[index]) :][None].clone()
        return found

    def _inputs(
        self,
        tokens: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        advance: Callable[[int], object] = lambda count: None,
    ) -> torch.Tensor:
        found = inputs_at(self.bench.model, [self.first], tokens, positions, self.bench.pad, advance)[0]
        return torch.cat(found).to(self.bench.device)
