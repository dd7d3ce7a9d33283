"""A pytest plugin that turns PEFT's tests to this tuner, leaves out what is not about it, and counts by file."""

from __future__ import annotations

import importlib
from collections import Counter, defaultdict
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
from cases import LEFT_OUT, LISTS

from peft_unierase import UniEraseConfig

NOT_OURS = "names one of PEFT's own methods"
OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")

# The suite imports every method's config from here.
peft.UniEraseConfig = UniEraseConfig
# Its toy models have no decoder layers, so the guard would refuse every adapter for them.
UniEraseConfig.trusted = True


class Reached(dict[str, int]):
    """The suite's record of models fetched from the Hub, by which it goes offline: all of them, from the start."""

    def __contains__(self, model: object) -> bool:
        return True

    def __missing__(self, model: str) -> int:
        return 0


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makemodule(module_path: Path) -> Generator[None, pytest.Module, pytest.Module]:
    module = yield
    if module_path.name in LISTS:
        exchange_lists(module.obj, LISTS[module_path.name])
    return module


def exchange_lists(module: ModuleType, lists: dict[str, list[Any]]) -> None:
    """Parametrise the tests of a module with our lists, and mark those tests as ours.

    Raises:
        pytest.UsageError: A list is used by no test: PEFT has renamed it.
    """
    unused = set(lists)
    for scope in (module, *(value for value in vars(module).values() if isinstance(value, type))):
        for name, test in vars(scope).items():
            marks = getattr(test, "pytestmark", []) if name.startswith("test") else []
            for place, mark in enumerate(marks):
                for key in lists:
                    if mark.name == "parametrize" and (name == key or mark.args[1] is getattr(module, key, marks)):
                        marks[place] = pytest.mark.parametrize(mark.args[0], lists[key]).mark
                        test.ours = True
                        unused.discard(key)
    if unused:
        raise pytest.UsageError(f"no test of {module.__name__} uses {sorted(unused)}; see what PEFT calls them now")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    parts = {(file, part): why for file, of in LEFT_OUT.items() for why, ids in of.items() for part in ids}
    unused, kept = set(parts), []
    config.left_out = defaultdict(Counter)
    for item in items:
        hits = [key for key in parts if key[0] == item.path.name and key[1] in item.nodeid]
        unused -= set(hits)
        foreign = item.path.name in LISTS and not getattr(item.function, "ours", False)
        if foreign or hits:
            config.left_out[item.path.name][NOT_OURS if foreign else parts[hits[0]]] += 1
        else:
            kept.append(item)
    if unused:
        raise pytest.UsageError(f"nothing to leave out for {sorted(unused)}; take that out of cases.py")
    items[:] = kept
    importlib.import_module("tests.testing_utils")._HUB_MODEL_ACCESSES = Reached()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in OUTCOMES:
        for report in terminalreporter.stats.get(outcome, []):
            file = Path(report.location[0]).name
            counts[file][outcome] += 1
            if outcome == "skipped":
                reasons[file][report.longrepr[2].replace("Skipped", "skipped", 1)] += 1
    for file, left_out in getattr(config, "left_out", {}).items():
        counts[file]["left out"] = sum(left_out.values())
        reasons[file].update({f"left out: {reason}": count for reason, count in left_out.items()})
        terminalreporter.section(f"{file}: " + ", ".join(f"{n} {outcome}" for outcome, n in counts[file].items()), "-")
        for reason, count in reasons[file].items():
            terminalreporter.write_line(f"{count:5} {reason}")
