"""`unierase restore`: the base again, from a model that erasures were merged into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from ..storage.whole import claimed
from .note import keep_promise, note, promise
from .output import Format, clear_endings, show, show_json

LIVE = """{folder} is an adapter, and an adapter changes nothing of its base: leave it off, and the base is what it was.

    model.disable_adapter()         # for a while, in a with block
    toggle(model, NAME, on=False)   # until it is switched on again
    model.unload()                  # the base, without any adapter

To do away with the erasure, delete the folder, and the repository that it was shared in."""


def run_restore(folder: Path, output: Path | None, undo: Path | None, device_map: str | None, style: Format) -> None:
    """Write the base to a new folder, then the ledger; ends the process with status 2 on bad input, or where it would
    be another.

    Killed between the two, the same command goes on.
    """
    with clear_endings(), claimed(output or folder):
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
        command = {"folder": str(folder.absolute()), "undo": str(undo), "device_map": device_map}
        told = keep_promise("restore", output, command) or _restore(folder, output, undo, command)
    base, digest = told["base"], told["digest"]
    if style is Format.JSON:
        show_json({"output": str(output), "merged": True, "base": base, "digest": digest})
    elif style is Format.HUMAN:
        show(f"Saved to {output}: {base} as it was before merging, every weight to the bit.")
        show(f"Its digest is {digest}, as it was then.")


def _restore(folder: Path, output: Path, undo: Path | None, command: dict[str, Any]) -> dict[str, Any]:
    from ..records.record import file_digests
    from ..storage.output import check_new, write_folder
    from .ship import undo_file

    check_new(output)
    undo = undo or undo_file(file_digests(folder))
    if not undo.is_file():
        raise InputError(
            f"there is no way back for {folder} in {undo}: it was not merged here, was changed since, or was "
            "merged with --no-undo. Where the way back lies elsewhere, name it with --undo"
        )
    from ..adapter.undo import put_back, read_header
    from .base import load_base, prepare_libraries

    prepare_libraries()
    header = read_header(undo)
    model, tokenizer = load_base(str(folder), "auto", command["device_map"])
    put_back(model, undo)
    told: dict[str, Any] = {"merged": str(folder.absolute()), "base": header.get("base"), "digest": header["digest"]}

    def write(place: Path) -> None:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        told["files"] = file_digests(place)
        promise("restore", output, command, **told)

    write_folder(output, write)
    note("restore", output, **told)
    return told
