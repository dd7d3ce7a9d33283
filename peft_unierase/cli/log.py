"""`unierase log`: what was done with erasures on this machine, and whether somebody edited that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..hub import ledger
from .output import Format, show, show_json, table

BROKEN = 1


def run_log(file: Path | None, style: Format) -> None:
    """Show the ledger and verify it; ends the process with status 1 where it is broken."""
    file = file or ledger.ledger_file()
    try:
        entries = ledger.read(file)
    except ValueError as error:
        if style is Format.JSON:
            show_json({"ledger": str(file), "whole": False, "why": str(error)})
        else:
            show(f"BROKEN: {error}")
        raise SystemExit(BROKEN) from None
    if style is Format.JSON:
        show_json({"ledger": str(file), "whole": True, "entries": [vars(entry) for entry in entries]})
    elif style is Format.HUMAN:
        shown = [(str(e.number), e.time, e.action, _shown(e.what)) for e in entries]
        show(table(("", "time", "what", "of"), shown) if shown else "The ledger is empty.")
        show(f"\n{file} is whole: {len(entries)} entries, no line edited or missing.")


def _shown(what: Any) -> str:
    """The plain values of an entry in one line."""
    plain = {key: value for key, value in what.items() if isinstance(value, str | int) and key != "fingerprint"}
    return ", ".join(f"{key} {value}" for key, value in plain.items())
