"""What lies beside config and weights: the tokenizer, and the record with the digests of all files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..storage.digests import recorded_digests
from ..storage.names import RECORD_NAME, TOKENIZER_NAME
from ..storage.schema import Statement
from ..storage.values import checked
from .files import digest_of, read_json
from .findings import ANEW, Finding, note, refuse

REMOTE_CODE = "auto_map"


def check_tokenizer(folder: Path, files: Mapping[str, int]) -> list[Finding]:
    if TOKENIZER_NAME not in files:
        return []
    values, findings = read_json(folder, TOKENIZER_NAME)
    if values and values.get(REMOTE_CODE):
        what = "a tokenizer that asks for code from elsewhere"
        findings.append(refuse(what, f"{REMOTE_CODE} {values[REMOTE_CODE]!r}", "no erasure needs that"))
    return findings


def check_record(
    folder: Path,
    files: Mapping[str, int],
    record: Mapping[str, Any],
    listed: Mapping[str, int | None],
    known: Mapping[str, str],
) -> list[Finding]:
    """Hold the files against the record.

    Args:
        folder: Where they are.
        files: Their sizes by name.
        record: The Statement about them; empty if there is none.
        listed: Files of the repository on the Hub that may not be there.
        known: SHA-256 of files that were hashed already.
    """
    findings = []
    if record:
        try:
            checked(Statement, record, f"{RECORD_NAME} is no Statement")
        except ValueError as error:
            findings.append(refuse("a record that is none", f"{error}", ANEW))
    else:
        findings.append(note("no record", f"{RECORD_NAME} is missing", "nothing says how it was made and measured"))
    for name, digest in recorded_digests(record).items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            findings.append(refuse("a record that points out of the folder", name, ANEW))
        elif name in files:
            found = known.get(name) or digest_of(folder, name, files)
            if found and found != digest.lower():
                value = f"{name} has {found[:16]}…, recorded is {digest[:16]}…"
                advice = "file or record was changed since; get both anew from where they came from"
                findings.append(refuse("a file that is not the recorded one", value, advice))
        elif name not in listed and name != RECORD_NAME:
            findings.append(note("a recorded file that is not there", name, "loading may not need it"))
    return findings
