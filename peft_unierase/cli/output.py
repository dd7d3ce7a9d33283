"""How the command speaks: data on stdout, talk on stderr, one exit status for each kind of ending."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

BAD_INPUT = 2
INTERRUPTED = 130


class Format(str, Enum):
    """What stdout shows: `auto` is human on a terminal and json in a pipe."""

    AUTO = "auto"
    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"

    def resolved(self) -> Format:
        if self is not Format.AUTO:
            return self
        return Format.HUMAN if sys.stdout.isatty() else Format.JSON


def say(text: str = "") -> None:
    """Talk: a line on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def show(text: str = "") -> None:
    """Data: a line on stdout."""
    print(text, flush=True)  # noqa: T201


def show_json(value: Any) -> None:
    show(json.dumps(value, indent=2, ensure_ascii=False))


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
