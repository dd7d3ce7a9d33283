"""Settings of recipe `gate`: any number of steps will do, and what makes no sense is refused before the run."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from peft_unierase import GateSettings
from peft_unierase.engine.gate.steer import SteerSettings
from peft_unierase.engine.gate.units import UnitSettings
from peft_unierase.engine.refusal import fit_input_row
from peft_unierase.engine.schedule import one_cycle


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 11, 20])
def test_an_input_row_is_fitted_in_any_number_of_steps(steps: int) -> None:
    row = torch.nn.Parameter(torch.ones(8))
    lesson: Any = SimpleNamespace(cached=[0], loss=lambda step: row.square().sum())
    fit_input_row(lesson, row, steps=steps, learning_rate=0.1)
    assert float(row.detach().max()) < 0.98


@pytest.mark.parametrize("steps", range(1, 40))
@pytest.mark.parametrize("rising", [0.1, 0.3])
def test_a_rate_rises_if_there_is_time_and_falls_in_the_end(steps: int, rising: float) -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    schedule, rates = one_cycle(optimizer, 2.0, steps, rising), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert 1.0 <= max(rates) <= 2.0
    assert (rates[0] < 0.1) == (rising * steps > 1)
    assert steps < 2 or rates[-1] < 1e-3


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (GateSettings, {"row_steps": 0}, "row_steps must be at least 1, got 0"),
        (GateSettings, {"row_steps_per_fact": -0.5}, r"row_steps_per_fact must be at least 0, got -0\.5"),
        (GateSettings, {"samples": -1}, "samples must be at least 0, got -1"),
        (GateSettings, {"fit_samples": 0}, "fit_samples must be at least 1, got 0"),
        (GateSettings, {"held_out": 1}, "held_out must be at least 2, got 1"),
        (GateSettings, {"depths": ()}, r"depths must list one value at least, got \(\)"),
        (GateSettings, {"row_learning_rate": float("nan")}, "row_learning_rate must be greater than 0, got nan"),
        (SteerSettings, {"steps": 0}, "steps must be at least 1, got 0"),
        (SteerSettings, {"retain_every": 0}, "retain_every must be at least 1, got 0"),
        (SteerSettings, {"saturation": 0.0}, r"saturation must be greater than 0, got 0\.0"),
        (UnitSettings, {"steps": 1}, "steps must be at least 2, got 1"),
        (UnitSettings, {"ramp": 0.0}, r"ramp must be greater than 0, got 0\.0"),
        (UnitSettings, {"flag_noise": 0.0}, r"flag_noise must be greater than 0, got 0\.0"),
        (UnitSettings, {"wordings": 0}, "wordings must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    kind: Callable[..., Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**change)
