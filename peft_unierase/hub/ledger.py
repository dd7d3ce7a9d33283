"""A local ledger of what was done with erasures: one JSON object a line, each with the digest of the one before it.

A line that was edited, moved or taken out breaks the chain, and the head, a file beside it, shows where the last lines
are missing. Whoever may write to both can write a new chain: what that must not happen to belongs where others keep the
head, for instance in a signature.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..source import home
from .record import Salt, now, read_salt

ACTIONS = ("erase", "check", "merge", "export", "stack", "push", "restore", "sign")
FIRST = "0" * 64


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        number: From 1.
        time: In UTC.
        action: What was done.
        what: To what, as plain values without any text of the facts.
        previous: Digest of the line before.
        digest: SHA-256 of all that.
    """

    number: int
    time: str
    action: str
    what: Mapping[str, Any]
    previous: str
    digest: str


def own_salt() -> Salt:
    """The salt of this machine's user, made when it is first wanted; who loses it can verify no fact any more."""
    return read_salt(home() / "salt", create=True)


def ledger_file() -> Path:
    """The ledger of this machine's user."""
    return home() / "ledger.jsonl"


def append(action: str, what: Mapping[str, Any], ledger: Path | None = None) -> Entry:
    """Add a line. The ledger is verified first, so that a broken one is noticed and not built on.

    Raises:
        ValueError: The ledger is broken, or there is no such action.
        OSError: It cannot be written to.
    """
    from filelock import FileLock

    if action not in ACTIONS:
        raise ValueError(f"action {action!r} is none; there are {', '.join(ACTIONS)}")
    ledger = ledger or ledger_file()
    ledger.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(ledger.with_suffix(".lock")):
        last = next(reversed(read(ledger)), None)
        parts: dict[str, Any] = {
            "number": last.number + 1 if last else 1,
            "time": now(),
            "action": action,
            "what": dict(what),
            "previous": last.digest if last else FIRST,
        }
        entry = Entry(**parts, digest=_digest(parts))
        with os.fdopen(os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as out:
            out.write(_line({**parts, "digest": entry.digest}) + "\n")
            out.flush()
            os.fsync(out.fileno())
        _write_head(ledger, entry)
    return entry


def read(ledger: Path | None = None) -> list[Entry]:
    """The lines of a ledger that is whole; none where there is none.

    Raises:
        ValueError: A line was edited, moved or taken out; the text says which.
    """
    ledger = ledger or ledger_file()
    lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []
    entries: list[Entry] = []
    for number, line in enumerate(lines, start=1):
        entry = _entry(line)
        if entry is None:
            raise ValueError(f"line {number} of {ledger} was edited: it is not what its digest says")
        if (entry.number, entry.previous) != (number, entries[-1].digest if entries else FIRST):
            raise ValueError(f"before line {number} of {ledger} a line is missing or was moved: the chain is broken")
        entries.append(entry)
    ends = [(0, FIRST), *((entry.number, entry.digest) for entry in entries)]
    head = _read_head(ledger)
    if head == ends[-1]:
        return entries
    if head in ends[-2:-1]:  # interrupted between line and head
        _write_head(ledger, entries[-1])
        return entries
    raise ValueError(
        f"{ledger} ends with line {len(entries)}, and {_head(ledger).name} says that line {head[0]} was the last: "
        "lines are missing, or the head is"
    )


def _entry(line: str) -> Entry | None:
    try:
        parts = json.loads(line)
        digest = parts.pop("digest")
        entry = Entry(**parts, digest=digest)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return entry if digest == _digest(parts) else None


def _digest(parts: Mapping[str, Any]) -> str:
    return hashlib.sha256(_line(parts).encode()).hexdigest()


def _line(parts: Mapping[str, Any]) -> str:
    return json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _head(ledger: Path) -> Path:
    return ledger.with_suffix(".head")


def _read_head(ledger: Path) -> tuple[int, str]:
    try:
        number, digest = _head(ledger).read_text(encoding="ascii").split()
        return int(number), digest
    except (OSError, ValueError):
        return 0, FIRST


def _write_head(ledger: Path, entry: Entry) -> None:
    new = _head(ledger).with_suffix(".head.new")
    new.write_text(f"{entry.number} {entry.digest}\n", encoding="ascii")
    new.replace(_head(ledger))
