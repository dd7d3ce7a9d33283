"""What rows say when they are put side by side: which are best, and whether our default is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peft_unierase.checking import scores

from .methods import METHODS, REFERENCE
from .results import BASE, DONE, Row

OURS, PUBLISHED = "unierase", "unierase_paper"  # our default, and the method as its paper has it
UNJUDGED = (BASE, REFERENCE)  # rows that no method made
MOST_USED = ("gd", "npo_gd", "rmu", "idk")  # what people use most
BEST = 5
CLOSE = 1e-9


def title_of(method: str) -> str:
    """What tables call a method."""
    return "Base model" if method == BASE else METHODS[method].title if method in METHODS else method


def ordered(rows: Mapping[str, Row]) -> list[Row]:
    """The rows in the order of the tables: the base first, then as `METHODS` has them, unknown ones last."""
    order = [BASE, *METHODS]
    return sorted(rows.values(), key=lambda row: order.index(row["method"]) if row["method"] in order else len(order))


def made(rows: Mapping[str, Row]) -> list[Row]:
    """The rows of methods that came through, in the order of the tables."""
    return [row for row in ordered(rows) if row["status"] == DONE and row["method"] not in UNJUDGED]


def worst_leak(row: Row) -> float:
    """The largest mean leak beyond the reference, over the attacks that were run."""
    return row["attacks"][row["worst"]]["excess"]


def together(row: Row, base: Row | None) -> float:
    """Harmonic mean of what an attacker does not get and of what is left of the base's utility, both from 0 to 1."""
    utility = row["scores"]["MU"] or 0.0
    before = base["scores"]["MU"] if base and base["status"] == DONE else None
    return scores.balance(1 - max(0.0, worst_leak(row)), min(1.0, utility / before) if before else utility) or 0.0


def best(rows: Mapping[str, Row], count: int = BEST) -> list[Row]:
    """The best rows of methods, by `together`, the best first."""
    return sorted(made(rows), key=lambda row: -together(row, rows.get(BASE)))[:count]


def reduced(rows: Mapping[str, Row], count: int = BEST) -> list[str]:
    """Names of the methods of a reduced list: the best of another task, those most used, and both recipes of ours."""
    names = {*MOST_USED, OURS, PUBLISHED, *(row["method"] for row in best(rows, count))}
    return [name for name in METHODS if name in names]


def missed(rows: Mapping[str, Row]) -> list[str]:
    """What keeps our default from being the best of a task, one sentence for each demand.

    The demands: no method's worst leak beyond the reference is lower, and no method's balance is higher. What was not
    measured does not meet them.
    """
    every = made(rows)
    ours = next((row for row in every if row["method"] == OURS), None)
    if ours is None:
        failed = rows.get(OURS)
        return [f"{title_of(OURS)} failed: {failed['error']}" if failed else f"{title_of(OURS)} was not measured"]
    found = []
    lowest = min(every, key=worst_leak)
    if worst_leak(lowest) < worst_leak(ours) - CLOSE:
        found.append(
            f"worst leak beyond the reference: {title_of(lowest['method'])} has {worst_leak(lowest):+.3f} "
            f"({lowest['worst']}), ours {worst_leak(ours):+.3f} ({ours['worst']})"
        )
    highest = max(every, key=lambda row: row["scores"]["balance"] or 0.0)
    own, other = (row["scores"]["balance"] or 0.0 for row in (ours, highest))
    if other > own + CLOSE:
        found.append(f"balance: {title_of(highest['method'])} has {other:.3f}, ours {own:.3f}")
    return found


def with_curves(rows: Sequence[Row], attack: str) -> list[Row]:
    """The rows that have a curve of an attack."""
    return [row for row in rows if row.get("curves", {}).get(attack)]
