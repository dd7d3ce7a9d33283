"""What `unierase erase` refuses of its options before any model is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError, shown
from ..lm.adapters import description
from ..storage.names import CONFIG_NAME

MOST_LAYERS = 10_000


def parse_layers(text: str | None) -> list[int] | None:
    """`2,3` or `4-8` as indices.

    Raises:
        ValueError: It is neither.
    """
    if text is None:
        return None
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise InputError(f"--layers {shown(text)} is not a list of layers; write it like 2,3 or 4-8")
        layers.extend(range(first, last + 1))
        if len(layers) > MOST_LAYERS:
            raise InputError(f"--layers {shown(text)} names more layers than a model has; write it like 2,3 or 4-8")
    return layers


def check_onto(folders: Sequence[Path], output: Path) -> None:
    """Refuse what cannot be loaded before a further erasure.

    Raises:
        ValueError: A folder holds no erasure, is named twice, or is the one that is to be written to.
    """
    from ..storage.output import holds_erasure

    for folder in folders:
        if (folder / CONFIG_NAME).is_file() and not holds_erasure(folder):
            raise InputError(
                f"{folder} is {description(str(folder))} and no erasure; merge it into the base first and give the "
                "merged model as MODEL"
            )
        if not holds_erasure(folder):
            raise InputError(f"{folder} holds no erasure (--onto wants the folder of one that was made before)")
    places = [folder.resolve() for folder in folders]
    if twice := [str(folder) for folder, place in zip(folders, places, strict=True) if places.count(place) > 1]:
        raise InputError(f"--onto names {twice[0]} twice; name each erasure once")
    if output.resolve() in places:
        raise InputError(f"{output} is both --onto and the output; name a new folder for the further erasure")


def check_samples_out(given: Path | None, out: Path | None, samples: int | None, overwrite: bool) -> None:
    """Refuse a place for samples that cannot be written to, that would lose something, or with nothing to write.

    Raises:
        ValueError: Says which.
    """
    if out is None:
        return
    if out.is_dir():
        raise InputError(f"--samples-out {out} is a folder; name a file in it, for instance {out / 'samples.jsonl'}")
    if out.exists() and not overwrite:
        raise InputError(f"--samples-out {out} is there already; name another file, or give --overwrite")
    if given and out.exists() and out.samefile(given):
        raise InputError(f"--samples-in and --samples-out are both {out}; name two files")
    if samples == 0 and given is None:
        raise InputError("--samples 0 asks the base nothing, so --samples-out has nothing to write; leave one out")
