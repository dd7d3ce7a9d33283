"""A line in the ledger behind every command that makes, judges or hands on an erasure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UniEraseError
from ..hub import ledger
from ..hub.record import file_digests
from .output import say


def note(action: str, folder: Path | None, **what: Any) -> None:
    """Write it down; where that fails the work is done all the same, and that it is not written down is said.

    Args:
        action: What was done.
        folder: What came of it: its files' digests are noted.
        **what: What else is noted.
    """
    try:
        if folder is not None:
            what = {"folder": str(folder.absolute()), "files": file_digests(folder), **what}
        ledger.append(action, what)
    except (OSError, UniEraseError) as error:
        say(f"warning: this is not in the ledger: {error}")
