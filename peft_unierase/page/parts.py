"""What is shown, as HTML. `parts.html` holds the layout and every word; texts of models and visitors are escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from .drawing import chances_svg, described
from .models import Chances

TEMPLATE = Path(__file__).with_name("parts.html")
STYLE = Path(__file__).with_name("style.css")


def part(name: str, *values: Any) -> str:
    """One of the parts of the page.

    Args:
        name: A macro of `parts.html`.
        *values: What it takes.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.globals["percent"] = percent
    module: Any = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).module
    return str(getattr(module, name)(*values)).strip()


def percent(share: float) -> str:
    """A share as text."""
    return f"{share:.0%}"


def drawing(chances: Chances) -> str:
    """The probabilities as a picture, and in words for those who do not see it."""
    return part("drawing", chances_svg(chances), described(chances), chances)


def style() -> str:
    """The style sheet."""
    return STYLE.read_text(encoding="utf-8")
