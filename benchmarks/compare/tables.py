"""Markdown from stored rows alone: the tables of docs/comparison.md and the short one of README.md.

Both pages have places for them, between two comments; nothing else on the pages is touched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from peft_unierase.checking import ATTACKS

from .methods import METHODS, REFERENCE
from .ranking import OURS, best, made, missed, ordered, title_of, worst_leak
from .results import BASE, DONE, Results, Row
from .tasks import BATCH, NAMES

ABSENT = "-"
SHORT_TASK, SHORT_ROWS = "tofu-40", 3
Column = tuple[str, Callable[[Row], float | None], str, int]  # head, value, format, and 1 if more is better, -1 if less


def _score(name: str) -> Callable[[Row], float | None]:
    return lambda row: row["scores"].get(name)


def _of(part: str, name: str, scale: float = 1.0) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        found = (row.get(part) or {}).get(name)
        return None if found is None else found * scale

    return value


def _stage(stage: str, name: str, scale: float = 1.0) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        found = ((row.get("stages") or {}).get(stage) or {}).get(name)
        return None if found is None else found * scale

    return value


def _worst(row: Row) -> float | None:
    return worst_leak(row) if row["method"] != REFERENCE else None  # it is its own reference


JUDGED: tuple[Column, ...] = (
    ("worst leak beyond the reference ↓", _worst, "+.3f", -1),
    ("FE ↑", _score("FE"), ".3f", 1),
    ("MU ↑", _score("MU"), ".3f", 1),
    ("balance ↑", _score("balance"), ".3f", 1),
    ("forget quality ↑", _score("forget quality"), ".2g", 1),
    ("declined of what stays ↓", _score("over-refusal"), ".1%", -1),
    ("perplexity ↓", _score("perplexity"), ".1f", -1),
)
COSTS: tuple[Column, ...] = (
    ("erasing, s ↓", _stage("erasing", "seconds"), ".0f", -1),
    ("peak, MB ↓", _stage("erasing", "peak_bytes", 1e-6), ".0f", -1),
    ("search, s", _stage("searching", "seconds"), ".0f", 0),
    ("checking, s", _stage("checking", "seconds"), ".0f", 0),
    ("kB ↓", _of("size", "bytes", 1e-3), ",.0f", -1),
    ("of the parameters ↓", _of("size", "share"), ".2%", -1),
    ("decoding: on ↓", _of("decoding", "on"), ".2f", -1),
    ("off ↓", _of("decoding", "off"), ".2f", -1),
    ("merged ↓", _of("decoding", "merged"), ".2f", -1),
)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def figures_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Rows by columns; the best figure that a method has is bold."""
    columns = [column for column in columns if any(column[1](row) is not None for row in rows)]
    winners = {}
    for head, value, form, better in columns:
        found = [f for row in rows if row["method"] not in (BASE, REFERENCE) and (f := value(row)) is not None]
        if better and found:
            winners[head] = format(max(found) if better > 0 else min(found), form)
    cells = []
    for row in rows:
        own = [title_of(row["method"])]
        for head, value, form, _ in columns:
            figure = value(row)
            text = ABSENT if figure is None else format(figure, form)
            judged = row["method"] not in (BASE, REFERENCE)
            own.append(f"**{text}**" if judged and text == winners.get(head) else text)
        cells.append(own)
    return markdown(["", *(head for head, *_ in columns)], cells)


def attacks_table(rows: Sequence[Row]) -> str:
    """The leak of every attack, beside the reference; `!` marks a method's worst one."""
    order = [attack.name for attack in ATTACKS]
    names = sorted(
        {name for row in rows for name in row["attacks"]}, key=lambda n: order.index(n) if n in order else 99
    )
    cells = []
    for row in rows:
        own = [title_of(row["method"])]
        for name in names:
            found = row["attacks"].get(name)
            mark = " !" if name == row["worst"] and row["method"] not in (BASE, REFERENCE) else ""
            own.append(ABSENT if found is None else f"{found['leak']:.3f}{mark}")
        cells.append(own)
    if not any(row["method"] == REFERENCE for row in rows) and rows:
        last = rows[-1]["attacks"]
        cells.append(["Reference", *(f"{last[n]['reference']:.3f}" if n in last else ABSENT for n in names)])
    return markdown(["", *names], cells)


def kept_table(rows: Sequence[Row]) -> str:
    """Recall of each set that must stay."""
    names = list(dict.fromkeys(name for row in rows for name in row["kept"]))

    def recall(name: str) -> Callable[[Row], float | None]:
        return lambda row: (row["kept"].get(name) or {}).get("erased")

    return figures_table(rows, [(f"{name} ↑", recall(name), ".3f", 1) for name in names])


def steps_table(rows: Sequence[Row]) -> str:
    """What is left right after a step and at the end, and what is kept."""
    cells = []
    for row in rows:
        steps = row["steps"]
        right_after = sum(step["this step"] for step in steps) / len(steps)
        seconds = sum(step["seconds"] for step in steps) / len(steps)
        last = steps[-1]
        cells.append(
            [
                title_of(row["method"]),
                f"{right_after:.3f}",
                f"{last['all steps']:.3f}",
                ABSENT if last["kept"] is None else f"{last['kept']:.3f}",
                f"{seconds:.0f}",
            ]
        )
    head = ["", "recall right after a step ↓", "of all steps at the end ↓", "kept, of the base ↑", "seconds a step ↓"]
    return markdown(head, cells)


