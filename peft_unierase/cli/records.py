"""The commands that look after the record: verify, log, restore, sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    AnswerColumnOption,
    DeviceMapOption,
    FormatOption,
    QuestionColumnOption,
    SplitOption,
    StripMarkupOption,
)
from .output import Format
from .sets import Reading

app = typer.Typer()


@app.command(
    epilog="Examples:\n\nunierase verify org/erase-xyz\n\n"
    "unierase verify erase-xyz --forget forget.jsonl --salt-file salt --base org/model"
)
def verify(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub id of an erasure.")],
    forget: Annotated[
        str | None, typer.Option(help="Facts: were exactly these erased? Needs the salt.", show_default=False)
    ] = None,
    salt_file: Annotated[
        Path | None, typer.Option(help="The owner's secret; by default this user's.", show_default=False)
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="A model: is it the base that it was made for?", show_default=False)
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="Key of who signed it, in PEM: is the signature theirs?", show_default=False)
    ] = None,
    question_column: QuestionColumnOption = None,
    answer_column: AnswerColumnOption = None,
    split: SplitOption = "train",
    strip_markup: StripMarkupOption = False,
    format: FormatOption = Format.AUTO,
) -> None:
    """Compare an erasure with its record: files, base, facts, signature. Status 1 where something fails."""
    from .verify import VerifyPlan, run_verify

    reading = Reading(question_column, answer_column, split, strip_markup=strip_markup)
    plan = VerifyPlan(adapter, forget, salt_file, base, public_key, reading)
    run_verify(plan, format.resolved())


@app.command(epilog="Example:\n\nunierase log")
def log(
    ledger: Annotated[Path | None, typer.Option(help="The ledger; by default this user's.", show_default=False)] = None,
    format: FormatOption = Format.AUTO,
) -> None:
    """Show what was done with erasures on this machine. Status 1 where an entry was edited or is missing."""
    from .log import run_log

    run_log(ledger, format.resolved())


@app.command(epilog="Example:\n\nunierase restore model-without-xyz -o base-again")
def restore(
    folder: Annotated[Path, typer.Argument(help="A model that `unierase merge` made, or an erasure.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the base.", show_default=False)
    ] = None,
    undo: Annotated[
        Path | None, typer.Option(help="The way back, where merging put it elsewhere.", show_default=False)
    ] = None,
    device_map: DeviceMapOption = None,
    format: FormatOption = Format.AUTO,
) -> None:
    """Give the base back from a merged model, and prove by its digest that it is the base."""
    from .restore import run_restore

    run_restore(folder, output, undo, device_map, format.resolved())


@app.command(
    epilog="Example:\n\nopenssl ecparam -name prime256v1 -genkey -noout -out key.pem\n\n"
    "openssl ec -in key.pem -pubout -out key.pub\n\nunierase sign erase-xyz --key key.pem\n\n"
    "unierase verify erase-xyz --public-key key.pub"
)
def sign(
    folder: Annotated[Path, typer.Argument(help="Folder of an erasure.")],
    key: Annotated[Path, typer.Option(help="Private key, elliptic-curve, in PEM.", show_default=False)],
    format: FormatOption = Format.AUTO,
) -> None:
    """Sign an erasure with a key of yours. Needs the extra `sign`."""
    from .sign import run_sign

    run_sign(folder, key, format.resolved())
