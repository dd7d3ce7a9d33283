"""Does an erasure hold what its record says? Files, base, facts and signature are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.facts import Fact
from ..errors import InputError
from ..storage.names import RECORD_NAME
from ..storage.plain import check_plain_folder
from ..storage.source import resolve
from .compare import FAILS, HOLDS, OPEN, Comparison, verify_facts, verify_files
from .ledger import own_salt
from .read import read_config, read_statement
from .record import read_salt

FACTS_WANTED = (
    "give the forget set as `facts=` (on the command line --forget), and your salt as `salt_file=` (on the command "
    "line --salt-file)"
)


def verify(
    erasure: str | Path,
    *,
    facts: Sequence[Fact] | None = None,
    salt_file: str | Path | None = None,
    base: str | Path | None = None,
    public_key: str | Path | None = None,
) -> list[Comparison]:
    """Compare an erasure with its record.

    Args:
        erasure: Its folder or Hub id.
        facts: What should have been erased, exactly.
        salt_file: The secret of whoever erased it; by default this user's. Wanted for `facts` alone.
        base: A model's folder or Hub id: is it the base that the erasure was made for?
        public_key: An elliptic-curve key in PEM: is the signature theirs? Needs the extra `sign`.

    Returns:
        What each comparison came to: `holds`, `FAILS` or `not compared`.

    Raises:
        ValueError: There is no erasure, it has no record, the record says nothing of facts, a file is not what it
            should be, or the base cannot be loaded.
        ImportError: model-signing is not installed.

    Example:

        ```py
        >>> all(each.outcome != "FAILS" for each in verify("org/erase-xyz"))
        True
        ```
    """
    salt = read_salt(Path(salt_file)) if salt_file else own_salt() if facts else None
    folder = resolve(erasure, entire=True).folder
    check_plain_folder(folder)
    record = read_statement(folder)
    if record is None:
        raise InputError(f"{erasure} has no {RECORD_NAME}, so there is nothing to compare with")
    found = [*verify_files(folder, record), verify_base(folder, None if base is None else str(base))]
    if facts is not None and salt is not None:
        found.append(verify_facts(record, facts, salt))
    else:
        found.append(Comparison("facts", OPEN, FACTS_WANTED))
    if public_key:
        from .sign import verify_signature

        found.append(verify_signature(folder, Path(public_key)))
    return found


def verify_base(folder: Path, base: str | None) -> Comparison:
    """Whether a base has the fingerprint in the config of an erasure.

    Raises:
        ValueError: There is no erasure, or the base cannot be loaded.
    """
    if base is None:
        return Comparison("base", OPEN, "name the base to compare its weights: `base=` (on the command line --base)")
    parts = read_config(str(folder)).split()
    if not all(part.base_fingerprint for part in parts):
        return Comparison("base", OPEN, "the erasure carries no fingerprint of its base")
    from ..adapter.fingerprint import base_fingerprint
    from ..lm.load import load_base

    model, _ = load_base(base, parts[0].base_dtype or "auto")
    for part in parts:
        try:
            found = base_fingerprint(model, part.target_modules)
        except AttributeError:
            return Comparison("base", FAILS, f"{base} has no {part.target_modules[0]}; it is another model")
        if found is None:
            return Comparison("base", OPEN, f"{base} is quantised, so its weights cannot be compared")
        if found != part.base_fingerprint:
            return Comparison("base", FAILS, f"{base} has {found}, and the erasure is for {part.base_fingerprint}")
    return Comparison("base", HOLDS, f"{base} has the fingerprint {parts[0].base_fingerprint}")
