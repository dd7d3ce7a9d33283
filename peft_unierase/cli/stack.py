"""`unierase stack`: several erasures in one folder, or one of them taken out again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .loading import loading_lines, needs
from .note import Written, noted_once
from .options import ErasuresArgument, FormatOption, TrustOption
from .output import Format, clear_endings, show, show_json

EXAMPLES = "Examples:\n\nunierase stack erase-a org/erase-b -o both\n\nunierase stack both --without erase-a -o only-b"


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """What the command line asks for."""

    adapters: ErasuresArgument
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the adapter.", show_default=False)]
    without: Annotated[
        list[str] | None, typer.Option(help="Take this one out again; may be repeated.", show_default=False)
    ] = None
    base: Annotated[
        str | None, typer.Option(help="What to call the base, where they name several.", show_default=False)
    ] = None
    trust: TrustOption = False


def stack(options: StackOptions, format: FormatOption = Format.AUTO) -> None:
    """Fuse erasures into one adapter, or take one out again. Needs their files alone and not the base."""
    style, adapters, without = format.resolved(), list(options.adapters), list(options.without or ())

    def work(written: Written) -> None:
        from ..hub.stack import stack
        from .base import prepare_libraries

        prepare_libraries()
        stacked = stack(*adapters, base=options.base, trust=options.trust)
        for name in without:
            stacked -= name
        told = {"erasures": adapters, "without": without, "names": stacked.names}
        tokens = [text for _, text in stacked.config.tokens]
        stacked.save(options.output, lambda place: written(place, **told, tokens=tokens))

    with clear_endings():
        command = {"erasures": adapters, "without": without, "base": options.base, "trust": options.trust}
        told = noted_once("stack", options.output, command, work)
    if style is Format.JSON:
        show_json({"output": str(options.output), "erasures": told["names"], "tokens": told["tokens"]})
    elif style is Format.HUMAN:
        show(f"Saved to {options.output}, with {', '.join(told['names'])} in it. To load it:\n")
        show(loading_lines(options.output, **needs([options.output], options.trust)))
