"""The report of a check for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .output import table

if TYPE_CHECKING:
    from ..checking import CheckReport


def report_table(report: CheckReport, brief: bool = False) -> str:
    """The report for a terminal: what the base knows, scores and measures, every attack, and the verdict.

    Args:
        report: What a check found.
        brief: Leave out what the base knows, and every measure but recall.
    """
    from ..checking.scores import FLOOR, REFERENCE_MODEL, RENAMED
    from ..retain.knowledge import sentence

    reference_model = report.models.get("reference_model") is not None
    sides = ("base", "erased", "reference_model")[: 3 if reference_model else 2]
    titles = [side.replace("_", " ") for side in sides]

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    scores = [(name, *(number(values.get(side)) for side in sides)) for name, values in report.scores.items()]
    figures = [
        (f"{f.set}: {f.name}", *(number(value) for value in (f.base, f.erased, f.reference_model)[: len(sides)]))
        for f in report.figures
        if not brief or f.name == "recall"
    ]
    attacks = []
    renamed = any(attack.renamed for attack in report.attacks)
    for a in sorted(report.attacks, key=lambda attack: attack.holds):
        shown = [a.base, a.erased, *([a.renamed] if renamed else []), *([a.reference_model] if reference_model else [])]
        means = [number(each.mean if each else None) for each in shown]
        beyond = f"{a.excess.mean:+.3f} [{a.excess.low:+.3f}, {a.excess.high:+.3f}]"
        attacks.append((a.name, *means, beyond, a.outcome if a.holds else a.outcome.upper()))
    reference = REFERENCE_MODEL if reference_model else RENAMED if renamed else FLOOR
    columns = ("base", "erased", *(["renamed"] if renamed else []), *([REFERENCE_MODEL] if reference_model else []))
    parts = [
        "" if brief else sentence(report.settings["known to base"]),
        "" if brief else table(("scores", *titles), scores),
        table(("measures", *titles), figures),
        table(("attacks", *columns, f"beyond the {reference}", ""), attacks),
        fluency_line(report),
        "" if brief else "\n".join(f"  not run: {name}: {why}" for name, why in report.skipped.items()),
        "\n".join([f"{report.verdict.level}", *(f"  {reason}" for reason in report.verdict.reasons)]),
    ]
    return "\n\n".join(part for part in parts if part)


def fluency_line(report: CheckReport) -> str:
    """How fluent the erased model stays where it is forced to speak, at worst; empty if no attack did that."""
    found = [(attack.name, attack.fluency) for attack in report.attacks if attack.fluency]
    if not found:
        return ""
    name, worst = min(found, key=lambda each: each[1].unrepeated)
    line = (
        f"  fluent after a prefill or a ban: no word three times in a row in {worst.unrepeated:.0%} at worst ({name})"
    )
    strange = [(each.perplexity, name) for name, each in found if each.perplexity is not None]
    if strange:
        perplexity, name = max(strange)
        line += f"; perplexity {perplexity:.1f} times that of the base's own answers at worst ({name})"
    return line
