"""Does an erasure's folder hold what its record says? Digests, base, and for who holds the salt, the facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..storage.digests import recorded_digests
from ..storage.names import RECORD_NAME, WEIGHTS_NAME
from .record import Salt, coverage, file_digests, predicate_of

if TYPE_CHECKING:
    from ..data.facts import Fact

HOLDS, FAILS, OPEN = "holds", "FAILS", "not compared"


@dataclass(frozen=True)
class Comparison:
    """What one comparison came to.

    Attributes:
        what: What was compared.
        outcome: `holds`, `FAILS`, or `not compared`.
        why: In words.
    """

    what: str
    outcome: str
    why: str


def verify_files(folder: Path, record: dict[str, Any], digests: Mapping[str, str] | None = None) -> list[Comparison]:
    """One finding for each file that the record names, and for each further one that it should have named.

    Args:
        folder: Where they are.
        record: The Statement about them.
        digests: SHA-256 of the files by name, if they are known already.
    """
    wanted, found = recorded_digests(record), file_digests(folder) if digests is None else digests
    findings = []
    for name, digest in sorted(wanted.items()):
        if name not in found:
            findings.append(Comparison(name, FAILS, "the record names it, and it is not there"))
        elif found[name] != digest:
            findings.append(Comparison(name, FAILS, f"its SHA-256 is {found[name]}, and the record says {digest}"))
        else:
            findings.append(Comparison(name, HOLDS, f"sha256 {digest}"))
    extra = sorted(found.keys() - wanted.keys())
    return findings + [Comparison(name, FAILS, "it is there, and the record does not name it") for name in extra]


def verify_facts(record: dict[str, Any], facts: Sequence[Fact], salt: Salt) -> Comparison:
    """Whether exactly these facts were erased.

    Raises:
        ValueError: The record says nothing of facts.
    """
    told = predicate_of(record).get("facts")
    if not told:
        raise InputError(f"{RECORD_NAME} says nothing of the facts, so they cannot be compared")
    digests = told["digests"]
    adapter = recorded_digests(record).get(WEIGHTS_NAME)
    if adapter is None:
        raise InputError(f"{RECORD_NAME} has no digest of {WEIGHTS_NAME}, so the facts cannot be compared")
    missing, left = coverage(facts, digests, salt.key(adapter))
    if not missing and not left:
        return Comparison("facts", HOLDS, f"exactly these {len(facts)} were erased")
    if len(missing) == len(facts):
        why = "none of them is in the record: they are other facts, or the salt is another one"
    else:
        parts = [
            f"{len(missing)} of the {len(facts)} are not in the record, the first of them {missing[0].question!r}"
            if missing
            else "",
            f"{left} in the record are not among these" if left else "",
        ]
        why = "; ".join(part for part in parts if part)
    return Comparison("facts", FAILS, why)
