"""The report as one HTML page that needs nothing else: no script, no font, no picture, no network.

`report.html` holds the layout and every word. This file computes what a template cannot: where values lie on a scale,
and values as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from .compared import FORGET
from .scores import FLOOR, REFERENCE_MODEL, RENAMED, UTILITY_TERMS, Interval

if TYPE_CHECKING:
    from .report import AttackResult, CheckReport, Curve

TEMPLATE = Path(__file__).with_name("report.html")
NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Scale:
    """From values to places along an axis."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Per cent of the axis, 0 to 100; what lies beyond an end is drawn at that end."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        return round(100 * min(max(share, 0.0), 1.0), 2)


def page(report: CheckReport) -> str:
    """The report as the text of an HTML file, for readers who were not there when it was made.

    It holds the examples of the report, and with them text of what was to be forgotten.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters.update(value=value, duration=duration, entries=entries)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        sides=["base", "erased", "reference_model"] if _has_reference_model(report) else ["base", "erased"],
        sets=list(dict.fromkeys(figure.set for figure in report.figures)),
        forget_set=FORGET,
        names={"renamed": RENAMED, "reference_model": REFERENCE_MODEL, "floor": FLOOR},
        utility_terms=UTILITY_TERMS,
        thresholds=dict(entries(report.settings.get("thresholds") or {})),
        attack_scale=attack_scale,
        allowed=allowed,
        curve_scales=curve_scales,
        unit_scale=Scale(0, 1),
    )


def value(number: float | None) -> str:
    """A figure as text: three decimals, fewer where it is large, and a dash where there is none."""
    if number is None:
        return NONE
    if 0 < number < 0.0005:
        return "<0.001"
    return f"{number:.3f}" if abs(number) < 10 else f"{number:,.1f}" if abs(number) < 1e5 else f"{number:.2g}"


def duration(seconds: float) -> str:
    """Seconds, or minutes and seconds where they are many."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def entries(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings as pairs of name and value; those inside another one carry its name in front."""
    for name, setting in (settings if isinstance(settings, Mapping) else asdict(settings)).items():
        if isinstance(setting, Mapping) or is_dataclass(setting):
            yield from entries(setting, f"{prefix}{name}: ")
        elif isinstance(setting, Sequence | set) and not isinstance(setting, str):
            yield f"{prefix}{name}", ", ".join(map(str, setting))
        else:
            yield f"{prefix}{name}", setting


def attack_scale(attack: AttackResult) -> Scale:
    """From 0 to 1, or further where the attack's own unit goes beyond."""
    return _scale(edge for each in _intervals(attack) for edge in (each.low, each.high))


def allowed(attack: AttackResult, margin: float) -> float:
    """The leak that an attack may get."""
    if attack.renamed and attack.reference == RENAMED:
        return attack.renamed.mean + margin * (1 - attack.renamed.mean)
    return (
        attack.reference_model.mean if attack.reference_model and attack.reference == REFERENCE_MODEL else attack.floor
    ) + margin


def curve_scales(curve: Curve) -> tuple[Scale, Scale]:
    """Of the steps and of the leak."""
    steps = Scale(min(curve.steps), max(curve.steps))
    return steps, _scale([*curve.base, *curve.erased, *(curve.reference_model or [])])


def _scale(values: Iterable[float]) -> Scale:
    found = [0.0, 1.0, *values]
    return Scale(min(found), max(found))


def _intervals(attack: AttackResult) -> list[Interval]:
    return [each for each in (attack.base, attack.erased, attack.renamed, attack.reference_model) if each]


def _has_reference_model(report: CheckReport) -> bool:
    attacks, figures = (
        any(each.reference_model is not None for each in found) for found in (report.attacks, report.figures)
    )
    return attacks or figures or any(score.get("reference_model") is not None for score in report.scores.values())
