"""Folders and files that are written whole or not at all: beside their place, and then put there in one step.

Beside `NAME` there is `.NAME.partial-PID` while a process writes it. If the system cannot exchange two folders in one
step, there is `.NAME.replaced-PID` for a moment too. The next process that writes `NAME` removes what killed ones left
of these, and puts back what they replaced.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from ..errors import InputError, shown
from .names import home

try:
    import fcntl
except ImportError:  # on Windows nothing tells whether a process has ended, so what it left stays
    fcntl = None  # type: ignore[assignment]

LONGEST_NAME = 255  # bytes, on nearly every file system
OUR_MARKS = len(".") + len(".unfinished") + len(".partial-4194304")  # which go around the name of an output
LONGEST_PATH = 4096
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def check_name(path: Path) -> None:
    """Refuse a path that no file system takes, or takes without what stands beside it while it is written.

    Raises:
        InputError: Its name is too long, or holds a null byte.
    """
    absolute = os.path.abspath(path)
    if "\0" in absolute:
        raise InputError(f"{shown(absolute)} holds a null byte, which no file's name can; name another")
    *parents, name = os.fsencode(absolute).split(os.fsencode(os.sep))
    for part, most in [*((parent, LONGEST_NAME) for parent in parents), (name, LONGEST_NAME - OUR_MARKS)]:
        if len(part) > most:
            raise InputError(
                f"the name {shown(os.fsdecode(part))} has {len(part)} bytes, and at most {most} can be used; name "
                "another folder"
            )
    if len(os.fsencode(absolute)) > LONGEST_PATH - LONGEST_NAME:
        raise InputError(f"the path {shown(absolute)} is too long for the system; name another folder")


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep a place for one command, from its start to its end.

    Raises:
        InputError: Another command of this user has it.
    """
    from filelock import FileLock, Timeout

    place = home() / "locks" / f"{hashlib.sha256(os.fsencode(_real(path))).hexdigest()[:32]}.lock"
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        held: AbstractContextManager[Any] = FileLock(place, timeout=0).acquire()
    except Timeout:
        raise InputError(
            f"another command is writing to {path}; wait until it has ended, or name another folder"
        ) from None
    except OSError:  # no records can be kept here; two writers are still told apart when they have finished
        held = nullcontext()
    with held:
        yield


def tidy(path: Path) -> None:
    """Put right what processes that were killed left of writing `path`.

    Raises:
        InputError: Another process is writing there now.
    """
    path = _real(path)
    for partial in _left_by_others(path, "partial"):
        if held := _is_held(partial):
            raise InputError(
                f"another process is writing to {path}; wait until it has ended, or name another place. If there is no "
                f"such process, remove {partial}"
            )
        if held is not None:
            _remove(partial)
    for replaced in _left_by_others(path, "replaced"):
        if _is_held(replaced) is False:
            if os.path.lexists(path):
                _remove(replaced)
            else:
                replaced.rename(path)


@contextmanager
def whole_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """A place to write to that becomes `folder` when the block ends well, and is gone when it does not.

    Parents that were made for it go again, too.

    Args:
        folder: Where to.
        replace: Replace a folder that is there. It stays as it is until the new one is complete.

    Raises:
        InputError: Another process is writing there, or has written there meanwhile.
    """
    tidy(folder)
    folder = _real(folder)
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("partial", "replaced"))
    partial.mkdir()
    hold = _hold(partial)
    try:
        yield partial
        if not (replace and folder.exists()):
            _put_new(partial, folder)
        elif exchange(partial, folder):
            _remove(partial)
        else:
            folder.rename(replaced)
            partial.rename(folder)
    except BaseException:
        _remove(partial)
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        for parent in new_parents:
            with suppress(OSError):  # someone else may have put something there by now
                parent.rmdir()
        raise
    finally:
        _remove(replaced)
        if hold is not None:
            os.close(hold)


@contextmanager
def whole_file(file: Path, mode: int | None = None) -> Iterator[Path]:
    """A place to write to that becomes `file` when the block ends well, and is gone when it does not.

    Args:
        file: Where to; a file that is there is replaced.
        mode: Who may read and write it; by default whoever the umask says.
    """
    tidy(file)
    file = _real(file)
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    try:
        yield partial
        if mode is not None:
            partial.chmod(mode)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def write_text(file: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; its folder is made where there is none."""
    place = Path(file)
    place.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(place) as partial:
        partial.write_text(text, encoding="utf-8")


def hides(path: Path, other: str | bytes | int) -> bool:
    """Whether a file is where a process writes what becomes `path`."""
    return f".{_real(path).name}.partial-" in str(other)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; whether the system and the file system can."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    rename.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _put_new(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise InputError(f"another process has written to {folder} meanwhile; name a new folder") from error
        raise


def _real(path: Path) -> Path:
    """Where a path leads, so that what a link points to is replaced and not the link."""
    return Path(os.path.realpath(path))


def _left_by_others(path: Path, kind: str) -> list[Path]:
    """What stands beside a path for processes that write it."""
    name = re.compile(rf"\.{re.escape(path.name)}\.{kind}-[0-9]+")
    try:
        return [path.parent / entry for entry in sorted(os.listdir(path.parent)) if name.fullmatch(entry)]
    except OSError:
        return []


def _is_held(left: Path) -> bool | None:
    """Whether a process is writing there; `None` if that cannot be told."""
    hold = None
    try:
        hold = _hold(left)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        if hold is not None:
            os.close(hold)
    if _process(left) == os.getpid():
        return False if hold is not None else None
    return None if _has_started(left) else False


def _hold(folder: Path) -> int | None:
    """A descriptor that keeps others from taking a folder for a dead process's, until it is closed or the process ends;
    `None` if the system has no such thing.

    Raises:
        BlockingIOError: Another one does.
    """
    if fcntl is None:
        return None
    hold = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(hold)
        raise
    except OSError:  # a file system without locks
        os.close(hold)
        return None
    return hold


def _process(left: Path) -> int:
    return int(left.name.rpartition("-")[2])


def _has_started(left: Path) -> bool:
    """Whether there is a process of the number that a name ends with."""
    if fcntl is None:  # where asking would end it
        return True
    try:
        os.kill(_process(left), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
