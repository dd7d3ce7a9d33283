"""How the command speaks: data on stdout, talk on stderr, one exit status for each kind of ending."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

BAD_INPUT = 2
INTERRUPTED = 130
# Control characters but tab and line end, other ends of lines, marks that turn the order of letters, half characters.
UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Format(str, Enum):
    """What stdout shows: `auto` is human on a terminal and json in a pipe."""

    AUTO = "auto"
    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"

    def resolved(self) -> Format:
        if self is not Format.AUTO:
            return self
        return Format.HUMAN if sys.stdout and sys.stdout.isatty() else Format.JSON


def say(text: str = "") -> None:
    """Talk: a line on stderr."""
    with suppress(OSError):  # nobody can be told that nobody can be told
        _print(text, sys.stderr)


def show(text: str = "") -> None:
    """Data: a line on stdout; the process ends where it cannot be written, quietly if its reader has gone."""
    try:
        _print(text, sys.stdout)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
    except OSError as error:
        fail(f"the output cannot be written: {error}")


def show_json(value: Any) -> None:
    utf8 = "utf" in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    show(json.dumps(value, indent=2, ensure_ascii=not utf8))


def visible(text: str) -> str:
    """A text with those characters as escapes, `\\u001b`, that a stream cannot hold or a terminal would act on.

    In JSON such an escape means the same character.
    """
    return UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _print(text: str, stream: Any) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(visible(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be: texts flush left, figures flush right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    numeric = [all(row[column][:1].isdigit() for row in rows) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        ]
        return "  " + "   ".join(padded).rstrip()

    return "\n".join([line(head), "  " + "   ".join("-" * width for width in widths), *map(line, rows)])


def fail(message: str, status: int = BAD_INPUT) -> NoReturn:
    """End with an error text and a status."""
    say(f"error: {message}")
    raise SystemExit(status)


@contextmanager
def clear_endings(unfinished: Path | None = None) -> Iterator[None]:
    """Turn bad input, a full disk and Ctrl-C into one line each, and the exit status that belongs to it.

    Args:
        unfinished: A folder that holds finished stages if there are some.
    """

    def left() -> str:
        if unfinished is None or not unfinished.is_dir():
            return "nothing was written"
        return f"nothing was written but the finished stages in {unfinished}, behind which the same command goes on"

    try:
        yield
    except (ValueError, ImportError) as error:
        fail(f"{error}")
    except OSError as error:
        fail(f"{error}; {left()}")
    except KeyboardInterrupt:
        fail(f"interrupted; {left()}", INTERRUPTED)
