"""Ablations: each changes the default while it is measured and nothing afterwards, and ends in a row of the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from demo_erasure import FORGET, OTHERS, demo_base, demo_tokenizer

from peft_unierase import DistillSettings


@pytest.fixture(scope="module")
def task(compare: Any) -> Any:
    return compare.tasks.Task(
        name="ablations-demo",
        title="demo model, two facts",
        base="demo",
        model=demo_base,
        tokenizer=demo_tokenizer,
        parts=[FORGET[:2]],
        retain=OTHERS[:4],
        held_out={"others": OTHERS[10:12]},
        budget=compare.budget.Budget(texts=30),
        attacks=("greedy",),
    )


def test_every_variant_changes_something_and_leaves_the_package_as_it_was(compare: Any) -> None:
    for name, variant in compare.ablations.VARIANTS.items():
        before = [getattr(module, constant) for module, constant, _ in variant.constants]
        with variant.applied():
            during = [getattr(module, constant) for module, constant, _ in variant.constants]
        after = [getattr(module, constant) for module, constant, _ in variant.constants]
        assert before == after
        assert all(old is not new and old != new for old, new in zip(before, during, strict=True)), name
        changed = DistillSettings(**variant.settings) != DistillSettings()
        assert changed or before or name == compare.ablations.WHOLE


@pytest.mark.slow
def test_a_variant_is_measured_once_and_what_fails_is_said(
    compare: Any, task: Any, patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ablations = compare.ablations
    short = replace(ablations.VARIANTS["no-teacher"], settings={"forget_weight": 0.0, "steps": 1, "samples": 8})
    failing = replace(ablations.VARIANTS["no-samples"], settings={"steps": -1})
    patch.setattr(ablations, "VARIANTS", {"no-teacher": short, "no-samples": failing})
    results = compare.results.Results(tmp_path)
    for _ in range(2):
        ablations.measure(task, list(ablations.VARIANTS), results, 0, False)
    assert [row["method"] for row in results.rows(task.name)] == ["no-teacher", "no-samples", "no-samples"]
    text = ablations.table(results, task.name, 0)
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {short.title} |")]
    assert len(line.split("|")) == len(ablations.COLUMNS) + 3
    assert "Failed without questions about anything: InputError: steps" in text
