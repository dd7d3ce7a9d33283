"""The cost of a whole run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..gate import GateSettings
from ..gate.units import UnitSettings
from ..layers import middle_layers, two_for_units
from . import by_rows, by_units
from .shared import asking, sampling
from .sizes import FP32, Sizes, sizes_of
from .stage import Rates, Stage, measured_rates, with_unit
from .work import Work

BY_UNITS = (
    asking,
    sampling,
    by_units.recording,
    by_units.fitting_gate,
    by_units.fitting_steer,
    by_units.holding_shut,
    by_units.opening,
    by_units.fitting_row,
)
BY_ROWS = (
    asking,
    sampling,
    by_rows.recording,
    by_rows.fitting_steer,
    by_rows.recording_refusals,
    by_rows.editing,
    by_rows.fitting_row,
)


@dataclass(frozen=True)
class CostEstimate:
    """Cost of a run; `str()` of it is a table.

    Attributes:
        sizes: Of the base.
        work: What was asked for.
        stages: In the order of the run.
        rates: What the machine reached in a trial; `None` where there was no model to try.
    """

    sizes: Sizes
    work: Work
    stages: list[Stage] = field(repr=False)
    rates: Rates | None = None

    @property
    def flops(self) -> float:
        """Operations of the whole run."""
        return sum(stage.flops for stage in self.stages)

    @property
    def model_bytes(self) -> int:
        return self.sizes.weights * self.sizes.bytes

    @property
    def peak_bytes(self) -> float:
        """Memory at the worst moment, model included."""
        return self.model_bytes + max(stage.memory for stage in self.stages)

    @property
    def adapter_bytes(self) -> int:
        """What is edited, and two rows of [UNL], in fp32, and of hidden units the base's own weights too.

        Of hidden units the rows that write them and the columns that read them; else a row of A and a column of B for
        each edited layer.
        """
        s, w = self.sizes, self.work
        of_units = by_units.edited(w) * (3 if s.gated else 2) * s.width
        if w.units:
            return FP32 * (of_units + 2 * s.width) + s.bytes * of_units
        return FP32 * (len(w.layers) * (s.mlp + s.width) + 2 * s.width)

    @property
    def seconds(self) -> float | None:
        """Time of the whole run, if there was a model to try."""
        return None if self.rates is None else sum(map(self.rates.seconds, self.stages))

    def record(self) -> dict[str, Any]:
        """The whole as a JSON object of plain values."""
        return {
            "flops": self.flops,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "model_bytes": self.model_bytes,
            "adapter_bytes": self.adapter_bytes,
            "dominant_stage": self.dominant.name,
        }

    @property
    def dominant(self) -> Stage:
        """The stage that takes longest, or most operations where time is not known."""
        return max(self.stages, key=self.rates.seconds if self.rates else lambda stage: stage.flops)

    def __str__(self) -> str:
        rows = [
            (stage.name, with_unit(stage.flops, "FLOP"), with_unit(stage.memory, "B"), self._time(stage))
            for stage in self.stages
        ]
        whole = "" if self.seconds is None else f"{self.seconds:,.0f} s"
        rows.append(("in all", with_unit(self.flops, "FLOP"), with_unit(self.peak_bytes, "B"), whole))
        return "\n".join(
            f"  {name:34s}{flops:>12s}{memory:>10s}{took:>10s}".rstrip() for name, flops, memory, took in rows
        )

    def _time(self, stage: Stage) -> str:
        return "" if self.rates is None else f"{self.rates.seconds(stage):,.0f} s"


def estimate_cost(
    base: Any,
    facts: int,
    *,
    retain: int = 0,
    samples: int | None = None,
    formats: int = 3,
    layers: tuple[int, ...] | None = None,
    units: bool | None = None,
    **work: float,
) -> CostEstimate:
    """What erasing from a base with recipe `gate` will cost.

    Args:
        base: A model, whose machine is tried for a moment to tell seconds too; or its configuration; or a mapping with
            the fields of `Sizes`, of which `heads` may be left out (then 128 wide each), and `kv_heads` and `head_dim`.
        facts: Facts to forget.
        retain: Facts given to be kept.
        samples: Facts from the model itself; `None` takes as many as the recipe does for this many facts.
        formats: Prompt formats; one of them has several wordings.
        layers: Indices of the edited layers, ascending, instead of the rule's.
        units: Whether the gates are hidden units; they take two layers. `None` goes by the width of the MLPs, as the
            recipe does.
        **work: Other fields of `Work`.

    Raises:
        ValueError: A size is missing from `base`.
    """
    sizes = sizes_of(base)
    settings = UnitSettings()
    if layers is None:
        layers = tuple(middle_layers(sizes.layers))
        two = len(layers) > 1
    else:
        two = len(layers) == 2
    if two and (sizes.mlp >= settings.narrowest if units is None else units):
        layers = layers[two_for_units(facts)]
        steps = {"steer_steps": settings.steer.steps, "retain_every": settings.steer.retain_every}
        work = {"units": settings.count(facts, sizes.mlp), "reworded": settings.wordings - 1, **steps, **work}
    samples = GateSettings(samples=samples).sample_count(facts)
    return cost_of(base, Work(facts, retain, samples, formats, tuple(layers), **work))  # type: ignore[arg-type]


def cost_of(base: Any, plan: Work) -> CostEstimate:
    """What it will cost to do what `plan` says with a base as `estimate_cost` takes it."""
    sizes = sizes_of(base)
    stages = [stage(sizes, plan) for stage in (BY_UNITS if plan.units else BY_ROWS)]
    rates = measured_rates(base, sizes) if hasattr(base, "get_input_embeddings") else None
    return CostEstimate(sizes, plan, stages, rates)
