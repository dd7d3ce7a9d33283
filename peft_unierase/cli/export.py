"""`unierase export`: erasures as one stock LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .note import Written, noted_once
from .options import BaseOption, DeviceMapOption, ErasuresArgument, FormatOption, TrustOption
from .output import Format, clear_endings, show, show_json

if TYPE_CHECKING:
    from ..hub.export import Exported

EXAMPLES = (
    "Examples:\n\nunierase export erase-xyz -o erase-xyz-lora\n\n"
    "unierase export org/erase-a org/erase-b --layout L -o both-as-lora\n\n"
    "unierase export erase-xyz --with-base -o for-llama-cpp"
)


class Form(str, Enum):
    """What an erasure can be exported to."""

    LORA = "lora"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the command line asks for."""

    adapters: ErasuresArgument
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the LoRA.", show_default=False)]
    to: Annotated[Form, typer.Option(help="The form.")] = Form.LORA
    layout: Annotated[
        str | None,
        typer.Option(
            help="T: [UNL]'s rows as PEFT's trainable tokens (small; not for tied embeddings, llama.cpp or vLLM). "
            "L: as LoRA on embedding and head (stacks; grows with the vocabulary). By default T, and L where they are "
            "tied.",
            show_default=False,
        ),
    ] = None
    base: BaseOption = None
    with_base: Annotated[
        bool,
        typer.Option(
            "--with-base",
            help="Also write the base to base/ in the folder, with a head of its own, and use layout L. llama.cpp's "
            "converters take both together.",
        ),
    ] = False
    device_map: DeviceMapOption = None
    trust: TrustOption = False


def export(options: ExportOptions, format: FormatOption = Format.AUTO) -> None:
    """Write erasures as one stock LoRA that peft loads without this package. Several are fused into one."""
    style = format.resolved()

    def work(written: Written) -> None:
        from ..hub.export import export
        from .base import prepare_libraries

        def noted(place: Path, exported: Exported) -> None:
            written(place, erasures=list(options.adapters), **vars(exported))

        prepare_libraries()
        export(
            options.adapters,
            options.output,
            layout=options.layout,
            base=options.base,
            with_base=options.with_base,
            device_map=options.device_map,
            trust=options.trust,
            written=noted,
        )

    with clear_endings():
        command = {name: str(value) for name, value in vars(options).items()}
        told = noted_once("export", options.output, command, work)
    base, layout, rank = told["base"], told["layout"], told["rank"]
    if style is Format.JSON:
        show_json({"output": str(options.output), "base": base, "layout": layout, "rank": rank})
    elif style is Format.HUMAN:
        show(f"Saved to {options.output}: a LoRA of rank {rank} in layout {layout} for {base}. Plain peft loads it:\n")
        show(f'    model = PeftModel.from_pretrained(base, "{options.output}")')
