"""Pictures from stored rows alone, as SVG: black and grey on white, told apart by marks and lines, never by colour.

The same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from .methods import REFERENCE
from .ranking import MOST_USED, OURS, PUBLISHED, best, made, ordered, title_of, with_curves, worst_leak
from .results import BASE, DONE, Results, Row
from .tasks import STEPS

LOOK = {"font.size": 9, "svg.hashsalt": "compare", "svg.fonttype": "path", "axes.spines.top": False}
MARKS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
GREY = "0.55"
GROWING = (OURS, PUBLISHED, *MOST_USED)
RELEARNT = ("relearn-tenth", "relearn-unrelated", "relearn-neighbours")
Picture = tuple[str, Path]  # caption and file


def drawn(results: Results, task: str, seed: int, folder: Path) -> list[Picture]:
    """Every picture that the rows of a task allow.

    Args:
        results: The rows.
        task: The task.
        seed: Which runs.
        folder: Where the pictures go.

    Returns:
        Captions and files, the frontier first.
    """
    rows = {name: row for name, row in results.latest(task, seed).items() if row["status"] == DONE}
    if not made(rows):
        return []
    title = next(iter(rows.values()))["title"]
    wanted = [("frontier", f"Worst leak against utility: {title}", frontier(rows))]
    wanted.append(("attacks", f"Leak by attack, the five best: {title}", by_attack(rows)))
    wanted.append(("relearning", f"Relearning: {title}", relearning(rows)))
    wanted.append(("stability", f"Sequential stability: {title}", stability(rows)))
    saved = []
    for name, caption, figure in wanted:
        if figure is not None:
            saved.append((caption, _save(figure, folder / f"{name}-{task}.svg")))
    return saved


def growth_pictures(results: Results, seed: int, folder: Path, tasks: Sequence[str]) -> list[Picture]:
    """Time and size over the number of facts, for each base that has tasks of several sizes."""
    by_base: dict[str, list[Row]] = {}
    for task in tasks:
        for row in made(results.latest(task, seed)):
            if row["kind"] != STEPS:
                by_base.setdefault(row["base"], []).append(row)
    saved = []
    for base, rows in by_base.items():
        if figure := growth(rows):
            saved.append((f"Time and size over facts: {base}", _save(figure, folder / f"growth-{base}.svg")))
    return saved


def _figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for each in axes:
        each.grid(True, color="0.9", linewidth=0.6)
        each.set_axisbelow(True)
    return figure, list(axes)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(LOOK):
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def _style(number: int, method: str) -> dict[str, Any]:
    """Lines and marks of a curve: ours is thick, base and reference model are grey."""
    if method in (BASE, REFERENCE):
        return {"color": GREY, "linestyle": ":" if method == BASE else "--", "linewidth": 2}
    return {
        "color": "black",
        "marker": MARKS[number % len(MARKS)],
        "markerfacecolor": "black" if method == OURS else "white",
        "linestyle": "-" if method == OURS else LINES[number % len(LINES)],
        "linewidth": 2.2 if method == OURS else 1.0,
        "markersize": 6,
    }


def frontier(rows: Mapping[str, Row]) -> Figure:
    """Worst leak beyond the reference against model utility: the lower right corner is best.

    Names stand at the right, in the order of the leak, each with a line to its mark.
    """
    shown = [row for row in ordered(rows) if row["scores"]["MU"] is not None]
    figure, (axes,) = _figure(8.0, max(4.0, 0.26 * len(shown) + 1.2))
    leaks = {row["method"]: worst_leak(row) for row in shown}
    low, high = min(0.0, *leaks.values()), max(leaks.values())
    room = 0.06 * (high - low or 1.0)
    most = max(row["scores"]["MU"] for row in shown)
    for place, row in enumerate(sorted(shown, key=lambda row: leaks[row["method"]])):
        method, x, y = row["method"], row["scores"]["MU"], leaks[row["method"]]
        mark, face, size = {
            OURS: ("*", "black", 190),
            REFERENCE: ("D", "0.7", 70),
            BASE: ("s", "0.7", 60),
        }.get(method, ("o", "white", 42))
        axes.scatter([x], [y], s=size, marker=mark, facecolor=face, edgecolor="black", zorder=3)
        height = low - room + (high - low + 2 * room) * (place + 0.5) / len(shown)
        weight = "bold" if method == OURS else "normal"
        axes.annotate(
            title_of(method),
            (x, y),
            xytext=(1.08 * most, height),
            annotation_clip=False,
            va="center",
            weight=weight,
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "shrinkB": 4, "relpos": (0.0, 0.5)},
        )
    axes.set_xlim(-0.02, 1.05 * most)
    axes.set_ylim(low - room, high + room)
    axes.set_xlabel("model utility (more is better)")
    axes.set_ylabel("worst leak beyond the reference (less is better)")
    return figure


def _five(rows: Mapping[str, Row]) -> list[Row]:
    """The five best, ours among them."""
    found = best(rows)
    if OURS in rows and rows[OURS]["status"] == DONE and all(row["method"] != OURS for row in found):
        found = [*found[:-1], rows[OURS]]
    return found


def by_attack(rows: Mapping[str, Row]) -> Figure:
    """What each attack gets out of the five best, beside what it gets from the reference."""
    shown = _five(rows)
    names = list(dict.fromkeys(name for row in shown for name in row["attacks"]))
    figure, (axes,) = _figure(7.5, 0.32 * len(names) + 1.4)
    for number, row in enumerate(shown):
        found = [(row["attacks"][name]["leak"], place) for place, name in enumerate(names) if name in row["attacks"]]
        style = {**_style(number, row["method"]), "linestyle": "none"}
        axes.plot(*zip(*found, strict=True), label=title_of(row["method"]), **style)
    reference = {name: row["attacks"][name]["reference"] for row in shown for name in names if name in row["attacks"]}
    places = [names.index(name) for name in reference]
    axes.scatter(
        [*reference.values()], places, marker="|", s=260, color=GREY, linewidth=2.5, label="reference", zorder=1
    )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("leak (less is better)")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def relearning(rows: Mapping[str, Row]) -> Figure | None:
    """What a short fine-tuning brings back, step by step, from the five best, the base and the reference model."""
    attacks = [name for name in RELEARNT if with_curves(list(rows.values()), name)]
    if not attacks:
        return None
    figure, panels = _figure(4.2 * len(attacks) + 0.6, 4.0, len(attacks))
    for axes, attack in zip(panels, attacks, strict=True):
        shown = with_curves(_five(rows), attack)
        for number, row in enumerate(shown):
            curve = row["curves"][attack]
            style = _style(number, row["method"])
            axes.plot(curve["steps"], curve["erased"], label=title_of(row["method"]), **style)
        first = (shown or with_curves(list(rows.values()), attack))[0]["curves"][attack]
        for name, method in (("reference", REFERENCE), ("base", BASE)):
            if first[name]:
                axes.plot(first["steps"], first[name], label=title_of(method), **_style(0, method))
        axes.set_ylim(-0.03, 1.03)
        axes.set_xticks(first["steps"])
        axes.set_xlabel("steps of fine-tuning")
        axes.set_title(attack)
    panels[0].set_ylabel("recall of what was erased (less is better)")
    _legend(figure, panels[0])
    return figure


def stability(rows: Mapping[str, Row]) -> Figure | None:
    """What comes back and what is lost while erasures follow each other."""
    shown = [row for row in made(rows) if row.get("steps")]
    if not shown:
        return None
    figure, panels = _figure(8.6, 4.0, 2)
    panes = (("all steps", "recall of all that was erased so far ↓"), ("kept", "recall of what stays, of the base's ↑"))
    for axes, (name, label) in zip(panels, panes, strict=True):
        for number, row in enumerate(shown):
            points = [(place, step[name]) for place, step in enumerate(row["steps"], 1) if step[name] is not None]
            axes.plot(*zip(*points, strict=True), label=title_of(row["method"]), **_style(number, row["method"]))
        axes.set_ylim(-0.03, 1.08)
        axes.set_xticks(range(1, 1 + max(len(row["steps"]) for row in shown)))
        axes.set_xlabel("step")
        axes.set_title(label)
    _legend(figure, panels[0])
    return figure


def growth(rows: Sequence[Row]) -> Figure | None:
    """Seconds of one erasure and size of what it adds, over the number of facts; both axes are logarithmic.

    Only our recipes and the most used methods are shown, if they were measured with several numbers of facts.
    """
    methods: dict[str, list[Row]] = {}
    for row in rows:
        if row["method"] in GROWING:
            methods.setdefault(row["method"], []).append(row)
    methods = {name: each for name, each in methods.items() if len({row["facts"] for row in each}) > 1}
    if not methods:
        return None
    figure, panels = _figure(8.6, 4.0, 2)
    for number, (method, own) in enumerate(methods.items()):
        own = sorted(own, key=lambda row: row["facts"])
        seconds = [(row["facts"], row["stages"]["erasing"]["seconds"]) for row in own]
        kilobytes = [(row["facts"], row["size"]["bytes"] / 1000) for row in own if row["size"]["bytes"] > 0]
        for axes, points in zip(panels, (seconds, kilobytes), strict=True):
            if points:
                axes.plot(*zip(*points, strict=True), label=title_of(method), **_style(number, method))
    facts = sorted({row["facts"] for own in methods.values() for row in own})
    for axes, label in zip(panels, ("seconds of one erasure ↓", "kB that it adds ↓"), strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(facts, map(str, facts))
        axes.minorticks_off()
        axes.set_xlabel("facts")
        axes.set_title(label)
    _legend(figure, panels[0])
    return figure


def _legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
