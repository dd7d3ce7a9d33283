"""How the command speaks: data on stdout, talk on stderr, one exit status for each kind of ending."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer

from ..errors import ProcessError, UniEraseError, no_memory
from ..lm.processes import told
from ..version import __version__

BAD_INPUT = 2
BUG = 70  # EX_SOFTWARE of sysexits.h; 1 is for what was judged and not accepted
LOST = 75  # EX_TEMPFAIL: another process has ended, and the same command can be given again
INTERRUPTED = 130
REPORT_IT = "Please report it with the lines above and the command that you gave, but without your facts (SECURITY.md)"
# Control characters but tab and line end, other ends of lines, marks that turn the order of letters, half characters.
UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Format(str, Enum):
    """What stdout shows: `auto` is human on a terminal and json in a pipe."""

    AUTO = "auto"
    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"

    def resolved(self) -> Format:
        if told()[0]:
            return Format.QUIET  # the main process shows what all have made
        if self is not Format.AUTO:
            return self
        return Format.HUMAN if sys.stdout and sys.stdout.isatty() else Format.JSON


def say(text: str = "") -> None:
    """Talk: a line on stderr, of the main process if there are several."""
    if told()[0] == 0:
        _say(text)


def _say(text: str) -> None:
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
    """End with an error text, in one line, and a status."""
    number, count = told()
    where = f" in process {number + 1} of {count}" if number else ""
    _say(f"error{where}: {' '.join(message.split())}")
    raise SystemExit(status)


@contextmanager
def clear_endings(unfinished: Path | None = None, nothing: str = "nothing was written") -> Iterator[None]:
    """Turn bad input, a full disk and Ctrl-C into one line each, and the exit status that belongs to it.

    Any other error is a bug of this package: it shows its traceback, and how to report it.

    Args:
        unfinished: A folder that holds finished stages if there are some.
        nothing: What is left if it holds none.
    """

    def left() -> str:
        if unfinished is None or not os.path.isdir(unfinished):
            return nothing
        return f"nothing was written but the finished stages in {unfinished}, after which the same command goes on"

    try:
        yield
    except ProcessError as error:
        fail(f"{error}; {left()}", LOST)
    except UniEraseError as error:
        fail(f"{error}")
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read the output has enough of it
            raise
        fail(f"{error}; {left()}")
    except KeyboardInterrupt as error:
        end_quietly()
        fail(f"{str(error) or 'interrupted'}; {left()}", INTERRUPTED)
    except (typer.Abort, typer.Exit):
        raise
    except Exception as error:
        if (told := usage_error(error)) is not None:
            fail(told)
        if no_memory(error):
            fail(f"the memory is full ({error}); {left()}")
        if isinstance(error, ValueError) and "embedded null" in str(error):  # what the system would say of such a path
            fail(f"a name holds a null byte, which no file's can; {left()}")
        traceback.print_exc()
        _say(f"error: this is a bug in peft-unierase {__version__}. {REPORT_IT}")
        raise SystemExit(BUG) from error


def usage_error(error: Any) -> str | None:
    """What an error about the command line says; `None` of another one, and of one that shows the help."""
    kinds = [each.__name__ for each in type(error).__mro__]  # of click, or of the copy of it in newer typers
    if "ClickException" not in kinds:
        return None
    if "NoArgsIsHelpError" in kinds:
        raise error
    context = getattr(error, "ctx", None)
    return f"{error.format_message().rstrip('.')}; see `{context.command_path if context else 'unierase'} --help`"


def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    """The first Ctrl-C: what was begun is tidied up."""
    signal.signal(signal.SIGINT, interrupt_again)
    raise KeyboardInterrupt


def interrupt_again(signum: int, frame: FrameType | None) -> NoReturn:
    """The second one while that is done: end at once."""
    os.write(2, b"error: interrupted twice; the next run removes what is left of this one\n")
    os._exit(INTERRUPTED)


def terminate(signum: int, frame: FrameType | None) -> NoReturn:
    """What a launcher sends to the processes that are left when one of them has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt("ended by the launcher, because another process has ended or the run was stopped")


def end_quietly() -> None:
    """Let any further Ctrl-C end the process without a word, if it is the command's own."""
    if signal.getsignal(signal.SIGINT) in (interrupt, interrupt_again):
        signal.signal(signal.SIGINT, lambda signum, frame: os._exit(INTERRUPTED))
