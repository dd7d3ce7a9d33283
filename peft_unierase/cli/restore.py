"""`unierase restore`: the base again, from a model that erasures were merged into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .note import Written, noted_once
from .options import DeviceMapOption, FormatOption
from .output import Format, clear_endings, show, show_json

if TYPE_CHECKING:
    from ..records.restore import Restored

EXAMPLES = "Example:\n\nunierase restore model-without-xyz -o base-again"
LIVE = """{folder} is an adapter, and an adapter changes nothing of its base: leave it off, and the base is what it was.

    model.disable_adapter()         # for a while, in a with block
    toggle(model, NAME, on=False)   # until it is switched on again
    model.unload()                  # the base, without any adapter

To do away with the erasure, delete the folder, and the repository that it was shared in."""


@dataclass(frozen=True, kw_only=True)
class RestoreOptions:
    """What the command line asks for."""

    folder: Annotated[Path, typer.Argument(help="A model that `unierase merge` made, or an erasure.")]
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the base.", show_default=False)] = (
        None
    )
    undo: Annotated[
        Path | None, typer.Option(help="The way back, where merging put it elsewhere.", show_default=False)
    ] = None
    device_map: DeviceMapOption = None


def restore(options: RestoreOptions, format: FormatOption = Format.AUTO) -> None:
    """Give the base back from a merged model, and prove by its digest that it is the base."""
    style, folder, output = format.resolved(), options.folder, options.output

    def work(written: Written) -> None:
        from ..records.restore import restore
        from .base import prepare_libraries

        def noted(place: Path, restored: Restored) -> None:
            written(place, merged=str(folder.absolute()), **vars(restored))

        assert output is not None
        prepare_libraries()
        restore(folder, output, undo=options.undo, device_map=options.device_map, written=noted)

    with clear_endings():
        from ..storage.output import holds_erasure

        if not folder.is_dir():
            raise InputError(f"no such folder: {folder}")
        if holds_erasure(folder):
            if style is Format.JSON:
                show_json({"folder": str(folder), "merged": False})
            elif style is Format.HUMAN:
                show(LIVE.format(folder=folder))
            return
        if output is None:
            raise InputError("name a new folder for the base with --output")
        command = {"folder": str(folder.absolute()), "undo": str(options.undo), "device_map": options.device_map}
        told = noted_once("restore", output, command, work)
    base, digest = told["base"], told["digest"]
    if style is Format.JSON:
        show_json({"output": str(output), "merged": True, "base": base, "digest": digest})
    elif style is Format.HUMAN:
        show(f"Saved to {output}: {base} as it was before merging, every weight to the bit.")
        show(f"Its digest is {digest}, as it was then.")
