"""A line in the ledger after every command that makes, judges or hands on an erasure."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UniEraseError
from ..records import ledger
from ..records.record import file_digests
from ..storage.names import home
from ..storage.output import check_new
from ..storage.plain import read_json
from ..storage.whole import claimed, tidy, whole_file
from .output import say

Written = Callable[..., None]


def note(action: str, folder: Path | None, **what: Any) -> None:
    """Write it down; where that fails the work is done all the same, and that it is not written down is said.

    Args:
        action: What was done.
        folder: What came of it: its files' digests are noted.
        **what: What else is noted.
    """
    try:
        if folder is not None:
            what = {"folder": str(folder.absolute()), "files": what.get("files") or file_digests(folder), **what}
        ledger.append(action, what)
        if folder is not None:
            _promise(folder).unlink(missing_ok=True)
    except (OSError, UniEraseError) as error:
        say(f"warning: this is not in the ledger: {error}")


def promise(action: str, folder: Path, command: Mapping[str, Any], **what: Any) -> None:
    """Keep what `note` will write down, just before `folder` is there: if the command is killed after that, the same
    command finds it and goes on.

    Args:
        action: What is done.
        folder: What comes of it.
        command: What was asked for, as plain values.
        **what: What is noted, the digests of the folder's files as `files` among it.
    """
    told: dict[str, Any] = {"action": action, "command": command, "what": {"folder": str(folder.absolute()), **what}}
    try:
        told["after"] = len(ledger.read())
        place = _promise(folder)
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with whole_file(place, 0o600) as partial:
            partial.write_text(json.dumps(told), encoding="ascii")
    except (OSError, UniEraseError):  # which `note` will say
        return


def keep_promise(action: str, folder: Path, command: Mapping[str, Any]) -> dict[str, Any] | None:
    """Write down what a killed command had promised to, if it was the same one.

    Returns:
        What is noted of it; `None` if there is nothing to go on from.

    Raises:
        InputError: Another process is writing to the folder now.
    """
    place = _promise(folder)
    try:
        told = read_json(place)
        same = told["action"] == action and told["command"] == json.loads(json.dumps(command))
        if not same or not folder.is_dir() or file_digests(folder) != told["what"]["files"]:
            return None
        what, after = dict(told["what"]), int(told["after"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    tidy(folder)  # of what it had replaced and was killed while removing
    try:
        noted = any(entry.action == action and entry.what == what for entry in ledger.read()[after:])
        if not noted:
            ledger.append(action, what)
        place.unlink(missing_ok=True)
    except (OSError, UniEraseError) as error:
        say(f"warning: this is not in the ledger: {error}")
    return what


def noted_once(
    action: str, folder: Path, command: Mapping[str, Any], work: Callable[[Written], None]
) -> dict[str, Any]:
    """Do what makes a folder and note it. If the same command was killed between the two, it is only noted.

    Args:
        action: What is done.
        folder: What comes of it.
        command: What was asked for, as plain values.
        work: Does it; what it is called with it calls with the place where all of it is and with what is to be noted,
            just before that place becomes the folder.

    Returns:
        What is noted of it.

    Raises:
        InputError: Something is in the folder, or it cannot be written to; `work` was not called.
    """
    with claimed(folder):
        if (kept := keep_promise(action, folder, command)) is not None:
            return kept
        check_new(folder)
        told: dict[str, Any] = {}

        def written(place: Path, **what: Any) -> None:
            told.update(what, files=what.get("files") or file_digests(place))
            promise(action, folder, command, **told)

        work(written)
        note(action, folder, **told)
        return told


def _promise(folder: Path) -> Path:
    return home() / "promised" / f"{hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:32]}.json"