def settings_table(rows: Sequence[Row]) -> str:
    """What was chosen among how many, and what went wrong."""
    cells = []
    for row in rows:
        if row["method"] in (BASE, REFERENCE):
            continue
        paper = METHODS[row["method"]].paper if row["method"] in METHODS else ABSENT
        if row["status"] != DONE:
            cells.append([title_of(row["method"]), paper, f"failed: {_cell(row['error'])}", ABSENT, ABSENT])
            continue
        chosen = ", ".join(f"{name} {json.dumps(value)}" for name, value in row["settings"].items()) or "its defaults"
        cells.append(
            [
                title_of(row["method"]),
                paper,
                _cell(chosen),
                str(len(row.get("tried", ())) or ABSENT),
                _cell("; ".join(f"{name}: {why}" for name, why in row["not run"].items())) or ABSENT,
            ]
        )
    return markdown(["", "paper", "settings", "tried", "attacks that do not apply"], cells)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def section(results: Results, task: str, seed: int, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """All tables of a task.

    Args:
        results: The rows.
        task: The task.
        seed: Which runs.
        pictures: Caption and address of each picture to show.
    """
    latest = results.latest(task, seed)
    every = ordered(latest)
    rows = [row for row in every if row["status"] == DONE]
    if not rows:
        return ""
    head = rows[-1]
    parts = [
        f"### {head['title']}",
        made_with(rows),
        figures_table(rows, JUDGED),
        *(f"![{caption}]({address})" for caption, address in pictures),
    ]
    if stepped := [row for row in rows if row.get("steps")]:
        parts += ["#### After each step", steps_table(stepped)]
    parts += [
        "#### What stays",
        kept_table(rows),
        "#### Leak by attack",
        "Lower is better (↓). `!` marks the attack in which a method is furthest beyond the reference.",
        attacks_table(rows),
        "#### Costs",
        figures_table([row for row in rows if row["method"] not in (BASE, REFERENCE)], COSTS),
        "#### Settings",
        settings_table(every),
    ]
    if head["kind"] == BATCH:
        lost = missed(latest)
        said = "Our default meets both demands." if not lost else f"Our default is not the best: {'; '.join(lost)}."
        parts.append(said)
    return "\n\n".join(part for part in parts if part)


def made_with(rows: Sequence[Row]) -> str:
    """Facts, budgets, machines and commits of rows, as one sentence each."""

    def told(texts: Iterable[str]) -> str:
        return ", ".join(dict.fromkeys(texts))

    budgets = told(
        "at most {texts:,} texts a run, {trials} settings a method, rank {rank}".format(**row["budget"]) for row in rows
    )
    machines = told(f"{row['machine']['cpu']}, {row['machine']['cores']} cores" for row in rows)
    commits = told((row["commit"] or "unknown")[:10] for row in rows)
    days = sorted(row["created"][:10] for row in rows)
    when = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    facts, seed = rows[-1]["facts"], rows[-1]["seed"]
    return f"{facts} facts; {budgets}; seed {seed}. Measured on {machines}, at commit {commits}, {when}."


def short(results: Results, seed: int, pictures: Sequence[tuple[str, str]] = (), task: str = SHORT_TASK) -> str:
    """The few lines for README.md: the reference model, our default and the best of the others."""
    latest = results.latest(task, seed)
    ours = [row for row in made(latest) if row["method"] == OURS]
    others = [row for row in best(latest, len(latest)) if row["method"] != OURS][:SHORT_ROWS]
    rows = [row for row in ordered(latest) if row["method"] == REFERENCE and row["status"] == DONE] + ours + others
    if not ours:
        return ""
    columns = [column for column in JUDGED if column[0].split(" ")[0] in ("worst", "FE", "MU", "balance")]
    count = len(made(latest))
    return "\n\n".join(
        [
            f"Our default and the best {len(others)} of {count - 1} other methods on {ours[0]['title']}, by worst leak "
            "and utility together. `make compare` measures them; [Comparison](docs/comparison.md) has all figures.",
            figures_table(rows, [*columns, COSTS[0]]),
            *(f"![{caption}]({address})" for caption, address in pictures),
        ]
    )


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between the comments `<!-- compare: NAME -->` and `<!-- compare: end of NAME -->` of a page.

    Raises:
        ValueError: The page lacks one of them.
    """
    begin, end = f"<!-- compare: {name} -->", f"<!-- compare: end of {name} -->"
    page = path.read_text(encoding="utf-8")
    before, found, rest = page.partition(begin)
    between, there, after = rest.partition(end)
    if not (found and there):
        raise ValueError(f"{path} has no place for a table; put the lines {begin} and {end} where it belongs")
    body = f"\n{text}\n" if text else "\n"
    if body != between:
        path.write_text(f"{before}{begin}{body}{end}{after}", encoding="utf-8")


def stored_tasks(results: Results) -> list[str]:
    """The tasks of the docs that have rows, in their order."""
    return [name for name in NAMES if name in results.tasks()]
