"""What a run tried and found, as the tables of SECURITY.md: `python benchmarks/hardening/tables.py counts.json`.

The file is what `run.py --json` stores. Knows names of counts, and nothing of how they came about.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ALL = "all"


def tables(told: Mapping[str, Mapping[str, Any]]) -> str:
    """Two tables in Markdown: the parts with what they tried, and what came of adapters in each way.

    Args:
        told: For each part its `counts` by name and its `violations`.
    """
    parts = [
        (
            name,
            ", ".join(f"{count:,} {what}" for what, count in each["counts"].items() if _is_whole(what)),
            f"{len(each['violations']):,}",
            f"{each['counts']['seconds']:,}",
        )
        for name, each in told.items()
    ]
    sums = [sum(len(each["violations"]) for each in told.values())]
    sums += [sum(each["counts"]["seconds"] for each in told.values())]
    parts.append((ALL, "", *(f"{number:,}" for number in sums)))
    found = [_table(("part", "tried", "violations", "seconds"), parts)]
    ways: dict[str, dict[str, int]] = {}
    for what, count in told.get("adapters", {}).get("counts", {}).items():
        way, sign, outcome = what.partition(": ")
        if sign:
            ways.setdefault(way, {})[outcome] = count
    outcomes = sorted(
        {outcome for each in ways.values() for outcome in each}, key=lambda each: (each != "refused", each)
    )
    if ways:
        rows = [(way, *(f"{each.get(outcome, 0):,}" for outcome in outcomes)) for way, each in ways.items()]
        found.append(_table(("adapters by way", *outcomes), rows))
    return "\n\n".join(found)


def _is_whole(what: str) -> bool:
    """Whether a count is no part of another one, and no time."""
    return what != "seconds" and ": " not in what and " of " not in what


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---" if name in ("part", "tried", "adapters by way") else "---:" for name in head], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(tables(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
