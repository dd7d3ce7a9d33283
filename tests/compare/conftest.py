"""The modules of the comparison, imported as its command imports them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = (
    *(
        "ablations",
        "budget",
        "clock",
        "deployed",
        "measures",
        "methods",
        "pictures",
        "ranking",
        "results",
        "run",
        "runs",
        "search",
    ),
    *("tables", "tasks"),
)


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as found:
        yield found


@pytest.fixture(scope="module")
def compare(patch: pytest.MonkeyPatch) -> Any:
    """The modules of the comparison by name."""
    patch.syspath_prepend(str(BENCHMARKS))
    return SimpleNamespace(**{name: importlib.import_module(f"compare.{name}") for name in MODULES})
