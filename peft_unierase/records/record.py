"""`erasure.json`: what was done and to which files, without a word of the facts.

It is an in-toto Statement, version 1 (github.com/in-toto/attestation, spec/v1/statement.md), so that tools made for
those can read it. The subjects are the files that do the erasing, with their SHA-256; the predicate says how they came
to be. Facts stand in it as HMAC-SHA256 (RFC 2104) under a key that only their owner can make: who has it can tell
whether a fact was among them, and nobody else can test a guess.
"""

from __future__ import annotations

import hmac
import json
import os
import platform
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, shown
from ..storage.digests import sha256
from ..storage.names import RECORD_NAME, is_recorded
from ..storage.output import write_json
from ..storage.plain import read_text

if TYPE_CHECKING:
    from ..data.facts import Fact

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:peft-unierase:erasure:v1"
PACKAGES = ("peft", "transformers", "torch", "safetensors")
SALT_BYTES = 32
LONGEST_SALT = 1 << 16


@dataclass(frozen=True)
class Salt:
    """The secret behind the digests of facts. It stays with the owner.

    Attributes:
        value: At least 16 bytes.
    """

    value: bytes

    def key(self, adapter: str) -> bytes:
        """The key of one erasure: another one for each, so that equal facts of two erasures look different.

        Args:
            adapter: SHA-256 of its weights, in hex.
        """
        return hmac.digest(self.value, f"unierase {adapter}".encode(), "sha256")


def read_salt(file: Path, create: bool = False) -> Salt:
    """Read the salt, as hex in a file, or make one there.

    Raises:
        ValueError: There is none and `create` is false, or it is no hex or shorter than 16 bytes.
        OSError: It cannot be written.
    """
    if not os.path.lexists(file):
        if not create:
            raise InputError(f"no such file: {file}; it must hold the salt that the erasure was recorded with")
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = file.with_name(f".{file.name}.{os.getpid()}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(os.urandom(SALT_BYTES).hex() + "\n")
        with suppress(FileExistsError):  # another process was faster, and both must go on with one salt
            os.link(new, file)
        new.unlink()
    try:
        value = bytes.fromhex(read_text(file, "ascii", LONGEST_SALT).strip())
    except ValueError as error:
        raise InputError(f"{file} is no salt: it must hold hexadecimal digits and nothing else") from error
    if len(value) < 16:
        raise InputError(f"{file} holds {len(value)} bytes, too few to be a secret; a salt has at least 16")
    return Salt(value)


def fact_digests(facts: Iterable[Fact], key: bytes) -> list[str]:
    """HMACs of facts, sorted, so that their order tells nothing; equal facts have one each."""
    return sorted(fact_digest(fact, key) for fact in facts)


def fact_digest(fact: Fact, key: bytes) -> str:
    """HMAC-SHA256 of question and answer, in Unicode's composed form (NFC), as a JSON array in UTF-8."""
    pair = [unicodedata.normalize("NFC", text) for text in (fact.question, fact.answer)]
    return hmac.new(key, json.dumps(pair, ensure_ascii=False).encode(), "sha256").hexdigest()


def statement(folder: Path, predicate: Mapping[str, Any]) -> dict[str, Any]:
    """The Statement about the files of a folder, all but those that may change later (card, report, signature)."""
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in file_digests(folder).items()],
        "predicateType": PREDICATE,
        "predicate": dict(predicate),
    }


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that a Statement is about, by their paths in the folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    named = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: sha256(file) for name, file in named.items() if is_recorded(name)}


def predicate_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a Statement says of an erasure.

    Raises:
        ValueError: It is no such Statement.
    """
    from ..storage.schema import Statement
    from ..storage.values import checked

    checked(Statement, record, "it is no record of an erasure")
    predicate: dict[str, Any] = record["predicate"]
    return predicate


def made_with() -> dict[str, str]:
    """Versions of what a run's outcome depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time in UTC, to the second, or what SOURCE_DATE_EPOCH says, so that a run can be repeated to the byte."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = datetime.fromtimestamp(int(epoch), timezone.utc) if epoch else datetime.now(timezone.utc)
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(
            f"SOURCE_DATE_EPOCH is {shown(epoch)}; it must be a number of seconds since 1970, or not be set"
        ) from error
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def coverage(facts: Sequence[Fact], digests: Sequence[str], key: bytes) -> tuple[list[Fact], int]:
    """Compare facts with the digests of those that were erased.

    Returns:
        Those of `facts` that are not among them, and how many digests belong to none of `facts`.
    """
    left = Counter(digests)
    missing = []
    for fact in facts:
        digest = fact_digest(fact, key)
        if left[digest]:
            left[digest] -= 1
        else:
            missing.append(fact)
    return missing, left.total()


def write_record(folder: Path, predicate: Mapping[str, Any]) -> None:
    """Write the Statement about the files that are in the folder."""
    write_json(folder / RECORD_NAME, statement(folder, predicate))
