"""`unierase verify`: does an erasure hold what its record says?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .options import FormatOption, SaltFileOption
from .output import Format, clear_endings, show, show_json, table
from .sets import ForgetReading

EXAMPLES = (
    "Examples:\n\nunierase verify org/erase-xyz\n\n"
    "unierase verify erase-xyz --forget forget.jsonl --salt-file salt --base org/model"
)
FAILED = 1


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What the command line asks for."""

    adapter: Annotated[str, typer.Argument(help="Folder or Hub id of an erasure.")]
    forget: Annotated[
        str | None, typer.Option(help="Facts: were exactly these erased? Needs the salt.", show_default=False)
    ] = None
    salt_file: SaltFileOption = None
    base: Annotated[
        str | None, typer.Option(help="A model: is it the base that it was made for?", show_default=False)
    ] = None
    public_key: Annotated[
        Path | None, typer.Option(help="Key of who signed it, in PEM: is the signature theirs?", show_default=False)
    ] = None
    reading: ForgetReading


def verify(options: VerifyOptions, format: FormatOption = Format.AUTO) -> None:
    """Compare an erasure with its record: files, base, facts, signature. Status 1 where something fails."""
    style = format.resolved()
    with clear_endings():
        from ..records.verify import verify
        from .base import prepare_libraries

        facts = options.reading.forget(options.forget) if options.forget else None
        if options.base:
            prepare_libraries()
        found = verify(
            options.adapter,
            facts=facts,
            salt_file=options.salt_file,
            base=options.base,
            public_key=options.public_key,
        )
    failed = [each for each in found if each.outcome == "FAILS"]
    if style is Format.JSON:
        show_json({"adapter": options.adapter, "holds": not failed, "findings": [vars(each) for each in found]})
    elif style is Format.HUMAN:
        show(table(("what", "outcome", "why"), [(each.what, each.outcome, each.why) for each in found]))
        show(f"\n{len(failed)} of {len(found)} fail." if failed else "\nWhat was compared holds.")
    if failed:
        raise SystemExit(FAILED)
