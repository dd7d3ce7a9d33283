"""`unierase verify`: does an erasure hold what its record says?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .output import Format, clear_endings, show, show_json, table
from .sets import Reading

FAILED = 1


@dataclass(frozen=True)
class VerifyPlan:
    """What the command line asked for; see the options of `unierase verify`."""

    adapter: str
    forget: str | None
    salt_file: Path | None
    base: str | None
    public_key: Path | None
    reading: Reading


def run_verify(plan: VerifyPlan, style: Format) -> None:
    """Compare and show; ends the process with status 1 where something fails, 2 on bad input."""
    with clear_endings():
        findings = verified(plan)
    failed = [finding for finding in findings if finding.outcome == "FAILS"]
    if style is Format.JSON:
        show_json({"adapter": plan.adapter, "holds": not failed, "findings": [vars(finding) for finding in findings]})
    elif style is Format.HUMAN:
        show(table(("what", "outcome", "why"), [(f.what, f.outcome, f.why) for f in findings]))
        show(f"\n{len(failed)} of {len(findings)} fail." if failed else "\nWhat was compared holds.")
    if failed:
        raise SystemExit(FAILED)


def verified(plan: VerifyPlan) -> list[Any]:
    """All findings."""
    from ..records.ledger import own_salt
    from ..records.read import read_statement
    from ..records.record import read_salt
    from ..records.sign import verify_signature
    from ..records.verify import OPEN, Comparison, verify_facts, verify_files
    from ..storage.source import entire_folder

    facts = plan.reading.forget(plan.forget) if plan.forget else None
    salt = read_salt(plan.salt_file) if plan.salt_file else own_salt() if facts else None
    folder = entire_folder(plan.adapter)
    record = read_statement(folder)
    if record is None:
        raise InputError(f"{plan.adapter} has no erasure.json, so there is nothing to compare with")
    findings = verify_files(folder, record)
    findings.append(verify_base(plan, folder))
    if facts is not None and salt is not None:
        findings.append(verify_facts(record, facts, salt))
    else:
        findings.append(Comparison("facts", OPEN, "give the forget set with --forget, and your salt with --salt-file"))
    if plan.public_key:
        findings.append(verify_signature(folder, plan.public_key))
    return findings


def verify_base(plan: VerifyPlan, folder: Path) -> Any:
    """Whether the base that is named has the fingerprint in the config."""
    from ..records.read import read_config
    from ..records.verify import FAILS, HOLDS, OPEN, Comparison
    from .base import load_base, prepare_libraries

    if plan.base is None:
        return Comparison("base", OPEN, "name the base with --base to compare its weights")
    prepare_libraries()
    parts = read_config(str(folder)).split()
    if not all(part.base_fingerprint for part in parts):
        return Comparison("base", OPEN, "the erasure carries no fingerprint of its base")
    from ..adapter.fingerprint import base_fingerprint

    model, _ = load_base(plan.base, parts[0].base_dtype or "auto", None)
    for part in parts:
        try:
            found = base_fingerprint(model, part.target_modules)
        except AttributeError:
            return Comparison("base", FAILS, f"{plan.base} has no {part.target_modules[0]}; it is another model")
        if found is None:
            return Comparison("base", OPEN, f"{plan.base} is quantised, so its weights cannot be compared")
        if found != part.base_fingerprint:
            return Comparison("base", FAILS, f"{plan.base} has {found}, and the erasure is for {part.base_fingerprint}")
    return Comparison("base", HOLDS, f"{plan.base} has the fingerprint {parts[0].base_fingerprint}")
