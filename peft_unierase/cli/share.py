"""The commands that hand an erasure on: merge, export, stack, inspect, push."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .options import DeviceMapOption, FormatOption, TrustOption
from .output import Format

app = typer.Typer()
BaseOption = Annotated[str | None, typer.Option(help="The base; erasures name their own.", show_default=False)]
ErasuresArgument = Annotated[list[str], typer.Argument(help="Folders or Hub ids of erasures of one base.")]


@app.command(
    epilog="Examples:\n\nunierase merge erase-xyz -o model-without-xyz\n\n"
    "unierase merge org/erase-a org/erase-b --base ./model -o merged --dtype bfloat16"
)
def merge(
    adapters: ErasuresArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.", show_default=False)],
    base: BaseOption = None,
    dtype: Annotated[
        str, typer.Option(help="Load and save the base as float32, bfloat16, float16, or auto (as it was saved).")
    ] = "auto",
    undo: Annotated[
        Path | None,
        typer.Option(
            help="File for the way back, which `unierase restore` takes and which brings back what was erased; by "
            "default among this user's records.",
            show_default=False,
        ),
    ] = None,
    no_undo: Annotated[bool, typer.Option("--no-undo", help="Keep no way back.")] = False,
    device_map: DeviceMapOption = None,
    trust: TrustOption = False,
    format: FormatOption = Format.AUTO,
) -> None:
    """Merge erasures into their base and save a plain transformers model."""
    from .ship import ShipPlan, run_merge

    plan = ShipPlan(tuple(adapters), output, base, None, dtype, device_map, trust, undo, with_undo=not no_undo)
    run_merge(plan, format.resolved())


class Form(str, Enum):
    """What an erasure can be exported to."""

    LORA = "lora"


@app.command(
    epilog="Examples:\n\nunierase export erase-xyz -o erase-xyz-lora\n\n"
    "unierase export org/erase-a org/erase-b --layout L -o both-as-lora"
)
def export(
    adapters: ErasuresArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the LoRA.", show_default=False)],
    to: Annotated[Form, typer.Option(help="The form.")] = Form.LORA,
    layout: Annotated[
        str | None,
        typer.Option(
            help="T: [UNL]'s rows as PEFT's trainable tokens (small; not for tied embeddings, llama.cpp or vLLM). "
            "L: as LoRA on embedding and head (stacks; grows with the vocabulary). By default T, and L where they are "
            "tied.",
            show_default=False,
        ),
    ] = None,
    base: BaseOption = None,
    device_map: DeviceMapOption = None,
    trust: TrustOption = False,
    format: FormatOption = Format.AUTO,
) -> None:
    """Write erasures as one stock LoRA that peft loads without this package. Several are fused into one."""
    from .ship import ShipPlan, run_export

    run_export(ShipPlan(tuple(adapters), output, base, layout, "float32", device_map, trust), format.resolved())


@app.command(
    epilog="Examples:\n\nunierase stack erase-a org/erase-b -o both\n\nunierase stack both --without erase-a -o only-b"
)
def stack(
    adapters: ErasuresArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the adapter.", show_default=False)],
    without: Annotated[
        list[str] | None, typer.Option(help="Take this one out again; may be repeated.", show_default=False)
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="What to call the base, where they name several.", show_default=False)
    ] = None,
    trust: TrustOption = False,
    format: FormatOption = Format.AUTO,
) -> None:
    """Fuse erasures into one adapter, or take one out again. Needs their files alone and not the base."""
    from .stack import run_stack

    run_stack(adapters, output, without or (), base, format.resolved(), trust)


class Report(str, Enum):
    """What `unierase inspect` shows."""

    AUTO = "auto"
    HUMAN = "human"
    JSON = "json"


@app.command(
    epilog="Examples:\n\nunierase inspect erase-xyz\n\nunierase inspect org/erase-xyz --revision v1 --format json\n\n"
    "The exit status is 0 where the guard passes it and 1 where it refuses it."
)
def inspect(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub id of an erasure, whoever made it.")],
    revision: Annotated[str | None, typer.Option(help="Revision on the Hub.", show_default=False)] = None,
    format: Annotated[
        Report, typer.Option("--format", help="What stdout shows; auto is human on a terminal, json in a pipe.")
    ] = Report.AUTO,
) -> None:
    """Look at an erasure without loading it: what it touches, what its record says, and whether the guard passes it."""
    from .inspect import run_inspect

    run_inspect(adapter, revision, Format(format.value).resolved())


@app.command(
    epilog="Examples:\n\nunierase push erase-xyz org/erase-xyz --private\n\n"
    'unierase push erase-xyz org/erase-xyz --create-pr --message "Check repeated"'
)
def push(
    folder: Annotated[Path, typer.Argument(help="Folder that erase or stack wrote.")],
    repo_id: Annotated[str, typer.Argument(help="The repository, OWNER/NAME; it is made if it is not there.")],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="Of a new repository; by default as its owner has set.", show_default=False
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch; it is made if it is not there.", show_default=False)
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    token: Annotated[
        str | None,
        typer.Option(
            help="The Hub's token. HF_TOKEN or `hf auth login` keep it out of the list of processes.",
            show_default=False,
        ),
    ] = None,
    message: Annotated[str | None, typer.Option(help="The commit's first line.", show_default=False)] = None,
    overwrite_card: Annotated[
        bool, typer.Option("--overwrite-card", help="Give up what was edited in the repository's card.")
    ] = False,
    format: FormatOption = Format.AUTO,
) -> None:
    """Check an erasure's folder and push it to the Hub as one commit: adapter, LoRA, tokenizer, card and record."""
    from .push import PushPlan, run_push

    run_push(PushPlan(folder, repo_id, private, revision, create_pr, token, message, overwrite_card), format.resolved())
