"""`restore`: the base again, from a model that erasures were merged into, and where the way back lies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..storage.names import home
from ..storage.output import check_new, write_folder
from .record import file_digests


@dataclass(frozen=True)
class Restored:
    """A base that was given back.

    Attributes:
        base: What it was called when it was merged into; `None` if nobody said.
        digest: SHA-256 over all its weights, as it was then.
    """

    base: str | None
    digest: str


def restore(
    merged: str | Path,
    output: str | Path,
    *,
    undo: str | Path | None = None,
    device_map: str | None = None,
    written: Callable[[Path, Restored], None] | None = None,
) -> Restored:
    """Give the base back from a merged model, and prove by its digest that it is the base.

    Args:
        merged: Folder of a model that `merge` wrote.
        output: A new folder for the base.
        undo: The way back that merging kept, if it lies elsewhere than `merge` puts it by default.
        device_map: Passed on to transformers.
        written: Called with the place where all of it is, just before that becomes the folder.

    Raises:
        ValueError: There is no way back for this model, what came of it is not the base, or there is something in
            `output`.
        OSError: Writing failed; nothing is written.
    """
    merged, output = Path(merged), Path(output)
    if not merged.is_dir():
        raise InputError(f"no such folder: {merged}")
    check_new(output)
    place = Path(undo) if undo else undo_file(file_digests(merged))
    if not place.is_file():
        raise InputError(
            f"there is no way back for {merged} in {place}: it was not merged here, was changed since, or was "
            "merged with `undo=False` (on the command line --no-undo). If the way back lies elsewhere, name it: "
            "`undo=` (on the command line --undo)"
        )
    from ..adapter.undo import put_back, read_header
    from ..lm.load import load_base

    header = read_header(place)
    model, tokenizer = load_base(str(merged), "auto", device_map)
    put_back(model, place)
    restored = Restored(header.get("base"), header["digest"])

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if written is not None:
            written(folder, restored)

    write_folder(output, write)
    return restored


def undo_file(files: Mapping[str, str]) -> Path:
    """Where the way back from a merged model lies, by what the model is.

    Args:
        files: Digests of its files.
    """
    weights = [digest for name, digest in files.items() if name.endswith(".safetensors")]
    return home() / "undo" / f"{hashlib.sha256(' '.join(weights).encode()).hexdigest()[:32]}.safetensors"
