"""Folders that a command writes: what may be there already, and writing them whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from .names import CONFIG_NAME
from .plain import read_json
from .whole import check_name, hides, tidy, whole_folder

OS_ERROR = re.compile(r"\(os error (\d+)\)")


def check_new(folder: Path) -> None:
    """Refuse a folder that something is in, before any work is done.

    Raises:
        ValueError: There is, it is no folder, its name is too long, another process is writing to it, or it cannot be
            written to.
    """
    check_name(folder)
    tidy(folder)
    check_folder(folder, "name a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is there already; name a new folder")
    check_writable(folder)


def check_place(folder: Path) -> None:
    """Refuse a folder that no files can be added to, before any work is done.

    Raises:
        InputError: It is no folder, its name is too long, or it cannot be written to.
    """
    check_name(folder)
    check_folder(folder, "name a folder")
    check_writable(folder)


def check_folder(folder: Path, advice: str) -> None:
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"{folder} is {'a file' if folder.is_file() else 'something else than a folder'}; {advice}")


def check_writable(folder: Path) -> None:
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{parent} cannot be written to; name another folder")


def holds_erasure(folder: Path) -> bool:
    """Whether an erasure was saved in a folder."""
    try:
        config = read_json(folder / CONFIG_NAME)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("peft_type") == "UNIERASE"


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Every error of the system as an `OSError` that names `path`; safetensors and tokenizers raise others."""
    try:
        yield
    except Exception as error:
        told = OS_ERROR.search(str(error))
        code = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        elsewhere = isinstance(error, OSError) and error.filename and not hides(path, error.filename)
        if code is None or elsewhere or isinstance(error, InputError):
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def write_folder(folder: Path, write: Callable[[Path], None], replace: bool = False) -> None:
    """Write a folder whole or not at all.

    Args:
        folder: Where to.
        write: Called with a place to write to.
        replace: Replace a folder that is there.

    Raises:
        InputError: Another process is writing there, or has written there meanwhile.
        OSError: Writing failed; the folder is as it was.
    """
    with write_errors(folder), whole_folder(folder, replace) as place:
        write(place)
        readable = place.stat().st_mode & 0o666  # by whom the umask says, of which a new folder tells
        for file in place.rglob("*"):
            if file.is_file():
                file.chmod(readable)  # safetensors writes files that only their owner can read


def write_json(file: Path, value: Any) -> None:
    """Write a value as JSON, in a form that is the same each time."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
