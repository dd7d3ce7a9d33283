"""The lines of Python that load what a command has made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..records.read import grown, read_record


def loading_lines(
    erasure: str | Path,
    onto: Sequence[str | Path] = (),
    revision: str | None = None,
    trust: bool = False,
    allow_resize: bool = False,
) -> str:
    """The lines that load an erasure, and with it those that it was made on top of."""
    names = [str(one) for one in (*onto, erasure)]
    told = [
        json.dumps(names if onto else names[0], ensure_ascii=False),
        *([f"revision={json.dumps(revision, ensure_ascii=False)}"] if revision else []),
        *(["trust=True"] if trust else []),
        *(["allow_resize=True"] if allow_resize else []),
    ]
    return f"    import peft_unierase\n    model = peft_unierase.load(base, {', '.join(told)})"


def needs(folders: Sequence[Path], trusted: bool = False) -> dict[str, Any]:
    """What the lines must say to load erasures: `trust` and `allow_resize`.

    Args:
        folders: Where they lie.
        trusted: Whether there may be one among them that the guard refuses.
    """
    from ..guard.inspect import inspect_folder

    records = []
    for folder in folders:
        with suppress(InputError):  # a record that cannot be read, of an erasure that is trusted
            records.append(read_record(folder))
    return {
        "trust": trusted and any(inspect_folder(folder).refused for folder in folders),
        "allow_resize": any(map(grown, records)),
    }
