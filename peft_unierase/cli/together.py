"""What a command does once, however many processes share it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ..lm.processes import told
from ..storage.whole import claimed
from .output import fail

SHARED = ("erase", "check", "plan", "ramp")  # commands whose work several processes can do


def held(path: Path) -> AbstractContextManager[None]:
    """Keep a place for one command, all of whose processes may go on; see `claimed`."""
    return nullcontext() if told()[0] else claimed(path)


def check_shared(arguments: Sequence[str]) -> None:
    """End with status 2 if several processes were launched for a command that is none of `SHARED`."""
    command = next(iter(arguments), "-")
    if told()[1] > 1 and not command.startswith("-") and command not in SHARED:
        fail(f"`{command}` runs in one process; give it without the launcher, which is for {', '.join(SHARED)}")
