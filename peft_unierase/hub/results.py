"""A check's figures in the form in which the Hub stores evaluation results in a card, `model-index`.

The Hub's newer form, files in `.eval_results/`, is for data sets that are registered there as benchmarks. A check is
made on the owner's own forget and retain sets, which have no address on the Hub.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult

DATASET = "unierase-check"


def eval_results(record: Mapping[str, Any] | None) -> list[EvalResult]:
    """What a record's check measured with the erasure on: every figure, and what every attack brought back.

    Args:
        record: See [`erasure_card`].

    Returns:
        One entry a figure; none where nothing was checked. The erasures in a stack were checked apart, so it has none.
    """
    check = (record or {}).get("check") or {}
    if not check.get("verdict"):
        return []
    measured = [
        (figure["set"], figure["name"], figure["name"], figure["erased"]) for figure in check.get("figures") or []
    ]
    attacked = [
        ("attacks", attack["unit"], f"{attack['unit']}: {attack['title']}", attack["erased"]["mean"])
        for attack in check.get("attacks") or []
    ]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=DATASET,
            dataset_name=name,
            dataset_split=name,  # by which, and not by the name, entries are told apart
            metric_type=_slug(unit),
            metric_name=title,
            metric_value=round(float(value), 4),
        )
        for name, unit, title, value in measured + attacked
        if value is not None and math.isfinite(value)
    ]


def _slug(text: str) -> str:
    """A name as an identifier."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"
