"""Files from outside, opened as plain files alone, and JSON from outside, parsed without a surprise.

A pipe or a device that is named like a file would otherwise hold a command up for ever. What the values in a file must
be is said in `schema`.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError

MOST_JSON = 16 << 20
DEEPEST = 64
INNER_FOLDERS = 2
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotPlainError(OSError):
    """A pipe, a device, a socket or a folder in the place of a file, or a file that is too large for what it is."""


class JsonError(InputError):
    """A text that is no JSON, or JSON that nobody could have meant."""


def plain(file: str | Path) -> Path:
    """The path of a plain file, for a library that opens it by itself. Links are followed.

    Raises:
        NotPlainError: It is something else.
        OSError: It is not there, or cannot be looked at.
    """
    _check(os.stat(file), file)
    return Path(file)


def open_plain(file: str | Path) -> BinaryIO:
    """Open a plain file for reading. It does not wait for a pipe, also for one that took the file's place just now.

    Raises:
        NotPlainError: It is something else.
        OSError: It cannot be opened.
    """
    plain(file)  # first, because opening a device may already do something
    opened = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check(os.fstat(opened), file)
        return os.fdopen(opened, "rb")
    except BaseException:
        os.close(opened)
        raise


def read_bytes(file: str | Path, most: int | None = None) -> bytes:
    """All bytes of a plain file.

    Args:
        file: The file.
        most: The largest number of bytes that it may have; any if `None`.

    Raises:
        NotPlainError: It is no plain file, or larger.
        OSError: It cannot be read.
    """
    with open_plain(file) as opened:
        content = opened.read() if most is None else opened.read(most + 1)
    if most is not None and len(content) > most:
        raise NotPlainError(errno.EFBIG, f"larger than {most:,} bytes", str(file))
    return content


def read_text(file: str | Path, encoding: str = "utf-8", most: int | None = None) -> str:
    """The text of a plain file, with line ends as Python has them.

    Raises:
        UnicodeDecodeError: It is in another encoding.
        OSError: See [`read_bytes`].
    """
    return read_bytes(file, most).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def read_json(file: str | Path, most: int = MOST_JSON) -> Any:
    """What a JSON file holds.

    Raises:
        JsonError: It is no JSON, not UTF-8, or nested too deeply.
        OSError: See [`read_bytes`].
    """
    try:
        return parse_json(read_bytes(file, most).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise JsonError(f"it is not UTF-8 ({error.reason} at byte {error.start})") from error


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        JsonError: It is no JSON, or it is nested more than `DEEPEST` deep: Python could read some of that, and then
            neither show nor compare it.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise JsonError(f"it is nested more than {DEEPEST} deep") from None
    except ValueError as error:
        raise JsonError(f"{error}") from error
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
        raise JsonError(f"it is nested more than {DEEPEST} deep")
    return value


def check_plain_folder(folder: str | Path) -> None:
    """Refuse a folder in which a pipe, a device or a socket is, before a library opens what is in it.

    Raises:
        NotPlainError: There is one.
    """
    if os.path.isdir(folder):
        _check_entries(str(folder), INNER_FOLDERS)


def _check_entries(folder: str, depth: int) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                mode = entry.stat().st_mode
            except OSError:  # a link to nowhere, which nothing can open
                continue
            if not stat.S_ISDIR(mode):
                _check(entry.stat(), entry.path)
            elif depth and not entry.name.startswith(".") and not entry.is_symlink():
                _check_entries(entry.path, depth - 1)


def _check(status: os.stat_result, file: str | Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise NotPlainError(errno.EINVAL, f"{kind}, and no plain file; put the file itself there", str(file))


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [inner for inner in chain.from_iterable(inside) if isinstance(inner, list | dict)]
        if not level:
            return False
    return True
