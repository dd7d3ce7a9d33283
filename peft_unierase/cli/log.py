"""`unierase log`: what was done with erasures on this machine, and whether somebody edited that."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..records import ledger as records
from .options import FormatOption
from .output import Format, clear_endings, show, show_json, table

EXAMPLES = "Example:\n\nunierase log"
BROKEN = 1


def log(
    ledger: Annotated[Path | None, typer.Option(help="The ledger; by default this user's.", show_default=False)] = None,
    format: FormatOption = Format.AUTO,
) -> None:
    """Show what was done with erasures on this machine. Status 1 where an entry was edited or is missing."""
    file, style = ledger or records.ledger_file(), format.resolved()
    with clear_endings():
        try:
            entries, tail = records.read(file), records.look(file).tail
        except records.LedgerError as error:
            if style is Format.JSON:
                show_json({"ledger": str(file), "whole": False, "why": str(error)})
            else:
                show(f"BROKEN: {error}")
            raise SystemExit(BROKEN) from None
    if style is Format.JSON:
        told = {"entries": [vars(entry) for entry in entries], "unfinished_bytes": len(tail)}
        show_json({"ledger": str(file), "whole": True, **told})
    elif style is Format.HUMAN:
        shown = [(str(e.number), e.time, e.action, _shown(e.what)) for e in entries]
        show(table(("", "time", "what", "of"), shown) if shown else "The ledger is empty.")
        show(f"\n{file} is whole: {len(entries)} entries, no line edited or missing.")
        if tail:
            show(f"A command was interrupted while it wrote the next one: {len(tail)} bytes, which the next cuts off.")


def _shown(what: Any) -> str:
    """The plain values of an entry in one line."""
    plain = {key: value for key, value in what.items() if isinstance(value, str | int) and key != "fingerprint"}
    return ", ".join(f"{key} {value}" for key, value in plain.items())
