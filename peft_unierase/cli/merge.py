"""`unierase merge`: erasures in their base's weights, as a plain transformers model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .note import Written, noted_once
from .options import BaseOption, DeviceMapOption, DtypeOption, ErasuresArgument, FormatOption, TrustOption
from .output import Format, clear_endings, show, show_json

if TYPE_CHECKING:
    from ..hub.merge import Merged

EXAMPLES = (
    "Examples:\n\nunierase merge erase-xyz -o model-without-xyz\n\n"
    "unierase merge org/erase-a org/erase-b --base ./model -o merged --dtype bfloat16"
)


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """What the command line asks for."""

    adapters: ErasuresArgument
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.", show_default=False)]
    base: BaseOption = None
    dtype: DtypeOption = "auto"
    undo: Annotated[
        Path | None,
        typer.Option(
            help="File for the way back, which `unierase restore` takes and which brings back what was erased; by "
            "default among this user's records.",
            show_default=False,
        ),
    ] = None
    no_undo: Annotated[bool, typer.Option("--no-undo", help="Keep no way back.")] = False
    device_map: DeviceMapOption = None
    trust: TrustOption = False


def merge(options: MergeOptions, format: FormatOption = Format.AUTO) -> None:
    """Merge erasures into their base and save a plain transformers model."""
    style = format.resolved()

    def work(written: Written) -> None:
        from ..hub.merge import merge
        from .base import prepare_libraries

        def noted(place: Path, merged: Merged) -> None:
            undo = str(merged.undo) if merged.undo else None
            what = {"base": merged.base, "erasures": list(options.adapters), "names": list(merged.names)}
            written(place, **what, files=dict(merged.files), undo=undo)

        prepare_libraries()
        merge(
            options.adapters,
            options.output,
            base=options.base,
            dtype=options.dtype,
            device_map=options.device_map,
            undo=not options.no_undo and (options.undo or True),
            trust=options.trust,
            written=noted,
        )

    with clear_endings():
        command = {name: str(value) for name, value in vars(options).items()}
        told = noted_once("merge", options.output, command, work)
    base, kept = told["base"], told["undo"]
    if style is Format.JSON:
        show_json({"output": str(options.output), "base": base, "merged": told["names"], "undo": kept})
    elif style is Format.HUMAN:
        merged = f"Merged {', '.join(told['names'])} into {base} and saved it to {options.output}."
        show(f"{merged} Plain transformers loads it:\n")
        show(f'    model = AutoModelForCausalLM.from_pretrained("{options.output}")')
        if kept:
            show(f"\nThe way back is in {kept}. It brings back what was erased, so keep it to yourself.")
