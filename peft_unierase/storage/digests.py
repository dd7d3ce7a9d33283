"""SHA-256 of files, and those that an erasure's record names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .plain import open_plain

CHUNK = 1 << 20


def sha256(file: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open_plain(file) as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def recorded_digests(record: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 that a record, an in-toto Statement, names for files; what is malformed is left out."""
    found: dict[str, str] = {}
    subject = record.get("subject")
    for entry in subject if isinstance(subject, list) else []:
        digest = entry.get("digest") if isinstance(entry, Mapping) else None
        if isinstance(digest, Mapping) and "sha256" in digest:
            found[str(entry.get("name"))] = str(digest["sha256"])
    return found
