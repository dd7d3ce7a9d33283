"""The lines of Python that load what a command has made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def loading_lines(erasure: str | Path, onto: Sequence[str | Path] = (), revision: str | None = None) -> str:
    """The lines that load an erasure, and with it those that it was made on top of."""
    names = [str(one) for one in (*onto, erasure)]
    shown = json.dumps(names if onto else names[0], ensure_ascii=False)
    pinned = f", revision={json.dumps(revision, ensure_ascii=False)}" if revision else ""
    return f"    import peft_unierase\n    model = peft_unierase.load(base, {shown}{pinned})"
