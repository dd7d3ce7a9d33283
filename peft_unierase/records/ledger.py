"""A local ledger of what was done with erasures: one JSON object a line, each with the digest of the one before it.

Digests are of the bytes as they stand, up to the digest itself, and lines end with `\\n` alone. A line that was edited,
moved or taken out breaks the chain, and the head, a file beside it, shows where the last lines are missing. Whoever may
write to both can write a new chain: what that must not happen to belongs where others keep the head, for instance in a
signature.

A line is written, then the head. What an interrupted command left after the last line of the head is no edit: a whole
line counts, part of one is cut off before the next is written. Of the last line itself part may be lost as well, with a
disk; then the next line says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..storage.names import home
from ..storage.plain import read_bytes, read_text
from ..storage.whole import whole_file
from .record import Salt, now, read_salt

ACTIONS = ("erase", "check", "merge", "export", "stack", "push", "restore", "sign")
RECOVERED = "recover"  # what the ledger says of itself
FIRST = "0" * 64
LINE = re.compile(rb'(\{.*),"digest":"([0-9a-f]{64})"\}', re.DOTALL)
WAIT, POLL = 60.0, 0.005  # seconds


class LedgerError(InputError):
    """A ledger that is not whole; the text says where, and how to go on."""


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        number: From 1.
        time: In UTC.
        action: What was done.
        what: To what, as plain values without any text of the facts.
        previous: Digest of the line before.
        digest: SHA-256 of the line's bytes up to this.
    """

    number: int
    time: str
    action: str
    what: Mapping[str, Any]
    previous: str
    digest: str


@dataclass(frozen=True)
class State:
    """What is in the files of a ledger.

    Attributes:
        entries: The whole lines.
        size: How many bytes these have.
        tail: What is left of a line after them that was not finished.
        lost: Number and digest of the last line where it had been finished once and is only a tail now.
        noted: Whether the head knows the last entry.
    """

    entries: Sequence[Entry]
    size: int
    tail: bytes
    lost: tuple[int, str] | None
    noted: bool


def own_salt() -> Salt:
    """The salt of this machine's user, made when it is first wanted; who loses it can verify no fact any more."""
    return read_salt(home() / "salt", create=True)


def ledger_file() -> Path:
    """The ledger of this machine's user."""
    return home() / "ledger.jsonl"


