"""Drawing probabilities, as SVG whose letters the browser draws: with its own fonts, in every script and direction."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

from ..errors import MissingPackageError
from .models import Chances

BASE, ERASED, UNL = "#3b82c4", "#d97706", "#9b59b6"  # told apart by colour-blind readers too, on light and dark
INK = "#808080"  # the style sheet puts the page's own colour in its place
WIDTH, ROW, EDGES = 5.6, 0.34, 1.0  # inches
INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def chances_svg(chances: Chances) -> str:
    """A picture of the probabilities of an answer's tokens: a row a token, a bar a model.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter
    except ImportError as error:
        raise MissingPackageError('the page needs matplotlib: pip install "peft-unierase[demo]"') from error
    count = len(chances.tokens)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "unierase", "font.size": 10}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # which the browser's fonts have
        figure = Figure(figsize=(WIDTH, EDGES + ROW * count), layout="constrained")
        axes = figure.subplots()
        series = (("base", chances.base, BASE), ("erased", chances.erased, ERASED), ("[UNL] instead", chances.unl, UNL))
        for number, (name, values, colour) in enumerate(series):
            places = [row + (number - 1) * 0.27 for row in range(count)]
            axes.barh(places, values, height=0.25, color=colour, label=name)
        axes.set_yticks(range(count), [shown(token) for token in chances.tokens], parse_math=False)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("probability of the token, the ones before it given")
        figure.legend(loc="outside upper center", ncols=len(series), frameon=False)
        _in_one_ink(axes)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def described(chances: Chances) -> str:
    """The picture in words, for those who do not see it."""
    parts = [
        f"{shown(token)}: base {base:.0%}, erased {erased:.0%}, [UNL] {unl:.0%}"
        for token, base, erased, unl in zip(chances.tokens, chances.base, chances.erased, chances.unl, strict=True)
    ]
    return "; ".join(parts)


def shown(token: str) -> str:
    """A token as a label: a space can be seen, and what cannot be drawn is left out."""
    return INVISIBLE.sub("", token.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")).strip() or "\N{OPEN BOX}"


def _in_one_ink(axes: Any) -> None:
    axes.tick_params(colors=INK, length=0)
    axes.xaxis.label.set_color(INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.grid(axis="x", color=INK, alpha=0.25)
    axes.set_axisbelow(True)
    for text in axes.figure.legends[0].get_texts():
        text.set_color(INK)
