"""Settings of recipe `distill`: what makes no sense is refused before the run."""

from __future__ import annotations

from typing import Any

import pytest

from peft_unierase import DistillSettings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps_per_fact": -0.5}, r"steps_per_fact must be at least 0, got -0\.5"),
        ({"samples": -1}, "samples must be at least 0, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be greater than 0, got nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillSettings(**change)


def test_more_than_ten_facts_take_more_steps() -> None:
    settings = DistillSettings(steps=100, steps_per_fact=0.5)
    assert [settings.step_count(facts) for facts in (1, 10, 40)] == [100, 100, 115]