def append(action: str, what: Mapping[str, Any], ledger: Path | None = None) -> Entry:
    """Add a line. The ledger is verified first, so that a broken one is noticed and not built on.

    Raises:
        LedgerError: The ledger is broken.
        InputError: There is no such action.
        OSError: It cannot be written to.
    """
    if action not in ACTIONS:
        raise InputError(f"action {action!r} is none; there are {', '.join(ACTIONS)}")
    ledger = ledger or ledger_file()
    ledger.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(ledger):
        state = _read(ledger)
        with os.fdopen(os.open(ledger, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as out:
            out.truncate(state.size)
            out.seek(state.size)
            last = state.entries[-1] if state.entries else None
            if last and not _ends_line(out, state.size):
                _write(out, b"\n")
            if last and not state.noted and not state.lost:
                _write_head(ledger, last.number, last.digest)
            if state.lost:
                number, digest = state.lost
                told = {"line": number, "digest": digest, "left": state.tail.decode("utf-8", "backslashreplace")}
                last = _add(out, ledger, last, RECOVERED, told)
            return _add(out, ledger, last, action, what)


def read(ledger: Path | None = None) -> Sequence[Entry]:
    """The lines of a ledger that is whole; none where there is none. Writes nothing.

    Raises:
        LedgerError: A line was edited, moved, taken out or cut short; the text says which.
        InputError: It is no file.
        OSError: It cannot be read.
    """
    ledger = ledger or ledger_file()
    state = look(ledger)
    if state.lost:
        raise LedgerError(
            f"line {state.lost[0]} of {ledger} is cut short: {len(state.tail)} bytes of it are left. Put a copy of the "
            "whole file back if there is one; otherwise the next command writes down that the line was lost, with what "
            f"is left of it, and goes on after line {len(state.entries)}"
        )
    return state.entries


def look(ledger: Path) -> State:
    """A ledger with what an interrupted command has left at its end. Writes nothing.

    Raises:
        LedgerError: A line was edited, moved or taken out.
        InputError: It is no file.
        OSError: It cannot be read.
    """
    if ledger.exists() and not ledger.is_file():
        raise InputError(f"{ledger} is no file; a ledger is one, usually ledger.jsonl")
    if not _head(ledger).exists() and not ledger.exists():
        return State([], 0, b"", None, True)
    with _locked(ledger, reading=True):
        return _read(ledger)


def _read(ledger: Path) -> State:
    """The files as they are; the lock must be held."""
    content = read_bytes(ledger) if ledger.exists() else b""
    *lines, tail = content.split(b"\n")
    head = _read_head(ledger)
    if tail and _entry(tail):  # only the end of the line is missing
        lines, tail = [*lines, tail], b""
    entries: list[Entry] = []
    for number, line in enumerate(lines, start=1):
        entry = _entry(line)
        if entry is None:
            raise _broken(ledger, f"line {number} of {ledger} was edited: it is not what its digest says")
        if (entry.number, entry.previous) != (number, entries[-1].digest if entries else FIRST):
            raise _broken(
                ledger, f"before line {number} of {ledger} a line is missing or was moved: the chain is broken"
            )
        entries.append(entry)
    ends = [(0, FIRST), *((entry.number, entry.digest) for entry in entries)]
    state = State(entries, len(content) - len(tail), tail, None, head == ends[-1])
    if state.noted or (head in ends[-2:-1] and not tail):  # or interrupted between line and head
        return state
    if tail and head[0] == len(entries) + 1:
        return replace(state, lost=head)
    raise _broken(
        ledger,
        f"{ledger} ends with line {len(entries)}, and {_head(ledger).name} says that line {head[0]} was the last: "
        "lines are missing, or the head is",
    )


def _broken(ledger: Path, why: str) -> LedgerError:
    return LedgerError(
        f"{why}. Put a copy of {ledger.name} and {_head(ledger).name} back if there is one; otherwise move both "
        "elsewhere as they are, and the next command begins a new ledger"
    )


def _entry(line: bytes) -> Entry | None:
    """A line that is what its digest says."""
    match = LINE.fullmatch(line)
    if match is None or hashlib.sha256(match[1]).hexdigest() != match[2].decode():
        return None
    try:
        parts = json.loads(line, object_pairs_hook=_without_repeats)
        entry = Entry(**parts)
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (entry.time, entry.action, entry.previous, entry.digest)
    plain = type(entry.number) is int and isinstance(entry.what, dict) and all(isinstance(text, str) for text in texts)
    return entry if plain else None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are each there once; of two of a name, readers may take either."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InputError("a name is there twice")
    return found


def _add(out: Any, ledger: Path, last: Entry | None, action: str, what: Mapping[str, Any]) -> Entry:
    parts: dict[str, Any] = {
        "number": last.number + 1 if last else 1,
        "time": now(),
        "action": action,
        "what": dict(what),
        "previous": last.digest if last else FIRST,
    }
    line, digest = line_of(parts)
    _write(out, line + b"\n")
    os.fsync(out.fileno())
    _write_head(ledger, parts["number"], digest)
    return Entry(**parts, digest=digest)


def line_of(parts: Mapping[str, Any]) -> tuple[bytes, str]:
    """The line of an entry without its digest, and that digest. All of it is ASCII, whatever is in a file's name."""
    start = json.dumps(parts, sort_keys=True, separators=(",", ":")).encode("ascii").removesuffix(b"}")
    digest = hashlib.sha256(start).hexdigest()
    return start + f',"digest":"{digest}"}}'.encode(), digest


def _write(out: Any, content: bytes) -> None:
    while content:
        content = content[out.write(content) :]


def _ends_line(out: Any, size: int) -> bool:
    """Whether the byte before a place is the end of a line; leaves `out` at that place."""
    out.seek(size - 1)
    return bool(out.read(1) == b"\n")


@contextmanager
def _locked(ledger: Path, reading: bool = False) -> Iterator[None]:
    """Keep others from writing. Whoever may not write beside the ledger reads it without."""
    from filelock import FileLock, Timeout

    lock = ledger.with_name(f"{ledger.name}.lock")
    try:
        held: AbstractContextManager[Any] = FileLock(lock, timeout=WAIT, poll_interval=POLL).acquire()
    except Timeout as error:
        raise OSError(f"another process has held {lock} for {WAIT:g} seconds; end it and try again") from error
    except OSError:
        if not reading:
            raise
        held = nullcontext()
    with held:
        yield


def _head(ledger: Path) -> Path:
    return ledger.with_suffix(".head")


def _read_head(ledger: Path) -> tuple[int, str]:
    head = _head(ledger)
    try:
        number, digest = read_text(head, "ascii").split()
        return int(number), digest
    except FileNotFoundError:
        return 0, FIRST
    except ValueError:
        raise _broken(ledger, f"{head} is no head of a ledger: it must hold a number and a digest") from None


def _write_head(ledger: Path, number: int, digest: str) -> None:
    with whole_file(_head(ledger)) as partial:
        partial.write_text(f"{number} {digest}\n", encoding="ascii")
